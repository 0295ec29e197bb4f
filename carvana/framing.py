"""Where a car goes on a canvas: centered on a common ground line, or cut to what is there."""

import math
import re
from typing import NamedTuple

import cv2
import numpy as np

from carvana.errors import UserError
from carvana.images import Size

MARGIN = 0.05  # of a canvas's width and height, at each side
LARGEST_MARGIN = 0.4
LARGEST_SIDE = 8192  # pixels of a canvas
LARGEST_SCALE = 8.0  # nothing is enlarged more
# A car is about as tall from every side, so its height decides: it is the same in all photographs
# unless the car is longer than this many times its height, and the canvas's width decides.
LONG = 2.5
VISIBLE_SHADOW = 8  # from which a shadow, in 1/255, is seen: it fades out


class Framing(NamedTuple):
    """How cutouts are framed; without fit and trim they are as large as the photograph."""

    fit: Size | None = None  # (height, width) of a canvas to put the car on
    trim: bool = False  # cut to the car and its shadow
    margin: float | None = None  # share of width and height at each side; None: the usual one

    @property
    def changes(self) -> bool:
        """Whether anything is framed."""
        return self.fit is not None or self.trim


class Box(NamedTuple):
    """A rectangle in a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Placement(NamedTuple):
    """Where a photograph lies on a canvas."""

    canvas: Size  # (height, width)
    scale: float  # pixels of the canvas for one of the photograph
    left: float  # of the photograph's corner on the canvas, in pixels
    top: float


def parse_size(text: str, option: str = "--fit") -> Size:
    """Return (height, width) of a text such as 1200x800, width first. Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,6})[xX×*]([0-9]{1,6})", text.strip())
    size = tuple(map(int, match.groups())) if match else (0, 0)
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(
            f"{option}: expected width and height in pixels, each 1..{LARGEST_SIDE}, such as "
            f"1200x800, found {text!r}"
        )
    width, height = size
    return height, width


def check_framing(framing: Framing) -> None:
    """Raise UserError for what cannot be framed."""
    if framing.fit and framing.trim:
        raise UserError(
            "--trim cuts to the car, and --fit puts it on a canvas; omit one of them (--margin "
            "works with either)"
        )
    if framing.margin is None:
        return
    if not framing.changes:
        raise UserError("--margin is that of a canvas; add --fit 1200x800, or --trim")
    if not 0 <= framing.margin <= LARGEST_MARGIN:
        raise UserError(
            f"--margin: expected a share of each side, 0..{LARGEST_MARGIN}, such as {MARGIN}, "
            f"found {framing.margin}"
        )


# ---------------------------------------------------------------- where the car is


def box_of(mask: np.ndarray) -> Box:
    """Return the box around what is not 0 in a mask, uint8 (H, W); all of an empty one."""
    box = Box(*cv2.boundingRect(mask))
    height, width = mask.shape
    return box if box.width else Box(0, 0, width, height)


# ---------------------------------------------------------------- placing


def plan(framing: Framing, car: np.ndarray, shadow: np.ndarray | None = None) -> Placement:
    """Return where a photograph goes.

    Args:
        car: uint8 (H, W) of 0 and 1.
        shadow: uint8 (H, W), how dark it is; None if there is none.
    """
    if framing.fit:
        margin = MARGIN if framing.margin is None else framing.margin
        return fit_box(box_of(car), framing.fit, margin)
    visible = car
    if shadow is not None:
        visible = car | (shadow >= VISIBLE_SHADOW)
    return trim_box(box_of(visible), framing.margin or 0.0)


def fit_box(box: Box, canvas: Size, margin: float) -> Placement:
    """Return the placement that centers a box above the ground line of a canvas.

    Args:
        canvas: (height, width).
        margin: of width and height, left free at each side.
    """
    height, width = canvas
    longest = (1 - 2 * margin) * width
    tallest = min((1 - 2 * margin) * height, longest / LONG)
    ground = (height + tallest) / 2
    scale = min(longest / box.width, tallest / box.height, LARGEST_SCALE)
    left = width / 2 - scale * (box.left + box.width / 2)
    return Placement(canvas, scale, left, ground - scale * (box.top + box.height))


def trim_box(box: Box, margin: float) -> Placement:
    """Return the placement that cuts to a box and a margin, a share of its width and height."""
    across = round(margin * box.width)
    down = round(margin * box.height)
    canvas = (box.height + 2 * down, box.width + 2 * across)
    return Placement(canvas, 1.0, across - box.left, down - box.top)


def place(picture: np.ndarray, placement: Placement) -> np.ndarray:
    """Return a canvas with a cutout on it, transparent elsewhere.

    Args:
        picture: uint8 (H, W, 4), of the photograph's size.

    Returns:
        uint8 (h, w, 4), of the canvas's size.
    """
    canvas = np.zeros((*placement.canvas, 4), np.uint8)
    if placement.scale == 1:
        _paste(picture, canvas, placement)
        return canvas
    # Colors are weighted by alpha, or they would mix with the black of what is transparent.
    _paste(cv2.cvtColor(picture, cv2.COLOR_RGBA2mRGBA), canvas, placement)
    return cv2.cvtColor(canvas, cv2.COLOR_mRGBA2RGBA)


def _paste(picture: np.ndarray, canvas: np.ndarray, placement: Placement) -> None:
    """Scale the part of a picture that lies on a canvas, and copy it there."""
    scale = placement.scale
    rows, top, height = _span(picture.shape[0], canvas.shape[0], placement.top, scale)
    columns, left, width = _span(picture.shape[1], canvas.shape[1], placement.left, scale)
    if scale == 1:
        scaled = picture[rows, columns]
    else:
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(picture[rows, columns], (width, height), interpolation=interpolation)
    hidden_rows = max(0, -top)
    hidden_columns = max(0, -left)
    target = canvas[top + hidden_rows : top + height, left + hidden_columns : left + width]
    target[:] = scaled[hidden_rows:, hidden_columns:][: target.shape[0], : target.shape[1]]


def _span(length: int, room: int, offset: float, scale: float) -> tuple[slice, int, int]:
    """Return which of a picture's rows are on a canvas, where they start there, and their number.

    Args:
        length: rows of the picture.
        room: rows of the canvas.
        offset: of the picture's first row on the canvas.
    """
    start = max(0, math.floor(-offset / scale))
    stop = min(length, math.ceil((room - offset) / scale))
    first = round(offset + scale * start)
    last = round(offset + scale * stop)
    return slice(start, stop), first, max(1, last - first)
