"""What a studio is: the camera's view, wall and floor, turntable, sign, light and exposure.

Lengths in the picture are shares of its width or height. Levels are gray levels in 0 to 255.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LETTERS = "AABCDEFGHIKLMNNOPRSTUVVWXYZ"  # of the sign


@dataclass(frozen=True)
class View:
    """Where the camera stands, in meters, and what it looks at."""

    distance: float  # from the turntable's middle
    height: float
    aim: float  # height of the point it looks at
    zoom: float
    shift: float  # of the picture to the side
    turn: float  # of the turntable, in degrees, besides its stops
    roll: float  # of the camera, as the tangent of the angle


@dataclass(frozen=True)
class Backdrop:
    """Wall and floor, the line between them, and how evenly they are lit."""

    wall: np.ndarray  # (3,) color
    floor: np.ndarray  # (3,) color
    horizon: float  # height of the line in the picture's middle, from the top
    bend: float  # of the line downward at both sides
    lean: float  # of the line downward to the right
    edge: float  # width of the transition
    uneven: float  # strength of the blotches
    vignette: float  # darkness of the corners
    falloff: float  # brightness of the floor toward the camera


class Ring(NamedTuple):
    """A circle on the turntable."""

    radius: float  # in meters
    darkness: float  # 0 to 1


@dataclass(frozen=True)
class Curb:
    """A strip along the lower edge of the picture."""

    top: float  # 1 is outside the picture
    level: float


@dataclass(frozen=True)
class Sign:
    """Letters on the wall."""

    shown: bool
    word: str
    level: float
    slope: np.ndarray  # (2,) how much the level changes downward and to the right
    opacity: float
    width: float
    left: float
    lift: float  # above the horizon
    bold: np.ndarray  # (2,) strokes of the word's halves, as shares of the letters' height
    gap: float  # between letters, as a share of their height


@dataclass(frozen=True)
class Light:
    """Light and shadow."""

    shadow: float  # darkness under the car
    spread: float  # blur of the shadow
    shadow_shift: np.ndarray  # (2,) of the wide shadow, in x and y
    reflection: float  # share of the light that the floor mirrors
    room: np.ndarray  # (6,) what the paint mirrors, from below to above
    sun: float  # how much darker surfaces are that do not face upward
    side: np.ndarray  # (2,) how much brighter surfaces are that face x or y


@dataclass(frozen=True)
class Exposure:
    """What camera and file format do to the picture."""

    gain: float
    noise: float  # standard deviation in levels
    softness: float  # blur
    quality: int  # of the JPEG file


@dataclass(frozen=True)
class Studio:
    """A studio."""

    view: View
    backdrop: Backdrop
    rings: tuple[Ring, ...]
    curb: Curb
    sign: Sign
    light: Light
    exposure: Exposure


def new_studio(rng: np.random.Generator) -> Studio:
    """Return a random studio."""
    level = rng.uniform(200, 250)
    tint = rng.normal(0, 3, 3)
    return Studio(
        view=_new_view(rng),
        backdrop=_new_backdrop(level, tint, rng),
        rings=_new_rings(rng),
        curb=_new_curb(rng),
        sign=_new_sign(rng),
        light=new_light(rng),
        exposure=_new_exposure(rng),
    )


def _new_view(rng: np.random.Generator) -> View:
    return View(
        distance=rng.uniform(5.2, 8.0),
        height=rng.uniform(1.15, 2.1),
        aim=rng.uniform(0.45, 0.9),
        zoom=rng.uniform(0.86, 1.35),
        shift=rng.uniform(-0.05, 0.05),
        turn=rng.uniform(-8, 8),
        roll=rng.normal(0, 0.006),
    )


def _new_backdrop(level: float, tint: np.ndarray, rng: np.random.Generator) -> Backdrop:
    return Backdrop(
        wall=level + tint + rng.normal(0, 1.5, 3),
        floor=level * rng.uniform(0.70, 0.98) + tint + rng.normal(0, 3, 3),
        horizon=rng.uniform(0.33, 0.47),
        bend=rng.uniform(-0.03, 0.10),
        lean=rng.uniform(-0.05, 0.05),
        edge=10 ** rng.uniform(-2.6, -1.3),
        uneven=rng.uniform(0.0, 0.05),
        vignette=rng.uniform(0.0, 0.25),
        falloff=rng.uniform(-0.25, 0.12),
    )


def _new_rings(rng: np.random.Generator) -> tuple[Ring, ...]:
    count = rng.integers(0, 4)
    return tuple(Ring(rng.uniform(2.4, 3.4), rng.uniform(0.03, 0.35)) for _ in range(count))


def _new_curb(rng: np.random.Generator) -> Curb:
    return Curb(
        top=rng.choice([1.0, 1.0, 1.0, rng.uniform(0.9, 0.97)]),
        level=rng.choice([30.0, 90.0, 160.0, 235.0]),
    )


def _new_sign(rng: np.random.Generator) -> Sign:
    return Sign(
        shown=rng.random() < 0.9,
        word="".join(rng.choice(list(LETTERS), rng.integers(4, 9))),
        level=rng.uniform(50, 190),
        slope=rng.normal(0, 40, 2),
        opacity=rng.uniform(0.6, 1.0),
        width=rng.uniform(0.55, 1.05),
        left=rng.uniform(-0.05, 0.3),
        lift=rng.choice([0.0, 0.0, rng.uniform(0, 0.1)]),
        bold=rng.uniform(0, 0.07, 2),
        gap=rng.uniform(0.02, 0.5),
    )


def new_light(rng: np.random.Generator) -> Light:
    """Return random light."""
    return Light(
        shadow=rng.uniform(0.3, 0.9),
        spread=rng.uniform(0.01, 0.05),
        shadow_shift=rng.normal(0, 0.5, 2),
        reflection=max(0.0, rng.uniform(-0.1, 0.3)),
        room=np.array([0.25, 0.40, 0.70, 0.95, 0.75, 1.0]) * rng.uniform(0.6, 1.2, 6),
        sun=rng.uniform(0.05, 0.5),
        side=rng.normal(0, 0.12, 2),
    )


def _new_exposure(rng: np.random.Generator) -> Exposure:
    return Exposure(
        gain=rng.uniform(0.86, 1.12),
        noise=rng.uniform(0.3, 3.0),
        softness=rng.uniform(0.2, 0.7),
        quality=int(rng.integers(82, 96)),
    )
