"""What the values of a mask mean, and the colors that show them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Colors that people with any kind of color vision can tell apart (Okabe and Ito, 2008).
ORANGE = (230, 159, 0)
BLUE = (0, 114, 178)
PINK = (204, 121, 167)
IGNORED_COLOR = (224, 224, 192)
NO_CLASS = 255  # the largest index, which no class has
Color = tuple[int, int, int]


def _parse_color(text: str) -> Color:
    """Return the (r, g, b) of "#rrggbb"."""
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


class Classes(NamedTuple):
    """The classes that a mask tells apart.

    A hard mask is always uint8 (H, W) of class indices. A single class stands against everything
    else: its masks hold 0 and 1, its training targets the foreground's share of each pixel, and
    the network has one channel of logits for it. Several classes have a channel of logits each.
    """

    names: tuple[str, ...] = ("car",)
    palette: tuple[Color, ...] = ()  # (r, g, b) of each; one more is that of ignored pixels
    ignore: int = 255  # index of pixels that are neither trained on nor scored
    values: tuple[int, ...] = ()  # in masks' files, of each class; empty: 0, 1, 2...
    stored_ignore: int | None = None  # in masks' files, of pixels to ignore; None: `ignore`
    threshold: int = -1  # of a single class: levels over it are foreground; -1: two values only

    @classmethod
    def from_constants(cls, constants: Mapping) -> "Classes":
        """Return what CLASSES, PALETTE, IGNORE_INDEX, MASK_VALUES and MASK_THRESHOLD describe.

        Masks of several classes hold places in CLASSES. If 0 is to be ignored, the first class
        is 1 in the files, though its index stays 0.
        """
        names = tuple(constants["CLASSES"])
        values = tuple(constants.get("MASK_VALUES", ()))
        if len(names) == 1:
            threshold = constants.get("MASK_THRESHOLD", -1)
            return cls(names, values=values, threshold=threshold)
        palette = tuple(_parse_color(color) for color in constants["PALETTE"])
        ignored = constants["IGNORE_INDEX"]
        if ignored == 0 and not values:
            values = tuple(range(1, len(names) + 1))
        if ignored >= len(names):
            return cls(names, palette, ignored, values)
        return cls(names, palette, NO_CLASS, values, ignored)

    @property
    def single(self) -> bool:
        """Whether there is one class against everything else."""
        return len(self.names) == 1

    @property
    def ignored_value(self) -> int:
        """Return the value in masks' files of pixels to ignore; a class may have it instead."""
        return self.ignore if self.stored_ignore is None else self.stored_ignore

    @property
    def count(self) -> int:  # type: ignore[override]  # hides tuple.count
        """Return how many values a mask tells apart: the rows of the confusion matrix."""
        return max(2, len(self.names))

    @property
    def labels(self) -> tuple | None:
        """Return all that decides what a mask's values are read as; None for 0 and 1 alone."""
        reading = (self.values, self.stored_ignore, self.threshold)
        is_plain = reading == ((), None, -1)
        if is_plain:
            return None if self.single else self[:3]
        return tuple(self)

    @property
    def foreground_name(self) -> str:
        """Return what texts call the pixels that are not of index 0."""
        return "foreground" if self.single else f"not {self.names[0]}"

    def foreground(self, mask: np.ndarray) -> np.ndarray:
        """Return bool (H, W): the pixels of a hard mask that are of any class but the first."""
        return (mask > 0) & (mask != self.ignore)

    def mask_colors(self) -> np.ndarray:
        """Return uint8 (256, 3): the color in which a mask shows each index.

        A single class is white on black. Without a palette, several classes have the field's
        own colors for label images (PASCAL VOC's: the bits of the index, spread over channels).
        """
        index = np.arange(256)
        if self.single:
            return np.repeat(np.where(index > 0, 255, 0).astype(np.uint8)[:, None], 3, axis=1)
        colors = np.zeros((256, 3), np.uint8)
        for channel in range(3):
            for bit in range(3):
                colors[:, channel] += ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype("u1")
        colors[self.ignore] = IGNORED_COLOR
        for i, color in enumerate(self.palette):
            colors[i if i < len(self.names) else self.ignore] = color
        return colors

    def tint_colors(self) -> np.ndarray:
        """Return uint8 (256, 3): the color in which a photograph's objects are tinted."""
        colors = self.mask_colors()
        if self.single:
            colors[1] = ORANGE
        return colors


SINGLE = Classes()
