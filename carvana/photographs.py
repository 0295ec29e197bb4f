"""The photographs that are asked for: files, folders and patterns."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from carvana.errors import describe_os_error, one_line
from carvana.files import same_file
from carvana.naming import is_visible
from carvana.opening import IMAGE_TYPES, describe_left_out, is_photograph

WILDCARDS = "*?["
MASK = "mask.png"  # endings of the files that are written for each photograph
OVERLAY = "overlay.jpg"
CUTOUT = "cutout.png"
BACKGROUND = "background.jpg"
ENDINGS = (MASK, OVERLAY, CUTOUT, BACKGROUND)
FORMATS = ("png", "webp", "jpg")  # that pictures other than masks can be written in


def in_format(ending: str, picture_format: str | None) -> str:
    """Return an ending with one of FORMATS, None for the usual one; a mask is always a PNG."""
    if picture_format is None or ending == MASK:
        return ending
    return f"{ending.partition('.')[0]}.{picture_format}"


class Photograph(NamedTuple):
    """A photograph to be masked."""

    path: Path
    name: str  # what the names of its files begin with, unlike that of any other
    csv_name: str  # in a submission

    def output_path(self, out: str | Path, ending: str) -> Path:
        """Return the path of one of the files that are written for it."""
        return Path(out, f"{self.name}_{ending}")


def find_photographs(
    words: Sequence[str], out: str | Path, recursive: bool = False, for_csv: bool = False
) -> tuple[list[Photograph], list[str], list[str]]:
    """Find photographs.

    Args:
        words: files, folders and patterns.
        out: a folder whose files were written by earlier runs: they are left out.
        recursive: look into sub-folders too.
        for_csv: names in a csv must tell the photographs apart; one named twice counts once.

    Returns:
        The photographs; what was not found, in words; and what is no photograph in the folders
        and patterns, in words.
    """
    photographs = []
    faults = []
    remarks = []
    names: set[str] = set()
    csv_paths: dict[str, str] = {}  # by their names in the csv
    for word in words:
        files, left_out, fault = _find(word, Path(out), recursive)
        if fault:
            faults.append(fault)
        if files and left_out:  # else the fault tells of it
            remarks.append(f"{one_line(word)}: left out {describe_left_out(left_out)}")
        for path, relative in files:
            name = _free_name(str(relative.with_suffix("")), names)
            names.add(name.lower())
            csv_name = relative.as_posix()
            if for_csv and csv_name in csv_paths:
                if csv_paths[csv_name] != os.path.abspath(path):
                    faults.append(
                        f"{one_line(path)}: a second {csv_name}, which a csv could not tell from "
                        "the first; run it alone"
                    )
                continue
            csv_paths[csv_name] = os.path.abspath(path)
            photographs.append(Photograph(path, name, csv_name))
    return photographs, faults, remarks


def _find(
    word: str, out: Path, recursive: bool
) -> tuple[list[tuple[Path, Path]], list[str], str | None]:
    """Find what a word names.

    Returns:
        (path, path below the folder) of each photograph, the names of other files, and what is
        wrong with the word.
    """
    path = Path(word)
    if path.is_dir():
        paths, left_out, errors = _files_in(path, recursive, out)
        fault = "; ".join(map(describe_os_error, errors)) or None
        if not paths and not fault:
            fault = _describe_empty(path, left_out, recursive)
        return [(file, file.relative_to(path)) for file in paths], left_out, fault
    if path.exists():
        return [(path, Path(path.name))], [], None
    if any(letter in word for letter in WILDCARDS):
        return _matches(word)
    return [], [], _describe_missing(word)


def _matches(pattern: str) -> tuple[list[tuple[Path, Path]], list[str], str | None]:
    """Return what _find does, of a pattern."""
    files = []
    left_out = []
    for match in map(Path, sorted(glob.glob(_pattern(pattern), recursive=True))):
        if is_photograph(match.name):
            files.append((match, Path(match.name)))
        elif match.is_file() and is_visible(match.name):
            left_out.append(match.name)
    fault = None
    if not files:
        fault = f"{one_line(pattern)}: no photograph matches this pattern"
        if left_out:
            fault += f", but {describe_left_out(left_out)}"
    return files, left_out, fault


def _describe_empty(folder: Path, left_out: list[str], recursive: bool) -> str:
    """Return what a folder without photographs holds, and what to do."""
    fault = f"{one_line(folder)}: no photographs in this folder ({' '.join(IMAGE_TYPES)})"
    if left_out:
        fault += f", but {describe_left_out(left_out)}"
    return fault if recursive else f"{fault}; --recursive looks into its sub-folders"


def _pattern(word: str) -> str:
    """Return a pattern in which the folders that exist, such as "cars [2020]", mean themselves."""
    for folder in Path(word).parents:
        if folder != Path() and folder.is_dir():
            rest = Path(word).relative_to(folder)
            return os.path.join(glob.escape(str(folder)), rest)
    return word


def _describe_missing(word: str) -> str:
    """Return what to do about a word that names nothing."""
    if re.match("[a-z]+://", word):
        return f"{one_line(word)}: an address cannot be read; download the photograph first"
    if word == "-":
        return "-: photographs are read from files, not from standard input; name one"
    return f"{one_line(word)}: cannot be read (No such file or directory)"


def _files_in(
    folder: Path, recursive: bool, out: Path
) -> tuple[list[Path], list[str], list[OSError]]:
    """Return a folder's photographs, sorted, the names of its other files, and what fails.

    Those below `out` are neither.
    """
    files = []
    left_out = []
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and not same_file(Path(parent, name), out)
        )
        for name in sorted(names):
            if not is_visible(name):
                continue
            if is_photograph(name):
                files.append(Path(parent, name))
            else:
                left_out.append(name)
    return files, left_out, errors


def _free_name(stem: str, taken: set[str]) -> str:
    """Return the stem, or the first free of stem_2, stem_3, ...

    Windows and macOS do not tell upper from lower case.
    """
    name = stem
    number = 2
    while name.lower() in taken:
        name = f"{stem}_{number}"
        number += 1
    return name
