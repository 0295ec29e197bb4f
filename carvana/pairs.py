"""Which photograph belongs to which mask, and which pairs belong together."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
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
    warn,
)
from carvana.files import same_file
from carvana.images import (
    IMAGE_TYPES,
    MASK_TYPES,
    PIXELS,
    Pixels,
    Size,
    check_mask,
    check_photograph,
    describe_turn,
    picture_size,
)
from carvana.mask_values import MaskFacts, WrongValues
from carvana.naming import (
    NAMING,
    Naming,
    is_mask,
    is_visible,
    pair_names,
    propose_naming,
    split_shared_folder,
)
from carvana.opening import describe_left_out, is_photograph
from carvana.options import option_words

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
        path for path in folder.iterdir() if is_visible(path.name) and is_picture_or_file(path)
    )


def is_picture_or_file(path: Path) -> bool:
    """Return False for a folder, unless it is named like a picture."""
    return path.suffix.lower() in IMAGE_TYPES + MASK_TYPES or not path.is_dir()


def pair_folders(
    image_dir: str | Path, mask_dir: str | Path, naming: Naming = NAMING
) -> tuple[list[Pair], list[str]]:
    """Return the pairs of paths that belong together by name, and what is wrong with the rest.

    Photographs and masks may be in one folder.

    Raises:
        UserError: a folder is missing or holds no images or masks, or nothing pairs.
    """
    images, masks = list_both(image_dir, mask_dir, naming)
    if not any(is_photograph(name) for name in images):
        raise UserError(f"no images in {str(image_dir)!r}; {MAKE_DATA}")
    if not any(is_mask(name) for name in masks):
        raise UserError(f"no masks in {str(mask_dir)!r}; {MAKE_DATA}")
    names, problems = pair_names(images, masks, naming)
    if not names:
        raise UserError(_describe_no_pairs(image_dir, images, mask_dir, masks, naming))
    pairs = [(images[image], masks[mask]) for image, mask in names]
    if problems:
        problems += propose_options(images, masks, naming)
    return pairs, problems


def list_both(
    image_dir: str | Path, mask_dir: str | Path, naming: Naming = NAMING
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return {name: path} of the photographs and of the masks in two folders, or in one."""
    files = {path.name: path for path in list_files(image_dir, "images")}
    if not same_file(image_dir, mask_dir):
        return files, {path.name: path for path in list_files(mask_dir, "masks")}
    image_names, mask_names = split_shared_folder(files, naming)
    images = {name: files[name] for name in image_names}
    return images, {name: files[name] for name in mask_names}


def _describe_no_pairs(
    image_dir: str | Path,
    images: Mapping[str, Path],
    mask_dir: str | Path,
    masks: Mapping[str, Path],
    naming: Naming,
) -> str:
    """Return the message of two folders in which nothing pairs."""
    expected = f"{naming.mask_prefix}NAME{naming.mask_suffix}.png"
    message = (
        f"no image in {str(image_dir)!r} (such as {one_line(min(images))}) has a mask in "
        f"{str(mask_dir)!r} (such as {one_line(min(masks))}); expected "
        f"{naming.image_prefix}NAME{naming.image_suffix}.jpg and {expected} or NAME.png"
    )
    exchanged, _ = pair_names(masks, images, naming)
    if exchanged:
        return f"{message}; {len(exchanged)} pair the other way round: exchange the two folders"
    proposals = propose_options(images, masks, naming)
    advice = proposals[0] if proposals else "set MASK_SUFFIX to what follows the shared name"
    return f"{message}; {advice}"


def propose_options(
    image_names: Iterable[str], mask_names: Iterable[str], naming: Naming = NAMING
) -> list[str]:
    """Return which options would pair more of the files, in at most one line."""
    images = [name for name in image_names if is_photograph(name)]
    proposal = propose_naming(images, [name for name in mask_names if is_mask(name)], naming)
    if proposal is None:
        return []
    affixes = proposal.naming.differing(naming).items()
    typed = [option_words(constant, affix) for constant, affix in affixes]
    return [f"{proposal.pairs} of {proposal.images} pair with {' '.join(typed)}"]


def warn_of_left_out(image_dir: str | Path, mask_dir: str | Path) -> None:
    """Print which files of these folders are no photographs and no masks."""
    images = [path.name for path in list_files(image_dir, "images")]
    if same_file(image_dir, mask_dir):
        print_left_out(images, lambda name: is_photograph(name) or is_mask(name), image_dir)
        return
    print_left_out(images, is_photograph, image_dir)
    print_left_out([path.name for path in list_files(mask_dir, "masks")], is_mask, mask_dir)


def print_left_out(names: Iterable[str], is_known: Callable[[str], bool], place: object) -> None:
    """Print which of the files in a place are of no known kind, in one line if there are any."""
    others = [name for name in names if not is_known(name)]
    if others:
        warn(f"left out of {one_line(place)}: {describe_left_out(others)}")


def find_pairs(image_dir: str | Path, mask_dir: str | Path, naming: Naming = NAMING) -> list[Pair]:
    """Return all (image path, mask path) of two folders, sorted by name.

    Raises:
        UserError: naming everything that is wrong with names and sizes.
    """
    pairs, problems = pair_folders(image_dir, mask_dir, naming)
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


def check_folders(*folders: tuple[str, str], naming: Naming = NAMING) -> list[list[Pair]]:
    """Return the pairs of each of several (image_dir, mask_dir); print what is left out of them.

    Raises:
        UserError: with everything that is wrong in any of them.
    """
    results = [result_or_error(find_pairs, *pair, naming) for pair in folders]
    raise_all(results)
    for pair in folders:
        warn_of_left_out(*pair)
    return results


# ---------------------------------------------------------------- by content


class PairCheck(NamedTuple):
    """What a look at a pair's files brings to light."""

    faults: list[str]  # what is wrong, in words
    warnings: list[str]  # what is odd, in words
    facts: MaskFacts | None  # None if the mask cannot be read
    wrong_values: bool  # whether the mask's values mean nothing


def inspect_pair(
    image_path: Path, mask_path: Path, classes: Classes, pixels: Pixels = PIXELS
) -> PairCheck:
    """Read both files to their end."""
    faults = []
    warnings = []
    sizes = []
    facts = None
    wrong_values = False
    try:
        sizes.append(check_photograph(image_path, pixels))
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
    fault = (
        f"{one_line(image.name)}: {size[1]}x{size[0]} pixels, "
        f"its mask {one_line(mask.name)} {mask_size[1]}x{mask_size[0]}"
    )
    if size == mask_size[::-1]:
        fault += describe_turn(image, mask)
    return [fault]


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
