"""Bad photographs, masks and folders: one message that names them, and nothing good changed."""

import io
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from bad_input import (
    EVALUATE,
    IMAGE,
    MASK,
    TRAIN,
    TRAINING_FOLDERS,
    add_beside,
    break_link,
    check_answer,
    cut,
    documented_kinds,
    make_folder,
    make_pipe,
    remove,
    rename,
    rows,
    spoiler,
    write,
)
from helpers import LAST, write_mask
from PIL import Image

from carvana.classes import SINGLE
from carvana.errors import UserError
from carvana.images import picture_size, read_image
from carvana.pairs import inspect_pair

PREPARE = ("prepare_data.py", *TRAINING_FOLDERS, "--out", "new")
EVALUATE_TRAINING = (*EVALUATE, *TRAINING_FOLDERS)
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 48\n%%EndComments\n"
    b"(touched) (w) file closefile showpage\n"
)
BAD_IMAGE = r"000000000000_01.jpg: cannot be read"
NO_PICTURE = BAD_IMAGE + r" \(not a picture"
BAD_MASK = r"000000000000_01_mask.gif: cannot be read"
NO_FOLDER = r"no folder 'data/train_images'"


def png(width, height, *chunks):
    """Return a PNG of (kind, data) chunks; a header for `width` x `height` comes first."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", size), *chunks, (b"IEND", b""))
    )


def gif(width, height):
    """Return a GIF that claims a size."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\0\0\0,\0\0\0\0" + size + b"\0\2\1D\0;"


@spoiler
def save(path, levels, form, *pages):
    """Write a picture of levels (H, W), and further pages, in another format."""
    pages = [Image.fromarray(page) for page in pages]
    options = {"save_all": True, "append_images": pages} if pages else {}
    Image.fromarray(levels).save(path, form, **options)


@spoiler
def replace_folder(path, replace):
    """Remove the file's folder, and put something else in its place."""
    shutil.rmtree(path.parent)
    replace(path.parent)


def rename_all(path):
    for file in list(path.parent.iterdir()):
        file.rename(file.with_name("x" + file.name))


def levels(*columns, dtype=np.uint8):
    """Return a picture (48, 72) of stripes."""
    row = np.array(columns, dtype).repeat(72 // len(columns))
    return np.tile(row, (48, 1))


GRAY = levels(0), levels(255), levels(100)
COLORS = np.dstack([levels(0, 255, 0), levels(0, 0, 255), levels(0)])

BAD = [
    *rows(
        TRAIN,
        IMAGE,
        {
            "image truncated": (
                cut(0.5),
                rf"1 of 4 pairs .*--skip-bad.*\n  data/train_images/{BAD_IMAGE} \(.*truncated",
            ),
            "image empty": (write(b""), rf"{NO_PICTURE} in one of the formats JPEG"),
            "image is text": (write(b"<html>404</html>"), NO_PICTURE),
            "image is a program for a printer": (write(EPS), NO_PICTURE),
            "image of 30,000x30,000": (
                write(png(30000, 30000, (b"IDAT", zlib.compress(b"\0" * 10**6)))),
                rf"{BAD_IMAGE} \(900 megapixels; over 179,.* add --max-megapixels 900\)",
            ),
            "image of 0x48": (write(png(0, 48)), BAD_IMAGE),
            "image without data": (write(png(72, 48)), BAD_IMAGE),
            "image with a text bomb": (
                write(png(72, 48, (b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 10**8)))),
                BAD_IMAGE,
            ),
            "image with a damaged header": (
                write(png(72, 48).replace(b"IHDR", b"IHXX")),
                BAD_IMAGE,
            ),
            "image is a TIFF that ends": (write(b"II*\0\x08\0\0\0"), BAD_IMAGE),
            "image is a TIFF that loops": (write(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), BAD_IMAGE),
            "image of several pages": (
                save(GRAY[0], "TIFF", *GRAY[1:]),
                rf"{BAD_IMAGE} \(3 pictures in one file; save the one that counts",
            ),
            "image is an animation": (
                save(GRAY[0], "WEBP", *GRAY[1:]),
                rf"{BAD_IMAGE} \(3 pictures in one file",
            ),
            "image of floating-point levels": (
                save(levels(0, dtype=np.float32), "TIFF"),
                rf"{BAD_IMAGE} \(floating-point levels; save it with 8 or 16 bits",
            ),
            "image of 32-bit levels": (
                save(levels(70000, dtype=np.int32), "TIFF"),
                rf"{BAD_IMAGE} \(32-bit levels",
            ),
            "image is a folder": (make_folder, rf"{BAD_IMAGE} \(a folder or a device"),
            "image is a pipe": (make_pipe, rf"{BAD_IMAGE} \(a folder or a device"),
            "image is a broken link": (break_link, rf"{BAD_IMAGE} \(No such file"),
            "image of another size than its mask": (
                save(np.zeros((40, 50, 3), np.uint8), "JPEG"),
                r"_01.jpg: 50x40 pixels, its mask 000000000000_01_mask.gif 72x48",
            ),
            "two images of a name": (
                add_beside("000000000000_01.png"),
                r"000000000000_01: more than one image: 000000000000_01.jpg, 000000000000_01.png",
            ),
            "bad image whose name has a newline": (
                rename("a\nerror: b.jpg", write(b"")),
                r"a\\nerror: b.jpg: image without a mask",
            ),
            "bad image whose name moves the cursor": (
                rename("\x1b[2J.jpg"),
                r"\\x1b\[2J.jpg: image without a mask",
            ),
            "bad image whose name is no text": (
                rename("\udcff.jpg"),
                r"\\udcff.jpg: image without a mask",
            ),
            "bad image in other letters": (
                rename("машина 1.jpg"),
                r"машина 1.jpg: image without a mask",
            ),
            "mask without an image": (
                remove,
                r"000000000000_01_mask.gif: mask without an image \(expected 000000000000_01.jpg",
            ),
            "no folder": (replace_folder(lambda folder: None), rf"{NO_FOLDER}.*prepare_data.py"),
            "an empty folder": (
                replace_folder(lambda folder: folder.mkdir()),
                r"no images in 'data/train_images/'",
            ),
            "a file instead of a folder": (
                replace_folder(lambda folder: folder.write_text("x")),
                NO_FOLDER,
            ),
            "a folder that is its own": (
                replace_folder(lambda folder: folder.symlink_to(folder)),
                NO_FOLDER,
            ),
        },
    ),
    *rows(
        TRAIN,
        MASK,
        {
            "image without a mask": (
                remove,
                r"000000000000_01.jpg: image without a mask \(expected 000000000000_01_mask.gif",
            ),
            "mask truncated": (cut(0.5), BAD_MASK),
            "mask empty": (write(b""), BAD_MASK),
            "mask is text": (write(b"mask"), BAD_MASK),
            "mask of 60,000x60,000": (
                write(gif(60000, 60000)),
                rf"{BAD_MASK} \(3,600 megapixels; over 179,",
            ),
            "mask is an animation": (
                save(GRAY[0], "GIF", *GRAY[1:]),
                rf"{BAD_MASK} \(3 pictures in one file",
            ),
            "mask is a folder": (make_folder, rf"{BAD_MASK} \(a folder"),
            "mask is a pipe": (make_pipe, rf"{BAD_MASK} \(a folder or a device"),
            "mask is a broken link": (break_link, rf"{BAD_MASK} \(No such file"),
            "mask is a JPEG": (
                rename("000000000000_01_mask.jpg", save(levels(0, 100, 255), "JPEG")),
                r"_01_mask.jpg: \d+ different values in the mask .* it is a JPEG, which blends",
            ),
            "two masks of an image": (
                add_beside("000000000000_01.png"),
                r"000000000000_01: more than one mask",
            ),
            "mask of class numbers": (
                save(levels(0, 1, 3), "GIF"),
                r"_01_mask.gif: 3 different values in the mask \(expected 2.*: 0, 1, 3",
            ),
            "mask of three colors": (
                save(COLORS, "PNG"),
                r"_01_mask.gif: 3 different values in the mask \(expected 2",
            ),
            "mask with soft edges": (
                save(levels(0, 40, 80, 130, 200, 255), "PNG"),
                r"_01_mask.gif: 6 different values in the mask .* MASK_VALUES or MASK_THRESHOLD",
            ),
            "mask whose alpha shows something else": (
                save(np.dstack([levels(0, 255)] * 3 + [levels(255, 0)]), "PNG"),
                r"_01_mask.gif: its colors and its alpha channel show different masks",
            ),
            "masks of other images": (rename_all, r"no image in .* has a mask in"),
        },
    ),
    *rows(
        PREPARE,
        IMAGE,
        {
            "image truncated, to prepare": (
                cut(0.5),
                rf"nothing was changed.*--skip-bad.*\n  {BAD_IMAGE}",
            ),
            "image is a folder, to prepare": (make_folder, rf"\n  {BAD_IMAGE}"),
            "image is a pipe, to prepare": (make_pipe, rf"\n  {BAD_IMAGE}"),
            "image is an animation, to prepare": (
                save(GRAY[0], "WEBP", *GRAY[1:]),
                rf"\n  {BAD_IMAGE} \(3 pictures",
            ),
        },
    ),
    *rows(
        PREPARE,
        MASK,
        {
            "mask of three values": (
                save(levels(0, 128, 255), "GIF"),
                r"_mask.gif: 3 different values in the mask \(expected 2",
            ),
            "mask with soft edges, to prepare": (
                save(levels(0, 40, 80, 130, 200, 255), "PNG"),
                r"_mask.gif: 6 different values in the mask",
            ),
        },
    ),
    *rows(
        EVALUATE_TRAINING,
        MASK,
        {
            "mask of class numbers, to evaluate": (
                save(levels(0, 3), "PNG"),
                r"_01_mask.gif: its largest value is 3; expected 1 or over 127 for foreground",
            ),
        },
    ),
    *rows(EVALUATE_TRAINING, IMAGE, {"image bad, to evaluate": (cut(0.5), BAD_IMAGE)}),
    *rows(
        TRAIN,
        LAST,
        {
            "pictures' folder is a file": (
                add_beside("saved_images"),
                r"--saved-images-dir: expected a folder, found the file 'saved_images/'",
            ),
            "checkpoint to write is a folder": (
                make_folder,
                r"--checkpoint-file: expected a file to write, found 'my_checkpoint.pth.tar'",
            ),
        },
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_pictures_are_named(bad, finished_run, tmp_path):
    check_answer(bad, finished_run, tmp_path / "work")


def test_bad_pictures_are_documented():
    assert documented_kinds(__file__) == len({bad.name for bad in BAD})


def test_bad_picture_without_permission_is_named(tmp_path):
    if not hasattr(os, "geteuid"):
        pytest.skip("no such permissions here")
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)
    try:
        if os.geteuid() == 0:  # who may read everything
            for parent in tmp_path.parents[:3]:
                if parent.name.startswith("pytest-"):
                    parent.chmod(0o711)
            tmp_path.chmod(0o711)
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"a.jpg: cannot be read \(Permission denied\)"):
            read_image(path)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


# ---------------------------------------------------------------- odd, but good


def jpeg(exif):
    """Return a red JPEG, 48x72, with EXIF."""
    buffer = io.BytesIO()
    Image.new("RGB", (72, 48), "red").save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


EXIF = b"Exif\0\0II*\0"
ODD = {
    "orientation 99": jpeg(EXIF + b"\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0"),
    "orientation that is text": jpeg(EXIF + b"\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0"),
    "EXIF of garbage": jpeg(b"Exif\0\0" + bytes(range(256)) * 20),
    "EXIF that points outside": jpeg(EXIF + b"\xff\xff\xff\x7f"),
    "EXIF that points at itself": jpeg(
        EXIF + b"\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"
    ),
    "EXIF of 65,535 entries": jpeg(
        EXIF + b"\x08\0\0\0\xff\xff" + b"\x12\1\3\0\1\0\0\0\6\0\0\0" * 4000
    ),
    "bytes behind its end": jpeg(b"") + b"\0" * 10_000,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")  # as carvana.images has it; pytest makes errors of Pillow's
def test_odd_pictures_are_read(tmp_path, kind):
    path = tmp_path / "с пробелом\nund Ümlaut 車.jpg"
    path.write_bytes(ODD[kind])
    height, width = picture_size(path)
    assert sorted((height, width)) == [48, 72]
    image = read_image(path)
    assert image.shape == (height, width, 3)
    assert np.abs(image.astype(int) - [254, 0, 0]).max() < 4
    write_mask(tmp_path / "mask.gif", np.eye(height, width) > 0)
    check = inspect_pair(path, tmp_path / "mask.gif", SINGLE)
    assert not check.faults + check.warnings
