"""Finds, pairs and reads pictures. Needs no torch, so that a wrong path is answered at once."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import os
import re
import stat
import sys
import threading
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
SHIPPED = (
    Path(__file__).with_name("weights") / "carvana.pth.tar"
)  # what inference, evaluation and export take where no model is named
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MASK_TYPES = (".gif", ".png", ".bmp", ".tif", ".tiff")  # all of them keep each value as it is
MASK_SUFFIX = "_mask"
FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
)  # Pillow knows more, some of which run other programs
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EFBIG: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
}
warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # about odd metadata, and sizes that are within the limit
cv2.setNumThreads(
    0
)  # several pictures are read at once; OpenCV's own threads would only fight over the cores
READER = 3  # to be raised whenever read_image or read_mask returns something else for the same file
CAR = "([0-9a-f]{12})_(0[1-9]|1[0-6])"  # a Carvana name: car and angle
UPRIGHT = {  # EXIF orientation -> what turns the stored rows into the picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Labels(NamedTuple):
    """What the masks of several classes mean."""

    names: tuple  # of the classes; an index into them is what a pixel is
    palette: tuple = ()  # (r, g, b) of each where masks are coloured; one more is that of pixels to ignore
    ignore: int = 255  # the index of pixels that are neither learnt nor scored


def labels_of(constants):
    """{"CLASSES", "PALETTE", "IGNORE_INDEX"} as in config.py -> Labels; None of a single class, whose masks are shares of foreground."""
    palette = tuple(tuple(bytes.fromhex(colour[1:])) for colour in constants["PALETTE"])
    return (
        Labels(tuple(constants["CLASSES"]), palette, constants["IGNORE_INDEX"])
        if len(constants["CLASSES"]) > 1
        else None
    )


def colours_of(labels):
    """uint8 (256, 3): the colour of each index. Without a palette the field's own for label images (that of PASCAL VOC: the index's bits, spread)."""
    index = np.arange(256)
    colours = np.stack(
        [
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        ],
        1,
    ).astype(np.uint8)
    colours[labels.ignore] = (224, 224, 192)
    for i, colour in enumerate(labels.palette):
        colours[i if i < len(labels.names) else labels.ignore] = colour
    return colours


class UserError(Exception):
    """Something only the user can put right: expected this, found that, type this next."""


class WriteError(UserError):
    """A file that cannot be written for a reason that holds for others as well: a full disk, a folder that may not be written to."""


def refuse(message):
    """What a command line's parser does with wrong words (its .error): a UserError instead of a page of usage."""
    raise UserError(f"{printable(message)}; --help lists what there is")


def brief(error):
    """What an exception says, in a line: the system's words, else the first line of its message, else its name."""
    return getattr(error, "strerror", None) or printable(
        (str(error).splitlines() or [type(error).__name__])[0]
    )


def printable(name):
    """A name as text of one line: what a terminal would not print, or act upon, as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(name))


@contextlib.contextmanager
def replacing(path):
    """with replacing(path) as temporary: what is written to `temporary` becomes `path`, whole or not at all.

    Raises UserError where it cannot be written: what was there before stays."""
    path = Path(path)
    temporary = path.with_name(
        f".{os.getpid()}-{path.name}"
    )  # ends like path, which tells Pillow the format
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise (UserError if error.errno == errno.ENAMETOOLONG else WriteError)(
            f"{printable(path)} cannot be written ({brief(error)}); {REMEDIES.get(error.errno, 'check the path')}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_picture(image, path, **how):
    """Save a PIL image in the format that the path ends with. Pillow itself takes half a file, on a full disk, for a whole one."""
    buffer = io.BytesIO()
    image.save(
        buffer, {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}[Path(path).suffix.lower()], **how
    )
    Path(path).write_bytes(buffer.getbuffer())


def told(error):
    """An OSError in words: which file, what, and what to do about it."""
    name = f"{printable(error.filename)}: " if error.filename is not None else ""
    return f"{name}{brief(error)}; {REMEDIES.get(error.errno, 'check the path')}"


MISHAPS = {  # what torch says -> what it means here
    "out of memory": "the GPU's memory is too small for this; lower BATCH_SIZE first, then IMAGE_HEIGHT and IMAGE_WIDTH, or FEATURES",
    "Unable to allocate": "the memory is too small for this; lower BATCH_SIZE first, then IMAGE_HEIGHT and IMAGE_WIDTH, or FEATURES",
    "allocate memory": "the memory is too small for this; lower BATCH_SIZE first, then IMAGE_HEIGHT and IMAGE_WIDTH, or FEATURES",
    "exited unexpectedly": "a process that reads the images was ended from outside, usually for want of memory; lower NUM_WORKERS or BATCH_SIZE",
    "killed by signal": "a process that reads the images was killed, for want of memory or of /dev/shm; set NUM_WORKERS to 0 or lower BATCH_SIZE",
    "leaves BatchNorm": "the last batch is too small; change BATCH_SIZE so that it holds more than one image, or enlarge the images",
}


@contextlib.contextmanager
def user_errors():
    """Around a script: a UserError, the system's refusal, or one of MISHAPS becomes one message on stderr and exit status 2; Ctrl-C status 130."""
    if hasattr(sys.stdout, "reconfigure"):  # not a notebook's
        # a log file shows each line when it is printed; a file's name may hold what the terminal's encoding has not
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        yield
    except UserError as error:
        message = (
            str(error).rsplit("UserError: ", 1)[-1].strip()
        )  # a DataLoader worker wraps it into its traceback
        sys.exit(_complain(f"error: {message}", 2))
    except OSError as error:
        sys.exit(_complain(f"error: {told(error)}", 2))
    except (RuntimeError, ValueError, MemoryError) as error:
        advice = next((advice for said, advice in MISHAPS.items() if said in str(error)), None)
        if advice is None:
            raise
        sys.exit(_complain(f"error: {advice} ({brief(error)})", 2))
    except KeyboardInterrupt:
        sys.exit(_complain("\ninterrupted", 130))


def _complain(text, status):
    print(text, file=sys.stderr)
    return status


def cores():
    """How many of the machine's cores this process may use: under torchrun its part of them."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def thread_pool(threads):
    """A ThreadPoolExecutor whose threads the system has seen off at the end. Joined, they may still clean up after OpenCV: a process forked then would wait for its lock for ever."""
    started = []
    try:
        with ThreadPoolExecutor(
            threads, initializer=lambda: started.append(threading.get_native_id())
        ) as pool:
            yield pool
    finally:
        while any(
            os.path.exists(f"/proc/self/task/{number}") for number in started
        ):  # where there is no /proc nothing is forked
            time.sleep(1e-4)


def in_threads(function, items, what, unit=" pairs", threads=None):
    """Generator of function of each item, in order, from all cores, with a progress bar. contextlib.closing() ends its threads.

    At most 32 results wait to be taken, so that memory stays what it is for any number of items."""
    rest = iter(items)
    with (
        thread_pool(threads or cores()) as pool,
        tqdm(
            total=len(items), desc=what, unit=unit, delay=1, dynamic_ncols=True, leave=False
        ) as bar,
    ):
        waiting = deque(pool.submit(function, item) for item in islice(rest, 32))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
                bar.update()
        finally:
            for future in waiting:  # after an error or Ctrl-C
                future.cancel()


def attempt(function, *of, **how):
    """What a function returns of these, or the UserError that it ends with."""
    try:
        return function(*of, **how)
    except UserError as error:
        return error


def refuse_faults(found):
    """Raises one UserError for all that are among these, as attempt() returns them."""
    if faults := [str(one) for one in found if isinstance(one, UserError)]:
        raise UserError("\n".join(faults))


def keep_freed_memory():
    """Let glibc keep what is freed instead of returning it to the system: fresh pages cost more than what is done in them.

    For arrays and tensors of megabytes, on a CPU. Where the C library is another one it does nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


# ---------------------------------------------------------------- which files belong together


def listing(folder, what):
    """Sorted paths of the files in `folder`; hidden files and sub-folders are left out, unless these are named like pictures."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"no folder {str(folder)!r}, where the {what} should be; "
            "make the data with prepare_data.py, or set the folder in config.py"
        )
    return sorted(
        p for p in folder.iterdir() if not p.name.startswith(".") and is_picture_or_file(p)
    )


def is_picture_or_file(path):
    """False for a folder, unless it is named like a picture: then it is a fault to be told."""
    return path.suffix.lower() in IMAGE_TYPES + MASK_TYPES or not path.is_dir()


def pair_names(image_names, mask_names, suffix=MASK_SUFFIX):
    """Match NAME.jpg with NAME<suffix>.png or NAME.png, or another of MASK_TYPES.

    Returns (pairs of (image name, mask name) sorted by image, list of what is wrong in words)."""
    problems = []

    def by_stem(names, types, what, stem_of):
        stems = {}
        for name in sorted(names):
            if Path(name).suffix.lower() not in types:
                problems.append(
                    f"{printable(name)}: not {'an' if what == 'image' else 'a'} {what} ({' '.join(types)})"
                )
            else:
                stems.setdefault(stem_of(Path(name).stem), []).append(name)
        problems.extend(
            f"{printable(stem)}: more than one {what}: {', '.join(map(printable, found))}"
            for stem, found in stems.items()
            if len(found) > 1
        )
        return stems

    images = by_stem(image_names, IMAGE_TYPES, "image", lambda stem: stem)
    masks = by_stem(
        mask_names,
        MASK_TYPES,
        "mask",
        lambda stem: stem if stem in images else stem.removesuffix(suffix),
    )
    problems.extend(
        f"{printable(found[0])}: image without a mask (expected {printable(stem + suffix)}.gif or .png{f', or {printable(stem)}.gif or .png' if suffix else ''}; MASK_SUFFIX is {suffix!r})"
        for stem, found in images.items()
        if stem not in masks
    )
    problems.extend(
        f"{printable(found[0])}: mask without an image (expected {printable(stem)}.jpg or the like)"
        for stem, found in masks.items()
        if stem not in images
    )
    return [
        (found[0], masks[stem][0])
        for stem, found in images.items()
        if len(found) == len(masks.get(stem, [])) == 1
    ], problems


def find_pairs(image_dir, mask_dir, suffix=MASK_SUFFIX):
    """All (image path, mask path) of two folders, sorted by name. Raises UserError naming all that is wrong."""
    pairs, problems = pair_folders(image_dir, mask_dir, suffix)
    for image, mask in pairs:
        try:
            problems.extend(_size_fault(image, picture_size(image), mask, picture_size(mask)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            listed(
                f"{many(problems, 'problem')} in {str(image_dir)!r} and {str(mask_dir)!r}; "
                "put them right, or let prepare_data.py --skip-bad leave these files out",
                problems,
            )
        )
    return pairs


def pair_folders(image_dir, mask_dir, suffix=MASK_SUFFIX):
    """-> (pairs of paths that belong together by name, what is wrong with the rest). Raises UserError where nothing pairs."""
    images = {p.name: p for p in listing(image_dir, "images")}
    masks = {p.name: p for p in listing(mask_dir, "masks")}
    if not images:
        raise UserError(
            f"no images in {str(image_dir)!r}; make the data with prepare_data.py, "
            "or set the folder in config.py"
        )
    pairs, problems = pair_names(images, masks, suffix)
    if not pairs and masks:
        raise UserError(
            f"no image in {str(image_dir)!r} (such as {min(images)}) has a mask in {str(mask_dir)!r} "
            f"(such as {min(masks)}); expected NAME.jpg and NAME{suffix}.png or NAME.png; set MASK_SUFFIX to what stands between a photograph's name and its mask's"
        )
    return [(images[image], masks[mask]) for image, mask in pairs], problems


def check_folders(*folders, suffix=MASK_SUFFIX):
    """find_pairs for several (image_dir, mask_dir): one UserError with what is wrong in any of them."""
    refuse_faults([attempt(find_pairs, *pair, suffix) for pair in folders])


def _size_fault(image, size, mask, mask_size):
    if size == mask_size:
        return []
    return [
        f"{printable(image.name)}: {size[1]}x{size[0]} pixels, its mask {printable(mask.name)} {mask_size[1]}x{mask_size[0]}"
    ]


def many(things, word):
    """How many of a thing: "1 problem", "2 problems"."""
    return f"{len(things):,} {word}{'s' * (len(things) != 1)}"


def few(things, most=3):
    """The first of several in a line, and how many more there are."""
    return "; ".join(
        [*things[:most], *([f"and {len(things) - most} more"] if len(things) > most else [])]
    )


def listed(headline, lines):
    """A headline and its details, a line each."""
    return "\n  ".join([headline, *lines])


def group_of(name, regex=CAR):
    """What must stay on one side of a split: of a name that a regular expression fits, its first bracket that holds something (or all that fits); else the file's own stem."""
    match = re.fullmatch(regex, Path(name).stem)
    return (
        next((group for group in match.groups() if group is not None), match[0])
        if match
        else Path(name).stem
    )


def split_groups(groups, fractions, seed):
    """Deal groups to as many parts as there are fractions, and the rest to a last one.

    The order is that of a hash of (seed, group): the same on every machine, whatever order the
    groups come in, and the first parts stay what they are when a further one is asked for."""
    order = sorted(
        set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()
    )
    parts, start = [], 0
    for fraction in fractions:
        count = max(1, round(fraction * len(order))) if fraction else 0
        parts.append(set(order[start : start + count]))
        start += count
    return [*parts, set(order[start:])]


# ---------------------------------------------------------------- the one reader


@contextlib.contextmanager
def _opened(path):
    """A PIL image; whatever goes wrong while it is open is a UserError that names the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("a folder or a device, not a file")
        with Image.open(path, formats=FORMATS) as image:
            if (
                getattr(image, "is_animated", False) and image.format != "MPO"
            ):  # MPO: a camera's JPEG, with a preview behind the picture
                raise ValueError(f"{image.n_frames} pictures in one file; save the one that counts")
            yield image
    except Exception as error:  # a hostile file can raise nearly anything inside a decoder
        reason = (
            f"not a picture in one of the formats {' '.join(FORMATS)}"
            if "cannot identify" in str(error)
            else brief(error)
        )
        raise UserError(f"{printable(path)}: cannot be read ({reason})") from error


def _turned(image):
    """EXIF orientation 1 to 8; from 5 on, rows and columns are exchanged. Comes before .size: Pillow turns a TIFF itself."""
    if image.format == "TIFF":
        image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged or absurd EXIF, in a picture that may be good
        return 1
    return orientation if orientation in range(1, 9) else 1


def picture_size(path):
    """(height, width) of a picture as it is shown, from its header."""
    try:
        return _size_of(path, stamp(path))
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({brief(error)})") from error


def stamp(path):
    """What changes when a file does: name, length in bytes, time of last change in ns."""
    status = Path(path).stat()
    return Path(path).name, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=100_000)
def _size_of(path, _stamp):
    with _opened(path) as image:
        return _upright_size(image)


def _upright_size(image):
    """(height, width) of a PIL image as it is shown."""
    turned = _turned(image) > 4
    return image.size if turned else image.size[::-1]


def _deep(image):
    """The uint16 levels of a 16-bit grey picture, None for any other (16-bit colour opens as its high bytes)."""
    if image.mode == "F":
        raise ValueError("floating-point levels; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return None
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("32-bit levels; save it with 8 or 16 bits")
    return levels.astype(np.uint16)


def read_image(path, size=None, channels=3):
    """The picture as shown (EXIF orientation applied) -> uint8 (H, W, channels), RGB or grey.

    size: (H, W) to scale to, or None for the picture's own. A JPEG is decoded at 1/2, 1/4 or 1/8 as
    long as that leaves twice the size asked for. 16 bits are divided by 257, CMYK and palettes
    are converted, alpha is dropped. Raises UserError, naming the file, where it cannot be read."""
    mode = {1: "L", 3: "RGB"}[channels]
    with _opened(path) as image:
        orientation = _turned(image)
        box = None
        if size is not None:
            width, height = size if orientation > 4 else size[::-1]
            reduced = image.draft(
                mode, (max(1, 2 * width - 2), max(1, 2 * height - 2))
            )  # -2: 1918 / 2 counts as 2 * 480
            box = (
                reduced and reduced[1]
            )  # what of the reduced picture is picture: its last column may be part padding
        deep = _deep(image)
        if deep is not None:
            image = Image.fromarray(np.round(deep / 257).astype(np.uint8))
        image = image.convert(mode)
        if size is not None:
            image = _scaled(image, width, height, box)
        if orientation > 1:
            image = image.transpose(UPRIGHT[orientation])
        return np.array(image).reshape(image.height, image.width, channels)


def _scaled(image, width, height, box=None):
    """A PIL image, or a box of it, at another size."""
    # Hamming is as sharp as averaging, but continuous: Pillow's BOX moves what falls between two pixels
    shrinks = width <= image.width and height <= image.height
    return image.resize(
        (width, height), Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR, box
    )


def scale_image(image, size, channels=3):
    """uint8 (H, W, 3) or (H, W) -> uint8 (*size, channels): what read_image does to a file that holds it."""
    image = _scaled(Image.fromarray(image).convert({1: "L", 3: "RGB"}[channels]), *size[::-1])
    return np.array(image).reshape(*size, channels)


def read_mask(path, size=None, resize="area"):
    """A mask of any of the formats in use -> uint8 (H, W), the covered share of each pixel in 1/255.

    Foreground is what lies above the middle of the range, or 1 where 1 is the file's largest value; UserError where neither is there, but values over 1.
    size: (H, W), or None for the mask's own (then only 0 and 255 occur). resize: "area" averages;
    "nearest" picks single pixels as OpenCV does, which moves the outline by up to half a pixel."""
    return _read_values(
        path, lambda image: _foreground(_mask_levels(image)), size, resize, _by_area
    )


def _read_values(path, values, size, resize, by_area):
    """What values(PIL image) returns of a mask's file, uint8 (H, W), turned upright and scaled: by_area(array, size) where resize is "area"."""
    with _opened(path) as image:
        orientation = _turned(image)
        found = values(image)
    if orientation > 1:
        found = np.asarray(Image.fromarray(found).transpose(UPRIGHT[orientation]))
    if size is None or found.shape == tuple(size):
        return found
    return (
        cv2.resize(found, size[::-1], interpolation=cv2.INTER_NEAREST)
        if resize == "nearest"
        else by_area(found, size)
    )


def _by_area(mask, size):
    """Means of a mask over its smaller pixels: first one way, which takes half the time of both at once."""
    rows = cv2.resize(mask, (mask.shape[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.resize(rows, size[::-1], interpolation=cv2.INTER_AREA)


def read_labels(path, labels, size=None, resize="area"):
    """A mask of several classes -> uint8 (H, W), indices into labels.names and labels.ignore.

    Its values are the indices, or colours of labels.palette. size: (H, W), or None for the mask's own. resize: "area" gives a
    pixel the class that covers most of it; "nearest" picks single pixels. Raises UserError for a value that is no class."""
    return _read_values(path, lambda image: _indices(image, labels), size, resize, _most_covering)


def _most_covering(found, size):
    """The value that covers most of each of the smaller pixels."""
    values = np.unique(found)
    most, result = np.zeros(size, np.uint8), np.full(size, values[0])
    for value in values:
        share = cv2.resize(
            (found == value).view(np.uint8) * np.uint8(255),
            size[::-1],
            interpolation=cv2.INTER_AREA,
        )
        result[share > most] = value
        most = np.maximum(share, most)
    return result


def _indices(image, labels):
    """PIL image -> uint8 (H, W) of class indices. Raises ValueError for values that are none."""
    if labels.palette:
        colours = np.asarray(image.convert("RGB")).astype(np.int32) @ [65536, 256, 1]
        known = np.array(labels.palette) @ [65536, 256, 1]
        order = np.argsort(known)
        places = order[np.searchsorted(known, colours, sorter=order).clip(max=len(known) - 1)]
        if (strange := known[places] != colours).any():
            values, counts = np.unique(colours[strange], return_counts=True)
            raise ValueError(
                f"{', '.join(f'{count} pixels of colour #{value:06x}' for value, count in zip(values[:3], counts))}{' and more' if len(values) > 3 else ''}: no colour of PALETTE; add it"
            )
        return np.where(places < len(labels.names), places, labels.ignore).astype(np.uint8)
    levels = np.asarray(
        image
        if image.mode in ("P", "1")
        else image.convert("L")
        if (deep := _deep(image)) is None
        else deep
    )
    if (
        image.mode.startswith(("RGB", "CMYK", "YCbCr"))
        and np.ptp(np.asarray(image.convert("RGB")), axis=2).any()
    ):
        raise ValueError("it is coloured, and PALETTE is empty; set it to the classes' colours")
    strange = (levels >= len(labels.names)) & (levels != labels.ignore)
    if strange.any():
        values, counts = np.unique(levels[strange], return_counts=True)
        raise ValueError(
            f"{', '.join(f'{count} pixels of value {value}' for value, count in zip(values[:3], counts))}{f' and of {len(values) - 3} other values' if len(values) > 3 else ''}: "
            f"CLASSES has {len(labels.names)} names, 0 to {len(labels.names) - 1}; add names, set PALETTE, or IGNORE_INDEX to the value"
        )
    return levels.astype(np.uint8)


def read_target(path, labels, size=None, resize="area"):
    """read_mask, or with labels read_labels."""
    return (
        read_mask(path, size, resize) if labels is None else read_labels(path, labels, size, resize)
    )


def read_pair(pair, size, channels, mask_resize, labels=None):
    """(image path, mask path) -> read_image and read_target of them."""
    return read_image(pair[0], size, channels), read_target(pair[1], labels, size, mask_resize)


def read_all(pairs, what, **reading):
    """Generator of read_pair of each of the pairs, with a progress bar. Raises UserError behind the last, naming all that cannot be read."""
    faults = []
    with contextlib.closing(
        in_threads(
            lambda pair: attempt(read_pair, pair, **reading),
            pairs,
            f"{what} {pairs[0][0].parent.name}",
        )
    ) as results:
        for result in results:
            if isinstance(result, UserError):
                faults.append(str(result))
            elif not faults:
                yield result
    if faults:
        raise UserError(
            listed(
                f"{len(faults)} of {len(pairs)} pairs in {str(pairs[0][0].parent)!r} cannot be read; "
                "put them right, or let prepare_data.py --skip-bad leave them out",
                faults,
            )
        )


def _mask_levels(image):
    """PIL image -> its grey levels, (H, W) uint8 or uint16."""
    if image.mode == "P":  # in a fraction of the time that convert("L") takes
        indices, palette = np.asarray(image), image.crop((0, 0, 16, 16))
        palette.putdata(range(256))
        palette = np.asarray(palette.convert("L")).reshape(-1)
        already = (
            indices.max() == 1 and palette[0] < palette[1]
        )  # 0 and 1, whatever their colours: Carvana's
        return indices if already else cv2.LUT(indices, palette)
    deep = _deep(image)
    return np.asarray(image.convert("L")) if deep is None else deep


def _foreground(levels):
    """Grey levels -> uint8 (H, W) of 0 and 255. Raises ValueError where some are over 1 and all of them background: class numbers, most likely."""
    highest, middle = levels.max(), np.iinfo(levels.dtype).max // 2
    if 1 < highest <= middle:
        raise ValueError(
            f"its largest value is {highest}; expected 1 or over {middle} for foreground, or CLASSES named, of which the values are numbers"
        )
    middle = 0 if highest == 1 else middle
    return cv2.threshold(levels, middle, 255, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)


def check_pair(image_path, mask_path, labels=None):
    """Read both files to their end -> (list of faults in words, list of warnings in words)."""
    faults, warnings, sizes = [], [], []
    for path in (image_path, mask_path):
        try:
            with _opened(path) as image:
                sizes.append(_upright_size(image))
                if path is image_path:
                    image.draft("RGB", (1, 1))  # the cheapest decoding that still reads every byte
                    _deep(image)
                    image.load()
                    continue
                if labels is not None:
                    _indices(image, labels)
                    continue
                levels = _mask_levels(image)
                values = (
                    sum(map(bool, Image.fromarray(levels).histogram()))
                    if levels.dtype == np.uint8
                    else len(np.unique(levels))
                )
                if values > 2:
                    faults.append(
                        f"{printable(path.name)}: {values} different values in the mask (expected 2: background and foreground; for more, name CLASSES)"
                    )
                elif not _foreground(levels).any():
                    warnings.append(f"{printable(path.name)}: empty mask")
        except UserError as error:
            faults.append(str(error).replace(printable(path), printable(path.name)))
    if len(sizes) == 2:
        faults += _size_fault(image_path, sizes[0], mask_path, sizes[1])
    return faults, warnings
