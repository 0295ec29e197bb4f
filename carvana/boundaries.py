"""How far the outlines of two masks lie apart."""

import cv2
import numpy as np

HAND_PRECISION = 2  # pixels; masks drawn by hand are not more exact
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def boundary_distance(
    predicted: np.ndarray, target: np.ndarray, known: np.ndarray | None = None
) -> float:
    """Return the mean distance in pixels between the outlines of two masks, both ways.

    The average symmetric surface distance of Heimann et al., IEEE Transactions on Medical
    Imaging 28(8), 2009. The picture's edge is no outline, nor is that of pixels that are not
    known. If one of them has none it is 0 if the masks are equal, else the picture's diagonal.

    Args:
        predicted, target: bool or uint8 0 and 1, (H, W); 0 where not known.
        known: bool (H, W); None: all pixels.
    """
    outlines = [_outline(predicted, known), _outline(target, known)]
    if not all(outline.any() for outline in outlines):
        return 0.0 if np.array_equal(predicted, target) else float(np.hypot(*target.shape))
    either = outlines[0] | outlines[1]
    rows = np.flatnonzero(either.any(1))
    columns = np.flatnonzero(either.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # others do not matter
    outline, reference = (outline[window] for outline in outlines)
    distances = np.concatenate([_distances(outline, reference), _distances(reference, outline)])
    return float(distances.mean())


def _distances(outline: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel of an outline to the nearest one of the reference."""
    to_reference = cv2.distanceTransform(
        (~reference).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return to_reference[outline]


def error_beyond_outline(
    predicted: np.ndarray, target: np.ndarray, known: np.ndarray | None = None
) -> float:
    """Return 1 - Dice, ignoring errors within HAND_PRECISION pixels of the true outline.

    What remains is missed or wrongly included parts.

    Args:
        predicted, target, known: see boundary_distance.
    """
    reach = np.ogrid[-HAND_PRECISION : HAND_PRECISION + 1, -HAND_PRECISION : HAND_PRECISION + 1]
    disk = (np.hypot(*reach) <= HAND_PRECISION).astype(np.uint8)
    foreground = target.view(bool)
    background = ~foreground if known is None else known & ~foreground
    near_foreground = cv2.dilate(foreground.view(np.uint8), disk).view(bool)
    near_background = cv2.dilate(background.view(np.uint8), disk).view(bool)
    near = near_foreground & near_background
    wrong = np.count_nonzero((predicted != target) & ~near)
    return wrong / max(1, int(np.count_nonzero(predicted)) + int(np.count_nonzero(target)))


def _outline(mask: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Return the pixels of a mask that touch known ones outside of it, bool (H, W)."""
    mask = mask.view(bool)
    inside = mask if known is None else mask | ~known
    return mask & ~cv2.erode(inside.view(np.uint8), CROSS).view(bool)
