"""A surface to paint a car on, seen by a camera."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

from carvana.rendering.camera import Camera
from carvana.rendering.cars import BODY


def to_eighths(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in units of an eighth, as OpenCV takes them with shift=3."""
    return np.round(pixels * 8).astype(np.int32)


def _rgba(color: ArrayLike, part: int) -> tuple[float, float, float, float]:
    """Return a color as a canvas stores it, with the part that it belongs to."""
    red, green, blue = np.asarray(color, float).tolist()
    return red, green, blue, 256.0 - part


class Canvas:
    """A transparent picture of premultiplied RGBA, painted from back to front.

    While painting, alpha also tells the parts apart: it is 256 minus the index into PARTS.
    """

    def __init__(self, camera: Camera, size: tuple[int, int]):
        self.camera = camera
        self.pixels = np.zeros((*size, 4), np.uint8)

    def fill_polygon(self, pixels: np.ndarray, color: ArrayLike, part: int = BODY) -> None:
        """Fill a convex polygon of pixels (n, 2), precise to an eighth of a pixel."""
        rgba = _rgba(color, part)
        cv2.fillConvexPoly(self.pixels, to_eighths(pixels), rgba, shift=3)

    def fill(self, points: np.ndarray, color: ArrayLike, part: int = BODY) -> None:
        """Fill the convex polygon of points (n, 3) in a plane."""
        self.fill_polygon(self.camera.project(points), color, part)

    def fill_hull(self, points: np.ndarray, color: ArrayLike, part: int = BODY) -> None:
        """Fill the outline of a convex solid, given by points (n, 3) that include its corners."""
        pixels = self.camera.project(points).astype(np.float32)
        self.fill_polygon(cv2.convexHull(pixels)[:, 0], color, part)

    def draw_line(self, points: np.ndarray, color: ArrayLike, thickness: int) -> None:
        """Draw a line of some pixels' thickness through points (n, 3)."""
        pixels = np.round(self.camera.project(points)).astype(np.int32)
        rgba = _rgba(color, BODY)
        cv2.polylines(self.pixels, [pixels], False, rgba, thickness)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what was painted, and where its parts are.

        Returns:
            premultiplied RGBA uint8 (H, W, 4), alpha 0 or 255, and uint8 (H, W) indices into PARTS.
        """
        alpha = self.pixels[..., 3]
        parts = np.where(alpha > 0, 255 - alpha + 1, 0).astype(np.uint8)
        alpha[parts > 0] = 255
        return self.pixels, parts
