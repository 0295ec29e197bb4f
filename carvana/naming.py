"""Which photograph belongs to which mask, by their names alone."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from carvana.errors import one_line
from carvana.images import IMAGE_TYPES, MASK_TYPES

# Files that systems put into folders by themselves.
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"}
PROPOSAL_SAMPLE = 400  # names that a proposal is made from
MAX_AFFIXES = 8  # candidates for a prefix or a suffix
MAX_TOKENS = 5  # words, numbers and signs that an affix may consist of
COMMON = 0.5  # share of the names that an affix must have to be a candidate


class Naming(NamedTuple):
    """What stands before and after the name that a photograph and its mask share."""

    mask_suffix: str = "_mask"  # Carvana's
    mask_prefix: str = ""
    image_suffix: str = ""
    image_prefix: str = ""

    @classmethod
    def from_constants(cls, constants: Mapping[str, Any]) -> "Naming":
        """Return what the constants of config.py say."""
        return cls(*(constants[name] for name in AFFIX_CONSTANTS))

    def differing(self, other: "Naming") -> dict[str, str]:
        """Return {constant: affix} of what is not as in another naming."""
        mine = zip(AFFIX_CONSTANTS, self, other, strict=True)
        return {constant: affix for constant, affix, theirs in mine if affix != theirs}

    def image_name(self, stem: str) -> str | None:
        """Return the shared name in a photograph's name without ending; None if it has none."""
        return _between(stem, self.image_prefix, self.image_suffix)

    def mask_name(self, stem: str) -> str | None:
        """Return the shared name in a mask's name without ending; None if it has none."""
        return _between(stem, self.mask_prefix, self.mask_suffix)

    def image_stem(self, shared: str) -> str:
        """Return a photograph's name without ending, of the shared name."""
        return f"{self.image_prefix}{shared}{self.image_suffix}"

    def mask_stem(self, shared: str) -> str:
        """Return a mask's name without ending, of the shared name."""
        return f"{self.mask_prefix}{shared}{self.mask_suffix}"

    def mask_file(self, image_stem: str) -> str:
        """Return the file name of a photograph's mask, of the photograph's without ending."""
        return f"{self.mask_stem(self.image_name(image_stem) or image_stem)}.png"


AFFIX_CONSTANTS = [name.upper() for name in Naming._fields]
NAMING = Naming()


def _between(stem: str, prefix: str, suffix: str) -> str | None:
    long_enough = len(stem) > len(prefix) + len(suffix)
    if not long_enough or not stem.startswith(prefix) or not stem.endswith(suffix):
        return None
    return stem[len(prefix) : len(stem) - len(suffix)]


def is_visible(name: str) -> bool:
    """Return False for hidden files and those of SYSTEM_FILES."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES


def is_mask(name: str) -> bool:
    """Return whether a file can be read as a mask, by the ending of its name."""
    return PurePath(name).suffix.lower() in MASK_TYPES


def split_shared_folder(names: Iterable[str], naming: Naming) -> tuple[list[str], list[str]]:
    """Return the photographs and the masks among the files of one folder.

    A mask has the mask's affixes, and a photograph beside it that shares its name; where there
    are no affixes, a mask is the picture beside a JPEG of the same name.
    """
    names = list(names)
    stems = {stem_of(name) for name in names}
    jpegs = {stem_of(name) for name in names if _is_jpeg(name)}
    images = []
    masks = []
    for name in names:
        if _has_mask_affixes(name, stems, naming) or _is_beside_jpeg(name, jpegs):
            masks.append(name)
        else:
            images.append(name)
    return images, masks


def _has_mask_affixes(name: str, stems: set[str], naming: Naming) -> bool:
    """Return whether a file is named like the mask of another one."""
    stem = stem_of(name)
    shared = naming.mask_name(stem)
    if shared is None:
        return False
    photograph = naming.image_stem(shared)
    return photograph in stems and photograph != stem


def _is_beside_jpeg(name: str, jpegs: set[str]) -> bool:
    return stem_of(name) in jpegs and is_mask(name) and not _is_jpeg(name)


def _is_jpeg(name: str) -> bool:
    return PurePath(name).suffix.lower() in (".jpg", ".jpeg")


def pair_names(
    image_names: Iterable[str], mask_names: Iterable[str], naming: Naming = NAMING
) -> tuple[list[tuple[str, str]], list[str]]:
    """Match NAME.jpg with NAME<suffix>.png or NAME.png, or another of MASK_TYPES.

    Names are compared in Unicode's composed form: macOS writes them decomposed.

    Returns:
        Pairs of (image name, mask name) sorted by image, and what is wrong with the rest.
    """
    images = _names_by_shared_name(image_names, IMAGE_TYPES, naming)
    masks = _names_by_stem(mask_names, MASK_TYPES)
    # A photograph's own name may end with the suffix.
    masks_by_image: dict[str, list[str]] = {}
    for stem, names in masks.items():
        image_stem = stem if stem in images else naming.mask_name(stem) or stem
        masks_by_image.setdefault(image_stem, []).extend(names)
    problems = _ambiguities(images, "image") + _ambiguities(masks_by_image, "mask")
    for stem, names in images.items():
        if stem not in masks_by_image:
            problems.append(_missing_mask(names[0], stem, naming))
    for stem, names in masks_by_image.items():
        if stem not in images:
            expected = one_line(naming.image_stem(stem))
            problems.append(
                f"{one_line(names[0])}: mask without an image (expected {expected}.jpg or the like)"
            )
    pairs = [
        (names[0], masks_by_image[stem][0])
        for stem, names in images.items()
        if len(names) == len(masks_by_image.get(stem, [])) == 1
    ]
    return pairs, problems


def stem_of(name: str) -> str:
    """Return a name without its ending, in Unicode's composed form."""
    return unicodedata.normalize("NFC", PurePath(name).stem)


def _names_by_stem(names: Iterable[str], types: tuple[str, ...]) -> dict[str, list[str]]:
    """Return {name without its ending: names} of these types, in order."""
    stems: dict[str, list[str]] = {}
    for name in sorted(names):
        if PurePath(name).suffix.lower() in types:
            stems.setdefault(stem_of(name), []).append(name)
    return stems


def _names_by_shared_name(
    names: Iterable[str], types: tuple[str, ...], naming: Naming
) -> dict[str, list[str]]:
    """Return {name without affixes and ending: names}; a name without the affixes stays whole."""
    shared: dict[str, list[str]] = {}
    for stem, stem_names in _names_by_stem(names, types).items():
        shared.setdefault(naming.image_name(stem) or stem, []).extend(stem_names)
    return shared


def _ambiguities(stems: dict[str, list[str]], kind: str) -> list[str]:
    return [
        f"{one_line(stem)}: more than one {kind}: {', '.join(map(one_line, names))}"
        for stem, names in stems.items()
        if len(names) > 1
    ]


def _missing_mask(name: str, stem: str, naming: Naming) -> str:
    affixed = one_line(naming.mask_stem(stem))
    expected = f"{affixed}.gif or .png"
    if affixed != stem:
        expected += f", or {one_line(stem)}.gif or .png"
    return (
        f"{one_line(name)}: image without a mask (expected {expected}; MASK_SUFFIX is "
        f"{naming.mask_suffix!r})"
    )


# ---------------------------------------------------------------- proposals


class Proposal(NamedTuple):
    """Affixes that would pair more."""

    naming: Naming
    pairs: int  # of the sample
    images: int  # in the sample


def propose_naming(
    image_names: Sequence[str], mask_names: Sequence[str], naming: Naming = NAMING
) -> Proposal | None:
    """Return the affixes that pair most of the files, None if none pairs more than `naming`.

    Of equally good ones those that take the sign next to the shared name along, then the shortest.
    """
    images = [stem_of(name) for name in sorted(image_names)[:PROPOSAL_SAMPLE]]
    masks = [stem_of(name) for name in mask_names]
    if not images or not masks:
        return None
    best = Proposal(naming, _count_pairs(images, set(masks), naming), len(images))
    start = best
    candidates = itertools.product(
        _affixes(masks[:PROPOSAL_SAMPLE], from_end=True),
        _affixes(masks[:PROPOSAL_SAMPLE], from_end=False),
        _affixes(images, from_end=True),
        _affixes(images, from_end=False),
    )
    for candidate in sorted(itertools.starmap(Naming, candidates), key=_awkwardness):
        pairs = _count_pairs(images, set(masks), candidate)
        if pairs > best.pairs:
            best = Proposal(candidate, pairs, len(images))
    return best if best is not start else None


def _awkwardness(naming: Naming) -> tuple[int, int]:
    """Return how many affixes leave a sign such as "_" to the shared name, and their length."""
    inner_signs = [
        naming.mask_suffix[:1],
        naming.image_suffix[:1],
        naming.mask_prefix[-1:],
        naming.image_prefix[-1:],
    ]
    return sum(sign.isalnum() for sign in inner_signs), sum(map(len, naming))


def _affixes(stems: Sequence[str], from_end: bool) -> list[str]:
    """Return the beginnings, or ends, that many of the names share, and the empty one."""
    counts: Counter[str] = Counter()
    for stem in stems:
        tokens = re.findall(r"\d+|[^\W\d_]+|[\W_]", stem)
        for length in range(1, min(MAX_TOKENS, len(tokens) - 1) + 1):
            part = tokens[-length:] if from_end else tokens[:length]
            counts["".join(part)] += 1
    frequent = [part for part, count in counts.items() if count >= COMMON * len(stems)]
    return ["", *sorted(frequent, key=len)[:MAX_AFFIXES]]


def _count_pairs(images: Sequence[str], masks: set[str], naming: Naming) -> int:
    """Return how many photographs have a mask under a naming."""
    count = 0
    for stem in images:
        shared = naming.image_name(stem)
        if shared is not None:
            mask = naming.mask_stem(shared)
            count += mask in masks and mask != stem
    return count
