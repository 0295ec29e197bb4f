"""learning.gif: how a training run gets better, a frame per epoch."""

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from carvana.classes import BLUE, ORANGE, PINK
from carvana.drawing import PairedDataset, color_key, difference, read_shown, sheet
from carvana.files import replacing, write_image

IMAGES = 4
MAX_FRAMES = 60
FRAME_MS = 400
LAST_FRAME_MS = 2000


def add_epoch(
    path: str | Path, dataset: PairedDataset, scores: dict, epoch: int, height: int = 160
) -> None:
    """Add a frame to learning.gif: what is right and wrong about a few validation images.

    The file itself is the memory: its comment numbers its frames. Frames of earlier epochs
    are kept, except by epoch 1, which starts anew. Beyond MAX_FRAMES they are thinned out.

    Args:
        scores: what check_accuracy returned after this epoch.
        height: of the images, in pixels.
    """
    frames: dict[int, Image.Image] = {}
    if epoch > 1:
        frames = {number: frame for number, frame in _read(path).items() if number < epoch}
    frames[epoch] = _in_shared_palette(Image.fromarray(_frame(dataset, scores, epoch, height)))
    while len(frames) > MAX_FRAMES:
        numbers = list(frames)
        kept = set(numbers[::2]) | {epoch}
        frames = {number: frame for number, frame in frames.items() if number in kept}
    _write(path, frames)


def _frame(dataset: PairedDataset, scores: dict, epoch: int, height: int) -> np.ndarray:
    """Return one epoch's picture, uint8 (H, W, 3)."""
    classes = dataset.reading.classes
    masks = scores["masks"]
    count = min(IMAGES, len(dataset))
    pictures = []
    for i in range(count):
        index = round(i * (len(dataset) - 1) / max(1, count - 1))
        photograph, truth = read_shown(dataset, index, height, masks.size(index))
        prediction = masks.resized(index, truth.shape)
        pictures.append(difference(photograph, truth, prediction, classes.ignore))
    title = (
        f"epoch {epoch}   Dice {scores['dice']:.4f} of all validation images   {color_key(classes)}"
    )
    return sheet([(title, pictures)])


def _in_shared_palette(picture: Image.Image) -> Image.Image:
    """Return a picture in the 64 colors that all frames share: difference()'s marks, and grays.

    A palette of its own would blend the rare marks of a late epoch into the grays.
    """
    colors = [*ORANGE, *BLUE, *PINK]
    for gray in (*range(4, 160, 13), *range(160, 256, 2), 255):
        colors += 3 * [gray]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _read(path: str | Path) -> dict[int, Image.Image]:
    """Return {epoch: frame} of an earlier file, as far as there is one and it can be read."""
    frames: dict[int, Image.Image] = {}
    with contextlib.suppress(Exception), Image.open(path, formats=["GIF"]) as image:
        for number in image.info["comment"].split():
            image.seek(len(frames))
            frames[int(number)] = _in_shared_palette(image.convert("RGB"))
    return frames


def _write(path: str | Path, frames: dict[int, Image.Image]) -> None:
    first, *rest = frames.values()
    with replacing(path) as temporary:
        write_image(
            first,
            temporary,
            save_all=True,
            append_images=rest,
            duration=[FRAME_MS] * len(rest) + [LAST_FRAME_MS],
            loop=0,
            comment=" ".join(map(str, frames)).encode(),
        )
