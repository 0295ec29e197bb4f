"""Files that are replaced whole or not at all, and comparing files."""

import contextlib
import errno
import filecmp
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from carvana.errors import REMEDIES, UserError, WriteError, error_summary, one_line

ENCODERS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path; what is written there replaces `path`, whole or not at all.

    Raises:
        WriteError: it cannot be written; what was there before stays.
        UserError: the name is too long.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")  # keeps the ending: the format
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        kind = UserError if error.errno == errno.ENAMETOOLONG else WriteError
        remedy = REMEDIES.get(error.errno, "check the path")
        raise kind(
            f"{one_line(path)} cannot be written ({error_summary(error)}); {remedy}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_image(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Save a PIL image in the format that the path's ending names.

    Pillow does not notice when a full disk truncates a file, so Python writes the bytes.
    """
    buffer = io.BytesIO()
    image.save(buffer, ENCODERS[Path(path).suffix.lower()], **options)
    Path(path).write_bytes(buffer.getbuffer())


def sync_folder(folder: str | Path) -> None:
    """Make a rename in a folder survive a loss of power, where the system offers it."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def file_stamp(path: str | Path) -> tuple[str, int, int]:
    """Return what changes when a file does: name, length in bytes, modification time in ns."""
    path = Path(path)
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def visible_files(folder: Path) -> dict[str, Path]:
    """Return {name: path} of a folder's entries without hidden ones; empty without a folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}


def same_files(folder: Path, reference: Path) -> bool:
    """Return whether two folders hold files of the same names and contents."""
    files = visible_files(folder)
    references = visible_files(reference)
    if files.keys() != references.keys():
        return False
    return all(filecmp.cmp(files[name], references[name], shallow=False) for name in files)
