"""Losses by the names of the constant LOSS; float32 logits (B, C, H, W) against masks.

Masks of a single class are float32 (B, 1, H, W) in [0, 1], of several int64 (B, H, W).
"""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

from carvana.classes import SINGLE, Classes
from carvana.schema import pick

EDGE_WEIGHT = 4.0  # of the edge loss: the weight of a pixel at an outline is 1 + this
EDGE_REACH = 1 / 32  # how far from the outline that goes, as a share of the height
Weights = tuple[float, ...]  # one a class


def make_loss(
    name: str,
    classes: Classes = SINGLE,
    positive_weight: float = 1.0,
    class_weights: Weights | None = None,
    edge_height: int | None = None,
) -> Callable:
    """Return loss_fn(logits, masks) -> mean loss.

    Args:
        name: "bce", "dice", "bce_dice" or "edge".
        positive_weight: of foreground, or of all classes but the first, in bce and bce_dice.
        class_weights: of each of several classes, in place of it and in every loss.
        edge_height: see edge_loss.

    Raises:
        UserError: there is no loss of that name.
    """
    entropy_weights = class_weights or (1.0,) + (positive_weight,) * (classes.count - 1)
    cross_entropy = functools.partial(
        weighted_cross_entropy, classes=classes, weights=entropy_weights
    )
    dice = functools.partial(dice_loss, classes=classes, weights=class_weights)
    losses = {
        "bce": cross_entropy,
        "dice": dice,
        "bce_dice": functools.partial(_sum_of, losses=(cross_entropy, dice)),
        "edge": functools.partial(
            edge_loss, classes=classes, weights=class_weights, height=edge_height
        ),
    }
    return pick(losses, name, "LOSS")


def _sum_of(logits: torch.Tensor, masks: torch.Tensor, losses: tuple) -> torch.Tensor:
    return sum(loss(logits, masks) for loss in losses)


def weighted_cross_entropy(
    logits: torch.Tensor, masks: torch.Tensor, classes: Classes, weights: Weights
) -> torch.Tensor:
    """Return the mean cross entropy over known pixels, binary for a single class.

    Of several classes it is the weighted mean: pixels have the weight of their true class, and
    the sum is divided by that of the weights.

    Args:
        weights: of each class; of a single one 1 and that of foreground.
    """
    if classes.single:
        weight = None
        if weights[1] != 1:
            weight = _weights(weights[1:], logits.device)
        return F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight)
    weight = _weights(weights, logits.device)
    total = F.cross_entropy(logits, masks, weight, ignore_index=classes.ignore, reduction="sum")
    return _divide(total, pixel_weights(masks, classes, weights))


def _divide(total: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return total / sum of the weights; 0, not nan, where every pixel is ignored."""
    return total / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def pixel_weights(masks: torch.Tensor, classes: Classes, weights: Weights) -> torch.Tensor:
    """Return the weight of each pixel's class, float32 (B, H, W); 0 for ignored pixels."""
    known = masks.clamp(max=classes.count - 1)
    return torch.where(masks == classes.ignore, 0.0, _weights(weights, masks.device)[known])


@functools.lru_cache
def _weights(values: Weights, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)


def one_hot(masks: torch.Tensor, classes: Classes) -> torch.Tensor:
    """Return float32 (B, C, H, W) for indices (B, H, W); ignored pixels are 0 in all classes."""
    return torch.stack([masks == index for index in range(classes.count)], 1).float()


def dice_loss(
    logits: torch.Tensor, masks: torch.Tensor, classes: Classes, weights: Weights | None = None
) -> torch.Tensor:
    """Return soft_dice_loss of the probabilities; ignored pixels do not count."""
    if classes.single:
        return soft_dice_loss(torch.sigmoid(logits), masks)
    known = (masks != classes.ignore).unsqueeze(1)
    probabilities = torch.softmax(logits, 1) * known
    return soft_dice_loss(probabilities, one_hot(masks, classes), weights)


def soft_dice_loss(
    probabilities: torch.Tensor, masks: torch.Tensor, weights: Weights | None = None
) -> torch.Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), a mean over images and classes.

    Milletari et al., V-Net, 2016, arXiv:1606.04797, with the sums of Sudre et al., 2017,
    arXiv:1707.03237.

    Args:
        probabilities, masks: float (B, C, H, W).
        weights: of the classes in that mean; None: all alike.
    """
    p = probabilities.flatten(2)
    t = masks.flatten(2)
    losses = 1 - (2 * (p * t).sum(2) + 1) / (p.sum(2) + t.sum(2) + 1)
    if weights is None:
        return losses.mean()
    return (losses * _weights(weights, losses.device)).sum(1).mean() / sum(weights)


def edge_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    classes: Classes = SINGLE,
    weights: Weights | None = None,
    height: int | None = None,
) -> torch.Tensor:
    """Return cross entropy with each pixel weighted by 1 + EDGE_WEIGHT * 4 m (1 - m).

    m is the mask's mean around the pixel; the sum is divided by that of the weights. After the
    border weights of Ronneberger et al., 2015, arXiv:1505.04597, equation 2, by a mean instead of
    a distance. For several classes 2 (1 - sum of m * m over the classes) replaces 4 m (1 - m),
    which it equals for two, and the means are over known pixels.

    Args:
        weights: of several classes, by which those of their pixels are multiplied.
        height: pixels that EDGE_REACH is a share of; None: the masks' own height. Crops and the
            whole pictures that they are parts of need the same.
    """
    reach = max(1, round(EDGE_REACH * (height or masks.shape[-2])))
    if classes.single:
        m = means_in_squares(masks, reach)
        pixels = 1 + EDGE_WEIGHT * 4 * m * (1 - m)
        return F.binary_cross_entropy_with_logits(logits, masks, pixels / pixels.mean())
    m = means_in_squares(one_hot(masks, classes), reach)  # of all pixels: 0 for ignored ones
    known = _known_shares(m, reach)
    edges = 2 * (1 - m.square().sum(1) / known.square())
    equal = (1.0,) * classes.count
    pixels = (1 + EDGE_WEIGHT * edges) * pixel_weights(masks, classes, weights or equal)
    entropy = F.cross_entropy(logits, masks, ignore_index=classes.ignore, reduction="none")
    return _divide((entropy * pixels).sum(), pixels)


def _known_shares(m: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the share of the known pixels around each one, (B, H, W), at least a pixel's.

    Counting whole pixels makes it exactly 1 where nothing is ignored.

    Args:
        m: the classes' shares of all pixels around each one, (B, C, H, W).
    """
    rows, columns = (high - low for low, high in (_windows(m.mT, reach), _windows(m, reach)))
    pixels = rows[:, None] * columns
    return (m.sum(1) * pixels).round().clamp(min=1) / pixels


def means_in_squares(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the mean of each value and its neighbors up to `reach` rows and columns away."""
    return means_around(means_around(values, reach).mT, reach).mT


def means_around(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the mean of each value and its neighbors up to `reach` away in the last dimension.

    Differences of running sums: equally fast for any reach.
    """
    low, high = _windows(values, reach)
    sums = F.pad(values.cumsum(-1), (1, 0))
    return (sums[..., high] - sums[..., low]) / (high - low)


def _windows(values: torch.Tensor, reach: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the neighbors of each place in the last dimension begin and end."""
    places = torch.arange(values.shape[-1], device=values.device)
    low = (places - reach).clamp(min=0)
    high = (places + reach + 1).clamp(max=len(places))
    return low, high
