"""Training pictures made of two: an object cut out by its mask, before another photograph.

After Dwibedi et al., "Cut, Paste and Learn", ICCV 2017 (arXiv:1708.01642), and Ghiasi et al.,
"Simple Copy-Paste", CVPR 2021 (arXiv:2012.07177).
"""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from carvana.classes import Classes
from carvana.errors import UserError, raise_all, result_or_error
from carvana.framing import Box
from carvana.images import Size, check_photograph, picture_size, read_image
from carvana.opening import is_photograph
from carvana.pairs import list_files
from carvana.threads import map_in_threads

OPAQUE = 250  # alpha from which a pixel has the object's own color
EDGE = 7  # pixels around, from which a soft edge takes its color
LEAST_VISIBLE = 0.6  # of an object's width and height lies within the frame, if there is room
TURN = 8.0  # degrees either way: cameras are held nearly level
SHEAR = 0.08  # of the height, sideways, by up to this
ZOOM = 2.0  # background photographs are enlarged by up to this
BAR_WIDTH = (0.05, 0.25)  # of the frame
COMMON_COLORS = (255, 255, 255, 240, 200, 0)  # gray levels of plain backgrounds and of bars
GAIN = 0.25  # standard deviation of the logarithm of the light's strength
MATCHING = 0.5  # of the difference in brightness to the background is taken away, at most
SHADOW = (0.2, 0.8)  # of the light that the ground under an object lacks
SHADOW_HEIGHT = (0.04, 0.12)  # of the object's height
SHADOW_SCALE = 4  # shadows are blurred at a fraction of the size
REFLECTION = (0.2, 0.7)  # of the object's light comes back, less and less
REFLECTION_HEIGHT = (0.2, 0.8)  # of the object's height, at which nothing is left of it
REFLECTION_BLUR = (0.5, 3.0)  # pixels, standard deviation
LARGEST_GAIN = 2.0
BYSTANDER = 0.6  # times an object's size is that of one behind it


@dataclass(frozen=True)
class Compositing:
    """What Compositor draws for each picture."""

    share: float = 0.7  # of the pictures get another background
    scale: tuple[float, float] = (0.35, 1.2)  # of the frame, that the object fills
    squeeze: float = 1.7  # width to height becomes larger or smaller by up to this factor
    tint: float = 0.05  # standard deviation of the logarithm of an object's gain in each channel
    bystanders: float = 0.0  # probability of another object behind, which is background
    plain: float = 0.12  # of the backgrounds are of one color, as in catalogs
    bars: float = 0.12  # of the others have a bar at opposite sides, as in advertisements
    reflected: float = 0.15  # of the objects are mirrored in the ground, as in showrooms

    def of_bystanders(self) -> "Compositing":
        """Return the settings of objects behind, which are smaller than the one before them."""
        smallest, largest = self.scale
        return replace(self, scale=(BYSTANDER * smallest, BYSTANDER * largest))


class Pictures(Protocol):
    """A data set, from which objects behind are taken."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its mask, as Compositor takes them."""


def find_backgrounds(folder: str | Path) -> list[Path]:
    """Return the photographs in a folder, to put objects before.

    Raises:
        UserError: there are none.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"no folder {str(folder)!r}, where photographs to put objects before should be; name "
            "another with --backgrounds-dir"
        )
    files = list_files(folder, "photographs to put objects before")
    photographs = [path for path in files if is_photograph(path.name)]
    if not photographs:
        raise UserError(
            f"no photographs in {str(folder)!r} to put objects before; name another folder with "
            "--backgrounds-dir"
        )
    return photographs


def check_backgrounds(folder: str | Path) -> None:
    """Read all photographs to put objects before. Raises UserError with all that is wrong."""
    read = functools.partial(result_or_error, check_photograph)
    raise_all(list(map_in_threads(read, find_backgrounds(folder), "checking", " photographs")))


class Compositor:
    """Puts objects before other photographs.

    Args:
        folder: of the photographs.
        channels: 3 for color, 1 for gray.

    Raises:
        UserError: see find_backgrounds.
    """

    def __init__(
        self, folder: str | Path, settings: Compositing, classes: Classes, channels: int
    ) -> None:
        self.photographs = find_backgrounds(folder)
        self.settings = settings
        self.classes = classes
        self.channels = channels

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, others: Pictures
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a picture and its mask, with another background perhaps.

        Args:
            image: uint8 (H, W, channels).
            mask: uint8 (H, W), the object's share of each pixel in 1/255; of several classes
                their indices.
            rng: decides everything.
            others: have the objects that may stand behind.
        """
        if not mask.any() or rng.random() >= self.settings.share:
            return image, mask
        background = self._draw_background(rng, mask.shape)
        if rng.random() < self.settings.bystanders:
            other = others.read(int(rng.integers(len(others))))
            behind = self._place(*other, background, self.settings.of_bystanders(), rng)
            background = behind[0] if behind else background
        return self._place(image, mask, background, self.settings, rng) or (image, mask)

    def _place(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        background: np.ndarray,
        settings: Compositing,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a picture's object before a background, and its mask there; None if unseen."""
        alpha = self._alpha(mask)
        box = _box_of(alpha)
        if box is None:
            return None
        size = background.shape[:2]  # of the frame; another picture's object may come from another
        frame = size[::-1]
        matrix = _draw_placement(rng, box, size, settings)
        colors = cv2.warpAffine(_own_colors(image, alpha), matrix, frame)
        colors = colors.reshape(background.shape)
        alpha = cv2.warpAffine(alpha, matrix, frame)
        placed_box = _box_of(alpha)
        if placed_box is None:
            return None
        colors = _relight(colors, alpha, background, settings.tint, rng)
        background = _with_shadow(background, placed_box, rng)
        if rng.random() < settings.reflected:
            background = _with_reflection(background, colors, alpha, placed_box, rng)
        return _blend(colors, background, alpha), self._move_mask(mask, matrix, alpha)

    def _alpha(self, mask: np.ndarray) -> np.ndarray:
        """Return how opaque each pixel of the object is, uint8 (H, W)."""
        if self.classes.single:
            return mask
        return self.classes.foreground(mask).view(np.uint8) * np.uint8(255)

    def _move_mask(self, mask: np.ndarray, matrix: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """Return the mask of an object that has been moved; alpha is the moved one."""
        if self.classes.single:
            return alpha
        frame = alpha.shape[::-1]
        moved = cv2.warpAffine(mask, matrix, frame, flags=cv2.INTER_NEAREST)
        return np.where(alpha > 127, moved, 0).astype(np.uint8)

    def _draw_background(self, rng: np.random.Generator, size: Size) -> np.ndarray:
        """Return a plain color or a part of a photograph, uint8 (H, W, channels)."""
        if rng.random() < self.settings.plain:
            return _draw_gradient(rng, size, self.channels)
        part = self._draw_part(rng, size)
        if rng.random() < self.settings.bars:
            _paint_bars(part, rng)
        return part

    def _draw_part(self, rng: np.random.Generator, size: Size) -> np.ndarray:
        """Return a part of a photograph, uint8 (H, W, channels)."""
        path = self.photographs[rng.integers(len(self.photographs))]
        height, width = picture_size(path)
        largest = max(ZOOM * size[0] / height, ZOOM * size[1] / width)  # that is of use
        if largest < 1:
            height, width = round(height * largest), round(width * largest)
        photograph = read_image(path, (height, width), self.channels)
        squeeze = _draw_factor(rng, self.settings.squeeze)
        aspect = squeeze * size[1] / size[0]
        zoom = rng.uniform(1, ZOOM)
        part_width = max(1, round(min(width, height * aspect) / zoom))
        part_height = max(1, round(min(height, width / aspect) / zoom))
        left = rng.integers(width - part_width + 1)
        top = rng.integers(height - part_height + 1)
        part = photograph[top : top + part_height, left : left + part_width]
        if rng.random() < 0.5:
            part = part[:, ::-1]
        part = cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=cv2.INTER_LINEAR)
        return part.reshape(*size, self.channels)


def _draw_gradient(rng: np.random.Generator, size: Size, channels: int) -> np.ndarray:
    """Return a color that becomes a little brighter or darker downwards, uint8 (H, W, channels)."""
    level = np.float64(rng.choice(COMMON_COLORS))
    color = level if rng.random() < 0.5 else rng.uniform(0, 255, channels)
    rows = np.linspace(color, color + rng.uniform(-60, 60), size[0]).reshape(size[0], 1, -1)
    return np.broadcast_to(np.clip(rows, 0, 255), (*size, channels)).astype(np.uint8)


def _paint_bars(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a bar along two opposite sides of a picture, uint8 (H, W, channels)."""
    if rng.random() < 0.3:
        picture = picture.swapaxes(0, 1)
    width = round(picture.shape[0] * rng.uniform(*BAR_WIDTH))
    picture[:width] = picture[-width:] = rng.choice(COMMON_COLORS)


def _draw_factor(rng: np.random.Generator, largest: float) -> float:
    """Return a factor between 1 / largest and largest, as often below 1 as above."""
    limit = math.log(largest)
    return math.exp(rng.uniform(-limit, limit))


def _box_of(alpha: np.ndarray) -> Box | None:
    """Return where an object is; None if there is none."""
    left, top, width, height = cv2.boundingRect((alpha > 127).view(np.uint8))
    return Box(left, top, width, height) if width else None


def _draw_placement(
    rng: np.random.Generator, box: Box, size: Size, settings: Compositing
) -> np.ndarray:
    """Return the matrix (2, 3) that moves an object from its box to a place in the frame."""
    height, width = size
    squeeze = math.sqrt(_draw_factor(rng, settings.squeeze))
    share = math.exp(rng.uniform(*np.log(settings.scale)))
    scale = share * min(width / (box.width * squeeze), height * squeeze / box.height)
    scale_x = scale * squeeze
    scale_y = scale / squeeze
    center_x = _draw_center(rng, scale_x * box.width, width)
    center_y = _draw_center(rng, scale_y * box.height, height)
    if rng.random() < 0.5:
        scale_x = -scale_x
    angle = math.radians(rng.uniform(-TURN, TURN))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    stretch = np.array([[scale_x, scale_x * rng.uniform(-SHEAR, SHEAR)], [0, scale_y]])
    linear = turn @ stretch
    middle = np.array([box.left + box.width / 2, box.top + box.height / 2])
    shift = np.array([center_x, center_y]) - linear @ middle
    return np.column_stack([linear, shift])


def _draw_center(rng: np.random.Generator, length: float, frame: float) -> float:
    """Return where the middle of an object lies along a side of the frame.

    An object that is smaller than the frame may be cut off at one side, a larger one is at both.
    """
    if length > frame:
        return rng.uniform(frame - length / 2, length / 2)
    margin = length * (LEAST_VISIBLE - 0.5)
    return rng.uniform(margin, frame - margin)


def _own_colors(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return a photograph whose soft edges have the colors of the object beside them.

    There the old background shines through, which must not tell where the object ends.
    """
    inside = (alpha >= OPAQUE).astype(np.float32)
    share = cv2.blur(inside, (EDGE, EDGE))
    soft = (alpha < OPAQUE) & (share > 0)  # what moving the object can mix in, too
    object_alone = image * inside[..., None]
    blurred = cv2.blur(object_alone, (EDGE, EDGE)).reshape(image.shape)
    colors = image.copy()
    colors[soft] = blurred[soft] / share[soft][:, None]
    return colors


def _relight(
    colors: np.ndarray,
    alpha: np.ndarray,
    background: np.ndarray,
    tint: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return an object in another light, whose strength partly follows the background's."""
    object_level = max(1.0, cv2.mean(colors, alpha)[0])
    background_level = max(1.0, cv2.mean(background)[0])
    gain = math.exp(rng.normal(0, GAIN))
    gain *= (background_level / object_level) ** rng.uniform(0, MATCHING)
    gain = min(max(gain, 1 / LARGEST_GAIN), LARGEST_GAIN)
    gains = gain * np.exp(rng.normal(0, tint, colors.shape[2]))
    levels = np.clip(np.arange(256)[:, None] * gains, 0, 255).round().astype(np.uint8)
    return cv2.LUT(colors, levels[None]).reshape(colors.shape)


def _with_shadow(background: np.ndarray, box: Box, rng: np.random.Generator) -> np.ndarray:
    """Return a background that is darker where an object in a box touches the ground."""
    height, width = background.shape[:2]
    small = (-(-height // SHADOW_SCALE), -(-width // SHADOW_SCALE))
    shade = np.zeros(small, np.float32)
    middle = (box.left + box.width / 2, box.top + box.height)
    axes = (box.width * rng.uniform(0.42, 0.55), box.height * rng.uniform(*SHADOW_HEIGHT))
    strength = rng.uniform(*SHADOW)
    center = tuple(round(value / SHADOW_SCALE) for value in middle)
    radii = tuple(max(1, round(value / SHADOW_SCALE)) for value in axes)
    cv2.ellipse(shade, center, radii, 0, 0, 360, strength, cv2.FILLED)
    softness = max(0.5, radii[1] * rng.uniform(0.3, 1.0))
    shade = cv2.GaussianBlur(shade, (0, 0), softness)
    light = 1 - cv2.resize(shade, (width, height), interpolation=cv2.INTER_LINEAR)
    return (background * light[..., None]).astype(np.uint8)


def _with_reflection(
    background: np.ndarray,
    colors: np.ndarray,
    alpha: np.ndarray,
    box: Box,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a background in whose ground an object is mirrored, which stands in a box."""
    height, width = alpha.shape
    bottom = box.top + box.height
    upside_down = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 2.0 * bottom - 1]])
    blur = rng.uniform(*REFLECTION_BLUR)
    mirrored = cv2.warpAffine(colors, upside_down, (width, height))
    mirrored = cv2.GaussianBlur(mirrored, (0, 0), blur).reshape(colors.shape)
    depths = (np.arange(height, dtype=np.float32) - bottom) / box.height  # below the object
    fading = np.clip(1 - depths / rng.uniform(*REFLECTION_HEIGHT), 0, 1) * (depths >= 0)
    strengths = (rng.uniform(*REFLECTION) * fading)[:, None].astype(np.float32)
    share = cv2.warpAffine(alpha, upside_down, (width, height)) * np.float32(1 / 255) * strengths
    return cv2.blendLinear(mirrored, background, share, 1 - share).reshape(colors.shape)


def _blend(colors: np.ndarray, background: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return an object over a background, uint8 (H, W, channels)."""
    share = alpha * np.float32(1 / 255)
    return cv2.blendLinear(colors, background, share, 1 - share).reshape(colors.shape)
