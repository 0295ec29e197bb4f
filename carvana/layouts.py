"""How others arrange a data set in a folder: where its photographs and its masks are."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from carvana.annotations import (
    AnnotatedMasks,
    coco_masks,
    is_coco,
    is_labelme,
    is_voc,
    labelme_masks,
    read_json,
    voc_masks,
)
from carvana.errors import UserError, one_line
from carvana.files import write_image
from carvana.images import IMAGE_TYPES, MASK_TYPES, picture_size
from carvana.naming import NAMING, Naming, is_visible, pair_names, split_shared_folder
from carvana.opening import is_photograph

# Names of folders, in lower case; the first of each that is there counts.
IMAGE_FOLDERS = "images imgs image img photos photographs jpegimages train_images input inputs x"
MASK_FOLDERS = (
    "masks mask labels label annotations gt groundtruth ground_truth segmentations targets "
    "train_masks y"
)
EXPECTED = (
    "expected train.zip and train_masks.zip, images/ and masks/, photographs beside their masks, "
    "or annotations of COCO, LabelMe, CVAT or Pascal VOC"
)

Writer = Callable[[Path], object]  # writes one file to a path
Files = dict[str, Writer]  # by the file's name


class Sources(NamedTuple):
    """The files of a data set, wherever they are."""

    images: Files
    masks: Files
    classes: tuple[str, ...] = ()  # CLASSES, where annotations name them


def folder_files(folder: str | Path, recursive: bool = False) -> Files:
    """Return the files of a folder, without hidden ones and those of systems.

    Args:
        recursive: look into sub-folders; a file's name is then that of its folders and its own.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no file or folder {str(folder)!r}; check the path")
    paths = folder.rglob("*") if recursive else folder.iterdir()
    files = {}
    for path in sorted(paths):
        inside = path.relative_to(folder)
        is_picture = path.suffix.lower() in IMAGE_TYPES + MASK_TYPES
        if all(map(is_visible, inside.parts)) and (is_picture or not path.is_dir()):
            files["_".join(inside.parts)] = partial(shutil.copyfile, path)
    return files


def sources_of_folder(
    folder: Path, naming: Naming = NAMING, recursive: bool = False
) -> Sources | None:
    """Return the files of a data set in one folder, arranged in any of the usual ways.

    None if it is in none of them.
    """
    if recursive:
        return _shared_folder(folder, naming, recursive)
    inner = [path for path in folder.iterdir() if is_visible(path.name)]
    if len(inner) == 1 and inner[0].is_dir():  # as archives have it
        return sources_of_folder(inner[0], naming)
    for find in (_annotated, _paired_folders, _instances, _shared_folder):
        sources = find(folder, naming)
        if sources:
            return sources
    return None


def add_empty_masks(sources: Sources, naming: Naming = NAMING) -> Sources:
    """Return sources in which each photograph has a mask: one of nothing if there was none."""
    pairs, _ = pair_names(sources.images, sources.masks, naming)
    paired = {image for image, _ in pairs}
    masks = dict(sources.masks)
    for name, write in sources.images.items():
        if name not in paired and is_photograph(name):
            stem = Path(name).stem
            shared = naming.image_name(stem) or stem
            mask = f"{naming.mask_prefix}{shared}{naming.mask_suffix}.png"
            masks.setdefault(mask, partial(_write_empty_mask, write))
    return sources._replace(masks=masks)


def _write_empty_mask(write_photograph: Writer, target: Path) -> None:
    """Write a mask of nothing, of a photograph's size."""
    photograph = target.with_name(f"{target.name}.photograph")
    try:
        write_photograph(photograph)
        size = picture_size(photograph)
    finally:
        photograph.unlink(missing_ok=True)
    write_image(Image.fromarray(np.zeros(size, np.uint8)), target)


def annotated_masks(path: Path) -> AnnotatedMasks | None:
    """Return the masks of annotations in a file or folder; None if there are none of a known kind.

    Raises:
        UserError: they are damaged.
    """
    if path.is_file():
        return coco_masks(path) if path.suffix == ".json" and is_coco(read_json(path)) else None
    if is_voc(path):
        return voc_masks(path)
    files = [file for file in sorted(path.glob("*.json")) if is_visible(file.name)]
    if not files:
        return None
    first = read_json(files[0])
    if len(files) == 1 and is_coco(first):
        return coco_masks(files[0])
    return labelme_masks(files) if is_labelme(first) else None


def match_annotations(images: Files, annotated: AnnotatedMasks) -> Sources:
    """Return those photographs that annotations know, and their masks."""
    known = {
        name: writer
        for name, writer in images.items()
        if Path(name).stem in annotated.draw and Path(name).suffix.lower() in IMAGE_TYPES
    }
    if not known:
        raise UserError(
            f"no photograph is among the annotated ones, such as {one_line(min(annotated.draw))}; "
            "give the folder of photographs first, then the annotations"
        )
    return Sources(known, annotated.writers(), tuple(annotated.classes))


def _annotated(folder: Path, _naming: Naming) -> Sources | None:
    annotated = annotated_masks(folder)
    if annotated is None:
        return None
    image_folder = _folder_of(folder, IMAGE_FOLDERS) or folder
    return match_annotations(folder_files(image_folder), annotated)


def _folder_of(folder: Path, names: str) -> Path | None:
    """Return the first of the named folders that is there."""
    folders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    return next((folders[name] for name in names.split() if name in folders), None)


def _paired_folders(folder: Path, _naming: Naming) -> Sources | None:
    images = _folder_of(folder, IMAGE_FOLDERS)
    masks = _folder_of(folder, MASK_FOLDERS)
    if not images or not masks:
        return None
    kinds = sorted(path.name for path in masks.iterdir() if path.is_dir())
    if kinds and not folder_files(masks):
        return _masks_by_class(images, masks, kinds)
    annotated = annotated_masks(masks)
    if annotated:
        return match_annotations(folder_files(images), annotated)
    return Sources(folder_files(images), folder_files(masks))


def _shared_folder(folder: Path, naming: Naming, recursive: bool = False) -> Sources | None:
    files = folder_files(folder, recursive)
    images, masks = split_shared_folder(files, naming)
    if not masks:
        return None
    return Sources({name: files[name] for name in images}, {name: files[name] for name in masks})


# ---------------------------------------------------------------- several masks of a photograph


def _instances(folder: Path, _naming: Naming) -> Sources | None:
    """Return the files of a folder for each photograph, with a mask for each of its objects.

    The Data Science Bowl of 2018 has them so.
    """
    images = {}
    masks = {}
    for sample in sorted(path for path in folder.iterdir() if path.is_dir()):
        image_folder = _folder_of(sample, IMAGE_FOLDERS)
        mask_folder = _folder_of(sample, MASK_FOLDERS)
        if not image_folder or not mask_folder:
            continue
        files = [path for path in image_folder.iterdir() if is_visible(path.name)]
        if len(files) == 1:
            suffix = files[0].suffix
            images[f"{sample.name}{suffix}"] = partial(shutil.copyfile, files[0])
            objects = [path for path in sorted(mask_folder.iterdir()) if is_visible(path.name)]
            masks[f"{sample.name}_mask.png"] = partial(_write_union, {1: objects}, 255)
    return Sources(images, masks) if images else None


def _masks_by_class(images: Path, masks: Path, kinds: Iterable[str]) -> Sources:
    """Return the files of a folder of masks for each class; later classes cover earlier ones."""
    layers: dict[str, dict[int, list[Path]]] = {}
    kinds = list(kinds)
    for value, kind in enumerate(kinds, 1):
        for path in sorted((masks / kind).iterdir()):
            if is_visible(path.name) and path.suffix.lower() in MASK_TYPES:
                layers.setdefault(path.stem, {})[value] = [path]
    scale = 255 if len(kinds) == 1 else 1
    writers = {f"{stem}.png": partial(_write_union, files, scale) for stem, files in layers.items()}
    classes = kinds if len(kinds) == 1 else ["background", *kinds]
    return Sources(folder_files(images), writers, tuple(classes))


def _write_union(layers: Mapping[int, list[Path]], scale: int, target: Path) -> None:
    """Write one mask of several: where any of a value's files is not black, that value."""
    union = None
    for value, paths in layers.items():
        for path in paths:
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if mask is None:
                raise UserError(f"{one_line(path.name)} cannot be read")
            if union is None:
                union = np.zeros(mask.shape, np.uint8)
            if mask.shape != union.shape:
                raise UserError(f"{one_line(path.name)} is of another size than its siblings")
            union[mask > 0] = value * scale
    if union is None:
        raise UserError("it has no masks")
    write_image(Image.fromarray(union), target)
