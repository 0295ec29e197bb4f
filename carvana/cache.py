"""Each file decoded once: what the reader returns, kept on disk and shared by all processes."""

import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from carvana import system
from carvana.errors import error_summary, one_line, warn
from carvana.files import file_stamp, is_abandoned, random_token
from carvana.images import READER_VERSION, Reading, read_all
from carvana.pairs import Pair

UNFINISHED = re.compile(r".*-[0-9a-f]{12}-[0-9a-f]{12}\.[0-9a-f]+\.tmp")


class Cache:
    """The pairs of a data set, read at one size; cache[i] is reading.read_pair, bit for bit.

    The file is a .npy array of records, mapped into memory so that all processes share one copy.
    Each record has a checksum: one that the disk has damaged is read from its photograph, and
    the file is given up.

    Raises:
        Exception: of nearly any kind, if the file does not hold these pairs at this size.
    """

    def __init__(self, path: Path, pairs: Sequence[Pair], reading: Reading) -> None:
        self.path = path
        self.pairs = pairs
        self.reading = reading
        self.records = np.load(path, mmap_mode="r")
        if self.records.dtype != _record_type(reading) or self.records.shape != (len(pairs),):
            raise ValueError(f"{self.records.shape} records of another kind")
        self.verified = np.zeros(len(pairs), bool)

    def __reduce__(self) -> tuple:  # to another process goes the file's name, not its contents
        return _reopen, (self.path, self.pairs, self.reading)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        record = self.records[index]
        image = np.array(record["image"])
        mask = np.array(record["mask"])
        if not self.verified[index]:
            if _checksum(image, mask) != record["checksum"]:
                return self._read_damaged(index)
            self.verified[index] = True
        return image, mask

    def _read_damaged(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        name = one_line(self.pairs[index][0].name)
        warn(
            f"{self.path} is damaged at {name}, which is read from the photograph; the next run "
            "makes the file again"
        )
        _give_up(self.path)
        return self.reading.read_pair(self.pairs[index])


def _reopen(path: Path, pairs: Sequence[Pair], reading: Reading) -> Cache | None:
    """Return the cache in a process that starts; None if it has been given up meanwhile."""
    with suppress(Exception):  # a damaged file can raise nearly anything
        return Cache(path, pairs, reading)
    return None


def _give_up(path: Path) -> None:
    """Remove a file, or where that cannot be, make it one that no later run opens.

    Windows removes no file that is mapped into memory, but lets its first bytes be overwritten.
    """
    with suppress(OSError):
        try:
            path.unlink()
        except PermissionError:
            with open(path, "r+b") as file:
                file.write(bytes(len(np.lib.format.MAGIC_PREFIX)))


def open_cache(folder: str | Path, pairs: Sequence[Pair], reading: Reading) -> Cache | None:
    """Open the cache of `pairs` in `folder`; make it if there is none that fits.

    It fits as long as no file's name, length or time, nothing in `reading`, and neither the
    reader nor its decoders have changed.

    Returns:
        The cache, or None with a warning if it cannot be written.

    Raises:
        UserError: naming all pairs that cannot be read.
    """
    source = pairs[0][0].parent
    path, earlier = _find_files(Path(folder), pairs, reading)
    if path.exists():
        try:
            return Cache(path, pairs, reading)
        except Exception as error:  # a foreign file can raise nearly anything
            warn(f"{path} is damaged ({error_summary(error)}); reading the photographs again")
    elif earlier:
        warn(
            f"what is in {source} or its masks has changed since {earlier[0]} was made; "
            "reading all again"
        )
    return _make_cache(path, earlier, pairs, reading)


def _find_files(folder: Path, pairs: Sequence[Pair], reading: Reading) -> tuple[Path, list[Path]]:
    """Return the cache's path, and the caches of earlier states of the same files."""
    source = pairs[0][0].parent
    state = [
        READER_VERSION,
        PIL.__version__,
        cv2.__version__,
        [file_stamp(path) for pair in pairs for path in pair],
    ]
    # One file for each data set and way of reading it: a later state replaces an earlier one.
    settings: dict[str, Any] = {
        "size": reading.size,
        "channels": reading.channels,
        "mask_resize": reading.mask_resize,
        "labels": reading.classes.labels,
        "levels": reading.levels,
    }
    if reading.value_range:
        settings["value_range"] = list(reading.value_range)
    name = f"{source.name}-{_digest([str(source), str(pairs[0][1].parent), settings])}"
    path = folder / f"{name}-{_digest(state)}.npy"
    earlier = [candidate for candidate in folder.glob(f"{name}-*.npy") if candidate != path]
    return path, earlier


def _make_cache(
    path: Path, earlier: list[Path], pairs: Sequence[Pair], reading: Reading
) -> Cache | None:
    """Decode all pairs into a file, which replaces earlier ones; None if it cannot be written."""
    temporary = path.with_suffix(f".{random_token()}.tmp")
    try:
        _make_room(path.parent, len(pairs) * _record_type(reading).itemsize)
        _write(temporary, pairs, reading)
        cache = _put_in_place(temporary, path, pairs, reading)
        for outdated in earlier:
            with suppress(OSError):  # another process may use it still
                outdated.unlink()
        return cache
    except OSError as error:
        warn(
            f"warning: no cache in {path.parent} ({error_summary(error)}); every epoch reads the "
            "photographs again, which is slower. Free some space, or set CACHE_DIR to another disk"
        )
        return None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, path: Path, pairs: Sequence[Pair], reading: Reading) -> Cache:
    """Rename a file that has been written, and open it.

    Raises:
        OSError: it cannot be renamed, and no other process has written the same.
    """
    try:
        system.replace(temporary, path)
    except PermissionError:  # Windows replaces no file that another process has mapped
        cache = _reopen(path, pairs, reading)
        if cache is None:
            raise
        return cache
    return Cache(path, pairs, reading)


def _record_type(reading: Reading) -> np.dtype:
    return np.dtype(
        [
            ("image", "u1", (*reading.size, reading.channels)),  # type: ignore[misc]
            ("mask", "u1", reading.size),
            ("checksum", "<u4"),
        ]
    )


def _checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """Return a checksum that is not 0 for zeros, as which a file's lost blocks are read."""
    return zlib.crc32(mask.data, zlib.crc32(image.data)) ^ 1


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _make_room(folder: Path, needed: int) -> None:
    """Remove what interrupted runs left in a folder.

    Raises:
        OSError: fewer than `needed` bytes are free after that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):
        if UNFINISHED.fullmatch(leftover.name) and is_abandoned(leftover):
            with suppress(OSError):  # somebody else's, or gone meanwhile
                leftover.unlink()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")


def _write(path: Path, pairs: Sequence[Pair], reading: Reading) -> None:
    """Read all pairs into a .npy file of records."""
    record = np.zeros((), _record_type(reading))
    header = {"descr": record.dtype.descr, "fortran_order": False, "shape": (len(pairs),)}
    with open(path, "wb") as file, closing(read_all(pairs, "decoding", reading)) as results:
        np.lib.format.write_array_header_1_0(file, header)
        for image, mask in results:
            record["image"] = image
            record["mask"] = mask
            record["checksum"] = _checksum(image, mask)
            file.write(record.tobytes())
