"""What a car is: the shape of its body, its finish, its wheels, and what is mounted on it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PARTS = ("background", "body", "glass", "wheels")  # what masks of parts tell apart
BODY = 1  # indices into PARTS
GLASS = 2
WHEELS = 3
MIRRORS = 4  # beyond PARTS, whose masks count them as body; scenes tell them apart

Range = tuple[float, float]  # lowest and highest


class Body(NamedTuple):
    """What all cars of one body type have in common."""

    length: Range
    width: Range
    height: Range
    windows: tuple[float, float, float, float]  # as Windows
    belt: float  # height of the line below the windows, as a share of the car's height
    clearance: float  # between the ground and the body


BODIES = {  # length, width, height, windows, belt, clearance
    "sedan": Body((4.4, 5.0), (1.75, 1.9), (1.40, 1.50), (0.13, 0.27, 0.52, 0.70), 0.62, 0.16),
    "hatchback": Body((3.6, 4.4), (1.65, 1.8), (1.45, 1.58), (0.02, 0.10, 0.54, 0.76), 0.60, 0.16),
    "wagon": Body((4.4, 4.9), (1.75, 1.9), (1.45, 1.55), (0.02, 0.08, 0.52, 0.71), 0.61, 0.16),
    "suv": Body((4.3, 5.1), (1.80, 2.05), (1.65, 1.90), (0.02, 0.07, 0.54, 0.72), 0.60, 0.24),
    "pickup": Body((5.2, 5.9), (1.85, 2.05), (1.75, 1.95), (0.39, 0.42, 0.58, 0.71), 0.60, 0.28),
    "van": Body((4.7, 5.3), (1.90, 2.05), (1.75, 2.00), (0.02, 0.04, 0.66, 0.84), 0.55, 0.18),
    "coupe": Body((4.1, 4.7), (1.75, 1.9), (1.25, 1.38), (0.07, 0.28, 0.49, 0.67), 0.64, 0.13),
}
BODY_SHARES = (0.28, 0.16, 0.06, 0.26, 0.09, 0.07, 0.08)  # in the order of BODIES
PAINTS = (  # color, share of cars: streets are white, black and gray
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
DOORS = ((-0.14, 0.04, 0.2), (-0.02, 0.2))  # places of the gaps of four doors, of two


class Windows(NamedTuple):
    """Where the windows begin and end along the car: 0 is its rear end, 1 its front end."""

    rear_foot: float
    rear_top: float
    front_top: float
    front_foot: float


@dataclass(frozen=True)
class Finish:
    """What light does to the car's surfaces."""

    paint: np.ndarray  # (3,) color
    gloss: float  # 0 is matte, 1 a mirror
    dark_roof: bool
    dark_bumpers: bool
    tint: float  # brightness of the windows


@dataclass(frozen=True)
class Wheels:
    """The wheels, which are all alike."""

    radius: float
    rim: float  # gray level
    spokes: int
    axles: np.ndarray  # (2,) places along the car as shares of its length, from its middle


@dataclass(frozen=True)
class Extras:
    """What is mounted on a car, or not."""

    antenna: float  # its height; 0 is none
    roof_rails: bool
    side_steps: bool
    spoiler: bool
    plates: bool
    doors: tuple[float, ...]  # places of their gaps as shares of the length, from the middle


@dataclass(frozen=True)
class Car:
    """A car."""

    body: str  # key of BODIES
    length: float
    width: float
    height: float
    windows: Windows
    belt: float  # height of the line below the windows
    clearance: float  # between the ground and the body
    nose: float  # exponent of the front end's outline seen from above; higher is squarer
    tail: float  # the same of the rear end
    lean: float  # by how much the windows lean inward for each meter of height
    crown: float  # height of the bulge of roof and hood
    finish: Finish
    wheels: Wheels
    extras: Extras


def new_car(rng: np.random.Generator) -> Car:
    """Return a random car."""
    name = str(rng.choice(list(BODIES), p=BODY_SHARES))
    body = BODIES[name]
    paint = _choose_paint(rng)
    length = rng.uniform(*body.length)
    width = rng.uniform(*body.width)
    height = rng.uniform(*body.height)
    return Car(
        body=name,
        length=length,
        width=width,
        height=height,
        windows=_vary_windows(body.windows, rng),
        belt=(body.belt + rng.uniform(-0.025, 0.025)) * height,
        clearance=body.clearance + rng.uniform(-0.03, 0.04),
        nose=rng.uniform(4.5, 8),
        tail=_new_tail(body, rng),
        lean=rng.uniform(0.25, 0.38),
        crown=rng.uniform(0.02, 0.06),
        finish=_new_finish(paint, rng),
        wheels=_new_wheels(name, rng),
        extras=_new_extras(name, rng),
    )


def _choose_paint(rng: np.random.Generator) -> np.ndarray:
    colors, shares = zip(*PAINTS, strict=True)
    index = rng.choice(len(PAINTS), p=np.array(shares) / sum(shares))
    return np.array(colors[index], float)


def _vary_windows(windows: tuple[float, ...], rng: np.random.Generator) -> Windows:
    """Return windows moved a little; what is at the very end of the car stays there."""
    places = np.array(windows)
    return Windows(*(places + rng.uniform(-0.02, 0.02, 4) * (places > 0.02)))


def _new_tail(body: Body, rng: np.random.Generator) -> float:
    """Return the exponent of the rear end's outline: twice as high above a tailgate."""
    tail = rng.uniform(6, 10)
    has_tailgate = body.windows[0] < 0.05
    return 2 * tail if has_tailgate else tail


def _new_finish(paint: np.ndarray, rng: np.random.Generator) -> Finish:
    varied = paint * rng.uniform(0.85, 1.12) + rng.uniform(-10, 10, 3)
    return Finish(
        paint=np.clip(varied, 3, 250),
        gloss=rng.uniform(0.15, 0.9),
        dark_roof=bool(rng.choice([False, False, False, True])),
        dark_bumpers=bool(rng.choice([False, False, True])),
        tint=rng.uniform(0.4, 4.2),
    )


def _new_wheels(body: str, rng: np.random.Generator) -> Wheels:
    radius = rng.uniform(0.30, 0.36)
    if body in ("suv", "pickup"):
        radius += 0.05
    return Wheels(
        radius=radius,
        rim=rng.choice([60.0, 130.0, 175.0, 205.0]),
        spokes=int(rng.integers(5, 11)),
        axles=np.array([-0.29, 0.31]) + rng.uniform(-0.02, 0.02, 2),
    )


def _new_extras(body: str, rng: np.random.Generator) -> Extras:
    """Return random extras; what a body type never has is not drawn for it."""
    return Extras(
        antenna=rng.choice([0.0, 0.0, 0.0, 0.08, 0.08, 0.2, 0.5]),
        roof_rails=body in ("suv", "wagon") and rng.random() < 0.6,
        side_steps=body in ("suv", "pickup") and rng.random() < 0.4,
        spoiler=body in ("hatchback", "suv", "coupe") and rng.random() < 0.4,
        plates=rng.random() < 0.7,
        doors=DOORS[rng.integers(2)],
    )
