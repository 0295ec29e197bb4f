"""What comes from outside and is wrong: a line that names the file, the fact and what to do, exit status 2, and nothing good changed.

A new kind of bad input is a new row of BAD."""

import io
import os
import pickle
import re
import runpy
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_mask, write_pairs
from PIL import Image

import config
import pictures
from model import UNET

TINY = [
    "--image-height",
    "32",
    "--image-width",
    "48",
    "--features",
    "4",
    "8",
    "--batch-size",
    "2",
    "--num-workers",
    "0",
    "--precision",
    "fp32",
]
IMAGE, MASK = "data/train_images/000000000000_01.jpg", "data/train_masks/000000000000_01_mask.gif"
CHECKPOINT, BEST = "my_checkpoint.pth.tar", "best_checkpoint.pth.tar"
TRAIN, RESUME = (
    ["train.py", *TINY],
    ["train.py", *TINY, "--load-model", "true", "--num-epochs", "2"],
)
EVALUATE = ["evaluate.py", "--model", CHECKPOINT]
ZIPS, FOLDERS = (
    ["prepare_data.py", "train.zip", "masks.zip", "--out", "new"],
    [
        "prepare_data.py",
        "--images",
        "data/train_images",
        "--masks",
        "data/train_masks",
        "--out",
        "new",
    ],
)


# ---------------------------------------------------------------- ways to spoil a file; each takes the path


def content(data):
    return lambda path: (path.unlink(missing_ok=True), path.write_bytes(data))


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(share):
    """Another byte at that share of the file."""

    def spoil(path):
        data = bytearray(path.read_bytes())
        data[int(share * len(data))] ^= 0xFF
        path.write_bytes(data)

    return spoil


def gone(path):
    path.unlink()


def folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def named(name, spoil=lambda path: None):
    """Rename the file, then spoil it."""

    def act(path):
        other = path.with_name(name)
        path.rename(other)
        spoil(other)

    return act


def beside(name, data=b""):
    return lambda path: path.with_name(name).write_bytes(data or path.read_bytes())


def picture(image, form, **how):
    def spoil(path):
        image.save(path, form, **how)

    return spoil


def png(width, height, *chunks):
    """A PNG of these chunks; a header for `width` x `height` comes first."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one)
        for one in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            *chunks,
            (b"IEND", b""),
        )
    )


GREY = [Image.fromarray(np.full((48, 72), level, np.uint8)) for level in (0, 255, 100)]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 48\n%%EndComments\n(touched) (w) file closefile showpage\n"


# ---------------------------------------------------------------- zips


def zipped(change=lambda archive: None, **how):
    def spoil(path):
        with zipfile.ZipFile(path, "a", **how) as archive:
            change(archive)

    return spoil


def entry(name, data=b"x"):
    return zipped(lambda archive: archive.writestr(name, data))


def header(signature, offset, form, value, every=False):
    """Overwrite a field of the zip's last header of a kind, or of every one."""

    def spoil(path):
        data = bytearray(path.read_bytes())
        starts = [found.start() for found in re.finditer(re.escape(signature), data)]
        for start in starts if every else starts[-1:]:
            struct.pack_into(form, data, start + offset, value)
        path.write_bytes(data)

    return spoil


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"


def link_in_zip(archive):
    info = zipfile.ZipInfo("train/000000000000_01.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


# ---------------------------------------------------------------- checkpoints; each takes the path of a good one


class Payload:
    """Unpickled by anything but a careful reader, it makes a file."""

    def __reduce__(self):
        return os.system, ("touch touched",)


def saved(thing, **how):
    return lambda path: torch.save(thing, path, **how)


def pickled(path):
    path.write_bytes(pickle.dumps({"state_dict": Payload()}))


def state(**changes):
    """The checkpoint with some of its entries replaced; a function makes the new from the old."""

    def spoil(path):
        content = torch.load(path, weights_only=True)
        torch.save(
            content
            | {
                name: value(content[name]) if callable(value) else value
                for name, value in changes.items()
            },
            path,
        )

    return spoil


def weight(value, name="downs.0.conv.0.weight"):
    return state(
        state_dict=lambda weights: (
            weights | {name: value(weights[name]) if callable(value) else value}
        )
    )


def constant(**values):
    return state(config=lambda constants: constants | values)


def optimizer(change):
    def changed(old):
        new = {
            "state": {key: dict(one) for key, one in old["state"].items()},
            "param_groups": old["param_groups"],
        }
        change(new)
        return new

    return state(optimizer=changed)


def spoilt_weight(path):
    """One bit of one number, as a failing disk does it: the file still opens."""
    data = path.read_bytes()
    number = (
        torch.load(path, weights_only=True)["state_dict"]["bottleneck.conv.0.weight"]
        .untyped_storage()
        .tolist()[:16]
    )
    place = data.index(bytes(number))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def flawed(value):
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


# ---------------------------------------------------------------- the table: kind, file, how it is spoilt, command, what is said (a regular expression)

BAD = [
    # pictures
    (
        "image truncated",
        IMAGE,
        cut(0.5),
        TRAIN,
        r"1 of 4 pairs .*--skip-bad.*\n  data/train_images/000000000000_01.jpg: cannot be read \(.*truncated",
    ),
    (
        "image empty",
        IMAGE,
        content(b""),
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(not a picture in one of the formats JPEG",
    ),
    (
        "image is text",
        IMAGE,
        content(b"<html>404</html>"),
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(not a picture",
    ),
    (
        "image is a program for a printer",
        IMAGE,
        content(EPS),
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(not a picture",
    ),
    (
        "image of 30,000x30,000",
        IMAGE,
        content(png(30000, 30000, (b"IDAT", zlib.compress(b"\0" * 10**6)))),
        TRAIN,
        r"_01.jpg: cannot be read \(Image size \(900000000 pixels\) exceeds limit",
    ),
    ("image of 0x48", IMAGE, content(png(0, 48)), TRAIN, r"_01.jpg: cannot be read"),
    ("image without data", IMAGE, content(png(72, 48)), TRAIN, r"_01.jpg: cannot be read"),
    (
        "image with a text bomb",
        IMAGE,
        content(png(72, 48, (b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 10**8)))),
        TRAIN,
        r"_01.jpg: cannot be read",
    ),
    (
        "image with a damaged header",
        IMAGE,
        content(png(72, 48).replace(b"IHDR", b"IHXX")),
        TRAIN,
        r"_01.jpg: cannot be read",
    ),
    (
        "image is a TIFF that ends",
        IMAGE,
        content(b"II*\0\x08\0\0\0"),
        TRAIN,
        r"_01.jpg: cannot be read",
    ),
    (
        "image is a TIFF that loops",
        IMAGE,
        content(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        TRAIN,
        r"_01.jpg: cannot be read",
    ),
    (
        "image of several pages",
        IMAGE,
        picture(GREY[0], "TIFF", save_all=True, append_images=GREY[1:]),
        TRAIN,
        r"_01.jpg: cannot be read \(3 pictures in one file; save the one that counts",
    ),
    (
        "image is an animation",
        IMAGE,
        picture(GREY[0], "WEBP", save_all=True, append_images=GREY[1:]),
        TRAIN,
        r"_01.jpg: cannot be read \(3 pictures in one file",
    ),
    (
        "image of floating-point levels",
        IMAGE,
        picture(Image.fromarray(np.zeros((48, 72), np.float32)), "TIFF"),
        TRAIN,
        r"_01.jpg: cannot be read \(floating-point levels; save it with 8 or 16 bits",
    ),
    (
        "image of 32-bit levels",
        IMAGE,
        picture(Image.fromarray(np.full((48, 72), 70000, np.int32)), "TIFF"),
        TRAIN,
        r"_01.jpg: cannot be read \(32-bit levels",
    ),
    (
        "image is a folder",
        IMAGE,
        folder,
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(a folder or a device",
    ),
    (
        "image is a pipe",
        IMAGE,
        pipe,
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(a folder or a device",
    ),
    (
        "image is a broken link",
        IMAGE,
        broken_link,
        TRAIN,
        r"000000000000_01.jpg: cannot be read \(No such file",
    ),
    (
        "image of another size than its mask",
        IMAGE,
        picture(Image.new("RGB", (50, 40)), "JPEG"),
        TRAIN,
        r"_01.jpg: 50x40 pixels, its mask 000000000000_01_mask.gif 72x48",
    ),
    (
        "image without a mask",
        MASK,
        gone,
        TRAIN,
        r"000000000000_01.jpg: image without a mask \(expected 000000000000_01_mask.gif",
    ),
    (
        "two images of a name",
        IMAGE,
        beside("000000000000_01.png"),
        TRAIN,
        r"000000000000_01: more than one image: 000000000000_01.jpg, 000000000000_01.png",
    ),
    (
        "a file that is no image",
        IMAGE,
        beside("Thumbs.db"),
        TRAIN,
        r"Thumbs.db: not an image \(.jpg",
    ),
    (
        "image in a format of others",
        IMAGE,
        beside("IMG_1.heic"),
        TRAIN,
        r"IMG_1.heic: not an image",
    ),
    (
        "bad image whose name has a newline",
        IMAGE,
        named("a\nerror: b.jpg", content(b"")),
        TRAIN,
        r"a\\nerror: b.jpg: image without a mask",
    ),
    (
        "bad image whose name moves the cursor",
        IMAGE,
        named("\x1b[2J.jpg"),
        TRAIN,
        r"\\x1b\[2J.jpg: image without a mask",
    ),
    (
        "bad image whose name is no text",
        IMAGE,
        named("\udcff.jpg"),
        TRAIN,
        r"\\udcff.jpg: image without a mask",
    ),
    (
        "bad image in other letters",
        IMAGE,
        named("машина 1.jpg"),
        TRAIN,
        r"машина 1.jpg: image without a mask",
    ),
    ("mask truncated", MASK, cut(0.5), TRAIN, r"000000000000_01_mask.gif: cannot be read"),
    ("mask empty", MASK, content(b""), TRAIN, r"000000000000_01_mask.gif: cannot be read"),
    ("mask is text", MASK, content(b"mask"), TRAIN, r"000000000000_01_mask.gif: cannot be read"),
    (
        "mask of 60,000x60,000",
        MASK,
        content(
            b"GIF89a"
            + struct.pack("<HH", 60000, 60000)
            + b"\0\0\0,\0\0\0\0"
            + struct.pack("<HH", 60000, 60000)
            + b"\0\2\1D\0;"
        ),
        TRAIN,
        r"_mask.gif: cannot be read \(Image size .* exceeds limit",
    ),
    (
        "mask is an animation",
        MASK,
        picture(GREY[0], "GIF", save_all=True, append_images=GREY[1:]),
        TRAIN,
        r"_mask.gif: cannot be read \(3 pictures in one file",
    ),
    (
        "mask is a folder",
        MASK,
        folder,
        TRAIN,
        r"000000000000_01_mask.gif: cannot be read \(a folder",
    ),
    (
        "mask is a pipe",
        MASK,
        pipe,
        TRAIN,
        r"000000000000_01_mask.gif: cannot be read \(a folder or a device",
    ),
    (
        "mask is a broken link",
        MASK,
        broken_link,
        TRAIN,
        r"_mask.gif: cannot be read \(No such file",
    ),
    (
        "mask is a JPEG",
        MASK,
        named("000000000000_01_mask.jpg"),
        TRAIN,
        r"000000000000_01_mask.jpg: not a mask \(.gif .png .bmp .tif .tiff\)",
    ),
    (
        "mask without an image",
        IMAGE,
        gone,
        TRAIN,
        r"000000000000_01_mask.gif: mask without an image \(expected 000000000000_01.jpg",
    ),
    (
        "two masks of an image",
        MASK,
        beside("000000000000_01.png"),
        TRAIN,
        r"000000000000_01: more than one mask",
    ),
    (
        "mask of three values",
        MASK,
        picture(Image.fromarray(np.uint8([[0, 128, 255]] * 48).repeat(24, 1)), "GIF"),
        FOLDERS,
        r"_mask.gif: 3 different values in the mask \(expected 2",
    ),
    (
        "image truncated, to prepare",
        IMAGE,
        cut(0.5),
        FOLDERS,
        r"nothing was changed.*--skip-bad.*\n  000000000000_01.jpg: cannot be read",
    ),
    (
        "image is a folder, to prepare",
        IMAGE,
        folder,
        FOLDERS,
        r"\n  000000000000_01.jpg: cannot be read",
    ),
    (
        "image is a pipe, to prepare",
        IMAGE,
        pipe,
        FOLDERS,
        r"\n  000000000000_01.jpg: cannot be read",
    ),
    (
        "image is an animation, to prepare",
        IMAGE,
        picture(GREY[0], "WEBP", save_all=True, append_images=GREY[1:]),
        FOLDERS,
        r"\n  000000000000_01.jpg: cannot be read \(3 pictures",
    ),
    (
        "mask of class numbers",
        MASK,
        picture(Image.fromarray(np.uint8([[0, 1, 3]] * 48).repeat(24, 1)), "GIF"),
        TRAIN,
        r"_mask.gif: cannot be read \(its largest value is 3; expected 1 or over 127",
    ),
    (
        "mask of class numbers, to evaluate",
        MASK,
        picture(Image.fromarray(np.uint8([[0, 1, 3]] * 48).repeat(24, 1)), "GIF"),
        [*EVALUATE, "--images", "data/train_images", "--masks", "data/train_masks"],
        r"_mask.gif: cannot be read \(its largest value is 3",
    ),
    (
        "image bad, to evaluate",
        IMAGE,
        cut(0.5),
        [*EVALUATE, "--images", "data/train_images", "--masks", "data/train_masks"],
        r"000000000000_01.jpg: cannot be read",
    ),
    # folders
    (
        "no folder",
        IMAGE,
        lambda path: shutil.rmtree(path.parent),
        TRAIN,
        r"no folder 'data/train_images'.*prepare_data.py",
    ),
    (
        "an empty folder",
        IMAGE,
        lambda path: (shutil.rmtree(path.parent), path.parent.mkdir()),
        TRAIN,
        r"no images in 'data/train_images/'",
    ),
    (
        "a file instead of a folder",
        IMAGE,
        lambda path: (shutil.rmtree(path.parent), path.parent.write_text("x")),
        TRAIN,
        r"no folder 'data/train_images'",
    ),
    (
        "masks of other images",
        MASK,
        lambda path: [
            other.rename(other.with_name("x" + other.name)) for other in path.parent.iterdir()
        ],
        TRAIN,
        r"no image in .* has a mask in",
    ),
    (
        "a folder that is its own",
        IMAGE,
        lambda path: (shutil.rmtree(path.parent), path.parent.symlink_to(path.parent)),
        TRAIN,
        r"no folder 'data/train_images'",
    ),
    (
        "pictures' folder is a file",
        CHECKPOINT,
        lambda path: path.with_name("saved_images").write_text("x"),
        TRAIN,
        r"--saved-images-dir: expected a folder, found the file 'saved_images/'",
    ),
    (
        "checkpoint to write is a folder",
        CHECKPOINT,
        folder,
        TRAIN,
        r"--checkpoint-file: expected a file to write, found 'my_checkpoint.pth.tar'",
    ),
    # zips
    ("zip missing", "train.zip", gone, ZIPS, r"no file 'train.zip'"),
    ("zip empty", "train.zip", content(b""), ZIPS, r"train.zip is not a zip that can be read"),
    (
        "zip is a page of text",
        "train.zip",
        content(b"<html>log in</html>"),
        ZIPS,
        r"train.zip is not a zip that can be read .*download it again",
    ),
    ("zip truncated", "train.zip", cut(0.9), ZIPS, r"train.zip is not a zip that can be read"),
    ("zip with damage in a file", "train.zip", flip(0.1), ZIPS, r"jpg: cannot be read"),
    (
        "zip without pictures",
        "train.zip",
        lambda path: zipfile.ZipFile(path, "w").close(),
        ZIPS,
        r"no image with a mask was found",
    ),
    (
        "zip with ../",
        "train.zip",
        entry("../x.jpg"),
        ZIPS,
        r"train.zip is refused.*\n  ../x.jpg: leads outside the zip",
    ),
    (
        "zip with an absolute path",
        "train.zip",
        entry("/x.jpg"),
        ZIPS,
        r"/x.jpg: leads outside the zip",
    ),
    ("zip with a path of Windows", "train.zip", entry("..\\x.jpg"), ZIPS, r"leads outside the zip"),
    ("zip with a drive", "train.zip", entry("C:/x.jpg"), ZIPS, r"C:/x.jpg: leads outside the zip"),
    (
        "zip with two files of a name",
        "train.zip",
        entry("other/000000000000_01.jpg"),
        ZIPS,
        r"other/000000000000_01.jpg: a second file of that name",
    ),
    (
        "zip with a link",
        "train.zip",
        zipped(link_in_zip),
        ZIPS,
        r"000000000000_01: more than one image",
    ),
    (
        "zip with a name of two lines",
        "train.zip",
        entry("a\nb.jpg"),
        ZIPS,
        r"\n  a\\nb.jpg: image without a mask",
    ),
    ("zip encrypted", "train.zip", header(CENTRAL, 8, "<H", 1), ZIPS, r"jpg: encrypted"),
    (
        "zip compressed in an unknown way",
        "train.zip",
        header(CENTRAL, 10, "<H", 99),
        ZIPS,
        r"jpg: cannot be read",
    ),
    (
        "zip of garbage for bzip2",
        "train.zip",
        header(CENTRAL, 10, "<H", 12),
        ZIPS,
        r"jpg: cannot be read",
    ),
    (
        "zip of garbage for LZMA",
        "train.zip",
        header(CENTRAL, 10, "<H", 14),
        ZIPS,
        r"jpg: cannot be read",
    ),
    (
        "zip with files over each other",
        "train.zip",
        header(CENTRAL, 42, "<I", 0, every=True),
        ZIPS,
        r"jpg: cannot be read",
    ),
    (
        "zip with a picture of 4 GB",
        "train.zip",
        header(CENTRAL, 24, "<I", 0xFFFFFFF0),
        ZIPS,
        r"jpg: unpacks to 4,295 MB, a picture to 1,074 MB at most",
    ),
    (
        "zip of more than the disk holds",
        "train.zip",
        lambda path: (
            entry("a.txt")(path),
            [entry(f"{n}.txt")(path) for n in range(9)],
            header(CENTRAL, 24, "<I", 0xFFFFFFF0, every=True)(path),
        ),
        ZIPS,
        r"train.zip is refused",
    ),
    (
        "the outer zip holds something else",
        "train.zip",
        lambda path: None,
        ["prepare_data.py", "train.zip"],
        r"train.zip holds no train.zip and no train_masks.zip",
    ),
    # checkpoints
    ("checkpoint missing", CHECKPOINT, gone, EVALUATE, r"no checkpoint 'my_checkpoint.pth.tar'"),
    (
        "checkpoint missing, to go on",
        CHECKPOINT,
        gone,
        RESUME,
        r"no checkpoint 'my_checkpoint.pth.tar' to go on from",
    ),
    (
        "checkpoint empty",
        CHECKPOINT,
        content(b""),
        RESUME,
        r"my_checkpoint.pth.tar is not a checkpoint that can be read .*: best_checkpoint.pth.tar$",
    ),
    (
        "checkpoint is text",
        CHECKPOINT,
        content(b"weights"),
        RESUME,
        r"my_checkpoint.pth.tar is not a checkpoint .*best_checkpoint.pth.tar$",
    ),
    (
        "checkpoint truncated",
        CHECKPOINT,
        cut(0.7),
        RESUME,
        r"my_checkpoint.pth.tar is not a checkpoint .*best_checkpoint.pth.tar$",
    ),
    (
        "checkpoint with a spoilt weight",
        CHECKPOINT,
        spoilt_weight,
        RESUME,
        r"my_checkpoint.pth.tar is not a checkpoint .*best_checkpoint.pth.tar$",
    ),
    (
        "checkpoint is a folder",
        CHECKPOINT,
        folder,
        EVALUATE,
        r"no checkpoint 'my_checkpoint.pth.tar'",
    ),
    ("checkpoint is a pipe", CHECKPOINT, pipe, EVALUATE, r"no checkpoint 'my_checkpoint.pth.tar'"),
    (
        "checkpoint with a payload",
        CHECKPOINT,
        saved({"state_dict": Payload()}),
        EVALUATE,
        r"my_checkpoint.pth.tar is not a checkpoint that can be read",
    ),
    (
        "checkpoint with a payload, to go on",
        CHECKPOINT,
        state(history=[Payload()]),
        RESUME,
        r"my_checkpoint.pth.tar is not a checkpoint that can be read",
    ),
    (
        "payload of the older format",
        CHECKPOINT,
        saved({"state_dict": Payload()}, _use_new_zipfile_serialization=False),
        EVALUATE,
        r"is not a checkpoint that can be read",
    ),
    ("a pickle", CHECKPOINT, pickled, EVALUATE, r"is not a checkpoint that can be read"),
    (
        "a whole model",
        CHECKPOINT,
        saved(UNET(features=[4])),
        EVALUATE,
        r"is not a checkpoint that can be read",
    ),
    (
        "a list",
        CHECKPOINT,
        saved([1, 2]),
        EVALUATE,
        r"holds no weights of a UNET \(a state_dict with final_conv.weight\)",
    ),
    ("a tensor", CHECKPOINT, saved(torch.zeros(3)), EVALUATE, r"holds no weights of a UNET"),
    (
        "weights of another kind of network",
        CHECKPOINT,
        saved(torch.nn.Linear(2, 2).state_dict()),
        EVALUATE,
        r"holds no weights of a UNET",
    ),
    (
        "weights are a list",
        CHECKPOINT,
        state(state_dict=[1]),
        EVALUATE,
        r"holds no weights of a UNET",
    ),
    (
        "a weight's name is a number",
        CHECKPOINT,
        state(state_dict=lambda weights: weights | {7: torch.zeros(1)}),
        EVALUATE,
        r"holds no weights of a UNET",
    ),
    (
        "a weight is a number",
        CHECKPOINT,
        weight(1.0),
        EVALUATE,
        r"is not sound: downs.0.conv.0.weight is no plain tensor but float",
    ),
    (
        "a weight is text",
        CHECKPOINT,
        weight("x", "final_conv.weight"),
        EVALUATE,
        r"final_conv.weight is no plain tensor but str",
    ),
    (
        "a weight of whole numbers",
        CHECKPOINT,
        weight(lambda tensor: tensor.to(torch.int32)),
        EVALUATE,
        r"downs.0.conv.0.weight holds int32",
    ),
    (
        "a weight of complex numbers",
        CHECKPOINT,
        weight(lambda tensor: tensor.to(torch.complex64)),
        EVALUATE,
        r"downs.0.conv.0.weight holds complex64",
    ),
    (
        "a weight of bools",
        CHECKPOINT,
        weight(lambda tensor: tensor > 0),
        EVALUATE,
        r"downs.0.conv.0.weight holds bool",
    ),
    (
        "a sparse weight",
        CHECKPOINT,
        weight(lambda tensor: tensor.to_sparse()),
        EVALUATE,
        r"is no plain tensor but sparse_coo|is not a checkpoint that can be read",
    ),
    (
        "a weight that is not a number",
        CHECKPOINT,
        weight(flawed(float("nan"))),
        EVALUATE,
        r"downs.0.conv.0.weight holds values that are infinite or not numbers",
    ),
    (
        "a weight that is infinite",
        CHECKPOINT,
        weight(flawed(float("inf"))),
        RESUME,
        r"downs.0.conv.0.weight holds values that are infinite or not numbers",
    ),
    (
        "a weight of 3 TB",
        CHECKPOINT,
        weight(lambda tensor: torch.zeros(1).expand(10**6, 10**6)),
        EVALUATE,
        r"claims the shape \(1000000, 1000000\) for 4 bytes",
    ),
    (
        "a network of 5 TB",
        CHECKPOINT,
        weight(lambda tensor: torch.zeros(10**6, 1, 1, 1)),
        EVALUATE,
        r"is of another network",
    ),
    (
        "a weight of two axes",
        CHECKPOINT,
        weight(lambda tensor: tensor.flatten(1)),
        EVALUATE,
        r"is of another network: downs.0.conv.0.weight: \(4, 27\) in the checkpoint",
    ),
    (
        "a weight without axes",
        CHECKPOINT,
        weight(torch.tensor(1.0)),
        EVALUATE,
        r"holds no weights of a UNET",
    ),
    (
        "a weight of another size",
        CHECKPOINT,
        weight(lambda tensor: tensor[:, :, :2], "downs.1.conv.0.weight"),
        EVALUATE,
        r"downs.1.conv.0.weight: \(8, 4, 2, 3\) in the checkpoint",
    ),
    (
        "a weight missing",
        CHECKPOINT,
        state(
            state_dict=lambda weights: {
                name: tensor for name, tensor in weights.items() if "bottleneck.conv.3" not in name
            }
        ),
        EVALUATE,
        r"bottleneck.conv.3.weight: missing",
    ),
    (
        "a weight too many",
        CHECKPOINT,
        state(state_dict=lambda weights: weights | {"extra.weight": torch.zeros(2)}),
        EVALUATE,
        r"extra.weight: \(2,\) in the checkpoint, missing",
    ),
    (
        "levels that are no network's",
        CHECKPOINT,
        state(
            state_dict=lambda weights: weights | {"downs.x.conv.0.weight": torch.zeros(2, 2, 3, 3)}
        ),
        EVALUATE,
        r"holds no weights of a UNET",
    ),
    (
        "its constants are a list",
        CHECKPOINT,
        state(config=[1]),
        EVALUATE,
        r"'config' is \[1\] \(expected the constants\)",
    ),
    (
        "its height is negative",
        CHECKPOINT,
        constant(IMAGE_HEIGHT=-5),
        EVALUATE,
        r"was not written by train.py: IMAGE_HEIGHT is -5",
    ),
    (
        "its width is huge",
        CHECKPOINT,
        constant(IMAGE_WIDTH=10**9),
        EVALUATE,
        r"IMAGE_WIDTH is 1000000000",
    ),
    (
        "its height is text",
        CHECKPOINT,
        constant(IMAGE_HEIGHT="160"),
        EVALUATE,
        r"IMAGE_HEIGHT is '160'",
    ),
    (
        "its mean is not a number",
        CHECKPOINT,
        constant(MEAN=[float("nan")]),
        EVALUATE,
        r"MEAN is \[nan\]",
    ),
    ("its standard deviation is 0", CHECKPOINT, constant(STD=[0.0]), EVALUATE, r"STD is \[0.0\]"),
    (
        "its means are too many",
        CHECKPOINT,
        constant(MEAN=[0.0, 0.0]),
        EVALUATE,
        r"MEAN is \[0.0, 0.0\]",
    ),
    ("its threshold is 2", CHECKPOINT, constant(THRESHOLD=2), EVALUATE, r"THRESHOLD is 2"),
    (
        "its masks are of an unknown kind",
        CHECKPOINT,
        constant(MASK_RESIZE="cubic"),
        EVALUATE,
        r"MASK_RESIZE is 'cubic'",
    ),
    (
        "its precision is unknown",
        CHECKPOINT,
        constant(PRECISION="fp4"),
        EVALUATE,
        r"PRECISION is 'fp4'",
    ),
    (
        "its epoch is negative",
        CHECKPOINT,
        state(epoch=-1),
        RESUME,
        r"'epoch' is -1 \(expected a whole number of epochs\)",
    ),
    ("its epoch is text", CHECKPOINT, state(epoch="1"), RESUME, r"'epoch' is '1'"),
    (
        "its best Dice is not a number",
        CHECKPOINT,
        state(best=float("nan")),
        RESUME,
        r"'best' is nan",
    ),
    ("its history is text", CHECKPOINT, state(history="x"), RESUME, r"'history' is 'x'"),
    ("its part of an epoch is incomplete", CHECKPOINT, state(part={"of": 4}), RESUME, r"'part' is"),
    ("its run is a number", CHECKPOINT, state(run=5), RESUME, r"'run' is 5"),
    (
        "its optimizer is another",
        CHECKPOINT,
        optimizer(
            lambda new: new["state"].update({0: {"momentum_buffer": torch.zeros(4, 3, 3, 3)}})
        ),
        RESUME,
        r"is none of ours",
    ),
    ("its optimizer is text", CHECKPOINT, state(optimizer="adam"), RESUME, r"is none of ours"),
    (
        "its optimizer has other shapes",
        CHECKPOINT,
        optimizer(lambda new: new["state"][0].update(exp_avg=torch.zeros(7))),
        RESUME,
        r"is none of ours .*exp_avg \(7,\)",
    ),
    (
        "its optimizer lacks a value",
        CHECKPOINT,
        optimizer(lambda new: new["state"][0].pop("exp_avg_sq")),
        RESUME,
        r"is none of ours",
    ),
    (
        "its optimizer is for more weights",
        CHECKPOINT,
        optimizer(lambda new: new["state"].update({999: {"step": torch.tensor(1.0)}})),
        RESUME,
        r"is none of ours",
    ),
    (
        "its random state is too short",
        CHECKPOINT,
        state(random={"torch": torch.zeros(3, dtype=torch.uint8), "cuda": []}),
        RESUME,
        r"is none of ours",
    ),
    ("its random state is text", CHECKPOINT, state(random="x"), RESUME, r"is none of ours"),
    (
        "its network is another than the constants'",
        CHECKPOINT,
        lambda path: None,
        [*RESUME, "--features", "4", "16"],
        r"trained with other FEATURES; to go on with it, add --features 4 8",
    ),
    # words of the command line
    *(
        (f"{' '.join(words)}", CHECKPOINT, lambda path: None, ["train.py", *words], said)
        for words, said in [
            (["--learning-rate", "nan"], r"--learning-rate: expected 1e-9..10.0, found nan"),
            (["--learning-rate", "inf"], r"found inf"),
            (["--learning-rate", "-1"], r"found -1"),
            (["--learning-rate", "0"], r"found 0"),
            (["--learning-rate", "1e99"], r"found 1e\+99"),
            (["--learning-rate", "fast"], r"expected a number, found 'fast'"),
            (["--learning-rate", ""], r"expected a number, found ''"),
            (["--learning-rate"], r"argument --learning-rate: expected one argument"),
            (["--learning-rate", "1", "2"], r"'2' belongs to no option"),
            (["--batch-size", "0"], r"expected 1..65536 images, found 0"),
            (["--batch-size", "1e3"], r"expected a whole number, found '1e3'"),
            (["--batch-size", "9" * 400], r"--batch-size: expected 1..65536 images"),
            (["--batch-size", "9" * 5000], r"--batch-size: expected a whole number"),
            (["--batch-size", "true"], r"expected a whole number"),
            (["--num-epochs", "-3"], r"--num-epochs: expected 0..100000, found -3"),
            (["--image-height", "0"], r"--image-height: expected 1..16384 pixels"),
            (["--image-width", "99999"], r"found 99999"),
            (["--features"], r"--features: expected at least one argument"),
            (["--features", "0"], r"found 0"),
            (["--features", "a", "b"], r"--features: expected a whole number, found 'a'"),
            (["--mean", "0", "0"], r"--mean: expected one value, or one for each of 3"),
            (["--std", "0"], r"--std: expected"),
            (["--seed", "-1"], r"--seed"),
            (["--threshold", "1"], r"--threshold"),
            (["--in-channels", "4"], r"--in-channels: expected 1 | 3, found 4"),
            (["--load-model", "maybe"], r"expected true or false, found 'maybe'"),
            (["--mask-resize", "cubic"], r"expected area | nearest, found cubic"),
            (["--device", "tpu"], r"--device: expected auto | cuda"),
            (["--precision", "fp8"], r"--precision"),
            (["--optimizer", "sgd"], r"--optimizer: expected adam | muon, found sgd"),
            (["--schedule", "cubic"], r"--schedule"),
            (["--warmup", "2"], r"--warmup"),
            (["--checkpoint-minutes", "0"], r"--checkpoint-minutes"),
            (["--stop-at-dice", "98"], r"--stop-at-dice"),
            (["--preset", "huge"], r"there is no preset huge; the nearest is"),
            (["--presets", "demo"], r"there is no --presets; the nearest is --preset"),
            (["--lr", "0.1"], r"there is no --lr; the nearest is"),
            (["50"], r"'50' belongs to no option"),
            (["--checkpoint-file", ""], r"expected a file to write, found ''"),
            (
                ["--checkpoint-file", "a", "--best-checkpoint-file", "./a"],
                r"are both 'a'; one would overwrite the other",
            ),
            (
                ["--features", "8192", "8192", "8192", "8192", "8192"],
                r"M parameters and batches of 16 images of 160x240 take [\d,]+ GB at least, [\d,]+ GB are there; make FEATURES",
            ),
            (
                ["--batch-size", "65536", "--image-height", "16384", "--image-width", "16384"],
                r"take [\d,]+ GB at least",
            ),
        ]
    ),
    (
        "evaluate --batch-size 0",
        CHECKPOINT,
        lambda path: None,
        [*EVALUATE, "--batch-size", "0"],
        r"expected --batch-size of at least 1",
    ),
    (
        "evaluate --batch-size many",
        CHECKPOINT,
        lambda path: None,
        [*EVALUATE, "--batch-size", "many"],
        r"argument --batch-size: invalid int value: 'many'",
    ),
    (
        "evaluate --json nowhere/a.json",
        CHECKPOINT,
        lambda path: None,
        [*EVALUATE, "--json", "nowhere/a.json"],
        r"no folder 'nowhere' to write --json",
    ),
    (
        "evaluate --json on a folder",
        CHECKPOINT,
        lambda path: None,
        [*EVALUATE, "--json", "data"],
        r"data cannot be written \(Is a directory\)",
    ),
    (
        "evaluate --images nowhere",
        CHECKPOINT,
        lambda path: None,
        [*EVALUATE, "--images", "nowhere"],
        r"no folder 'nowhere'",
    ),
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder as a finished run leaves it, and the two zips that it was made from."""
    folder = tmp_path_factory.mktemp("template")
    write_pairs(folder / "data/train_images", folder / "data/train_masks", cars=2)
    write_pairs(folder / "data/val_images", folder / "data/val_masks", cars=1, first=100)
    for name, kind in (("train.zip", "images"), ("masks.zip", "masks")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in sorted((folder / f"data/train_{kind}").iterdir()):
                archive.write(path, f"{kind}/{path.name}")
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, folder, [*TRAIN, "--num-epochs", "1"]) == 0
    shutil.rmtree(folder / "saved_images")
    shutil.rmtree(folder / "data/.cache")
    return folder


def command(patch, folder, words):
    """Run a script of the project in this process, as from the command line in `folder` -> exit status."""
    patch.chdir(folder)
    patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


@pytest.mark.parametrize(
    "file, spoil, words, said", [pytest.param(*row[1:], id=row[0][:60]) for row in BAD]
)
def test_bad_input(template, tmp_path, monkeypatch, capsys, file, spoil, words, said):
    work = tmp_path / "work"
    shutil.copytree(template, work)
    monkeypatch.chdir(work)
    spoil(work / file)
    before = files(work)
    status = command(monkeypatch, work, words)
    err = re.sub(r"[^\n]*\r", "", capsys.readouterr().err).strip()  # less progress bars
    assert status == 2 and err.startswith("error: "), err
    assert re.search(said, err, re.MULTILINE), err
    assert all(line.startswith("  ") for line in err.split("\n")[1:]) and len(err) < 2000, (
        err
    )  # a line, and perhaps a list under it
    assert "Traceback" not in err and files(work) == before


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("LEARNING_RATE", "fast", "expected a number"),
        ("LEARNING_RATE", None, "expected a number"),
        ("BATCH_SIZE", 16.5, "expected a whole number"),
        ("BATCH_SIZE", True, "expected a whole number"),
        ("FEATURES", 64, "expected a list"),
        ("FEATURES", [], "expected a list"),
        ("FEATURES", [64, "a"], "expected a whole number"),
        ("LOAD_MODEL", "no", "expected true or false"),
        ("STD", [float("nan")], "expected"),
        ("TRAIN_IMG_DIR", 5, "expected a text"),
        ("IN_CHANNELS", 2, "expected 1 | 3"),
    ],
)
def test_bad_constants_in_config(template, tmp_path, monkeypatch, capsys, name, value, said):
    """config.py edited to something that cannot be."""
    monkeypatch.setattr(config, name, value)
    assert command(monkeypatch, tmp_path, ["train.py"]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith(f"error: {name}: ") and said in err and "\n" not in err
    assert not list(tmp_path.iterdir())


def test_a_file_without_permission(tmp_path):
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
        with pytest.raises(
            pictures.UserError, match=r"a.jpg: cannot be read \(Permission denied\)"
        ):
            pictures.read_image(path)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def exif(data):
    buffer = io.BytesIO()
    Image.new("RGB", (72, 48), "red").save(buffer, "JPEG", exif=data, quality=95)
    return buffer.getvalue()


ODD = {
    "orientation 99": exif(b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0"),
    "orientation that is text": exif(b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0"),
    "EXIF of garbage": exif(b"Exif\0\0" + bytes(range(256)) * 20),
    "EXIF that points outside": exif(b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "EXIF that points at itself": exif(
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"
    ),
    "EXIF of 65,535 entries": exif(
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1\3\0\1\0\0\0\6\0\0\0" * 4000
    ),
    "bytes behind its end": exif(b"") + b"\0" * 10_000,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")  # as pictures.py has it; pytest makes errors of Pillow's
def test_odd_but_good(tmp_path, kind):
    path = tmp_path / "с пробелом\nund Ümlaut 車.jpg"
    path.write_bytes(ODD[kind])
    height, width = pictures.picture_size(path)
    assert sorted((height, width)) == [48, 72]
    image = pictures.read_image(path)
    assert image.shape == (height, width, 3) and np.abs(image.astype(int) - [254, 0, 0]).max() < 4
    write_mask(tmp_path / "mask.gif", np.eye(height, width) > 0)
    assert pictures.check_pair(path, tmp_path / "mask.gif") == ([], [])


def test_the_document_names_every_kind():
    text = (Path(ROOT) / "docs/robustness.md").read_text(encoding="utf-8")
    names = [
        re.sub("9{30,}", lambda digits: f"999… ({len(digits[0])} digits)", row[0]).strip()
        for row in BAD
    ]
    assert [name for name in names if f"| {name} |" not in text] == [] and len(names) >= 60
