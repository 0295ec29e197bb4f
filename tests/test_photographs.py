"""Photographs as people have them: a table of files, what the reader returns, what scripts say."""

import errno
import functools
import io
import os
import re
import struct
import subprocess
import sys
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from helpers import (
    BEST,
    LAST,
    OWN_MODEL,
    ROOT,
    is_same,
    learned_state,
    picture_width_height,
    ramp,
    scene,
    split_folders,
    tiny_options,
    write_model,
)
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from carvana import opening
from carvana.checkpoint import read_checkpoint
from carvana.errors import UserError
from carvana.images import (
    EXIF_ORIENTATION,
    check_photograph,
    describe_turn,
    judge_levels,
    picture_size,
    read_image,
)
from carvana.metadata import saving_options, srgb_profile
from carvana.photographs import CUTOUT, find_photographs

HEIF_INSTALLED = opening.heif_plugin_is_installed()
HEIC_HEAD = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
AVIF_HEAD = struct.pack(">I", 24) + b"ftypavif\0\0\0\0mif1miaf" + bytes(100)
HEIC_HEAD_OF_MIF1 = struct.pack(">I", 24) + b"ftypmif1\0\0\0\0mif1heic" + bytes(100)


# ---------------------------------------------------------------- color profiles
# An ICC profile is a header, a table of tags, and the tags' data; ICC.1:2001-04.


def s15_fixed16(values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def icc_profile(space, kind, tags):
    """Return an ICC profile, version 2.4, of (name, data) tags."""
    table = struct.pack(">I", len(tags))
    body = b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(">I", start + len(body)) + b"lcms\2\x40\0\0" + kind + space + connection
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += s15_fixed16((0.9642, 1, 0.8249))
    return header.ljust(128, b"\0") + table + body


def text(words):
    return b"text\0\0\0\0" + words + b"\0"


def description(words):
    ascii_part = struct.pack(">I", len(words) + 1) + words + b"\0"
    return b"desc\0\0\0\0" + ascii_part + bytes(8 + 3 + 67)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * value))


def xyz(*values):
    return b"XYZ \0\0\0\0" + s15_fixed16(values)


def rgb_profile(columns, exponent):
    """Return a profile of the XYZ (D50) of red, green and blue, and a gamma."""
    tags = [(b"desc", description(b"test")), (b"cprt", text(b"none"))]
    tags.append((b"wtpt", xyz(0.9642, 1, 0.8249)))
    for letter, column in zip(b"rgb", columns, strict=True):
        tags.append((bytes([letter]) + b"XYZ", xyz(*column)))
        tags.append((bytes([letter]) + b"TRC", gamma(exponent)))
    return icc_profile(b"RGB ", b"mntr", tags)


def gray_profile(exponent):
    tags = [(b"desc", description(b"test")), (b"cprt", text(b"none"))]
    tags += [(b"wtpt", xyz(0.9642, 1, 0.8249)), (b"kTRC", gamma(exponent))]
    return icc_profile(b"GRAY", b"mntr", tags)


def cmyk_profile():
    """Return a profile in which cyan is Lab (60, -40, -40), and other inks make gray of L*."""
    table = []
    for node in range(16):
        cyan, magenta, yellow, key = (node >> bit & 1 for bit in (3, 2, 1, 0))
        lightness = 100 * (1 - key) * (1 - 0.4 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow)
        shift = -40 * cyan * (1 - key)
        table += [round(2.55 * lightness), round(128 + shift), round(128 + shift)]
    lut = b"mft1\0\0\0\0\4\3\2\0" + s15_fixed16((1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut += bytes(range(256)) * 4 + bytes(table) + bytes(range(256)) * 3
    tags = [(b"desc", description(b"test")), (b"cprt", text(b"none"))]
    tags += [(b"wtpt", xyz(0.9642, 1, 0.8249)), (b"A2B0", lut)]
    return icc_profile(b"CMYK", b"prtr", tags)


DISPLAY_P3 = rgb_profile(
    [(0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)], 2.2
)
ADOBE_RGB = rgb_profile(
    [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)], 2.2
)
SIMILAR_TO_SRGB = srgb_profile()[:-1] + b"\1"  # other bytes, the same colors


def stored(levels, profile, space):
    """Return sRGB levels (H, W, 3) as a picture in the colors of a profile."""
    return ImageCms.profileToProfile(
        Image.fromarray(levels),
        ImageCms.createProfile("sRGB"),
        io.BytesIO(profile),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode=space,
    )


# ---------------------------------------------------------------- the table


def camera_exif(index):
    """Return EXIF that names the colors by the index of interoperability, as cameras do."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "R03"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ColorSpace: 65535 if index == "R03" else 1,
        ExifTags.IFD.Interop: {1: index},
    }
    return exif


class Case(NamedTuple):
    """A file, and what the reader returns of it."""

    name: str
    file: str
    image: Image.Image | bytes
    expected: np.ndarray | str  # uint8 (H, W, 3), or the reason in a message
    tolerance: int = 0
    options: dict[str, Any] = {}  # of Image.save
    form: str | None = None  # of the content, where the ending does not say it

    def write(self, folder):
        path = folder / self.file
        if isinstance(self.image, bytes):
            path.write_bytes(self.image)
        else:
            self.image.save(path, self.form, **self.options)
        return path


def muted():
    """Return a picture whose colors every profile here can hold, uint8 (H, W, 3)."""
    return (ramp() // 2 + 60).astype(np.uint8)


PICTURE = Image.fromarray(muted())
GRAY = muted()[..., :1].repeat(3, axis=2)
FLAT = functools.partial(np.full, (40, 60, 3), dtype=np.uint8)

ENDINGS = [
    Case("jfif", "a.jfif", PICTURE, muted(), 8, {"quality": 98}, "JPEG"),
    Case("jpe", "a.JPE", PICTURE, muted(), 8, {"quality": 98}, "JPEG"),
    Case("gif", "a.gif", Image.fromarray(GRAY[..., 0]), GRAY),
    Case("ppm", "a.ppm", PICTURE, muted()),
    Case("pgm", "a.pgm", Image.fromarray(GRAY[..., 0]), GRAY),
    Case("JPEG 2000", "a.jp2", PICTURE, muted(), 0, {"irreversible": False}),
    Case("JPEG 2000 stream", "a.j2k", PICTURE, muted(), 0, {"irreversible": False}),
    Case("webp called jpg", "a.jpg", PICTURE, muted(), 0, {"lossless": True}, "WEBP"),
    Case("png called jpg", "a.jpg", PICTURE, muted(), 0, {}, "PNG"),
    Case("jpeg called png", "a.png", PICTURE, muted(), 8, {"quality": 98}, "JPEG"),
    Case("jpeg called heic", "a.jpg", PICTURE, muted(), 8, {"quality": 98}, "JPEG"),
    Case(
        "gif of frames",
        "a.gif",
        PICTURE,
        "2 pictures in one file; save the one",
        0,
        {"save_all": True, "append_images": [Image.new("RGB", (60, 40))]},
    ),
]
AVIF = [
    Case("avif", "a.avif", PICTURE, muted(), 12, {"quality": 95}),
    Case("avif called jpg", "a.jpg", PICTURE, muted(), 12, {"quality": 95}, "AVIF"),
    Case(
        "Display P3, AVIF",
        "a.avif",
        stored(muted(), DISPLAY_P3, "RGB"),
        muted(),
        14,
        {"icc_profile": DISPLAY_P3, "quality": 95},
    ),
]
if opening.avif_is_readable():
    ENDINGS += AVIF

COLORS = [
    Case("no profile", "a.png", PICTURE, muted()),
    Case("sRGB", "a.png", PICTURE, muted(), 0, {"icc_profile": srgb_profile()}),
    Case("another sRGB", "a.png", PICTURE, muted(), 0, {"icc_profile": SIMILAR_TO_SRGB}),
    Case(
        "Display P3",
        "a.png",
        stored(muted(), DISPLAY_P3, "RGB"),
        muted(),
        2,
        {"icc_profile": DISPLAY_P3},
    ),
    Case(
        "Display P3's dull red",
        "a.png",
        Image.new("RGB", (60, 40), (234, 51, 35)),
        FLAT(fill_value=(255, 0, 0)),
        6,
        {"icc_profile": DISPLAY_P3},
    ),
    Case(
        "Display P3, JPEG",
        "a.jpg",
        stored(muted(), DISPLAY_P3, "RGB"),
        muted(),
        8,
        {"icc_profile": DISPLAY_P3, "quality": 98},
    ),
    Case(
        "Display P3, TIFF",
        "a.tif",
        stored(muted(), DISPLAY_P3, "RGB"),
        muted(),
        2,
        {"icc_profile": DISPLAY_P3},
    ),
    Case(
        "Display P3, WebP",
        "a.webp",
        stored(muted(), DISPLAY_P3, "RGB"),
        muted(),
        2,
        {"icc_profile": DISPLAY_P3, "lossless": True},
    ),
    Case(
        "Display P3 with alpha",
        "a.png",
        stored(muted(), DISPLAY_P3, "RGB").convert("RGBA"),
        muted(),
        2,
        {"icc_profile": DISPLAY_P3},
    ),
    Case(
        "Adobe RGB",
        "a.png",
        stored(muted(), ADOBE_RGB, "RGB"),
        muted(),
        3,
        {"icc_profile": ADOBE_RGB},
    ),
    Case(
        "Adobe RGB that only EXIF names",
        "a.jpg",
        stored(muted(), ADOBE_RGB, "RGB"),
        muted(),
        9,
        {"exif": camera_exif("R03"), "quality": 98},
    ),
    Case("sRGB by EXIF", "a.jpg", PICTURE, muted(), 8, {"exif": camera_exif("R98"), "quality": 98}),
    Case(
        "gray of gamma 1.0",
        "a.png",
        Image.new("L", (60, 40), 55),
        FLAT(fill_value=128),
        2,
        {"icc_profile": gray_profile(1.0)},
    ),
    Case(
        "CMYK",
        "a.jpg",
        Image.new("CMYK", (60, 40), (255, 0, 0, 0)),
        FLAT(fill_value=(0, 162, 215)),
        8,
        {"icc_profile": cmyk_profile(), "quality": 98},
    ),
    Case("damaged profile", "a.png", PICTURE, muted(), 0, {"icc_profile": DISPLAY_P3[:200]}),
    Case("no profile at all", "a.png", PICTURE, muted(), 0, {"icc_profile": b"profile"}),
    Case("profile of another kind", "a.png", PICTURE, muted(), 0, {"icc_profile": cmyk_profile()}),
    Case(
        "gray with a color profile",
        "a.png",
        PICTURE.convert("L"),
        np.asarray(PICTURE.convert("L").convert("RGB")),
        0,
        {"icc_profile": ADOBE_RGB},
    ),
]

CASES = ENDINGS + COLORS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [None, (20, 30)])
def test_photograph_is_read_as_it_is_meant(tmp_path, case, size, channels):
    path = case.write(tmp_path)
    if isinstance(case.expected, str):
        with pytest.raises(UserError, match=rf"{path.name}: .*{case.expected}"):
            read_image(path, size, channels)
        return
    assert picture_size(path) == check_photograph(path) == (40, 60)
    picture = Image.fromarray(case.expected)
    if size:
        picture = picture.resize(size[::-1], Image.Resampling.HAMMING)
    if channels == 1:
        picture = picture.convert("L")
    read = read_image(path, size, channels)
    expected = np.asarray(picture).reshape(read.shape)
    assert np.abs(read.astype(int) - expected).max() <= case.tolerance + bool(size)


@pytest.mark.parametrize("size", [None, (80, 120)])
def test_photograph_without_other_colors_is_read_bit_identically(tmp_path, size):
    """A profile of sRGB, or one that says nothing, changes no level."""
    image = Image.fromarray(scene(3, 320, 480)[0])
    image.save(tmp_path / "a.jpg", quality=95)
    for name, profile in {"b.jpg": SIMILAR_TO_SRGB, "c.jpg": DISPLAY_P3[:200]}.items():
        image.save(tmp_path / name, quality=95, icc_profile=profile)
        for channels in (1, 3):
            plain = read_image(tmp_path / "a.jpg", size, channels)
            assert np.array_equal(read_image(tmp_path / name, size, channels), plain), name


# ---------------------------------------------------------------- HEIC


@pytest.mark.parametrize("head", [HEIC_HEAD, HEIC_HEAD_OF_MIF1])
def test_heic_without_its_plugin_names_it(tmp_path, monkeypatch, head):
    monkeypatch.setattr(opening, "heif_plugin_is_installed", lambda: False)
    (tmp_path / "IMG_1.jpg").write_bytes(head)
    expected = r"IMG_1.jpg: cannot be read \(HEIC, for which .*: pip install pillow-heif\)"
    with pytest.raises(UserError, match=expected):
        read_image(tmp_path / "IMG_1.jpg")


def test_avif_that_pillow_cannot_read_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "avif_is_readable", lambda: False)
    (tmp_path / "a.jpg").write_bytes(AVIF_HEAD)
    expected = r"a.jpg: cannot be read \(AVIF, for which Pillow is too old: pip install -U pillow"
    with pytest.raises(UserError, match=expected):
        read_image(tmp_path / "a.jpg")
    assert not opening.is_photograph("a.avif")
    assert "1 .avif (for these: pip install -U pillow" in opening.describe_left_out(["a.avif"])


@pytest.mark.skipif(not HEIF_INSTALLED, reason="needs pillow-heif")
@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_heic_is_read_with_its_plugin(tmp_path, name):
    assert opening.is_photograph("a.HEIC")
    opening._register_heif()
    PICTURE.save(tmp_path / name, "HEIF", quality=95)
    read = read_image(tmp_path / name)
    assert picture_size(tmp_path / name) == (40, 60)
    assert np.abs(read.astype(int) - muted()).mean() < 3
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        read_image(tmp_path / name)


# ---------------------------------------------------------------- which photographs


def fill(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return str(folder)


def test_folders_name_what_they_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "heif_plugin_is_installed", lambda: False)
    names = ("a.jpg", "b.JFIF", "c.gif", "d.HEIC", "e.heic", "f.psd", "g", "Thumbs.db", ".h.txt")
    folder = fill(tmp_path / "photos", *names)
    left_out = "left out 2 .heic (for these: pip install pillow-heif), 1 .psd, 1 without an ending"
    for word in (folder, f"{folder}/*"):
        photographs, faults, remarks = find_photographs([word], tmp_path / "out")
        assert [photograph.path.name for photograph in photographs] == list(names[:3])
        assert (faults, remarks) == ([], [f"{word}: {left_out}"])
    empty = fill(tmp_path / "raw", "a.nef", "b.nef")
    for word in (empty, f"{empty}/*.nef"):
        photographs, (fault,), remarks = find_photographs([word], tmp_path / "out")
        assert (photographs, remarks) == ([], [])
        assert "but 2 .nef" in fault
    monkeypatch.setattr(opening, "heif_plugin_is_installed", lambda: True)
    photographs, _, (remark,) = find_photographs([folder], tmp_path / "out")
    assert len(photographs) == 5
    assert ".heic" not in remark


def test_photograph_that_is_named_twice_has_one_row(tmp_path, monkeypatch):
    folder = fill(tmp_path / "photos", "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    words = [folder, "photos/a.jpg", "photos/*.jpg", "photos/../photos/b.jpg"]
    photographs, faults, _ = find_photographs(words, tmp_path / "out", for_csv=True)
    assert [photograph.name for photograph in photographs] == ["a", "b"]
    assert faults == []


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    folder = fill(tmp_path / "photos", "a.jpg", "c.psd")
    fill(tmp_path / "photos/locked", "b.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    photographs, (fault,), (remark,) = find_photographs([folder], tmp_path / "o", recursive=True)
    assert [photograph.name for photograph in photographs] == ["a"]
    assert "left out 1 .psd" in remark
    assert "locked: Permission denied; " in fault
    photographs, (fault,), _ = find_photographs([f"{folder}/locked"], tmp_path / "out")
    assert photographs == []
    assert "locked: Permission denied; " in fault


def preview_tiff(path, **tags):
    """Write a TIFF as cameras' raw files are: a small picture, and more in folders below it."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag.removeprefix("tag"))] = value
    Image.new("RGB", (160, 107)).save(path, "TIFF", tiffinfo=info)


def test_preview_in_a_raw_file_is_not_taken_for_the_photograph(tmp_path):
    preview_tiff(tmp_path / "a.dng", tag254=1, tag330=8)
    with pytest.raises(UserError, match="a camera's raw file, of which only a preview of 160x107"):
        read_image(tmp_path / "a.dng")
    for tags in ({}, {"tag254": 0}, {"tag254": 1}, {"tag330": 8}, {"tag254": 0, "tag330": 8}):
        preview_tiff(tmp_path / "b.tif", **tags)
        assert read_image(tmp_path / "b.tif").shape == (107, 160, 3)


def test_inference_takes_every_kind_and_names_the_rest(work, run):
    photos = work / "kinds"
    photos.mkdir()
    image = Image.fromarray(scene(1)[0])
    for name in ("a.jfif", "b.jpe"):
        image.save(photos / name, "JPEG")
    for name in ("c.gif", "d.ppm", "e.jp2"):
        image.save(photos / name)
    (photos / "f.psd").write_bytes(b"8BPS")
    finished = run("inference.py", *OWN_MODEL, "--img", "kinds")
    assert "5 photographs in" in finished.stdout
    assert finished.stderr.startswith("warning: kinds: left out 1 .psd\n")


# ---------------------------------------------------------------- what is written


def full_exif(orientation):
    """Return EXIF with everything that may be in it, and a place."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Copyright] = "© Zoë".encode()
    exif[ExifTags.Base.Software] = "unimportant"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExposureTime: 1 / 125,
        ExifTags.Base.DateTimeOriginal: "2026:01:02 03:04:05",
        ExifTags.Base.MakerNote: b"secrets",
        ExifTags.Base.BodySerialNumber: "12345",
        ExifTags.Base.ColorSpace: 65535,
    }
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (48.0, 8.0, 0.0)}
    return exif


def test_inference_keeps_colors_resolution_and_exif(work, run):
    folder = work / "p3"
    folder.mkdir()
    upright = stored(scene(1)[0] // 2 + 60, DISPLAY_P3, "RGB")
    options = {"icc_profile": DISPLAY_P3, "exif": full_exif(6), "dpi": (300, 150), "quality": 98}
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "a.jpg", **options)
    Image.fromarray(scene(1)[0]).save(folder / "plain.jpg")
    background = ("--background", "p3/a.jpg")
    run("inference.py", *OWN_MODEL, "--img", "p3", "--cutout", *background)
    assert np.abs(read_image(folder / "a.jpg").astype(int) - scene(1)[0] // 2 - 60).mean() < 3
    for ending in ("overlay.jpg", "cutout.png", "background.jpg"):
        with Image.open(work / f"outputs/a_{ending}") as written:
            assert written.size == (72, 48)
            assert written.info["icc_profile"] == srgb_profile()
            assert [round(dpi) for dpi in written.info["dpi"]] == [150, 300]
            exif = written.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
            assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {}
        assert exif[ExifTags.Base.Make] == "Maker"
        assert exif[ExifTags.Base.Copyright].encode("latin-1") == "© Zoë".encode()
        assert float(details[ExifTags.Base.ExposureTime]) == 1 / 125
        assert details[ExifTags.Base.DateTimeOriginal] == "2026:01:02 03:04:05"
        assert details[ExifTags.Base.ColorSpace] == 1
        dropped = {EXIF_ORIENTATION, ExifTags.Base.Software}
        assert not dropped & set(exif)
        assert not {ExifTags.Base.MakerNote, ExifTags.Base.BodySerialNumber} & set(details)
        with Image.open(work / f"outputs/plain_{ending}") as written:
            assert not {"icc_profile", "exif", "dpi"} & set(written.info)


def test_inference_cuts_out_in_the_colors_that_the_photograph_shows(work, run):
    """A Display P3 photograph and the same in sRGB have the same mask and cutout."""
    levels = scene(1)[0] // 2 + 60
    folder = work / "colors"
    folder.mkdir()
    Image.fromarray(levels).save(folder / "srgb.png")
    stored(levels, DISPLAY_P3, "RGB").save(folder / "p3.png", icc_profile=DISPLAY_P3)
    run("inference.py", *OWN_MODEL, "--img", "colors", "--cutout", "--no-overlay")
    srgb, p3 = (
        np.asarray(Image.open(work / f"outputs/{name}_{CUTOUT}")) for name in ("srgb", "p3")
    )
    opaque = (srgb[..., 3] == 255) & (p3[..., 3] == 255)
    assert opaque.any()
    assert np.abs(srgb.astype(int) - p3)[opaque].max() <= 3


@pytest.mark.parametrize(
    "info",
    [
        {"dpi": (0, 0)},
        {"dpi": (float("nan"), 72)},
        {"dpi": (10**9, 10**9)},
        {"dpi": (72,)},
        {"exif": b"Exif\0\0" + bytes(range(256)) * 20},
        {"exif": b"Exif\0\0II*\0\xff\xff\xff\x7f"},
    ],
)
@pytest.mark.filterwarnings("ignore")  # as carvana.images has it
def test_absurd_metadata_is_not_passed_on(info):
    image = Image.new("RGB", (4, 4))
    image.info |= info
    assert saving_options(image, turned=False) == {}


def test_exif_that_a_jpeg_cannot_hold_is_not_passed_on():
    image = Image.new("RGB", (4, 4))
    image.getexif()[ExifTags.Base.ImageDescription] = "x" * 70_000
    assert saving_options(image, turned=False) == {}


# ---------------------------------------------------------------- 16 bits that are not all used


DEEP_COLOR = np.random.default_rng(0).integers(0, 4096, (40, 60, 3), dtype=np.uint16)


def write_deep(path, levels):
    cv2.imwrite(str(path), levels if levels.ndim == 2 else levels[..., ::-1])
    return path


def packed_tiff(levels):
    """Return a TIFF in which each level, uint16 (H, W), takes 12 bits."""
    height, width = levels.shape
    pairs = levels.reshape(-1, 2).astype(np.uint32)
    both = pairs[:, 0] << 12 | pairs[:, 1]
    data = np.stack([both >> 16, both >> 8, both], axis=1).astype(np.uint8).tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1)]
    tags += [(273, 200), (277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + data


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_12_bits_in_16_are_read_in_full(tmp_path, name, channels):
    deep = DEEP_COLOR if channels == 3 else DEEP_COLOR[..., 0]
    path = write_deep(tmp_path / name, deep)
    expected = np.round(deep / (4095 / 255)).reshape(40, 60, channels)
    assert np.array_equal(read_image(path, None, channels, levels=4095), expected)
    assert read_image(path, None, channels).max() <= 16
    half = read_image(path, (20, 30), channels, levels=4095)
    assert abs(half.mean() - expected.mean()) < 1
    # What is above the level given is white.
    clipped = np.round(np.minimum(deep, 1023) / (1023 / 255)).reshape(40, 60, channels)
    assert np.array_equal(read_image(path, None, channels, levels=1023), clipped)


def test_16_bits_are_read_as_ever(tmp_path):
    gray = DEEP_COLOR[..., 0] * np.uint16(16)
    path = write_deep(tmp_path / "a.png", gray)
    assert np.array_equal(read_image(path, None, 1)[..., 0], np.round(gray / 257))
    path = write_deep(tmp_path / "b.png", DEEP_COLOR * np.uint16(16))
    assert np.array_equal(read_image(path), DEEP_COLOR * np.uint16(16) >> 8)


def test_12_bit_tiff_and_pgm_say_themselves_what_white_is(tmp_path):
    gray = DEEP_COLOR[..., 0]
    (tmp_path / "a.tif").write_bytes(packed_tiff(gray))
    (tmp_path / "a.pgm").write_bytes(b"P5 60 40 4095\n" + gray.astype(">u2").tobytes())
    for name in ("a.tif", "a.pgm"):
        read = read_image(tmp_path / name)[..., 0]
        assert np.abs(read - gray / (4095 / 255)).max() <= 0.51, name
        assert judge_levels([tmp_path / name]) == "", name


def test_16_bit_color_that_is_truncated_is_refused(tmp_path):
    path = write_deep(tmp_path / "a.png", DEEP_COLOR)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"a.png: cannot be read"):
        read_image(path, levels=4095)


@pytest.mark.parametrize(
    "highest, levels, expected",
    [
        (255, 65535, "if they hold 8 bits, add --image-levels 255$"),
        (1000, 65535, "if they hold 10 bits, add --image-levels 1023$"),
        (4095, 65535, "reach only level 4,095 of 65,535, .* 12 bits, add --image-levels 4095$"),
        (16383, 65535, "if they hold 14 bits, add --image-levels 16383$"),
        (16384, 65535, None),
        (65535, 65535, None),
        (0, 65535, None),
        (4095, 4095, None),
        (2100, 4095, None),
        (1000, 4095, "add --image-levels 1023$"),
        (5000, 4095, "reach level 5,000, and all above IMAGE_LEVELS, 4,095, is white; .* 16383$"),
    ],
)
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_range_of_16_bit_photographs_is_judged(tmp_path, highest, levels, expected, shape):
    Image.new("RGB", (4, 4), "white").save(tmp_path / "eight.png")
    (tmp_path / "bad.png").write_bytes(b"")
    names = ["a.png", "b.tif"]
    for name, level in zip(names, (highest, highest // 2), strict=True):
        write_deep(tmp_path / name, np.full(shape, level, np.uint16))
    paths = [tmp_path / name for name in ("bad.png", "eight.png", *names, "absent.jpg")]
    warning = judge_levels(paths, levels)
    if expected is None:
        assert warning == ""
    else:
        assert warning.startswith("16-bit photographs, of which a.png is the brightest, ")
        assert re.search(expected, warning)


def test_inference_reads_12_bits_as_the_model_or_the_option_says(work, run):
    levels = scene(1)[0]
    folder = work / "deep"
    folder.mkdir()
    Image.fromarray(levels).save(work / "eight.png")
    write_deep(folder / "a.png", np.round(levels * (4095 / 255)).astype(np.uint16))
    pictures = ("--cutout", "--no-overlay")
    finished = run("inference.py", *OWN_MODEL, "--img", "deep", *pictures)
    assert finished.stderr.count("if they hold 12 bits, add --image-levels 4095") == 1
    write_model(work / "deep.pth.tar", IMAGE_LEVELS=4095)
    run("inference.py", *OWN_MODEL, "--img", "eight.png", *pictures)
    expected = (work / "outputs/eight_cutout.png").read_bytes()
    for arguments in ((*OWN_MODEL, "--image-levels", "4095"), ("--model", "deep.pth.tar")):
        finished = run("inference.py", *arguments, "--img", "deep", *pictures)
        assert "--image-levels" not in finished.stderr
        assert (work / "outputs/a_cutout.png").read_bytes() == expected
    finished = run("inference.py", *OWN_MODEL, "--img", "deep", "--image-levels", "9", status=2)
    assert "--image-levels: expected 255..65535 levels, found 9" in finished.stderr


# ---------------------------------------------------------------- very large, and turned


@pytest.fixture
def small_limit():
    opening.set_max_megapixels(1)
    yield
    opening.set_max_megapixels(opening.MAX_MEGAPIXELS)


@pytest.mark.filterwarnings("ignore")  # as carvana.images has it
def test_photograph_over_the_limit_is_answered_with_the_option(tmp_path, small_limit):
    for name in ("a.png", "a.jpg"):
        Image.new("L", (1500, 1000)).save(tmp_path / name)
        expected = rf"{name}: cannot be read \(2 megapixels; over 1, .* add --max-megapixels 2\)"
        with pytest.raises(UserError, match=expected):
            read_image(tmp_path / name, (10, 10))
    opening.set_max_megapixels(2)
    assert read_image(tmp_path / "a.jpg", (10, 10)).shape == (10, 10, 3)


def test_limit_holds_in_processes_that_read_ahead(tmp_path, small_limit):
    Image.new("L", (1500, 1000)).save(tmp_path / "a.png")
    opening.set_max_megapixels(2)
    code = "import sys, carvana.images as i; print(i.read_image(sys.argv[1]).shape)"
    finished = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.stdout == "(1000, 1500, 3)\n"


@pytest.mark.filterwarnings("ignore")  # as carvana.images has it
def test_inference_takes_a_limit(work, run, small_limit):
    Image.new("L", (2000, 1000)).save(work / "wide.png")
    command = ("inference.py", *OWN_MODEL, "--img", "wide.png", "--max-megapixels")
    finished = run(*command, "1", status=1)
    assert "2 megapixels; over 1, " in finished.stderr
    run(*command, "2")
    assert picture_width_height(work / "outputs/wide_mask.png") == (2000, 1000)
    expected = "--max-megapixels: expected 1..10000, found 0"
    assert expected in run(*command, "0", status=2).stderr


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_of_the_unturned_photograph_is_explained(tmp_path, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    remark = describe_turn(tmp_path / "a.jpg", tmp_path / "a_mask.png")
    if orientation < 5:
        assert remark == ""
        return
    assert remark.startswith(f"; its EXIF orientation, {orientation}, turns it, and the mask")
    turn = re.search(r"mogrify (.*) a_mask.png\)", remark)[1]
    assert (
        turn == {5: "-transpose", 6: "-rotate 90", 7: "-transverse", 8: "-rotate -90"}[orientation]
    )
    assert "exiftool -Orientation= a.jpg" in remark


# ---------------------------------------------------------------- every script


def write_12_bits(images, white=4095):
    """Put 16-bit PNGs of 12 bits in the place of a folder's photographs."""
    for path in list(images.iterdir()):
        levels = read_image(path)
        write_deep(path.with_suffix(".png"), np.round(levels * (white / 255)).astype(np.uint16))
        path.unlink()


def test_every_script_warns_of_12_bits_and_takes_the_option(data, run):
    folders = split_folders(data)
    write_12_bits(folders[0])
    write_12_bits(folders[2])
    training = ("--images", "data/train_images", "--masks", "data/train_masks")
    train = ("train.py", *tiny_options(NUM_EPOCHS=1))
    evaluate = ("evaluate.py", *OWN_MODEL)
    commands = (train, evaluate, ("explore.py", *training), ("prepare_data.py", *training))
    more = {"prepare_data.py": ("--out", "new", "--force")}
    advice = "if they hold 12 bits, add --image-levels 4095"
    for command in commands:
        finished = run(*command, *more.get(command[0], ()))
        assert advice in finished.stdout + finished.stderr, command[0]
    assert "brightness, 0 to 255: min 0" not in run("explore.py", *training).stdout
    for command in commands:
        extra = ("--image-levels", "4095")
        finished = run(*command, *more.get(command[0], ()), *extra)
        assert "--image-levels" not in finished.stdout + finished.stderr, command[0]
    assert read_checkpoint(data / BEST)["config"]["IMAGE_LEVELS"] == 4095
    assert "--image-levels" not in run(*evaluate).stderr
    finished = run(*evaluate, "--image-levels", "9", status=2)
    assert "--image-levels: expected 255..65535 levels, found 9" in finished.stderr


def test_12_bits_are_trained_on_as_8(data, run, no_report):
    """Rounded to the same 8 bits, they give the same weights, with the cache of neither."""
    train = ("train.py", *tiny_options(NUM_EPOCHS=1), "--batchnorm-images", "0")
    folders = split_folders(data)
    for folder in (folders[0], folders[2]):
        for path in list(folder.iterdir()):
            Image.fromarray(read_image(path)).save(path.with_suffix(".png"))
            path.unlink()
    run(*train)
    expected = learned_state(read_checkpoint(data / LAST))
    write_12_bits_of_png(folders[0])
    write_12_bits_of_png(folders[2])
    run(*train)
    dark = learned_state(read_checkpoint(data / LAST))
    assert not is_same(dark["state_dict"], expected["state_dict"])
    run(*train, "--image-levels", "4095")
    assert is_same(
        learned_state(read_checkpoint(data / LAST))["state_dict"], expected["state_dict"]
    )
    finished = run(*train, "--num-epochs", "2", "--load-model", "true", status=2)
    assert "IMAGE_LEVELS" in finished.stderr


def write_12_bits_of_png(images):
    for path in images.iterdir():
        write_deep(path, np.round(read_image(path) * (4095 / 255)).astype(np.uint16))


def test_training_explains_a_mask_of_the_unturned_photograph(data, run):
    path = next(split_folders(data)[0].iterdir())
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(read_image(path)).save(path, exif=exif)
    for command in (("train.py", *tiny_options()), ("explore.py",)):
        stderr = run(*command, status=2).stderr
        expected = (
            rf"{path.name}: 48x72 pixels, its mask .*_mask.gif 72x48; its EXIF orientation, 6, "
        )
        assert re.search(expected, stderr)


@pytest.mark.filterwarnings("ignore")  # as carvana.images has it
def test_every_script_takes_a_limit(data, run, small_limit):
    training = ("--images", "data/train_images", "--masks", "data/train_masks")
    path = next(split_folders(data)[0].iterdir())
    Image.new("L", (2000, 1000)).save(path)
    mask = split_folders(data)[1] / f"{path.stem}_mask.gif"
    Image.new("1", (2000, 1000)).save(mask)
    write_model(data / BEST)
    for command in (
        ("train.py", *tiny_options(NUM_EPOCHS=1)),
        ("explore.py", *training),
        ("evaluate.py", *OWN_MODEL, *training),
        ("prepare_data.py", *training, "--out", "new"),
    ):
        stderr = run(*command, "--max-megapixels", "1", status=2).stderr
        assert "2 megapixels; over 1, " in stderr, command[0]
        run(*command, "--max-megapixels", "2")
