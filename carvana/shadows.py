"""The shadow of a car on the ground: the photograph's own, or one that is drawn."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from carvana.framing import Box, box_of
from carvana.images import Size

SIDE = 320  # pixels of the car's longer side, at which shadows are found and drawn
LUMA = np.array(
    [[0.299, 0.587, 0.114]], np.float32
)  # of red, green and blue in brightness; ITU-R BT.601
# Lengths are in heights of the car.
SEAM = 0.02  # around the car, where its own colors mix with the ground's
LOWER = 0.45  # above the car's lowest point, from where on there is ground beside it
NEAR = 0.15  # to this distance from the car a shadow keeps its strength,
END = 0.5  # and at this one it has ended
FAR = 0.7  # from NEAR to here, the ground shows how bright it is without a shadow
FADE = 0.1  # within this of the photograph's sides and lower edge a shadow fades out
SMOOTH = 0.025  # standard deviation of a blur that takes out lines and grain of the ground
# Ground is plain where three quarters of it are about as bright as a smooth surface.
PLAIN_SHARE = 0.75
PLAIN_DEVIATION = 0.05  # of the surface's brightness
LEAST_GROUND = 0.1  # of the car's area, that must be seen of it
FITS = 3  # of the surface; what is darker, a shadow, is left out from the second on
SURFACE_TERMS = 6  # of the polynomial that is the surface
LEAST_WEIGHT = 1e-5  # keeps averages over no pixel at all from dividing by zero
NOISE = 0.05  # darkening that is the ground's own pattern
# A drawn shadow is the sum of three: where tires touch, under the car, and wide around it.
TOUCH = 0.03  # above the line on which the car stands, a tire touches the ground
STEEP = 1.5  # rise over run from which an outline is the body's side, not that line
DEEP = 0.12  # the shadow reaches up behind that line
SPREADS = (0.02, 0.06, 0.16)  # standard deviations
STRENGTHS = (0.7, 0.75, 0.35)
FLAT = 0.5  # it lies on the ground, and is seen from the side: less high than wide


class Ground(NamedTuple):
    """A car and the ground around it, cut out of the photograph and reduced."""

    brightness: np.ndarray  # float32 (h, w), up to 255
    car: np.ndarray  # uint8 (h, w) of 0 and 1
    box: Box  # of the car
    distance: np.ndarray  # float32 (h, w), from the car, in heights of the car


def find_shadow(photograph: np.ndarray, car: np.ndarray) -> np.ndarray:
    """Return a car's shadow: the photograph's own on plain ground, else one that is drawn.

    Args:
        photograph: uint8 (H, W, 3).
        car: uint8 (H, W) of 0 and 1.

    Returns:
        uint8 (H, W), from 0, no shadow, to 255, black; also under the car, which hides it.
    """
    shadow = np.zeros_like(car)
    if not cv2.countNonZero(car):
        return shadow
    box = box_of(car)
    window = _window(box, car.shape)
    ground = _reduce(photograph[window], car[window])
    strength = kept_shadow(ground)
    if strength is None:
        strength = drawn_shadow(ground)
    height, width = car[window].shape
    strength = cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)
    strength *= _fade_at_edges(window, car.shape, FADE * box.height)
    shadow[window] = np.round(255 * strength)
    return shadow


def add_shadow(
    colors: np.ndarray, alpha: np.ndarray, shadow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return colors and alpha of a car on its shadow, which is black.

    Args:
        colors: uint8 (H, W, 3).
        alpha: uint8 (H, W).
        shadow: uint8 (H, W).
    """
    behind = cv2.multiply(255 - alpha, shadow, scale=1 / 255)
    both = cv2.add(alpha, behind)
    share = cv2.divide(alpha, both, scale=255)
    return cv2.multiply(colors, cv2.merge([share] * 3), scale=1 / 255), both


def _window(box: Box, size: Size) -> tuple[slice, slice]:
    """Return the rows and columns of a photograph that hold a car and its shadow."""
    reach = math.ceil(FAR * box.height)
    right = box.left + box.width
    bottom = box.top + box.height
    rows = slice(box.top, min(size[0], bottom + reach))
    return rows, slice(max(0, box.left - reach), min(size[1], right + reach))


def _fade_at_edges(window: tuple[slice, slice], size: Size, reach: float) -> np.ndarray:
    """Return 1 in a window of a photograph, falling to 0 at its sides and lower edge.

    On a larger canvas a shadow would end there in a straight line.

    Args:
        size: (H, W) of the photograph.
        reach: distance from the edge, in pixels, within which it falls.

    Returns:
        float32 (h, w).
    """
    height, width = size
    rows = np.arange(height, dtype=np.float32)[window[0]]
    columns = np.arange(width, dtype=np.float32)[window[1]]
    below = height - 1 - rows
    beside = np.minimum(columns, width - 1 - columns)
    return np.outer(np.clip(below / reach, 0, 1), np.clip(beside / reach, 0, 1))


def _reduce(photograph: np.ndarray, car: np.ndarray) -> Ground:
    """Return what is needed of a photograph, uint8 (H, W, 3), and its car, uint8 (H, W)."""
    box = box_of(car)
    scale = min(1.0, SIDE / max(box.width, box.height))
    size = (max(1, round(scale * car.shape[1])), max(1, round(scale * car.shape[0])))
    reduced = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA)
    small_car = cv2.resize(car * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    small_car = (small_car > 127).view(np.uint8)
    small_box = box_of(small_car)
    distance = cv2.distanceTransform(1 - small_car, cv2.DIST_L2, cv2.DIST_MASK_5)
    brightness = cv2.transform(reduced.astype(np.float32), LUMA)
    return Ground(brightness, small_car, small_box, distance / small_box.height)


# ---------------------------------------------------------------- the photograph's own


def kept_shadow(ground: Ground) -> np.ndarray | None:
    """Return how much darker plain ground is near a car, float32 (h, w) in [0, 1].

    None where the ground is not plain: too little of it is seen, or more than a quarter of it
    differs from a smooth surface by over 5 % in brightness.
    """
    weight = _nearness(ground)
    is_ground = (ground.distance > SEAM) & (_lowness(ground) > 0)
    reference = is_ground & (ground.distance > NEAR) & (ground.distance < FAR)
    if reference.sum() < max(LEAST_GROUND * ground.car.sum(), SURFACE_TERMS):
        return None
    surface = _fit_surface(ground.brightness, reference)
    brightness = ground.brightness / np.maximum(surface, 1)
    deviation = np.abs(brightness[reference] - 1)
    if np.quantile(deviation, PLAIN_SHARE) > PLAIN_DEVIATION:
        return None
    brightness = _smooth(brightness, is_ground, SMOOTH * ground.box.height)
    return weight * np.clip((1 - brightness - NOISE) / (1 - NOISE), 0, 1)


def _nearness(ground: Ground) -> np.ndarray:
    """Return 1 near the car's lower part, falling to 0 away from it, float32 (h, w)."""
    around = np.clip((END - ground.distance) / (END - NEAR), 0, 1)
    return around * np.clip(2 * _lowness(ground), 0, 1)


def _lowness(ground: Ground) -> np.ndarray:
    """Return how low each row is: 1 where the car ends, 0 LOWER above it; float32 (h, 1)."""
    bottom = ground.box.top + ground.box.height
    rows = np.arange(len(ground.car), dtype=np.float32)[:, None]
    return 1 - (bottom - rows) / (LOWER * ground.box.height)


def _fit_surface(brightness: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the smooth surface, float32 (h, w), that fits brightness best at the reference.

    It is a polynomial of the second degree in row and column.
    """
    height, width = brightness.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=2)
    lit = reference
    for _ in range(FITS):
        equations = terms[lit]
        normal = equations.T @ equations
        weights = np.linalg.lstsq(normal, equations.T @ brightness[lit], rcond=None)[0]
        surface = terms @ weights
        brighter = reference & (brightness > (1 - PLAIN_DEVIATION) * surface)
        if brighter.sum() < reference.sum() / 2:
            break
        lit = brighter
    return surface


def _smooth(values: np.ndarray, known: np.ndarray, spread: float) -> np.ndarray:
    """Return averages, float32 (h, w), of the known values around each pixel, also under the car.

    Far from any known value they are 1.
    """
    weight = known.astype(np.float32)
    sigma = max(0.5, spread)
    total = cv2.GaussianBlur((values - 1) * weight, (0, 0), sigma)
    return 1 + total / (cv2.GaussianBlur(weight, (0, 0), sigma) + LEAST_WEIGHT)


# ---------------------------------------------------------------- drawn


def drawn_shadow(ground: Ground) -> np.ndarray:
    """Return a soft shadow where a car touches the ground, float32 (h, w) in [0, 1]."""
    height = ground.box.height
    line, lowest = _ground_line(ground)
    rows = np.arange(len(ground.car))[:, None]
    under = (rows <= line) & (rows > line - DEEP * height)
    touching = under & (lowest > line - TOUCH * height) & (rows > line - TOUCH * height)
    light = np.ones(ground.car.shape, np.float32)
    for region, spread, strength in zip((touching, under, under), SPREADS, STRENGTHS, strict=True):
        sigma = max(0.5, spread * height)
        blurred = cv2.GaussianBlur(
            region.astype(np.float32), (0, 0), sigmaX=sigma, sigmaY=FLAT * sigma
        )
        light *= 1 - strength * blurred
    return 1 - light


def _ground_line(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Return the row on which a car stands, and its own lowest row, float (w,), by column.

    The line is the lower side of the car's convex hull, from tire to tire, as far as it is not
    steep. Beside it, and the lowest row beside the car, is -inf: there is none.
    """
    height, width = ground.car.shape
    columns = np.flatnonzero(ground.car.any(0))
    lowest = np.full(width, -np.inf)
    lowest[columns] = height - 1 - ground.car[::-1, columns].argmax(0)
    outline = np.stack([columns, lowest[columns]], axis=1).astype(np.int32)
    ends = [[columns[0], -height], [columns[-1], -height]]  # above it: the rest is its lower side
    hull = cv2.convexHull(np.concatenate([outline, ends]).astype(np.int32))[:, 0]
    corners = np.unique(hull[hull[:, 1] >= 0], axis=0)  # from left to right
    corners = corners[_stands_on(corners)]
    line = np.full(width, -np.inf)
    line[columns] = np.interp(columns, corners[:, 0], corners[:, 1], -np.inf, -np.inf)
    return line, lowest


def _stands_on(corners: np.ndarray) -> np.ndarray:
    """Return which corners of an outline, int (n, 2), are on level sides of it, bool (n,)."""
    steps = np.diff(corners, axis=0)
    is_level = np.abs(steps[:, 1]) <= STEEP * steps[:, 0]
    stands = np.concatenate([is_level, [False]]) | np.concatenate([[False], is_level])
    if not stands.any():
        stands[corners[:, 1].argmax()] = True
    return stands
