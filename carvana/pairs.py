"""Which photograph belongs to which mask, and which pairs belong together."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from carvana.classes import Classes
from carvana.errors import (
    UserError,
    bullet_list,
    one_line,
    plural,
    raise_all,
    result_or_error,
)
from carvana.images import (
    IMAGE_TYPES,
    MASK_TYPES,
    Size,
    check_mask,
    check_photograph,
    picture_size,
)
from carvana.mask_values import MaskFacts, WrongValues

MASK_SUFFIX = "_mask"  # Carvana's, between a photograph's name and its mask's
CAR_REGEX = "([0-9a-f]{12})_(0[1-9]|1[0-6])"  # a Carvana name: car and angle
MAKE_DATA = "make the data with prepare_data.py, or set the folder in config.py"
Pair = tuple[Path, Path]  # photograph, mask


# ---------------------------------------------------------------- by name


def list_files(folder: str | Path, description: str) -> list[Path]:
    """Return the sorted paths of a folder's files without hidden ones.

    A sub-folder is listed if it is named like a picture: it is a mistake to be reported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"no folder {str(folder)!r}, where the {description} should be; {MAKE_DATA}"
        )
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and is_picture_or_file(path)
    )


def is_picture_or_file(path: Path) -> bool:
    """Return False for a folder, unless it is named like a picture."""
    return path.suffix.lower() in IMAGE_TYPES + MASK_TYPES or not path.is_dir()


def pair_names(
    image_names: Iterable[str], mask_names: Iterable[str], suffix: str = MASK_SUFFIX
) -> tuple[list[tuple[str, str]], list[str]]:
    """Match NAME.jpg with NAME<suffix>.png or NAME.png, or another of MASK_TYPES.

    Returns:
        Pairs of (image name, mask name) sorted by image, and what is wrong with the rest.
    """
    images, problems = _names_by_stem(image_names, IMAGE_TYPES, "an image")
    masks, mask_problems = _names_by_stem(mask_names, MASK_TYPES, "a mask")
    # A photograph's own name may end with the suffix.
    masks_by_image = {}
    for stem, names in masks.items():
        image_stem = stem if stem in images else stem.removesuffix(suffix)
        masks_by_image.setdefault(image_stem, []).extend(names)
    problems += _ambiguities(images, "image")
    problems += mask_problems + _ambiguities(masks_by_image, "mask")
    for stem, names in images.items():
        if stem not in masks_by_image:
            problems.append(_missing_mask(names[0], stem, suffix))
    for stem, names in masks_by_image.items():
        if stem not in images:
            problems.append(
                f"{one_line(names[0])}: mask without an image "
                f"(expected {one_line(stem)}.jpg or the like)"
            )
    pairs = [
        (names[0], masks_by_image[stem][0])
        for stem, names in images.items()
        if len(names) == len(masks_by_image.get(stem, [])) == 1
    ]
    return pairs, problems


def _names_by_stem(
    names: Iterable[str], types: tuple[str, ...], kind: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Return {name without its ending: names} in order, and the names of other types."""
    stems = {}
    problems = []
    for name in sorted(names):
        if Path(name).suffix.lower() not in types:
            problems.append(f"{one_line(name)}: not {kind} ({' '.join(types)})")
        else:
            stems.setdefault(Path(name).stem, []).append(name)
    return stems, problems


def _ambiguities(stems: dict[str, list[str]], kind: str) -> list[str]:
    return [
        f"{one_line(stem)}: more than one {kind}: {', '.join(map(one_line, names))}"
        for stem, names in stems.items()
        if len(names) > 1
    ]


def _missing_mask(name: str, stem: str, suffix: str) -> str:
    expected = f"{one_line(stem + suffix)}.gif or .png"
    if suffix:
        expected += f", or {one_line(stem)}.gif or .png"
    return (
        f"{one_line(name)}: image without a mask (expected {expected}; MASK_SUFFIX is {suffix!r})"
    )


def pair_folders(
    image_dir: str | Path, mask_dir: str | Path, suffix: str = MASK_SUFFIX
) -> tuple[list[Pair], list[str]]:
    """Return the pairs of paths that belong together by name, and what is wrong with the rest.

    Raises:
        UserError: a folder is missing or holds no images, or nothing pairs.
    """
    images = {path.name: path for path in list_files(image_dir, "images")}
    masks = {path.name: path for path in list_files(mask_dir, "masks")}
    if not images:
        raise UserError(f"no images in {str(image_dir)!r}; {MAKE_DATA}")
    names, problems = pair_names(images, masks, suffix)
    if not names and masks:
        raise UserError(
            f"no image in {str(image_dir)!r} (such as {min(images)}) has a mask in "
            f"{str(mask_dir)!r} (such as {min(masks)}); expected NAME.jpg and NAME{suffix}.png or "
            "NAME.png; set MASK_SUFFIX to what stands between a photograph's name and its mask's"
        )
    return [(images[image], masks[mask]) for image, mask in names], problems


def find_pairs(
    image_dir: str | Path, mask_dir: str | Path, suffix: str = MASK_SUFFIX
) -> list[Pair]:
    """Return all (image path, mask path) of two folders, sorted by name.

    Raises:
        UserError: naming everything that is wrong with names and sizes.
    """
    pairs, problems = pair_folders(image_dir, mask_dir, suffix)
    for image, mask in pairs:
        try:
            problems += size_faults(image, picture_size(image), mask, picture_size(mask))
        except UserError as error:
            problems.append(str(error))
    if problems:
        headline = (
            f"{plural(len(problems), 'problem')} in {str(image_dir)!r} and {str(mask_dir)!r}; "
            "put them right, or let prepare_data.py --skip-bad leave these files out"
        )
        raise UserError(bullet_list(headline, problems))
    return pairs


def check_folders(*folders: tuple[str, str], suffix: str = MASK_SUFFIX) -> None:
    """Raise one UserError with what is wrong in any of several (image_dir, mask_dir)."""
    raise_all([result_or_error(find_pairs, *pair, suffix) for pair in folders])


# ---------------------------------------------------------------- by content


class PairCheck(NamedTuple):
    """What a look at a pair's files brings to light."""

    faults: list[str]  # what is wrong, in words
    warnings: list[str]  # what is odd, in words
    facts: MaskFacts | None  # None if the mask cannot be read
    wrong_values: bool  # whether the mask's values mean nothing


def check_pair(image_path: Path, mask_path: Path, classes: Classes) -> tuple[list[str], list[str]]:
    """Read both files to their end; return (what is wrong, what is odd) in words."""
    check = inspect_pair(image_path, mask_path, classes)
    return check.faults, check.warnings


def inspect_pair(image_path: Path, mask_path: Path, classes: Classes) -> PairCheck:
    """Read both files to their end."""
    faults = []
    warnings = []
    sizes = []
    facts = None
    wrong_values = False
    try:
        sizes.append(check_photograph(image_path))
    except UserError as error:
        faults.append(_by_name(error, image_path))
    try:
        mask_size, facts = check_mask(mask_path, classes)
        sizes.append(mask_size)
        if classes.single and facts.share in (0, 1):
            oddity = "all of the mask is foreground" if facts.share else "empty mask"
            warnings.append(f"{one_line(mask_path.name)}: {oddity}")
    except UserError as error:
        faults.append(_by_name(error, mask_path))
        wrong_values = isinstance(error.__cause__, WrongValues)
    if len(sizes) == 2:
        faults += size_faults(image_path, sizes[0], mask_path, sizes[1])
    return PairCheck(faults, warnings, facts, wrong_values)


def _by_name(error: UserError, path: Path) -> str:
    """Return an error's message with a file's name in place of its path."""
    return str(error).replace(one_line(path), one_line(path.name))


def size_faults(image: Path, size: Size, mask: Path, mask_size: Size) -> list[str]:
    """Return what is wrong with a pair's sizes, in words; nothing if they are equal."""
    if size == mask_size:
        return []
    return [
        f"{one_line(image.name)}: {size[1]}x{size[0]} pixels, "
        f"its mask {one_line(mask.name)} {mask_size[1]}x{mask_size[0]}"
    ]


# ---------------------------------------------------------------- by group


def group_of(name: str, regex: str = CAR_REGEX) -> str:
    """Return what must stay on one side of a split.

    Of a name that the regular expression matches, that is its first bracket that holds
    something, or the whole match; of any other name, the name without its ending.
    """
    stem = Path(name).stem
    match = re.fullmatch(regex, stem)
    if not match:
        return stem
    return next((group for group in match.groups() if group is not None), match[0])


def split_groups(groups: Iterable[str], fractions: Iterable[float], seed: int) -> list[set[str]]:
    """Split groups by the fractions; the last set of the result holds the rest.

    The order is that of a hash of (seed, group): the same on every machine, whatever order the
    groups come in, and the first splits stay the same when a further one is asked for.
    """
    order = sorted(
        set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()
    )
    splits = []
    start = 0
    for fraction in fractions:
        count = max(1, round(fraction * len(order))) if fraction else 0
        splits.append(set(order[start : start + count]))
        start += count
    return [*splits, set(order[start:])]
