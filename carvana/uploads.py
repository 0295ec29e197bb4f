"""Mask uploaded photographs: from files and choices to files and what a page shows of them."""

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from carvana.classes import Color
from carvana.cutouts import CutoutStyle
from carvana.drawing import save_picture
from carvana.errors import UserError, one_line
from carvana.framing import MARGIN, Framing, check_framing, parse_size
from carvana.images import read_image
from carvana.masking import Masked, MaskingOptions, mask_each, settle_options
from carvana.matting import parse_color
from carvana.photographs import Photograph, find_photographs

KINDS = ("cutout", "background", "overlay", "mask")
FRAMINGS = ("as photographed", "trim", "fit")
CANVAS = "1200x800"  # width and height of fit
MAX_UPLOADS = 50  # photographs at once
PREVIEW_SIDE = 1200  # pixels; browsers are slow with cameras' own sizes
BEFORE = "before.webp"  # endings of the previews
AFTER = "after.webp"


@dataclass(frozen=True)
class Choices:
    """What to make of the photographs, as a page's visitor chooses."""

    kind: str = "cutout"  # of KINDS
    color: str = "white"  # of the background
    background: str | Path | None = None  # a photograph in place of the color
    shadow: bool = False
    framing: str = FRAMINGS[0]
    canvas: str = CANVAS
    margin: float = MARGIN  # share of width and height, left free at each side
    threshold: float = 0.0  # probability above which a pixel is car; 0: the model's own


class Result(NamedTuple):
    """What a photograph has become."""

    file: Path
    before: Path  # what a page shows: the photograph, and the result
    after: Path
    line: str  # name, and how much of it each class covers


def mask_uploads(
    paths: Sequence[str | Path],
    choices: Choices,
    model: nn.Module,
    folder: str | Path,
    note_progress: Callable[[tuple[int, int]], object] | None = None,
) -> tuple[list[Result], list[str]]:
    """Mask photographs as inference.py does.

    Args:
        paths: their files.
        folder: where the results go; it is empty.
        note_progress: called with how many are done, and of how many.

    Returns:
        The results, and for each file that cannot be read why.

    Raises:
        UserError: a choice is wrong, or there are too many photographs.
    """
    if len(paths) > MAX_UPLOADS:
        raise UserError(
            f"expected up to {MAX_UPLOADS} photographs at once, found {len(paths)}; python "
            "inference.py takes any number"
        )
    options = settle_options(masking_options(choices, folder), model)
    photographs, failures, _ = find_photographs([str(path) for path in paths], folder)
    results = []
    with contextlib.closing(mask_each(photographs, model, options)) as outcomes:
        for photograph, outcome in zip(photographs, outcomes, strict=True):
            if isinstance(outcome, UserError):
                failures.append(str(outcome))
            else:
                results.append(_result(photograph, outcome, options))
            if note_progress:
                note_progress((len(results) + len(failures), len(paths)))
    return results, [_without_folders(failure, paths) for failure in failures]


def masking_options(choices: Choices, folder: str | Path) -> MaskingOptions:
    """Return what inference.py would be asked for. Raises UserError for a wrong choice."""
    framing = Framing()
    if choices.framing != FRAMINGS[0]:
        fit = None
        if choices.framing == "fit":
            fit = parse_size(choices.canvas, "canvas")
        framing = Framing(fit, choices.framing == "trim", choices.margin)
        check_framing(framing)
    background = None
    if choices.kind == "background":
        background = _background(choices)
    return MaskingOptions(
        model="the model",
        out=folder,
        overlay=choices.kind == "overlay",
        cutout=choices.kind == "cutout",
        background=background,
        style=CutoutStyle(choices.shadow, framing),
        threshold=choices.threshold or None,
        batch_size=1,
        preview=PREVIEW_SIDE,
    )


def _background(choices: Choices) -> Color | np.ndarray:
    """Return the color (r, g, b) or the photograph uint8 (H, W, 3) to place cars on."""
    if choices.background:
        try:
            return read_image(choices.background)
        except UserError as error:
            raise UserError(_without_folders(str(error), [choices.background])) from error
    color = parse_color(choices.color)
    if color is None:
        raise UserError(
            f"background: expected a color such as white or #c0ffee, found {choices.color!r}"
        )
    return color


def _without_folders(message: str, paths: Sequence[str | Path]) -> str:
    """Return a message with the files' names in place of their paths, which are the server's."""
    for path in paths:
        message = message.replace(one_line(path), one_line(Path(path).name))
    return message


def _result(photograph: Photograph, outcome: Masked, options: MaskingOptions) -> Result:
    """Write what a page shows of a photograph, and return it with the result."""
    file = outcome.written[-1]
    before = photograph.output_path(options.out, BEFORE)
    after = photograph.output_path(options.out, AFTER)
    for picture, path in zip(outcome.previews, (before, after), strict=True):
        save_picture(picture, path)
    return Result(file, before, after, f"{one_line(photograph.path.name)}: {outcome.shares}")


def zip_results(results: Sequence[Result], path: Path) -> None:
    """Write all results into a zip."""
    with zipfile.ZipFile(path, "w") as archive:  # pictures are compressed already
        for result in results:
            archive.write(result.file, result.file.name)
