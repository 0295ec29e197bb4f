"""Rendering a photograph: a car in its studio, with its exact mask."""

from collections.abc import Sequence

import cv2
import numpy as np

from carvana.rendering.backdrop import paint_studio
from carvana.rendering.camera import place_camera
from carvana.rendering.cars import BODY, MIRRORS, PARTS, Car
from carvana.rendering.painting import paint_car
from carvana.rendering.studio import Exposure, Studio

OVERSAMPLING = 2  # a car is painted at so many times the picture's size, then averaged


def render(
    car: Car,
    studio: Studio,
    angle: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    parts: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph and its exact mask.

    Args:
        car: what is photographed, see new_car.
        studio: where, see new_studio.
        angle: stop of the turntable, 0 to 15; 0 is the front.
        size: (H, W) in pixels.
        rng: draws the backdrop's blotches and the photograph's noise.
        parts: whether the mask tells the car's parts apart.

    Returns:
        RGB uint8 (H, W, 3), and uint8 (H, W): 1 where the car covers half a pixel or more and 0
        elsewhere; with `parts`, indices into PARTS.
    """
    height, width = size
    fine_size = (OVERSAMPLING * height, OVERSAMPLING * width)
    fine_camera = place_camera(studio, angle, fine_size)
    fine_car, fine_parts = paint_car(car, studio.light, fine_camera, fine_size)
    painted = cv2.resize(fine_car, (width, height), interpolation=cv2.INTER_AREA)
    painted = painted.astype(np.float32)
    camera = place_camera(studio, angle, size)
    scene = paint_studio(studio, car, camera, size, rng)
    if studio.light.reflection > 0.02:
        reflected, _ = paint_car(car, studio.light, camera, size, reflected=True)
        reflected = cv2.GaussianBlur(reflected, (0, 0), max(0.5, width / 250)).astype(np.float32)
        scene += studio.light.reflection * (reflected[..., :3] - scene * reflected[..., 3:] / 255)
    covered = painted[..., 3:] / 255
    scene = scene * (1 - covered) + painted[..., :3]
    mask = (covered[..., 0] >= 0.5).astype(np.uint8)
    if parts:
        fine_parts[fine_parts == MIRRORS] = BODY
        mask *= largest_part(fine_parts, range(1, len(PARTS)), size)
    return expose(scene, studio.exposure, rng), mask


def largest_part(fine_parts: np.ndarray, parts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return uint8 (H, W): which of some parts covers most of each pixel; of equals, the first."""
    shares = []
    for index in parts:
        is_part = (fine_parts == index).view(np.uint8) * np.uint8(255)
        shares.append(cv2.resize(is_part, size[::-1], interpolation=cv2.INTER_AREA))
    return np.array(parts, np.uint8)[np.argmax(shares, axis=0)]


def expose(scene: np.ndarray, exposure: Exposure, rng: np.random.Generator) -> np.ndarray:
    """Return the photograph (H, W, 3) uint8 that the camera takes of a scene."""
    height, width = scene.shape[:2]
    blur = exposure.softness * (0.6 + width / 1000)
    photograph = cv2.GaussianBlur(scene * exposure.gain, (0, 0), blur)
    noise = rng.normal(0, exposure.noise, (height, width)).astype(np.float32)
    noisy = photograph + noise[..., None]
    return np.clip(noisy, 0, 255).astype(np.uint8)
