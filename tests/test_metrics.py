"""Scores are their formulas, for one class and for several."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from carvana import metrics
from carvana.classes import SINGLE, Classes

THREE = Classes(("ground", "thing", "edge"))
IGNORED = THREE.ignore


def score(name, predicted, target):
    """Return a score of one image of a single class."""
    matrices = metrics.confusion_matrices(
        torch.as_tensor(predicted)[None], torch.as_tensor(target)[None], SINGLE
    )
    return metrics.image_scores(matrices, name, SINGLE).item()


def pairs_of_masks(shape):
    mask = arrays(np.uint8, shape, elements=st.integers(0, 1))
    return st.tuples(mask, mask)


PAIRS = array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(pairs_of_masks)


# ---------------------------------------------------------------- a single class


@given(PAIRS)
def test_dice_is_its_formula_and_bounded(pair):
    predicted, target = pair
    whole = int(predicted.sum()) + int(target.sum())
    dice = score("dice", predicted, target)
    assert dice == pytest.approx(2 * (predicted & target).sum() / whole if whole else 1)
    assert 0 <= dice <= 1
    assert dice == score("dice", target, predicted)
    iou = score("iou", predicted, target)
    assert dice == pytest.approx(2 * iou / (1 + iou))


@given(PAIRS)
def test_confusion_covers_every_pixel_once(pair):
    predicted, target = pair
    (matrix,) = metrics.confusion_matrices(
        torch.from_numpy(predicted)[None], torch.from_numpy(target)[None], SINGLE
    )
    for true_class in (0, 1):
        for predicted_class in (0, 1):
            expected = ((target == true_class) & (predicted == predicted_class)).sum()
            assert matrix[true_class, predicted_class] == expected
    assert score("accuracy", predicted, target) == pytest.approx((predicted == target).mean())


def test_scores_perfect_empty_and_disjoint():
    empty = np.zeros((6, 8), np.uint8)
    car = empty.copy()
    car[2:4, 2:6] = 1
    for name in ("dice", "iou"):
        assert score(name, car, car) == 1
        assert score(name, empty, empty) == 1
        assert score(name, car, 1 - car) == 0
        assert score(name, empty, car) == 0
    assert score("precision", empty, empty) == 1
    assert score("recall", empty, car) == 0


def one_found_and_one_missed():
    """Return the confusion matrices of a large object that is found, and a pixel that is not."""
    predicted = torch.zeros(2, 10, 10, dtype=torch.uint8)
    target = torch.zeros(2, 10, 10, dtype=torch.uint8)
    predicted[0] = 1
    target[0] = 1
    target[1, 0, 0] = 1
    return metrics.confusion_matrices(predicted, target, SINGLE)


def test_dice_is_a_mean_over_images_not_over_pixels():
    matrices = one_found_and_one_missed()
    assert metrics.image_scores(matrices, "dice", SINGLE).tolist() == [1, 0]


# ---------------------------------------------------------------- several classes


@given(st.integers(0, 2**32 - 1))
def test_class_scores_are_counts(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, rng.integers(1, 4), (2, 5, 6))
    predicted = rng.integers(0, rng.integers(1, 4), (2, 5, 6))
    truth[rng.random(truth.shape) < 0.2] = IGNORED
    matrices = metrics.confusion_matrices(
        torch.from_numpy(predicted), torch.from_numpy(truth), THREE
    )
    dices = metrics.class_scores(matrices, metrics.dice)
    for i in range(2):
        for a in range(3):
            for b in range(3):
                assert matrices[i, a, b] == ((truth[i] == a) & (predicted[i] == b)).sum()
        for index in range(3):
            expected = dice_of_class(predicted[i], truth[i], index)
            assert dices[i, index].item() == pytest.approx(expected, nan_ok=True)


def dice_of_class(predicted, truth, index):
    """Return the Dice of a class in one image by its formula; nan of a class in neither."""
    known = truth != IGNORED
    p = (predicted == index) & known
    t = (truth == index) & known
    if not p.any() and not t.any():
        return np.nan
    return 2 * (p & t).sum() / (p.sum() + t.sum())


def test_class_that_is_never_predicted_has_no_precision():
    # Of two classes that are there, one is never predicted.
    matrices = torch.tensor([[[8, 0, 0], [4, 0, 0], [0, 0, 0]]])
    for formula in (metrics.dice, metrics.precision, metrics.recall):
        (values,) = metrics.class_scores(matrices, formula)
        assert values[0] > 0
        assert values[1] == 0
        assert values[2].isnan()


# ---------------------------------------------------------------- a whole data set


def test_set_scores_are_those_of_the_summed_counts():
    """Two images, by hand; the third class is nowhere and is left out of the means."""
    matrices = torch.tensor(
        [
            [[6, 2, 0], [0, 2, 0], [0, 0, 0]],
            [[10, 0, 0], [0, 0, 0], [0, 0, 0]],
        ]
    )
    scores = metrics.set_scores(matrices, THREE)
    # Summed: 16 and 2 right, 2 of the first class taken for the second.
    assert scores["set_iou"] == pytest.approx((16 / 18 + 2 / 4) / 2)
    assert scores["set_dice"] == pytest.approx((32 / 34 + 4 / 6) / 2)
    by_class = metrics.scores_by_class(matrices, THREE)
    assert by_class["ground"]["set_iou"] == pytest.approx(16 / 18)
    assert by_class["ground"]["iou"] == pytest.approx((6 / 8 + 1) / 2)
    assert by_class["thing"] == pytest.approx(
        {"dice": 4 / 6, "iou": 2 / 4, "set_dice": 4 / 6, "set_iou": 2 / 4}
    )
    assert set(by_class["edge"].values()) == {None}


def test_set_scores_count_a_class_that_is_only_predicted():
    matrices = torch.tensor([[[8, 0, 2], [0, 0, 0], [0, 0, 0]]])
    assert metrics.set_scores(matrices, THREE)["set_iou"] == pytest.approx((8 / 10 + 0) / 2)


def test_set_scores_of_a_single_class_are_the_foregrounds():
    matrices = one_found_and_one_missed()
    scores = metrics.set_scores(matrices, SINGLE)
    assert scores == pytest.approx({"set_dice": 200 / 201, "set_iou": 100 / 101})


def masks_of_all_classes(rng, images):
    """Return predicted and true masks, (images, 6, 7), the true ones with all of THREE in each."""
    truth = rng.integers(0, 3, (images, 6, 7))
    truth[:, 0, :3] = [0, 1, 2]
    truth[:, 1, :2] = IGNORED
    predicted = rng.integers(0, 3, truth.shape)
    return torch.from_numpy(predicted), torch.from_numpy(truth)


@given(st.integers(0, 2**32 - 1))
def test_set_scores_of_one_image_are_the_images(seed):
    predicted, truth = masks_of_all_classes(np.random.default_rng(seed), 1)
    for classes in (THREE, SINGLE):
        binary = classes.single
        pair = [(mask == 1).byte() if binary else mask for mask in (predicted, truth)]
        matrices = metrics.confusion_matrices(*pair, classes)
        (row,) = metrics.score_rows(matrices, classes)
        scores = metrics.set_scores(matrices, classes)
        assert scores == {"set_dice": row["dice"], "set_iou": row["iou"]}
    assert metrics.set_scores(matrices.expand(3, -1, -1), SINGLE) == pytest.approx(scores)


@given(st.integers(0, 2**32 - 1))
def test_set_scores_do_not_depend_on_the_order_of_images_and_ignore_pixels(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = masks_of_all_classes(rng, 4)
    scores = metrics.set_scores(metrics.confusion_matrices(predicted, truth, THREE), THREE)
    order = rng.permutation(4)
    predicted[truth == IGNORED] = int(rng.integers(0, 3))
    matrices = metrics.confusion_matrices(predicted[order], truth[order], THREE)
    assert metrics.set_scores(matrices, THREE) == scores
    unions = [
        ((predicted == index) & (truth == index)).sum()
        / (((predicted == index) | (truth == index)) & (truth != IGNORED)).sum()
        for index in range(3)
    ]
    assert scores["set_iou"] == pytest.approx(np.mean(unions))
