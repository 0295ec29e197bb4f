"""How well the outlines of masks fit the edges of their photographs."""

from typing import NamedTuple

import cv2
import numpy as np

from carvana.classes import Classes
from carvana.images import PIXELS, Pixels, read_gray, read_hard_mask
from carvana.pairs import Pair

OUTLINE_REACH = 15  # pixels around the outline whose edges the outline's are compared with
CLEAR_REACH = 6  # pixels across the outline, either way, in which a clear edge is looked for
CLEAR_LEVELS = 30.0  # gray levels per pixel by which a clear edge rises at least
CLEAR = 4.0  # times as steep as anything else within CLEAR_REACH is a clear edge
NEIGHBORHOOD = 2  # pixels within which a steep place belongs to the same edge
SAMPLING = 0.5  # pixels between the places where a profile across the outline is read
POINT_STEP = 8  # every so many points of the outline are measured
SHORTEST_CONTOUR = 200  # points
FEWEST_POINTS = 100  # of all masks together, to say anything


class OutlineNoise(NamedTuple):
    """How far a mask's outline lies from the photograph's edges."""

    distances: np.ndarray  # float (N,), pixels from the outline to the edge; negative: outside
    length_per_area: float  # of the outline, in 1 / pixels; NaN without an outline


def edge_agreement(gray: np.ndarray, mask: np.ndarray) -> float:
    """Return how much stronger edges are at a mask's outline than within OUTLINE_REACH of it.

    It is about 1 if the mask has nothing to do with the picture, or lies beside its object, and
    NaN without an outline.

    Args:
        gray: uint8 (H, W).
        mask: uint8 (H, W) of 0 and 1.
    """
    down = cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    right = cv2.Sobel(gray, cv2.CV_32F, 1, 0)
    edges = cv2.dilate(cv2.magnitude(right, down), _square(3))
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, _square(3)) > 0
    around = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, _square(2 * OUTLINE_REACH + 1)) > 0
    if not outline.any():
        return np.nan
    return edges[outline].mean() / max(1e-6, edges[around].mean())


def _square(side: int) -> np.ndarray:
    return np.ones((side, side), np.uint8)


def outline_noise(pair: Pair, classes: Classes, pixels: Pixels = PIXELS) -> OutlineNoise:
    """Measure at full size how far a mask's outline lies from the photograph's edges.

    That is measured at points of the outline where the photograph has a clear edge.
    """
    gray = read_gray(pair[0], None, pixels).astype(np.float32)
    mask = classes.foreground(read_hard_mask(pair[1], classes))
    all_contours, _ = cv2.findContours(
        mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    contours = [contour[:, 0] for contour in all_contours if len(contour) > SHORTEST_CONTOUR]
    if not contours:
        return OutlineNoise(np.empty(0), np.nan)
    length = sum(cv2.arcLength(contour, True) for contour in contours)
    points = np.concatenate([contour[::POINT_STEP] for contour in contours])  # (N, 2) of x, y
    offsets = np.arange(-CLEAR_REACH, CLEAR_REACH + 0.01, SAMPLING)
    steepness = _steepness(gray, points, _inward_normals(mask, points), offsets)
    clear = _has_clear_edge(steepness, offsets) & _is_inside(points, gray.shape)
    return OutlineNoise(offsets[steepness.argmax(1)[clear]], length / mask.sum())


def _inward_normals(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the unit vector into a bool mask (H, W) at each of its outline's points, (N, 2)."""
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3)
    down = cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    right = cv2.Sobel(soft, cv2.CV_32F, 1, 0)
    x, y = points.T
    normals = np.stack((right[y, x], down[y, x]), 1)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _steepness(
    gray: np.ndarray, points: np.ndarray, normals: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Return how steep the picture is across the outline, in levels per pixel.

    Args:
        gray: float32 (H, W).
        points: (N, 2) of x, y, centers of the outermost pixels of the mask.
        normals: (N, 2), unit vectors into the mask.
        offsets: (P,), pixels along the normal.

    Returns:
        (N, P).
    """
    # The outline itself runs half a pixel outside of the centers.
    places = points[:, None] + normals[:, None] * (offsets[:, None] - 0.5)
    places = places.astype(np.float32)  # (N, P, 2)
    profiles = cv2.remap(
        gray,
        places[..., 0],
        places[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return abs(np.gradient(cv2.GaussianBlur(profiles, (5, 1), 1.0), SAMPLING, axis=1))


def _has_clear_edge(steepness: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return bool (N,): whether one place of a profile is much steeper than all others."""
    highest = steepness.max(1)
    distances = abs(offsets - offsets[steepness.argmax(1)][:, None])
    highest_elsewhere = np.where(distances > NEIGHBORHOOD, steepness, 0).max(1)
    return (highest > CLEAR_LEVELS) & (highest > CLEAR * highest_elsewhere)


def _is_inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return bool (N,): whether a point lies far enough from the borders of a picture."""
    height, width = size
    limit = np.array([width, height]) - CLEAR_REACH
    return np.all((points > CLEAR_REACH) & (points < limit), axis=1)


def describe_noise(noises: list[OutlineNoise]) -> str:
    """Return the noise of all pairs in words.

    A mask whose outline is off by d everywhere differs in d * length pixels, and so has a Dice
    of 1 - d * length / (2 * area).
    """
    distances = np.concatenate([noise.distances for noise in noises])
    if len(distances) < FEWEST_POINTS:
        return "too few clear edges at the outlines to measure"
    ratio = np.nanmedian([noise.length_per_area for noise in noises])
    shift = np.median(distances)
    off = abs(distances - shift)
    side = "outside" if shift < 0 else "inside"
    return (
        f"{off.mean():.2f} pixels off on average, half of them within {np.median(off):.2f}, "
        f"around a median of {abs(shift):.2f} {side}, at {len(distances):,} points with a clear "
        f"edge; a mask that is as far off everywhere, and otherwise right, scores "
        f"Dice {1 - off.mean() * ratio / 2:.4f} ({1 - np.median(off) * ratio / 2:.4f} if it is "
        f"off by the median distance)"
    )
