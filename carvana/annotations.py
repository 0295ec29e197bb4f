"""Annotations that others' tools write, turned into masks: COCO, LabelMe, CVAT and Pascal VOC."""

import base64
import binascii
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from carvana.classes import NO_CLASS, Color
from carvana.errors import UserError, bullet_list, first_few, one_line, plural
from carvana.files import write_image
from carvana.model_config import TUTORIAL_DEFAULTS, class_faults
from carvana.naming import Naming, stem_of
from carvana.opening import LIMIT_VARIABLE

BACKGROUND = "background"
MAX_SIDE = 65_500  # pixels
LABELMAP = "labelmap.txt"  # of CVAT: name:red,green,blue:parts:actions
VOC_MASKS = "SegmentationClass"
VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
]
LABELME_BACKGROUND = "_background_"
BACKGROUNDS = (BACKGROUND, LABELME_BACKGROUND)  # in lower case: names that no object has
LABELME_IGNORE = "__ignore__"

Draw = Callable[[], np.ndarray]  # returns a mask, uint8 (H, W)


class AnnotatedMasks(NamedTuple):
    """The masks that annotations mean."""

    draw: Mapping[str, Draw]  # by the photograph's stem_of
    classes: list[str]  # CLASSES: one kind of object, or the background and several
    is_selection: bool = False  # of photographs, the others of which are not annotated

    def writers(self, naming: Naming) -> dict[str, Callable[[Path], None]]:
        """Return functions that write the masks as plain PNGs, by file name."""
        scale = 255 if len(self.classes) == 1 else 1
        return {
            naming.mask_file(stem): partial(_write_mask, draw, scale)
            for stem, draw in self.draw.items()
        }


class UnreadableJson(UserError):
    """A file is not JSON."""


def _write_mask(draw: Draw, scale: int, path: Path) -> None:
    write_image(Image.fromarray(draw() * np.uint8(scale)), path)


def class_values(names: Iterable[str]) -> dict[str, int]:
    """Return the value of each name in masks: 0 of the background, kinds of objects from 1 on."""
    names = list(dict.fromkeys(names))
    kinds = [name for name in names if name.lower() not in BACKGROUNDS]
    values = {name: value for value, name in enumerate(kinds, 1)}
    return {name: values.get(name, 0) for name in names}


def class_list(values: Mapping[str, int], ignores: bool = False) -> list[str]:
    """Return CLASSES for the class_values of names.

    Args:
        ignores: there are pixels to ignore, for which masks of a class alone have no value.

    Raises:
        UserError: there are no kinds of objects, or their names cannot be CLASSES.
    """
    kinds = [name for name, value in values.items() if value]
    if not kinds:
        raise UserError("the annotations name no kind of object; expected one at least")
    classes = kinds if len(kinds) == 1 and not ignores else [BACKGROUND, *kinds]
    faults = class_faults(TUTORIAL_DEFAULTS | {"CLASSES": classes})
    if faults:
        raise UserError(f"{'; '.join(faults)}; rename them in the annotations")
    return classes


def is_json(path: Path) -> bool:
    """Return whether a file is JSON, by the ending of its name."""
    return path.suffix.lower() == ".json"


def read_json(path: Path) -> Any:
    """Return what is in a JSON file. Raises UnreadableJson."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UnreadableJson(f"{one_line(path)} is not JSON that can be read ({error})") from error


def _checked_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    sides = (height, width)
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise UserError(f"{where}: expected a height and a width in pixels, found {sides}")
    megapixels = math.ceil(height * width / 1_000_000)
    limit = int(os.environ[LIMIT_VARIABLE])
    if megapixels > limit:
        raise UserError(
            f"{where}: a photograph of {megapixels:,} megapixels; expected {limit} at most; if you "
            f"trust it, add --max-megapixels {megapixels}"
        )
    return sides


def _is_coordinate(number: Any) -> bool:
    """Return whether a number is in a photograph or near it; libraries crash on others."""
    return type(number) in (int, float) and -MAX_SIDE <= number <= 2 * MAX_SIDE


# ---------------------------------------------------------------- COCO


def is_coco(content: Any) -> bool:
    """Return whether a file's content is that of COCO's instances."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def coco_masks(path: Path) -> AnnotatedMasks:
    """Return the masks of a COCO file of instances; images without objects are background.

    Small objects are drawn over large ones. Format: cocodataset.org/#format-data.

    Raises:
        UserError: it is no such file, or objects have boxes but no outlines.
    """
    content = read_json(path)
    try:
        categories = _coco_categories(content)
        values = class_values(categories.values())
        images = _by_id(content["images"], f"images of {one_line(path)}")
        objects: dict[int, list[tuple]] = {number: [] for number in images}
        for annotation in content["annotations"]:
            value = values[categories[annotation["category_id"]]]
            objects[annotation["image_id"]].append((value, annotation.get("segmentation")))
        stems = {number: _coco_stem(image) for number, image in images.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{one_line(path)} is no COCO file of instances ({type(error).__name__} {error}); "
            "expected images, annotations and categories that refer to each other"
        ) from error
    if len(set(stems.values())) < len(images):
        raise UserError(f"{one_line(path)} lists photographs of the same name; rename them")
    _refuse_boxes(path, images, objects)
    draw = {}
    for number, image in images.items():
        size = _checked_size(image.get("height"), image.get("width"), one_line(image["file_name"]))
        draw[stems[number]] = partial(_draw_coco, objects[number], size)
    return AnnotatedMasks(draw, class_list(values))


def _coco_stem(image: Mapping[str, Any]) -> str:
    """Return the stem_of a photograph, whose path may be one of Windows."""
    return stem_of(image["file_name"].replace("\\", "/"))


def _by_id(entries: Iterable[Mapping[str, Any]], description: str) -> dict[Any, Mapping[str, Any]]:
    """Return {id: entry}. Raises UserError if several have the same."""
    counts = Counter(entry["id"] for entry in entries)
    repeated = [one_line(number) for number, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"{description}: several have the id {first_few(repeated)}; expected one of each id, "
            "so renumber them"
        )
    return {entry["id"]: entry for entry in entries}


def _coco_categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Return {number: name}, without the placeholder above all others that Roboflow writes."""
    entries = _by_id(content["categories"], "categories")
    categories = {number: str(entry["name"]) for number, entry in entries.items()}
    parents = {entry.get("supercategory") for entry in content["categories"]}
    used = {annotation["category_id"] for annotation in content["annotations"]}
    return {
        number: name
        for number, name in sorted(categories.items())
        if number in used or name not in parents
    }


def _refuse_boxes(path: Path, images: Mapping, objects: Mapping[Any, list]) -> None:
    """Raise UserError if objects have no outline: as background they would be wrong."""
    faults = []
    for number, outlines in objects.items():
        boxes = sum(not segmentation for _, segmentation in outlines)
        if boxes:
            faults.append(f"{one_line(images[number]['file_name'])}: {boxes}")
    if faults:
        raise UserError(
            f"{one_line(path)} has objects with boxes but without outlines, which masks need: "
            f"{first_few(faults)}; export them as instance segmentation"
        )


def _draw_coco(objects: Sequence[tuple[int, Any]], size: tuple[int, int]) -> np.ndarray:
    """Return a mask of (value, segmentation) pairs, the largest first."""
    mask = np.zeros(size, np.uint8)
    areas = [(value, coco_area(segmentation, size)) for value, segmentation in objects]
    for value, area in sorted(areas, key=lambda item: -np.count_nonzero(item[1])):
        mask[area] = value
    return mask


def coco_area(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return bool (H, W) of polygons, rasterized by COCO's own library, or of run lengths."""
    height, width = size
    if isinstance(segmentation, list):
        coco = _import_coco()
        for polygon in segmentation:
            _check_polygon(polygon)
        codes = coco.frPyObjects([list(map(float, part)) for part in segmentation], height, width)
        return coco.decode(coco.merge(codes)).astype(bool)
    if list(segmentation["size"]) != [height, width]:
        raise UserError(f"run lengths are of size {segmentation['size']}, the photograph {size}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decode_run_lengths(counts)
    _check_run_lengths(counts, height * width)
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # zeros first, down the columns
    return pixels.reshape(width, height).T


def _decode_run_lengths(text: str) -> list[int]:
    """Return the run lengths in COCO's compressed form.

    Each is written in digits of 5 bits, the lowest first, as letters from "0" on; a sixth bit says
    that more follow. From the third on they are differences from the last but one. COCO's own
    library (maskApi.c) does not check that they cover the picture.
    """
    counts: list[int] = []
    number = 0
    shift = 0
    for code in text.encode("latin-1", "replace"):
        digit = code - ord("0")
        number |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            number -= 1 << shift  # negative, in two's complement
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = 0
        shift = 0
    return counts


def _check_polygon(numbers: Any) -> None:
    is_list = isinstance(numbers, list) and len(numbers) >= 6
    if not is_list or not all(map(_is_coordinate, numbers)):
        raise UserError(
            "expected a list of at least 6 numbers as an outline, each from "
            f"{-MAX_SIDE} to {2 * MAX_SIDE}"
        )


def _check_run_lengths(counts: Any, pixels: int) -> None:
    if not isinstance(counts, list):
        raise UserError(f"run lengths are of the kind {type(counts).__name__}, expected a list")
    if not all(type(count) is int and 0 <= count <= pixels for count in counts):
        raise UserError(f"expected run lengths that are whole numbers from 0 to {pixels}")
    if sum(counts) != pixels:
        raise UserError(f"run lengths cover {sum(counts)} of {pixels} pixels")


def _import_coco() -> Any:
    try:
        import pycocotools.mask  # not one of the requirements
    except ImportError:
        raise UserError("COCO's outlines need pycocotools: pip install pycocotools") from None
    return pycocotools.mask


# ---------------------------------------------------------------- LabelMe


def is_labelme(content: Any) -> bool:
    """Return whether a file's content is LabelMe's for one photograph."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def labelme_masks(paths: Iterable[Path]) -> AnnotatedMasks:
    """Return the masks of LabelMe's files, one of each photograph; later shapes cover earlier.

    Raises:
        UserError: naming each shape that has no area, or is of a kind that is not known.
    """
    contents = {path: read_json(path) for path in sorted(paths)}
    labels = set()
    faults = []
    for path, content in contents.items():
        try:
            for shape in content["shapes"]:
                labels.add(str(shape["label"]))
                fault = _labelme_fault(shape)
                if fault:
                    faults.append(f"{one_line(path.name)}: {fault}")
        except (KeyError, TypeError) as error:
            faults.append(f"{one_line(path.name)}: not LabelMe's ({type(error).__name__} {error})")
    if faults:
        raise UserError(bullet_list(f"{plural(len(faults), 'problem')} in annotations:", faults))
    values = class_values(sorted(labels - {LABELME_IGNORE}))
    classes = class_list(values, ignores=LABELME_IGNORE in labels)
    values[LABELME_IGNORE] = NO_CLASS
    draw = {}
    for path, content in contents.items():
        size = (content.get("imageHeight"), content.get("imageWidth"))
        size = _checked_size(*size, one_line(path.name))
        draw[stem_of(path.name)] = partial(_draw_labelme, content["shapes"], values, size)
    return AnnotatedMasks(draw, classes)


def _labelme_fault(shape: Mapping[str, Any]) -> str:
    """Return why a shape is no area; "" if it is one."""
    kind = shape.get("shape_type", "polygon")
    points = shape["points"]
    least = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if least is None:
        return f"{one_line(shape['label'])}: a {one_line(kind)} has no area; draw a polygon"
    numbers = [number for point in points for number in point]
    if len(points) < least or len(numbers) != 2 * len(points):
        return f"{one_line(shape['label'])}: {len(points)} points are no {kind}"
    if not all(map(_is_coordinate, numbers)):
        return f"{one_line(shape['label'])}: points that are no numbers, or far outside"
    if kind == "circle" and math.dist(*points[:2]) > MAX_SIDE:
        return f"{one_line(shape['label'])}: a radius over {MAX_SIDE} pixels"
    return ""


def _draw_labelme(
    shapes: Sequence[Mapping[str, Any]], values: Mapping[str, int], size: tuple[int, int]
) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for shape in shapes:
        value = values[str(shape["label"])]
        points = np.array(shape["points"], np.float64)
        kind = shape.get("shape_type", "polygon")
        if kind == "rectangle":
            (left, top), (right, bottom) = np.sort(points[:2], axis=0)
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if kind == "circle":
            center = tuple(np.rint(points[0]).astype(int).tolist())
            cv2.circle(mask, center, round(math.dist(*points[:2])), value, cv2.FILLED)
        elif kind == "mask":
            _paste(mask, shape["mask"], points, value)
        else:
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], value)
    return mask


def _paste(mask: np.ndarray, encoded: str, points: np.ndarray, value: int) -> None:
    """Draw a shape that is a picture of itself, from its upper left point on."""
    left, top = np.rint(points[0]).astype(int).tolist()
    try:
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(encoded)), formats=["PNG"]))
    except (OSError, binascii.Error, ValueError, TypeError) as error:
        raise UserError(f"a shape's picture cannot be read ({error})") from error
    window = mask[max(top, 0) : top + picture.shape[0], max(left, 0) : left + picture.shape[1]]
    part = picture[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]]
    window[part.reshape(*part.shape[:2], -1)[..., 0] > 0] = value


# ---------------------------------------------------------------- CVAT and Pascal VOC


def is_voc(folder: Path) -> bool:
    """Return whether a folder is one of CVAT's segmentation masks, or of Pascal VOC."""
    return (folder / VOC_MASKS).is_dir()


def voc_masks(folder: Path) -> AnnotatedMasks:
    """Return the masks of a tree with SegmentationClass, by the colors of its labelmap.txt.

    Without that file they are Pascal VOC's own 21 classes, and its contours are ignored.

    Raises:
        UserError: the labelmap is damaged.
    """
    names = _read_labelmap(folder / LABELMAP)
    places = class_values(names.values())
    values = {color: places[name] for color, name in names.items()}
    is_pascal = not (folder / LABELMAP).exists()
    if is_pascal:
        values[_voc_color(NO_CLASS)] = NO_CLASS
    draw = {
        stem_of(path.name): partial(_draw_colors, path, values)
        for path in sorted((folder / VOC_MASKS).glob("*.png"))
    }
    return AnnotatedMasks(draw, class_list(places), is_selection=is_pascal)


def _read_labelmap(path: Path) -> dict[Color, str]:
    """Return {color: name}; Pascal VOC's if there is no labelmap."""
    if not path.exists():
        return {_voc_color(place): name for place, name in enumerate(VOC_CLASSES)}
    names: dict[Color, str] = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, color = _parse_label(line, path)
        if names.setdefault(color, name) != name:
            raise UserError(
                f"{one_line(path)}: {one_line(names[color])} and {one_line(name)} have the same "
                f"color {','.join(map(str, color))}; expected another one for each"
            )
    return names


def _parse_label(line: str, path: Path) -> tuple[str, Color]:
    """Return the name and the color in a line of a labelmap."""
    try:
        name, color = line.split(":")[:2]
        red, green, blue = map(int, color.split(","))
        if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
            raise ValueError("colors are bytes")
    except ValueError:
        raise UserError(
            f"{one_line(path)}: expected name:red,green,blue::, each color from 0 to 255, "
            f"found {one_line(line)}"
        ) from None
    return name, (red, green, blue)


def _voc_color(value: int) -> Color:
    """Return Pascal VOC's color of a value: its bits, spread over the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (value >> bit & 1) << 7 - bit // 3
    red, green, blue = color
    return red, green, blue


def _draw_colors(path: Path, values: Mapping[Color, int]) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as image:
        pixels = np.array(image.convert("RGB")).astype(np.uint32)
    codes = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    known = {red << 16 | green << 8 | blue: value for (red, green, blue), value in values.items()}
    found, inverse = np.unique(codes, return_inverse=True)
    unknown = [f"#{code:06x}" for code in found.tolist() if code not in known]
    if unknown:
        raise UserError(f"colors that {LABELMAP} does not name: {first_few(unknown)}")
    table = np.array([known[code] for code in found.tolist()], np.uint8)
    return table[inverse].reshape(codes.shape)
