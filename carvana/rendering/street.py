"""What a street is: the camera's view, road and sidewalks, buildings, poles, traffic, daylight.

The street runs along x, away from the camera at x = 0; y = 0 is the middle of the road. Colors
are those of things in plain light.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from carvana.rendering.cars import Car, new_car
from carvana.rendering.footprints import car_footprint, is_apart, pole_footprint
from carvana.rendering.studio import Exposure, Light, new_light

MAX_CARS = 5
ATTEMPTS = 40  # to place the cars of a street
MOST_ATTEMPTS = 1000  # to place its first one
SIDES = (-1, 1)  # right and left: the sign of y
END = 170.0  # the last building is nearer than this
FACADES = (  # colors of walls: brick, plaster, concrete, stone, glass
    (138, 74, 58),
    (170, 104, 82),
    (206, 190, 158),
    (226, 220, 206),
    (150, 148, 144),
    (112, 114, 118),
    (188, 168, 132),
    (196, 150, 112),
    (96, 112, 128),
    (172, 182, 170),
    (84, 66, 58),
)
ROOFS = ((92, 52, 42), (70, 70, 74), (116, 78, 60), (54, 52, 52))
SHOPS = ((150, 30, 34), (24, 60, 110), (30, 84, 56), (206, 160, 50), (40, 40, 42), (210, 208, 204))
POLES = ((58, 60, 62), (120, 122, 122), (168, 170, 170), (36, 52, 44), (98, 80, 64))


@dataclass(frozen=True)
class View:
    """Where the camera is, in meters, and where it looks; angles in radians."""

    offset: float  # y of the camera
    height: float
    yaw: float  # to the left of the street's direction
    pitch: float  # upward
    roll: float
    zoom: float  # focal length as a share of the picture's width


@dataclass(frozen=True)
class Road:
    """The ground: a road, its markings, and a sidewalk at each side."""

    width: float
    walks: tuple[float, float]  # widths of the right and the left sidewalk
    curb: float  # height of the sidewalks
    bend: float  # y of the street is this times x squared
    asphalt: np.ndarray  # (3,) color
    pavement: np.ndarray  # (3,) color of the sidewalks
    edging: np.ndarray  # (3,) color of the curbs
    marking: np.ndarray  # (3,) color
    dash: float  # length of the middle line's dashes; 0 is none
    gap: float  # between them
    has_edge_lines: bool
    crosswalk: float  # x where it begins; 0 is none
    slab: float  # length of the sidewalks' slabs; 0 is none
    patches: int  # repaired places of the road


@dataclass(frozen=True)
class Facade:
    """What the front of a building looks like."""

    color: np.ndarray  # (3,)
    trim: np.ndarray  # (3,) color of window frames, bands and pilasters
    glass: np.ndarray  # (3,) color of the windows
    floors: int
    floor_height: float
    bay: float  # from one window to the next
    window: tuple[float, float]  # its shares of bay and floor
    has_bands: bool  # between floors
    has_pilasters: bool  # between bays
    has_pipes: bool  # a thin one at each end
    shop: np.ndarray | None  # (3,) color of the sign above a shop on the ground floor
    roof: float  # height of a sloping roof; 0 is flat
    roof_color: np.ndarray  # (3,)
    lit: float  # share of the windows with light behind them

    @property
    def height(self) -> float:
        """Return how high the wall is."""
        return self.floors * self.floor_height


class Building(NamedTuple):
    """A building beside the street."""

    side: int  # of SIDES
    start: float  # x of the end near the camera
    length: float
    setback: float  # of the front, from the sidewalk
    facade: Facade


class Pole(NamedTuple):
    """A street lamp, or the post of a traffic sign."""

    place: np.ndarray  # (2,) x and y of the foot
    side: int  # of SIDES
    height: float
    radius: float
    arm: float  # length of a lamp's arm, over the road; 0 is none
    plate: float  # size of a sign, parallel to the street; 0 is none
    color: np.ndarray  # (3,)


class PlacedCar(NamedTuple):
    """A car on the street."""

    car: Car
    place: np.ndarray  # (2,) x and y of its middle
    heading: float  # in radians; 0 is along x


@dataclass(frozen=True)
class Daylight:
    """Sky, light, shade and haze."""

    zenith: np.ndarray  # (3,) color of the sky above
    horizon: np.ndarray  # (3,) color of the sky and of the haze at the horizon
    clouds: float  # how much of the sky they cover, 0 to 1
    cloud_height: float  # how flat they are
    sides: np.ndarray  # (3,) light on fronts at the right, at the left, and on walls across
    shade: float  # darkness of the ground where the sun does not reach
    shade_edge: float  # y where this begins
    shade_side: int  # the side where it lies, of SIDES
    dapple: float  # darkness of blotches on the ground, as of trees
    haze: float  # per meter
    brightness: float
    tint: np.ndarray  # (3,) color of the light
    contrast: float
    cars: Light


@dataclass(frozen=True)
class Street:
    """A street."""

    view: View
    road: Road
    buildings: tuple[Building, ...]  # from far to near
    poles: tuple[Pole, ...]
    cars: tuple[PlacedCar, ...]
    daylight: Daylight
    exposure: Exposure


def new_street(rng: np.random.Generator) -> Street:
    """Return a random street with one to MAX_CARS cars."""
    cars: tuple[PlacedCar, ...] = ()
    while not cars:  # a view past the road has room for none
        road = _new_road(rng)
        view = _new_view(road, rng)
        poles = [pole for side in SIDES for pole in _new_poles(road, side, rng)]
        buildings = [building for side in SIDES for building in _new_row(side, rng)]
        cars = _new_traffic(road, view, poles, rng)
    return Street(
        view=view,
        road=road,
        buildings=tuple(sorted(buildings, key=_start, reverse=True)),
        poles=tuple(poles),
        cars=cars,
        daylight=_new_daylight(road, rng),
        exposure=Exposure(
            gain=1.0,
            noise=rng.choice([1.0, 3.0, 6.0]) * rng.uniform(0.7, 1.6),
            softness=rng.uniform(0.3, 1.0),
            quality=int(rng.integers(70, 95)),
        ),
    )


def _start(building: Building) -> float:
    return building.start


def _gray(level: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Return a nearly gray color."""
    return level + rng.normal(0, spread, 3)


def _pick(colors: tuple, rng: np.random.Generator) -> np.ndarray:
    """Return one of some colors, varied."""
    color = np.array(colors[rng.integers(len(colors))], float)
    return np.clip(color * rng.uniform(0.7, 1.25) + rng.normal(0, 7, 3), 12, 245)


def _new_road(rng: np.random.Generator) -> Road:
    asphalt = _gray(rng.uniform(62, 150), 4, rng)
    lightness = rng.choice([rng.uniform(0.7, 0.9), rng.uniform(1.1, 1.55), rng.uniform(1.1, 1.55)])
    markings = ((225, 225, 220), (225, 225, 220), (214, 170, 60))
    return Road(
        width=rng.uniform(6, 14.5),
        walks=(rng.uniform(1.6, 5), rng.uniform(1.6, 5)),
        curb=rng.uniform(0.05, 0.17),
        bend=rng.normal(0, 0.0012),
        asphalt=asphalt,
        pavement=asphalt * lightness + rng.normal(0, 4, 3),
        edging=_gray(rng.uniform(100, 190), 3, rng),
        marking=np.array(markings[rng.integers(len(markings))]) * rng.uniform(0.7, 1.05),
        dash=rng.choice([0.0, 2.0, 3.0, 5.0]),
        gap=rng.choice([0.0, rng.uniform(2, 6), rng.uniform(2, 6)]),
        has_edge_lines=bool(rng.random() < 0.4),
        crosswalk=rng.choice([0.0, 0.0, rng.uniform(5, 25)]),
        slab=rng.choice([0.0, rng.uniform(0.8, 2.5)]),
        patches=int(rng.integers(0, 7)),
    )


def _new_view(road: Road, rng: np.random.Generator) -> View:
    """Return the view of a driver, of a pedestrian, or of someone who crosses the road."""
    right, left = road.walks
    offset = rng.choice(
        [
            rng.uniform(-0.35, -0.05) * road.width,
            rng.uniform(-0.45, 0.45) * road.width,
            -road.width / 2 - rng.uniform(0.3, right - 0.5),
            road.width / 2 + rng.uniform(0.3, left - 0.5),
        ],
        p=[0.5, 0.2, 0.15, 0.15],
    )
    return View(
        offset=offset,
        height=rng.uniform(1.2, 2.0) + rng.choice([0.0, 0.0, 0.0, 0.8]),
        yaw=np.clip(rng.normal(-0.02 * offset, 0.16), -0.42, 0.42),
        pitch=rng.uniform(-0.09, 0.12),
        roll=rng.normal(0, 0.012),
        zoom=rng.uniform(0.75, 1.2),
    )


def _new_poles(road: Road, side: int, rng: np.random.Generator) -> list[Pole]:
    """Return the lamps and signs of one sidewalk."""
    walk = road.walks[SIDES.index(side)]
    lamp_height = rng.uniform(3.5, 9)
    arm = rng.choice([0.0, rng.uniform(0.6, 2.2)])
    color = _pick(POLES, rng)
    spacing = rng.uniform(9, 24)
    poles = []
    x = rng.uniform(7, 7 + spacing)
    while x < 65:
        from_curb = rng.choice([0.45, 0.45, walk - 0.5]) + rng.uniform(-0.15, 0.15)
        place = np.array([x, side * (road.width / 2 + from_curb) + road.bend * x**2])
        is_lamp = rng.random() < 0.55
        poles.append(
            Pole(
                place=place,
                side=side,
                height=lamp_height if is_lamp else rng.uniform(2.2, 3.4),
                radius=rng.uniform(0.03, 0.07),
                arm=arm if is_lamp else 0.0,
                plate=0.0 if is_lamp else rng.uniform(0.25, 0.45),
                color=color if is_lamp else _pick(POLES, rng),
            )
        )
        x += spacing * rng.uniform(0.35, 1.4)
    return poles


def _new_row(side: int, rng: np.random.Generator) -> list[Building]:
    """Return the buildings along one side."""
    openness = rng.choice([0.05, 0.2, 0.5])  # how often there is a gap between two
    floors = rng.uniform(1.5, 6)
    buildings = []
    x = rng.uniform(-12, 0)
    while x < END:
        length = rng.uniform(6, 24)
        facade = _new_facade(max(1, round(rng.normal(floors, 1))), rng)
        setback = rng.choice([0.0, 0.0, rng.uniform(0, 4)])
        buildings.append(Building(side, x, length, setback, facade))
        x += length
        if rng.random() < openness:
            x += rng.uniform(2, 14)
    return buildings


def _new_facade(floors: int, rng: np.random.Generator) -> Facade:
    color = _pick(FACADES, rng)
    trim = rng.choice([0, 1, 2])
    return Facade(
        color=color,
        trim=(color * 0.75, color * 1.2, _gray(225, 6, rng))[trim],
        glass=_gray(rng.uniform(25, 120), 8, rng) + [-6, 0, 8],
        floors=floors,
        floor_height=rng.uniform(2.8, 3.8),
        bay=rng.uniform(1.7, 4.2),
        window=(rng.uniform(0.35, 0.85), rng.uniform(0.4, 0.75)),
        has_bands=bool(rng.random() < 0.5),
        has_pilasters=bool(rng.random() < 0.3),
        has_pipes=bool(rng.random() < 0.6),
        shop=_pick(SHOPS, rng) if rng.random() < 0.45 else None,
        roof=rng.choice([0.0, rng.uniform(1.0, 3.5)]),
        roof_color=_pick(ROOFS, rng),
        lit=rng.choice([0.0, 0.0, 0.3]),
    )


def _new_traffic(
    road: Road, view: View, poles: list[Pole], rng: np.random.Generator
) -> tuple[PlacedCar, ...]:
    """Return cars that stand apart from each other and from the poles, within the view.

    There are none if MOST_ATTEMPTS find no place for the first one.
    """
    wanted = rng.integers(1, MAX_CARS + 1)
    cars: list[PlacedCar] = []
    taken = [pole_footprint(pole.place) for pole in poles]
    attempts = 0
    while attempts < (ATTEMPTS if cars else MOST_ATTEMPTS) and len(cars) < wanted:
        attempts += 1
        placed = _place_car(road, rng)
        footprint = car_footprint(placed.car, placed.place, placed.heading)
        if _is_in_view(footprint, view) and all(is_apart(footprint, each) for each in taken):
            cars.append(placed)
            taken.append(footprint)
    return tuple(cars)


def _place_car(road: Road, rng: np.random.Generator) -> PlacedCar:
    """Return a car that is parked, drives in a lane, or turns, somewhere along the road."""
    car = new_car(rng)
    x = np.exp(rng.uniform(np.log(6.5), np.log(42)))
    side = int(rng.choice(SIDES))
    half = road.width / 2
    parked = (half - car.width / 2 - rng.uniform(0.15, 0.5), np.pi * rng.integers(2))
    driving = (half * rng.uniform(0.35, 0.6), np.pi * (side > 0))
    turning = (half * rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi))
    from_middle, turn = (parked, driving, turning)[rng.choice(3, p=[0.5, 0.35, 0.15])]
    heading = turn + rng.normal(0, 0.04) + np.arctan(2 * road.bend * x)
    return PlacedCar(car, np.array([x, side * from_middle + road.bend * x**2]), heading)


def _is_in_view(footprint: np.ndarray, view: View) -> bool:
    """Return whether a car is in front of the camera, and its middle within the frame."""
    toward = footprint - [0, view.offset]
    cosine, sine = np.cos(view.yaw), np.sin(view.yaw)
    depth = toward @ [cosine, sine]
    across = toward @ [-sine, cosine]
    return bool(depth.min() > 4.5 and abs(across.mean()) < 0.5 / view.zoom * depth.mean())


def _new_daylight(road: Road, rng: np.random.Generator) -> Daylight:
    cloudy = rng.random()
    blue = np.array([rng.uniform(60, 130), rng.uniform(110, 165), rng.uniform(175, 235)])
    gray = _gray(rng.uniform(140, 225), 4, rng)
    dusk = np.array([235, 190, 150]) if rng.random() < 0.2 else np.array([215, 222, 230])
    sun = max(0.0, rng.uniform(-0.25, 0.5)) * (1 - cloudy)
    return Daylight(
        zenith=blue * (1 - cloudy) + gray * cloudy,
        horizon=dusk * rng.uniform(0.85, 1.05) * (1 - 0.5 * cloudy) + gray * 0.5 * cloudy,
        clouds=rng.uniform(0, 1),
        cloud_height=rng.uniform(0.15, 0.6),
        sides=rng.uniform(0.6, 1.1, 3),
        shade=1.2 * sun,
        shade_edge=rng.uniform(-0.6, 0.6) * road.width,
        shade_side=int(rng.choice(SIDES)),
        dapple=sun * rng.choice([0.0, 1.0]),
        haze=10 ** rng.uniform(-3.4, -2.1),
        brightness=rng.choice([1.0, 1.0, 0.5]) * rng.uniform(0.75, 1.2),
        tint=1 + rng.normal(0, 0.05, 3),
        contrast=rng.uniform(0.75, 1.15),
        cars=new_light(rng),
    )
