"""The one reader of photographs and masks. Needs no torch: a bad path is answered at once."""

import contextlib
import functools
import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms

from carvana import multichannel
from carvana.classes import SINGLE, Classes
from carvana.errors import UserError, bullet_list, error_summary, one_line, plural, result_or_error
from carvana.files import file_stamp
from carvana.mask_values import (
    MOST_CLASS_VALUES,
    NOISE,
    MaskFacts,
    StoredValues,
    UnknownValues,
    WrongValues,
    advise,
    border_of,
    class_indices,
    count_values,
    distinct_values,
    is_widespread,
    list_values,
    measure_mask,
    split_levels,
    split_values,
    threshold_levels,
)
from carvana.metadata import saving_options, srgb_transform
from carvana.opening import IMAGE_TYPES as IMAGE_TYPES
from carvana.opening import open_picture
from carvana.schema import MOST_CHANNELS
from carvana.threads import map_in_threads

FEW_PIXELS = 16  # of a side, on which one more or less is seen
READER_VERSION = 7  # raise it whenever the reader returns something else for the same file
MASK_TYPES = (".gif", ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".webp")
EXIF_ORIENTATION = 0x0112
UPRIGHT = {  # EXIF orientation -> what turns the stored rows into the picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNS = {5: "-transpose", 6: "-rotate 90", 7: "-transverse", 8: "-rotate -90"}  # ImageMagick's
PILLOW_MODES = {1: "L", 3: "RGB"}  # by the number of channels
CHANNEL_MODES = {  # that are taken as they are -> the places of their channels in OpenCV's order
    "L": (0,),
    "LA": (0, 3),
    "RGB": (2, 1, 0),
    "RGBA": (2, 1, 0, 3),
}
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")  # of pictures with an alpha channel
LOSSY_FORMATS = ("JPEG", "WEBP")  # WebP can also be lossless
FULL_RANGE = 65535  # the largest level of 16 bits
BIT_RANGES = {8: 255, 10: 1023, 12: 4095, 14: 16383}  # bits that 16-bit files often hold
DEEP_TYPES = (".png", ".tif", ".tiff")  # that do not say how many of their 16 bits are in use
BITS_TAG = 258  # of a TIFF
LEVEL_SAMPLE = 16  # photographs whose levels are looked at
PLACE_VALUES = [65536, 256, 1]  # of red, green and blue in a color's number
MOST_ADVISERS = 300  # masks that a message looks at to tell what to set
LISTED_FILES = 20  # masks with wrong values that a message names
Size = tuple[int, int]  # (height, width)

warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata, sizes within the limit
cv2.setNumThreads(0)  # several files are read at once; OpenCV's threads would fight over cores


class Pixels(NamedTuple):
    """What a network is fed of photographs' pixels: what read_image takes after the size."""

    channels: int = 3
    levels: int = FULL_RANGE  # of 16-bit photographs
    value_range: Sequence[float] = ()  # of floating-point photographs

    @classmethod
    def from_constants(cls, constants: Mapping[str, Any]) -> "Pixels":
        """Return what the constants of config.py, or of a model, say."""
        return cls(constants["IN_CHANNELS"], constants["IMAGE_LEVELS"], constants["IMAGE_RANGE"])


PIXELS = Pixels()  # the default's


class Reading(NamedTuple):
    """How the pairs of a data set are read."""

    size: Size | None = None  # to scale to; None: each file's own
    channels: int = 3
    mask_resize: str = "area"
    classes: Classes = SINGLE
    levels: int = FULL_RANGE  # of 16-bit photographs, see read_image
    value_range: Sequence[float] = ()  # of floating-point ones, likewise

    @property
    def pixels(self) -> Pixels:
        """Return what photographs' pixels are."""
        return Pixels(self.channels, self.levels, self.value_range)

    def item_bytes(self, size: Size | None = None) -> int:
        """Return the bytes of a pair's levels at a size (H, W).

        None: the size that all pairs are read at; 0 if each keeps its own.
        """
        height, width = size or self.size or (0, 0)
        return height * width * (self.channels + 1)

    def read_pair(self, pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
        """Return read_image and read_target of (image path, mask path)."""
        image = read_image(pair[0], self.size, *self.pixels)
        return image, read_target(pair[1], self.classes, image.shape[:2], self.mask_resize)

    def read_target_of(self, pair: tuple[Path, Path]) -> np.ndarray:
        """Return the mask of read_pair alone."""
        size = self.size or picture_size(pair[0])
        return read_target(pair[1], self.classes, size, self.mask_resize)


def read_all(
    pairs: Sequence[tuple[Path, Path]], description: str, reading: Reading
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield read_pair of each pair, with a progress bar.

    Raises:
        UserError: after the last pair, naming every pair that cannot be read.
    """
    folder = pairs[0][0].parent
    errors = []
    read = functools.partial(result_or_error, reading.read_pair)
    results = map_in_threads(read, pairs, f"{description} {folder.name}")
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, UserError):
                errors.append(result)
            elif not errors:
                yield result
    if errors:
        headline = (
            f"{len(errors)} of {len(pairs)} pairs in {str(folder)!r} cannot be read; put them "
            "right, or let prepare_data.py --skip-bad leave them out"
        )
        advice, lines = explain_wrong_values(errors, [mask for _, mask in pairs], reading.classes)
        if advice:
            lines.insert(0, advice)
        raise UserError(bullet_list(headline, lines))


# ---------------------------------------------------------------- opening


@contextlib.contextmanager
def _naming_faults(path: str | Path) -> Iterator[None]:
    """Have whatever fails while a file is read end as a UserError that names it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("a folder or a device, not a file")
        yield
    except Exception as error:  # a hostile file can raise nearly anything inside a decoder
        reason = f"cannot be read ({error_summary(error)})"
        if isinstance(error, WrongValues) and not isinstance(error, UnknownValues):
            reason = str(error)
        if isinstance(error, multichannel.WrongChannels):
            reason = str(error)
        raise UserError(f"{one_line(path)}: {reason}") from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Give a PIL image; whatever fails while it is open is a UserError that names the file."""
    with _naming_faults(path), open_picture(path) as image:
        _refuse_pages(image)
        yield image


def _refuse_pages(image: Image.Image) -> None:
    """Raise ValueError for a file of several pictures."""
    # A camera's JPEG (MPO) or HEIC has previews behind the picture.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        pages = getattr(image, "n_frames", 2)
        advice = ""
        if image.format == "TIFF" and pages <= MOST_CHANNELS:
            advice = f", or if they are its channels, set --in-channels {pages}"
        raise ValueError(f"{pages} pictures in one file; save the one that counts{advice}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; from 5 on, rows and columns are exchanged.

    Call it before reading .size: Pillow turns a TIFF itself while loading.
    """
    if image.format == "TIFF":
        image.load()
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged or absurd EXIF, in a picture that may be good
        return 1
    return orientation if orientation in range(1, 9) else 1


def picture_size(path: str | Path) -> Size:
    """Return (height, width) of a picture as it is shown, from its header."""
    try:
        return _size_of_version(path, file_stamp(path))
    except OSError as error:
        raise UserError(f"{one_line(path)}: cannot be read ({error_summary(error)})") from error


@functools.lru_cache(maxsize=100_000)
def _size_of_version(path: str | Path, _stamp: tuple) -> Size:
    with _naming_faults(path):
        if multichannel.needs_tifffile(path, has_pages=True):
            return multichannel.read_size(path)
    with _opened(path) as image:
        return _upright_size(image)


def describe_turn(path: Path, mask: Path) -> str:
    """Return why a photograph's sides may be its mask's exchanged, and what to do; "" if not."""
    with _naming_faults(path):
        if multichannel.needs_tifffile(path, has_pages=True):
            return ""
    with _opened(path) as image:
        orientation = _orientation(image)
    if orientation not in TURNS:
        return ""
    return (
        f"; its EXIF orientation, {orientation}, turns it, and the mask was drawn on the unturned "
        f"photograph: turn the mask too (magick mogrify {TURNS[orientation]} "
        f"{one_line(mask.name)}), or remove the orientation (exiftool -Orientation= "
        f"{one_line(path.name)})"
    )


def _upright_size(image: Image.Image) -> Size:
    """Return (height, width) of a PIL image as it is shown."""
    exchanged = _orientation(image) > 4
    return image.size if exchanged else image.size[::-1]


def _deep_levels(image: Image.Image) -> np.ndarray | None:
    """Return the uint16 levels of a 16-bit gray picture, None for any other.

    Pillow opens 16-bit color as its high bytes.
    """
    if image.mode == "F":
        raise ValueError("floating-point levels; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return None
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        advice = "; save it with 8 or 16 bits"
        if image.format == "TIFF":
            advice += (
                ", or, to train with such photographs, say which of its values, "
                f"{levels.min()} to {levels.max()}, are black and white: "
                f"--image-range {levels.min()} {levels.max()}"
            )
        raise ValueError(f"32-bit levels{advice}")
    return levels.astype(np.uint16)


# ---------------------------------------------------------------- photographs


def read_image(
    path: str | Path,
    size: Size | None = None,
    channels: int = 3,
    levels: int = FULL_RANGE,
    value_range: Sequence[float] = (),
) -> np.ndarray:
    """Read a picture as it is shown (EXIF orientation applied).

    A JPEG is decoded at 1/4 or 1/8 as long as that leaves twice the size asked for, and at 1/2 if
    it leaves that size but for a pixel. 16 bits become 8, CMYK and palettes are converted, alpha is
    dropped. Colors that the file's profile describes become those of sRGB. Of any other number of
    channels than 1 and 3, all are returned as they are stored, alpha included.

    Args:
        size: (H, W) to scale to; None for the picture's own.
        channels: 3 for RGB, 1 for gray; any other number is that of the file.
        levels: which level of a 16-bit photograph becomes 255, and all above it: 4095 if it holds
            12 bits. A TIFF of 12 bits, PGM and JPEG 2000 say that themselves.
        value_range: the values of a TIFF of floating-point or signed numbers that become 0 and
            255; NaN becomes 0 as well.

    Returns:
        uint8 (H, W, channels).

    Raises:
        UserError: the file cannot be read, or has other channels; the message names it.
    """
    pixels = Pixels(channels, levels, value_range)
    with _naming_faults(path):
        if _has_own_channels(path, pixels):
            return _read_channels(path, size, pixels)
    return _read_picture(path, size, channels, levels)


def _read_picture(path: str | Path, size: Size | None, channels: int, levels: int) -> np.ndarray:
    """Read a photograph as gray or RGB, uint8 (H, W, channels), upright."""
    mode = PILLOW_MODES[channels]
    with _opened(path) as image:
        scales_color = levels != FULL_RANGE and _is_deep_color(image)
        orientation = _orientation(image)
        to_srgb = srgb_transform(image)
        stored_mode = to_srgb.input_mode if to_srgb else mode
        box = None
        if size is not None:
            height, width = size[::-1] if orientation > 4 else size
            box = _draft(image, stored_mode, width, height)
        deep = _deep_color(path, image) if scales_color else _deep_levels(image)
        if deep is not None:
            image = _eight_bits(deep, _own_range(image) or levels)
        if image.mode != stored_mode:  # Pillow would copy it
            image = image.convert(stored_mode)
        if size is not None:
            image = _scaled(image, width, height, box)
        if to_srgb:
            image = ImageCms.applyTransform(image, to_srgb)  # type: ignore[assignment]
            image = image.convert(mode)
        if orientation > 1:
            image = image.transpose(UPRIGHT[orientation])
        return np.array(image).reshape(image.height, image.width, channels)


def _has_own_channels(path: str | Path, pixels: Pixels) -> bool:
    """Return whether a photograph's channels are read one by one, not as Pillow's gray or RGB."""
    if pixels.channels not in PILLOW_MODES:
        return True
    return multichannel.needs_tifffile(path, has_range=bool(pixels.value_range))


def _read_channels(path: str | Path, size: Size | None, pixels: Pixels) -> np.ndarray:
    """Read a photograph channel by channel, uint8 (H, W, channels), upright."""
    channels, levels, value_range = pixels
    accepted = [channels, *PILLOW_MODES] if channels in PILLOW_MODES else [channels]
    if multichannel.is_tiff(path):
        stored, orientation = multichannel.read_levels(path, accepted, levels, value_range)
    else:
        stored, orientation = _stored_channels(path, channels, levels)
    planes = _planes(stored, channels)
    if size is not None:
        height, width = size[::-1] if orientation > 4 else size
        planes = [_scaled(plane, width, height) for plane in planes]
    if orientation > 1:
        planes = [plane.transpose(UPRIGHT[orientation]) for plane in planes]
    return np.dstack([np.asarray(plane) for plane in planes])


def _planes(image: np.ndarray, channels: int) -> list[Image.Image]:
    """Return uint8 (H, W, C) or (H, W) as one picture, gray or RGB, or as one for each channel."""
    if channels in PILLOW_MODES:
        picture = image[..., 0] if image.shape[2:] == (1,) else image
        return [Image.fromarray(picture).convert(PILLOW_MODES[channels])]
    return [Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0)]


def _stored_channels(path: str | Path, channels: int, levels: int) -> tuple[np.ndarray, int]:
    """Return the channels of a picture that is no TIFF, uint8 (H, W, C), and its orientation."""
    with open_picture(path) as image:
        _refuse_pages(image)
        if image.mode not in CHANNEL_MODES:
            raise ValueError(
                f"its pixels are of the kind {image.mode}; for IN_CHANNELS {channels} save it as "
                "gray with alpha, RGBA or TIFF"
            )
        multichannel.check_channels(len(image.getbands()), channels)
        scales_deep = levels != FULL_RANGE and _is_deep_color(image)
        orientation = _orientation(image)
        if scales_deep:
            deep = _deep_color(path, image, CHANNEL_MODES[image.mode])
            return multichannel.to_bytes(deep, levels), orientation
        return np.asarray(image), orientation


def read_rgb(path: str | Path, size: Size | None = None, pixels: Pixels = PIXELS) -> np.ndarray:
    """Read a photograph as people see it, uint8 (H, W, 3); see shown_channels."""
    if pixels.channels in PILLOW_MODES:
        return read_image(path, size, 3, pixels.levels, pixels.value_range)
    return shown_channels(read_image(path, size, *pixels))


def read_gray(path: str | Path, size: Size | None = None, pixels: Pixels = PIXELS) -> np.ndarray:
    """Read a photograph as it is measured, uint8 (H, W): what read_rgb returns, as gray."""
    if pixels.channels in PILLOW_MODES:
        return read_image(path, size, 1, pixels.levels, pixels.value_range)[..., 0]
    return np.asarray(Image.fromarray(read_rgb(path, size, pixels)).convert("L"))


def shown_channels(image: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, C) as RGB: its first three channels, of one or two the first as gray.

    A gray picture may also be (H, W).
    """
    image = np.atleast_3d(image)
    first = 3 if image.shape[2] >= 3 else 1
    return np.ascontiguousarray(np.broadcast_to(image[..., :first], (*image.shape[:2], 3)))


def _is_deep_color(image: Image.Image) -> bool:
    """Return whether a picture has several channels of 16 bits, of which Pillow reads the high 8.

    Call it before the picture is loaded.
    """
    if image.format == "TIFF":
        return _tiff_bits(image)[:3] == (16, 16, 16)
    tiles = getattr(image, "tile", ())
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in tiles)


def _deep_color(
    path: str | Path, image: Image.Image, order: Sequence[int] = (2, 1, 0)
) -> np.ndarray:
    """Return the uint16 levels (H, W, C), or (H, W), of a picture with channels of 16 bits.

    Args:
        order: the places of its channels in what OpenCV returns; red, green and blue are 2, 1, 0.
    """
    image.load()  # notices a file that ends too early
    deep = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16:
        raise ValueError("16-bit color of a rare kind; save it as a plain PNG")
    return deep if deep.ndim == 2 else np.ascontiguousarray(deep[..., order])


def _own_range(image: Image.Image) -> int | None:
    """Return the largest level that a picture says it has, None if it does not say it."""
    if image.format == "TIFF" and _tiff_bits(image) == (12,):
        return BIT_RANGES[12]
    return None


def _tiff_bits(image: Image.Image) -> tuple[int, ...]:
    """Return how many bits each channel of a TIFF has."""
    return getattr(image, "tag_v2", {}).get(BITS_TAG, ())


def _eight_bits(deep: np.ndarray, levels: int) -> Image.Image:
    """Return uint16 levels, (H, W) or (H, W, 3), as a picture in which `levels` is 255."""
    return Image.fromarray(multichannel.to_bytes(deep, levels))


def judge_levels(paths: Sequence[Path], levels: int = FULL_RANGE) -> str:
    """Return what is odd about the range of 16-bit photographs, of which a few are read.

    Args:
        levels: how they are read, see read_image.

    Returns:
        A warning that names the file and the option; "" if nothing is odd.
    """
    candidates = [path for path in paths if path.suffix.lower() in DEEP_TYPES]
    step = max(1, -(-len(candidates) // LEVEL_SAMPLE))
    highest = 0
    for path in candidates[::step]:
        level = result_or_error(_highest_level, path)
        if not isinstance(level, UserError) and level > highest:
            brightest = one_line(path.name)
            highest = level
    if not highest:
        return ""
    ranges = (value for value in (*BIT_RANGES.values(), FULL_RANGE) if value >= highest)
    fitting = next(ranges)
    subject = f"16-bit photographs, of which {brightest} is the brightest,"
    if highest > levels:
        return (
            f"{subject} reach level {highest:,}, and all above IMAGE_LEVELS, {levels:,}, is white; "
            f"if they are not meant to be, add --image-levels {fitting}"
        )
    if fitting * 2 > levels:
        return ""
    bits = fitting.bit_length()
    return (
        f"{subject} reach only level {highest:,} of {levels:,}, and come out dark; "
        f"if they hold {bits} bits, add --image-levels {fitting}"
    )


def _highest_level(path: Path) -> int:
    """Return the highest level of a 16-bit photograph, 0 of any other."""
    with _naming_faults(path):
        if multichannel.needs_tifffile(path, has_pages=True):
            return multichannel.highest_level(path)
    with _opened(path) as image:
        if _own_range(image):
            return 0
        deep = _deep_color(path, image) if _is_deep_color(image) else _deep_levels(image)
    return 0 if deep is None else int(deep.max())


def read_saving_options(path: str | Path) -> dict[str, Any]:
    """Return what Pillow saves with a picture that read_image and a mask have made.

    Raises:
        UserError: the file cannot be read.
    """
    with _naming_faults(path):
        if multichannel.needs_tifffile(path, has_pages=True):
            return {}
    with _opened(path) as image:
        return saving_options(image, turned=_orientation(image) > 4)


def _draft(image: Image.Image, mode: str, width: int, height: int) -> tuple | None:
    """Have a JPEG decoded smaller; return the part of the result that holds the photograph.

    Its last column may be partly padding.
    """
    if min(width, height) >= FEW_PIXELS:  # 1918 / 2 counts as 960
        width, height = width - 1, height - 1
    if image.width >= 4 * width and image.height >= 4 * height:  # there is twice the size in half
        width, height = 2 * width, 2 * height
    reduced = image.draft(mode, (width, height))
    return reduced and reduced[1]


def _scaled(image: Image.Image, width: int, height: int, box: tuple | None = None) -> Image.Image:
    """Return a PIL image, or a box of it from its upper left corner, at another size."""
    own_width, own_height = box[2:] if box else image.size
    reductions = (own_width / width, own_height / height)
    if min(reductions) > 1.9:
        # As sharp as averaging, but continuous: BOX moves what falls between two pixels.
        filter_ = Image.Resampling.HAMMING
    elif max(reductions) > 1:
        filter_ = Image.Resampling.BICUBIC  # here Hamming would move pixels, too
    else:
        filter_ = Image.Resampling.BILINEAR
    return image.resize((width, height), filter_, box)


def describe_kind(value: object) -> str:
    """Return what a value is, in words: "float32 (4, 4)" of an array, "None", "str"."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "None" if value is None else type(value).__name__


def scale_image(image: np.ndarray, size: Size | None, channels: int = 3) -> np.ndarray:
    """Return uint8 (*size, channels) of uint8 (H, W, 3) or (H, W), as read_image scales a file.

    Args:
        size: None for the picture's own.

    Of any other number of channels than 1 and 3, the picture is (H, W, channels).

    Raises:
        UserError: it is not.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
        shape = "(H, W, 3) or (H, W)" if channels in PILLOW_MODES else f"(H, W, {channels})"
        raise UserError(
            f"expected a picture as a NumPy array, uint8 {shape}, found {describe_kind(image)}"
        )
    height, width = size or image.shape[:2]
    if channels not in PILLOW_MODES and image.shape[2:] != (channels,):
        raise UserError(
            f"expected a picture of {channels} channels, (H, W, {channels}), found {image.shape}"
        )
    planes = [_scaled(plane, width, height) for plane in _planes(image, channels)]
    return np.dstack([np.asarray(plane) for plane in planes])


# ---------------------------------------------------------------- masks


def read_target(
    path: str | Path, classes: Classes, size: Size | None = None, resize: str = "area"
) -> np.ndarray:
    """Read a mask as training takes it: read_mask of a single class, else read_labels."""
    if classes.single:
        return read_mask(path, size, resize, classes)
    return read_labels(path, classes, size, resize)


def read_hard_mask(path: str | Path, classes: Classes, size: Size | None = None) -> np.ndarray:
    """Read a mask as it is scored and drawn: uint8 (H, W) of class indices."""
    target = read_target(path, classes, size)
    if classes.single:
        return (target > 127).view(np.uint8)
    return target


def read_mask(
    path: str | Path, size: Size | None = None, resize: str = "area", classes: Classes = SINGLE
) -> np.ndarray:
    """Read a mask of a single class, in any of the formats in use.

    It holds two values: foreground is what lies above the middle of the range, or 1 where 1 is
    the largest value. Other values need classes.values or classes.threshold.

    Args:
        size: (H, W) to scale to; None for the mask's own (only 0 and 255 occur then).
        resize: "area" averages; "nearest" picks single pixels as OpenCV does, which moves the
            outline by up to half a pixel.

    Returns:
        uint8 (H, W), the covered share of each pixel in 1/255.

    Raises:
        UserError: it cannot be read, or it is not clear which of its values are foreground.
    """
    decode = functools.partial(_foreground_of, classes=classes)
    return _read_values(path, decode, size, resize, _resize_by_area)


def read_labels(
    path: str | Path, classes: Classes, size: Size | None = None, resize: str = "area"
) -> np.ndarray:
    """Read a mask of several classes, whose values are indices or colors of classes.palette.

    Args:
        size: (H, W) to scale to; None for the mask's own.
        resize: "area" gives a pixel the class that covers most of it; "nearest" picks pixels.

    Returns:
        uint8 (H, W), indices into classes.names, and classes.ignore.

    Raises:
        UserError: it cannot be read, or holds a value that is no class.
    """
    to_indices = functools.partial(_class_indices, classes=classes)
    return _read_values(path, to_indices, size, resize, _resize_by_majority)


def _read_values(
    path: str | Path,
    decode: Callable[[Image.Image], np.ndarray],
    size: Size | None,
    resize: str,
    resize_by_area: Callable[[np.ndarray, Size], np.ndarray],
) -> np.ndarray:
    """Return decode(PIL image) of a mask's file, uint8 (H, W), turned upright and scaled."""
    with _opened(path) as image:
        orientation = _orientation(image)
        values = decode(image)
    if orientation > 1:
        values = np.asarray(Image.fromarray(values).transpose(UPRIGHT[orientation]))
    if size is None or values.shape == tuple(size):
        return values
    if resize == "nearest":
        return cv2.resize(values, size[::-1], interpolation=cv2.INTER_NEAREST)
    return resize_by_area(values, size)


def _resize_by_area(mask: np.ndarray, size: Size) -> np.ndarray:
    """Return the means of a mask over its smaller pixels."""
    # One direction after the other takes half the time of both at once.
    rows = cv2.resize(mask, (mask.shape[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.resize(rows, size[::-1], interpolation=cv2.INTER_AREA)


def _resize_by_majority(indices: np.ndarray, size: Size) -> np.ndarray:
    """Return the value that covers most of each of the smaller pixels."""
    values = np.unique(indices)
    largest = np.zeros(size, np.uint8)
    result = np.full(size, values[0])
    for value in values:
        covered = (indices == value).view(np.uint8) * np.uint8(255)
        share = cv2.resize(covered, size[::-1], interpolation=cv2.INTER_AREA)
        result[share > largest] = value
        largest = np.maximum(share, largest)
    return result


def _foreground_of(image: Image.Image, classes: Classes) -> np.ndarray:
    """Return uint8 (H, W) of 0 and 255. Raises WrongValues if it is not clear which is which."""
    image, alpha = _resolve_alpha(image)
    try:
        if classes.values:
            foreground = split_values(_stored_levels(image), classes.values)
        elif classes.threshold >= 0:
            if image.mode == "P":
                image = image.convert("L")
            foreground = threshold_levels(_gray_levels(image), classes.threshold)
        else:
            foreground = split_levels(_gray_levels(image))
    except WrongValues as error:
        remark = _format_remark(image)
        if alpha is not None:
            remark += "; its alpha channel varies too: save the one that is the mask as gray"
        raise WrongValues(f"{error}{remark}") from error
    if alpha is not None and not np.array_equal(foreground > 0, alpha > 127):
        raise WrongValues(
            "its colors and its alpha channel show different masks; save the one that counts as "
            "gray, without alpha"
        )
    return foreground


def _format_remark(image: Image.Image) -> str:
    """Return what a mask's format has to do with its values, "" if nothing."""
    if image.format in LOSSY_FORMATS:
        return f"; it is a {image.format}, which blends values at edges"
    if image.mode == "P":
        return f" (indices of its palette: {list_values(distinct_values(np.asarray(image)))})"
    return ""


def _resolve_alpha(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """Return the part of a mask's picture that is the mask: its colors, or its alpha channel.

    Alpha is the mask where it varies and the colors do not. Constant alpha says nothing, unless
    all is transparent and of one color: that is an empty mask.

    Returns:
        the picture without what is no mask, and alpha as well, (H, W), where both vary.
    """
    if image.mode not in ALPHA_MODES and "transparency" not in image.info:
        return image, None
    whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        return image, None
    extremes = np.array(whole.convert("RGB").getextrema())  # (3, 2)
    if (extremes[:, 0] == extremes[:, 1]).all():
        return alpha, None
    if lowest == highest:
        return image, None
    return image, np.asarray(alpha)


def _gray_levels(image: Image.Image) -> np.ndarray:
    """Return a mask's gray levels, (H, W) uint8 or uint16."""
    if image.mode == "P":  # in a fraction of the time that convert("L") takes
        indices = np.asarray(image)
        palette = image.crop((0, 0, 16, 16))
        palette.putdata(range(256))
        levels = np.asarray(palette.convert("L")).reshape(-1)
        # Carvana's masks hold 0 and 1, whatever their colors.
        already_binary = indices.max() == 1 and levels[0] < levels[1]
        return indices if already_binary else cv2.LUT(indices, levels)
    deep = _deep_levels(image)
    return np.asarray(image.convert("L")) if deep is None else deep


def _stored_levels(image: Image.Image) -> np.ndarray:
    """Return a mask's values as they are stored, (H, W); gray levels of a colored one."""
    levels = _deep_levels(image)
    if levels is not None:
        return levels
    if image.mode == "1":
        return (np.asarray(image.convert("L")) > 0).view(np.uint8)  # 0 and 1
    return np.asarray(image if image.mode == "P" else image.convert("L"))


def _class_indices(image: Image.Image, classes: Classes) -> np.ndarray:
    """Return uint8 (H, W) of class indices. Raises UnknownValues for values that are no class."""
    try:
        if classes.palette:
            return _indices_of_colors(image, classes)
        return _indices_of_values(image, classes)
    except UnknownValues as error:
        if image.format in LOSSY_FORMATS:
            raise UnknownValues(f"{error}{_format_remark(image)}") from error
        raise


def _indices_of_values(image: Image.Image, classes: Classes) -> np.ndarray:
    """Return uint8 (H, W) of class indices of a mask that holds numbers."""
    if image.mode != "P":  # a transparent index is a class like others
        image, _ = _resolve_alpha(image)
    levels = _stored_levels(image)
    if _is_colored(image):
        raise UnknownValues("it is colored, and PALETTE is empty; set it to the classes' colors")
    return class_indices(levels, classes)


def _is_colored(image: Image.Image) -> bool:
    """Return whether a mask's pixels have colors of their own, which are not all gray."""
    if not image.mode.startswith(("RGB", "CMYK", "YCbCr")):
        return False
    return bool(np.ptp(np.asarray(image.convert("RGB")), axis=2).any())


def _indices_of_colors(image: Image.Image, classes: Classes) -> np.ndarray:
    """Return uint8 (H, W) of class indices of a colored mask, by classes.palette."""
    colors = _color_numbers(image)
    known = np.array(classes.palette) @ PLACE_VALUES
    order = np.argsort(known)
    places = order[np.searchsorted(known, colors, sorter=order).clip(max=len(known) - 1)]
    unknown = known[places] != colors
    if unknown.any():
        counts = count_values(colors[unknown], "color #{:06x}")
        raise UnknownValues(f"{counts}: no color of PALETTE; add it")
    return np.where(places < len(classes.names), places, classes.ignore).astype(np.uint8)


def _color_numbers(image: Image.Image) -> np.ndarray:
    """Return the colors of a picture as numbers, int64 (H, W): 0xff0000 is red."""
    return np.asarray(image.convert("RGB")).astype(np.int32) @ PLACE_VALUES


# ---------------------------------------------------------------- checking


def check_photograph(path: str | Path, pixels: Pixels = PIXELS) -> Size:
    """Read a photograph to its end; return (height, width). Raises UserError if it is damaged."""
    with _naming_faults(path):
        if _has_own_channels(path, pixels):
            return _read_channels(path, None, pixels).shape[:2]
    with _opened(path) as image:
        size = _upright_size(image)
        image.draft("RGB", (1, 1))  # the cheapest decoding that still reads every byte
        _deep_levels(image)
        image.load()
    return size


def check_mask(path: str | Path, classes: Classes) -> tuple[Size, MaskFacts]:
    """Read a mask to its end; return its (height, width) and what it says.

    Raises:
        UserError: it is damaged, or holds values that mean nothing.
    """
    with _opened(path) as image:
        size = _upright_size(image)
        if classes.single:
            mask = _foreground_of(image, classes) & np.uint8(1)
        else:
            mask = _class_indices(image, classes)
        return size, measure_mask(mask, classes)


def stored_values(path: str | Path) -> StoredValues:
    """Return the values of a mask's file, whatever they mean.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as image:
        is_lossy = image.format in LOSSY_FORMATS
        image, _ = _resolve_alpha(image)
        levels = _stored_levels(image)
        colors: tuple[str, ...] = ()
        if _is_colored(image):
            counts = image.convert("RGB").getcolors(MOST_CLASS_VALUES) or ()
            colors = tuple(f"#{bytes(color).hex()}" for _, color in counts)  # type: ignore[arg-type]
        needs_choice = bool(colors) or _has_unclear_palette(image)
        gray = _gray_levels(image)
    unit = np.iinfo(gray.dtype).max / 255
    hard = (gray <= NOISE * unit) | (gray >= (255 - NOISE) * unit)
    return StoredValues(
        values=tuple(distinct_values(levels)),
        colors=colors,
        needs_choice=needs_choice,
        at_border=int(np.bincount(border_of(levels)).argmax()),
        hard_share=float(hard.mean()),
        flat_share=float((levels[:, 1:] == levels[:, :-1]).mean()) if levels.size > 1 else 1.0,
        is_lossy=is_lossy,
    )


def _has_unclear_palette(image: Image.Image) -> bool:
    """Return whether a palette gives a mask two colors other than 0 and, lighter, 1."""
    if image.mode != "P" or (_gray_levels(image) <= 1).all():
        return False
    shown = image.convert("RGB")
    return len(shown.getcolors(MOST_CLASS_VALUES) or ()) == 2 and _is_colored(shown)


def explain_wrong_values(
    errors: Sequence[UserError], masks: Sequence[Path], classes: Classes
) -> tuple[str, list[str]]:
    """Return what to set so that a set's masks can be read, and the errors in words.

    Errors of masks with wrong values are listed only as far as they help. What to set is "" where
    few masks have them.

    Args:
        masks: of the whole set, also those without an error.
    """
    wrong = [error for error in errors if isinstance(error.__cause__, WrongValues)]
    if not wrong:
        return "", [str(error) for error in errors]
    lines = [str(error) for error in errors if error not in wrong[LISTED_FILES:]]
    if len(wrong) > LISTED_FILES:
        lines.append(f"and {plural(len(wrong) - LISTED_FILES, 'mask')} more with such values")
    return advise_on_files(masks, classes, len(wrong)), lines


def advise_on_files(masks: Sequence[Path], classes: Classes, wrong_masks: int) -> str:
    """Return what to set so that a set's masks can be read, "" if that is not clear.

    Args:
        wrong_masks: how many of them hold wrong values.
    """
    if not is_widespread(wrong_masks, len(masks)):
        return ""
    return advise(sample_stored_values(masks), classes)


def sample_masks(masks: Sequence[Path]) -> Sequence[Path]:
    """Return the masks of a set that are looked at to tell what its values mean."""
    step = max(1, -(-len(masks) // MOST_ADVISERS))
    return masks[::step]


def sample_stored_values(masks: Sequence[Path]) -> list[StoredValues]:
    """Return the values of a sample of masks, of those that can be read."""
    read = functools.partial(result_or_error, stored_values)
    sample = sample_masks(masks)
    results = map_in_threads(read, sample, "looking for the masks' values", " masks")
    return [result for result in results if isinstance(result, StoredValues)]
