"""Cars on a canvas: always inside it, on one line, alike in size; and cut to what is there."""

import numpy as np
import pytest

from carvana.errors import UserError
from carvana.framing import (
    LARGEST_SCALE,
    LONG,
    Box,
    Framing,
    box_of,
    check_framing,
    fit_box,
    parse_size,
    place,
    plan,
)


def rectangle(size, box, value=255):
    """Return a mask, uint8 (H, W), of `value` in a box."""
    mask = np.zeros(size, np.uint8)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = value
    return mask


def random_box(rng, height, width):
    top, left = rng.integers(0, height), rng.integers(0, width)
    box_height, box_width = rng.integers(1, height - top + 1), rng.integers(1, width - left + 1)
    return Box(int(left), int(top), int(box_width), int(box_height))


def test_fitted_cars_are_inside_the_canvas_on_one_line():
    rng = np.random.default_rng(0)
    for _ in range(300):
        canvas = tuple(map(int, rng.integers(2, 3000, 2)))
        margin = rng.uniform(0, 0.4)
        lines = set()
        for _ in range(5):
            box = random_box(rng, 800, 1200)
            placement = fit_box(box, canvas, margin)
            scale = placement.scale
            left = placement.left + scale * box.left
            top = placement.top + scale * box.top
            assert left >= margin * canvas[1] - 1e-6
            assert left + scale * box.width <= (1 - margin) * canvas[1] + 1e-6
            assert top >= margin * canvas[0] - 1e-6
            assert left + scale * box.width / 2 == pytest.approx(canvas[1] / 2)
            assert scale <= LARGEST_SCALE
            lines.add(round(top + scale * box.height, 6))
        assert len(lines) == 1
        assert lines.pop() <= (1 - margin) * canvas[0] + 1e-6


def test_fitted_car_is_equally_tall_from_the_front_and_at_an_angle():
    front, angle, side = (Box(10, 20, width, 100) for width in (120, 240, 320))
    heights = [fit_box(box, (800, 1200), 0.05).scale * 100 for box in (front, angle, side)]
    assert heights[0] == heights[1] == pytest.approx(0.9 * 1200 / LONG)
    assert heights[2] == pytest.approx(0.9 * 1200 / 3.2)


@pytest.mark.parametrize("canvas", [(80, 120), (33, 300), (300, 33), (700, 900), (1, 1)])
@pytest.mark.parametrize("box", [Box(0, 0, 90, 60), Box(85, 40, 5, 20), Box(30, 20, 20, 10)])
def test_place_puts_the_car_where_it_is_planned(canvas, box):
    alpha = rectangle((60, 90), box)
    picture = np.dstack([np.full((60, 90, 3), 200, np.uint8), alpha])
    placement = plan(Framing(canvas), alpha // 255)
    placed = place(picture, placement)
    assert placed.shape == (*canvas, 4)
    if min(canvas) < 30:
        return
    found = box_of((placed[..., 3] > 127).view(np.uint8))
    expected = (
        placement.left + placement.scale * box.left,
        placement.top + placement.scale * box.top,
        placement.scale * box.width,
        placement.scale * box.height,
    )
    assert np.abs(np.subtract(found, expected)).max() <= 2
    # Colors do not mix with the black of what is transparent.
    assert np.abs(placed[placed[..., 3] > 20][:, :3].astype(int) - 200).max() <= 8


def test_trim_cuts_to_the_car_and_its_shadow():
    rng = np.random.default_rng(2)
    picture = rng.integers(0, 256, (60, 90, 4), dtype=np.uint8)
    car = rectangle((60, 90), Box(20, 10, 40, 20), 1)
    shadow = rectangle((60, 90), Box(15, 28, 50, 10), 99)
    trimmed = place(picture, plan(Framing(trim=True), car))
    assert np.array_equal(trimmed, picture[10:30, 20:60])
    with_shadow = place(picture, plan(Framing(trim=True), car, shadow))
    assert np.array_equal(with_shadow, picture[10:38, 15:65])
    margin = place(picture, plan(Framing(trim=True, margin=0.4), car))
    assert margin.shape == (36, 72, 4)
    assert np.array_equal(margin[:, :68], picture[2:38, 4:72][:, :68])
    beyond = place(picture, plan(Framing(trim=True, margin=0.4), np.ones_like(car)))
    assert beyond.shape == (108, 162, 4)
    assert np.array_equal(beyond[24:84, 36:126], picture)
    assert not beyond[:24].any()


def test_size_is_width_before_height():
    assert parse_size("1200x800") == parse_size(" 1200X800 ") == (800, 1200)


@pytest.mark.parametrize("text", ["", "1200", "0x5", "-1x5", "5x9000", "1.5x2", "axb", "5x5x5"])
def test_size_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--fit: expected width and height in pixels, each 1..8192"):
        parse_size(text)


@pytest.mark.parametrize("margin", [-0.1, 0.41, float("nan"), float("inf")])
def test_margin_beyond_its_range_is_refused(margin):
    with pytest.raises(UserError, match="--margin: expected a share of each side"):
        check_framing(Framing((8, 8), margin=margin))
