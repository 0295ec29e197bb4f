"""Losses are their formulas, least for the truth, and blind to ignored pixels."""

from unittest import mock

import numpy as np
import pytest
import torch
from helpers import class_indices, scene
from torch.nn import functional as F

from carvana.classes import SINGLE, Classes
from carvana.history import warn_of_rare_classes
from carvana.losses import EDGE_REACH, EDGE_WEIGHT, edge_loss, make_loss, means_around

THREE = Classes(("ground", "thing", "edge"))
NAMES = ["bce", "dice", "bce_dice", "edge"]


# ---------------------------------------------------------------- a single class


def test_loss_is_its_formula():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]], [[[1.0, 1.0], [-2.0, 0.0]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]], [[[0.0, 1.0], [0.0, 0.0]]]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    t = masks.numpy()
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dices = [(2 * (p[i] * t[i]).sum() + 1) / (p[i].sum() + t[i].sum() + 1) for i in (0, 1)]
    dice = 1 - np.mean(dices)
    for name, expected in (("bce", bce), ("dice", dice), ("bce_dice", bce + dice)):
        assert make_loss(name)(logits, masks).item() == pytest.approx(expected, rel=1e-5)


def test_loss_weighs_foreground():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 8, 12)
    masks = torch.rand(2, 1, 8, 12)
    expected = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=torch.tensor(3.0))
    loss = make_loss("bce", SINGLE, 3.0)(logits, masks)
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_least_for_the_truth(name):
    masks = torch.from_numpy(scene(3, 64, 96)[1])[None, None].float()
    loss = make_loss(name)
    truth = (20 * (2 * masks - 1)).requires_grad_()
    assert loss(truth, masks).item() < 1e-3 < loss(-truth, masks).item()
    for empty in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
        loss(logits, empty).backward()
        assert logits.grad.isfinite().all()
        assert ((logits.grad > 0) == (empty == 0)).all()


def test_edge_loss_of_an_even_mask_is_cross_entropy():
    even = torch.zeros(1, 1, 64, 96)
    expected = make_loss("bce")(even + 1, even).item()
    assert make_loss("edge")(even + 1, even).item() == pytest.approx(expected, rel=1e-5)


def test_edge_loss_of_errors_at_the_outline_is_higher():
    masks = torch.zeros(1, 1, 64, 96)
    masks[..., :48] = 1
    at_outline = 20 * (2 * masks - 1)
    far_away = at_outline.clone()
    at_outline[..., 47] *= -1
    far_away[..., 10] *= -1
    assert edge_loss(at_outline, masks) > 3 * edge_loss(far_away, masks)
    cross_entropy = make_loss("bce")
    expected = cross_entropy(far_away, masks).item()
    assert cross_entropy(at_outline, masks) == pytest.approx(expected)


@pytest.mark.parametrize("size, reach", [((5, 7), 1), ((9, 4), 20), ((64, 96), 5), ((1, 3000), 90)])
def test_means_around_are_means(size, reach):
    values = torch.rand(2, 1, *size)
    window = (1, 2 * reach + 1)
    expected = F.avg_pool2d(values, window, 1, (0, reach), count_include_pad=False)
    assert torch.allclose(means_around(values, reach), expected, atol=1e-5)


# ---------------------------------------------------------------- several classes


def test_class_loss_is_its_formula():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 12)
    masks = torch.randint(0, 3, (2, 8, 12))
    masks[0, :2] = THREE.ignore
    expected = F.cross_entropy(logits, masks, ignore_index=255).item()
    assert make_loss("bce", THREE)(logits, masks).item() == pytest.approx(expected)
    weighted = F.cross_entropy(logits, masks, torch.tensor([1.0, 5, 5]), ignore_index=255).item()
    assert make_loss("bce", THREE, 5.0)(logits, masks).item() == pytest.approx(weighted)
    p = torch.softmax(logits, 1)
    known = masks != THREE.ignore
    dices = []
    for i in range(2):
        for index in range(3):
            is_class = masks[i] == index
            intersection = (p[i, index] * is_class)[known[i]].sum()
            sizes = p[i, index][known[i]].sum() + is_class.sum()
            dices.append((2 * intersection + 1) / (sizes + 1))
    expected = 1 - torch.stack(dices).mean().item()
    assert make_loss("dice", THREE)(logits, masks).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_class_loss_is_least_for_the_truth_and_ignores_pixels(name):
    loss = make_loss(name, THREE)
    masks = torch.from_numpy(np.stack([class_indices(1), class_indices(2)])).long()
    right = 12 * F.one_hot(masks.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert loss(right, masks) < 0.01
    assert loss(-right, masks) > 0.1
    logits = torch.randn(2, 3, 24, 36, requires_grad=True)
    loss(logits, masks).backward()
    gradients = logits.grad.abs().sum(1)
    assert gradients[masks == THREE.ignore].max() == 0
    assert gradients[masks != THREE.ignore].min() > 0
    assert loss(logits, torch.full_like(masks, THREE.ignore)).isfinite()


def test_edge_loss_of_two_classes_is_the_binary_one():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 64, 64)
    masks = (torch.arange(64) > 30).expand(1, 64, 64).long()
    both = torch.cat((torch.zeros_like(logits), logits), 1)
    binary = make_loss("edge")(logits, masks[:, None].float()).item()
    two_classes = make_loss("edge", Classes(("a", "b")))(both, masks).item()
    assert two_classes == pytest.approx(binary, rel=1e-4)


def naive_weighted_losses(logits, masks, weights):
    """Return each loss of three classes by its formula, pixel by pixel, in float64."""
    logits = logits.double()
    w = torch.tensor(weights, dtype=torch.float64)
    known = masks != THREE.ignore
    of_pixels = torch.where(known, w[masks.clamp(max=2)], 0.0)
    log_p = torch.log_softmax(logits, 1)
    entropy = -log_p.gather(1, masks.clamp(max=2)[:, None])[:, 0]
    edges = torch.stack([edge_weights(mask, THREE) for mask in masks]) * of_pixels
    bce = (entropy * of_pixels).sum() / of_pixels.sum()
    dice = 0.0
    for i in range(len(masks)):
        for index in range(3):
            p = log_p[i, index].exp()[known[i]]
            t = (masks[i] == index)[known[i]]
            value = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            dice += w[index] * value / w.sum() / len(masks)
    edge = (entropy * edges).sum() / edges.sum()
    return {"bce": bce, "dice": dice, "bce_dice": bce + dice, "edge": edge}


@pytest.mark.parametrize("weights", [(1.0, 2.0, 5.0), (0.02, 50.0, 1.0), (1e-3, 1e-3, 2e-3)])
def test_class_loss_weighs_each_class(weights):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 12)
    masks = torch.randint(0, 3, (2, 8, 12))
    masks[0, :2] = THREE.ignore
    for name, expected in naive_weighted_losses(logits, masks, weights).items():
        loss = make_loss(name, THREE, class_weights=weights)(logits, masks)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), name
    expected = F.cross_entropy(logits, masks, torch.tensor(weights), ignore_index=255)
    loss = make_loss("bce", THREE, class_weights=weights)(logits, masks)
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", NAMES)
def test_equal_class_weights_are_no_weights(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 24, 36)
    masks = torch.from_numpy(np.stack([class_indices(1), class_indices(2)])).long()
    expected = make_loss(name, THREE)(logits, masks)
    ones = make_loss(name, THREE, class_weights=(1.0, 1.0, 1.0))(logits, masks)
    sevens = make_loss(name, THREE, class_weights=(7.0, 7.0, 7.0))(logits, masks)
    if name != "bce":  # a weighted mean is summed in another order
        expected = pytest.approx(expected.item(), rel=1e-6)
    assert ones == expected
    assert sevens.item() == pytest.approx(ones.item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_class_weights_do_not_depend_on_what_is_ignored(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 24, 36, requires_grad=True)
    masks = torch.from_numpy(np.stack([class_indices(1), class_indices(2)])).long()
    loss = make_loss(name, THREE, class_weights=(0.1, 3.0, 9.0))
    loss(logits, masks).backward()
    gradients = logits.grad.abs().sum(1)
    assert gradients[masks == THREE.ignore].max() == 0
    assert gradients[masks != THREE.ignore].min() > 0
    logits.grad = None
    nothing = loss(logits, torch.full_like(masks, THREE.ignore))
    nothing.backward()
    assert nothing.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


def edge_weights(masks, classes):
    """Return the weight of each pixel in edge_loss, (H, W), by its definition, and in float64."""
    height, width = masks.shape
    reach = max(1, round(EDGE_REACH * height))
    weights = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            square = masks[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            known = square[square != classes.ignore]
            if masks[y, x] != classes.ignore:
                shares = torch.bincount(known, minlength=classes.count) / len(known)
                weights[y, x] = 1 + EDGE_WEIGHT * 2 * (1 - shares.double().square().sum())
    return weights


def weights_in_edge_loss(masks, classes):
    """Return the weight of each pixel in edge_loss over the sum of all weights, (H, W)."""
    count = classes.count
    logits = torch.zeros(1, count, *masks.shape, requires_grad=True)
    edge_loss(logits, masks[None], classes).backward()
    # The gradient is weight * (1 / count - 1) for the true class and weight / count for the others.
    return logits.grad[0].abs().sum(0) / (2 - 2 / count)


def half_ignored(height, width):
    masks = torch.zeros(height, width, dtype=torch.long)
    masks[:, width // 2 :] = THREE.ignore
    return masks


def speck_in_ignored(height, width):
    masks = torch.full((height, width), THREE.ignore)
    masks[height // 2, width // 2] = 2
    masks[: height // 4, :3] = 1
    return masks


def two_classes_and_ignored(height, width):
    masks = half_ignored(height, width)
    masks[: height // 2, : width // 2] = 1
    return masks


@pytest.mark.parametrize("size", [(64, 96), (7, 11), (1, 3)])
@pytest.mark.parametrize("make", [half_ignored, speck_in_ignored, two_classes_and_ignored])
def test_edge_loss_weighs_known_pixels_by_known_ones(make, size):
    masks = make(*size)
    expected = edge_weights(masks, THREE)
    weights = weights_in_edge_loss(masks, THREE)
    assert torch.allclose(weights.double(), expected / expected.sum(), rtol=1e-3, atol=1e-8)


def test_edge_loss_takes_ignored_pixels_for_no_outline():
    """One class beside them weighs as much as one class alone; two weigh the most, 1 + 4."""
    weights = edge_weights(half_ignored(64, 96), THREE)
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    both = weights_in_edge_loss(two_classes_and_ignored(64, 96), THREE)[:, :48]
    assert (both.max() / both.min()).item() == pytest.approx(1 + EDGE_WEIGHT, rel=0.05)
    assert both[32, 47].item() == pytest.approx(both[32, 10].item(), rel=1e-4)  # beside, and far
    large = weights_in_edge_loss(speck_in_ignored(1280, 1918), THREE)  # the least exact
    assert large[640, 959].item() == pytest.approx(large[0, 0].item(), rel=0.05)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("size", [(160, 240), (37, 53), (1, 9)])
def test_edge_loss_without_ignored_pixels_has_the_bits_of_the_plain_formula(size, count):
    torch.manual_seed(count)
    classes = Classes(("a", "b", "c", "d")[:count])
    masks = torch.randint(0, count, (2, *size))
    masks[:, :, size[1] // 2 :] = 1
    logits = torch.randn(2, count, *size)
    reach = max(1, round(EDGE_REACH * size[0]))
    m = F.one_hot(masks, count).permute(0, 3, 1, 2).float().contiguous()
    m = means_around(means_around(m, reach).mT, reach).mT
    weights = 1 + EDGE_WEIGHT * 2 * (1 - m.square().sum(1))
    expected = (F.cross_entropy(logits, masks, reduction="none") * weights).sum() / weights.sum()
    assert torch.equal(edge_loss(logits, masks, classes), expected)


def test_loss_does_not_depend_on_what_is_ignored():
    """Neither on the logits there, nor, but for the Dice's smoothing, on how many there are."""
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 24, 36)
    masks = torch.randint(0, 3, (1, 24, 36))
    wider = torch.full((1, 24, 90), THREE.ignore)
    wider[..., :36] = masks
    more_logits = torch.cat((logits, 9 * torch.randn(1, 3, 24, 54)), -1)
    for name in NAMES:
        loss = make_loss(name, THREE, 3.0)
        assert loss(more_logits, wider).item() == pytest.approx(
            loss(logits, masks).item(), rel=1e-5
        )


def test_rare_classes_are_those_of_few_known_pixels(capsys):
    mask = np.full((40, 50), THREE.ignore, np.uint8)
    mask[:10] = 0
    mask[10, :25] = 1  # 1.3 % of all pixels, but 4.7 % of the known ones
    mask[11, :5] = 2
    dataset = mock.MagicMock()
    dataset.__len__.return_value = 3
    dataset.reading.classes = THREE
    dataset.read_target.return_value = mask
    warn_of_rare_classes(dataset)
    printed = capsys.readouterr().out
    assert "edge: 0.94 %" in printed
    assert "thing" not in printed
