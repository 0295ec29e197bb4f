import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import metrics


def score(name, predicted, target):
    counts = metrics.confusion(
        torch.as_tensor(np.asarray(predicted))[None], torch.as_tensor(np.asarray(target))[None]
    )
    return metrics.SCORES[name](counts).item()


masks = array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


@given(masks)
def test_dice_is_its_formula_and_bounded(pair):
    predicted, target = pair
    whole = predicted.sum() + target.sum()
    dice = score("dice", predicted, target)
    assert dice == pytest.approx(2 * (predicted & target).sum() / whole if whole else 1)
    assert 0 <= dice <= 1 and dice == score("dice", target, predicted)
    iou = score("iou", predicted, target)
    assert dice == pytest.approx(2 * iou / (1 + iou))


@given(masks)
def test_counts_cover_every_pixel_once(pair):
    predicted, target = pair
    tp, fp, fn, tn = metrics.confusion(
        torch.from_numpy(predicted)[None], torch.from_numpy(target)[None]
    )[0].tolist()
    assert (tp, fp, fn, tn) == tuple(
        np.sum(p & t)
        for p, t in (
            (predicted, target),
            (predicted, ~target),
            (~predicted, target),
            (~predicted, ~target),
        )
    )
    assert score("accuracy", predicted, target) == pytest.approx((predicted == target).mean())


def test_perfect_empty_and_disjoint():
    car, empty = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    car[2:4, 2:6] = True
    for name in ("dice", "iou"):
        assert score(name, car, car) == 1 and score(name, empty, empty) == 1
        assert score(name, car, ~car) == 0 and score(name, empty, car) == 0
    assert score("precision", empty, empty) == 1 and score("recall", empty, car) == 0


def test_dice_is_a_mean_over_images_not_over_pixels():
    predicted, target = (
        torch.zeros(2, 10, 10, dtype=torch.bool),
        torch.zeros(2, 10, 10, dtype=torch.bool),
    )
    predicted[0], target[0], target[1, 0, 0] = True, True, True
    assert metrics.dice(metrics.confusion(predicted, target)).tolist() == [1, 0]


def test_boundary_distance_of_shifted_squares():
    one, other = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    one[20:40, 20:50] = True
    other[19:41, 19:51] = True
    assert metrics.boundary_distance(one, one) == 0
    assert metrics.boundary_distance(one, other) == pytest.approx(1, abs=0.05)
    assert metrics.boundary_distance(one, other) == pytest.approx(
        metrics.boundary_distance(other, one)
    )
    empty = np.zeros_like(one)
    assert metrics.boundary_distance(empty, empty) == 0
    assert metrics.boundary_distance(one, empty) == 100  # the diagonal of 60x80
    assert (
        metrics.boundary_distance(~empty, empty) == 100
        and metrics.boundary_distance(~empty, ~empty) == 0
    )


def test_errors_beyond_two_pixels_of_the_outline():
    true = np.zeros((60, 80), bool)
    true[20:40, 20:50] = True
    nothing = np.zeros_like(true)
    assert metrics.beyond(true, true) == metrics.beyond(nothing, nothing) == 0
    shifted = np.roll(true, 2, axis=1)
    assert metrics.beyond(shifted, true) == 0
    assert (
        metrics.beyond(np.roll(true, 3, axis=1), true) == (20 + 16) / 1200
    )  # the third column on each side; four pixels of the car's own lie near its corners
    speck = true.copy()
    speck[2, 2] = True
    assert metrics.beyond(speck, true) == 1 / 1201
    assert metrics.beyond(true, nothing) == 1
