"""What the values in masks' files mean, and what to set where that is not clear."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from carvana.classes import NO_CLASS, Classes
from carvana.errors import UserError, first_few, one_line, plural

SHOWN_VALUES = 3  # of a mask's wrong values, how many a message counts
FEWEST_SOFT_VALUES = 5  # different values in a set of masks with soft edges
LISTED_VALUES = 6  # of a mask's values, how many a message lists
NOISE = 15  # levels of 255 by which compression moves black and white
NOISY_VALUES = 3  # different values near black, and near white, that only compression makes
MOST_CLASS_VALUES = 32  # different values in a set of masks; more are a soft edge's
HARD_SHARE = 0.8  # of the pixels of a soft mask are nearly black or white, at least
FLAT_SHARE = 0.6  # of the pixels of a photograph have the value of the next one, at most
MIDDLE = 127  # the threshold that messages propose
EXCHANGED = "are the folders of photographs and masks exchanged? The masks look like photographs."
RARE = 0.1  # of a set's masks: so few that their values are faults
USUAL = 0.9  # of a set's masks: nearly all of them
FREE_BORDER = 0.25  # of the pixels at a mask's border: at most so many if it shows whole objects
BORDER = 0.75  # of the pixels at a mask's border: most of them


class WrongValues(ValueError):
    """A mask holds values that mean nothing, or could mean several things."""


class UnknownValues(WrongValues):
    """A mask of several classes holds values that are none of them."""


class StoredValues(NamedTuple):
    """The values of a mask's file as they are stored: of a palette's picture its indices."""

    values: tuple[int, ...]  # in ascending order; gray levels of a colored mask
    colors: tuple[str, ...]  # "#rrggbb" of a colored mask, in the order of their gray levels
    needs_choice: bool  # whether its two colors do not say which of them is background
    at_border: int  # the value that most pixels at the border have
    hard_share: float  # of the pixels are nearly black or white
    flat_share: float  # of the pixels have the value of the next one
    is_lossy: bool  # whether its format blends values at edges


class MaskFacts(NamedTuple):
    """What a mask says, once its values are understood."""

    pixels: np.ndarray  # int64 (256,), pixels of each class index
    border: float  # share of the pixels at its border that are foreground

    @property
    def share(self) -> float:
        """Return the share of pixels that are of any index but 0."""
        return 1 - self.pixels[0] / self.pixels.sum()


# ---------------------------------------------------------------- one class


def split_levels(levels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W) of 0 and 255: foreground is over the middle, or 1 if 1 is the largest.

    Args:
        levels: uint8 or uint16 (H, W).

    Raises:
        WrongValues: there are more than two values, or both are on one side of the middle.
    """
    middle = np.iinfo(levels.dtype).max // 2
    if levels.max() <= 1:
        middle = 0
    elif not _is_black_and_white(levels):
        _check_levels(distinct_values(levels), middle)
    _, mask = cv2.threshold(levels, middle, 255, cv2.THRESH_BINARY)
    return mask.astype(np.uint8, copy=False)


def _is_black_and_white(levels: np.ndarray) -> bool:
    """Return whether only 0 and the highest possible level occur, without counting them."""
    return np.add(levels, levels.dtype.type(1)).max() <= 1  # the highest one wraps around to 0


def _check_levels(values: list[int], middle: int) -> None:
    """Raise WrongValues unless one value is background and one foreground, or only one occurs."""
    low = [value for value in values if value <= middle]
    high = values[len(low) :]
    if len(values) > 2 and not _is_noise(low, high, middle):
        raise WrongValues(
            f"{len(values)} different values in the mask (expected 2: background and foreground; "
            "for more, name CLASSES, or set MASK_VALUES or MASK_THRESHOLD): "
            f"{list_values(values)}"
        )
    if not high:
        raise WrongValues(
            f"its largest value is {values[-1]}; expected 1 or over {middle} for foreground, or "
            "MASK_VALUES set to the values of background and foreground"
        )
    if len(values) == 2 and not low:
        raise WrongValues(
            f"its values {values[0]} and {values[1]} are both over {middle}, which would make "
            "all of it foreground; set MASK_VALUES to those of background and foreground"
        )


def _is_noise(low: Sequence[int], high: Sequence[int], middle: int) -> bool:
    """Return whether levels are black and white, moved a little by lossy compression."""
    reach = NOISE * (2 * middle + 1) // 255
    both_vary = min(len(low), len(high)) >= NOISY_VALUES
    return both_vary and low[-1] <= reach and high[0] >= 2 * middle + 1 - reach


def threshold_levels(levels: np.ndarray, threshold: int) -> np.ndarray:
    """Return uint8 (H, W) of 0 and 255: 255 where a level is over a threshold of 0 to 254."""
    unit = np.iinfo(levels.dtype).max // 255
    _, mask = cv2.threshold(levels, threshold * unit, 255, cv2.THRESH_BINARY)
    return mask.astype(np.uint8, copy=False)


def split_values(levels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return uint8 (H, W): 0 where the first of two values is stored, 255 where the second is.

    Raises:
        WrongValues: there are others.
    """
    foreground = levels == values[1]
    unknown = ~foreground & (levels != values[0])
    if unknown.any():
        raise WrongValues(
            f"{count_values(levels[unknown], 'value {}')}: MASK_VALUES has {values[0]} for "
            f"background and {values[1]} for foreground"
        )
    return foreground.view(np.uint8) * np.uint8(255)


# ---------------------------------------------------------------- several classes


def class_indices(levels: np.ndarray, classes: Classes) -> np.ndarray:
    """Return uint8 (H, W) of class indices, classes.ignore where a pixel is to be ignored.

    Args:
        levels: of any integer type, (H, W): the values as they are stored.

    Raises:
        UnknownValues: there are values that are no class.
    """
    count = len(classes.names)
    if not classes.values:
        unknown = (levels >= count) & (levels != classes.ignore)
        if unknown.any():
            raise UnknownValues(_describe_unknown(levels[unknown], classes))
        return levels.astype(np.uint8)
    levels = levels.astype(np.uint16)
    largest = max(*classes.values, classes.ignored_value, levels.max())
    places = np.full(int(largest) + 1, -1, np.int16)
    places[classes.ignored_value] = classes.ignore
    places[list(classes.values)] = np.arange(count)
    indices = places[levels]
    unknown = indices < 0
    if unknown.any():
        raise UnknownValues(_describe_unknown(levels[unknown], classes))
    return indices.astype(np.uint8)


def _describe_unknown(values: np.ndarray, classes: Classes) -> str:
    counts = count_values(values, "value {}")
    count = len(classes.names)
    if classes.values:
        return (
            f"{counts}: not one of the {count} values of CLASSES, {list_values(classes.values)}; "
            "add it to CLASSES and MASK_VALUES, or set IGNORE_INDEX to it"
        )
    return (
        f"{counts}: CLASSES has {count} names, 0 to {count - 1}; add names, set PALETTE, or "
        "IGNORE_INDEX to the value, or MASK_VALUES to those of the classes"
    )


# ---------------------------------------------------------------- counting


def distinct_values(levels: np.ndarray) -> list[int]:
    """Return the different values of uint8 or uint16 (H, W), in ascending order."""
    if levels.dtype == np.uint8:  # much faster than np.unique
        counts = Image.fromarray(levels).histogram()
        return [value for value, count in enumerate(counts) if count]
    return np.unique(levels).tolist()


def count_values(values: np.ndarray, template: str) -> str:
    """Return "3 pixels of value 7, 1 pixel of value 9" for the first different values."""
    distinct, counts = np.unique(values, return_counts=True)
    shown = zip(distinct[:SHOWN_VALUES], counts[:SHOWN_VALUES], strict=True)
    text = ", ".join(
        f"{plural(count, 'pixel')} of {template.format(value)}" for value, count in shown
    )
    if len(distinct) > SHOWN_VALUES:
        text += f" and of {len(distinct) - SHOWN_VALUES} other values"
    return text


def list_values(values: Sequence[int]) -> str:
    """Return "0, 128, 255", or the first and the last of many."""
    if len(values) <= LISTED_VALUES:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:3]))} to {values[-1]}"


def border_of(pixels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of (H, W), in one row; corners count twice."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def measure_mask(mask: np.ndarray, classes: Classes) -> MaskFacts:
    """Return the facts of a hard mask, uint8 (H, W) of class indices."""
    pixels = np.array(Image.fromarray(mask).histogram())
    return MaskFacts(pixels, float(classes.foreground(border_of(mask)).mean()))


# ---------------------------------------------------------------- two values


class TwoValues(NamedTuple):
    """The two values that all masks of a set hold, and which of them is background."""

    background: int
    foreground: int
    reason: str  # why the one is taken for background
    palette: tuple[str, ...]  # colors of background and foreground; empty for gray masks

    def advice(self) -> str:
        """Return what to set so that these masks can be read."""
        return (
            f"the masks hold two values: add --mask-values {self.background} {self.foreground}, "
            f"which makes {self.background} background ({self.reason}) and {self.foreground} "
            f"foreground; exchange them if it is the other way round{self._other_way()}"
        )

    def announcement(self) -> str:
        """Return how these masks are read without anything set."""
        return (
            f"the masks hold two values; {self.background} is taken for background "
            f"({self.reason}), {self.foreground} for foreground; if it is the other way round, "
            f"add --mask-values {self.foreground} {self.background}{self._other_way()}"
        )

    def _other_way(self) -> str:
        if not self.palette:
            return ""
        return f". As two classes: --classes background car --palette {_quoted(self.palette)}"


def find_two_values(masks: Sequence[StoredValues]) -> TwoValues | None:
    """Return the two values of a set's masks; None if there are more, fewer, or soft edges.

    Background is what most borders show; if these say nothing, the darker one.
    """
    values, colors = _distinct(masks)
    if len(values) != 2 or len(colors) not in (0, 2) or any(mask.is_lossy for mask in masks):
        return None
    darker, lighter = values
    counts = Counter(mask.at_border for mask in masks)
    reason = "the borders of most masks show it"
    if counts[darker] == counts[lighter]:
        reason = "it is the darker one"
    if _background(masks, values) == darker:
        return TwoValues(darker, lighter, reason, tuple(colors))
    return TwoValues(lighter, darker, reason, tuple(colors[::-1]))


def _distinct(masks: Sequence[StoredValues]) -> tuple[list[int], list[str]]:
    """Return the different values and colors of a set's masks, the darker ones first."""
    values = sorted({value for mask in masks for value in mask.values})
    colors = sorted({color for mask in masks for color in mask.colors}, key=_gray_level)
    return values, colors


# ---------------------------------------------------------------- what to set


def is_widespread(wrong_masks: int, masks: int) -> bool:
    """Return whether so many masks hold wrong values that this is no fault of single files."""
    return wrong_masks > RARE * masks


def advise(masks: Sequence[StoredValues], classes: Classes) -> str:
    """Return what to set so that the masks of a set can be read, "" if that is not clear.

    Args:
        masks: all that can be opened.
    """
    values, colors = _distinct(masks)
    if not values:
        return ""
    if not classes.single:
        return _advise_on_classes(masks, values, classes)
    if _look_like_photographs(masks, values):
        return f"{EXCHANGED} If they are soft masks, add --mask-threshold {MIDDLE}"
    if _are_soft(masks, values):
        return _advise_on_soft(masks)
    two_values = find_two_values(masks)
    if two_values is not None:
        return two_values.advice()
    background = _background(masks, values)
    if len(colors) > 1:
        colors.sort(key=lambda color: abs(_gray_level(color) - background) > 1)
        names = " ".join(["background", *_other_names(len(colors) - 1)])
        return (
            f"the masks hold {len(colors)} colors: for several classes, --classes {names} "
            f"--palette {_quoted(colors)} with your names in the order of the colors"
        )
    if len(values) == 1:
        return ""
    return _advise_on_several(values, background)


def _are_soft(masks: Sequence[StoredValues], values: Sequence[int]) -> bool:
    """Return whether most values seem to be in between, at edges."""
    if any(mask.is_lossy for mask in masks):
        return True
    hard_share = np.median([mask.hard_share for mask in masks])
    return len(values) > LISTED_VALUES and values[-1] > MIDDLE and hard_share >= HARD_SHARE


def _look_like_photographs(masks: Sequence[StoredValues], values: Sequence[int]) -> bool:
    hard_share = np.median([mask.hard_share for mask in masks])
    flat_share = np.median([mask.flat_share for mask in masks])
    is_busy = hard_share < HARD_SHARE and flat_share < FLAT_SHARE
    return len(values) > MOST_CLASS_VALUES and is_busy


def _background(masks: Sequence[StoredValues], values: Sequence[int]) -> int:
    """Return the value that is most likely background: that at most masks' borders."""
    counts = Counter(mask.at_border for mask in masks)
    return max(values, key=lambda value: (counts[value], -value))


def _advise_on_soft(masks: Sequence[StoredValues]) -> str:
    reason = "their edges are soft"
    if any(mask.is_lossy for mask in masks):
        reason = "JPEG and WebP blend values at edges"
    return (
        f"{reason}: add --mask-threshold {MIDDLE} to make foreground of what is over {MIDDLE}, or "
        "save the masks as PNG with two values; if gray areas are classes of their own, save them "
        "without smoothing, one value for each class"
    )


def _advise_on_several(values: Sequence[int], background: int) -> str:
    """Return how to train on values as classes, and how if one of them is to be ignored."""
    others = [value for value in values if value != background]
    if len(values) > LISTED_VALUES:
        return _advise_on_many(values)
    ignored = _likely_ignored(others)
    kept = [background, *(value for value in others if value != ignored)]
    names = ["background", *_other_names(len(values) - 1)]
    kept_names = ["background", *_other_names(len(kept) - 1)]
    return (
        f"the masks hold {len(values)} values: for several classes, "
        f"--classes {' '.join(names)}{_value_option([background, *others])}; if {ignored} marks "
        f"pixels to ignore, --classes {' '.join(kept_names)}{_value_option(kept)} "
        f"--ignore-index {ignored}{_threshold_advice(values)}"
    )


def _advise_on_many(values: Sequence[int]) -> str:
    classes = [value for value in values if value != NO_CLASS]
    text = f"the masks hold {len(values)} values: name the class of each with --classes"
    if _value_option(classes):
        text += ", and their values with --mask-values"
        if len(classes) <= MOST_CLASS_VALUES:
            text += f" {' '.join(map(str, classes))}"
    if NO_CLASS in values:
        text += f"; {NO_CLASS} marks pixels to ignore then"
    return text + _threshold_advice(values)


def _threshold_advice(values: Sequence[int]) -> str:
    text = ""
    if values[0] == 0:
        text += "; if all but 0 is foreground, --mask-threshold 0"
    if len(values) >= FEWEST_SOFT_VALUES and values[-1] > MIDDLE:
        text += f"; if the edges are soft, --mask-threshold {MIDDLE}"
    return text


def _likely_ignored(values: Sequence[int]) -> int:
    """Return the value that most likely marks pixels to ignore, of those beside background."""
    gray = [value for value in values if value in (127, 128)]
    return gray[0] if gray and 255 in values else max(values)


def _advise_on_classes(
    masks: Sequence[StoredValues], values: Sequence[int], classes: Classes
) -> str:
    if _look_like_photographs(masks, values):
        return EXCHANGED
    if any(mask.is_lossy for mask in masks):
        return "JPEG and WebP blend values at edges: save the masks as PNG where they come from"
    count = len(classes.names)
    if classes.palette or len(values) not in (count, count + 1):
        return ""
    if len(values) == count:
        return (
            f"the masks hold as many values as CLASSES has names: add{_value_option(values)} if "
            "they are in this order"
        )
    ignored = 0 if values == list(range(count + 1)) else _likely_ignored(values)
    kept = [value for value in values if value != ignored]
    return (
        f"the masks hold one value more than CLASSES has names: if {ignored} marks pixels to "
        f"ignore, add{_value_option(kept)} --ignore-index {ignored}"
    )


def _value_option(values: Sequence[int]) -> str:
    """Return " --mask-values 0 255", or nothing where values are the places in CLASSES."""
    if list(values) == list(range(len(values))):
        return ""
    return f" --mask-values {' '.join(map(str, values))}"


def _other_names(count: int) -> list[str]:
    if count == 1:
        return ["car"]
    return [f"name{number}" for number in range(1, count + 1)]


def _quoted(colors: Sequence[str]) -> str:
    return " ".join(f'"{color}"' for color in colors)


def _gray_level(color: str) -> float:
    """Return about the level that a color "#rrggbb" has as gray."""
    return float(np.dot(tuple(bytes.fromhex(color[1:])), (0.299, 0.587, 0.114)))


# ---------------------------------------------------------------- what a set says


def judge_set(facts: Sequence[MaskFacts], classes: Classes, training: bool = False) -> list[str]:
    """Return what is odd about the masks of a set, in words.

    Args:
        facts: of each mask.
        training: whether the set is to learn from, which takes every class.

    Raises:
        UserError: a class is in no mask, but the value to be ignored most likely stands for it.
    """
    if not classes.single:
        fault = find_ignored_class([row.pixels for row in facts], classes, training)
        if fault:
            raise UserError(fault)
        return []
    shares = np.array([row.share for row in facts])
    if len(facts) > 1 and not shares.any():
        return [f"all {len(facts):,} masks are empty"]
    if len(facts) > 1 and (shares == 1).all():
        return [f"all {len(facts):,} masks are foreground everywhere"]
    mixed = [row for row in facts if 0 < row.share < 1]
    bordered = [row for row in mixed if row.border > BORDER]
    if len(mixed) >= SHOWN_VALUES and len(bordered) >= USUAL * len(mixed):
        return [
            f"the borders of {len(bordered)} of {plural(len(mixed), 'mask')} are foreground; if "
            "background and foreground are exchanged, add --mask-values 255 0 (where the masks "
            "hold 0 and 1, 1 0; generally the value of background, then that of foreground)"
        ]
    others = [row.border for row in mixed if row.border <= BORDER]
    if is_widespread(len(bordered), len(mixed)) and np.quantile(others, USUAL) < FREE_BORDER:
        return [
            f"the borders of {len(bordered)} of {plural(len(mixed), 'mask')} are foreground, and "
            "those of most others are not; perhaps background and foreground are exchanged in "
            "these files; the page of python explore.py sorts masks by how much is foreground"
        ]
    return []


def find_ignored_class(counts: Sequence[np.ndarray], classes: Classes, training: bool) -> str:
    """Return what is wrong if the value to be ignored most likely stands for a class, else "".

    Args:
        counts: pixels of each class index, int64 (256,), for each mask.
        training: refuse a single class that is missing; else only where one class is left.
    """
    present = np.stack(counts) > 0  # (masks, 256)
    ignoring = int(present[:, classes.ignore].sum())
    missing = [i for i in range(len(classes.names)) if not present[:, i].any()]
    only_one_left = len(classes.names) - len(missing) <= 1
    suspicious = only_one_left or (training and len(missing) == 1)
    if not missing or not suspicious or 2 * ignoring < len(counts):
        return ""
    names = first_few([one_line(classes.names[i]) for i in missing])
    where = f"{ignoring} of {plural(len(counts), 'mask')}"
    if classes.palette:
        return (
            f"{names}: in no mask, but the color to be ignored is in {where}; "
            "check the order of PALETTE"
        )
    ignored = classes.ignored_value
    values = [*(classes.values or range(len(classes.names)))]
    values[missing[0]] = ignored
    option = f"--mask-values {' '.join(map(str, values))}"
    if ignored != 255:
        option += " --ignore-index 255"
    text = (
        f"{names}: in no mask, but {ignored}, which IGNORE_INDEX says is to be ignored, is in "
        f"{where}; if {ignored} stands for {one_line(classes.names[missing[0]])}, add "
        f"{option}"
    )
    if len(classes.names) == 2:
        text += f", or name that one class only: --classes {one_line(classes.names[1])}"
    return f"{text}; if it is to be ignored, name only classes that the masks hold"
