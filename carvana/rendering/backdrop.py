"""Painting a studio without its car: wall and floor, sign, turntable, curb, and the shadow.

A scene is a picture of float32 (H, W, 3) in 0 to 255.
"""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from carvana.rendering.camera import Camera
from carvana.rendering.canvas import to_eighths
from carvana.rendering.cars import Car
from carvana.rendering.studio import Backdrop, Curb, Light, Ring, Sign, Studio

FONT_SIZE = 150
# A quarter of the outline of a car seen from above, as shares of half its length and width.
QUARTER = ((1, 0), (0.96, 0.85), (0.8, 1))


def paint_studio(
    studio: Studio, car: Car, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Return the studio as a scene (H, W, 3), with the car's shadow but without the car."""
    scene, floor = _paint_wall_and_floor(studio.backdrop, size, rng)
    if studio.sign.shown:
        foot = studio.backdrop.horizon + 0.01 - studio.sign.lift
        scene = _paint_sign(scene, floor, studio.sign, foot)
    for ring in studio.rings:
        _paint_ring(scene, ring, camera)
    if studio.curb.top < 1:
        _paint_curb(scene, studio.curb)
    return scene * (1 - cast_shadow(studio.light, car, camera, size))


def _reduce_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return a quarter of a picture's size, in which soft things are computed."""
    height, width = size
    return max(2, height // 4), max(2, width // 4)


def _make_grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return y and x of each pixel, float32 (H, W) in 0 to 1."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y / np.float32(height), x / np.float32(width)


def _paint_wall_and_floor(
    backdrop: Backdrop, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene, and the floor's share of each pixel, float32 (H, W, 1)."""
    small = _reduce_size(size)
    y, x = _make_grid(small)
    across = 2 * x - 1
    horizon = backdrop.horizon + backdrop.bend * across**2 + backdrop.lean * across
    floor = 1 / (1 + np.exp(-np.clip((y - horizon) / backdrop.edge * 4, -30, 30)))
    noise = rng.normal(0, 1, (5, 6)).astype(np.float32)
    blotches = cv2.resize(noise, small[::-1], interpolation=cv2.INTER_CUBIC)
    light = (
        1
        + backdrop.uneven * blotches
        - backdrop.vignette * ((x - 0.5) ** 2 + (y - 0.45) ** 2)
        + backdrop.falloff * (y - 0.7) * floor
    )
    color = backdrop.wall * (1 - floor)[..., None] + backdrop.floor * floor[..., None]
    scene = cv2.resize((color * light[..., None]).astype(np.float32), size[::-1])
    return scene, cv2.resize(floor, size[::-1])[..., None]


def _paint_sign(scene: np.ndarray, floor: np.ndarray, sign: Sign, foot: float) -> np.ndarray:
    """Return the scene with letters on its wall; foot: where they stand, a share of the height."""
    height, width = scene.shape[:2]
    scale = width / 1000
    letters = cv2.resize(
        _draw_letters(sign), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
    left = int(width * sign.left)
    bottom = int(height * foot)
    page = np.zeros((height, width, 2), np.float32)  # opacity, gray level
    rows = slice(max(0, bottom - len(letters)), max(0, bottom))
    columns = slice(max(0, left), left + letters.shape[1])
    visible = page[rows, columns]
    if visible.size:
        visible[:] = letters[-len(visible) :, max(0, -left) :][:, : visible.shape[1]]
    opacity, level = np.split(page, 2, axis=2)
    opacity = opacity * sign.opacity * (1 - floor)
    return scene * (1 - opacity) + level * opacity


def _draw_letters(sign: Sign) -> np.ndarray:
    """Return the letters of a picture 1000 pixels wide: opacity in 0 to 1, gray level (h, w, 2)."""
    page = _draw_word(sign)
    width = max(1, int(1000 * sign.width))
    height = max(1, width * page.height // page.width)
    page = page.resize((width, height), Image.Resampling.HAMMING)
    opacity = np.asarray(page).astype(np.float32) / 255
    y, x = _make_grid(opacity.shape)
    down, right = sign.slope
    return np.dstack([opacity, sign.level + down * (y - 0.5) + right * (x - 0.5)])


def _draw_word(sign: Sign) -> Image.Image:
    """Return the sign's word in white on black, as wide as it comes out."""
    font = ImageFont.load_default(FONT_SIZE)
    count = len(sign.word)
    strokes = [round(FONT_SIZE * sign.bold[i * 2 // count]) for i in range(count)]
    letters = list(zip(sign.word, strokes, strict=True))
    boxes = [font.getbbox(letter, stroke_width=width, anchor="ls") for letter, width in letters]
    gap = FONT_SIZE * sign.gap
    starts = np.cumsum([20] + [box[2] - box[0] + gap for box in boxes])
    page = Image.new("L", (int(starts[-1]) + 20, 200))
    draw = ImageDraw.Draw(page)
    for (letter, stroke), start, box in zip(letters, starts[:-1], boxes, strict=True):
        draw.text((start - box[0], 180), letter, 255, font, stroke_width=stroke, anchor="ls")
    return page


def _paint_ring(scene: np.ndarray, ring: Ring, camera: Camera) -> None:
    """Darken a circle on the turntable."""
    height, width = scene.shape[:2]
    turn = np.linspace(0, 2 * np.pi, 90)
    circle = np.stack([np.cos(turn) * ring.radius, np.sin(turn) * ring.radius, 0 * turn], axis=1)
    corners = to_eighths(camera.project_studio(circle))
    layer = np.zeros((height, width), np.uint8)
    thickness = max(1, width // 400)
    cv2.polylines(layer, [corners], True, 255, thickness, cv2.LINE_AA, shift=3)
    scene *= 1 - ring.darkness * layer[..., None].astype(np.float32) / 255


def _paint_curb(scene: np.ndarray, curb: Curb) -> None:
    height, width = scene.shape[:2]
    bend = 0.02 * (np.arange(width) / width - 0.5) ** 2
    rows = np.arange(height)[:, None] / height + bend
    scene[rows > curb.top] = curb.level
    scene[rows > curb.top + 0.03] *= 0.6


def cast_shadow(light: Light, car: Car, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """Return the darkness of the floor around the car, float32 (H, W, 1) in 0 to 1."""
    height, width = size
    small = _reduce_size(size)
    small_height, small_width = small
    corners = _trace_footprint(car)
    dark = np.zeros(small, np.float32)
    layers = (  # growth, darkness, blur: one right under the car, one around it
        (1.0, light.shadow, light.spread * 0.5),
        (1.12, 0.4 * light.shadow, light.spread * 2.5),
    )
    for growth, darkness, blur in layers:
        shift = [*(light.shadow_shift * (growth - 1) * 3), 0]
        pixels = camera.project(corners * growth + shift)
        pixels = pixels * np.array([small_width, small_height]) / np.array([width, height])
        layer = np.zeros(small, np.float32)
        cv2.fillPoly(layer, [to_eighths(pixels)], 1.0, cv2.LINE_8, shift=3)
        blurred = cv2.GaussianBlur(layer, (0, 0), max(0.5, blur * small_width))
        dark = np.maximum(dark, darkness * blurred)
    return cv2.resize(dark, (width, height))[..., None]


def _trace_footprint(car: Car) -> np.ndarray:
    """Return points (12, 3) on the floor around the car, a little inside its outline."""
    quarter = np.array(QUARTER)
    backward = quarter[::-1]
    outline = np.concatenate([quarter, backward * [-1, 1], quarter * [-1, -1], backward * [1, -1]])
    x = outline[:, 0] * (car.length * 0.47)
    y = outline[:, 1] * (car.width * 0.46)
    return np.stack([x, y, np.zeros(len(outline))], axis=1)
