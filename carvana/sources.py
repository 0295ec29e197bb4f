"""Where photographs and masks come from: archives and folders, as functions that write a file."""

import errno
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from carvana import system
from carvana.annotations import is_json
from carvana.errors import UserError, bullet_list, error_summary, one_line
from carvana.files import same_file
from carvana.images import IMAGE_TYPES, MASK_TYPES
from carvana.layouts import (
    EXPECTED,
    Files,
    Sources,
    Writer,
    annotated_masks,
    data_folder,
    folder_files,
    match_annotations,
    sources_of_folder,
)
from carvana.naming import NAMING, Naming, is_visible

IMAGES_ZIP = "train.zip"  # Kaggle's names
MASKS_ZIP = "train_masks.zip"
MAX_PICTURE_BYTES = 1 << 30  # a picture that unpacks to more was made to fill disks
ARCHIVE_ERRORS = (  # of damaged files, and of kinds that Python does not read
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError),
)
# Errors of the disk that is written to, not of the file that is read.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def open_sources(
    paths: Sequence[str | Path], staging: Path, naming: Naming = NAMING, recursive: bool = False
) -> Sources:
    """Return the files of archives or folders.

    Args:
        paths: two archives or folders, of photographs and of masks or annotations; or one that
            holds both.
        staging: folder for temporary files, on the disk that the files will be written to.
        naming: how masks are named after their photographs.
        recursive: look into folders' sub-folders too.

    Raises:
        UserError: something is missing, damaged or dangerous.
    """
    if len(paths) == 1:
        return _open_one(Path(paths[0]), staging, naming, recursive)
    images, masks = map(Path, paths)
    is_one = same_file(images, masks)
    if is_one and images.is_file():
        return _open_one(images, staging, naming, recursive)
    photographs = _files_of(images, staging, recursive)
    is_archive = masks.is_file() and not is_json(masks)
    if not masks.exists() or (is_archive and not _holds_trees(masks)):
        return Sources(photographs, _files_of(masks, staging))
    tree = _unpack(masks, staging) if is_archive else masks
    annotated = annotated_masks(tree)
    if annotated:
        return match_annotations(photographs, annotated, naming)
    if is_one:
        return _open_one(images, staging, naming, recursive)
    if is_archive and not _is_tar(masks):
        return Sources(photographs, zip_files(masks, staging))
    return Sources(photographs, folder_files(tree, recursive or is_archive))


def _open_one(path: Path, staging: Path, naming: Naming, recursive: bool) -> Sources:
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
    sources = sources_of_folder(folder, naming, recursive)
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
    return any("SegmentationClass/" in name or is_json(Path(name)) for name in names)


def _unpack(path: Path, staging: Path) -> Path:
    """Unpack an archive into a new folder of `staging`; return its data_folder.

    Raises:
        UserError: it is damaged, dangerous or too large.
    """
    folder = Path(tempfile.mkdtemp(prefix="unpacked-", dir=staging))
    try:
        if _is_tar(path):
            _extract_tar(path, folder)
        else:
            _extract_zip(path, folder)
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{one_line(path)} cannot be unpacked ({error_summary(error)}); make or download it "
            "again"
        ) from error
    return data_folder(folder)


def _extract_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        needed = sum(member.size for member in archive)
        _check_names(archive.getnames(), path)
        _check_space(needed, folder, path)
        archive.extractall(folder, filter="data")  # nothing leads outside, no links to there


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raise UserError if a file in an archive has a name that no file can have here."""
    for name in names:
        if not all(map(system.is_possible_name, PurePosixPath(name).parts)):
            raise UserError(f"{one_line(path)}: Windows does not allow the name {one_line(name)}")


def _extract_zip(path: Path, folder: Path) -> None:
    with _open_zip(path) as archive:
        archive.extractall(folder, _checked_entries(archive, path, folder, by_name=False))


def _check_space(needed: int, staging: Path, path: Path) -> None:
    free = shutil.disk_usage(staging).free
    if needed > free:
        raise UserError(
            f"{one_line(path)} unpacks to {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        )


# ---------------------------------------------------------------- zips, file by file


def zip_files(path: str | Path, staging: Path) -> Files:
    """Return the files of a zip, whatever folders they are in, without hidden ones.

    Raises:
        UserError: it is no zip, or some of its files are dangerous, of the same name, or too large
            for the disk of `staging`; the message lists all of them.
    """
    archive = _open_zip(path)
    entries = _checked_entries(archive, path, staging, by_name=True)
    return {_path_inside(entry).name: partial(_extract, archive, entry) for entry in entries}


def _checked_entries(
    archive: zipfile.ZipFile, path: str | Path, staging: Path, by_name: bool
) -> list[zipfile.ZipInfo]:
    """Return the files in a zip that may be unpacked, without hidden ones.

    Args:
        by_name: two files of one name are a fault, whatever folders they are in.

    Raises:
        UserError: listing what is wrong, see zip_files.
    """
    entries = []
    names: set[str] = set()
    problems = []
    for entry in archive.infolist():
        inside = _path_inside(entry)
        fault = _find_danger(entry, inside)
        if not fault:
            if _is_ignored(entry, inside):
                continue
            fault = _find_excess(entry, inside, names if by_name else ())
        if fault:
            problems.append(f"{one_line(entry.filename)}: {fault}")
        names.add(system.name_key(inside.name))
        entries.append(entry)
    unpacked_bytes = sum(entry.file_size for entry in entries)
    free_bytes = shutil.disk_usage(staging).free
    if unpacked_bytes > free_bytes:
        problems.append(
            f"it unpacks to {unpacked_bytes / 1e9:,.1f} GB, {free_bytes / 1e9:,.1f} GB are free"
        )
    if problems:
        raise UserError(bullet_list(f"{path} is refused; make or download another:", problems))
    return entries


def _path_inside(entry: zipfile.ZipInfo) -> PurePosixPath:
    """Return an entry's path in its zip, which Windows may have written."""
    return PurePosixPath(entry.filename.replace("\\", "/"))


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
    if not all(map(system.is_possible_name, inside.parts)):
        return "a name that Windows does not allow"
    return ""


def _is_ignored(entry: zipfile.ZipInfo, inside: PurePosixPath) -> bool:
    """Return whether an entry is a folder, a hidden file, or one that systems add."""
    return entry.is_dir() or not all(map(is_visible, (inside.name, *inside.parts)))


def _find_excess(entry: zipfile.ZipInfo, inside: PurePosixPath, files: Container[str]) -> str:
    """Return why an entry is one too many or too large; "" if nothing is wrong."""
    if system.name_key(inside.name) in files:
        return "a second file of that name"
    is_picture = inside.suffix.lower() in IMAGE_TYPES + MASK_TYPES
    if is_picture and entry.file_size > MAX_PICTURE_BYTES:
        size = f"{entry.file_size / 1e6:,.0f} MB"
        return f"unpacks to {size}, a picture to {MAX_PICTURE_BYTES / 1e6:,.0f} MB at most"
    return ""


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(entry) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
