"""Files of exported models as strangers may have made them: read, limited and rebuilt."""

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana.errors import first_few, one_line

MAX_RECORDS = 20_000
MAX_GROWTH = 20  # times a file's size: what its content may unpack to,
SMALLEST_LIMIT = 2**24  # or these bytes; source code shrinks to a fraction
ZIP_START = b"PK\x03\x04"
MAX_LEVELS = 12
MAX_WIDTH = 2**16  # channels of a level
SHOWN_LENGTH = 60  # letters of what a message quotes
RECORD_NAME = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
Records = dict[str, bytes]  # content of a zip by name, without the folder that holds everything
# How often a network has an operator: times its levels, plus as often as that.
Limits = Mapping[str, tuple[int, int]]


class Refused(ValueError):
    """A file holds what no file of export.py does; the message says what."""


def quoted(text: object) -> str:
    """Return the beginning of a text out of an untrusted file, for a message."""
    line = one_line(text)
    return line if len(line) <= SHOWN_LENGTH else f"{line[:SHOWN_LENGTH]}..."


def is_zip(path: str | Path) -> bool:
    """Return whether torch takes a file for a zip, by its first bytes alone."""
    with open(path, "rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def check_size(path: str | Path | bytes) -> None:
    """Raise Refused if a zip unpacks to far more than its size, or to too many files.

    Raises:
        Exception: of nearly any kind, if it is no sound zip.
    """
    size = len(path) if isinstance(path, bytes) else Path(path).stat().st_size
    with zipfile.ZipFile(_opened(path)) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(MAX_GROWTH * size, SMALLEST_LIMIT):
        raise Refused(f"it unpacks from {size:,} to {unpacked:,} bytes")
    if len(entries) > MAX_RECORDS:
        raise Refused(f"it holds {len(entries):,} files")


def _opened(path: str | Path | bytes) -> str | Path | io.BytesIO:
    return io.BytesIO(path) if isinstance(path, bytes) else path


def read_records(path: str | Path | bytes) -> Records:
    """Return what is in a zip. Everything in it is read once, and checksums are checked.

    Args:
        path: of a file, or its content.

    Raises:
        Refused: it unpacks to far more than its size, or its names are not as torch writes them.
        Exception: of nearly any kind, if it is no sound zip.
    """
    check_size(path)
    with zipfile.ZipFile(_opened(path)) as archive:
        entries = archive.infolist()
        records = {}
        folders = set()
        names = set()
        for entry in entries:
            folder, _, name = entry.filename.partition("/")
            if not RECORD_NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
                raise Refused(f"it holds a file named {quoted(entry.filename)}")
            if name.lower() in names:  # torch's own reader does not tell upper from lower case
                raise Refused(f"it holds {quoted(name)} twice")
            folders.add(folder)
            names.add(name.lower())
            records[name] = archive.read(entry)
    if len(folders) > 1:
        raise Refused(f"it holds the folders {quoted(', '.join(sorted(folders)))}")
    return records


def write_records(records: Records) -> io.BytesIO:
    """Return a zip of records as torch expects it.

    A library that reads this one instead of the file cannot see anything else in it than was
    checked, however its reader of zips differs from Python's.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    buffer.seek(0)
    return buffer


def check_operators(counts: Mapping[str, int], limits: Limits, levels: int) -> None:
    """Raise Refused if a graph has an operator that a network lacks, or more of one.

    Args:
        counts: how often the graph has each operator.
        levels: of the network.
    """
    foreign = sorted(counts.keys() - limits.keys())
    if foreign:
        names = first_few([quoted(name) for name in foreign])
        raise Refused(f"it calls {names}, which no U-Net of export.py does")
    for name, count in counts.items():
        per_level, fixed = limits[name]
        limit = per_level * levels + fixed
        if count > limit:
            raise Refused(
                f"it calls {name} {count} times; a U-Net of {levels} levels does so at most "
                f"{limit} times"
            )


def count_levels(config: Mapping[str, Any]) -> int:
    """Return how many levels a network has, from the constants that came with it.

    Raises:
        Refused: FEATURES is no list of channels.
    """
    features = config.get("FEATURES")
    if not isinstance(features, list) or not 1 <= len(features) <= MAX_LEVELS:
        raise Refused(f"FEATURES is {quoted(features)}")
    if not all(type(item) is int and 1 <= item <= MAX_WIDTH for item in features):
        raise Refused(f"FEATURES is {quoted(features)}")
    return len(features)


def check_extent(count: int, offset: int, size: Sequence[int], stride: Sequence[int]) -> None:
    """Raise Refused if a tensor is empty, or reaches beyond the `count` numbers of its data."""
    numbers = (offset, *size, *stride)
    is_whole = all(type(number) is int and number >= 0 for number in numbers)
    if not is_whole or 0 in size or len(size) != len(stride):
        raise Refused(f"it holds a tensor of size {quoted(tuple(size))}")
    steps = zip(size, stride, strict=True)
    last = offset + sum((length - 1) * step for length, step in steps)
    if last >= count:
        raise Refused(f"it holds a tensor of size {quoted(tuple(size))} for {count} numbers")


def check_names(names: Any, allowed: re.Pattern[str]) -> None:
    """Raise Refused if a name in an archive is not one of those that export.py writes."""
    foreign = sorted(name for name in names if not allowed.fullmatch(name))
    if foreign:
        shown = first_few([quoted(name) for name in foreign])
        raise Refused(f"it holds {shown}, which no file of export.py does")
