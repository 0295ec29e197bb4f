"""The types and bounds that a constant can have, the one validator, and its option's name."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from carvana.errors import UserError, one_line

MOST_CHANNELS = 128  # of a photograph; OpenCV 5 takes no more everywhere
SHOWN_LENGTH = 60  # characters of a wrong value in a message


def short(value: Any) -> str:
    """Return the beginning of a value's repr in one line; cheap for lists in lists in lists."""
    writer = reprlib.Repr()
    writer.maxstring = SHOWN_LENGTH
    return one_line(writer.repr(value))[:SHOWN_LENGTH]


KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, and its unit."""

    low: float
    high: float
    unit: str = ""

    def __str__(self) -> str:
        bounds = f"{self.low}..{self.high}".replace("e-0", "e-")
        return f"{bounds} {self.unit}".rstrip()


@dataclass(frozen=True)
class Pattern:
    """What a text must look like: a regular expression, and the same for people."""

    regex: str
    description: str

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True)
class MaybeEmpty:
    """Marks a list that may be empty."""


FilePath = Annotated[str, Pattern("(?s).*", "path")]
HexColor = Annotated[str, Pattern("#[0-9a-fA-F]{6}", "#rrggbb")]
Fraction = Annotated[float, Range(0.0, 1.0, "share")]
Probability = Annotated[float, Range(0.0, 1.0, "probability")]
Threshold = Annotated[float, Range(1e-3, 0.999, "probability")]
Side = Annotated[int, Range(0, 16384, "pixels")]
TileOverlap = Annotated[float, Range(0.0, 0.9, "share")]
Count = Annotated[int, Range(0, 100_000)]
ClassNames = list[Annotated[str, Pattern("(?s).*", "names")]]
Palette = Annotated[list[HexColor], MaybeEmpty()]
ByteValue = Annotated[int, Range(0, 255)]
MaskValues = Annotated[list[Annotated[int, Range(0, 65535)]], MaybeEmpty()]
MaskThreshold = Annotated[int, Range(-1, 254, "levels")]
ChannelMeans = list[Annotated[float, Range(-10.0, 10.0)]]
ChannelStds = list[Annotated[float, Range(1e-6, 1000.0)]]
MaskResize = Literal["area", "nearest"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
ImageLevels = Annotated[int, Range(255, 65535, "levels")]
ChannelCount = Annotated[int, Range(1, MOST_CHANNELS, "channels")]
ImageRange = Annotated[list[Annotated[float, Range(-1e9, 1e9)]], MaybeEmpty()]
Megapixels = Annotated[int, Range(1, 10_000)]
ScaleRange = list[Annotated[float, Range(0.05, 4.0, "of the frame")]]
PixelBlock = Annotated[int, Range(1, 8, "pixels")]
ClassWeights = (
    Literal["none", "median_frequency", "inverse_sqrt"] | list[Annotated[float, Range(1e-3, 1e4)]]
)


@dataclass(frozen=True)
class ValueType:
    """An annotation taken apart."""

    kind: type  # int, float, bool or str, of the value or of a list's items
    is_list: bool = False
    may_be_empty: bool = False
    choices: tuple = ()
    limit: Range | Pattern | None = None
    words: tuple[str, ...] = ()  # that can stand in place of a list

    @property
    def allowed(self) -> str:
        """Return what a value, or a list's item, can be: "1..16384 pixels", "area | nearest"."""
        if self.kind is bool:
            return "true | false"
        if self.choices:
            return " | ".join(map(str, self.choices))
        return str(self.limit or KIND_NAMES[self.kind])

    def __str__(self) -> str:
        text = f"list of {self.allowed}" if self.is_list else self.allowed
        if self.words:
            text = f"{' | '.join(self.words)}, or a {text}"
        return f"{text}, or empty" if self.may_be_empty else text


def parse_annotation(annotation: Any) -> ValueType:
    """Take an annotation apart: int, Literal[...], list[...], Annotated[..., Range(...)].

    Literal[...] | list[...] is a list, or one of these words in its place.
    """
    marks: Sequence[Any] = ()
    if get_origin(annotation) in (Union, UnionType):
        words, items = get_args(annotation)
        return replace(parse_annotation(items), words=get_args(words))
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        item_type = parse_annotation(item)
        return ValueType(
            item_type.kind,
            is_list=True,
            may_be_empty=any(isinstance(mark, MaybeEmpty) for mark in marks),
            choices=item_type.choices,
            limit=item_type.limit,
        )
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return ValueType(type(choices[0]), choices=choices)
    return ValueType(annotation, limit=marks[0] if marks else None)


def plain_annotation(name: str, value: Any) -> Any:
    """Return an annotation for a constant that has none: its value's type, list[...] of a list.

    Raises:
        UserError: constants cannot be of such a type.
    """
    item = value
    if isinstance(value, list | tuple):
        item = value[0] if value else ""
    kind = bool if item in ("True", "False") else type(item)  # a slip
    if kind not in KIND_NAMES:
        expected = ", ".join(KIND_NAMES.values())
        raise UserError(f"{name}: expected {expected} or a list of these, found {short(value)}")
    return list[kind] if isinstance(value, list | tuple) else kind  # type: ignore[valid-type]


def pick(choices: Mapping[str, Any], name: str, constant: str) -> Any:
    """Return the choice of that name. Raises UserError, which names the constant, if none has."""
    if name not in choices:
        raise UserError(f"{constant}: expected {' | '.join(choices)}, found {short(name)}")
    return choices[name]


def parse(words: str | list[str], expected: ValueType) -> Any:
    """Turn words of the command line into a value, or leave them as they are for check()."""
    if isinstance(words, list):
        if len(words) == 1 and words[0] in expected.words:
            return words[0]
        return [parse(word, expected) for word in words]
    if expected.kind is bool:
        return {"true": True, "false": False}.get(words.lower(), words)
    try:
        return expected.kind(words)
    except ValueError:
        return words


def check(value: Any, expected: ValueType) -> Any:
    """Return a value that fits its type, whole numbers as floats where floats are expected.

    Raises:
        ValueError: what was expected and what was found.
    """
    if expected.words:
        return _check_words_or_list(value, expected)
    if not expected.is_list:
        return _check_item(value, expected)
    if not isinstance(value, list | tuple) or not (value or expected.may_be_empty):
        raise ValueError(f"expected a list, found {short(value)}")
    return [_check_item(item, expected) for item in value]


def _check_words_or_list(value: Any, expected: ValueType) -> Any:
    if isinstance(value, str) and value in expected.words:
        return value
    try:
        return check(value, replace(expected, words=()))
    except ValueError as error:
        raise ValueError(f"expected {expected}, found {short(value)}") from error


def _check_item(value: Any, expected: ValueType) -> Any:
    kinds = (int, float) if expected.kind is float else expected.kind
    if not isinstance(value, kinds) or isinstance(value, bool) != (expected.kind is bool):
        raise ValueError(f"expected {KIND_NAMES[expected.kind]}, found {short(value)}")
    if not _allows(value, expected):
        raise ValueError(f"expected {expected.allowed}, found {_shown(str(value))}")
    return expected.kind(value)


def _allows(value: Any, expected: ValueType) -> bool:
    if expected.choices:
        return value in expected.choices
    if isinstance(expected.limit, Range):
        return expected.limit.low <= value <= expected.limit.high  # never true of nan
    if isinstance(expected.limit, Pattern):
        return re.fullmatch(expected.limit.regex, value) is not None
    return True


def _shown(text: str) -> str:
    return text[:SHOWN_LENGTH]


def option_name(constant: str) -> str:
    """Return the command line's name of a constant: NUM_EPOCHS -> --num-epochs."""
    return "--" + constant.lower().replace("_", "-")
