"""The photographs that are asked for: files, folders and patterns."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from carvana.errors import one_line
from carvana.files import same_file
from carvana.images import IMAGE_TYPES

WILDCARDS = "*?["
MASK = "mask.png"  # endings of the files that are written for each photograph
OVERLAY = "overlay.jpg"
CUTOUT = "cutout.png"
BACKGROUND = "background.jpg"
ENDINGS = (MASK, OVERLAY, CUTOUT, BACKGROUND)


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
) -> tuple[list[Photograph], list[str]]:
    """Find photographs.

    Args:
        words: files, folders and patterns.
        out: a folder whose files were written by earlier runs: they are left out.
        recursive: look into sub-folders too.
        for_csv: names in a csv must tell the photographs apart.

    Returns:
        The photographs, and what was not found, in words.
    """
    photographs = []
    faults = []
    names = set()
    csv_names = set()
    for word in words:
        files, fault = _find(word, Path(out), recursive)
        if fault:
            faults.append(fault)
        for path, relative in files:
            name = _free_name(str(relative.with_suffix("")), names)
            names.add(name.lower())
            csv_name = relative.as_posix()
            if for_csv and csv_name in csv_names:
                faults.append(
                    f"{one_line(path)}: a second {csv_name}, which a csv could not tell from the "
                    "first; run it alone"
                )
                continue
            csv_names.add(csv_name)
            photographs.append(Photograph(path, name, csv_name))
    return photographs, faults


def _find(word: str, out: Path, recursive: bool) -> tuple[list[tuple[Path, Path]], str | None]:
    """Return (path, path below the folder) of what a word names, and what is wrong with it."""
    path = Path(word)
    if path.is_dir():
        files = [(file, file.relative_to(path)) for file in _files_in(path, recursive, out)]
        if files:
            return files, None
        advice = "" if recursive else "; --recursive looks into its sub-folders"
        types = " ".join(IMAGE_TYPES)
        return [], f"{one_line(path)}: no photographs in this folder ({types}){advice}"
    if path.exists():
        return [(path, Path(path.name))], None
    if any(letter in word for letter in WILDCARDS):
        matches = [Path(match) for match in sorted(glob.glob(word, recursive=True))]
        files = [(match, Path(match.name)) for match in matches if _is_photograph(match.name)]
        return files, None if files else f"{one_line(word)}: no photograph matches this pattern"
    return [], f"{one_line(path)}: cannot be read (No such file or directory)"


def _files_in(folder: Path, recursive: bool, out: Path) -> list[Path]:
    """Return the photographs of a folder, sorted, without those below `out`."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and not same_file(Path(parent, name), out)
        )
        for name in sorted(names):
            if _is_photograph(name) and not name.startswith("."):
                files.append(Path(parent, name))
    return files


def _is_photograph(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_TYPES


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
