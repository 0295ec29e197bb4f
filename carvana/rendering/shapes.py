"""A car's surfaces: body and cabin as colored quads, and the outlines of its simpler things."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from carvana.rendering.cars import BODY, GLASS, Car

GLASS_COLOR = (38, 44, 48)
DARK = (14, 14, 15)
DARK_BUMPER = (40, 41, 42)
HEADLIGHT = (205, 210, 214)
TAILLIGHT = (122, 14, 16)
TRUCK_BED = (30, 30, 31)

# The body's cross-section from the sill upward and then inward to the middle, 13 points:
# shares of its half-width, and of its height.
BODY_WIDTHS = np.array([0, 0.55, 0.9, 0.965, 0.99, 1.0, 1.0, 0.985, 0.95, 0.88, 0.7, 0.35, 0])
BODY_HEIGHTS = np.array([0, 0, 0.0, 0.06, 0.2, 0.4, 0.6, 0.8, 0.93, 0.985, 1.0, 1.0, 1.0])
# The cabin's cross-section from the belt line to the middle of the roof, 8 points: shares of the
# half-width at the belt line and of that at the roof, which add up; and shares of its height.
CABIN_BELT_WIDTHS = np.array([1, 0.92, 0.12, 0.03, 0, 0, 0, 0])
CABIN_ROOF_WIDTHS = np.array([0, 0.08, 0.88, 0.97, 0.93, 0.6, 0.3, 0])
CABIN_HEIGHTS = np.array([0, 0.1, 0.84, 0.95, 0.99, 1, 1, 1.0])
WINDOW_STRIP, ROOF_STRIP, TOP_STRIP = 1, 3, 4  # of the cabin's 7: the first of each kind


class Shell(NamedTuple):
    """A surface of n quads."""

    quads: np.ndarray  # (n, 4, 3) corners, counterclockwise from outside
    colors: np.ndarray  # (n, 3)
    shine: np.ndarray  # (n,) 0 is matte, 1 a mirror
    parts: np.ndarray  # (n,) indices into PARTS

    def paint(self, where: np.ndarray, color: ArrayLike, shine: float) -> None:
        """Change color and shine of the quads where a mask (n,) is true."""
        self.colors[where] = color
        self.shine[where] = shine

    def mirrored(self) -> "Shell":
        """Return the shell with its corners in reverse, for a camera that sees it upside down."""
        return self._replace(quads=self.quads[:, ::-1])


def build_shell(car: Car) -> Shell:
    """Return the car's body and cabin as one shell."""
    pairs = zip(build_body(car), build_cabin(car), strict=True)
    return Shell(*(np.concatenate(pair) for pair in pairs))


def _build_plain(quads: np.ndarray, car: Car) -> Shell:
    """Return quads all in the car's paint."""
    count = len(quads)
    return Shell(
        quads=quads,
        colors=np.tile(car.finish.paint, (count, 1)),
        shine=np.full(count, car.finish.gloss),
        parts=np.full(count, BODY),
    )


def build_body(car: Car) -> Shell:
    """Return the lower body, from bumper to bumper and from sill to belt line."""
    shell = _build_plain(loft(_trace_body_side(car)), car)
    center = shell.quads.mean(axis=1)
    along = center[:, 0] / car.length + 0.5
    across = np.abs(center[:, 1]) / (car.width / 2)
    up = (center[:, 2] - car.clearance) / (car.belt - car.clearance)
    shell.paint(up < 0.16, DARK, 0.05)
    if car.finish.dark_bumpers:
        shell.paint((up < 0.35) & ((along > 0.93) | (along < 0.06)), DARK_BUMPER, 0.1)
    grille = (along > 0.955) & (across < 0.5) & (up > 0.28) & (up < 0.72)
    shell.paint(grille, DARK, 0.1)
    headlights = (along > 0.90) & (across > 0.5) & (across < 0.93) & (up > 0.58) & (up < 0.82)
    shell.paint(headlights, HEADLIGHT, 0.5)
    taillights = (along < 0.06) & (across > 0.55) & (up > 0.55) & (up < 0.92)
    shell.paint(taillights, TAILLIGHT, 0.35)
    if car.body == "pickup":
        behind_cabin = (along < car.windows.rear_foot - 0.02) & (along > 0.03)
        shell.paint(behind_cabin & (across < 0.86) & (up > 0.95), TRUCK_BED, 0.05)
    return shell


def _trace_body_side(car: Car) -> np.ndarray:
    """Return points (45, 13, 3) of the body's left side: stations along it, cross-sections."""
    along = (1 - np.cos(np.linspace(0, np.pi, 45))) / 2  # denser toward the ends
    from_middle = np.abs(2 * along - 1)
    is_front = along > 0.5
    exponent = np.where(is_front, car.nose, car.tail)
    root = 1 / np.where(is_front, 2.6, 3.0)
    half_width = car.width / 2 * (1 - from_middle**exponent) ** root
    top = _trace_body_top(car, along)
    bottom = np.minimum(car.clearance + 0.16 * from_middle**7, top - 0.05)
    y = half_width[:, None] * BODY_WIDTHS
    z = bottom[:, None] + (top - bottom)[:, None] * BODY_HEIGHTS
    fullness = half_width / half_width.max()
    z[:, -3:] += car.crown * np.array([0.3, 0.8, 1]) * fullness[:, None]
    x = np.repeat(((along - 0.5) * car.length)[:, None], len(BODY_HEIGHTS), 1)
    return np.stack([x, y, z], axis=2)


def _trace_body_top(car: Car, along: np.ndarray) -> np.ndarray:
    """Return the height of the body's upper edge at places along the car."""
    belt = car.belt
    has_trunk = car.windows.rear_foot > 0.05
    tail = (0.84 if has_trunk else 0.99) * belt  # a trunk slopes down, a tailgate does not
    points = [
        (-1, tail),
        (0.0, tail),
        (0.03, 0.98 * belt),
        (max(car.windows.rear_foot, 0.04), belt),
        (car.windows.front_foot, belt),
        (0.93, 0.86 * belt),
        (0.99, 0.70 * belt),
        (1, 0.62 * belt),
        (2, 0.62 * belt),
    ]
    return round_corners(along, points, 0.025)


def build_cabin(car: Car) -> Shell:
    """Return windows and roof."""
    side = _trace_cabin_side(car)
    shell = _build_plain(loft(side), car)
    strip = _number_strips(side)
    along = shell.quads[:, :, 0].mean(axis=1) / car.length + 0.5
    near_pillar = _is_near_pillar(car, along)
    windows = (strip == WINDOW_STRIP) & ~near_pillar & _is_beside_window(car, along)
    screens = (strip >= TOP_STRIP) & _is_within_screen(car, along)
    glass = windows | screens
    if car.finish.dark_roof:
        shell.colors[strip >= ROOF_STRIP] = DARK
    shell.paint(glass, np.array(GLASS_COLOR) * car.finish.tint, 0.75)
    shell.parts[glass] = GLASS
    shell.colors[(strip == WINDOW_STRIP) & near_pillar] = DARK
    return shell


def _trace_cabin_side(car: Car) -> np.ndarray:
    """Return points (stations, 8, 3) of the cabin's left side."""
    rear_foot, rear_top, front_top, front_foot = car.windows
    evenly = np.linspace(rear_foot, front_foot, 30)
    along = np.unique(np.concatenate([evenly, [rear_top, front_top]]))
    foot = car.belt - 0.08  # inside the body
    points = [
        (rear_foot - 1, foot),
        (rear_foot, foot),
        (rear_top, car.height - 0.03),
        ((rear_top + front_top) / 2, car.height),
        (front_top, car.height - 0.02),
        (front_foot, foot),
        (2, foot),
    ]
    top = round_corners(along, points, 0.02)
    top[[0, -1]] = foot  # closed at both ends
    rise = top - foot
    half_width = car.width / 2 * 0.965 * (1 - np.abs(2 * along - 1) ** 16) ** (1 / 3)
    roof_half_width = half_width - car.lean * rise
    y = half_width[:, None] * CABIN_BELT_WIDTHS + roof_half_width[:, None] * CABIN_ROOF_WIDTHS
    z = foot + rise[:, None] * CABIN_HEIGHTS
    z[:, -3:] += car.crown * np.array([0.4, 0.8, 1]) * np.minimum(rise / 0.3, 1)[:, None]
    x = np.repeat(((along - 0.5) * car.length)[:, None], len(CABIN_HEIGHTS), 1)
    return np.stack([x, y, z], axis=2)


def _number_strips(side: np.ndarray) -> np.ndarray:
    """Return which strip along the cabin each quad of loft(side) is in, 0 at the belt line."""
    stations, points, _ = side.shape
    left = np.tile(np.arange(points - 1), stations - 1)
    return np.concatenate([left, points - 2 - left])  # the right side goes from the roof down


def _is_near_pillar(car: Car, along: np.ndarray) -> np.ndarray:
    """Return whether places along the car are at one of the two dark pillars between windows."""
    rear_top, front_top = car.windows.rear_top, car.windows.front_top
    pillars = [front_top - 0.5 * (front_top - rear_top), rear_top + 0.06]
    distances = [np.abs(along - pillar) for pillar in pillars]
    return np.min(distances, axis=0) < 0.012


def _is_beside_window(car: Car, along: np.ndarray) -> np.ndarray:
    """Return whether places along the car are where its sides have windows."""
    rear_foot, rear_top, front_top, front_foot = car.windows
    begin = rear_foot + 0.35 * (rear_top - rear_foot)
    end = front_foot - 0.35 * (front_foot - front_top)
    beside = (along > begin) & (along < end)
    if car.body == "van":  # the cargo space has none
        beside &= along > 0.45
    return beside


def _is_within_screen(car: Car, along: np.ndarray) -> np.ndarray:
    """Return whether places along the car are in the windshield or the rear window."""
    rear_foot, rear_top, front_top, front_foot = car.windows
    windshield = (along > front_top + 0.01) & (along < front_foot - 0.01)
    rear_window = (along < rear_top - 0.01) & (along > rear_foot + 0.004)
    return windshield | rear_window


def loft(left: np.ndarray) -> np.ndarray:
    """Return the surface through cross-sections of the left side, and its mirror image.

    Args:
        left: points (stations, ring, 3), station by station along the car.

    Returns:
        quads (2 * (stations - 1) * (ring - 1), 4, 3), counterclockwise from outside.
    """
    right = left[:, ::-1] * [1, -1, 1]
    return np.concatenate([_quads(left), _quads(right)])


def _quads(grid: np.ndarray) -> np.ndarray:
    corners = [grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]]
    return np.stack(corners, axis=2).reshape(-1, 4, 3)


def round_corners(x: np.ndarray, points: Sequence[tuple[float, float]], width: float) -> np.ndarray:
    """Return z at each x of the line through (x, z) points, its corners rounded over `width`."""
    corner_x, corner_z = np.array(points).T
    shifts = np.linspace(-width, width, 9)
    return np.mean([np.interp(x + shift, corner_x, corner_z) for shift in shifts], axis=0)


def box(center: ArrayLike, size: ArrayLike) -> np.ndarray:
    """Return the corners (8, 3) of a box parallel to the axes."""
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) / 2
    return corners * np.asarray(size) + np.asarray(center)


def disc(center: ArrayLike, radius: float) -> np.ndarray:
    """Return points (36, 3) around a circle in the x-z plane."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    circle = np.stack([np.cos(turn) * radius, np.zeros(36), np.sin(turn) * radius], axis=1)
    return circle + center
