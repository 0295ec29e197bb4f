"""Bad input: a table of files and how they are spoiled, and what every script must answer.

A new kind of bad input is a new row of one of the tables.
"""

import functools
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from helpers import (
    LAST,
    ROOT,
    file_contents,
    run_script,
    tiny_options,
    working_folder,
    write_pairs,
)

IMAGE, MASK = "data/train_images/000000000000_01.jpg", "data/train_masks/000000000000_01_mask.gif"
TINY = tiny_options(BATCH_SIZE=2)
TRAIN = ("train.py", *TINY)
RESUME = (*TRAIN, "--load-model", "true", "--num-epochs", "2")
EVALUATE = ("evaluate.py", "--model", LAST)
TRAINING_FOLDERS = ("--images", "data/train_images", "--masks", "data/train_masks")
MAX_MESSAGE = 2000  # letters
DOCUMENT = ROOT / "docs/robustness.md"


class Bad(NamedTuple):
    """A kind of bad input."""

    name: str
    file: str  # that is spoiled
    spoil: Callable[[Path], Any]
    command: tuple[str, ...]  # script and arguments
    message: str  # a regular expression

    def __str__(self):
        return self.name[:60]


def rows(command, file, table):
    """Return a Bad for each {name: (spoil, message)} of a table for one command and one file."""
    return [Bad(name, file, spoil, command, message) for name, (spoil, message) in table.items()]


def make_finished_run(folder):
    """Fill a folder as a finished run leaves it, with the two zips that its data came from."""
    data = folder / "data"
    write_pairs(data / "train_images", data / "train_masks", cars=2)
    write_pairs(data / "val_images", data / "val_masks", cars=1, first=100)
    for name, kind in (("train.zip", "images"), ("masks.zip", "masks")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in sorted((data / f"train_{kind}").iterdir()):
                archive.write(path, f"{kind}/{path.name}")
    run_script(folder, *TRAIN, "--num-epochs", "1")
    shutil.rmtree(folder / "saved_images")
    shutil.rmtree(data / ".cache")
    return folder


def check_answer(bad, finished_run, work):
    """Spoil a file of a copy of a finished run; check the answer, and that no file changes.

    The answer is one line, with a list under it perhaps, and exit status 2.
    """
    shutil.copytree(finished_run, work)
    with working_folder(work):
        bad.spoil(work / bad.file)
    before = file_contents(work)
    stderr = run_script(work, *bad.command, status=2).stderr
    message = re.sub(r"[^\n]*\r", "", stderr).strip()  # without progress bars
    assert message.startswith("error: ")
    assert re.search(bad.message, message, re.MULTILINE), message
    assert all(line.startswith("  ") for line in message.split("\n")[1:]), message
    assert len(message) < MAX_MESSAGE
    assert file_contents(work) == before


def documented_kinds(test_file):
    """Return how many kinds of bad input docs/robustness.md says that a test file has."""
    row = rf"^\| `tests/{Path(test_file).name}` \| (\d+) "
    (count,) = re.findall(row, DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return int(count)


# ---------------------------------------------------------------- ways to spoil a file


class Spoil:
    """function(path, *args, **options), waiting for the path."""

    def __init__(self, function, *args, **options):
        self.function = function
        self.args = args
        self.options = options

    def __call__(self, path):
        self.function(path, *self.args, **self.options)


def spoiler(function):
    """Decorate f(path, ...), so that f(...) returns a Spoil that waits for the path."""
    return functools.partial(Spoil, function)


def leave(path):
    """Spoil nothing."""


def remove(path):
    path.unlink()


def make_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def break_link(path):
    path.unlink()
    path.symlink_to("nowhere")


@spoiler
def write(path, data):
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@spoiler
def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@spoiler
def flip_byte(path, share):
    """Change the byte at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 0xFF
    path.write_bytes(data)


@spoiler
def rename(path, name, spoil=leave):
    renamed = path.with_name(name)
    path.rename(renamed)
    spoil(renamed)


@spoiler
def add_beside(path, name):
    """Add a copy of the file under another name."""
    path.with_name(name).write_bytes(path.read_bytes())
