"""Opening picture files: in which formats, up to which size, and HEIC with its plugin."""

import functools
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from carvana.errors import one_line

JPEG_TYPES = (".jpg", ".jpeg", ".jpe", ".jfif")
HEIF_TYPES = (".heic", ".heif", ".hif")  # of phones; a plugin reads them
AVIF_TYPES = (".avif",)
IMAGE_TYPES = (
    *JPEG_TYPES,
    *(".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".jp2", ".j2k", *AVIF_TYPES, *HEIF_TYPES),
)
# Others may run programs, or take nearly any file for a picture.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
AVIF_BRANDS = (b"avif", b"avis")
HEIF_ADVICE = "pip install pillow-heif"
AVIF_ADVICE = "pip install -U pillow, to 11.3 or newer"
KIND_OF_PICTURE, SUB_FOLDERS = 254, 330  # tags of TIFF
REDUCED = 1  # a bit of the first: this is a reduced copy of another picture in the file
MAX_MEGAPIXELS = 179
LARGEST_LIMIT = 10_000  # megapixels
LIMIT_VARIABLE = "CARVANA_MAX_MEGAPIXELS"


def set_max_megapixels(megapixels: int) -> None:
    """Refuse pictures of more megapixels, in this process and those that it starts."""
    os.environ[LIMIT_VARIABLE] = str(megapixels)
    Image.MAX_IMAGE_PIXELS = megapixels * 500_000  # Pillow warns from here on, refuses from twice


# Processes that read ahead take the limit from the one that has started them.
set_max_megapixels(int(os.environ.get(LIMIT_VARIABLE, MAX_MEGAPIXELS)))


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture in the format of its content, whatever its name ends with.

    Raises:
        Exception: of nearly any kind, if it cannot be opened.
    """
    try:
        return _open_picture(path)
    except Image.DecompressionBombError as error:
        (pixels,) = re.findall(r"\((\d+) pixels\)", str(error))
        raise ValueError(_describe_too_large(int(pixels))) from error


def max_megapixels() -> int:
    """Return from which size on pictures are refused."""
    return int(os.environ[LIMIT_VARIABLE])


def check_pixels(pixels: int) -> None:
    """Raise ValueError for a picture of more than MAX_MEGAPIXELS, as Pillow does."""
    if pixels > 1_000_000 * max_megapixels():
        raise ValueError(_describe_too_large(pixels))


def _describe_too_large(pixels: int) -> str:
    """Return how large a picture is, and what to type if it is a photograph."""
    megapixels = -(-pixels // 1_000_000)
    limit = max_megapixels()
    description = f"{megapixels:,} megapixels; over {limit}, a file may be made to fill the memory"
    if megapixels > LARGEST_LIMIT:
        return description
    return f"{description}; if you trust it, add --max-megapixels {megapixels}"


def _open_picture(path: str | Path) -> Image.Image:
    try:
        image = Image.open(path, formats=_readable_formats())
        _refuse_preview(image)
        return image
    except Exception as error:
        brands = _brands(path)
        if brands.isdisjoint(HEIF_BRANDS):
            if isinstance(error, Image.UnidentifiedImageError):
                raise ValueError(_describe_unread(brands)) from error
            raise
    if not heif_plugin_is_installed():
        raise ValueError(f"HEIC, for which Python needs a plugin: {HEIF_ADVICE}")
    _register_heif()
    return Image.open(path, formats=("HEIF",))


def _refuse_preview(image: Image.Image) -> None:
    """Raise ValueError for a camera's raw file, in which Pillow finds a small preview only."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    kind = tags.get(KIND_OF_PICTURE)
    if SUB_FOLDERS in tags and isinstance(kind, int) and kind & REDUCED:
        width, height = image.size
        image.close()
        raise ValueError(
            f"a camera's raw file, of which only a preview of {width}x{height} can be read; save "
            "the photograph as JPEG or TIFF"
        )


def _describe_unread(brands: set[bytes]) -> str:
    """Return why Pillow does not know a file's format."""
    if not brands.isdisjoint(AVIF_BRANDS) and not avif_is_readable():
        return f"AVIF, for which Pillow is too old: {AVIF_ADVICE}"
    return f"not a picture in one of the formats {' '.join(_readable_formats())}"


def _brands(path: str | Path) -> set[bytes]:
    """Return what a file of the HEIF family says it holds: many are named .jpg."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return set()
    size = int.from_bytes(head[:4], "big")
    names = head[8:12] + head[16:size]  # the version stands between the first and the others
    return {names[start : start + 4] for start in range(0, len(names), 4)}


def _readable_formats() -> tuple[str, ...]:
    if avif_is_readable():
        return PILLOW_FORMATS
    return tuple(name for name in PILLOW_FORMATS if name != "AVIF")


@functools.cache
def heif_plugin_is_installed() -> bool:
    """Return whether HEIC can be read."""
    return importlib.util.find_spec("pillow_heif") is not None


@functools.cache
def avif_is_readable() -> bool:
    """Return whether this Pillow reads AVIF."""
    return importlib.util.find_spec("PIL._avif") is not None


@functools.cache
def _register_heif() -> None:
    """Have Pillow read HEIC. The plugin is optional, and takes time to import."""
    import pillow_heif

    pillow_heif.register_heif_opener()


# ---------------------------------------------------------------- by name


def is_photograph(name: str) -> bool:
    """Return whether a file can be read as a photograph, by the ending of its name."""
    ending = _ending(name)
    return ending in IMAGE_TYPES and not _install_advice(ending)


def describe_left_out(names: Iterable[str]) -> str:
    """Return how many files have which ending: "2 .heic (pip install ...), 1 .psd"; "" of none."""
    texts = []
    for ending, count in Counter(map(_ending, names)).most_common():
        text = f"{count:,} {one_line(ending)}" if ending else f"{count:,} without an ending"
        advice = _install_advice(ending)
        if advice:
            text += f" (for these: {advice})"
        texts.append(text)
    return ", ".join(texts)


def _install_advice(ending: str) -> str:
    """Return what to type before files with such an ending can be read, "" if nothing."""
    if ending in HEIF_TYPES and not heif_plugin_is_installed():
        return HEIF_ADVICE
    if ending in AVIF_TYPES and not avif_is_readable():
        return AVIF_ADVICE
    return ""


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
