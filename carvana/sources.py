"""Where photographs and masks come from: zips and folders, as functions that write each file."""

import errno
import shutil
import zipfile
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from carvana.errors import UserError, bullet_list, error_summary, one_line
from carvana.images import IMAGE_TYPES, MASK_TYPES
from carvana.pairs import is_picture_or_file

IMAGES_ZIP = "train.zip"  # Kaggle's names
MASKS_ZIP = "train_masks.zip"
MAX_PICTURE_BYTES = 1 << 30  # a picture that unpacks to more was made to fill disks
# Errors of the disk that is written to, not of the file that is read.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

Writer = Callable[[Path], object]  # writes one file to a path
Files = dict[str, Writer]  # by the file's name


class Sources(NamedTuple):
    """The files of a data set, wherever they are."""

    images: Files
    masks: Files


def folder_sources(image_folder: str | Path, mask_folder: str | Path, _staging: Path) -> Sources:
    """Return the files of two folders; they need no temporary ones."""
    return Sources(folder_files(image_folder), folder_files(mask_folder))


def open_sources(paths: Sequence[str | Path], staging: Path) -> Sources:
    """Return the files of zips or folders.

    Args:
        paths: two zips or folders, of photographs and of masks; or one that holds both, as
            Kaggle's outer zip does, or the folder unpacked from it.
        staging: folder for temporary files, on the disk that the files will be written to.

    Raises:
        UserError: something is missing, damaged or dangerous.
    """
    if len(paths) == 2:
        images, masks = paths
    elif Path(paths[0]).is_dir():
        images, masks = _look_into_folder(Path(paths[0]))
    else:
        images, masks = _unpack_outer_zip(Path(paths[0]), staging)
    return Sources(_files_of(images, staging), _files_of(masks, staging))


def write_file(write: Writer, target: Path) -> None:
    """Write one file of a source.

    Raises:
        UserError: the source is damaged; the message says how, but not which file it is.
        OSError: the target cannot be written, such as on a full disk.
    """
    try:
        write(target)
    except Exception as error:  # a hostile zip can raise nearly anything
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            raise
        raise UserError(error_summary(error)) from error


def _look_into_folder(folder: Path) -> tuple[Path, Path]:
    """Return the zips or folders of photographs and of masks in a folder."""
    images = _first_existing(folder / IMAGES_ZIP, folder / "train")
    masks = _first_existing(folder / MASKS_ZIP, folder / "train_masks")
    return images, masks


def _first_existing(*paths: Path) -> Path:
    """Return the first path that exists, else the first one, which the user then misses."""
    return next((path for path in paths if path.exists()), paths[0])


def _unpack_outer_zip(path: Path, staging: Path) -> tuple[Path, Path]:
    """Unpack the two zips inside Kaggle's outer one; return where they are now."""
    files = zip_files(path, staging)
    missing = [name for name in (IMAGES_ZIP, MASKS_ZIP) if name not in files]
    if missing:
        raise UserError(
            f"{path} holds no {' and no '.join(missing)}; "
            "give two zips (images, masks), or Kaggle's outer zip"
        )
    for name in (IMAGES_ZIP, MASKS_ZIP):
        try:
            write_file(files[name], staging / name)
        except UserError as error:
            raise UserError(f"{name} in {path} is damaged ({error}); download it again") from error
    return staging / IMAGES_ZIP, staging / MASKS_ZIP


def _files_of(path: str | Path, staging: Path) -> Files:
    if Path(path).is_dir():
        return folder_files(path)
    return zip_files(path, staging)


def folder_files(folder: str | Path) -> Files:
    """Return the files of a folder; hidden ones and sub-folders are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no file or folder {str(folder)!r}; check the path")
    files = {}
    for path in folder.iterdir():
        if not path.name.startswith(".") and is_picture_or_file(path):
            files[path.name] = partial(shutil.copyfile, path)
    return files


def zip_files(path: str | Path, staging: Path) -> Files:
    """Return the files of a zip, whatever folders they are in, without hidden ones.

    Raises:
        UserError: it is no zip, or some of its files are dangerous or too large for the disk of
            `staging`; the message lists all of them.
    """
    archive = _open_zip(path)
    files = {}
    problems = []
    unpacked_bytes = 0
    for entry in archive.infolist():
        inside = PurePosixPath(entry.filename.replace("\\", "/"))
        fault = _find_danger(entry, inside)
        if not fault:
            if _is_ignored(entry, inside):
                continue
            fault = _find_excess(entry, inside, files)
        if fault:
            problems.append(f"{one_line(entry.filename)}: {fault}")
        files[inside.name] = partial(_extract, archive, entry)
        unpacked_bytes += entry.file_size
    free_bytes = shutil.disk_usage(staging).free
    if unpacked_bytes > free_bytes:
        problems.append(
            f"it unpacks to {unpacked_bytes / 1e9:,.1f} GB, {free_bytes / 1e9:,.1f} GB are free"
        )
    if problems:
        raise UserError(bullet_list(f"{path} is refused; make or download another:", problems))
    return files


def _open_zip(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"no file {str(path)!r}; check the path") from None
    except Exception as error:  # a hostile zip can raise nearly anything
        raise UserError(
            f"{path} is not a zip that can be read ({error_summary(error)}); download it again"
        ) from error


def _find_danger(entry: zipfile.ZipInfo, inside: PurePosixPath) -> str:
    """Return why an entry must not be unpacked, or cannot be; "" if nothing is wrong."""
    has_drive = bool(inside.parts) and ":" in inside.parts[0]
    if inside.is_absolute() or ".." in inside.parts or has_drive:
        return "leads outside the zip"
    is_encrypted = entry.flag_bits & 1
    if is_encrypted:
        return "encrypted"
    return ""


def _is_ignored(entry: zipfile.ZipInfo, inside: PurePosixPath) -> bool:
    """Return whether an entry is a folder, a hidden file, or one of those that macOS adds."""
    return entry.is_dir() or inside.name.startswith(".") or "__MACOSX" in inside.parts


def _find_excess(entry: zipfile.ZipInfo, inside: PurePosixPath, files: Container[str]) -> str:
    """Return why an entry is one too many or too large; "" if nothing is wrong."""
    if inside.name in files:
        return "a second file of that name"
    is_picture = inside.suffix.lower() in IMAGE_TYPES + MASK_TYPES
    if is_picture and entry.file_size > MAX_PICTURE_BYTES:
        size = f"{entry.file_size / 1e6:,.0f} MB"
        return f"unpacks to {size}, a picture to {MAX_PICTURE_BYTES / 1e6:,.0f} MB at most"
    return ""


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(entry) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
