"""Files that are replaced whole or not at all, locked, compared, and told apart."""

import contextlib
import errno
import filecmp
import hashlib
import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from carvana import system
from carvana.errors import UserError, WriteError, error_summary, one_line, remedy_of

ENCODERS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".webp": "WEBP"}
PAIR_FILE = "one of the photographs or masks"  # in messages
BLOCK = 1 << 20  # bytes that are read at a time
ABANDONED_SECONDS = 600  # what is unfinished and has not grown for as long is nobody's


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path; what is written there replaces `path`, whole or not at all.

    Raises:
        WriteError: it cannot be written; what was there before stays.
        UserError: the name is too long.
    """
    path = Path(path)
    temporary = path.with_name(f".{random_token()}-{path.name}")  # keeps the ending: the format
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        system.replace(temporary, path)
    except OSError as error:
        kind = UserError if error.errno == errno.ENAMETOOLONG else WriteError
        remedy = remedy_of(error)
        raise kind(
            f"{one_line(path)} cannot be written ({error_summary(error)}); {remedy}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def random_token() -> str:
    """Return letters for the name of a temporary file or folder that no other process uses.

    The number of a process would not do: containers that share a disk have the same ones.
    """
    return os.urandom(6).hex()


def is_abandoned(path: Path) -> bool:
    """Return whether a temporary file, or folder of folders, has not grown for a while."""
    try:
        folders = list(path.iterdir()) if path.is_dir() else []
        changed = max(entry.stat().st_mtime for entry in [path, *folders])
    except OSError:  # gone meanwhile, or somebody else's
        return False
    return time.time() - changed > ABANDONED_SECONDS


def write_image(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Save a PIL image in the format that the path's ending names.

    Pillow does not notice when a full disk truncates a file, so Python writes the bytes.
    """
    buffer = io.BytesIO()
    image.save(buffer, ENCODERS[Path(path).suffix.lower()], **options)
    Path(path).write_bytes(buffer.getvalue())


def file_stamp(path: str | Path) -> tuple[str, int, int]:
    """Return what changes when a file does: name, length in bytes, modification time in ns."""
    path = Path(path)
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def file_identity(path: str | Path) -> tuple[int, int | str] | None:
    """Return what all names of a file or folder have in common; None if there is no such file.

    Its names are other spellings of its path, links to it, and on some disks other cases.
    """
    try:
        status = os.stat(path)
    except OSError:  # among them links that lead nowhere, or in circles
        return None
    # Some network disks do not number their files.
    return status.st_dev, status.st_ino or os.path.normcase(os.path.realpath(path))


def same_file(path: str | Path, reference: str | Path) -> bool:
    """Return whether two paths lead to the same file or folder, which exists."""
    identity = file_identity(path)
    return identity is not None and identity == file_identity(reference)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path is a folder, or leads to something in it."""
    path = Path(path).resolve()
    return any(same_file(parent, folder) for parent in (path, *path.parents))


def same_place(path: str | Path, reference: str | Path) -> bool:
    """Return whether one file would replace another that is written to the other path.

    The files need not exist. Windows and macOS do not tell upper from lower case.
    """
    places = [(os.path.realpath(Path(item).parent), Path(item).name) for item in (path, reference)]
    (folder, name), (reference_folder, reference_name) = places
    if name.lower() != reference_name.lower():
        return False
    return folder == reference_folder or same_file(folder, reference_folder)


def check_not_inputs(
    outputs: Iterable[str | Path], inputs: Mapping[str, Iterable[str | Path]], advice: str
) -> None:
    """Raise UserError if a file to write is one of those to read, under whatever name.

    Args:
        inputs: {what they are: paths}, such as {"the model": ["best_checkpoint.pth.tar"]}.
        advice: what to do instead.
    """
    kinds: dict[object, str] = {}
    for kind, paths in inputs.items():
        kinds |= dict.fromkeys(map(file_identity, paths), kind)
    kinds.pop(None, None)  # of those that are not there
    for path in outputs:
        identity = file_identity(path)
        if identity in kinds:
            raise UserError(
                f"{one_line(path)} is {kinds[identity]}, and would be overwritten; {advice}"
            )


def visible_files(folder: Path) -> dict[str, Path]:
    """Return {name: path} of a folder's entries without hidden ones; empty without a folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}


def identical_files(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the sets of files that have the same content, in order."""
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        by_size.setdefault(path.stat().st_size, []).append(path)
    by_content: dict[tuple[int, bytes], list[Path]] = {}
    for size, same_size in by_size.items():
        for path in same_size if len(same_size) > 1 else []:
            by_content.setdefault((size, _digest(path)), []).append(path)
    return [same for same in by_content.values() if len(same) > 1]


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()


def same_files(folder: Path, reference: Path) -> bool:
    """Return whether two folders hold files of the same names and contents."""
    files = visible_files(folder)
    references = visible_files(reference)
    if files.keys() != references.keys():
        return False
    return all(filecmp.cmp(files[name], references[name], shallow=False) for name in files)
