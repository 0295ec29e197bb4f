"""Where things stand on the street, seen from above, and which of them hides which.

A footprint is a convex polygon of points (n, 2), x and y in meters, counterclockwise.
"""

import graphlib
from collections.abc import Sequence

import numpy as np

from carvana.rendering.cars import Car

MARGIN = 0.35  # around a car: its mirrors, and air


def car_footprint(car: Car, place: np.ndarray, heading: float) -> np.ndarray:
    """Return the footprint of a car; heading in radians."""
    half = np.array([car.length / 2 + MARGIN, car.width / 2 + MARGIN])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    cosine, sine = np.cos(heading), np.sin(heading)
    return corners @ np.array([[cosine, sine], [-sine, cosine]]) + place


def pole_footprint(place: np.ndarray) -> np.ndarray:
    """Return the footprint of a pole."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.1 + place


def is_apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two footprints do not overlap."""
    return _beyond_an_edge(first, second) is not None or _beyond_an_edge(second, first) is not None


def back_to_front(footprints: Sequence[np.ndarray], eye: np.ndarray) -> list[int]:
    """Return the order in which to paint things that stand apart, all in front of an eye (2,).

    Things are sorted by who hides whom, not by distance: a long car's middle may be farther away
    than that of the car behind it. Convex things that stand apart never hide each other in turn.
    """
    sectors = [_sector(footprint, eye) for footprint in footprints]
    order: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for i, first in enumerate(footprints):
        order.add(i)
        for j, second in enumerate(footprints[:i]):
            if max(sectors[i][0], sectors[j][0]) >= min(sectors[i][1], sectors[j][1]):
                continue
            if _is_nearer(first, second, eye):
                order.add(i, j)
            else:
                order.add(j, i)
    return list(order.static_order())


def _sector(footprint: np.ndarray, eye: np.ndarray) -> tuple[float, float]:
    """Return the directions, in radians, between which an eye sees a footprint."""
    toward = footprint - eye
    directions = np.arctan2(toward[:, 1], toward[:, 0])
    return directions.min(), directions.max()


def _is_nearer(first: np.ndarray, second: np.ndarray, eye: np.ndarray) -> bool:
    """Return whether a line between two footprints has the first and the eye on one side."""
    edge = _beyond_an_edge(first, second)
    if edge is not None:
        return not _outside(edge, eye[None])[0]
    edge = _beyond_an_edge(second, first)
    return edge is not None and bool(_outside(edge, eye[None])[0])


def _beyond_an_edge(footprint: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """Return an edge (2, 2) of a footprint that has all points (n, 2) outside; None without."""
    for i in range(len(footprint)):
        edge = footprint[[i - 1, i]]
        if _outside(edge, points).all():
            return edge
    return None


def _outside(edge: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return which points (n, 2) are to the right of an edge, bool (n,)."""
    along = edge[1] - edge[0]
    toward = points - edge[0]
    return along[0] * toward[:, 1] - along[1] * toward[:, 0] < 0
