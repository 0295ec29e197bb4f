"""How others arrange a data set in a folder: where its photographs and its masks are."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from carvana.annotations import (
    VOC_MASKS,
    AnnotatedMasks,
    UnreadableJson,
    class_list,
    class_values,
    coco_masks,
    is_coco,
    is_json,
    is_labelme,
    is_voc,
    labelme_masks,
    read_json,
    voc_masks,
)
from carvana.classes import SINGLE, Classes
from carvana.errors import UserError, bullet_list, first_few, one_line, plural, warn
from carvana.files import write_image
from carvana.images import IMAGE_TYPES, picture_size, read_hard_mask, stored_values
from carvana.mask_values import WrongValues, list_values
from carvana.naming import (
    NAMING,
    Naming,
    is_mask,
    is_visible,
    pair_names,
    split_shared_folder,
    stem_of,
)
from carvana.opening import is_photograph
from carvana.pairs import is_picture_or_file

# Names of folders, in lower case; the first of each that is there counts.
IMAGE_FOLDERS = "images imgs image img photos photographs jpegimages train_images input inputs x"
MASK_FOLDERS = (
    "masks mask labels label annotations gt groundtruth ground_truth segmentations targets "
    "train_masks y"
)
SPLIT_FOLDERS = "train training val valid validation test testing"  # in lower case; no classes
EXPECTED = (
    "expected train.zip and train_masks.zip, images/ and masks/, photographs beside their masks, "
    "or annotations of COCO, LabelMe, CVAT or Pascal VOC"
)

Writer = Callable[[Path], object]  # writes one file to a path
Files = Mapping[str, Writer]  # by the file's name


class Sources(NamedTuple):
    """The files of a data set, wherever they are."""

    images: Files
    masks: Files
    classes: tuple[str, ...] = ()  # CLASSES, where annotations name them


def folder_files(folder: str | Path, recursive: bool = False) -> Files:
    """Return the files of a folder, without hidden ones and those of systems.

    Args:
        recursive: look into sub-folders; a file's name is then that of its folders and its own.

    Raises:
        UserError: there is no such folder, or two files get the same name.
        OSError: a folder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no file or folder {str(folder)!r}; check the path")
    files = {}
    repeated = []
    for path in sorted(_paths_below(folder, recursive)):
        inside = path.relative_to(folder)
        if all(map(is_visible, inside.parts)) and is_picture_or_file(path):
            name = "_".join(inside.parts)
            if name in files:
                repeated.append(f"{one_line(inside)}: a second file that gets the name {name}")
            files[name] = partial(shutil.copyfile, path)
    if repeated:
        raise UserError(
            bullet_list(f"{one_line(folder)} is refused; rename folders or files:", repeated)
        )
    return files


def _paths_below(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield the paths in a folder, and in its sub-folders but the hidden ones if asked to.

    Raises:
        OSError: one of the folders cannot be read.
    """
    for path in folder.iterdir():
        yield path
        if recursive and is_visible(path.name) and path.is_dir() and not path.is_symlink():
            yield from _paths_below(path, recursive)


def data_folder(folder: Path) -> Path:
    """Return a folder, or the one that is all there is in it, as archives have it."""
    inner = [path for path in folder.iterdir() if is_visible(path.name)]
    if len(inner) == 1 and inner[0].is_dir() and not is_voc(folder):
        return data_folder(inner[0])
    return folder


def sources_of_folder(
    folder: Path, naming: Naming = NAMING, recursive: bool = False
) -> Sources | None:
    """Return the files of a data set in one folder, arranged in any of the usual ways.

    None if it is in none of them.
    """
    if recursive:
        return _shared_folder(folder, naming, recursive)
    folder = data_folder(folder)
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
            mask = naming.mask_file(Path(name).stem)
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
    """Return the masks of annotations in a file or folder; None if a folder has none.

    Raises:
        UserError: they are damaged, or a file is of no known kind.
    """
    if path.is_file():
        return _masks_of_file(path)
    if is_voc(path):
        return voc_masks(path)
    files = [file for file in sorted(path.iterdir()) if is_json(file) and is_visible(file.name)]
    if not files:
        return None
    first = read_json(files[0])
    if len(files) == 1 and is_coco(first):
        return coco_masks(files[0])
    return labelme_masks(files) if is_labelme(first) else None


def _masks_of_file(path: Path) -> AnnotatedMasks:
    content = read_json(path)
    if is_coco(content):
        return coco_masks(path)
    if is_labelme(content):
        return labelme_masks([path])
    raise UserError(
        f"{one_line(path)} is JSON of no known kind; expected COCO's instances (images, "
        "annotations and categories), or LabelMe's shapes of a photograph; export it as one of them"
    )


def _annotations_if_readable(folder: Path) -> AnnotatedMasks | None:
    """Return annotated_masks of a folder; None, and a warning, if a file is not JSON at all."""
    try:
        return annotated_masks(folder)
    except UnreadableJson as error:
        warn(f"no annotations: {error}")
        return None


def match_annotations(images: Files, annotated: AnnotatedMasks, naming: Naming = NAMING) -> Sources:
    """Return photographs and the masks that annotations mean.

    Photographs that they do not know stay without a mask, or are left out of a selection.
    """
    photographs = {
        name: writer for name, writer in images.items() if Path(name).suffix.lower() in IMAGE_TYPES
    }
    known = {name: photographs[name] for name in photographs if stem_of(name) in annotated.draw}
    if not known:
        example = f", such as {one_line(min(annotated.draw))}" if annotated.draw else ""
        raise UserError(
            f"no photograph is among the annotated ones{example}; "
            "give the folder of photographs first, then the annotations"
        )
    if annotated.is_selection and len(known) < len(photographs):
        count = plural(len(photographs) - len(known), "photograph")
        warn(f"left out: {count} without a mask in {VOC_MASKS}")
        photographs = known
    return Sources(photographs, annotated.writers(naming), tuple(annotated.classes))


def _annotated(folder: Path, naming: Naming) -> Sources | None:
    image_folder = _folder_of(folder, IMAGE_FOLDERS)
    if image_folder and _folder_of(folder, MASK_FOLDERS):
        annotated = _annotations_if_readable(folder)
    else:
        annotated = annotated_masks(folder)
    if annotated is None:
        return None
    return match_annotations(folder_files(image_folder or folder), annotated, naming)


def _folder_of(folder: Path, names: str) -> Path | None:
    """Return the first of the named folders that is there."""
    folders = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    return next((folders[name] for name in names.split() if name in folders), None)


def _paired_folders(folder: Path, naming: Naming) -> Sources | None:
    images = _folder_of(folder, IMAGE_FOLDERS)
    masks = _folder_of(folder, MASK_FOLDERS)
    if not images or not masks:
        return None
    files = folder_files(masks)
    kinds = sorted(path.name for path in masks.iterdir() if path.is_dir() and is_visible(path.name))
    if kinds and not files:
        return _masks_by_class(images, masks, kinds)
    has_pictures = any(map(is_mask, files))
    annotated = _annotations_if_readable(masks) if has_pictures else annotated_masks(masks)
    if annotated:
        return match_annotations(folder_files(images), annotated, naming)
    return Sources(folder_files(images), files)


def _shared_folder(folder: Path, naming: Naming, recursive: bool = False) -> Sources | None:
    files = folder_files(folder, recursive)
    images, masks = split_shared_folder(files, naming)
    if not masks:
        return None
    return Sources({name: files[name] for name in images}, {name: files[name] for name in masks})


# ---------------------------------------------------------------- several masks of a photograph


def _instances(folder: Path, naming: Naming) -> Sources | None:
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
            masks[naming.mask_file(sample.name)] = partial(_write_union, {1: objects}, 255)
    return Sources(images, masks) if images else None


def _masks_by_class(images: Path, masks: Path, kinds: Sequence[str]) -> Sources:
    """Return the files of a folder of masks for each class; later classes cover earlier ones."""
    splits = [kind for kind in kinds if kind.lower() in SPLIT_FOLDERS.split()]
    if splits:
        raise UserError(
            f"{one_line(masks)} has the sub-folders {first_few(splits)}, which are splits, not "
            "classes; give one split's folders with --images and --masks, or all of them with "
            f"--images {one_line(images)} --masks {one_line(masks)} --recursive"
        )
    values = class_values(kinds)
    classes = class_list(values)
    print(f"classes from the sub-folders of {one_line(masks)}: {' '.join(map(one_line, kinds))}")
    layers: dict[str, dict[int, list[Path]]] = {}
    for kind, value in values.items():
        for path in sorted((masks / kind).iterdir()):
            if is_visible(path.name) and is_mask(path.name):
                layers.setdefault(stem_of(path.name), {}).setdefault(value, []).append(path)
    scale = 255 if len(classes) == 1 else 1
    writers = {f"{stem}.png": partial(_write_union, files, scale) for stem, files in layers.items()}
    return Sources(folder_files(images), writers, tuple(classes))


def _write_union(layers: Mapping[int, list[Path]], scale: int, target: Path) -> None:
    """Write one mask of several: where any of a value's files is foreground, that value."""
    union = None
    for value, paths in layers.items():
        for path in paths:
            area = _read_area(path)
            if union is None:
                union = np.zeros(area.shape, np.uint8)
            if area.shape != union.shape:
                raise UserError(f"{one_line(path.name)} is of another size than its siblings")
            union[area] = value * scale
    if union is None:
        raise UserError("it has no masks")
    write_image(Image.fromarray(union), target)


def _read_area(path: Path) -> np.ndarray:
    """Return bool (H, W): the foreground of a mask, or its only value, an object's number."""
    try:
        return read_hard_mask(path, SINGLE) > 0
    except UserError as error:
        if not isinstance(error.__cause__, WrongValues):
            raise
        values = stored_values(path).values
        numbers = [value for value in values if value]
        if len(numbers) != 1:
            raise UserError(
                f"{one_line(path.name)} holds {len(values)} values, {list_values(values)}; "
                "expected 0 and one of an object; save it as a PNG of two values"
            ) from error
    return read_hard_mask(path, Classes(values=(0, numbers[0]))) > 0
