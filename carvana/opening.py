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
IMAGE_TYPES = (
    *JPEG_TYPES,
    *(".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
    *(".jp2", ".j2k", ".avif", *HEIF_TYPES),
)
# Others may run programs, or take nearly any file for a picture.
PILLOW_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
HEIF_PLUGIN = "pillow_heif"
HEIF_ADVICE = "pip install pillow-heif"
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
        raise ValueError(_describe_too_large(error)) from error


def _describe_too_large(error: Image.DecompressionBombError) -> str:
    """Return how large a picture is, and what to type if it is a photograph."""
    (pixels,) = re.findall(r"\((\d+) pixels\)", str(error))
    megapixels = -(-int(pixels) // 1_000_000)
    limit = os.environ[LIMIT_VARIABLE]
    description = f"{megapixels:,} megapixels; over {limit}, a file may be made to fill the memory"
    if megapixels > LARGEST_LIMIT:
        return description
    return f"{description}; if you trust it, add --max-megapixels {megapixels}"


def _open_picture(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=PILLOW_FORMATS)
    except Exception as error:
        if not _is_heif(path):
            if isinstance(error, Image.UnidentifiedImageError):
                formats = " ".join(PILLOW_FORMATS)
                raise ValueError(f"not a picture in one of the formats {formats}") from error
            raise
    if not heif_plugin_installed():
        raise ValueError(f"HEIC, for which Python needs a plugin: {HEIF_ADVICE}")
    _register_heif()
    return Image.open(path, formats=("HEIF",))


def _is_heif(path: str | Path) -> bool:
    """Return whether a file is an HEIC picture: many have a name that ends with .jpg."""
    with open(path, "rb") as file:
        head = file.read(64)
    size = int.from_bytes(head[:4])
    brands = head[8 : min(size, 64)]
    return head[4:8] == b"ftyp" and any(brand in brands for brand in HEIF_BRANDS)


@functools.cache
def heif_plugin_installed() -> bool:
    """Return whether HEIC can be read."""
    return importlib.util.find_spec(HEIF_PLUGIN) is not None


@functools.cache
def _register_heif() -> None:
    """Have Pillow read HEIC. The plugin is optional, and takes time to import."""
    import pillow_heif

    pillow_heif.register_heif_opener()


# ---------------------------------------------------------------- by name


def is_photograph(name: str) -> bool:
    """Return whether a file can be read as a photograph, by the ending of its name."""
    ending = _ending(name)
    return ending in IMAGE_TYPES and (ending not in HEIF_TYPES or heif_plugin_installed())


def describe_left_out(names: Iterable[str]) -> str:
    """Return how many files have which ending: "2 .heic (pip install ...), 1 .psd"; "" of none."""
    texts = []
    for ending, count in Counter(map(_ending, names)).most_common():
        text = f"{count:,} {one_line(ending)}" if ending else f"{count:,} without an ending"
        if ending in HEIF_TYPES:
            text += f" (for these: {HEIF_ADVICE})"
        texts.append(text)
    return ", ".join(texts)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
