"""What a photograph's file says beside its pixels: what its colors mean, resolution and EXIF."""

import functools
import io
import math
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

# Modes of pictures -> the mode in which their profile describes them.
PROFILED_MODES = {
    "L": ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"),
    "RGB": ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"),
    "CMYK": ("CMYK",),
}
# XYZ of red, green and blue under D50, and the gamma; Adobe RGB (1998) Color Image Encoding.
ADOBE_RGB = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}
ADOBE_GAMMA = 563 / 256
ADOBE_INDEX = "R03"  # in the EXIF of cameras that are set to Adobe RGB and store no profile
SAME_LEVELS = 2  # colors that differ by no more than this are the same
GRID = 17  # levels of each channel at which a profile is compared with sRGB
KEPT_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
# What a written picture must not say (size, colors), and what tells who and where somebody is.
DROPPED_DETAILS = {
    ExifTags.Base.MakerNote,
    ExifTags.Base.UserComment,
    ExifTags.Base.CameraOwnerName,
    ExifTags.Base.BodySerialNumber,
    ExifTags.Base.LensSerialNumber,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ExifInteroperabilityOffset,
    ExifTags.Base.ColorSpace,
}
EXIF_BYTES = 60_000  # a JPEG holds 65,533
MAX_DPI = 65_535  # of a JPEG

# ---------------------------------------------------------------- colors


def srgb_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what turns a picture's colors into sRGB; None if they are, or say nothing else.

    A profile that is damaged, or belongs to another kind of picture, says nothing.
    """
    profile = _profile(image)
    if not profile:
        return None
    for mode, modes in PROFILED_MODES.items():
        if image.mode in modes:
            return _transform(profile, mode)
    return None


def _profile(image: Image.Image) -> bytes | None:
    """Return the ICC profile that a picture holds or names; None if there is none."""
    profile = image.info.get("icc_profile")
    if profile or ADOBE_INDEX.encode() not in (image.info.get("exif") or b""):
        return profile
    try:
        index = image.getexif().get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # damaged or absurd EXIF, in a picture that may be good
        return None
    return _adobe_rgb_profile() if index == ADOBE_INDEX else None


@functools.cache
def _adobe_rgb_profile() -> bytes:
    """Return an ICC profile of Adobe RGB, as far as it is needed for a conversion; ICC.1:2001."""
    gamma = struct.pack(">4s4xIH2x", b"curv", 1, round(256 * ADOBE_GAMMA))
    contents = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma)
    for name, values in ADOBE_RGB.items():
        numbers = (round(65536 * value) for value in values)
        contents[name] = struct.pack(">4s4x3i", b"XYZ ", *numbers)
    table = struct.pack(">I", len(contents))
    start = 128 + len(table) + 12 * len(contents)
    body = b""
    for name, content in contents.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4xI4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    return header.ljust(128, b"\0") + table + body


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what turns the colors of a profile into sRGB; None if there is nothing to turn."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    if mode != "CMYK" and _changes_nothing(transform, mode):
        return None
    return transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a profile is sRGB: there are many of that kind, all a little different."""
    if mode == "L":
        grid = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        steps = np.linspace(0, 255, GRID).round().astype(np.uint8)
        colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
        grid = Image.fromarray(colors.reshape(GRID, -1, 3))
    before = np.asarray(grid.convert("RGB")).astype(int)
    after = np.asarray(ImageCms.applyTransform(grid, transform)).astype(int)
    return np.abs(after - before).max() <= SAME_LEVELS


@functools.cache
def srgb_profile() -> bytes:
    """Return the ICC profile of sRGB, the same bytes at any time."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = np.array([2000, 1, 1, 0, 0, 0], ">u2").tobytes()  # when it was made
    return bytes(profile)


# ---------------------------------------------------------------- for pictures made of it


def saving_options(image: Image.Image, turned: bool) -> dict[str, Any]:
    """Return what Pillow saves with a picture that is made of a photograph, in sRGB and upright.

    That is: the profile of sRGB if the photograph has any, its resolution, and of its EXIF who
    took it, when and how, but not the place, serial numbers or a small copy.

    Args:
        turned: whether the written picture's rows are the photograph's columns.
    """
    options: dict[str, Any] = {}
    if _profile(image):
        options["icc_profile"] = srgb_profile()
    dpi = _resolution(image.info.get("dpi"))
    if dpi:
        options["dpi"] = dpi[::-1] if turned else dpi
    exif = _kept_exif(image)
    if exif:
        options["exif"] = exif
    return options


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Return dots per inch across and down, None if a file says nothing sensible."""
    try:
        across, down = map(float, dpi)
    except Exception:  # nothing there, or an absurd fraction
        return None
    sensible = all(math.isfinite(value) and 1 <= value <= MAX_DPI for value in (across, down))
    return (across, down) if sensible else None


def _kept_exif(image: Image.Image) -> bytes:
    """Return what is kept of a picture's EXIF; nothing if it is damaged or absurd."""
    kept = Image.Exif()
    try:
        exif = image.getexif()
        for kept_tag in KEPT_TAGS:
            if kept_tag in exif:
                kept[kept_tag] = _without_loss(exif[kept_tag])
        details = {}
        for tag, value in exif.get_ifd(ExifTags.IFD.Exif).items():
            if tag not in DROPPED_DETAILS:
                details[tag] = value
        if details:
            kept[ExifTags.IFD.Exif] = details | {ExifTags.Base.ColorSpace: 1}  # sRGB
        data = kept.tobytes() if len(kept) else b""
    except Exception:  # a hostile file can raise nearly anything
        return b""
    return data if len(data) <= EXIF_BYTES else b""


def _without_loss(value: Any) -> Any:
    """Return a text as the bytes that Pillow read it from: it would write only ASCII."""
    return value.encode("latin-1") if isinstance(value, str) else value
