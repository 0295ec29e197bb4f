"""Cutting an object out of its photograph, and placing it on another background."""

from pathlib import Path

import cv2
import numpy as np
from PIL import ImageColor

from carvana.classes import Color
from carvana.errors import UserError
from carvana.images import Size, read_image

TRANSPARENT = 0.002  # alpha below which, and
OPAQUE = 0.998  # above which a pixel needs no color estimate
WINDOW_MARGIN = 30  # pixels around the soft edge from which colors are estimated
BLUR_SIZES = (30, 6)  # pixels, of the two passes
LARGEST_EXPONENT = 80  # exp() of more overflows float32


def matte(
    photograph: np.ndarray, logits: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors of the object alone, and how opaque each of its pixels is.

    Where the edge is soft the old background shines through. Its share is taken out by the blur
    fusion of Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021, in two passes.

    Args:
        photograph: uint8 (H, W, 3).
        logits: float32 (H, W), of the object against everything else.
        scale: how many times larger than the network's picture the photograph is.

    Returns:
        Colors uint8 (H, W, 3), black outside the object, and alpha uint8 (H, W).
    """
    alpha = _sharpened_alpha(logits, scale)
    visible = alpha > TRANSPARENT
    colors = cv2.copyTo(photograph, visible.view(np.uint8))
    edge = visible & (alpha < OPAQUE)
    if edge.any():
        window = _window_around(edge)
        foreground = _estimate_foreground(photograph[window].astype(np.float32), alpha[window])
        soft = edge[window]
        colors[window][soft] = np.clip(np.round(foreground[soft]), 0, 255)
    return colors, np.round(255 * alpha).astype(np.uint8)


def _sharpened_alpha(logits: np.ndarray, scale: float) -> np.ndarray:
    """Return alpha, float32 (H, W) in [0, 1].

    Logits that rise over one pixel of the network's picture rise over `scale` pixels of the
    photograph, which looks like fog. So they are made steeper by the same factor, less the two
    pixels over which an edge in a photograph rises.
    """
    steepness = max(1, scale / 2)
    return 1 / (1 + np.exp(np.minimum(-steepness * logits, LARGEST_EXPONENT)))


def _window_around(edge: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of a bool mask (H, W) that hold it, with WINDOW_MARGIN."""
    slices = []
    for axis in (1, 0):
        places = np.flatnonzero(edge.any(axis))
        slices.append(slice(max(places[0] - WINDOW_MARGIN, 0), places[-1] + WINDOW_MARGIN + 1))
    return slices[0], slices[1]


def _estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the object's own colors, float32 (H, W, 3), for an image that mixes it by alpha."""
    share = cv2.merge([alpha] * 3)
    foreground = image
    background = image
    for size in BLUR_SIZES:
        box = (size, size)
        foreground = cv2.blur(foreground * share, box) / (cv2.blur(share, box) + 1e-5)
        background = cv2.blur(background * (1 - share), box) / (cv2.blur(1 - share, box) + 1e-5)
        foreground += share * (image - share * foreground - (1 - share) * background)
    return foreground


def composite(colors: np.ndarray, alpha: np.ndarray, background: Color | np.ndarray) -> np.ndarray:
    """Place the result of matte() on a background.

    Args:
        colors: uint8 (H, W, 3).
        alpha: uint8 (H, W).
        background: a color (r, g, b), or a photograph uint8 (h, w, 3) that is scaled to cover
            everything, and cropped.

    Returns:
        uint8 (H, W, 3).
    """
    if isinstance(background, np.ndarray):
        background = _scaled_to_cover(background, alpha.shape)
    share = alpha[..., None] / np.float32(255)
    behind = np.broadcast_to(np.asarray(background, np.float32), colors.shape)
    return np.round(colors * share + behind * (1 - share)).astype(np.uint8)


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
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(
            "--background: expected a color such as white or #c0ffee, or a photograph, "
            f"found {text!r}"
        ) from None
