"""Mask photographs: from their files to masks, overlays, cutouts, a page and a csv."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from carvana import distributed
from carvana.classes import Classes, Color
from carvana.cutouts import CutoutStyle, cut_out
from carvana.device import (
    cast_convolutions,
    choose_threads,
    device_of,
    find_device,
    photographs_at_once,
)
from carvana.drawing import display_size, fit_side, overlay, save_mask, save_picture
from carvana.errors import (
    UserError,
    WriteError,
    bullet_list,
    first_few,
    one_line,
    plural,
    result_or_error,
    warn,
)
from carvana.framing import Placement, place
from carvana.images import (
    PIXELS,
    Pixels,
    Size,
    judge_levels,
    picture_size,
    read_image,
    read_rgb,
    read_saving_options,
)
from carvana.matting import composite
from carvana.model_config import (
    describe_size,
    logit_threshold,
    model_classes,
    model_config,
    network_size,
    set_windows,
)
from carvana.photographs import BACKGROUND, CUTOUT, MASK, OVERLAY, Photograph, in_format
from carvana.predicting import foreground_logits, network_bands, network_logits, upsample
from carvana.reports import THUMBNAIL, Card, least_sure, prediction_card, predictions_page
from carvana.shipped import describe_model
from carvana.submission import Submission, run_lengths
from carvana.submission_settings import run_settings
from carvana.threads import map_in_threads

UNSURE_LOGIT = np.log(9)  # closer to the threshold, a probability is between 0.1 and 0.9


@dataclass(frozen=True)
class MaskingOptions:
    """What to make of each photograph."""

    model: str | Path
    out: str | Path = "outputs"
    save: bool = True  # write files at all
    overlay: bool = True
    cutout: bool = False
    background: Color | np.ndarray | None = None  # a color, or a photograph uint8 (H, W, 3)
    style: CutoutStyle = CutoutStyle()
    format: str | None = None  # of all pictures but masks; None: the usual ones
    rle: str | None = None  # the csv to write
    gallery: int = 0  # photographs in the page; 0: no page
    threshold: float | None = None  # None: the model's own
    levels: int = 0  # of 16-bit photographs; 0: the model's own
    pixels: Pixels = PIXELS  # the model's own, with these levels
    tta: bool = False
    windows: Mapping[str, Any] = field(default_factory=dict)  # TILE, TILE_OVERLAP; {}: the model's
    batch_size: int | None = None  # None: as it suits the device
    preview: int = 0  # pixels of the longer side of Masked.previews; 0: there are none

    @property
    def endings(self) -> list[str]:
        """Return what the names of a photograph's files end with."""
        pictures = {
            OVERLAY: self.overlay,
            CUTOUT: self.cutout,
            BACKGROUND: self.background is not None,
        }
        wanted = [MASK, *(ending for ending, is_wanted in pictures.items() if is_wanted)]
        return [in_format(ending, self.format) for ending in wanted] if self.save else []

    @property
    def needs_photograph(self) -> bool:
        """Whether the photograph itself is needed at its own size."""
        return self.overlay or self.cutout or self.background is not None or self.preview > 0


class Masked(NamedTuple):
    """What has been made of a photograph."""

    shares: str  # of the classes, in words
    written: list[Path]
    runs: str
    card: Card | None
    previews: list[np.ndarray]  # before and after, uint8 (h, w, 3) or (h, w, 4), or nothing


class Prediction(NamedTuple):
    """What a network says of a photograph, at the photograph's own size."""

    mask: np.ndarray  # uint8 (H, W), class indices
    logits: np.ndarray  # float32 (H, W), of everything but the first class against it
    margin: np.ndarray | None  # float32 (H, W), how far each pixel is from another class


def mask_photographs(
    photographs: Sequence[Photograph],
    failures: list[str],
    options: MaskingOptions,
    load_model: Callable[[str | Path, torch.device], nn.Module],
    device_name: str = "auto",
) -> None:
    """Mask photographs and print what becomes of them; of several processes, each its shard.

    Exits with status 1 if some failed; the others are done.

    Args:
        failures: what has failed already, in words.
    """
    with distributed.process_group(find_device(device_name)) as device:
        model = load_model(options.model, device)
        set_windows(model, options.windows)
        options = settle_options(options, model)
        if distributed.FIRST:
            paths = [photograph.path for photograph in photographs]
            oddity = judge_levels(paths, options.pixels.levels)
            if oddity:
                warn(f"warning: {oddity}")
        with contextlib.ExitStack() as stack:
            submission = None
            if options.rle:
                settings = run_settings(
                    options.model, options.threshold, options.tta, options.levels, options.windows
                )
                submission = stack.enter_context(Submission(options.rle, settings))
            run = MaskingRun(options, model, submission)
            run.failures = failures if distributed.FIRST else []
            run.mask_shard(photographs)
        run.finish()


def settle_options(options: MaskingOptions, model: nn.Module) -> MaskingOptions:
    """Return the options with what is the model's own. Raises UserError for what it cannot do."""
    config = model_config(model)
    if not model_classes(model).single and (options.rle or options.threshold):
        raise UserError(
            f"{one_line(options.model)} tells {len(config['CLASSES'])} classes apart; --rle and "
            "--threshold are for models of one"
        )
    pixels = Pixels.from_constants(config)
    return replace(options, pixels=pixels._replace(levels=options.levels or pixels.levels))


class MaskingRun:
    """The photographs that have been masked, and what became of them."""

    def __init__(
        self, options: MaskingOptions, model: nn.Module, submission: Submission | None
    ) -> None:
        self.options = options
        self.model = model
        self.submission = submission
        self.done = 0
        self.rows = 0  # that are new in the csv
        self.rows_before = len(submission.done) if submission else 0
        self.failures: list[str] = []
        self.cards: list[Card] = []
        self.seconds = 0.0

    def mask_shard(self, photographs: Sequence[Photograph]) -> None:
        """Mask those of this process's photographs that lack their row or one of their pictures."""
        if self.submission:
            # Asked in one process: others may soon write what it looks for.
            find_wanted = functools.partial(self._wanted, photographs, self.submission)
            wanted = distributed.from_first(find_wanted)
            photographs = [photographs[index] for index in wanted]
        photographs = [photographs[index] for index in distributed.shard(len(photographs))]
        if photographs:
            self._print_start()
        started = time.perf_counter()
        # Closed at once if a row cannot be written: the threads of what follows end.
        with contextlib.closing(mask_each(photographs, self.model, self.options)) as results:
            for photograph, result in zip(photographs, results, strict=True):
                if isinstance(result, UserError):
                    self.failures.append(str(result))
                else:
                    self._note(photograph, result)
        # Here all processes wait for the last one.
        counts = distributed.all_reduce_sum(torch.tensor([self.done, self.rows]))
        self.done, self.rows = counts.tolist()
        self.seconds = time.perf_counter() - started

    def _wanted(self, photographs: Sequence[Photograph], submission: Submission) -> list[int]:
        """Return the indices of those that lack their row in the csv, or one of their pictures.

        Prints which have changed since their rows were written.
        """
        wanted = []
        changed = []
        for index, photograph in enumerate(photographs):
            if photograph.csv_name not in submission.done:
                wanted.append(index)
                continue
            paths = [photograph.output_path(self.options.out, end) for end in self.options.endings]
            if not all(path.exists() for path in paths):
                wanted.append(index)
            if submission.is_older_than(photograph.path):
                changed.append(one_line(photograph.path))
        if changed:
            warn(
                f"warning: {first_few(changed)}: changed after {self.options.rle} was written, "
                f"and keep their old rows; to mask them again, remove {self.options.rle}"
            )
        return wanted

    def _print_start(self) -> None:
        """Print which network masks, and where."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        size = f"{parameters / 1e6:.2f} M parameters " if parameters else ""
        where = f"at {describe_size(model_config(self.model))} on {device_of(self.model)}"
        print(f"model: {describe_model(self.options.model)}: {size}{where}")

    def _note(self, photograph: Photograph, result: Masked) -> None:
        if self.submission and photograph.csv_name not in self.submission.done:
            self.submission.add(photograph.csv_name, result.runs)
            self.rows += 1
        line = f"{one_line(photograph.path)}: {result.shares}"
        if result.written:
            line += f" -> {', '.join(one_line(path) for path in result.written)}"
        tqdm.write(line)
        self.done += 1
        if result.card:
            self.cards = least_sure([*self.cards, result.card], self.options.gallery)

    def finish(self) -> None:
        """Print the totals and write the page, in the first process."""
        shards = distributed.gather_dict({distributed.RANK: (self.failures, self.cards)})
        if not distributed.FIRST:
            return
        failures = [failure for rank in sorted(shards) for failure in shards[rank][0]]
        cards = [card for rank in sorted(shards) for card in shards[rank][1]]
        line = (
            f"{plural(self.done, 'photograph')} in {self.seconds:.1f} s, "
            f"{self.done / max(self.seconds, 1e-9):.1f} images/s"
        )
        if self.submission:
            rows = plural(self.rows_before + self.rows, "row")
            line += f"; {self.options.rle} holds {rows}"
        print(line)
        if cards:
            page = Path(self.options.out, "index.html")
            cards = least_sure(cards, self.options.gallery)
            predictions_page(page, cards, self.done, self.options.model)
            print(f"now look at {page}")
        if failures:
            warn(bullet_list(f"{len(failures)} failed:", failures))
            sys.exit(1)


def mask_each(
    photographs: Sequence[Photograph], model: nn.Module, options: MaskingOptions
) -> Generator[Masked | UserError, None, None]:
    """Yield what becomes of each photograph, in order.

    Args:
        options: of settle_options.
    """
    if not photographs:
        return
    cast_convolutions(model)
    batch_size = options.batch_size or photographs_at_once(device_of(model))
    if network_size(model_config(model)) is None:  # pictures of several sizes are no batch
        batch_size = 1
    starts = range(0, len(photographs), batch_size)
    batches = [photographs[start : start + batch_size] for start in starts]
    # Each thread takes its photographs all the way: nothing waits but for the disk and the cores.
    threads, threads_each = choose_threads(device_of(model), len(batches))
    mask_batch = functools.partial(_mask_batch, model=model, options=options)
    results = map_in_threads(mask_batch, batches, "predicting", " batches", threads)
    with _torch_threads(threads_each), contextlib.closing(results):
        for batch in results:
            yield from batch


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Have torch compute with that many threads in each of ours, and then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mask_batch(
    batch: Sequence[Photograph], model: nn.Module, options: MaskingOptions
) -> list[Masked | UserError]:
    """Take a batch all the way from files to files."""
    config = model_config(model)
    size = network_size(config)
    images = [
        result_or_error(
            read_image,
            photograph.path,
            size,
            *options.pixels,
        )
        for photograph in batch
    ]
    readable = [image for image in images if not isinstance(image, UserError)]
    bands: Iterator[Iterable[np.ndarray]] = iter(())
    if readable and size is None:
        all_bands = network_bands(model, readable[0][None], options.tta)
        bands = iter([(band[0] for band in all_bands)])
    elif readable:
        logits = network_logits(model, np.stack(readable), options.tta)
        bands = ([image_logits] for image_logits in logits)
    results: list[Masked | UserError] = []
    for photograph, image in zip(batch, images, strict=True):
        if isinstance(image, UserError):
            results.append(image)
            continue
        result = result_or_error(_finish, photograph, next(bands), model, options)
        if isinstance(result, WriteError):  # it would hold for all that follow
            raise result
        results.append(result)
    return results


def _finish(
    photograph: Photograph,
    bands: Iterable[np.ndarray],
    model: nn.Module,
    options: MaskingOptions,
) -> Masked:
    """Go from a photograph's logits to its files.

    Args:
        bands: the logits from the top to the bottom, (C, rows, w) at the network's size.
    """
    size = picture_size(photograph.path)
    network = network_size(model_config(model))
    classes = model_classes(model)
    config = dict(model_config(model))
    if options.threshold:
        config["THRESHOLD"] = options.threshold
    if network:
        bands = (upsample(logits, size) for logits in bands)
    scale = size[0] / network[0] if network else 1.0
    prediction = _decide_bands(bands, size, logit_threshold(config), options)
    shares = _describe_shares(prediction.mask, classes)
    runs = run_lengths(prediction.mask) if options.rle else ""
    written = []
    previews = []
    if options.save:
        drawing = _draw(photograph, prediction, scale, classes, options)
        written = _write_pictures(photograph, prediction.mask, drawing.pictures, classes, options)
        if options.preview:
            pair = _compared(drawing, prediction.mask, classes)
            previews = [_reduce(picture, options.preview) for picture in pair]
    card = None
    if options.gallery:
        unsure = (prediction.margin < UNSURE_LOGIT).mean()
        shown_size = display_size(photograph.path, THUMBNAIL)
        image = read_rgb(photograph.path, shown_size, options.pixels)
        card = prediction_card(image, photograph.name, prediction.mask, shares, unsure, classes)
    return Masked(shares, written, runs, card, previews)


def _decide_bands(
    bands: Iterable[np.ndarray], size: Size, threshold: float, options: MaskingOptions
) -> Prediction:
    """Turn logits at the photograph's size into a prediction; it has only what is needed of them.

    Args:
        bands: the logits from the top to the bottom, (C, rows, W).
        size: of the photograph.
    """
    with_logits = options.cutout or options.background is not None
    mask = np.empty(size, np.uint8)
    logits = np.empty(size if with_logits else (0, 0), np.float32)
    margin = np.empty(size, np.float32) if options.gallery else None
    top = 0
    for band in bands:
        rows = slice(top, top + band.shape[1])
        top = rows.stop
        part = _decide(band, threshold, with_margin=margin is not None)
        if top == size[0] and rows.start == 0:
            return part
        mask[rows] = part.mask
        if with_logits:
            logits[rows] = part.logits
        if margin is not None:
            margin[rows] = part.margin
    return Prediction(mask, logits, margin)


def _decide(logits: np.ndarray, threshold: float, with_margin: bool) -> Prediction:
    """Turn logits (C, H, W) at the photograph's size into a prediction.

    The rule is that of predicting.predict_mask, in NumPy.
    """
    margin = None
    foreground = foreground_logits(logits, threshold)
    if len(logits) == 1:
        if with_margin:
            margin = abs(foreground)
        return Prediction((foreground > 0).view(np.uint8), foreground, margin)
    if with_margin:
        largest_two = np.partition(logits, -2, axis=0)[-2:]
        margin = np.diff(largest_two, axis=0)
    return Prediction(logits.argmax(0).astype(np.uint8), foreground, margin)


def _describe_shares(mask: np.ndarray, classes: Classes) -> str:
    """Return how much of a mask each class covers, the largest first."""
    if classes.single:
        share = cv2.countNonZero(mask) / mask.size
        return f"{one_line(classes.names[0])} {100 * share:.1f} %"
    counts = np.bincount(mask.ravel(), minlength=classes.count)
    return ", ".join(
        f"{one_line(classes.names[index])} {100 * counts[index] / mask.size:.1f} %"
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    )


class Drawing(NamedTuple):
    """A photograph as it is compared, and the pictures besides the mask that are made of it."""

    before: np.ndarray  # uint8 (h, w, 3) or (h, w, 4); empty if no photograph is needed
    pictures: dict[str, np.ndarray]  # by their files' endings


def _draw(
    photograph: Photograph,
    prediction: Prediction,
    scale: float,
    classes: Classes,
    options: MaskingOptions,
) -> Drawing:
    """Draw the pictures that the options ask for."""
    pictures: dict[str, np.ndarray] = {}
    if not options.needs_photograph:
        return Drawing(np.empty((0, 0, 3), np.uint8), pictures)
    image = read_rgb(photograph.path, None, options.pixels)
    before = image
    if options.overlay:
        pictures[OVERLAY] = overlay(image, prediction.mask, classes.tint_colors())
    if options.cutout or options.background is not None:
        cutout, placement = cut_out(image, prediction.logits, scale, options.style)
        if options.cutout:
            pictures[CUTOUT] = cutout
        if options.background is not None:
            pictures[BACKGROUND] = composite(cutout, options.background)
        if placement and options.preview:
            before = place(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), placement)
    return Drawing(before, pictures)


def _write_pictures(
    photograph: Photograph,
    mask: np.ndarray,
    pictures: dict[str, np.ndarray],
    classes: Classes,
    options: MaskingOptions,
) -> list[Path]:
    """Write a photograph's mask, uint8 (H, W), and pictures; return their paths."""
    written = [photograph.output_path(options.out, MASK)]
    save_mask(mask, written[0], classes)
    metadata: dict[str, Any] = {}
    if pictures:
        metadata = read_saving_options(photograph.path)
    for ending, picture in pictures.items():
        path = photograph.output_path(options.out, in_format(ending, options.format))
        save_picture(picture, path, **metadata)
        written.append(path)
    return written


def _compared(drawing: Drawing, mask: np.ndarray, classes: Classes) -> list[np.ndarray]:
    """Return the photograph, and the last of its pictures or else its mask in colors."""
    if drawing.pictures:
        return [drawing.before, list(drawing.pictures.values())[-1]]
    return [drawing.before, classes.mask_colors()[mask]]


def _reduce(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3) or (H, W, 4), its longer side reduced to `side` pixels."""
    size = fit_side(picture.shape[:2], side)
    if picture.shape[2] == 4:  # colors count by their alpha
        return place(picture, Placement(size, size[0] / picture.shape[0], 0, 0))
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
