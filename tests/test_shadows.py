"""Shadows: the photograph's own on plain ground, else drawn ones; they only darken the ground."""

import cv2
import numpy as np
import pytest
from helpers import scene

from carvana.shadows import NOISE, add_shadow, find_shadow

SIZE = (160, 300)


def box_car(size=SIZE):
    """Return a car like a box on two wheels, uint8 (H, W) of 0 and 1."""
    car = np.zeros(size, np.uint8)
    car[50:90, 80:220] = 1
    for x in (110, 190):
        cv2.circle(car, (x, 90), 12, 1, -1)
    return car


def true_shadow(car):
    """Return a shadow that lies under box_car, float (H, W), at most 0.7 dark."""
    shadow = np.zeros(car.shape, np.float32)
    shadow[92:108, 85:215] = 0.7
    return cv2.GaussianBlur(shadow, (0, 0), 4)


def photograph_of(car, shadow, floor=200.0, grain=0.0):
    """Return a red car on a floor that is lit from the left, uint8 (H, W, 3)."""
    light = np.linspace(1.1, 0.9, car.shape[1])
    noise = np.random.default_rng(0).normal(0, grain, car.shape)
    ground = np.clip(floor * light * (1 - shadow) * (1 + noise), 0, 255)
    photograph = np.repeat(ground[..., None], 3, axis=2)
    photograph[car > 0] = (200, 30, 30)
    return np.round(photograph).astype(np.uint8)


@pytest.mark.parametrize("grain", [0.01, 0.5], ids=["kept", "drawn"])
@pytest.mark.parametrize("rows, columns", [(112, 300), (160, 222)], ids=["below", "beside"])
def test_shadow_fades_out_where_the_photograph_ends(grain, rows, columns):
    """On a larger canvas it would end there in a straight line."""
    car = box_car()
    photograph = photograph_of(car, true_shadow(car), grain=grain)
    shadow = find_shadow(photograph[:rows, :columns], car[:rows, :columns])
    assert shadow[:, -1].max() == 0 and shadow[-1].max() == 0
    assert shadow.max() > 50


@pytest.mark.parametrize("floor", [60, 200, 230])
def test_shadow_of_plain_ground_is_kept(floor):
    car = box_car()
    expected = true_shadow(car)
    shadow = find_shadow(photograph_of(car, expected, floor, grain=0.01), car) / 255
    visible = car == 0
    assert np.abs(shadow - expected)[visible].mean() < 0.02
    assert np.abs(shadow - expected)[visible].max() < 0.3
    darkest = visible & (expected > 0.4)
    assert np.abs(shadow - expected)[darkest].mean() < 0.1


def test_shadow_is_none_where_plain_ground_has_none():
    car = box_car()
    assert not find_shadow(photograph_of(car, np.zeros(SIZE)), car).any()
    assert NOISE > 0.02
    assert not find_shadow(photograph_of(car, np.zeros(SIZE), grain=0.01), car).any()


def test_shadow_is_drawn_where_the_ground_is_not_plain():
    car = box_car()
    rough = photograph_of(car, np.zeros(SIZE), grain=0.5)
    shadow = find_shadow(rough, car) / 255
    assert shadow[101:103, 105:115].mean() > 0.4  # under a tire
    assert shadow[96, 140:160].mean() > 0.4  # under the car
    assert shadow[:40].max() == 0
    assert shadow[-10:].max() < 0.02
    assert np.array_equal(find_shadow(255 - rough, car), find_shadow(rough, car))  # car's alone


def odd_cars(size):
    """Return masks, uint8 (H, W): all car, none, and specks."""
    specks = np.random.default_rng(3).random(size) < 0.3
    return [np.ones(size, np.uint8), np.zeros(size, np.uint8), specks.astype(np.uint8)]


@pytest.mark.parametrize("seed", range(4))
def test_shadow_of_a_rendered_car_only_darkens(seed):
    check_only_darkens(*scene(seed, 90, 140))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 33)])
def test_shadow_of_any_mask_only_darkens(size):
    noise = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    for car in odd_cars(size):
        check_only_darkens(noise, car)
        check_only_darkens(np.zeros_like(noise), car)


def check_only_darkens(photograph, car):
    shadow = find_shadow(photograph, car)
    assert shadow.shape == car.shape
    assert shadow.dtype == np.uint8
    assert car.any() or not shadow.any()
    alpha = car * np.uint8(255)
    colors, both = add_shadow(photograph, alpha, shadow)
    assert (both >= alpha).all()
    assert (colors <= photograph).all()
    assert np.array_equal(colors[car > 0], photograph[car > 0])
    assert not colors[car == 0].any()


def test_shadow_shines_through_a_soft_edge():
    """A pixel half car, half shadow of half strength, on white."""
    half = np.full((1, 1), 128, np.uint8)
    colors, alpha = add_shadow(np.full((1, 1, 3), 200, np.uint8), half, half)
    share = alpha[0, 0] / 255
    assert share == pytest.approx(0.75, abs=0.01)
    assert share * colors[0, 0, 0] == pytest.approx(100, abs=2)
