"""Random windows of pictures, to train on parts of them at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from carvana.classes import Classes
from carvana.images import Size

MAX_PLACES = 128  # of each class in a picture that crops are drawn around


class Window(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """Return the part of a picture (H, W) or (H, W, C), as a view."""
        rows = slice(self.top, self.top + self.height)
        return picture[rows, self.left : self.left + self.width]


@dataclass(frozen=True)
class Crops:
    """How the parts of pictures are drawn that a network is trained on."""

    height: int
    width: int
    rare_share: float = 0.5  # of the crops that hold a pixel of a rarer class
    per_image: int = 1  # in an epoch

    @classmethod
    def from_constants(cls, cfg: SimpleNamespace) -> "Crops | None":
        """Return what the constants of config.py say; None for whole pictures."""
        if not cfg.CROP_HEIGHT:
            return None
        return cls(cfg.CROP_HEIGHT, cfg.CROP_WIDTH, cfg.CROP_RARE_SHARE, cfg.CROPS_PER_IMAGE)

    def draw(self, rng: np.random.Generator, size: Size, places: Sequence[np.ndarray]) -> Window:
        """Draw a window of a picture of a size (H, W); a smaller picture is one window.

        Args:
            places: of find_places.
        """
        place = None
        if places and rng.random() < self.rare_share:
            of_class = places[int(rng.integers(len(places)))]
            place = of_class[rng.integers(len(of_class))]
        starts = []
        for axis, side in enumerate((self.height, self.width)):
            low, high = 0, max(0, size[axis] - side)
            if place is not None:
                low = max(low, int(place[axis]) - side + 1)
                high = min(high, int(place[axis]))
            starts.append(int(rng.integers(low, high + 1)))
        height, width = min(self.height, size[0]), min(self.width, size[1])
        return Window(starts[0], starts[1], height, width)

    def fill(self, picture: np.ndarray) -> np.ndarray:
        """Continue a picture that is smaller than a crop by its reflection, to a crop's size."""
        bottom = self.height - picture.shape[0]
        right = self.width - picture.shape[1]
        if not bottom and not right:
            return picture
        sides = [(0, bottom), (0, right), (0, 0)]
        return np.pad(picture, sides[: picture.ndim], mode="reflect")


def find_places(mask: np.ndarray, classes: Classes) -> list[np.ndarray]:
    """Return where the rarer classes of a picture are: all in it but the one that covers most.

    Args:
        mask: uint8 (H, W), as training takes it: levels of a single class, else indices.

    Returns:
        For each of these classes int32 (n, 2), rows and columns of up to MAX_PLACES of its pixels,
        evenly spread over them.
    """
    if classes.single:
        mask = (mask > 127).view(np.uint8)
    values = mask.reshape(-1)
    counts = np.bincount(values, minlength=256)[: classes.count]
    if not counts.any():
        return []
    counts[counts.argmax()] = 0
    places = []
    for value in np.flatnonzero(counts):
        pixels = np.flatnonzero(values == value)
        chosen = pixels[:: -(-len(pixels) // MAX_PLACES)]
        rows, columns = np.divmod(chosen, mask.shape[1])
        places.append(np.stack([rows, columns], axis=1).astype(np.int32))
    return places
