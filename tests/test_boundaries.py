"""Distances of outlines."""

import numpy as np
import pytest

from carvana.boundaries import boundary_distance, error_beyond_outline

EMPTY = np.zeros((60, 80), bool)


def square(grow=0):
    mask = EMPTY.copy()
    mask[20 - grow : 40 + grow, 20 - grow : 50 + grow] = True
    return mask


def test_boundary_distance_of_shifted_squares():
    small, large = square(), square(grow=1)
    assert boundary_distance(small, small) == 0
    assert boundary_distance(small, large) == pytest.approx(1, abs=0.05)
    assert boundary_distance(small, large) == pytest.approx(boundary_distance(large, small))


def test_boundary_distance_without_an_outline():
    diagonal = 100  # of 60x80
    assert boundary_distance(EMPTY, EMPTY) == 0
    assert boundary_distance(square(), EMPTY) == diagonal
    assert boundary_distance(~EMPTY, EMPTY) == diagonal
    assert boundary_distance(~EMPTY, ~EMPTY) == 0


def test_boundary_functions_take_masks_of_0_and_1():
    small, large = square().view(np.uint8), square(grow=1).view(np.uint8)
    assert boundary_distance(small, large) == boundary_distance(square(), square(grow=1))
    assert error_beyond_outline(small, large) == error_beyond_outline(square(), square(grow=1))


def test_error_beyond_outline_ignores_two_pixels():
    true = square()
    assert error_beyond_outline(true, true) == error_beyond_outline(EMPTY, EMPTY) == 0
    assert error_beyond_outline(np.roll(true, 2, axis=1), true) == 0
    # The third column on each side; four pixels of the car's own lie near its corners.
    assert error_beyond_outline(np.roll(true, 3, axis=1), true) == (20 + 16) / 1200
    speck = true.copy()
    speck[2, 2] = True
    assert error_beyond_outline(speck, true) == 1 / 1201
    assert error_beyond_outline(true, EMPTY) == 1


def test_boundary_of_unknown_pixels_is_none():
    """A wide band around the square's left half is not known."""
    known = np.ones_like(EMPTY)
    known[10:50, 10:35] = False
    small = square() & known
    large = square(grow=3) & known
    known_part = np.s_[:, 35:]
    expected = boundary_distance(square()[known_part], square(grow=3)[known_part])
    assert boundary_distance(small, large, known) == pytest.approx(expected, abs=0.2)
    assert boundary_distance(small, small, known) == 0
    # Without knowing, the band's border is an outline that both share.
    assert boundary_distance(small, large) < 0.8 * expected


def test_error_beside_unknown_pixels_counts():
    known = np.ones_like(EMPTY)
    known[10:50, 10:35] = False
    missed = square() & known
    missed[21:39, 35:40] = False  # beside the band, away from the square's outline
    wrong = 15 * 5 - 1  # of 18 x 5, without what lies within 2 pixels of the outline
    error = error_beyond_outline(missed, square() & known, known)
    total = np.count_nonzero(missed) + np.count_nonzero(square() & known)
    assert error == pytest.approx(wrong / total, abs=6 / total)
    assert error_beyond_outline(missed, square() & known) < error
