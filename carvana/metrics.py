"""What a mask is worth: one definition of each score, for training, evaluation and tests."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from carvana.classes import Classes
from carvana.device import count_nonzero


class Counts(NamedTuple):
    """Pixels of one class against all others; int64 tensors of one shape."""

    true_positives: torch.Tensor
    false_positives: torch.Tensor
    false_negatives: torch.Tensor
    true_negatives: torch.Tensor


# ---------------------------------------------------------------- counting


def confusion_matrices(
    predicted: torch.Tensor, target: torch.Tensor, classes: Classes
) -> torch.Tensor:
    """Count the pixels of each image by true and predicted class.

    Args:
        predicted, target: uint8 (B, H, W) of class indices.

    Returns:
        int64 (B, C, C), rows true, columns predicted, C = classes.count. Pixels whose true index
        is classes.ignore are left out.
    """
    predicted = predicted.flatten(1)
    target = target.flatten(1)
    if classes.single:
        return _binary_matrices(predicted, target)
    count = classes.count
    cells = target.long() * count + predicted.long()
    cells = torch.where(target == classes.ignore, count * count, cells)
    rows = [torch.bincount(image, minlength=count * count + 1)[:-1] for image in cells]
    return torch.stack(rows).view(-1, count, count)


def _binary_matrices(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the same for masks of 0 and 1, (B, pixels), in a fraction of the time."""
    both = count_nonzero(predicted & target)
    predicted_count = count_nonzero(predicted)
    target_count = count_nonzero(target)
    neither = target.shape[1] - predicted_count - target_count + both
    cells = (neither, predicted_count - both, target_count - both, both)
    return torch.stack(cells, dim=1).view(-1, 2, 2)


def one_against_all(matrices: torch.Tensor) -> Counts:
    """Return the counts of each class, (B, C), for confusion matrices (B, C, C)."""
    true_positives = matrices.diagonal(dim1=1, dim2=2)
    false_positives = matrices.sum(1) - true_positives
    false_negatives = matrices.sum(2) - true_positives
    wrong_or_found = true_positives + false_positives + false_negatives
    true_negatives = matrices.sum((1, 2))[:, None] - wrong_or_found
    return Counts(true_positives, false_positives, false_negatives, true_negatives)


# ---------------------------------------------------------------- scores


def safe_ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Return numerator / denominator, float64; 1 where nothing was to be found or predicted."""
    return torch.where(denominator == 0, 1.0, numerator.double() / denominator.clamp(min=1))


def dice(counts: Counts) -> torch.Tensor:
    """Return 2|P∩T| / (|P|+|T|), 1 where both are empty. The Kaggle challenge's is its mean."""
    tp, fp, fn, _ = counts
    return safe_ratio(2 * tp, 2 * tp + fp + fn)


def iou(counts: Counts) -> torch.Tensor:
    """Return |P∩T| / |P∪T|."""
    tp, fp, fn, _ = counts
    return safe_ratio(tp, tp + fp + fn)


def precision(counts: Counts) -> torch.Tensor:
    """Return the share of the predicted pixels that is right."""
    tp, fp, _, _ = counts
    return safe_ratio(tp, tp + fp)


def recall(counts: Counts) -> torch.Tensor:
    """Return the share of the true pixels that was predicted."""
    tp, _, fn, _ = counts
    return safe_ratio(tp, tp + fn)


def accuracy(matrices: torch.Tensor) -> torch.Tensor:
    """Return the share of all pixels that is right, (B,).

    Carvana's background alone makes 0.79 of them: look at Dice first.
    """
    correct = matrices.diagonal(dim1=1, dim2=2).sum(1)
    return safe_ratio(correct, matrices.sum((1, 2)))


CLASS_SCORES = {"dice": dice, "iou": iou, "precision": precision, "recall": recall}
SCORE_NAMES = ("dice", "iou", "accuracy", "precision", "recall")
SET_SCORE_NAMES = ("dice", "iou")  # that are also measured of all pixels of a data set together


def class_scores(matrices: torch.Tensor, score: Callable) -> torch.Tensor:
    """Return one of CLASS_SCORES of each class, float64 (B, C).

    It is 0 of a class that is there but was never predicted right, and nan of a class that is
    neither in the image's truth nor in its prediction.
    """
    counts = one_against_all(matrices)
    values = torch.where(counts.true_positives == 0, 0.0, score(counts))
    present = counts.true_positives + counts.false_positives + counts.false_negatives > 0
    return torch.where(present, values, torch.nan)


def image_scores(matrices: torch.Tensor, name: str, classes: Classes) -> torch.Tensor:
    """Return a score of each image, float64 (B,).

    Of a single class it is the foreground's, of several the mean over the classes that are in
    the image's truth or prediction.

    Args:
        name: one of SCORE_NAMES.
    """
    if name == "accuracy":
        return accuracy(matrices)
    score = CLASS_SCORES[name]
    if classes.single:
        return score(one_against_all(matrices))[:, 1]
    return class_scores(matrices, score).nanmean(1).nan_to_num(1.0)


def score_rows(matrices: torch.Tensor, classes: Classes) -> list[dict[str, float]]:
    """Return {score: value} of each image."""
    columns = {name: image_scores(matrices, name, classes).tolist() for name in SCORE_NAMES}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def set_scores(matrices: torch.Tensor, classes: Classes) -> dict[str, float]:
    """Return {"set_dice", "set_iou"}: scores of all pixels of a data set together.

    They are those of one image with the sum of all confusion matrices: of a single class the
    foreground's, of several the mean over the classes that are in the set's truth or prediction.
    For the IoU that is the mean IoU of Long et al., 2015, arXiv:1411.4038.
    """
    whole = matrices.sum(0, keepdim=True)
    return {f"set_{name}": image_scores(whole, name, classes).item() for name in SET_SCORE_NAMES}


def scores_by_class(matrices: torch.Tensor, classes: Classes) -> dict[str, dict[str, float | None]]:
    """Return {class: {"dice", "iou", "set_dice", "set_iou"}}; None for a class that is in no image.

    The first two are means over the images where the class is, the others of all pixels together.
    """
    whole = matrices.sum(0, keepdim=True)
    columns = {}
    for name in SET_SCORE_NAMES:
        score = CLASS_SCORES[name]
        columns[name] = class_scores(matrices, score).nanmean(0).tolist()
        columns[f"set_{name}"] = class_scores(whole, score)[0].tolist()
    return {
        label: {
            name: None if math.isnan(values[i]) else values[i] for name, values in columns.items()
        }
        for i, label in enumerate(classes.names)
    }
