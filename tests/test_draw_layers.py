"""docs/layers.svg is what tools/draw_layers.py draws, of rooms that hold every file."""

import ast
import graphlib
import re

import pytest
from helpers import ROOT, load_tool


@pytest.fixture(scope="module")
def draw_layers():
    return load_tool("draw_layers")


@pytest.fixture(scope="module")
def trees(draw_layers):
    return draw_layers.parse_code()


@pytest.fixture(scope="module")
def rooms(draw_layers, trees):
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    return draw_layers.read_rooms(text, trees)


def drawn_counts(picture):
    """Return the numbers at a picture's arrows."""
    return [int(number) for number in re.findall(r">(\d+)</text>", picture)]


def made_up(draw_layers, **imports):
    """Return a room for each module, and the syntax of modules that import others."""
    trees = {name: ast.parse(f"import {names}" if names else "") for name, names in imports.items()}
    return [draw_layers.Room(name.upper(), [name]) for name in trees], trees


def test_picture_is_the_codes(draw_layers, rooms, trees):
    picture = (ROOT / "docs/layers.svg").read_text(encoding="utf-8")
    assert picture == draw_layers.draw(rooms, trees)


def test_every_file_is_in_one_room(rooms, trees):
    assert sorted(module for room in rooms for module in room.modules) == sorted(trees)


def test_files_of_a_room_stand_in_it(rooms):
    scripts = {room.name for room in rooms if "train" in room.modules}
    for room in rooms:
        for module in room.modules:
            assert module.startswith("carvana.") == (room.name not in scripts), module


def test_arrows_lead_down(draw_layers, rooms, trees):
    """Also those that the picture leaves out."""
    edges = draw_layers.count_imports(rooms, trees)
    rows, _ = draw_layers.arrange(len(rooms), edges)
    levels = {place: level for level, row in enumerate(rows) for place in row}
    assert [edge for edge in edges if levels[edge[0]] >= levels[edge[1]]] == []


def test_implied_arrows_are_left_out(draw_layers):
    rooms, trees = made_up(draw_layers, a="b, c", b="c", c="d", d="", e="")
    assert drawn_counts(draw_layers.draw(rooms, trees)) == [1, 1, 1]


def test_arrows_count_imports_between_files(draw_layers):
    _, trees = made_up(draw_layers, a="c, d", b="d", c="", d="", e="", f="")
    rooms = [draw_layers.Room(" ".join(names), [*names]) for names in ("ab", "cd", "e", "f")]
    assert drawn_counts(draw_layers.draw(rooms, trees)) == [3]


def test_room_that_most_others_import_is_a_floor(draw_layers):
    rooms, trees = made_up(draw_layers, a="d", b="d", c="d", d="")
    picture = draw_layers.draw(rooms, trees)
    assert "imported by 3 of the 3 other files" in picture
    assert drawn_counts(picture) == []


def test_circle_of_rooms_is_refused(draw_layers):
    rooms, trees = made_up(draw_layers, a="b", b="c", c="a")
    with pytest.raises(graphlib.CycleError):
        draw_layers.draw(rooms, trees)
