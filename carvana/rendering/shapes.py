"""Renders studio photographs of cars with exact masks, named and stored as Carvana's.

A car is a few lofted surfaces (body, cabin) and round parts (wheels), turned through 16 angles, projected
and painted back to front. The mask is the same faces in one colour. Lengths are in metres; x points
forward, y to the car's left, z up; the car stands on z = 0 around the origin.
"""

import hashlib
import multiprocessing
import shutil
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from pictures import Labels, UserError, brief, colours_of, write_picture

ANGLES = 16  # a turntable's stops, 22.5 degrees apart
OVERSAMPLING = 2  # everything is painted at twice the size and averaged

# Bodies: length, width and height in metres (lowest and highest), then along the length (0 rear, 1 front):
# foot of the rear window, its top, top of the windscreen, its foot; then belt line over height, ground clearance.
BODIES = {
    "saloon": ((4.4, 5.0), (1.75, 1.9), (1.40, 1.50), (0.13, 0.27, 0.52, 0.70), 0.62, 0.16),
    "hatchback": ((3.6, 4.4), (1.65, 1.8), (1.45, 1.58), (0.02, 0.10, 0.54, 0.76), 0.60, 0.16),
    "estate": ((4.4, 4.9), (1.75, 1.9), (1.45, 1.55), (0.02, 0.08, 0.52, 0.71), 0.61, 0.16),
    "suv": ((4.3, 5.1), (1.80, 2.05), (1.65, 1.90), (0.02, 0.07, 0.54, 0.72), 0.60, 0.24),
    "pickup": ((5.2, 5.9), (1.85, 2.05), (1.75, 1.95), (0.39, 0.42, 0.58, 0.71), 0.60, 0.28),
    "van": ((4.7, 5.3), (1.90, 2.05), (1.75, 2.00), (0.02, 0.04, 0.66, 0.84), 0.55, 0.18),
    "coupe": ((4.1, 4.7), (1.75, 1.9), (1.25, 1.38), (0.07, 0.28, 0.49, 0.67), 0.64, 0.13),
}
BODY_SHARES = (0.28, 0.16, 0.06, 0.26, 0.09, 0.07, 0.08)
PAINTS = (  # RGB, share: streets are white, black and grey
    ((240, 240, 238), 0.27),
    ((20, 21, 23), 0.17),
    ((66, 69, 73), 0.12),
    ((168, 171, 174), 0.17),
    ((120, 22, 26), 0.09),
    ((28, 48, 98), 0.06),
    ((104, 96, 80), 0.04),
    ((38, 62, 48), 0.02),
    ((196, 120, 30), 0.02),
    ((70, 130, 176), 0.04),
)
GLASS, TYRE, DARK = (38, 44, 48), (27, 27, 28), (14, 14, 15)
PARTS = ("background", "body", "glass", "wheels")  # what render() tells apart where it is asked to
BODY, WINDOW, WHEEL = 0, 1, 2  # less 1; while a car is painted, what its alpha falls short of 255


# ---------------------------------------------------------------- the car


def new_car(rng):
    """Everything that is drawn about one car and the studio it stands in, as a plain dict."""
    body = rng.choice(list(BODIES), p=BODY_SHARES)
    length, width, height, along, belt, clearance = BODIES[body]
    colours, shares = zip(*PAINTS)
    paint = np.array(colours[rng.choice(len(PAINTS), p=np.array(shares) / sum(shares))], float)
    tall = body in ("suv", "pickup")
    return {
        "body": body,
        "length": rng.uniform(*length),
        "width": rng.uniform(*width),
        "height": rng.uniform(*height),
        "along": np.array(along) + rng.uniform(-0.02, 0.02, 4) * (np.array(along) > 0.02),
        "belt": belt + rng.uniform(-0.025, 0.025),
        "clearance": clearance + rng.uniform(-0.03, 0.04),
        # roundness of both ends seen from above (an exponent), lean of the windows inwards, bulge of roof and bonnet in metres
        "nose": rng.uniform(4.5, 8),
        "tail": rng.uniform(6, 10) * (2 if along[0] < 0.05 else 1),
        "tumble": rng.uniform(0.25, 0.38),
        "crown": rng.uniform(0.02, 0.06),
        # what light does to it
        "paint": np.clip(paint * rng.uniform(0.85, 1.12) + rng.uniform(-10, 10, 3), 3, 250),
        "gloss": rng.uniform(0.15, 0.9),
        "roof": rng.choice(["paint", "paint", "paint", "dark"]),
        "bumper": rng.choice(["paint", "paint", "dark"]),
        "tint": rng.uniform(0.4, 4.2),
        # wheels: radius in metres, grey of the rims, places over the length, 0 being the middle
        "wheel": rng.uniform(0.30, 0.36) + 0.05 * tall,
        "rim": rng.choice([60.0, 130.0, 175.0, 205.0]),
        "spokes": int(rng.integers(5, 11)),
        "axles": np.array([-0.29, 0.31]) + rng.uniform(-0.02, 0.02, 2),
        # what is on it; the antenna's length in metres
        "antenna": rng.choice([0.0, 0.0, 0.0, 0.08, 0.08, 0.2, 0.5]),
        "rails": body in ("suv", "estate") and rng.random() < 0.6,
        "step": tall and rng.random() < 0.4,
        "spoiler": body in ("hatchback", "suv", "coupe") and rng.random() < 0.4,
        "plate": rng.random() < 0.7,
        "doors": [(-0.14, 0.04, 0.2), (-0.02, 0.2)][rng.integers(2)],
    }


def loft(left):
    """Points (stations, ring, 3) of the car's left side -> quads (n, 4, 3) of both sides, counter-clockwise from outside."""
    right = left[:, ::-1] * [1, -1, 1]
    return np.concatenate(
        [
            np.stack([p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]], axis=2).reshape(-1, 4, 3)
            for p in (left, right)
        ]
    )


def smooth(x, points, width):
    """Piecewise linear through (x, z) points, its corners rounded over `width`."""
    xs, zs = np.array(points).T
    shifts = np.linspace(-width, width, 9)
    return np.mean([np.interp(x + shift, xs, zs) for shift in shifts], axis=0)


def body_shell(car):
    """The lower body, from bumper to bumper and from sill to belt line -> quads, and their colours, shine and parts."""
    length, belt = car["length"], car["belt"] * car["height"]
    u = (1 - np.cos(np.linspace(0, np.pi, 45))) / 2  # denser towards the ends
    foot_rear, _, _, foot_front = car["along"]
    tail = (0.84 if foot_rear > 0.05 else 0.99) * belt  # a boot falls off, a tailgate does not
    top = smooth(
        u,
        [
            (-1, tail),
            (0.0, tail),
            (0.03, 0.98 * belt),
            (max(foot_rear, 0.04), belt),
            (foot_front, belt),
            (0.93, 0.86 * belt),
            (0.99, 0.70 * belt),
            (1, 0.62 * belt),
            (2, 0.62 * belt),
        ],
        0.025,
    )
    end = np.where(u > 0.5, car["nose"], car["tail"])
    half = car["width"] / 2 * (1 - np.abs(2 * u - 1) ** end) ** (1 / np.where(u > 0.5, 2.6, 3.0))
    bottom = np.minimum(car["clearance"] + 0.16 * np.abs(2 * u - 1) ** 7, top - 0.05)
    across = np.array(
        [0, 0.55, 0.9, 0.965, 0.99, 1.0, 1.0, 0.985, 0.95, 0.88, 0.7, 0.35, 0]
    )  # half-width, from the sill up and inwards
    up = np.array([0, 0, 0.0, 0.06, 0.2, 0.4, 0.6, 0.8, 0.93, 0.985, 1.0, 1.0, 1.0])
    y = half[:, None] * across
    z = bottom[:, None] + (top - bottom)[:, None] * up
    z[:, -3:] += car["crown"] * np.array([0.3, 0.8, 1]) * (half / half.max())[:, None]
    x = np.repeat(((u - 0.5) * length)[:, None], len(up), 1)
    side = np.stack([x, y, z], axis=2)
    quads = loft(side)
    centre = quads.mean(axis=1)
    where, out = centre[:, 0] / length + 0.5, np.abs(centre[:, 1]) / (car["width"] / 2)
    high = (centre[:, 2] - car["clearance"]) / (belt - car["clearance"])
    colours = np.tile(car["paint"], (len(quads), 1))
    shine = np.full(len(quads), car["gloss"])

    def put(which, colour, gloss):
        colours[which], shine[which] = colour, gloss

    put(high < 0.16, DARK, 0.05)
    if car["bumper"] == "dark":
        put((high < 0.35) & ((where > 0.93) | (where < 0.06)), (40, 41, 42), 0.1)
    put((where > 0.955) & (out < 0.5) & (high > 0.28) & (high < 0.72), DARK, 0.1)  # grille
    put(
        (where > 0.90) & (out > 0.5) & (out < 0.93) & (high > 0.58) & (high < 0.82),
        (205, 210, 214),
        0.5,
    )  # headlamps
    put(
        (where < 0.06) & (out > 0.55) & (high > 0.55) & (high < 0.92), (122, 14, 16), 0.35
    )  # tail lamps
    if car["body"] == "pickup":
        put(
            (where < foot_rear - 0.02) & (where > 0.03) & (out < 0.86) & (high > 0.95),
            (30, 30, 31),
            0.05,
        )  # the bed
    return quads, colours, shine, np.full(len(quads), BODY)


def cabin_shell(car):
    """Windows and roof -> quads, and their colours, shine and parts."""
    length, height, belt = car["length"], car["height"], car["belt"] * car["height"]
    foot_rear, top_rear, top_front, foot_front = car["along"]
    u = np.unique(np.concatenate([np.linspace(foot_rear, foot_front, 30), [top_rear, top_front]]))
    foot = belt - 0.08  # inside the body
    top = smooth(
        u,
        [
            (foot_rear - 1, foot),
            (foot_rear, foot),
            (top_rear, height - 0.03),
            ((top_rear + top_front) / 2, height),
            (top_front, height - 0.02),
            (foot_front, foot),
            (2, foot),
        ],
        0.02,
    )
    top[[0, -1]] = foot  # closed at both ends
    plan = (1 - np.abs(2 * u - 1) ** 16) ** (1 / 3)
    base = car["width"] / 2 * 0.965 * plan
    rise = top - foot
    y_roof = base - car["tumble"] * rise
    across = np.array(
        [[1, 0], [0.92, 0.08], [0.12, 0.88], [0.03, 0.97], [0, 0.93], [0, 0.6], [0, 0.3], [0, 0]]
    )  # of base, of roof
    up = np.array([0, 0.1, 0.84, 0.95, 0.99, 1, 1, 1.0])
    y = base[:, None] * across[:, 0] + y_roof[:, None] * across[:, 1]
    z = foot + rise[:, None] * up
    z[:, -3:] += car["crown"] * np.array([0.4, 0.8, 1]) * np.minimum(rise / 0.3, 1)[:, None]
    side = np.stack([np.repeat(((u - 0.5) * length)[:, None], len(up), 1), y, z], axis=2)
    quads = loft(side)
    ring = np.tile(np.arange(len(up) - 1), len(u) - 1)
    ring = np.concatenate([ring, len(up) - 2 - ring])  # the right side is lofted from the roof down
    where = quads[:, :, 0].mean(axis=1) / length + 0.5
    roof = car["paint"] if car["roof"] == "paint" else np.array(DARK, float)
    colours = np.tile(car["paint"], (len(quads), 1))
    shine = np.full(len(quads), car["gloss"])
    colours[ring >= 3] = roof
    pillars = [top_front - 0.5 * (top_front - top_rear), top_rear + 0.06]
    near_pillar = np.min([np.abs(where - pillar) for pillar in pillars], axis=0) < 0.012
    window = (
        (ring == 1)
        & ~near_pillar
        & (where > foot_rear + 0.35 * (top_rear - foot_rear))
        & (where < foot_front - 0.35 * (foot_front - top_front))
    )
    if car["body"] == "van":
        window &= where > 0.45
    screens = (ring >= 4) & (
        (where > top_front + 0.01) & (where < foot_front - 0.01)
        | (where < top_rear - 0.01) & (where > foot_rear + 0.004)
    )
    colours[window | screens], shine[window | screens] = np.array(GLASS) * car["tint"], 0.75
    colours[(ring == 1) & near_pillar] = np.array(DARK)
    return quads, colours, shine, np.where(window | screens, WINDOW, BODY)


def box(centre, size):
    """An axis-parallel box -> its eight corners (8, 3)."""
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) / 2
    return corners * size + centre


def disc(centre, radius, n=36):
    """A circle in the x-z plane -> points (n, 3)."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(turn) * radius, np.zeros(n), np.sin(turn) * radius], axis=1) + centre


# ---------------------------------------------------------------- the camera


def new_studio(rng):
    """Camera, light, wall and floor, as a plain dict. Lengths on the picture are shares of its width or height."""
    level = rng.uniform(200, 250)
    tint = rng.normal(0, 3, 3)
    return {
        # the camera: metres, degrees
        "distance": rng.uniform(5.2, 8.0),
        "height": rng.uniform(1.15, 2.1),
        "aim": rng.uniform(0.45, 0.9),
        "zoom": rng.uniform(0.86, 1.35),
        "shift": rng.uniform(-0.05, 0.05),
        "turn": rng.uniform(-8, 8),
        "roll": rng.normal(0, 0.006),
        # wall and floor, the line between them, and how evenly they are lit
        "wall": level + tint + rng.normal(0, 1.5, 3),
        "floor": level * rng.uniform(0.70, 0.98) + tint + rng.normal(0, 3, 3),
        "horizon": rng.uniform(0.33, 0.47),
        "bend": rng.uniform(-0.03, 0.10),
        "lean": rng.uniform(-0.05, 0.05),
        "edge": 10 ** rng.uniform(-2.6, -1.3),
        "uneven": rng.uniform(0.0, 0.05),
        "vignette": rng.uniform(0.0, 0.25),
        "falloff": rng.uniform(-0.25, 0.12),
        # what stands out on them: rings of the turntable (metres, darkness), a kerb in front, letters on the wall
        "rings": [
            (rng.uniform(2.4, 3.4), rng.uniform(0.03, 0.35)) for _ in range(rng.integers(0, 4))
        ],
        "kerb": rng.choice([1.0, 1.0, 1.0, rng.uniform(0.9, 0.97)]),
        "kerb_grey": rng.choice([30.0, 90.0, 160.0, 235.0]),
        "sign": rng.random() < 0.9,
        "word": "".join(rng.choice(list("AABCDEFGHIKLMNNOPRSTUVVWXYZ"), rng.integers(4, 9))),
        "sign_grey": rng.uniform(50, 190),
        "sign_slope": rng.normal(0, 40, 2),
        "sign_opacity": rng.uniform(0.6, 1.0),
        "sign_width": rng.uniform(0.55, 1.05),
        "sign_x": rng.uniform(-0.05, 0.3),
        "sign_lift": rng.choice([0.0, 0.0, rng.uniform(0, 0.1)]),
        "sign_bold": rng.uniform(0, 0.07, 2),
        "sign_gap": rng.uniform(0.02, 0.5),
        # light: under the car and around it, mirrored by the floor, mirrored by the paint (by height), from above, from the side
        "shadow": rng.uniform(0.3, 0.9),
        "spread": rng.uniform(0.01, 0.05),
        "light": rng.normal(0, 0.5, 2),
        "reflection": max(0.0, rng.uniform(-0.1, 0.3)),
        "room": np.array([0.25, 0.40, 0.70, 0.95, 0.75, 1.0]) * rng.uniform(0.6, 1.2, 6),
        "sun": rng.uniform(0.05, 0.5),
        "side": rng.normal(0, 0.12, 2),
        # the picture: exposure, noise in levels, blur, JPEG quality
        "gain": rng.uniform(0.86, 1.12),
        "noise": rng.uniform(0.3, 3.0),
        "softness": rng.uniform(0.2, 0.7),
        "quality": int(rng.integers(82, 96)),
    }


def camera(studio, angle, size):
    """A plain dict of what `project` needs: eye, axes (right, down, forward), scale and centre in pixels, the car's turn."""
    turn = np.radians(angle * 360 / ANGLES + studio["turn"])
    eye = np.array([studio["distance"], 0, studio["height"]])
    forward = np.array([0, 0, studio["aim"]]) - eye
    forward /= np.linalg.norm(forward)
    right = np.array([0, 1, 0]) + studio["roll"] * np.array([0, 0, 1])
    right /= np.linalg.norm(right)
    return {
        "turn": np.array(
            [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        ),
        "eye": eye,
        "axes": np.stack([right, np.cross(forward, right), forward]),
        "scale": size[1] * studio["zoom"] * studio["distance"] / 7.2,
        "centre": np.array([size[1] * (0.5 + studio["shift"]), size[0] * 0.54]),
    }


def project(cam, points, turned=True):
    """Points (..., 3) of the car (of the studio, where not turned) -> pixels (..., 2)."""
    seen = ((points @ cam["turn"].T if turned else points) - cam["eye"]) @ cam["axes"].T
    return seen[..., :2] / np.maximum(seen[..., 2:], 0.1) * cam["scale"] + cam["centre"]


# ---------------------------------------------------------------- painting


def fill(canvas, pixels, colour, part=BODY):
    """A convex polygon of pixels (n, 2), at an eighth of a pixel."""
    cv2.fillConvexPoly(
        canvas, np.round(pixels * 8).astype(np.int32), (*map(float, colour), 255.0 - part), shift=3
    )


def fill_hull(canvas, cam, points, colour, part=BODY):
    fill(canvas, cv2.convexHull(project(cam, points).astype(np.float32))[:, 0], colour, part)


def shaded(quads, colours, shine, cam, studio):
    """-> which quads face the camera, back to front, and their colours in this light."""
    turned = quads @ cam["turn"].T
    normals = np.cross(turned[:, 2] - turned[:, 0], turned[:, 3] - turned[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    view = cam["eye"] - turned.mean(axis=1)
    far = np.linalg.norm(view, axis=1)
    view /= far[:, None]
    facing = (normals * view).sum(axis=1)
    mirrored = 2 * facing * normals[:, 2] - view[:, 2]  # how high the reflected ray looks
    room = np.interp(mirrored, [-1, -0.2, 0.0, 0.2, 0.5, 1], studio["room"])
    diffuse = 0.9 - studio["sun"] * (1 - normals[:, 2]) + normals[:, :2] @ studio["side"]
    fresnel = 0.3 + 0.7 * (1 - np.clip(facing, 0, 1)) ** 3
    colours = colours * diffuse[:, None] + (255 * 0.7 * shine * fresnel * room)[:, None]
    order = np.argsort(-far)
    return order[facing[order] > 0], np.clip(colours, 0, 255)


def paint_wheel(canvas, cam, car, x, side, near):
    radius, outer = car["wheel"], car["width"] / 2 - 0.015
    centre = np.array([x, side * outer, radius])
    inner = centre - [0, side * 0.24, 0]
    if near:
        arch = disc(centre + [0, side * 0.01, 0.02], radius * 1.15)
        fill(canvas, project(cam, np.maximum(arch, [-9, -9, car["clearance"] + 0.05])), DARK)
    fill_hull(canvas, cam, np.concatenate([disc(centre, radius), disc(inner, radius)]), TYRE, WHEEL)
    if near:
        fill(canvas, project(cam, disc(centre, radius * 0.97)), np.add(TYRE, 10), WHEEL)
        fill(canvas, project(cam, disc(centre, radius * 0.70)), [car["rim"]] * 3, WHEEL)
        for turn in np.arange(car["spokes"]) * 2 * np.pi / car["spokes"] + x:
            wide = 1.1 / car["spokes"]
            gap = np.array(
                [
                    [np.cos(turn + d) * r, 0, np.sin(turn + d) * r]
                    for d, r in ((-0.06, 0.2), (0.06, 0.2), (wide, 0.62), (-wide, 0.62))
                ]
            )
            fill(canvas, project(cam, centre + gap * radius), [car["rim"] * 0.25] * 3, WHEEL)


def paint_car(car, studio, cam, size, flip=1):
    """The car -> premultiplied RGBA uint8 (H, W, 4), and uint8 (H, W) of its parts: indices into PARTS. flip = -1 paints what the floor reflects."""
    canvas = np.zeros((*size, 4), np.uint8)
    cam = cam | {"turn": cam["turn"] * [1, 1, flip]}
    length, width, height, belt = (
        car["length"],
        car["width"],
        car["height"],
        car["belt"] * car["height"],
    )
    eye = cam["turn"].T @ cam["eye"]  # as the car sees it
    sides = {
        side: eye[1] * side > width / 2 + 0.4 for side in (-1, 1)
    }  # at a grazing look the body hides its wheels
    axles = car["axles"] * length
    mirror = np.array([(car["along"][3] - 0.5) * length - 0.18, 0, belt + 0.08])
    scale = max(1, round(size[1] / 700))

    def extras(near):
        for side in (side for side, is_near in sides.items() if is_near == near):
            for x in axles:
                paint_wheel(canvas, cam, car, x, side, near)
            if car["step"]:
                fill_hull(
                    canvas,
                    cam,
                    box(
                        [0, side * (width / 2 + 0.03), car["clearance"] + 0.06],
                        [0.5 * length, 0.12, 0.05],
                    ),
                    DARK,
                )
            shade = car["paint"] * 0.75
            fill_hull(
                canvas,
                cam,
                box(mirror + [0.02, side * (width / 2 + 0.00), -0.05], [0.06, 0.2, 0.05]),
                DARK,
            )
            fill_hull(
                canvas,
                cam,
                box(mirror + [0, side * (width / 2 + 0.12), 0.02], [0.13, 0.20, 0.15]),
                shade,
            )

    extras(near=False)
    if car["antenna"]:
        foot = np.array([(car["along"][1] + 0.03 - 0.5) * length, 0, height])
        line = project(cam, np.array([foot, foot + [-0.5 * car["antenna"], 0, car["antenna"]]]))
        cv2.line(
            canvas,
            *np.round(line).astype(int).tolist(),
            (30.0, 30.0, 30.0, 255.0),
            scale * OVERSAMPLING // 2 + 1,
        )
    shells = [np.concatenate(parts) for parts in zip(body_shell(car), cabin_shell(car))]
    quads = shells[0] if flip == 1 else shells[0][:, ::-1]
    order, colours = shaded(quads, *shells[1:3], cam, studio)
    for pixels, colour, part in zip(project(cam, quads[order]), colours[order], shells[3][order]):
        fill(canvas, pixels, colour, part)
    for side in (side for side, is_near in sides.items() if is_near):
        for door in car["doors"]:
            heights = ((0.493, car["clearance"] + 0.15), (0.5, 0.6 * belt), (0.49, 0.93 * belt))
            line = np.array([[door * length, side * width * at, z] for at, z in heights])
            cv2.polylines(
                canvas,
                [np.round(project(cam, line)).astype(np.int32)],
                False,
                (*(car["paint"] * 0.5), 255.0),
                scale,
            )
    if car["rails"]:
        for side in (-1, 1):
            y = side * (width / 2 - car["tumble"] * (height - belt) - 0.06)
            ends = project(
                cam,
                np.array(
                    [
                        [(car["along"][k] + inset - 0.5) * length, y, height + 0.01]
                        for k, inset in ((1, 0.03), (2, -0.06))
                    ]
                ),
            )
            cv2.line(
                canvas, *np.round(ends).astype(int).tolist(), (70.0, 70.0, 72.0, 255.0), 2 * scale
            )
    if car["spoiler"]:
        fill_hull(
            canvas,
            cam,
            box(
                [(car["along"][1] - 0.5) * length - 0.05, 0, height - 0.02],
                [0.25, 0.7 * width, 0.04],
            ),
            car["paint"] * 0.8,
        )
    for end in (-1, 1):  # the plates, on the nose and on the tail
        if car["plate"] and eye[0] * end > 0.5 * length:
            fill_hull(
                canvas,
                cam,
                box([end * 0.497 * length, 0, 0.42 * belt], [0.01, 0.42, 0.13]),
                (222, 228, 236),
            )
    extras(near=True)
    parts = np.where(canvas[..., 3] > 0, 255 - canvas[..., 3] + 1, 0).astype(np.uint8)
    canvas[..., 3][parts > 0] = 255
    return canvas, parts


# ---------------------------------------------------------------- the studio


def sign(studio):
    """The letters on the wall -> float32 (h, w, 2): opacity in [0, 1] and grey level, for a picture 1000 pixels wide."""
    font = ImageFont.load_default(150)
    strokes = [
        round(150 * studio["sign_bold"][i * 2 // len(studio["word"])])
        for i in range(len(studio["word"]))
    ]
    boxes = [
        font.getbbox(letter, stroke_width=stroke, anchor="ls")
        for letter, stroke in zip(studio["word"], strokes)
    ]
    gap = 150 * studio["sign_gap"]
    starts = np.cumsum([20] + [box[2] - box[0] + gap for box in boxes])
    page = Image.new("L", (int(starts[-1]) + 20, 200))
    for letter, stroke, start, box in zip(studio["word"], strokes, starts, boxes):
        ImageDraw.Draw(page).text(
            (start - box[0], 180), letter, 255, font, stroke_width=stroke, anchor="ls"
        )
    wide = max(1, int(1000 * studio["sign_width"]))
    opacity = (
        np.asarray(
            page.resize((wide, max(1, wide * page.height // page.width)), Image.Resampling.HAMMING)
        ).astype(np.float32)
        / 255
    )
    y, x = (
        np.mgrid[0 : opacity.shape[0], 0 : opacity.shape[1]].astype(np.float32)
        / np.array(opacity.shape, np.float32)[:, None, None]
    )
    return np.dstack(
        [
            opacity,
            studio["sign_grey"]
            + studio["sign_slope"][0] * (y - 0.5)
            + studio["sign_slope"][1] * (x - 0.5),
        ]
    )


def paint_studio(studio, cam, car, size, rng):
    """Wall, sign, floor, turntable, shadow -> float32 (H, W, 3)."""
    height, width = size
    small = (max(2, height // 4), max(2, width // 4))
    y, x = (
        np.mgrid[0 : small[0], 0 : small[1]].astype(np.float32)
        / np.array(small, np.float32)[:, None, None]
    )
    horizon = studio["horizon"] + studio["bend"] * (2 * x - 1) ** 2 + studio["lean"] * (2 * x - 1)
    floor = 1 / (1 + np.exp(-np.clip((y - horizon) / studio["edge"] * 4, -30, 30)))
    uneven = cv2.resize(
        rng.normal(0, 1, (5, 6)).astype(np.float32), small[::-1], interpolation=cv2.INTER_CUBIC
    )
    light = (
        1
        + studio["uneven"] * uneven
        - studio["vignette"] * ((x - 0.5) ** 2 + (y - 0.45) ** 2)
        + studio["falloff"] * (y - 0.7) * floor
    )
    wall = studio["wall"] * (1 - floor)[..., None] + studio["floor"] * floor[..., None]
    scene = cv2.resize((wall * light[..., None]).astype(np.float32), (width, height))
    floor = cv2.resize(floor, (width, height))[..., None]

    if studio["sign"]:
        letters = cv2.resize(
            sign(studio), None, fx=width / 1000, fy=width / 1000, interpolation=cv2.INTER_AREA
        )
        left, foot = (
            int(width * studio["sign_x"]),
            int(height * (studio["horizon"] + 0.01 - studio["sign_lift"])),
        )
        page = np.zeros((height, width, 2), np.float32)  # opacity, grey
        shown = page[
            max(0, foot - len(letters)) : max(0, foot), max(0, left) : left + letters.shape[1]
        ]
        if shown.size:
            shown[:] = letters[-len(shown) :, max(0, -left) :][:, : shown.shape[1]]
        opacity, grey = np.split(page, 2, axis=2)
        opacity = opacity * studio["sign_opacity"] * (1 - floor)
        scene = scene * (1 - opacity) + grey * opacity
    for radius, shade in studio["rings"]:
        turn = np.linspace(0, 2 * np.pi, 90)
        circle = (
            project(
                cam,
                np.stack([np.cos(turn) * radius, np.sin(turn) * radius, 0 * turn], axis=1),
                turned=False,
            )
            / OVERSAMPLING
        )
        layer = cv2.polylines(
            np.zeros(size, np.uint8),
            [np.round(circle * 8).astype(np.int32)],
            True,
            255,
            max(1, width // 400),
            cv2.LINE_AA,
            3,
        )
        scene *= 1 - shade * layer[..., None].astype(np.float32) / 255
    if studio["kerb"] < 1:
        rows = np.arange(height)[:, None] / height + 0.02 * (np.arange(width) / width - 0.5) ** 2
        scene[rows > studio["kerb"]] = studio["kerb_grey"]
        scene[rows > studio["kerb"] + 0.03] *= 0.6

    dark = np.zeros(small, np.float32)
    length, broad = car["length"] * 0.47, car["width"] * 0.46
    quarter = [(1, 0), (0.96, 0.85), (0.8, 1)]
    corners = (
        [(i, j) for i, j in quarter]
        + [(-i, j) for i, j in quarter[::-1]]
        + [(-i, -j) for i, j in quarter]
        + [(i, -j) for i, j in quarter[::-1]]
    )
    corners = np.array([[i * length, j * broad, 0] for i, j in corners])
    for grow, depth, blur in (
        (1.0, studio["shadow"], studio["spread"] * 0.5),
        (1.12, 0.4 * studio["shadow"], studio["spread"] * 2.5),
    ):
        footprint = (
            project(cam, corners * grow + [*(studio["light"] * (grow - 1) * 3), 0])
            * np.array(small[::-1])
            / np.array(size[::-1])
            / OVERSAMPLING
        )
        layer = cv2.fillPoly(
            np.zeros(small, np.float32),
            [np.round(footprint * 8).astype(np.int32)],
            1.0,
            cv2.LINE_8,
            3,
        )
        dark = np.maximum(dark, depth * cv2.GaussianBlur(layer, (0, 0), max(0.5, blur * small[1])))
    return scene * (1 - cv2.resize(dark, (width, height)))[..., None]


def render(car, studio, angle, size, rng, parts=False):
    """One photograph (H, W, 3) uint8 RGB and its exact mask (H, W): bool, or with parts uint8, indices into PARTS. angle: 0 to 15, from the front."""
    fine = tuple(OVERSAMPLING * side for side in size)
    cam = camera(studio, angle, fine)
    car_fine, parts_fine = paint_car(car, studio, cam, fine)
    painted = cv2.resize(car_fine, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    scene = paint_studio(studio, cam, car, size, rng)
    if studio["reflection"] > 0.02:
        half = camera(studio, angle, size)
        image = cv2.GaussianBlur(
            paint_car(car, studio, half, size, flip=-1)[0], (0, 0), max(0.5, size[1] / 250)
        ).astype(np.float32)
        scene += studio["reflection"] * (image[..., :3] - scene * image[..., 3:] / 255)
    covered = painted[..., 3:] / 255
    picture = (scene * (1 - covered) + painted[..., :3]) * studio["gain"]
    picture = cv2.GaussianBlur(picture, (0, 0), studio["softness"] * (0.6 + size[1] / 1000))
    picture += rng.normal(0, studio["noise"], size).astype(np.float32)[..., None]
    mask = covered[..., 0] >= 0.5
    if parts:
        shares = [
            cv2.resize(
                (parts_fine == index).view(np.uint8) * np.uint8(255),
                size[::-1],
                interpolation=cv2.INTER_AREA,
            )
            for index in range(1, len(PARTS))
        ]
        mask = np.where(mask, 1 + np.argmax(shares, axis=0), 0).astype(np.uint8)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


# ---------------------------------------------------------------- a data set of them


def render_set(out, cars=28, val_cars=4, angles=10, size=(320, 480), seed=0, parts=False):
    """Render cars x angles pairs of size (H, W) into out/train_images, train_masks, val_images and val_masks.

    The last val_cars cars are for validation. The same files for a seed (and versions of the libraries); a car's
    angles are spread over the full turn. parts: masks of PARTS instead of cars. out appears when all is done, or not at all."""
    out = Path(out)
    staging = out.with_name(f".{out.name}-rendering")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        jobs = []
        for number in range(cars):
            part = "val" if number >= cars - val_cars else "train"
            folders = [staging / f"{part}_{kind}" for kind in ("images", "masks")]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            jobs += [
                (
                    seed,
                    number,
                    (number + round(i * ANGLES / angles)) % ANGLES + 1,
                    size,
                    parts,
                    *folders,
                )
                for i in range(angles)
            ]
        start = (
            "fork" if sys.platform == "linux" else "spawn"
        )  # spawned processes would import all of the caller first
        with ProcessPoolExecutor(
            None, multiprocessing.get_context(start), signal.signal, (signal.SIGINT, signal.SIG_IGN)
        ) as pool:
            for _ in tqdm(
                pool.map(render_pair, jobs, chunksize=4),
                total=len(jobs),
                desc="rendering",
                unit=" images",
            ):
                pass
        staging.rename(out)
    except (OSError, BrokenExecutor) as error:
        raise UserError(
            f"{out} could not be rendered ({brief(error)}); free some space or memory, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def render_pair(job):
    """Write one photograph, <12 hex>_<01..16>.jpg, and its mask, <12 hex>_<01..16>_mask.gif (of parts .png)."""
    seed, number, stop, size, parts, images, masks = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, number])
    car, studio = new_car(rng), new_studio(rng)
    picture, mask = render(
        car, studio, stop - 1, size, np.random.default_rng([seed, number, stop]), parts
    )
    name = f"{hashlib.sha256(f'rendered {seed} {number}'.encode()).hexdigest()[:12]}_{stop:02d}"
    write_picture(Image.fromarray(picture), images / f"{name}.jpg", quality=studio["quality"])
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255] if not parts else colours_of(Labels(PARTS)).tobytes())
    write_picture(image, masks / f"{name}_mask.{'png' if parts else 'gif'}")
