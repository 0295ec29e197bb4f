"""Draw which rooms of the code import which, as docs/design.md names them, to docs/layers.svg.

python tools/draw_layers.py

The rooms and their files are the table of docs/design.md; the imports are those of the code. Each
room is in the row below the lowest one that imports it. Rooms that most others import are floors,
below all, and have no arrows. An arrow that a chain of others implies is left out as well.
"""

import ast
import collections
import graphlib
import math
import re
import sys
import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from carvana import options
from carvana.files import replacing
from carvana.templating import render
from tools.measure_code import ROOT, Trees, imported_modules

TABLE = ROOT / "docs" / "design.md"
PICTURE = ROOT / "docs" / "layers.svg"
ROW = re.compile(r"^\| \*\*(?P<name>.+?)\*\* \|.*\| (?P<files>[^|]*) \|$", re.MULTILINE)
WIDTH = 880  # pixels, of the picture
MARGIN = 12
PADDING = 12  # inside of a box
LETTER = 6.7  # pixels, of a file's name
LINE = 16
TITLE = 30  # from a box's top to the middle between its name and its first line
PASSAGE = 36  # width of the way of an arrow past a box
BESIDE = 10  # between boxes
GAP = 36  # between rows, for arrows
FLOOR_GAP = 8
LEGEND = 26
Edge = tuple[int, int]  # places in the list of rooms: which imports, which is imported


class Room(NamedTuple):
    """A row of the table: files that belong together."""

    name: str
    modules: list[str]  # by dotted names, such as carvana.images

    @property
    def labels(self) -> list[str]:
        """Return the files' names as the picture shows them."""
        paths = [module.split(".") for module in self.modules]
        return [f"{parts[0]}.py" if len(parts) == 1 else parts[-1] for parts in paths]


class Slot(NamedTuple):
    """A part of a row: a room's box, or the way of an arrow past the boxes."""

    rooms: tuple[int, ...]  # the box's one, or the two that the arrow connects
    left: float
    right: float

    @property
    def is_box(self) -> bool:
        return len(self.rooms) == 1


class Box(NamedTuple):
    """A room as it is drawn; pixels."""

    kind: str  # root, room or floor
    name: str
    note: str
    lines: list[str]
    x: float
    y: float
    width: float
    height: float


class Arrow(NamedTuple):
    """Imports of one room by another as they are drawn; pixels."""

    count: int  # pairs of files
    points: list[tuple[float, float]]

    @property
    def thickness(self) -> float:
        return 1.4 + 0.7 * math.log2(self.count)


# ---------------------------------------------------------------- rooms and imports


def parse_code() -> Trees:
    """Return the syntax of each file of the root and of carvana/, by its dotted name."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "carvana").rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: ast.parse(names[name].read_text(encoding="utf-8")) for name in sorted(names)}


def read_rooms(table: str, modules: Collection[str]) -> list[Room]:
    """Return the rooms of a table in Markdown.

    A file of the root is there as `train.py`, one of carvana/ as `images`, a folder of carvana/
    with all of its files as `rendering/`.
    """
    rooms = []
    for row in ROW.finditer(table):
        names = []
        for label in re.findall("`(.+?)`", row["files"]):
            name = f"carvana.{label}".replace("/", ".")
            if label.endswith(".py"):
                name = label.removesuffix(".py")
            inside = [module for module in modules if module.startswith(name)]
            names += inside if label.endswith("/") else [name]
        rooms.append(Room(row["name"], names))
    return rooms


def count_imports(rooms: list[Room], trees: Trees) -> dict[Edge, int]:
    """Return how many imports of files lead from room to room."""
    places = {module: place for place, room in enumerate(rooms) for module in room.modules}
    edges = collections.Counter()
    for module, tree in trees.items():
        for imported in imported_modules(ast.walk(tree), trees):
            edges[places[module], places[imported]] += 1
    return {edge: number for edge, number in edges.items() if edge[0] != edge[1]}


def reduce_edges(edges: Iterable[Edge]) -> list[Edge]:
    """Return the edges of a graph without cycles that no chain of others implies, sorted."""
    targets = collections.defaultdict(set)
    for source, target in edges:
        targets[source].add(target)
    reached = {}
    for place in graphlib.TopologicalSorter(targets).static_order():
        below = [reached[target] for target in targets[place]]
        reached[place] = targets[place].union(*below)
    return sorted(
        (source, target)
        for source, direct in targets.items()
        for target in direct
        if not any(target in reached[detour] for detour in direct)
    )


# ---------------------------------------------------------------- layout


def arrange(count: int, edges: Iterable[Edge]) -> tuple[list[list[int]], list[int]]:
    """Return the rooms of each row, from the top, and which rooms are floors, likewise.

    Raises:
        graphlib.CycleError: rooms import each other in a circle.
    """
    sources = {place: set() for place in range(count)}
    for source, target in edges:
        sources[target].add(source)
    order = list(graphlib.TopologicalSorter(sources).static_order())
    floors = [place for place in order if len(sources[place]) > (count - 1) / 2]
    levels = {}
    for place in order:
        if place not in floors:
            levels[place] = 1 + max((levels[source] for source in sources[place]), default=-1)
    rows = [[] for _ in range(1 + max(levels.values()))]
    for place in sorted(levels):
        rows[levels[place]].append(place)
    return [*rows, *([floor] for floor in floors)], floors


def place_slots(rows: list[list[int]], arrows: list[Edge]) -> list[list[Slot]]:
    """Return the parts of each row: boxes share what the ways past them leave."""
    levels = {place: level for level, row in enumerate(rows) for place in row}
    result = []
    for level, row in enumerate(rows):
        ways = [edge for edge in arrows if levels[edge[0]] < level < levels[edge[1]]]
        free = WIDTH - 2 * MARGIN - len(ways) * PASSAGE - (len(row) - 1) * BESIDE
        slots = []
        left = MARGIN
        for rooms in sorted([*((place,) for place in row), *ways]):
            if slots and slots[-1].is_box and rooms not in ways:
                left += BESIDE
            right = left + (PASSAGE if rooms in ways else free / len(row))
            slots.append(Slot(rooms, left, right))
            left = right
        result.append(slots)
    return result


def make_boxes(
    slots: list[list[Slot]], rooms: list[Room], notes: dict[int, str]
) -> list[dict[int, Box]]:
    """Return the boxes of each row by their rooms' places, as high as the files' names need.

    Args:
        notes: what stands beside the names of floors.
    """
    rows = []
    y = MARGIN
    for parts in slots:
        row = {}
        for slot in parts:
            if slot.is_box:
                place = slot.rooms[0]
                row[place] = make_box(slot, rooms[place], notes.get(place, ""), y)
        height = max(box.height for box in row.values())
        rows.append({place: box._replace(height=height) for place, box in row.items()})
        y += height + (FLOOR_GAP if notes.keys() & row.keys() else GAP)
    return rows


def make_box(slot: Slot, room: Room, note: str, y: float) -> Box:
    """Return a room's box with its top at y."""
    width = slot.right - slot.left
    letters = int((width - 2 * PADDING) / LETTER)
    lines = textwrap.wrap("  ".join(room.labels), letters, break_on_hyphens=False)
    kind = "floor" if note else "room"
    if not any("." in module for module in room.modules):
        kind = "root"
    return Box(kind, room.name, note, lines, slot.left, y, width, TITLE + LINE * len(lines) + 6)


def make_arrow(edge: Edge, count: int, slots: list[list[Slot]], boxes: list[dict]) -> Arrow:
    """Return an arrow, through the gap below each row that it leaves."""
    ends = ((edge[0],), edge, (edge[1],))
    way = [(row, slot) for row, parts in enumerate(slots) for slot in parts if slot.rooms in ends]
    points = []
    for (row, upper), (_, lower) in zip(way, way[1:], strict=False):
        left = max(upper.left, lower.left)
        right = min(upper.right, lower.right)
        ends_in_gap = (left + right) / 2, (left + right) / 2
        if left > right:  # neither is above the other
            ends_in_gap = (upper.left + upper.right) / 2, (lower.left + lower.right) / 2
        above = next(iter(boxes[row].values()))
        below = next(iter(boxes[row + 1].values()))
        points += zip(ends_in_gap, (above.y + above.height, below.y), strict=True)
    return Arrow(count, points)


def note_of_floor(room: Room, trees: Trees) -> str:
    """Return how many of the files outside of a room import it."""
    modules = set(room.modules)
    outside = [tree for module, tree in trees.items() if module not in modules]
    users = sum(bool(imported_modules(ast.walk(tree), trees) & modules) for tree in outside)
    return f"imported by {users} of the {len(outside)} other files"


def draw(rooms: list[Room], trees: Trees) -> str:
    """Return the drawing of rooms and of the imports between them, as SVG."""
    edges = count_imports(rooms, trees)
    rows, floors = arrange(len(rooms), edges)
    above = reduce_edges(edge for edge in edges if not {*edge} & {*floors})
    slots = place_slots(rows, above)
    boxes = make_boxes(
        slots, rooms, {floor: note_of_floor(rooms[floor], trees) for floor in floors}
    )
    drawn = [box for row in boxes for box in row.values()]
    return render(
        "layers.svg.jinja",
        escape=False,
        folder=Path(__file__).parent,
        boxes=drawn,
        arrows=[make_arrow(edge, edges[edge], slots, boxes) for edge in above],
        width=WIDTH,
        height=drawn[-1].y + drawn[-1].height + LEGEND,
    )


def main() -> None:
    """Draw the rooms of docs/design.md."""
    options.make_parser(__doc__).parse_args()
    trees = parse_code()
    rooms = read_rooms(TABLE.read_text(encoding="utf-8"), trees)
    with replacing(PICTURE) as temporary:
        temporary.write_text(draw(rooms, trees), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()
