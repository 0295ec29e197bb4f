"""TIFF files that Pillow does not read: those of many channels, and of values beyond 16 bits."""

import contextlib
import logging
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from carvana.errors import plural
from carvana.opening import check_pixels, max_megapixels, open_picture
from carvana.schema import MOST_CHANNELS

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
MOST_PILLOW_SAMPLES = 4  # of a pixel; of more, Pillow reads the first three and drops the rest
SAMPLES_TAG = 277
ORIENTATION_TAG = 274
COPY_OR_MASK = 1 | 4  # bits of NewSubfileType: a smaller copy of the picture, or its mask
BYTES_A_PIXEL = 4  # that Pillow needs at most for a picture of MAX_MEGAPIXELS
GROWTH = 20  # times its size that a file may grow beyond that, when it is decompressed
READABLE_TYPES = "?bBhHiIlLqQefd"  # NumPy's characters for whole and floating-point numbers

logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # of many channels it warns


class WrongChannels(ValueError):
    """A file has another number of channels than IN_CHANNELS."""


class Bands(NamedTuple):
    """What a TIFF says about the channels in it; nothing is decoded yet."""

    pages: Sequence[Any]  # tifffile's: one that holds all channels, or one for each
    height: int  # as stored
    width: int
    orientation: int  # as that of EXIF

    @property
    def channels(self) -> int:
        """Return how many channels there are."""
        return sum(page.samplesperpixel for page in self.pages)

    def planes(self) -> Iterator[np.ndarray]:
        """Yield each channel, (H, W) in the file's own type."""
        for page in self.pages:
            samples = page.asarray(squeeze=False, maxworkers=1)  # (planes, depth, H, W, samples)
            for plane in samples[:, 0]:
                yield from np.moveaxis(plane, -1, 0)


# ---------------------------------------------------------------- which files


def is_tiff(path: str | Path) -> bool:
    """Return whether a file is a TIFF, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(4) in TIFF_STARTS


def needs_tifffile(path: str | Path, has_range: bool = False, has_pages: bool = False) -> bool:
    """Return whether a file is a TIFF that Pillow does not read whole.

    Args:
        has_range: IMAGE_RANGE is given, so whole numbers of 32 bits are welcome.
        has_pages: a file of several pages counts as well.
    """
    if not is_tiff(path):
        return False
    try:
        with open_picture(path) as image:
            return _exceeds_pillow(image, has_range, has_pages)
    except Exception as error:  # Pillow's own message tells of all but unknown kinds of pixels
        return isinstance(error.__cause__, UnidentifiedImageError)


def _exceeds_pillow(image: Image.Image, has_range: bool, has_pages: bool) -> bool:
    samples = image.tag_v2.get(SAMPLES_TAG, 1)  # type: ignore[attr-defined]
    if samples > MOST_PILLOW_SAMPLES or image.mode == "F" or (has_range and image.mode == "I"):
        return True
    return has_pages and getattr(image, "is_animated", False)


def check_channels(found: int, expected: int, remark: str = "") -> None:
    """Raise WrongChannels unless a file's channels are as many as IN_CHANNELS."""
    if found != expected:
        raise WrongChannels(
            f"has {plural(found, 'channel')}, IN_CHANNELS is {expected}; set --in-channels "
            f"{found} (a model that is trained keeps its {expected}){remark}"
        )


# ---------------------------------------------------------------- reading


def read_levels(
    path: str | Path, accepted: Sequence[int], levels: int, value_range: Sequence[float]
) -> tuple[np.ndarray, int]:
    """Read all channels of a TIFF.

    Args:
        accepted: numbers of channels that the file may have, IN_CHANNELS first.
        levels: which level of unsigned 16 bits becomes 255, and all above it.
        value_range: which values of other types become 0 and 255; empty if not given.

    Returns:
        uint8 (H, W, channels) as stored, and the orientation, 1 to 8.

    Raises:
        Exception: of nearly any kind, if the file is damaged.
    """
    with _opened(path) as bands:
        if bands.channels not in accepted:
            check_channels(bands.channels, accepted[0], _array_remark(bands, accepted[0]))
        if not value_range and not _has_levels(bands.pages[0]):
            raise ValueError(_describe_range(bands))
        image = np.empty((bands.height, bands.width, bands.channels), np.uint8)
        for channel, plane in enumerate(bands.planes()):
            if _has_levels(bands.pages[0]):
                image[..., channel] = to_bytes(plane, _white(bands.pages[0], levels))
            else:
                image[..., channel] = map_range(plane, *value_range)
        return image, bands.orientation


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of a TIFF as it is shown, from its tags."""
    with _opened(path) as bands:
        if bands.orientation > 4:
            return bands.width, bands.height
        return bands.height, bands.width


def highest_level(path: str | Path) -> int:
    """Return the highest level of a TIFF whose channels have unsigned 16 bits, 0 of any other."""
    with _opened(path) as bands:
        if bands.pages[0].bitspersample != 16 or not _has_levels(bands.pages[0]):
            return 0
        return max(int(plane.max()) for plane in bands.planes())


def to_bytes(deep: np.ndarray, white: int) -> np.ndarray:
    """Return unsigned levels as uint8, `white` and all above it as 255."""
    if white == 255 and deep.dtype == np.uint8:
        return deep
    levels = np.minimum(np.arange(np.iinfo(deep.dtype).max + 1), white)
    return np.round(levels / (white / 255)).astype(np.uint8)[deep]


def map_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as uint8: low and all below it, and what is no number, 0; from high on 255."""
    shares = values.astype(np.float64)  # a copy, changed in place: it can be large
    shares -= low
    shares *= 255 / (high - low)
    np.nan_to_num(shares, copy=False, nan=0.0)
    np.clip(shares, 0, 255, out=shares)
    return np.round(shares, out=shares).astype(np.uint8)


def _has_levels(page: Any) -> bool:
    """Return whether a page has unsigned values of up to 16 bits."""
    return page.dtype.kind == "u" and page.bitspersample <= 16


def _white(page: Any, levels: int) -> int:
    """Return the level that is white: 255 of 8 bits, IMAGE_LEVELS of 16."""
    return levels if page.bitspersample == 16 else 2**page.bitspersample - 1


def _describe_range(bands: Bands) -> str:
    """Return why values have no meaning yet, and what to type."""
    low, high = math.inf, -math.inf
    for plane in bands.planes():
        values = plane[np.isfinite(plane)]
        if values.size:
            low = min(low, float(values.min()))
            high = max(high, float(values.max()))
    kind = "floating-point" if bands.pages[0].dtype.kind == "f" else str(bands.pages[0].dtype)
    advice = f"{kind} levels; save it with 8 or 16 bits"
    if low > high:
        return f"{advice}; none of them is a number"
    proposal = f"{low:g} {high if high > low else low + 1:g}"
    return (
        f"{advice}, or, to train with such files, say which of its values, {low:g} to {high:g}, "
        f"are black and white: --image-range {proposal}"
    )


def _array_remark(bands: Bands, expected: int) -> str:
    """Return how an array (H, W, channels) that was written row by row is written well."""
    if len(bands.pages) == 1 or bands.width != expected:
        return ""
    return (
        f"; its {len(bands.pages)} pages of {bands.height}x{bands.width} may be the rows of an "
        "array (height, width, channels): tifffile.imwrite takes planarconfig='contig' for that"
    )


# ---------------------------------------------------------------- opening


def _tifffile() -> ModuleType:
    """Return the library, imported only for the files that need it."""
    try:
        import tifffile
    except ImportError:
        raise ValueError("a TIFF for which Python needs a package: pip install tifffile") from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised too
    return tifffile


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Bands]:
    """Give the channels of a TIFF, once its tags have been seen to be sound."""
    try:
        with _tifffile().TiffFile(path, _multifile=False) as tiff:
            pages = _channel_pages(tiff)
            for page in pages:
                _check_page(page, os.path.getsize(path))
            _check_bytes(pages)
            first = pages[0]
            orientation = first.tags.valueof(ORIENTATION_TAG, 1)
            if orientation not in range(1, 9):
                orientation = 1
            yield Bands(pages, first.imagelength, first.imagewidth, orientation)
    except (TypeError, LookupError, ArithmeticError, AttributeError, struct.error) as error:
        raise ValueError("its tags are damaged") from error
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(
            f"compressed ({error}), for which Python needs a package: pip install imagecodecs"
        ) from error


def _channel_pages(tiff: Any) -> list[Any]:
    """Return the pages of the picture: all channels in one, or a channel in each.

    Raises:
        ValueError: they are no channels of one picture.
    """
    pages = []
    for number in range(2 * MOST_CHANNELS):
        try:
            page = tiff.pages[number]
        except IndexError:
            break
        if not page.subfiletype & COPY_OR_MASK:
            pages.append(page)
    if not pages:
        raise ValueError("no picture in it")
    if len(pages) > 1 and max(page.samplesperpixel for page in pages) > 1:
        raise ValueError(f"{len(pages)} pictures in one file; save the one that counts")
    if sum(page.samplesperpixel for page in pages) > MOST_CHANNELS:
        raise ValueError(f"more than {MOST_CHANNELS} channels")
    if len({(page.imagelength, page.imagewidth, page.dtype) for page in pages}) > 1:
        raise ValueError("its pages differ in size or type; save those that are its channels")
    return pages


def _check_page(page: Any, file_bytes: int) -> None:
    """Raise ValueError for tags that cannot be true, before anything is decoded."""
    check_pixels(page.imagelength * page.imagewidth)
    if page.imagedepth != 1 or min(page.shaped) < 1:
        raise ValueError("a volume, or nothing at all; save one picture")
    if page.dtype is None or page.dtype.char not in READABLE_TYPES:
        raise ValueError(f"values of type {page.dtype or 'unknown'}; save it with 8 or 16 bits")
    offsets, counts = page.dataoffsets, page.databytecounts
    segments = math.prod(page.chunked)
    if min(len(offsets), len(counts)) < segments or 0 in counts[:segments]:
        raise ValueError(f"not all of its {segments} strips or tiles are there; write it whole")
    ends = map(sum, zip(offsets[:segments], counts[:segments], strict=True))
    bits = math.prod(page.shaped) * page.bitspersample
    if max(ends) > file_bytes or (page.compression == 1 and 8 * sum(counts) < bits):
        raise ValueError("it ends too early")


def _check_bytes(pages: Sequence[Any]) -> None:
    """Raise ValueError if a file would grow as no photograph does."""
    stored = sum(sum(page.databytecounts) for page in pages)
    chunk = max(math.prod(page.chunks) * page.dtype.itemsize for page in pages)
    needed = max(chunk, sum(page.nbytes for page in pages))
    allowed = max(GROWTH * stored, BYTES_A_PIXEL * 1_000_000 * max_megapixels())
    if needed > allowed:
        check_pixels(-(-needed // BYTES_A_PIXEL))
