"""Painting a car: its light and shade, and its parts from back to front."""

import numpy as np

from carvana.rendering.camera import Camera
from carvana.rendering.canvas import Canvas
from carvana.rendering.cars import MIRRORS, WHEELS, Car
from carvana.rendering.shapes import DARK, Shell, box, build_shell, disc
from carvana.rendering.studio import Light

TIRE = (27, 27, 28)
TIRE_SIDE = (37, 37, 38)
ANTENNA = (30, 30, 30)
ROOF_RAIL = (70, 70, 72)
PLATE = (222, 228, 236)
SIDES = (-1, 1)  # right and left: the sign of y
ENDS = (-1, 1)  # tail and nose: the sign of x
ROOM_HEIGHTS = [-1, -0.2, 0.0, 0.2, 0.5, 1]  # where Light.room looks: -1 is down, 1 is up


def paint_car(
    car: Car, light: Light, camera: Camera, size: tuple[int, int], reflected: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a car, or what a polished floor reflects of it.

    Returns:
        premultiplied RGBA uint8 (H, W, 4), alpha 0 or 255, and uint8 (H, W) indices into PARTS.
    """
    shell = build_shell(car)
    if reflected:
        shell = shell.mirrored()
        camera = camera.mirrored()
    canvas = Canvas(camera, size)
    thickness = max(1, round(size[1] / 700))  # of lines, in pixels
    eye = camera.turn.T @ camera.eye  # where the car sees the camera
    # Seen at a grazing angle, the body hides the wheels of both sides.
    near_sides = [side for side in SIDES if eye[1] * side > car.width / 2 + 0.4]
    far_sides = [side for side in SIDES if side not in near_sides]
    near_ends = [end for end in ENDS if eye[0] * end > 0.5 * car.length]

    for side in far_sides:
        _paint_side(canvas, car, side, near=False)
    if car.extras.antenna:
        _paint_antenna(canvas, car, thickness + 1)
    _paint_shell(canvas, shell, light)
    for side in near_sides:
        _paint_door_gaps(canvas, car, side, thickness)
    if car.extras.roof_rails:
        _paint_roof_rails(canvas, car, 2 * thickness)
    if car.extras.spoiler:
        _paint_spoiler(canvas, car)
    if car.extras.plates:
        for end in near_ends:
            _paint_plate(canvas, car, end)
    for side in near_sides:
        _paint_side(canvas, car, side, near=True)
    return canvas.finish()


def _paint_shell(canvas: Canvas, shell: Shell, light: Light) -> None:
    order, colors = shade(shell, canvas.camera, light)
    polygons = canvas.camera.project(shell.quads[order])
    for pixels, color, part in zip(polygons, colors[order], shell.parts[order], strict=True):
        canvas.fill_polygon(pixels, color, part)


def shade(shell: Shell, camera: Camera, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Return which quads face the camera, and what colors the light gives to all of them.

    Returns:
        indices of quads from back to front, and colors (n, 3) in 0 to 255.
    """
    quads = shell.quads @ camera.turn.T
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    view = camera.eye - quads.mean(axis=1)
    distance = np.linalg.norm(view, axis=1)
    view /= distance[:, None]
    facing = (normals * view).sum(axis=1)
    mirrored_height = 2 * facing * normals[:, 2] - view[:, 2]  # up to 1: it mirrors the ceiling
    room = np.interp(mirrored_height, ROOM_HEIGHTS, light.room)
    diffuse = 0.9 - light.sun * (1 - normals[:, 2]) + normals[:, :2] @ light.side
    fresnel = 0.3 + 0.7 * (1 - np.clip(facing, 0, 1)) ** 3
    specular = 255 * 0.7 * shell.shine * fresnel * room
    colors = shell.colors * diffuse[:, None] + specular[:, None]
    order = np.argsort(-distance)
    return order[facing[order] > 0], np.clip(colors, 0, 255)


def _paint_side(canvas: Canvas, car: Car, side: int, near: bool) -> None:
    """Paint what is mounted on one side: wheels, step and mirror."""
    for x in car.wheels.axles * car.length:
        _paint_wheel(canvas, car, x, side, near)
    half_width = car.width / 2
    if car.extras.side_steps:
        center = [0, side * (half_width + 0.03), car.clearance + 0.06]
        canvas.fill_hull(box(center, [0.5 * car.length, 0.12, 0.05]), DARK)
    mirror = np.array([(car.windows.front_foot - 0.5) * car.length - 0.18, 0, car.belt + 0.08])
    arm = box(mirror + [0.02, side * half_width, -0.05], [0.06, 0.2, 0.05])
    canvas.fill_hull(arm, DARK)
    housing = box(mirror + [0, side * (half_width + 0.12), 0.02], [0.13, 0.20, 0.15])
    canvas.fill_hull(housing, car.finish.paint * 0.75, MIRRORS)


def _paint_wheel(canvas: Canvas, car: Car, x: float, side: int, near: bool) -> None:
    """Paint the wheel of the axle at x."""
    radius = car.wheels.radius
    center = np.array([x, side * (car.width / 2 - 0.015), radius])
    inner_center = center - [0, side * 0.24, 0]
    if near:
        arch = disc(center + [0, side * 0.01, 0.02], radius * 1.15)
        canvas.fill(np.maximum(arch, [-9, -9, car.clearance + 0.05]), DARK)
    tread = np.concatenate([disc(center, radius), disc(inner_center, radius)])
    canvas.fill_hull(tread, TIRE, WHEELS)
    if near:
        rim = car.wheels.rim
        canvas.fill(disc(center, radius * 0.97), TIRE_SIDE, WHEELS)
        canvas.fill(disc(center, radius * 0.70), [rim] * 3, WHEELS)
        for turn in np.arange(car.wheels.spokes) * 2 * np.pi / car.wheels.spokes + x:
            gap = _gap_between_spokes(turn, car.wheels.spokes)
            canvas.fill(center + gap * radius, [rim * 0.25] * 3, WHEELS)


def _gap_between_spokes(turn: float, spokes: int) -> np.ndarray:
    """Return corners (4, 3) in the x-z plane, in units of the wheel's radius; turn in radians."""
    width = 1.1 / spokes
    corners = ((-0.06, 0.2), (0.06, 0.2), (width, 0.62), (-width, 0.62))  # angle, radius
    points = [(np.cos(turn + angle) * r, 0, np.sin(turn + angle) * r) for angle, r in corners]
    return np.array(points)


def _paint_antenna(canvas: Canvas, car: Car, thickness: int) -> None:
    height = car.extras.antenna
    foot = np.array([(car.windows.rear_top + 0.03 - 0.5) * car.length, 0, car.height])
    tip = foot + [-0.5 * height, 0, height]
    canvas.draw_line(np.array([foot, tip]), ANTENNA, thickness)


def _paint_door_gaps(canvas: Canvas, car: Car, side: int, thickness: int) -> None:
    # From below upward: how far to the side, as a share of the width, and how high.
    outline = ((0.493, car.clearance + 0.15), (0.5, 0.6 * car.belt), (0.49, 0.93 * car.belt))
    for door in car.extras.doors:
        gap = [(door * car.length, side * car.width * share, z) for share, z in outline]
        canvas.draw_line(np.array(gap), car.finish.paint * 0.5, thickness)


def _paint_roof_rails(canvas: Canvas, car: Car, thickness: int) -> None:
    rear = (car.windows.rear_top + 0.03 - 0.5) * car.length
    front = (car.windows.front_top - 0.06 - 0.5) * car.length
    z = car.height + 0.01
    for side in SIDES:
        y = side * (car.width / 2 - car.lean * (car.height - car.belt) - 0.06)
        canvas.draw_line(np.array([(rear, y, z), (front, y, z)]), ROOF_RAIL, thickness)


def _paint_spoiler(canvas: Canvas, car: Car) -> None:
    x = (car.windows.rear_top - 0.5) * car.length - 0.05
    spoiler = box([x, 0, car.height - 0.02], [0.25, 0.7 * car.width, 0.04])
    canvas.fill_hull(spoiler, car.finish.paint * 0.8)


def _paint_plate(canvas: Canvas, car: Car, end: int) -> None:
    plate = box([end * 0.497 * car.length, 0, 0.42 * car.belt], [0.01, 0.42, 0.13])
    canvas.fill_hull(plate, PLATE)
