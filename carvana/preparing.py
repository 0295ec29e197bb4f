"""Making a data set ready for training: check every pair, split by group, put it in place."""

import contextlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from carvana import system
from carvana.classes import Classes
from carvana.errors import (
    UserError,
    bullet_list,
    describe_os_error,
    first_few,
    first_lines,
    one_line,
    plural,
    warn,
)
from carvana.files import identical_files, same_files, visible_files
from carvana.images import PIXELS, Pixels, advise_on_files, judge_levels
from carvana.layouts import add_empty_masks
from carvana.locks import locked
from carvana.mask_values import judge_set
from carvana.naming import NAMING, Naming, is_mask, pair_names
from carvana.opening import is_photograph
from carvana.options import option_words
from carvana.pairs import (
    PairCheck,
    group_of,
    inspect_pair,
    pair_folders,
    print_left_out,
    propose_options,
    split_groups,
)
from carvana.rendering import SetOptions, render_set
from carvana.sources import Sources, write_file
from carvana.threads import map_in_threads
from carvana.two_values import settle_values

SPLITS = ("val", "test", "train")  # in the order in which split_groups returns them
KINDS = ("images", "masks")
FOLDERS = [f"{split}_{kind}" for split in SPLITS for kind in KINDS]
EXAMPLES = 10  # of what is wrong, where nothing pairs
STAGING = ".preparing"  # beside the folders, so that moving into place is a rename

PairNames = tuple[str, str]  # names of a photograph and of its mask


@dataclass(frozen=True)
class DataOptions:
    """What the files of a data set mean, and what to do with them."""

    naming: Naming
    group_regex: str  # GROUP_REGEX
    classes: Classes
    pixels: Pixels
    val_fraction: float  # share of the groups, 0 to 1
    test_fraction: float
    seed: int  # of the split
    skip_bad: bool  # leave bad files out instead of stopping
    force: bool  # replace what is in place
    empty_masks: bool = False  # for photographs without one

    def group(self, name: str) -> str:
        """Return what must stay on one side of the split, of a photograph's name."""
        return group_of(name, self.group_regex)


def prepare(out: Path, open_sources: Callable[[Path], Sources], options: DataOptions) -> None:
    """Check all pairs, split them by group, put them in place and print how many there are.

    Args:
        out: the folder of train_images, train_masks and so on.
        open_sources: takes a folder for temporary files, returns where the files come from.
        options: what the files mean, and what to do with them.

    Raises:
        UserError: with everything that is wrong; `out` is as it was.
    """
    _replace_folders(out, partial(_fill_with_pairs, open_sources, options), options.force)


def prepare_demo(out: Path, options: SetOptions, force: bool) -> None:
    """Render a data set and put it in place.

    Raises:
        UserError: it cannot be rendered, or other data is in place; `out` is as it was.
    """
    _replace_folders(out, partial(_fill_with_cars, options, out, force), force)


def check(out: Path, options: DataOptions) -> None:
    """Read every pair in place, see that no group is on two sides, and print how many there are.

    Raises:
        UserError: with everything that is wrong.
    """
    problems = []
    groups_by_split: dict[str, set[str]] = {}
    for split in reversed(SPLITS):  # the masks to train on say what values mean
        if split == "test" and not visible_files(out / "test_images"):
            continue
        image_folder = out / f"{split}_images"
        mask_folder = out / f"{split}_masks"
        try:
            pairs, faults = pair_folders(image_folder, mask_folder, options.naming)
        except UserError as error:
            problems.append(str(error))
            continue
        try:
            if split == "train":
                options = _settle_values([mask for _, mask in pairs], options)
            problems += faults + _check_in_place(pairs, split, options)
            _judge_photographs([image for image, _ in pairs], options)
        except UserError as error:
            problems.append(f"{mask_folder}: {error}")
        groups = {options.group(image.name) for image, _ in pairs}
        problems += _find_leaks(split, groups, groups_by_split)
        groups_by_split[split] = groups
        print(_describe_split(split, len(groups), len(pairs)))
    if problems:
        raise UserError(bullet_list(f"{plural(len(problems), 'problem')} in {out}:", problems))


def _describe_split(split: str, groups: int, pairs: int) -> str:
    return f"{split:5}  {groups:5} cars  {pairs:6} pairs"


def _check_in_place(
    pairs: Sequence[tuple[Path, Path]], split: str, options: DataOptions
) -> list[str]:
    """Read pairs of files; return what is wrong with them, and print what is odd.

    Raises:
        UserError: the masks as a whole do not mean what their classes say.
    """
    check_files = partial(_check_files, options)
    results = map_in_threads(check_files, pairs, f"checking {split}")
    with contextlib.closing(results):
        checks = list(results)
    for check in checks:
        _print_warnings(check.warnings)
    advice = _judge(checks, [mask for _, mask in pairs], options.classes, split == "train")
    faults = [fault for check in checks for fault in check.faults]
    return [advice, *faults] if advice else faults


def _settle_values(masks: Sequence[Path], options: DataOptions) -> DataOptions:
    """Return the options with the two values that all masks hold, where these are unusual."""
    return replace(options, classes=settle_values(masks, options.classes))


def _check_files(options: DataOptions, pair: tuple[Path, Path]) -> PairCheck:
    return inspect_pair(*pair, options.classes, options.pixels)


def _judge(
    checks: Sequence[PairCheck], masks: Sequence[Path], classes: Classes, training: bool
) -> str:
    """Print what is odd about all masks; return what to set where some hold wrong values.

    Raises:
        UserError: the masks do not mean what `classes` says.
    """
    facts = [check.facts for check in checks if check.facts]
    if facts:
        _print_warnings(judge_set(facts, classes, training))
    return advise_on_files(masks, classes, sum(check.wrong_values for check in checks))


def _judge_photographs(images: Sequence[Path], options: DataOptions) -> None:
    """Print what is odd about the levels of 16-bit photographs."""
    oddity = judge_levels(images, options.pixels.levels)
    if oddity:
        _print_warnings([oddity])


def _print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        warn(f"warning: {warning}")


def _find_leaks(split: str, groups: set[str], groups_by_split: dict[str, set[str]]) -> list[str]:
    """Return which of a split's groups are in other splits too, in words."""
    leaks = []
    for other_split, other_groups in groups_by_split.items():
        for group in sorted(groups & other_groups):
            leaks.append(f"car {group} is in {split} and in {other_split}")
    return leaks


# ---------------------------------------------------------------- filling new folders


def _fill_with_pairs(
    open_sources: Callable[[Path], Sources], options: DataOptions, staging: Path
) -> str:
    """Write checked and split pairs into the folders of staging/new; return what was done.

    Raises:
        UserError: with everything that is wrong.
    """
    sources = open_sources(staging)
    if sources.classes:
        options = replace(options, classes=Classes(sources.classes))
    if options.empty_masks:
        sources = add_empty_masks(sources, options.naming)
    pairs, problems = _pair_sources(sources, options.naming)
    copies = staging / "all"
    checks = _copy_and_check(pairs, sources, copies, options)
    masks = [copies / "masks" / mask for _, mask in pairs]
    settled = _settle_values(masks, options)
    if settled != options:
        options = settled
        checks = _check_again(checks, pairs, copies, options)
    warnings = [warning for check in checks for warning in check.warnings]
    problems += [fault for check in checks for fault in check.faults]
    advice = _judge(checks, masks, options.classes, training=True)
    _judge_photographs([copies / "images" / image for image, _ in pairs], options)
    _report(problems, warnings, advice, options.skip_bad)
    pairs = [pair for pair, check in zip(pairs, checks, strict=True) if not check.faults]
    if not pairs:
        raise UserError("no good pair is left; put the files right that are listed above")
    splits = _split_pairs(pairs, copies / "images", options)
    for split, split_pairs in splits.items():
        _move_pairs(split_pairs, split, copies, staging / "new")
    lines = [_describe_splits(splits, options)]
    lines += _describe_settings(options, sources.classes)
    return "\n".join(lines)


def _counted(noun: str, names: Iterable[str]) -> str:
    """Return how many files there are, and the first: "2 images (such as a.jpg)"."""
    ordered = sorted(names)
    example = f" (such as {one_line(ordered[0])})" if ordered else ""
    return f"{plural(len(ordered), noun)}{example}"


def _pair_sources(sources: Sources, naming: Naming) -> tuple[list[PairNames], list[str]]:
    """Return the names that belong together, and what is wrong with the rest, in words.

    Raises:
        UserError: no photograph has a mask.
    """
    pairs, problems = pair_names(sources.images, sources.masks, naming)
    proposals = propose_options(sources.images, sources.masks, naming) if problems else []
    if not pairs:
        images = _counted("image", filter(is_photograph, sources.images))
        masks = _counted("mask", filter(is_mask, sources.masks))
        lines = [*first_lines(problems, EXAMPLES), *proposals]
        raise UserError(
            bullet_list(f"no image with a mask was found, of {images} and {masks}", lines)
        )
    print_left_out(sources.images, is_photograph, "the images")
    print_left_out(sources.masks, is_mask, "the masks")
    return pairs, problems + proposals


def _copy_and_check(
    pairs: Sequence[PairNames], sources: Sources, folder: Path, options: DataOptions
) -> list[PairCheck]:
    """Copy all pairs into folder/images and folder/masks, and read them."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
    copy_and_check = partial(_copy_and_check_pair, sources, folder, options)
    results = map_in_threads(copy_and_check, pairs, "checking")
    with contextlib.closing(results):  # no thread outlives an interruption
        return list(results)


def _copy_and_check_pair(
    sources: Sources, folder: Path, options: DataOptions, pair: PairNames
) -> PairCheck:
    image, mask = pair
    image_path = folder / "images" / image
    mask_path = folder / "masks" / mask
    files = ((sources.images[image], image_path), (sources.masks[mask], mask_path))
    for write, path in files:
        try:
            write_file(write, path)
        except UserError as error:
            fault = f"{one_line(path.name)}: cannot be read ({error})"
            return PairCheck([fault], [], None, False)
    return inspect_pair(image_path, mask_path, options.classes, options.pixels)


def _check_again(
    checks: Sequence[PairCheck], pairs: Sequence[PairNames], folder: Path, options: DataOptions
) -> list[PairCheck]:
    """Read the copied pairs again, now that their masks' values have been settled."""
    tasks = [
        (check, folder / "images" / image, folder / "masks" / mask)
        for check, (image, mask) in zip(checks, pairs, strict=True)
    ]
    results = map_in_threads(partial(_check_copy_again, options), tasks, "checking again")
    with contextlib.closing(results):
        return list(results)


def _check_copy_again(options: DataOptions, task: tuple[PairCheck, Path, Path]) -> PairCheck:
    check, image, mask = task
    were_copied = image.exists() and mask.exists()
    return inspect_pair(image, mask, options.classes, options.pixels) if were_copied else check


def _report(problems: Sequence[str], warnings: Iterable[str], advice: str, skip_bad: bool) -> None:
    """Print warnings; raise a UserError that lists the problems, or print those if skip_bad.

    Args:
        advice: what to set so that masks can be read, or "".
    """
    _print_warnings(warnings)
    if problems and not skip_bad:
        headline = (
            f"{plural(len(problems), 'problem')}; nothing was changed. "
            "Put them right, or leave these files out with --skip-bad:"
        )
        lines = [advice, *problems] if advice else problems
        raise UserError(bullet_list(headline, lines))
    if advice:
        warn(f"warning: {advice}")
    for problem in problems:
        warn(f"left out: {problem}")


def _split_pairs(
    pairs: Sequence[PairNames], images: Path, options: DataOptions
) -> dict[str, list[PairNames]]:
    """Return the pairs of each of SPLITS; all pairs of a group are in the same one.

    Groups that share a photograph count as one.
    """
    groups = {image: options.group(image) for image, _ in pairs}
    copies = identical_files([images / image for image in groups])
    for same in copies:
        shared = {groups[path.name] for path in same}
        if len(shared) == 1:
            continue
        for image, group in groups.items():
            groups[image] = min(shared) if group in shared else group
    if copies:
        examples = [" = ".join(one_line(path.name) for path in same) for same in copies]
        warn(f"photographs of the same content stay on one side: {first_few(examples)}")
    fractions = (options.val_fraction, options.test_fraction)
    group_sets = split_groups(groups.values(), fractions, options.seed)
    splits = {}
    for split, group_set in zip(SPLITS, group_sets, strict=True):
        splits[split] = [pair for pair in pairs if groups[pair[0]] in group_set]
    if not splits["train"]:
        raise UserError(
            f"{len(pairs)} pairs are too few to split; add some, or set --val-fraction 0"
        )
    return splits


def _move_pairs(pairs: Sequence[PairNames], split: str, copies: Path, new: Path) -> None:
    """Move pairs from copies/images and copies/masks to the split's folders in `new`."""
    if not pairs:
        return
    for kind in KINDS:
        (new / f"{split}_{kind}").mkdir(parents=True)
    for image, mask in pairs:
        system.replace(copies / "images" / image, new / f"{split}_images" / image)
        system.replace(copies / "masks" / mask, new / f"{split}_masks" / mask)


def _describe_splits(splits: dict[str, list[PairNames]], options: DataOptions) -> str:
    lines = []
    for split in reversed(SPLITS):
        pairs = splits[split]
        if pairs:
            groups = {options.group(image) for image, _ in pairs}
            lines.append(_describe_split(split, len(groups), len(pairs)))
    return "\n".join(lines)


def _describe_settings(options: DataOptions, classes: Sequence[str]) -> list[str]:
    """Return what to set for training on names and classes that are not Carvana's, in lines."""
    settings: dict[str, Any] = {**options.naming.differing(NAMING)}
    if len(classes) > 1:
        settings["CLASSES"] = list(classes)
    if options.classes.single and options.classes.values:
        settings["MASK_VALUES"] = list(options.classes.values)
    if options.pixels.channels != PIXELS.channels:
        settings["IN_CHANNELS"] = options.pixels.channels
    if options.pixels.value_range:
        settings["IMAGE_RANGE"] = list(options.pixels.value_range)
    if not settings:
        return []
    lines = []
    for name, value in settings.items():
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    typed = [option_words(name, value) for name, value in settings.items()]
    return [f"for config.py: {'; '.join(lines)}", f"or for one run: {' '.join(typed)}"]


def _fill_with_cars(options: SetOptions, out: Path, force: bool, staging: Path) -> str:
    """Render cars into the folders of staging/new; return what was done."""
    _refuse_other_data(out, force)  # before the seconds that rendering takes
    render_set(staging / "new", **asdict(options))
    if options.kind == "scenes":
        training = options.cars - options.val_cars
        return f"{training} scenes to train on and {options.val_cars} to validate on, in {out}"
    return (
        f"{options.cars - options.val_cars} cars to train on and {options.val_cars} to validate "
        f"on, {options.angles} photographs of each, in {out}"
    )


# ---------------------------------------------------------------- putting them in place


def _replace_folders(out: Path, fill: Callable[[Path], str], force: bool) -> None:
    """Put new folders in place in `out`, all or none, and print what was done.

    Args:
        out: the folder of train_images, train_masks and so on.
        fill: takes a folder for temporary files, writes the new folders into its folder `new`,
            and returns what to print.
        force: replace what is in place, unless it is exactly the same.

    Raises:
        UserError: something failed; `out` is as it was.
    """
    claim = f"another process is preparing data in {one_line(out)}"
    advice = "wait until it ends, or choose another folder with --out"
    staging = out / STAGING
    existed = out.exists()
    try:
        with locked(staging, claim, advice):
            description = _fill_and_place(staging, out, fill, force)
    except OSError as error:
        state = f"{out} is as it was"
        if (staging / "old").exists():
            state = f"the next run puts back what was moved to {one_line(staging / 'old')}"
        raise UserError(f"{describe_os_error(error)}; {state}") from error
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                out.rmdir()  # empty, after a failure
    print(description)


def _fill_and_place(staging: Path, out: Path, fill: Callable[[Path], str], force: bool) -> str:
    """Put new folders in place by way of `staging`; return what was done."""
    try:
        _undo(staging, out)  # what a run that was killed had begun
        staging.mkdir()
        description = fill(staging)
        _put_in_place(staging, out, force)
        return description
    except BaseException as error:
        _release(error)
        raise
    finally:
        if not (staging / "old").exists():  # else the next run has something to put back
            _remove(staging)


def _release(error: BaseException | None) -> None:
    """Close the archives that were open where errors came from: Windows removes no open file."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _refuse_other_data(out: Path, force: bool) -> None:
    """Raise a UserError if `out` holds data that is not to be replaced."""
    occupied = []
    for name in FOLDERS:
        files = visible_files(out / name)
        if files:
            occupied.append(f"{out / name}: {len(files)} files")
    if occupied and not force:
        headline = (
            f"{out} already holds data, which was left alone; "
            "replace it with --force, or choose another folder with --out:"
        )
        raise UserError(bullet_list(headline, occupied))


def _put_in_place(staging: Path, out: Path, force: bool) -> None:
    """Move the folders in staging/new to `out`, all or none, unless the same files are there."""
    new = staging / "new"
    old = staging / "old"
    if all(same_files(new / name, out / name) for name in FOLDERS):
        print(f"{out} already holds exactly this; nothing to do")
        return
    _refuse_other_data(out, force)
    new_names = [name for name in FOLDERS if (new / name).exists()]
    old.mkdir()
    try:
        for name in FOLDERS:
            if (out / name).exists():
                system.move_folder(out / name, old / name)
        for name in new_names:
            system.move_folder(new / name, out / name)
        system.move_folder(old, staging / "replaced")  # from here on _undo would not put it back
    except BaseException:
        for name in new_names:
            if not (new / name).exists():
                system.move_folder(out / name, new / name)
        _undo(staging, out)
        raise


def _undo(staging: Path, out: Path) -> None:
    """Put back what an unfinished run moved from `out` to staging/old, and remove its files."""
    old = staging / "old"
    if old.exists():
        for folder in list(old.iterdir()):
            shutil.rmtree(out / folder.name, ignore_errors=True)
            system.move_folder(folder, out / folder.name)
    _remove(staging)


def _remove(folder: Path) -> None:
    """Remove a folder, again and again while something is still written into it.

    An interruption can cut a thread off from its pool while it starts; it then writes its last
    file after the pool has ended.
    """
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
