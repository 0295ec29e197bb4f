"""Painting a street without its cars and poles: the sky, the ground and the buildings."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from carvana.rendering.camera import Camera
from carvana.rendering.canvas import Canvas
from carvana.rendering.street import SIDES, Building, Daylight, Facade, Road, Street

SCENE_CLASSES = ("sky", "building", "road", "sidewalk", "car", "wheel", "pole", "mirror")
BUILDING = 1  # indices into SCENE_CLASSES; the sky, 0, is where nothing is painted
ROAD = 2
SIDEWALK = 3
NEAREST = 0.3  # meters in front of the camera, where it begins to see
FARTHEST = 400.0
DETAILED = 90.0  # up to here buildings have windows
STATIONS = np.geomspace(0.5, FARTHEST, 28)  # places along a road, between which it is straight
GLOW = np.array([236, 196, 128])  # light behind a window
PIPE = (70, 70, 70)


class Wall(NamedTuple):
    """A vertical rectangle."""

    foot: np.ndarray  # (3,) its lower left corner, seen from outside
    along: np.ndarray  # (3,) a meter to the right
    length: float
    light: float

    def panels(self, u0: ArrayLike, u1: ArrayLike, v0: ArrayLike, v1: ArrayLike) -> np.ndarray:
        """Return rectangles (n, 4, 3) of the wall, from u0 to u1 along it and v0 to v1 up."""
        u0, u1, v0, v1 = np.broadcast_arrays(*map(np.atleast_1d, (u0, u1, v0, v1)))
        along = np.stack([u0, u1, u1, u0], axis=1)
        up = np.stack([v0, v0, v1, v1], axis=1)
        return self.foot + along[..., None] * self.along + up[..., None] * [0, 0, 1]


class StreetCanvas(Canvas):
    """A canvas that takes what is behind the camera too, and veils what is far away."""

    def __init__(self, camera: Camera, size: tuple[int, int], daylight: Daylight):
        super().__init__(camera, size)
        self.haze = daylight.haze
        self.haze_color = daylight.horizon

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Return how far in front of the camera points (..., 3) are."""
        return (points - self.camera.eye) @ self.camera.axes[2]

    def veil(self, color: np.ndarray, depth: float) -> np.ndarray:
        """Return what remains of a color, behind so many meters of air."""
        share = np.exp(-self.haze * depth)
        return np.clip(color * share + self.haze_color * (1 - share), 0, 255)

    def fill_surface(self, points: np.ndarray, color: ArrayLike, part: int) -> None:
        """Fill a convex polygon of points (n, 3), as much of it as is in front of the camera."""
        depth = self.depth(points)
        if depth.max() <= NEAREST:
            return
        veiled = self.veil(np.asarray(color, float), max(0.0, float(depth.mean())))
        if depth.min() < NEAREST:
            points = _cut(points, depth - NEAREST)
        self.fill(points, veiled, part)

    def fill_surfaces(self, polygons: np.ndarray, color: ArrayLike, part: int) -> None:
        """Fill polygons (n, k, 3), in one color or in colors (n, 3), if the frame has them."""
        depth = self.depth(polygons)
        height, width = self.pixels.shape[:2]
        pixels = self.camera.project(polygons)
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        shown = (high > 0).all(axis=1) & (low < [width, height]).all(axis=1)
        shown |= depth.min(axis=1) < NEAREST
        colors = np.broadcast_to(color, (len(polygons), 3))
        for i in np.flatnonzero(shown):
            self.fill_surface(polygons[i], colors[i], part)


def _cut(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the part of a polygon (n, 3) where `inside` (n,), given at its corners, is positive.

    By the method of Sutherland and Hodgman 1974.
    """
    corners = []
    for i in range(len(points)):
        before, here = inside[i - 1], inside[i]
        if (before > 0) != (here > 0):
            corners.append(points[i - 1] + (points[i] - points[i - 1]) * before / (before - here))
        if here > 0:
            corners.append(points[i])
    return np.array(corners)


# ---------------------------------------------------------------- the sky


def paint_sky(
    daylight: Daylight, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return a sky with clouds, float32 (H, W, 3), as if nothing were before it."""
    height, width = size
    y = np.arange(height, dtype=np.float32)[:, None]
    horizon = float(camera.center[1] - camera.scale * camera.axes[2, 2] / camera.axes[1, 2])
    up = np.clip((horizon - y) / height / 0.6, 0, 1)[..., None] ** 0.7
    sky = (daylight.horizon * (1 - up) + daylight.zenith * up) * np.ones((1, width, 1))
    field = np.zeros((height, width), np.float32)
    for cells in (3, 6, 14, 30):
        rows = max(2, round(cells / daylight.cloud_height * height / width))
        noise = rng.normal(0, 2 / cells**0.7, (rows, cells + 1)).astype(np.float32)
        field += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    opacity = np.clip((field + 3 * daylight.clouds - 2) / 1.5, 0, 0.9)[..., None]
    clouds = 232 - 28 * np.clip(field, 0, 3)[..., None]
    return (sky * (1 - opacity) + clouds * opacity).astype(np.float32)


# ---------------------------------------------------------------- the ground


def paint_ground(canvas: StreetCanvas, road: Road, rng: np.random.Generator) -> None:
    """Paint road, markings and sidewalks; pavement also fills the gaps between buildings."""
    half = road.width / 2
    _fill_strip(canvas, road, (-80, 80), road.pavement * 0.9, SIDEWALK)
    _fill_strip(canvas, road, (-half, half), road.asphalt, ROAD)
    _paint_patches(canvas, road, rng)
    _paint_markings(canvas, road)
    for side, width in zip(SIDES, road.walks, strict=True):
        _paint_sidewalk(canvas, road, side, width)


def _ground_quads(road: Road, x: np.ndarray, across: tuple[float, float], z: float) -> np.ndarray:
    """Return quads (n, 4, 3) between consecutive pairs of places x (n, 2) along the street."""
    right, left = across
    start, end = x.T
    shift_start, shift_end = road.bend * start**2, road.bend * end**2
    corners = [
        np.stack([start, right + shift_start], axis=1),
        np.stack([end, right + shift_end], axis=1),
        np.stack([end, left + shift_end], axis=1),
        np.stack([start, left + shift_start], axis=1),
    ]
    flat = np.stack(corners, axis=1)
    return np.concatenate([flat, np.full((*flat.shape[:2], 1), z)], axis=2)


def _fill_strip(
    canvas: StreetCanvas,
    road: Road,
    across: tuple[float, float],
    color: np.ndarray,
    part: int,
    z: float = 0.0,
) -> None:
    """Fill the ground all along the street, from one y to another."""
    x = np.stack([STATIONS[:-1], STATIONS[1:]], axis=1)
    canvas.fill_surfaces(_ground_quads(road, x, across, z), color, part)


def _paint_patches(canvas: StreetCanvas, road: Road, rng: np.random.Generator) -> None:
    for _ in range(road.patches):
        x = 3 + 30 * rng.random() ** 2
        y = rng.uniform(-0.5, 0.4) * road.width
        extent = np.array([[x, x + rng.uniform(0.5, 5)]])
        quads = _ground_quads(road, extent, (y, y + rng.uniform(0.3, 1.4)), 0)
        canvas.fill_surfaces(quads, road.asphalt * rng.uniform(0.6, 1.2), ROAD)


def _paint_markings(canvas: StreetCanvas, road: Road) -> None:
    half = road.width / 2
    if road.has_edge_lines:
        for side in SIDES:
            y = side * (half - 0.35)
            _fill_strip(canvas, road, (y - 0.06, y + 0.06), road.marking, ROAD)
    if road.dash:
        start = np.arange(1, 80, road.dash + road.gap)
        dashes = np.stack([start, start + road.dash], axis=1)
        canvas.fill_surfaces(_ground_quads(road, dashes, (-0.07, 0.07), 0), road.marking, ROAD)
    if road.crosswalk:
        extent = np.array([[road.crosswalk, road.crosswalk + 3]])
        for y in np.arange(-half + 0.3, half - 0.5, 1.0):
            canvas.fill_surfaces(_ground_quads(road, extent, (y, y + 0.5), 0), road.marking, ROAD)


def _paint_sidewalk(canvas: StreetCanvas, road: Road, side: int, width: float) -> None:
    """Paint a raised sidewalk, the joints of its slabs, and its curb."""
    curb = side * road.width / 2
    outer = side * (road.width / 2 + width)
    top = (min(curb, outer), max(curb, outer))
    _fill_strip(canvas, road, top, road.pavement, SIDEWALK, road.curb)
    if road.slab:
        start = np.arange(1, 30, road.slab)
        joints = np.stack([start, start + 0.03], axis=1)
        canvas.fill_surfaces(
            _ground_quads(road, joints, top, road.curb), road.pavement * 0.8, SIDEWALK
        )
    edge = (curb, curb + 0.15 * side)
    _fill_strip(canvas, road, (min(edge), max(edge)), road.edging, SIDEWALK, road.curb)
    if side * canvas.camera.eye[1] < road.width / 2:  # seen from the road
        x = np.stack([STATIONS[:-1], STATIONS[1:]], axis=1)
        faces = _ground_quads(road, x, (curb, curb), 0)
        faces[:, 2:, 2] = road.curb
        canvas.fill_surfaces(faces, road.edging * 0.7, SIDEWALK)


# ---------------------------------------------------------------- the buildings


def paint_buildings(canvas: StreetCanvas, street: Street, rng: np.random.Generator) -> None:
    """Paint the skyline, then the buildings from far to near."""
    _paint_skyline(canvas, street.daylight, rng)
    for building in street.buildings:
        _paint_building(canvas, street, building, rng)


def _paint_skyline(canvas: StreetCanvas, daylight: Daylight, rng: np.random.Generator) -> None:
    """Paint what closes the view, a row of distant blocks."""
    y = -FARTHEST
    while y < FARTHEST:
        width = rng.uniform(8, 30)
        corners = [(0, y), (0, y + width), (rng.uniform(4, 26), y + width)]
        corners.append((corners[-1][0], y))
        block = np.array([(FARTHEST * 0.8, side, up) for up, side in corners])
        color = daylight.horizon * rng.uniform(0.35, 0.85) * daylight.sides[2]
        canvas.fill_surface(block, color, BUILDING)
        y += width


def _paint_building(
    canvas: StreetCanvas, street: Street, building: Building, rng: np.random.Generator
) -> None:
    """Paint the wall that faces the camera, the roof, and the front along the street."""
    road, facade, side = street.road, building.facade, building.side
    ends = np.array([building.start, building.start + building.length])
    walk = road.walks[SIDES.index(side)]
    y = side * (road.width / 2 + walk + building.setback) + road.bend * ends**2
    near, far = np.stack([ends, y, [road.curb, road.curb]], axis=1)
    light = street.daylight.sides
    outward = np.array([0, side * 14.0, 0])
    if building.start > 0:
        gable = Wall(near, outward / 14, 14.0, light[2])
        canvas.fill_surfaces(
            gable.panels(0, 14, 0, facade.height), facade.color * 0.9 * light[2], BUILDING
        )
    if facade.roof:
        back = np.array([0, side * 5.0, facade.height + facade.roof])
        top = np.array([0, 0, facade.height])
        roof = np.array([near + top, far + top, far + back, near + back])
        canvas.fill_surface(roof, facade.roof_color, BUILDING)
        end = np.array([near + top, near + back, near + top + outward * 10 / 14])
        canvas.fill_surface(end, facade.color * 0.9 * light[2], BUILDING)
    along = (far - near) / building.length
    front = Wall(near, along, building.length, light[SIDES.index(side)])
    _paint_front(canvas, front, facade, rng)


def _paint_front(
    canvas: StreetCanvas, front: Wall, facade: Facade, rng: np.random.Generator
) -> None:
    """Paint a front and what is on it."""
    height, length = facade.height, front.length
    color, trim = facade.color * front.light, facade.trim * front.light
    canvas.fill_surfaces(front.panels(0, length, 0, height), color, BUILDING)
    if front.foot[0] > DETAILED:
        return
    base = facade.color * front.light * 0.8
    canvas.fill_surfaces(front.panels(0, length, 0, 0.5), base, BUILDING)
    if facade.has_bands:
        floors = np.arange(1, facade.floors) * facade.floor_height
        canvas.fill_surfaces(front.panels(0, length, floors - 0.1, floors + 0.1), trim, BUILDING)
    bays = np.arange(max(1, int(length // facade.bay)))
    middles = (bays + 0.5) * length / len(bays)
    if facade.has_pilasters:
        edges = middles[1:] - length / len(bays) / 2
        canvas.fill_surfaces(front.panels(edges - 0.12, edges + 0.12, 0, height), trim, BUILDING)
    _paint_windows(canvas, front, facade, middles, rng)
    _paint_ground_floor(canvas, front, facade, middles, rng)
    canvas.fill_surfaces(front.panels(0, length, height - 0.3, height), trim, BUILDING)
    if facade.has_pipes:
        pipes = front.panels(
            np.array([0.2, length - 0.3]), np.array([0.3, length - 0.2]), 0, height
        )
        canvas.fill_surfaces(pipes, np.array(PIPE) * front.light, BUILDING)


def _paint_windows(
    canvas: StreetCanvas,
    front: Wall,
    facade: Facade,
    middles: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Paint the windows above the ground floor, `middles` (n,) along the front, and sills."""
    floors = np.arange(1, facade.floors)
    u, v = (grid.ravel() for grid in np.meshgrid(middles, (floors + 0.52) * facade.floor_height))
    if not len(u):
        return
    half_width = facade.window[0] * facade.bay / 2
    half_height = facade.window[1] * facade.floor_height / 2
    frames = front.panels(
        u - half_width - 0.08, u + half_width + 0.08, v - half_height - 0.12, v + half_height + 0.08
    )
    canvas.fill_surfaces(frames, facade.trim * front.light, BUILDING)
    panes = front.panels(u - half_width, u + half_width, v - half_height, v + half_height)
    colors = facade.glass * rng.uniform(0.6, 1.5, (len(u), 1))
    colors[rng.random(len(u)) < facade.lit] = GLOW
    canvas.fill_surfaces(panes, np.clip(colors, 0, 255), BUILDING)
    bars = front.panels(u - 0.04, u + 0.04, v - half_height, v + half_height)
    canvas.fill_surfaces(bars, facade.trim * front.light, BUILDING)


def _paint_ground_floor(
    canvas: StreetCanvas,
    front: Wall,
    facade: Facade,
    middles: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Paint doors and windows at `middles` (n,) along the front, or a shop."""
    half = 0.4 * front.length / len(middles)
    is_door = rng.random(len(middles)) < 0.3
    low = np.where(is_door, 0.0, 0.6 if facade.shop is not None else 0.9)
    half_width = np.where(is_door, min(half, 0.55), half)
    high = min(2.4, 0.8 * facade.floor_height)
    openings = front.panels(middles - half_width, middles + half_width, low, high)
    doors = facade.trim * 0.6 * front.light
    colors = np.where(is_door[:, None], doors, facade.glass * rng.uniform(0.5, 1.4))
    canvas.fill_surfaces(openings, np.clip(colors, 0, 255), BUILDING)
    if facade.shop is not None:
        sign = front.panels(0.3, front.length - 0.3, high + 0.05, high + 0.6)
        canvas.fill_surfaces(sign, facade.shop * front.light, BUILDING)
