"""Pictures decoded once: what the one reader returns, kept on disk as uint8 and shared by all processes."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
import zlib
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import PIL

from pictures import READER, brief, read_all, read_pair, printable, stamp

ABANDONED = 600  # seconds after which an unfinished file that no longer grows is nobody's
UNFINISHED = re.compile(r".*-[0-9a-f]{12}-[0-9a-f]{12}\.\d+\.tmp")


class Cache:
    """The pairs of a data set, read at one size. cache[i] -> what pictures.read_pair returns, bit for bit.

    A .npy file of records, mapped into memory, so that all workers and processes share one copy. Each record
    has a checksum: one that the disk has spoilt is read from its photograph, and the file is given up.
    Raises some Exception where the file is not one of these pairs at this size."""

    def __init__(self, path, pairs, reading):
        self.path, self.pairs, self.reading = path, pairs, reading
        self.records = np.load(path, mmap_mode="r")
        if self.records.dtype != record_type(**reading) or self.records.shape != (len(pairs),):
            raise ValueError(f"{self.records.shape} records of another kind")
        self.verified = np.zeros(len(pairs), bool)

    def __reduce__(self):  # to another process goes the file's name, not its contents
        return Cache, (self.path, self.pairs, self.reading)

    def __getitem__(self, index):
        record = self.records[index]
        image, mask = np.array(record["image"]), np.array(record["mask"])
        if not self.verified[index]:
            if checksum(image, mask) != record["checksum"]:
                complain(
                    f"{self.path} is damaged at {printable(self.pairs[index][0].name)}, which is read from the photograph; the next run makes the file anew"
                )
                with suppress(OSError):
                    self.path.unlink()
                return read_pair(self.pairs[index], **self.reading)
            self.verified[index] = True
        return image, mask


def open_cache(folder, pairs, **reading):
    """The Cache of `pairs` in `folder`, made where there is none that fits; None, with a warning, where it cannot be written.

    reading: size, channels, mask_resize and labels as for pictures.read_pair. A cache fits as long as no file's name, length
    or time, none of these, and neither the reader nor its decoders have changed.
    Raises UserError, naming all pairs that cannot be read."""
    source = pairs[0][0].parent
    state = [
        READER,
        PIL.__version__,
        cv2.__version__,
        [stamp(path) for pair in pairs for path in pair],
    ]
    # one file for each data set and way of reading it: a later state replaces the earlier
    name = f"{source.name}-{digest([str(source), str(pairs[0][1].parent), reading])}"
    path = Path(folder) / f"{name}-{digest(state)}.npy"
    earlier = [other for other in Path(folder).glob(f"{name}-*.npy") if other != path]
    if path.exists():
        try:
            return Cache(path, pairs, reading)
        except Exception as error:  # a foreign file can raise nearly anything
            complain(f"{path} is damaged ({brief(error)}); reading the photographs again")
    elif earlier:
        complain(
            f"what is in {source} or its masks has changed since {earlier[0]} was made; reading all again"
        )

    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        make_room(path.parent, len(pairs) * record_type(**reading).itemsize)
        write(temporary, pairs, reading)
        os.replace(temporary, path)
        for other in earlier:
            other.unlink(missing_ok=True)
        return Cache(path, pairs, reading)
    except OSError as error:
        complain(
            f"warning: no cache in {folder} ({brief(error)}); every epoch reads the photographs anew, which is slower. "
            "Free some space, or set CACHE_DIR to another disk"
        )
        return None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def record_type(size, channels, mask_resize, labels=None):
    return np.dtype([("image", "u1", (*size, channels)), ("mask", "u1", size), ("checksum", "<u4")])


def checksum(image, mask):
    return (
        zlib.crc32(mask, zlib.crc32(image)) ^ 1
    )  # ^ 1: not 0 for zeros, as which a file's lost blocks are read


def digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def complain(text):
    print(text, file=sys.stderr)


def make_room(folder, needed):
    """Remove what interrupted runs left in a folder. Raises OSError where less than `needed` bytes are free then."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob("*.tmp"):
        with suppress(OSError):  # another's, or gone meanwhile
            if UNFINISHED.fullmatch(other.name) and time.time() - other.stat().st_mtime > ABANDONED:
                other.unlink()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")


def write(path, pairs, reading):
    """Read all pairs into a .npy file of records."""
    record = np.zeros((), record_type(**reading))
    with open(path, "wb") as file, closing(read_all(pairs, "decoding", **reading)) as results:
        np.lib.format.write_array_header_1_0(
            file, {"descr": record.dtype.descr, "fortran_order": False, "shape": (len(pairs),)}
        )
        for result in results:
            record["image"], record["mask"] = result
            record["checksum"] = checksum(*result)
            file.write(record.tobytes())
