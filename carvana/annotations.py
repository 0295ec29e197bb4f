"""Annotations that others' tools write, turned into masks: COCO, LabelMe, CVAT and Pascal VOC."""

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from carvana.errors import UserError, bullet_list, first_few, one_line, plural

BACKGROUND = "background"
IGNORED = 255  # the value of pixels that are neither trained on nor scored
MAX_SIDE = 65_500  # pixels
MAX_CLASSES = 254
LABELMAP = "labelmap.txt"  # of CVAT: name:red,green,blue:parts:actions
VOC_MASKS = "SegmentationClass"
VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
]
LABELME_BACKGROUND = "_background_"
LABELME_IGNORE = "__ignore__"

Draw = Callable[[], np.ndarray]  # returns a mask, uint8 (H, W)


class AnnotatedMasks(NamedTuple):
    """The masks that annotations mean."""

    draw: dict[str, Draw]  # by the photograph's name without its ending
    classes: list[str]  # CLASSES: one kind of object, or the background and several

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """Return functions that write the masks as plain PNGs, by file name."""
        scale = 255 if len(self.classes) == 1 else 1
        return {
            f"{name}_mask.png": partial(_write_mask, draw, scale)
            for name, draw in self.draw.items()
        }


def _write_mask(draw: Draw, scale: int, path: Path) -> None:
    mask = draw() * np.uint8(scale)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    path.write_bytes(buffer.getbuffer())


def _class_list(names: Sequence[str], ignores: bool = False) -> list[str]:
    """Return CLASSES for kinds of objects. A class alone has no value for pixels to ignore."""
    if len(names) > MAX_CLASSES:
        raise UserError(f"{len(names)} classes in the annotations; expected {MAX_CLASSES} at most")
    if len(names) == 1 and not ignores:
        return list(names)
    return [BACKGROUND, *names]


def read_json(path: Path) -> Any:
    """Return what is in a JSON file. Raises UserError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{one_line(path)} is not JSON that can be read ({error})") from error


def _checked_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    sides = (height, width)
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise UserError(f"{where}: expected a height and a width in pixels, found {sides}")
    return sides


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
        values = {number: place + 1 for place, number in enumerate(categories)}
        images = {image["id"]: image for image in content["images"]}
        objects = {number: [] for number in images}
        for annotation in content["annotations"]:
            value = values[annotation["category_id"]]
            objects[annotation["image_id"]].append((value, annotation.get("segmentation")))
        names = {Path(image["file_name"]).stem for image in images.values()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{one_line(path)} is no COCO file of instances ({type(error).__name__} {error}); "
            "expected images, annotations and categories that refer to each other"
        ) from error
    if len(names) < len(images):
        raise UserError(f"{one_line(path)} lists photographs of the same name; rename them")
    _refuse_boxes(path, images, objects)
    draw = {}
    for number, image in images.items():
        size = _checked_size(image.get("height"), image.get("width"), one_line(image["file_name"]))
        draw[Path(image["file_name"]).stem] = partial(_draw_coco, objects[number], size)
    return AnnotatedMasks(draw, _class_list(list(categories.values())))


def _coco_categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Return {number: name}, without the placeholder above all others that Roboflow writes."""
    categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
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
    areas = [(value, _coco_area(segmentation, size)) for value, segmentation in objects]
    for value, area in sorted(areas, key=lambda item: -np.count_nonzero(item[1])):
        mask[area] = value
    return mask


def _coco_area(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return bool (H, W) of polygons or run lengths, rasterized by COCO's own library."""
    coco = _import_coco()
    height, width = size
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_numbers(polygon, least=6)
        codes = coco.frPyObjects([list(map(float, part)) for part in segmentation], height, width)
        return coco.decode(coco.merge(codes)).astype(bool)
    if list(segmentation["size"]) != [height, width]:
        raise UserError(f"run lengths are of size {segmentation['size']}, the photograph {size}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        _check_numbers(counts, least=1)
        if sum(counts) != height * width:
            raise UserError(f"run lengths cover {sum(counts)} of {height * width} pixels")
        segmentation = coco.frPyObjects(segmentation, height, width)
    return coco.decode(segmentation).astype(bool)


def _check_numbers(numbers: Any, least: int) -> None:
    is_list = isinstance(numbers, list) and len(numbers) >= least
    if not is_list or not all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    ):
        raise UserError(f"expected a list of at least {least} numbers as an outline")


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
            labels |= {str(shape["label"]) for shape in content["shapes"]}
            faults += [
                f"{one_line(path.name)}: {fault}"
                for shape in content["shapes"]
                if (fault := _labelme_fault(shape))
            ]
        except (KeyError, TypeError) as error:
            faults.append(f"{one_line(path.name)}: not LabelMe's ({type(error).__name__} {error})")
    if faults:
        raise UserError(bullet_list(f"{plural(len(faults), 'problem')} in annotations:", faults))
    names = sorted(labels - {LABELME_BACKGROUND, LABELME_IGNORE})
    values = {name: place + 1 for place, name in enumerate(names)}
    values |= {LABELME_BACKGROUND: 0, LABELME_IGNORE: IGNORED}
    draw = {}
    for path, content in contents.items():
        size = (content.get("imageHeight"), content.get("imageWidth"))
        size = _checked_size(*size, one_line(path.name))
        draw[path.stem] = partial(_draw_labelme, content["shapes"], values, size)
    return AnnotatedMasks(draw, _class_list(names, ignores=LABELME_IGNORE in labels))


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
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return f"{one_line(shape['label'])}: points that are no numbers"
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
    colors = _read_labelmap(folder / LABELMAP)
    names = [name for name in colors if name != BACKGROUND]
    places = {name: place + 1 for place, name in enumerate(names)} | {BACKGROUND: 0}
    values = {color: places[name] for name, color in colors.items()}
    if not (folder / LABELMAP).exists():
        values[_voc_color(IGNORED)] = IGNORED
    draw = {
        path.stem: partial(_draw_colors, path, values)
        for path in sorted((folder / VOC_MASKS).glob("*.png"))
    }
    return AnnotatedMasks(draw, _class_list(names))


def _read_labelmap(path: Path) -> dict[str, tuple[int, int, int]]:
    if not path.exists():
        return {name: _voc_color(place) for place, name in enumerate(VOC_CLASSES)}
    colors = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, color = line.split(":")[:2]
            red, green, blue = map(int, color.split(","))
        except ValueError:
            raise UserError(
                f"{one_line(path)}: expected name:red,green,blue::, found {one_line(line)}"
            ) from None
        colors[name] = (red, green, blue)
    return colors


def _voc_color(value: int) -> tuple[int, int, int]:
    """Return Pascal VOC's color of a value: its bits, spread over the channels."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (value >> bit & 1) << 7 - bit // 3
    return tuple(color)


def _draw_colors(path: Path, values: Mapping[tuple[int, int, int], int]) -> np.ndarray:
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
