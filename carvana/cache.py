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
from carvana.crops import Window
from carvana.errors import UserError, error_summary, one_line, result_or_error, warn
from carvana.files import file_stamp, is_abandoned, random_token
from carvana.images import READER_VERSION, Reading, Size, picture_size, read_all
from carvana.pairs import Pair

SUFFIX = ".pairs"
INDEX_TYPE = np.dtype([("height", "<i8"), ("width", "<i8"), ("checksum", "<u4")])
UNFINISHED = re.compile(r".*-[0-9a-f]{12}-[0-9a-f]{12}\.[0-9a-f]+\.tmp")


class Cache:
    """The pairs of a data set, read at one size; cache[i] is reading.read_pair, bit for bit.

    The file is an index, as a .npy array, and behind it the levels of all pictures and masks,
    mapped into memory so that all processes share one copy. Each pair has a checksum: one that
    the disk has damaged is read from its photograph, and the file is given up.

    Raises:
        Exception: of nearly any kind, if the file does not hold these pairs at this size.
    """

    def __init__(self, path: Path, pairs: Sequence[Pair], reading: Reading) -> None:
        self.path = path
        self.pairs = pairs
        self.reading = reading
        with open(path, "rb") as file:
            self.index = np.lib.format.read_array(file, allow_pickle=False)
            first = file.tell()
        if self.index.dtype != INDEX_TYPE or self.index.shape != (len(pairs),):
            raise ValueError(f"an index of another kind, {self.index.dtype} {self.index.shape}")
        self.levels = np.memmap(path, np.uint8, "r", first)
        pixels = self.index["height"] * self.index["width"]
        self.starts = np.concatenate([[0], np.cumsum(pixels * (reading.channels + 1))])
        if self.starts[-1] != len(self.levels) or not _are_of_size(self.index, reading.size):
            raise ValueError(f"{len(self.levels)} levels, expected {self.starts[-1]}")
        self.verified = np.zeros(len(pairs), bool)
        self.reported: set[int] = set()  # pairs that are damaged

    def __reduce__(self) -> tuple:  # to another process goes the file's name, not its contents
        return _reopen, (self.path, self.pairs, self.reading)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.read(index)

    def read(self, index: int, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return a pair, or the same part of its picture and its mask."""
        image, mask = self._sound_views(index)
        if window:
            image, mask = window.cut(image), window.cut(mask)
        return np.array(image), np.array(mask)

    def read_target(self, index: int) -> np.ndarray:
        """Return the mask of a pair alone."""
        return np.array(self._sound_views(index)[1])

    def size(self, index: int) -> Size:
        """Return a picture's size (H, W)."""
        return int(self.index["height"][index]), int(self.index["width"][index])

    def largest_pair(self) -> int:
        """Return the bytes of the largest pair's levels."""
        return int(np.diff(self.starts).max())

    def _sound_views(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a pair as it is in the file; as it is read, if the file is damaged there."""
        image, mask = self._views(index)
        if not self.verified[index]:
            self.verified[index] = _checksum(image, mask) == self.index["checksum"][index]
            if not self.verified[index]:
                return self._read_damaged(index)
        return image, mask

    def _views(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a pair as it is in the file, not to be written to."""
        height, width = self.size(index)
        levels = self.levels[self.starts[index] : self.starts[index + 1]]
        image = levels[: height * width * self.reading.channels]
        mask = levels[len(image) :]
        return image.reshape(height, width, -1), mask.reshape(height, width)

    def _read_damaged(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in self.reported:
            name = one_line(self.pairs[index][0].name)
            warn(
                f"{self.path} is damaged at {name}, which is read from the photograph; the next "
                "run makes the file again"
            )
            self.reported.add(index)
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
            f"what is in {source}, its masks, or how they are read has changed since "
            f"{earlier[0]} was made; reading all again"
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
    path = folder / f"{name}-{_digest(state)}{SUFFIX}"
    earlier = [candidate for candidate in folder.glob(f"{name}-*{SUFFIX}") if candidate != path]
    return path, earlier


def _make_cache(
    path: Path, earlier: list[Path], pairs: Sequence[Pair], reading: Reading
) -> Cache | None:
    """Decode all pairs into a file, which replaces earlier ones; None if it cannot be written."""
    temporary = path.with_suffix(f".{random_token()}.tmp")
    try:
        _make_room(path.parent, _needed_bytes(pairs, reading), earlier)
        _write(temporary, pairs, reading)
        cache = _put_in_place(temporary, path, pairs, reading)
        # Caches ended in .npy once.
        for outdated in (*earlier, *path.parent.glob(f"{path.stem.rsplit('-', 1)[0]}-*.npy")):
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


def _are_of_size(index: np.ndarray, size: Size | None) -> bool:
    """Return whether all pictures are as large as they are to be read; None: each as it is."""
    if size is None:
        return True
    return bool(((index["height"] == size[0]) & (index["width"] == size[1])).all())


def _checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """Return a checksum that is not 0 for zeros, as which a file's lost blocks are read."""
    return zlib.crc32(mask.data, zlib.crc32(image.data)) ^ 1


def _needed_bytes(pairs: Sequence[Pair], reading: Reading) -> int:
    """Return how many bytes the levels of all pairs take."""
    if reading.size:
        return len(pairs) * reading.item_bytes()
    needed = 0
    for image, _ in pairs:
        size = result_or_error(picture_size, image)
        if not isinstance(size, UserError):  # it is reported when all are read
            needed += reading.item_bytes(size)
    return needed


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _make_room(folder: Path, needed: int, outdated: Sequence[Path]) -> None:
    """Remove what interrupted runs left in a folder; if room is short, outdated caches as well.

    Raises:
        OSError: fewer than `needed` bytes are free after that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):
        if UNFINISHED.fullmatch(leftover.name) and is_abandoned(leftover):
            with suppress(OSError):  # somebody else's, or gone meanwhile
                leftover.unlink()
    if shutil.disk_usage(folder).free < needed:
        for path in outdated:
            with suppress(OSError):  # another process may use it still
                path.unlink()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")


def _write(path: Path, pairs: Sequence[Pair], reading: Reading) -> None:
    """Read all pairs into a file: first the index, whose content is known last."""
    index = np.zeros(len(pairs), INDEX_TYPE)
    with open(path, "wb") as file, closing(read_all(pairs, "decoding", reading)) as results:
        np.lib.format.write_array(file, index)
        for number, (image, mask) in enumerate(results):
            index[number] = (*mask.shape, _checksum(image, mask))
            file.write(image.tobytes())
            file.write(mask.tobytes())
        file.seek(0)
        np.lib.format.write_array(file, index)
