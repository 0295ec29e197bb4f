"""Pictures to look at: what the network sees, and where it is wrong."""

import math
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from carvana.classes import BLUE, ORANGE, PINK, Classes
from carvana.errors import UserError, one_line
from carvana.files import replacing, write_image
from carvana.images import Reading, Size, picture_size, read_rgb, shown_channels
from carvana.pairs import Pair

PAPER = (255, 255, 255)  # colors of a sheet
INK = (20, 20, 20)
MUTED = (110, 110, 110)
MARGIN = 8  # pixels, of a sheet
LINE_HEIGHT = 26
FONT_SIZE = 15
COMPARED = ("photograph", "truth", "prediction", "difference")  # columns of compare
BATCH_IMAGES = 16  # of batch_sheet
BATCH_COLUMNS = 4
LARGEST_SIDES = {".jpg": ("JPEG", 65500), ".webp": ("WebP", 16383)}  # pixels; formats' limits
SAVING = {  # how pictures are written, by their ending
    ".jpg": {"quality": 92},
    ".png": {"compress_level": 1},
    ".webp": {"quality": 90, "method": 2},
}
LEVELS = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 1, 3)  # in all channels
PNG_RLE = 3  # zlib's strategy Z_RLE: fast, and masks get as small as by Pillow's best
Row = tuple[str, list[np.ndarray]]  # of a sheet: title, pictures of one height


class PairedDataset(Protocol):
    """What drawing needs of a CarvanaDataset."""

    pairs: list[Pair]
    reading: Reading

    def __len__(self) -> int: ...

    def mask(self, index: int, size: Size | None = None) -> np.ndarray: ...


# ---------------------------------------------------------------- one picture


def overlay(image: np.ndarray, mask: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return a picture with each class of its mask but the first tinted and outlined.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W) of class indices.
        colors: uint8 (256, 3), the color of each index; see Classes.tint_colors().

    Returns:
        uint8 (H, W, 3).
    """
    tinted = image.copy()
    thickness = max(1, round(max(mask.shape) / 400))
    for index in np.unique(mask[mask > 0]):
        region = (mask == index).view(np.uint8)
        color = tuple(colors[index].tolist())
        shades = cv2.addWeighted(LEVELS, 0.6, np.full_like(LEVELS, color), 0.4, 0)
        tinted = cv2.copyTo(cv2.LUT(image, shades), region, tinted)
        contours, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, contours, -1, color, thickness)
    return tinted


def difference(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, ignore: int
) -> np.ndarray:
    """Return a grayed picture that shows where a prediction is wrong.

    Blue was missed, orange was wrongly included, pink is one class taken for another.

    Args:
        image: uint8 (H, W, 3).
        truth: uint8 (H, W) of class indices; nothing is wrong where it is `ignore`.
        prediction: uint8 (H, W) of class indices.

    Returns:
        uint8 (H, W, 3).
    """
    gray = image.mean(axis=2, keepdims=True) * 0.35 + 160
    picture = np.repeat(gray, 3, axis=2).astype(np.uint8)
    wrong = (truth != prediction) & (truth != ignore)
    picture[wrong] = PINK
    picture[wrong & (prediction == 0)] = BLUE
    picture[wrong & (truth == 0)] = ORANGE
    return picture


def color_key(classes: Classes) -> str:
    """Return what the colors of difference() mean, in words."""
    if classes.single:
        return "orange = wrongly included, blue = missed"
    first = classes.names[0]
    return f"orange = wrongly not {first}, blue = wrongly {first}, pink = one class for another"


def mask_image(mask: np.ndarray, classes: Classes) -> Image.Image:
    """Return a hard mask as a PIL image: black and white, or in a palette of class colors."""
    if classes.single:
        return Image.fromarray(mask * np.uint8(255))
    image = Image.fromarray(mask)
    image.putpalette(classes.mask_colors().tobytes())
    return image


def display_size(path: str | Path, height: int) -> Size:
    """Return (height, width) to show a photograph at, no wider than four times its height."""
    return fit_height(picture_size(path), height)


def fit_height(size: Size, height: int) -> Size:
    """Return (height, width) of a picture at another height, cut to four times that."""
    rows, columns = size
    return height, max(1, min(4 * height, round(height * columns / rows)))


def fit_side(size: Size, side: int) -> Size:
    """Return (height, width) of a picture whose longer side is reduced to so many pixels."""
    scale = min(1.0, side / max(size))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


# ---------------------------------------------------------------- files


def save_picture(picture: np.ndarray, path: str | Path, **metadata: Any) -> None:
    """Write a picture, uint8 (H, W, 3) or (H, W, 4), to a .png, .webp or .jpg (no alpha).

    Args:
        metadata: what Pillow saves beside the pixels.

    Raises:
        UserError: it cannot be written, or is too large for its format.
    """
    suffix = Path(path).suffix
    height, width = picture.shape[:2]
    name, largest_side = LARGEST_SIDES.get(suffix, ("", math.inf))
    if max(height, width) > largest_side:
        raise UserError(
            f"{one_line(path)} cannot be written: {width}x{height} pixels, a {name} holds "
            f"{largest_side:,} a side; take --format png, or omit it: add --no-overlay, or remove "
            "--background"
        )
    with replacing(path) as temporary:
        write_image(Image.fromarray(picture), temporary, **SAVING[suffix], **metadata)


def save_mask(mask: np.ndarray, path: str | Path, classes: Classes) -> None:
    """Write a hard mask, uint8 (H, W), as a PNG of 0 and 255, or as a palette PNG of indices.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as temporary:
        write_image(mask_image(mask, classes), temporary, compress_level=1, compress_type=PNG_RLE)


# ---------------------------------------------------------------- sheets of pictures


def sheet(rows: list[Row], heads: tuple[str, ...] = (), foot: str = "") -> np.ndarray:
    """Lay out rows of pictures on a white page.

    Args:
        rows: (title, pictures of one height) each; an empty title takes no space.
        heads: titles of the first row's columns.
        foot: a line below everything.

    Returns:
        uint8 (H, W, 3).
    """
    font = ImageFont.load_default(FONT_SIZE)
    page = Image.new("RGB", _sheet_size(rows, bool(heads), bool(foot)), PAPER)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    if heads:
        for head, x in zip(heads, _column_positions(rows[0][1]), strict=False):
            draw.text((x, y), head, MUTED, font)
        y += LINE_HEIGHT
    for title, pictures in rows:
        if title:
            draw.text((MARGIN, y + 2), title, INK, font)
            y += LINE_HEIGHT
        for picture, x in zip(pictures, _column_positions(pictures), strict=True):
            page.paste(Image.fromarray(picture), (x, y))
        y += pictures[0].shape[0] + MARGIN
    if foot:
        draw.text((MARGIN, y), foot, MUTED, font)
    return np.asarray(page)


def _sheet_size(rows: list[Row], has_heads: bool, has_foot: bool) -> tuple[int, int]:
    """Return (width, height) in pixels of a sheet."""
    widths = [sum(picture.shape[1] + MARGIN for picture in pictures) for _, pictures in rows]
    lines = has_heads + has_foot + sum(bool(title) for title, _ in rows)
    heights = [pictures[0].shape[0] + MARGIN for _, pictures in rows]
    return max(widths) + MARGIN, sum(heights) + lines * LINE_HEIGHT + MARGIN


def _column_positions(pictures: list[np.ndarray]) -> list[int]:
    """Return the x at which each picture of a row begins."""
    positions = [MARGIN]
    for picture in pictures[:-1]:
        positions.append(positions[-1] + picture.shape[1] + MARGIN)
    return positions


def batch_sheet(loader: Any, images: int) -> np.ndarray:
    """Return what the network sees of the epoch's first training images, masks outlined.

    Args:
        loader: a DataLoader of a CarvanaDataset with an EpochSampler.
        images: how many to show; at most BATCH_IMAGES are.

    Returns:
        uint8 (H, W, 3).
    """
    dataset = loader.dataset
    classes = dataset.reading.classes
    epoch = loader.sampler.epoch
    pictures = []
    for index in loader.sampler.order(epoch)[: min(BATCH_IMAGES, images)]:
        image, mask = dataset[epoch, index]  # tensors (C, H, W) and (H, W)
        mask = mask.numpy()
        if classes.single:  # levels of the foreground's share of each pixel
            mask = (mask > 127).view(np.uint8)
        image = shown_channels(image.permute(1, 2, 0).numpy())
        pictures.append(overlay(image, mask, classes.tint_colors()))
    starts = range(0, len(pictures), BATCH_COLUMNS)
    return sheet([("", pictures[start : start + BATCH_COLUMNS]) for start in starts])


# ---------------------------------------------------------------- scored images


def read_shown(
    dataset: PairedDataset, index: int, height: int, scored_size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scored image's photograph and true mask, at a height to show them at.

    They are black if a file has gone since it was scored: that is no reason to end a training.

    Args:
        scored_size: (height, width) that it was scored at, for the width without its file.

    Returns:
        uint8 (H, W, 3), and uint8 (H, W) of class indices.
    """
    path = dataset.pairs[index][0]
    try:
        size = display_size(path, height)
        image = read_rgb(path, size, dataset.reading.pixels)
        return image, dataset.mask(index, size)
    except UserError:
        size = fit_height(scored_size, height)
        return np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)


def compare(dataset: PairedDataset, index: int, scores: dict, height: int = 240) -> Row:
    """Return one scored image as a row of a sheet.

    Args:
        scores: what check_accuracy returned for the data set.
        height: of the pictures, in pixels.

    Returns:
        Name and Dice; photograph, truth, prediction and their difference, uint8 (H, W, 3) each.
    """
    classes = dataset.reading.classes
    masks = scores["masks"]
    photograph, truth = read_shown(dataset, index, height, masks.size(index))
    prediction = masks.resized(index, truth.shape)
    colors = classes.mask_colors()
    pictures = [
        photograph,
        colors[truth],
        colors[prediction],
        difference(photograph, truth, prediction, classes.ignore),
    ]
    name = one_line(dataset.pairs[index][0].name)
    return f"{name}   Dice {scores['images'][index]['dice']:.4f}", pictures


def validation_overview(dataset: PairedDataset, scores: dict) -> np.ndarray:
    """Return a sheet of the worst, the median and the best scored images, three of each.

    scores: what check_accuracy returned for the data set.
    """
    rows = []
    for rank, index in _worst_median_best([row["dice"] for row in scores["images"]]):
        title, pictures = compare(dataset, index, scores)
        rows.append((f"{rank}: {title}", pictures))
    return sheet(rows, COMPARED, color_key(dataset.reading.classes))


def worst_overview(dataset: PairedDataset, scores: dict, count: int) -> np.ndarray:
    """Return a sheet of so many of the worst scored images; for scores see validation_overview."""
    order = np.argsort([row["dice"] for row in scores["images"]], kind="stable")
    rows = [compare(dataset, index, scores) for index in order[:count].tolist()]
    return sheet(rows, COMPARED, color_key(dataset.reading.classes))


def _worst_median_best(dices: list[float]) -> list[tuple[str, int]]:
    """Return (rank, index) of up to three images of each rank, none of them twice."""
    order = np.argsort(dices, kind="stable").tolist()
    count = len(order)
    places = {
        "worst": range(3),
        "median": range(count // 2 - 1, count // 2 + 2),
        "best": range(count - 3, count),
    }
    ranks: dict[int, str] = {}
    for rank, candidates in places.items():
        for place in candidates:
            if 0 <= place < count:
                ranks.setdefault(order[place], rank)
    return [(rank, index) for index, rank in ranks.items()]
