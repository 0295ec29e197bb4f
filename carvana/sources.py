"""Where photographs and masks come from: archives and folders, as functions that write a file."""

import errno
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from carvana.errors import UserError, bullet_list, error_summary, one_line
from carvana.images import IMAGE_TYPES, MASK_TYPES
from carvana.layouts import (
    EXPECTED,
    Files,
    Sources,
    Writer,
    annotated_masks,
    folder_files,
    match_annotations,
    sources_of_folder,
)
from carvana.naming import is_visible

IMAGES_ZIP = "train.zip"  # Kaggle's names
MASKS_ZIP = "train_masks.zip"
MAX_PICTURE_BYTES = 1 << 30  # a picture that unpacks to more was made to fill disks
# Errors of the disk that is written to, not of the file that is read.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def open_sources(paths: Sequence[str | Path], staging: Path, recursive: bool = False) -> Sources:
    """Return the files of archives or folders.

    Args:
        paths: two archives or folders, of photographs and of masks or annotations; or one that
            holds both.
        staging: folder for temporary files, on the disk that the files will be written to.
        recursive: look into folders' sub-folders too.

    Raises:
        UserError: something is missing, damaged or dangerous.
    """
    if len(paths) == 1:
        return _open_one(Path(paths[0]), staging, recursive)
    images, masks = map(Path, paths)
    photographs = _files_of(images, staging, recursive)
    if masks.is_file() and masks.suffix.lower() != ".json":
        if not _holds_trees(masks):
            return Sources(photographs, _files_of(masks, staging))
        masks = _unpack(masks, staging)
    annotated = annotated_masks(masks) if masks.exists() else None
    if annotated:
        return match_annotations(photographs, annotated)
    return Sources(photographs, _files_of(masks, staging, recursive))


def _open_one(path: Path, staging: Path, recursive: bool) -> Sources:
    """Return the files of an archive or folder that holds photographs and masks."""
    if not path.exists():
        raise UserError(f"no file or folder {str(path)!r}; check the path")
    folder = path
    if path.is_dir():
        images = _first_existing(path / IMAGES_ZIP, path / "train")
        masks = _first_existing(path / MASKS_ZIP, path / "train_masks")
        if masks.exists() or images.is_file():
            return Sources(_files_of(images, staging), _files_of(masks, staging))
    elif not _is_tar(path) and {IMAGES_ZIP, MASKS_ZIP} & _names_in(path):
        images, masks = _unpack_outer_zip(path, staging)
        return Sources(_files_of(images, staging), _files_of(masks, staging))
    else:
        folder = _unpack(path, staging)
    sources = sources_of_folder(folder, recursive=recursive)
    if sources is None:
        raise UserError(f"{one_line(path)} is no data set that is known; {EXPECTED}")
    return sources


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


def _files_of(path: str | Path, staging: Path, recursive: bool = False) -> Files:
    if Path(path).is_dir():
        return folder_files(path, recursive)
    if _is_tar(path):
        return folder_files(_unpack(Path(path), staging), recursive=True)
    return zip_files(path, staging)


# ---------------------------------------------------------------- whole archives


def _is_tar(path: str | Path) -> bool:
    return Path(path).is_file() and not zipfile.is_zipfile(path) and tarfile.is_tarfile(path)


def _names_in(path: Path) -> set[str]:
    """Return the names of a zip's files without their folders."""
    with _open_zip(path) as archive:
        return {PurePosixPath(name).name for name in archive.namelist()}


def _holds_trees(path: Path) -> bool:
    """Return whether an archive's files mean something by the folders they are in."""
    if _is_tar(path):
        return True
    with _open_zip(path) as archive:
        names = archive.namelist()
    return any("SegmentationClass/" in name or name.endswith(".json") for name in names)


def _unpack(path: Path, staging: Path) -> Path:
    """Unpack an archive into a new folder of `staging`; return that.

    Raises:
        UserError: it is damaged, dangerous or too large.
    """
    folder = staging / f"unpacked-{path.name}"
    folder.mkdir(parents=True)
    if not _is_tar(path):
        zip_files(path, staging, by_name=False)
        with _open_zip(path) as archive:
            archive.extractall(folder)
        return folder
    try:
        with tarfile.open(path) as archive:
            needed = sum(member.size for member in archive)
            _check_space(needed, staging, path)
            archive.extractall(folder, filter="data")  # nothing leads outside, no links to there
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{one_line(path)} cannot be unpacked ({error_summary(error)}); make or download it "
            "again"
        ) from error
    return folder


def _check_space(needed: int, staging: Path, path: Path) -> None:
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(
            f"{one_line(path)} unpacks to {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        )


# ---------------------------------------------------------------- zips, file by file


def zip_files(path: str | Path, staging: Path, by_name: bool = True) -> Files:
    """Return the files of a zip, whatever folders they are in, without hidden ones.

    Args:
        by_name: two files of one name are a fault, whatever folders they are in.

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
            fault = _find_excess(entry, inside, files if by_name else ())
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
        raise UserError(f"no file or folder {str(path)!r}; check the path") from None
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
    """Return whether an entry is a folder, a hidden file, or one that systems add."""
    return entry.is_dir() or not all(map(is_visible, (inside.name, *inside.parts)))


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
