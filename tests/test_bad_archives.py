"""Bad zips for prepare_data.py: refused with the reason, and nothing is unpacked."""

import re
import struct
import zipfile

import pytest
from bad_input import (
    check_answer,
    cut,
    documented_kinds,
    flip_byte,
    leave,
    remove,
    rows,
    spoiler,
    write,
)

ZIP = "train.zip"
PREPARE = ("prepare_data.py", ZIP, "masks.zip", "--out", "new")
CENTRAL = b"PK\1\2"  # signature of an entry's header in the zip's directory
# Fields of that header: place and form.
FLAGS, METHOD, SIZE, OFFSET = (8, "<H"), (10, "<H"), (24, "<I"), (42, "<I")
BZIP2, LZMA, UNKNOWN = 12, 14, 99  # methods of compression
FOUR_GB = 0xFFFFFFF0
BAD_FILE = r"jpg: cannot be read"
NO_ZIP = r"train.zip is not a zip that can be read"


@spoiler
def add(path, *names):
    with zipfile.ZipFile(path, "a") as archive:
        for name in names:
            archive.writestr(name, b"x")


def add_link(path):
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("train/000000000000_01.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")


@spoiler
def set_field(path, field, value, every=False):
    """Overwrite a field of the last entry's header, or of every entry's."""
    place, form = field
    data = bytearray(path.read_bytes())
    starts = [match.start() for match in re.finditer(re.escape(CENTRAL), data)]
    for start in starts if every else starts[-1:]:
        struct.pack_into(form, data, start + place, value)
    path.write_bytes(data)


def empty(path):
    zipfile.ZipFile(path, "w").close()


def claim_terabytes(path):
    add("a.txt", *(f"{number}.txt" for number in range(9)))(path)
    set_field(SIZE, FOUR_GB, every=True)(path)


BAD = [
    *rows(
        PREPARE,
        ZIP,
        {
            "zip missing": (remove, r"no file or folder 'train.zip'"),
            "zip empty": (write(b""), NO_ZIP),
            "zip is a page of text": (
                write(b"<html>log in</html>"),
                rf"{NO_ZIP} .*download it again",
            ),
            "zip truncated": (cut(0.9), NO_ZIP),
            "zip with damage in a file": (flip_byte(0.1), BAD_FILE),
            "zip without pictures": (
                empty,
                r"no image with a mask was found, of 0 images and 4 masks",
            ),
            "zip with ../": (
                add("../x.jpg"),
                r"train.zip is refused.*\n  ../x.jpg: leads outside the zip",
            ),
            "zip with an absolute path": (add("/x.jpg"), r"/x.jpg: leads outside the zip"),
            "zip with a path of Windows": (add("..\\x.jpg"), r"leads outside the zip"),
            "zip with a drive": (add("C:/x.jpg"), r"C:/x.jpg: leads outside the zip"),
            "zip with two files of a name": (
                add("other/000000000000_01.jpg"),
                r"other/000000000000_01.jpg: a second file of that name",
            ),
            "zip with a link": (add_link, r"000000000000_01: more than one image"),
            "zip with a name of two lines": (
                add("a\nb.jpg"),
                r"\n  a\\nb.jpg: (image without a mask|a name that Windows does not allow)",
            ),
            "zip encrypted": (set_field(FLAGS, 1), r"jpg: encrypted"),
            "zip compressed in an unknown way": (set_field(METHOD, UNKNOWN), BAD_FILE),
            "zip of garbage for bzip2": (set_field(METHOD, BZIP2), BAD_FILE),
            "zip of garbage for LZMA": (set_field(METHOD, LZMA), BAD_FILE),
            "zip with files over each other": (set_field(OFFSET, 0, every=True), BAD_FILE),
            "zip with a picture of 4 GB": (
                set_field(SIZE, FOUR_GB),
                r"jpg: unpacks to 4,295 MB, a picture to 1,074 MB at most",
            ),
            "zip of more than the disk holds": (claim_terabytes, r"train.zip is refused"),
        },
    ),
    *rows(
        ("prepare_data.py", ZIP),
        ZIP,
        {
            "the outer zip holds something else": (
                leave,
                r"train.zip is no data set that is known; expected train.zip and train_masks.zip",
            ),
        },
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_archives_are_named(bad, finished_run, tmp_path):
    check_answer(bad, finished_run, tmp_path / "work")


def test_bad_archives_are_documented():
    assert documented_kinds(__file__) == len({bad.name for bad in BAD})
