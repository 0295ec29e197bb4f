"""The camera: where points of the car and of the studio come to lie in the picture."""

from dataclasses import dataclass, replace

import numpy as np

from carvana.rendering.studio import Studio

ANGLES = 16  # stops of the turntable, 22.5 degrees apart


@dataclass(frozen=True)
class Camera:
    """A pinhole camera, and how far the turntable in front of it has turned."""

    turn: np.ndarray  # (3, 3) takes the car's coordinates to the studio's
    eye: np.ndarray  # (3,) the camera's place in the studio
    axes: np.ndarray  # (3, 3) its directions in the studio, a row each: right, down, forward
    scale: float  # focal length in pixels
    center: np.ndarray  # (2,) the pixel (x, y) straight ahead

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels (..., 2), as (x, y), of points (..., 3) of the car."""
        return self.project_studio(points @ self.turn.T)

    def project_studio(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels (..., 2), as (x, y), of points (..., 3) of the studio."""
        seen = (points - self.eye) @ self.axes.T
        return seen[..., :2] / np.maximum(seen[..., 2:], 0.1) * self.scale + self.center

    def mirrored(self) -> "Camera":
        """Return the camera that sees the car upside down, as a polished floor reflects it."""
        return replace(self, turn=self.turn * [1, 1, -1])


def place_camera(studio: Studio, angle: int, size: tuple[int, int]) -> Camera:
    """Return the studio's camera for a picture of `size`, the car turned to stop `angle`.

    Args:
        studio: where the camera stands and what it looks at.
        angle: 0 to 15; at 0 the camera looks at the front.
        size: (H, W) of the picture in pixels.
    """
    view = studio.view
    height, width = size
    turn = np.radians(angle * 360 / ANGLES + view.turn)
    eye = np.array([view.distance, 0, view.height])
    forward = np.array([0, 0, view.aim]) - eye
    forward /= np.linalg.norm(forward)
    right = np.array([0, 1, 0]) + view.roll * np.array([0, 0, 1])
    right /= np.linalg.norm(right)
    return Camera(
        turn=np.array(
            [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        ),
        eye=eye,
        axes=np.stack([right, np.cross(forward, right), forward]),
        scale=width * view.zoom * view.distance / 7.2,
        center=np.array([width * (0.5 + view.shift), height * 0.54]),
    )
