"""What a data set holds: sizes, shares of classes, duplicates and oddities."""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from carvana.classes import Classes
from carvana.errors import UserError, bullet_list, first_few, one_line, plural, result_or_error
from carvana.images import (
    PIXELS,
    Pixels,
    explain_wrong_values,
    judge_levels,
    picture_size,
    read_gray,
    read_hard_mask,
)
from carvana.mask_values import MaskFacts, judge_set, measure_mask
from carvana.outlines import edge_agreement
from carvana.pairs import CAR_REGEX, Pair, group_of
from carvana.threads import map_in_threads

HEIGHT = 320  # pixels, of the photographs that facts are measured on
MEAN_MASK_SIZE = (80, 120)
THUMBPRINT_SIZE = (16, 24)  # photographs that look alike have nearly the same thumbprint
ALIKE = 1.0  # gray levels: the largest mean difference of thumbprints that look alike
ODD = 6.0  # robust standard deviations from the median
NORMAL_SPREAD = 1.4826  # standard deviation over median deviation, of a normal distribution
SHOWN = 5  # values, duplicates or oddities in a line
FACTS = {  # field of PairFacts -> what it is called
    "share": "foreground, % of the pixels",
    "brightness": "brightness, 0 to 255",
    "contrast": "contrast, standard deviation of the levels",
    "agreement": "edges at the outline, times those around it",
}


@dataclass(frozen=True)
class PairFacts:
    """What there is to say about a photograph and its mask."""

    name: str  # of the photograph's file
    size: str  # "WIDTHxHEIGHT"
    formats: str  # "jpg with gif"
    share: float  # of the foreground, in percent
    brightness: float  # mean level
    contrast: float  # standard deviation of the levels
    agreement: float  # see edge_agreement; NaN without an outline
    small_mask: np.ndarray  # uint8 MEAN_MASK_SIZE, the foreground's share in 1/255
    thumbprint: np.ndarray  # float32 (384,), the gray photograph at THUMBPRINT_SIZE
    mask: MaskFacts
    digest: bytes  # of the photograph's file


class ClassShare(NamedTuple):
    """How much of a data set is of one class."""

    name: str
    share: float  # of all pixels
    images: int  # that hold it


@dataclass
class Survey:
    """What a look at a data set brings to light."""

    pairs: list[Pair]
    classes: Classes
    facts: list[PairFacts]  # of each pair
    same_bytes: list[list[str]]  # names of photographs whose files are equal
    look_alikes: list[tuple[str, str]]  # names of photographs that look alike
    oddities: list[tuple[str, str]]  # (name, why)
    lines: list[tuple[str, str]]  # all of it in words: (subject, text); warnings first
    pixels: Pixels


# ---------------------------------------------------------------- looking


def survey_pairs(
    pairs: list[Pair], classes: Classes, group_regex: str, pixels: Pixels = PIXELS
) -> Survey:
    """Look at every pair of a data set.

    Raises:
        UserError: naming every file that cannot be read, or what the masks cannot mean.
    """
    measure = functools.partial(result_or_error, measure_pair, classes=classes, pixels=pixels)
    facts = list(map_in_threads(measure, pairs, "looking"))
    faults = [result for result in facts if isinstance(result, UserError)]
    if faults:
        folders = f"{one_line(pairs[0][0].parent)} and {one_line(pairs[0][1].parent)}"
        headline = f"{plural(len(faults), 'file')} of {folders} cannot be read:"
        advice, lines = explain_wrong_values(faults, [mask for _, mask in pairs], classes)
        if advice:
            lines.insert(0, advice)
        raise UserError(bullet_list(headline, lines))
    warnings = judge_set([row.mask for row in facts], classes)
    oddity = judge_levels([image for image, _ in pairs], pixels.levels)
    if oddity:
        warnings.append(oddity)
    same_bytes, look_alikes = find_duplicates(facts)
    survey = Survey(
        pairs, classes, facts, same_bytes, look_alikes, find_oddities(facts), [], pixels
    )
    survey.lines = [("warning", warning) for warning in warnings]
    survey.lines += summarize(survey, group_regex)
    return survey


def measure_pair(pair: Pair, classes: Classes, pixels: Pixels = PIXELS) -> PairFacts:
    """Read a pair and return its facts."""
    path, mask_path = pair
    height, width = picture_size(path)
    size = (HEIGHT, max(1, round(HEIGHT * width / height)))
    gray = read_gray(path, size, pixels)
    mask = read_hard_mask(mask_path, classes)
    objects = classes.foreground(mask)
    object_levels = objects.view(np.uint8) * np.uint8(255)
    small = _resize_by_area(object_levels, size) > 127
    return PairFacts(
        name=path.name,
        size=f"{width}x{height}",
        formats=f"{path.suffix.lower()[1:]} with {mask_path.suffix.lower()[1:]}",
        share=100 * objects.mean(),
        brightness=gray.mean(),
        contrast=gray.std(),
        agreement=edge_agreement(gray, small.view(np.uint8)),
        small_mask=_resize_by_area(object_levels, MEAN_MASK_SIZE),
        thumbprint=_resize_by_area(gray.astype(np.float32), THUMBPRINT_SIZE).ravel(),
        mask=measure_mask(mask, classes),
        digest=hashlib.sha256(path.read_bytes()).digest(),
    )


def _resize_by_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------- conclusions


def find_duplicates(facts: list[PairFacts]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Return groups of names whose files are equal, and pairs of names that look alike.

    Of equal files, only the first is compared with others.
    """
    groups: dict[bytes, list[PairFacts]] = {}
    for row in facts:
        groups.setdefault(row.digest, []).append(row)
    same_bytes = [[row.name for row in group] for group in groups.values() if len(group) > 1]
    return same_bytes, _find_look_alikes([group[0] for group in groups.values()])


def _find_look_alikes(facts: list[PairFacts]) -> list[tuple[str, str]]:
    """Return the sorted names of each two photographs whose thumbprints are at most ALIKE."""
    facts = sorted(facts, key=lambda row: row.thumbprint.mean())
    thumbprints = np.stack([row.thumbprint for row in facts])
    means = thumbprints.mean(1)
    # Thumbprints differ by at least as much as their means do: the rest need no comparison.
    ends = np.searchsorted(means, means + ALIKE, "right")
    look_alikes = []
    for i, end in enumerate(ends):
        differences = abs(thumbprints[i + 1 : end] - thumbprints[i]).mean(1)
        for j in np.flatnonzero(differences <= ALIKE):
            first, second = sorted((facts[i].name, facts[i + 1 + j].name))
            look_alikes.append((first, second))
    return look_alikes


def find_oddities(facts: list[PairFacts]) -> list[tuple[str, str]]:
    """Return (name, why) of pairs with a fact far from the median, or an empty or full mask.

    Far is more than ODD robust standard deviations.
    """
    oddities = []
    for fact, label in FACTS.items():
        values = np.array([getattr(row, fact) for row in facts])
        if np.isnan(values).all():  # of outlines, where all masks are empty
            continue
        median = np.nanmedian(values)
        deviations = abs(values - median)
        spread = max(1e-9, NORMAL_SPREAD * np.nanmedian(deviations))
        for i in np.flatnonzero(deviations > ODD * spread):
            reason = f"{label}: {values[i]:.3g}, the median is {median:.3g}"
            oddities.append((facts[i].name, reason))
    oddities += [(row.name, "nothing in its mask") for row in facts if row.share == 0]
    oddities += [(row.name, "all of its mask is foreground") for row in facts if row.share == 100]
    return oddities


def mean_masks(facts: list[PairFacts]) -> dict[str, np.ndarray]:
    """Return {angle: mean mask uint8 MEAN_MASK_SIZE}, by Carvana's angles; else {"all": ...}."""
    masks_by_angle: dict[str, list[np.ndarray]] = {}
    for row in facts:
        masks_by_angle.setdefault(angle_of(row.name), []).append(row.small_mask)
    means = {}
    for angle, masks in sorted(masks_by_angle.items()):
        means[angle] = np.mean(masks, axis=0).round().astype(np.uint8)
    return means


def angle_of(name: str) -> str:
    """Return the angle of a Carvana name, such as "07"; "all" for any other name."""
    match = re.fullmatch(CAR_REGEX, Path(name).stem)
    return match[2] if match else "all"


def class_shares(facts: list[PairFacts], classes: Classes) -> list[ClassShare]:
    """Return how much of the data set is of each class, and is to be ignored if anything is."""
    counts = np.stack([row.mask.pixels for row in facts])  # (images, 256)
    names = list(enumerate(classes.names))
    if counts[:, classes.ignore].any():
        names.append((classes.ignore, "to be ignored"))
    shares = counts.sum(0) / counts.sum()
    images = (counts > 0).sum(0)
    return [ClassShare(name, float(shares[index]), int(images[index])) for index, name in names]


# ---------------------------------------------------------------- in words


def summarize(survey: Survey, group_regex: str) -> list[tuple[str, str]]:
    """Return (subject, text) of everything there is to say, for the terminal and the page."""
    facts = survey.facts
    lines = [
        ("pairs", f"{len(facts):,}"),
        ("sizes", _most_common(row.size for row in facts)),
        ("formats", _most_common(row.formats for row in facts)),
        ("groups", _describe_groups([row.name for row in facts], group_regex)),
    ]
    if not survey.classes.single:
        lines.append(("classes", _describe_classes(facts, survey.classes)))
    for fact, label in FACTS.items():
        lines.append((label, _describe_spread([getattr(row, fact) for row in facts])))
    oddities = [f"{one_line(name)} ({reason})" for name, reason in survey.oddities]
    lines += [
        ("same bytes", _first_names(" = ", survey.same_bytes)),
        ("look alike", _first_names(" ~ ", survey.look_alikes)),
        ("odd ones out", first_few(oddities, SHOWN) or "none"),
    ]
    return lines


def _most_common(values: Iterable[str]) -> str:
    """Return the most common values with their counts."""
    common = Counter(values).most_common(SHOWN)
    return ", ".join(f"{one_line(value)} ({count:,})" for value, count in common)


def _describe_groups(names: list[str], group_regex: str) -> str:
    groups = Counter(group_of(name, group_regex) for name in names)
    sizes = Counter(groups.values())
    usual_size, _ = sizes.most_common(1)[0]
    text = f"{len(groups):,} by GROUP_REGEX, most with {plural(usual_size, 'photograph')}"
    angles = {angle_of(name) for name in names}
    if angles != {"all"}:
        text += f"; angles {', '.join(sorted(angles))}"
    return text


def _describe_classes(facts: list[PairFacts], classes: Classes) -> str:
    texts = []
    for name, share, images in class_shares(facts, classes):
        where = f"in {images:,} of {len(facts):,} images"
        texts.append(f"{one_line(name)} {100 * share:.2f} % of the pixels, {where}")
    return "; ".join(texts)


def _describe_spread(values: list[float]) -> str:
    if np.isnan(values).all():
        return "none"
    lowest, lower, median, upper, highest = np.nanquantile(values, (0, 0.25, 0.5, 0.75, 1))
    return (
        f"min {lowest:.3g}, a quarter below {lower:.3g}, median {median:.3g}, "
        f"a quarter above {upper:.3g}, max {highest:.3g}"
    )


def _first_names(joint: str, groups: Iterable[Iterable[str]]) -> str:
    """Return the first groups of names, the names of each joined; "none" without groups."""
    texts = [joint.join(map(one_line, names)) for names in groups]
    return first_few(texts, SHOWN) or "none"
