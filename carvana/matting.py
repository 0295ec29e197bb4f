"""Cutting an object out of its photograph, and placing it on another background."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import ImageColor

from carvana.classes import Color
from carvana.errors import UserError
from carvana.images import Size, read_image

SURE_LOGIT = math.log(2 * 255 - 1)  # beyond it alpha, in 1/255, rounds to 0 or 255
SOFT_REACH = 3  # pixels of the network's picture from the outline, over which edges are soft
SMALLEST_PART = 0.01  # of the largest part of a mask; smaller ones are specks
BLUR_SIZES = (30, 6)  # pixels, of the two passes
REACH = sum(BLUR_SIZES) // 2  # pixels around a soft one that its color is estimated from
TILE = 64  # pixels a side: small enough for the processor's cache
LEAST_WEIGHT = 1e-5  # keeps averages over no pixel at all from dividing by zero
Tile = tuple[slice, ...]  # rows and columns


def matte(
    photograph: np.ndarray, logits: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors of the object alone, and how opaque each of its pixels is.

    Where the edge is soft the old background shines through. Its share is taken out by the blur
    fusion of Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021, in two passes:
    tile by tile, since few tiles hold any of the edge.

    Args:
        photograph: uint8 (H, W, 3).
        logits: float32 (H, W), of the object against everything else.
        scale: how many times larger than the network's picture the photograph is.

    Returns:
        Colors uint8 (H, W, 3), black outside the object, and alpha uint8 (H, W).
    """
    alpha, soft = _sharpened_alpha(logits, scale)
    colors = cv2.copyTo(photograph, alpha)
    for tile in _tiles_with(soft):
        window, inner = _widen(tile)
        edge = soft[tile] > 0
        foreground = _estimate_foreground(photograph[window], alpha[window])
        colors[tile][edge] = np.clip(np.round(foreground[inner][edge]), 0, 255)
    return colors, alpha


def _sharpened_alpha(logits: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return alpha, uint8 (H, W), and where it is neither 0 nor 255, uint8 (H, W).

    Logits that rise over one pixel of the network's picture rise over `scale` pixels of the
    photograph, which looks like fog. So they are made steeper by the same factor, less the two
    pixels over which an edge in a photograph rises. Far from the outline a network that is not
    sure has doubts about what is there; nothing is half transparent.
    """
    steepness = max(1, scale / 2)
    alpha = _without_specks((logits > 0).view(np.uint8)) * np.uint8(255)
    reach = 2 * math.ceil(SOFT_REACH * max(1, scale)) + 1
    near_outline = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((reach, reach), np.uint8))
    unsure = cv2.inRange(logits, -SURE_LOGIT / steepness, SURE_LOGIT / steepness)
    soft = cv2.bitwise_and(near_outline, unsure)
    for tile in _tiles_with(soft):
        edge = soft[tile] > 0
        alpha[tile][edge] = np.round(255 / (1 + np.exp(-steepness * logits[tile][edge])))
    return alpha, soft


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Return a mask, uint8 (H, W) of 0 and 1, without parts much smaller than the largest."""
    _, parts, facts, _ = cv2.connectedComponentsWithStats(mask)
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    belongs = areas >= max(1.0, SMALLEST_PART * areas.max())
    if belongs[1:].all():
        return mask
    return belongs.view(np.uint8)[parts]


def _tiles_with(mask: np.ndarray) -> Iterator[Tile]:
    """Yield the tiles of a uint8 mask (H, W) that are not all zero."""
    height, width = mask.shape
    for top, left in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        tile = (slice(top, top + TILE), slice(left, left + TILE))
        if cv2.countNonZero(mask[tile]):
            yield tile


def _widen(tile: Tile) -> tuple[Tile, Tile]:
    """Return a tile with REACH pixels around it, and where in that the tile is."""
    window = tuple(slice(max(0, side.start - REACH), side.stop + REACH) for side in tile)
    offsets = [side.start - outer.start for side, outer in zip(tile, window, strict=True)]
    return window, tuple(slice(offset, offset + TILE) for offset in offsets)


def _estimate_foreground(photograph: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the object's own colors, float32 (H, W, 3).

    Args:
        photograph: uint8 (H, W, 3), which mixes the object by alpha with what is behind it.
        alpha: uint8 (H, W).
    """
    image = photograph.astype(np.float32)
    share = cv2.merge([alpha / np.float32(255)] * 3)
    rest = 1 - share
    foreground = image
    background = image
    for size in BLUR_SIZES:
        box = (size, size)
        weight = cv2.blur(share, box)
        foreground = cv2.blur(foreground * share, box) / (weight + LEAST_WEIGHT)
        background = cv2.blur(background * rest, box) / (1 - weight + LEAST_WEIGHT)
        foreground += share * (image - share * foreground - rest * background)
    return foreground


def composite(cutout: np.ndarray, background: Color | np.ndarray) -> np.ndarray:
    """Place a cutout on a background.

    Args:
        cutout: uint8 (H, W, 4).
        background: a color (r, g, b), or a photograph uint8 (h, w, 3) that is scaled to cover
            everything, and cropped.

    Returns:
        uint8 (H, W, 3).
    """
    colors = cv2.cvtColor(cutout, cv2.COLOR_RGBA2RGB)
    if isinstance(background, np.ndarray):
        behind = _scaled_to_cover(background, cutout.shape[:2])
    else:
        planes = [np.full(cutout.shape[:2], level, np.uint8) for level in background]
        behind = cv2.merge(planes)
    alpha = cv2.merge([cv2.extractChannel(cutout, 3)] * 3)
    ahead = cv2.multiply(colors, alpha, scale=1 / 255)
    return cv2.add(ahead, cv2.multiply(behind, 255 - alpha, scale=1 / 255))


def with_alpha(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return colors uint8 (H, W, 3) and alpha uint8 (H, W) as a picture, uint8 (H, W, 4)."""
    picture = cv2.cvtColor(colors, cv2.COLOR_RGB2RGBA)
    return cv2.insertChannel(alpha, picture, 3)


def _scaled_to_cover(photograph: np.ndarray, size: Size) -> np.ndarray:
    """Return the middle of a photograph, scaled so that it just covers (height, width)."""
    height, width = size
    scale = max(height / photograph.shape[0], width / photograph.shape[1])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=interpolation)
    top = max((scaled.shape[0] - height) // 2, 0)
    left = max((scaled.shape[1] - width) // 2, 0)
    return scaled[top : top + height, left : left + width]


def parse_background(text: str | None) -> Color | np.ndarray | None:
    """Return the color (r, g, b) or the photograph uint8 (H, W, 3) that a text names.

    None stays None. Raises UserError for what is neither a color nor a file.
    """
    if text is None:
        return None
    if Path(text).is_file():
        return read_image(text)
    color = parse_color(text)
    if color is None:
        raise UserError(
            "--background: expected a color such as white or #c0ffee, or a photograph, "
            f"found {text!r}"
        )
    return color


def parse_color(text: str) -> Color | None:
    """Return the color (r, g, b) that a text such as white or #c0ffee names, None if none."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        return None
    return red, green, blue
