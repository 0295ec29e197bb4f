"""What a mask is worth. One definition of each score, used by training, evaluation and tests alike."""

import cv2
import numpy as np
import torch

BY_HAND = 2  # pixels; masks drawn by hand are not more exact


def confusion(predicted, target):
    """Two bool tensors (B, ...) of one shape -> int64 (B, 4): true positives, false positives, false negatives, true negatives."""
    predicted, target = predicted.flatten(1), target.flatten(1)
    both, predicted, target, pixels = (
        _count(predicted & target),
        _count(predicted),
        _count(target),
        predicted.shape[1],
    )
    return torch.stack(
        (both, predicted - both, target - both, pixels - predicted - target + both), dim=1
    )


def _count(masks):
    if masks.device.type == "cpu":  # NumPy counts four times as fast there
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()])
    return masks.count_nonzero(dim=1)


def share(part, whole):
    """part / whole per image, 1 where there is nothing to be found and nothing was."""
    return torch.where(whole == 0, 1.0, part.double() / whole.clamp(min=1))


def dice(counts):
    """2|P∩T| / (|P|+|T|) per image, 1 where both are empty: (B, 4) counts -> float64 (B,). The Kaggle challenge's score is its mean."""
    tp, fp, fn, _ = counts.unbind(1)
    return share(2 * tp, 2 * tp + fp + fn)


def iou(counts):
    """|P∩T| / |P∪T| per image."""
    tp, fp, fn, _ = counts.unbind(1)
    return share(tp, tp + fp + fn)


def precision(counts):
    """Which share of the predicted pixels is right, per image."""
    tp, fp, _, _ = counts.unbind(1)
    return share(tp, tp + fp)


def recall(counts):
    """Which share of the true pixels was found, per image."""
    tp, _, fn, _ = counts.unbind(1)
    return share(tp, tp + fn)


def accuracy(counts):
    """Which share of all pixels is right, per image. Carvana's background alone makes 0.79 of them: look at Dice first."""
    tp, _, _, tn = counts.unbind(1)
    return share(tp + tn, counts.sum(1))


SCORES = {"dice": dice, "iou": iou, "accuracy": accuracy, "precision": precision, "recall": recall}


def confusion_matrices(predicted, target, classes, ignore=255):
    """Two integer tensors (B, ...) of one shape, indices of classes -> int64 (B, classes, classes): pixels by true (row) and predicted class. Those whose target is `ignore` are left out."""
    pairs = torch.where(
        target == ignore, classes * classes, target.long() * classes + predicted.long()
    ).flatten(1)
    return torch.stack(
        [torch.bincount(one, minlength=classes * classes + 1)[:-1] for one in pairs]
    ).view(-1, classes, classes)


def one_against_all(matrices):
    """int64 (B, C, C) -> (B, C, 4): of each class, what confusion() counts."""
    tp = matrices.diagonal(dim1=1, dim2=2)
    fp, fn = matrices.sum(1) - tp, matrices.sum(2) - tp
    return torch.stack((tp, fp, fn, matrices.sum((1, 2))[:, None] - tp - fp - fn), dim=2)


def class_scores(matrices, score):
    """dice, iou, precision or recall of each class -> float64 (B, C); not a number where a class is neither in the image's truth nor in what was predicted."""
    counts = one_against_all(matrices)
    values = torch.where(
        counts[..., 0] == 0, 0.0, score(counts.flatten(0, 1)).view(counts.shape[:2])
    )  # 0 of a class that is there and was never found
    return torch.where(counts[..., :3].sum(2) == 0, torch.nan, values)


def boundary_distance(predicted, target):
    """Mean distance in pixels between the outlines of two bool arrays (H, W), both ways.

    The average symmetric surface distance of Heimann et al., IEEE Transactions on Medical Imaging
    28(8), 2009. The picture's edge is no outline. Where one of them has none it is 0 if
    they are equal, else the picture's diagonal."""
    outlines = [_outline(predicted), _outline(target)]
    if not all(outline.any() for outline in outlines):
        return 0.0 if np.array_equal(predicted, target) else float(np.hypot(*target.shape))
    rows, columns = (np.flatnonzero((outlines[0] | outlines[1]).any(axis)) for axis in (1, 0))
    window = np.s_[
        rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1
    ]  # distances elsewhere are not asked for
    outlines = [outline[window] for outline in outlines]
    distances = [
        cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[one]
        for one, other in (outlines, outlines[::-1])
    ]
    return float(np.concatenate(distances).mean())


def beyond(predicted, target):
    """What 1 - Dice of two bool arrays (H, W) were if no pixel within BY_HAND pixels of the true outline counted as wrong: what remains are things missed or taken along."""
    disk = np.uint8(np.hypot(*np.ogrid[-BY_HAND : BY_HAND + 1, -BY_HAND : BY_HAND + 1]) <= BY_HAND)
    drawn = target.view(np.uint8)
    near = cv2.dilate(drawn, disk) != cv2.erode(drawn, disk)
    return np.count_nonzero((predicted != target) & ~near) / max(
        np.count_nonzero(predicted) + np.count_nonzero(target), 1
    )


def _outline(mask):
    """The pixels of a bool mask (H, W) that touch the outside."""
    mask = mask.view(np.uint8)
    return (mask & ~cv2.erode(mask, np.uint8([[0, 1, 0], [1, 1, 1], [0, 1, 0]]))).view(bool)
