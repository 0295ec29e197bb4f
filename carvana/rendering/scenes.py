"""Rendering a scene: a photograph of a street with cars, and its exact mask of eight classes."""

from dataclasses import replace

import cv2
import numpy as np

from carvana.rendering.backdrop import cast_shadow
from carvana.rendering.camera import Camera
from carvana.rendering.canvas import Canvas
from carvana.rendering.footprints import back_to_front, car_footprint, pole_footprint
from carvana.rendering.painting import paint_car
from carvana.rendering.photograph import OVERSAMPLING, expose, largest_part
from carvana.rendering.scenery import (
    BUILDING,
    ROAD,
    SCENE_CLASSES,
    SIDEWALK,
    StreetCanvas,
    paint_buildings,
    paint_ground,
    paint_sky,
)
from carvana.rendering.shapes import box
from carvana.rendering.street import PlacedCar, Pole, Street, View

SCENE_SIZE = (360, 480)  # (H, W) in pixels, unless another is asked for
CAR, WHEEL, POLE, MIRROR = 4, 5, 6, 7  # indices into SCENE_CLASSES
CLASS_OF_PART = np.array([0, CAR, CAR, WHEEL, MIRROR], np.uint8)  # by what paint_car tells apart
POLE_PIXELS = (1.1, 3.6)  # thinnest and thickest pole in a picture POLE_WIDTH wide
POLE_WIDTH = 480
TEXTURE_CELLS = 256  # of the ground's texture, which repeats
TEXTURE_SCALE = 12.0  # cells a meter


def render_scene(
    street: Street, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph of a street and its exact mask.

    Args:
        street: see new_street.
        size: (H, W) in pixels.
        rng: draws windows, textures, clouds and the photograph's noise.

    Returns:
        RGB uint8 (H, W, 3), and uint8 (H, W) of indices into SCENE_CLASSES: the class that covers
        most of each pixel, of those that cover the same the thinner one, which comes later.
    """
    height, width = size
    fine_size = (OVERSAMPLING * height, OVERSAMPLING * width)
    fine_camera = _place_camera(street.view, fine_size)
    camera = _place_camera(street.view, size)
    daylight = street.daylight

    setting = StreetCanvas(fine_camera, fine_size, daylight)
    paint_ground(setting, street.road, rng)
    paint_buildings(setting, street, rng)
    setting_pixels, setting_classes = setting.finish()
    things = StreetCanvas(fine_camera, fine_size, daylight)
    _paint_things(things, street)
    things_pixels, things_classes = things.finish()
    classes = np.where(things_classes > 0, things_classes, setting_classes)

    scene = _lay_over(paint_sky(daylight, camera, size, rng), setting_pixels)
    walls = _share_of(setting_classes == BUILDING, size)
    ground = _share_of((setting_classes == ROAD) | (setting_classes == SIDEWALK), size)
    scene *= 1 + walls * _texture_walls(size, rng)
    scene *= 1 - ground * (1 - _light_ground(street, camera, size, rng))
    for placed in street.cars:
        scene *= 1 - ground * _shadow_of(placed, street, camera, size)
    scene = _lay_over(scene, things_pixels)
    mask = largest_part(classes, range(len(SCENE_CLASSES))[::-1], size)
    return expose(_develop(scene, street), street.exposure, rng), mask


def _place_camera(view: View, size: tuple[int, int]) -> Camera:
    """Return the camera for a picture of `size`."""
    height, width = size
    cosine, sine = np.cos(view.pitch), np.sin(view.pitch)
    forward = np.array([np.cos(view.yaw) * cosine, np.sin(view.yaw) * cosine, sine])
    right = np.array([np.sin(view.yaw), -np.cos(view.yaw), view.roll])
    right -= forward * (right @ forward)
    right /= np.linalg.norm(right)
    return Camera(
        turn=np.eye(3),
        eye=np.array([0, view.offset, view.height]),
        axes=np.stack([right, np.cross(forward, right), forward]),
        scale=width * view.zoom,
        center=np.array([width / 2, height / 2]),
    )


def _shrink(fine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture averaged to `size`, float32 (H, W, channels)."""
    shrunk = cv2.resize(fine, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    return shrunk if shrunk.ndim == 3 else shrunk[..., None]


def _share_of(fine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the share of each pixel where a finer bool picture is true, float32 (H, W, 1)."""
    return _shrink(fine.view(np.uint8) * np.uint8(255), size) / np.float32(255)


def _lay_over(scene: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return a scene (H, W, 3) behind a finer, premultiplied RGBA picture."""
    painted = _shrink(pixels, scene.shape[:2])
    return scene * (1 - painted[..., 3:] / 255) + painted[..., :3]


# ---------------------------------------------------------------- cars and poles


def _paint_things(canvas: StreetCanvas, street: Street) -> None:
    """Paint cars and poles, those that are hidden first."""
    things: list[PlacedCar | Pole] = [*street.cars, *street.poles]
    footprints = [
        car_footprint(*thing) if isinstance(thing, PlacedCar) else pole_footprint(thing.place)
        for thing in things
    ]
    for i in back_to_front(footprints, canvas.camera.eye[:2]):
        thing = things[i]
        if isinstance(thing, PlacedCar):
            _paint_placed_car(canvas, thing, street)
        else:
            _paint_pole(canvas, thing, street.road.curb)


def _stand_before(camera: Camera, placed: PlacedCar) -> Camera:
    """Return the camera as a car sees it that stands at the origin, as paint_car expects."""
    cosine, sine = np.cos(placed.heading), np.sin(placed.heading)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return replace(camera, turn=turn, eye=camera.eye - [*placed.place, 0])


def _paint_placed_car(canvas: StreetCanvas, placed: PlacedCar, street: Street) -> None:
    """Paint a car in the smallest window of the picture that holds it."""
    camera = _stand_before(canvas.camera, placed)
    car = placed.car
    height = car.height + car.extras.antenna + 0.2
    hull = camera.project(box([0, 0, height / 2], [car.length + 0.4, car.width + 0.6, height]))
    limits = np.array(canvas.pixels.shape[1::-1])
    low = np.clip(np.floor(hull.min(axis=0)), 0, limits).astype(int)
    high = np.clip(np.ceil(hull.max(axis=0)), 0, limits).astype(int)
    if (low >= high).any():
        return
    window_camera = replace(camera, center=camera.center - low)
    width, rows = (high - low).tolist()
    painted, parts = paint_car(car, street.daylight.cars, window_camera, (rows, width))
    covered = parts > 0
    window = canvas.pixels[low[1] : high[1], low[0] : high[0]]
    depth = float(np.linalg.norm(camera.eye))
    window[covered, :3] = canvas.veil(painted[covered, :3], depth)
    window[covered, 3] = 0 - CLASS_OF_PART[parts[covered]]  # 256 minus the class, in 8 bits


def _shadow_of(
    placed: PlacedCar, street: Street, camera: Camera, size: tuple[int, int]
) -> np.ndarray:
    """Return the darkness of the ground around a car, float32 (H, W, 1) in 0 to 1."""
    seen = _stand_before(camera, placed)
    light = street.daylight.cars
    distance = float(np.linalg.norm(seen.eye))
    spread = light.spread * street.view.zoom * 4 / distance  # of a blur in the picture
    return cast_shadow(replace(light, spread=spread), placed.car, seen, size)


def _paint_pole(canvas: StreetCanvas, pole: Pole, ground: float) -> None:
    """Paint a lamp or a sign, as wide as it is, but within POLE_PIXELS."""
    foot = np.array([*pole.place, ground])
    top = foot + [0, 0, pole.height]
    depth = float(canvas.depth(foot))
    unit = canvas.pixels.shape[1] / POLE_WIDTH
    thinnest, thickest = POLE_PIXELS
    width = 2 * pole.radius / depth * canvas.camera.scale
    width = float(np.clip(width, thinnest * unit, thickest * unit)) - 1  # OpenCV adds one
    dark, light = (canvas.veil(pole.color * level, depth) for level in (0.8, 1.15))
    if pole.plate:
        corner = np.array([pole.plate, 0, 0])
        low = top - [pole.plate / 2, 0, pole.plate]
        plate = np.array([low, low + corner, top + corner / 2, top - corner / 2])
        canvas.fill(plate, light, POLE)
    _paint_bar(canvas, np.array([foot, top]), width, dark)
    if width > 2 * unit:
        _paint_bar(canvas, np.array([foot, top]), width * 0.4, light)
    if pole.arm:
        tip = top + [0, -pole.side * pole.arm, 0.15]
        _paint_bar(canvas, np.array([top, tip]), width * 0.7, dark)
        head = tip + [0, -pole.side * 0.5, 0]
        _paint_bar(canvas, np.array([tip, head]), width, light)


def _paint_bar(canvas: Canvas, ends: np.ndarray, width: float, color: np.ndarray) -> None:
    """Paint a straight bar between two points (2, 3), `width` pixels wide."""
    start, end = canvas.camera.project(ends)
    along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-6)
    across = np.array([-along[1], along[0]]) * width / 2
    corners = np.array([start - across, start + across, end + across, end - across])
    canvas.fill_polygon(corners, color, POLE)


# ---------------------------------------------------------------- light


def _texture_walls(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return by what share walls are lighter here and darker there, float32 (H, W, 1)."""
    height, width = size
    field = np.zeros((height, width), np.float32)
    for cells, strength in ((6, 0.05), (40, 0.04), (max(2, height // 2), 0.05)):
        noise = rng.normal(0, strength, (cells, cells)).astype(np.float32)
        field += cv2.resize(noise, (width, height))
    return field[..., None]


def _light_ground(
    street: Street, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return how bright the ground is, by shade and by its own texture, float32 (H, W, 1)."""
    daylight = street.daylight
    x, y = _ground_places(camera, size)
    texture = _new_texture(rng)
    columns = np.mod(x * TEXTURE_SCALE, TEXTURE_CELLS - 1)
    rows = np.mod(y * TEXTURE_SCALE, TEXTURE_CELLS - 1)
    grain = cv2.remap(texture, columns, rows, cv2.INTER_LINEAR)
    blotches = cv2.remap(texture, columns / 8, rows / 8, cv2.INTER_LINEAR)
    fade = 1 / (1 + (x / 15) ** 2)  # far away all of it is within a pixel
    light = 1 + fade * 0.10 * grain + 0.07 * blotches
    across = y - street.road.bend * x**2
    beyond = (across - daylight.shade_edge) * daylight.shade_side + 0.4 * blotches
    light *= 1 - daylight.shade / (1 + np.exp(-np.clip(beyond * 6, -30, 30)))
    light *= 1 - daylight.dapple * np.clip(0.3 + blotches, 0, 1)
    return np.clip(light, 0.2, 1.5)[..., None].astype(np.float32)


def _ground_places(camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in meters of what each pixel shows of the ground, float32 (H, W)."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    right = (columns + 0.5 - camera.center[0]) / camera.scale
    down = (rows + 0.5 - camera.center[1]) / camera.scale
    axes = camera.axes
    ray = [axes[0, i] * right + axes[1, i] * down + axes[2, i] for i in range(3)]
    reach = camera.eye[2] / np.maximum(-ray[2], 0.004)
    x = (camera.eye[0] + reach * ray[0]).astype(np.float32)
    y = (camera.eye[1] + reach * ray[1]).astype(np.float32)
    return x, y


def _new_texture(rng: np.random.Generator) -> np.ndarray:
    """Return a random texture, float32 (TEXTURE_CELLS, TEXTURE_CELLS) around 0."""
    texture = np.zeros((TEXTURE_CELLS, TEXTURE_CELLS), np.float32)
    for cells in (8, 32, 128, TEXTURE_CELLS):
        noise = rng.normal(0, 0.5, (cells, cells)).astype(np.float32)
        texture += cv2.resize(noise, texture.shape, interpolation=cv2.INTER_LINEAR)
    return texture


def _develop(scene: np.ndarray, street: Street) -> np.ndarray:
    """Return the scene in the street's light: its brightness, color and contrast."""
    daylight = street.daylight
    lit = scene * (daylight.brightness * daylight.tint).astype(np.float32)
    return (lit - 110) * np.float32(daylight.contrast) + 110
