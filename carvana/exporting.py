"""Export a network in other formats, each proved equal to it before it is kept."""

import functools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from carvana import __version__, system
from carvana.checkpoint import read_checkpoint
from carvana.classes import Classes
from carvana.crops import Crops, find_places
from carvana.device import to_input
from carvana.errors import UserError, error_summary, one_line
from carvana.evaluation import mean_scores
from carvana.export_formats import (
    CALIBRATION_IMAGES,
    CHOICE_IMAGES,
    FORMATS,
    OPSET,
    OPSETS,
    Facts,
    LabeledImage,
)
from carvana.files import replacing
from carvana.format_writers import write_format
from carvana.images import Pixels, read_hard_mask, read_image, read_target
from carvana.model_config import (
    MODEL_CONSTANTS,
    logit_threshold,
    model_classes,
    model_config,
    network_size,
    window_size,
)
from carvana.naming import NAMING, Naming
from carvana.pairs import find_pairs
from carvana.rendering import render_set
from carvana.templating import TEMPLATES, render
from carvana.two_values import settle_values
from carvana.worker_process import WorkerError, WorkerProcess

PROJECT = Path(__file__).parent.parent
TOLERANCE = 1e-4  # of the largest logit, for formats in float32
DICE_TOLERANCE = 5e-5  # likewise
FP16_TOLERANCE = 0.05  # of the largest logit: 0.02 was measured, 0.15 in PyTorch with bfloat16
FP16_DICE_TOLERANCE = 5e-4  # 8e-5 was measured
INT8_MAX_LOSS = 0.001  # of Dice
SCORED_IMAGES = 200
HELD_PIXELS = 125_000_000  # of the images that are scored or calibrated on: 1.5 GB in color
RENDERED = {"cars": 14, "val_cars": 5, "angles": 8}  # where there are no photographs
MIN_CALIBRATION_IMAGES = 8
TURNS = 6  # latency: each format takes a turn, so many times,
RUNS = 8  # with so many runs in each,
WARM_UP_RUNS = 2  # the first of which only wake the threads,
REST_SECONDS = 0.1  # and a pause in which the threads of the one before stop waiting for work
THREADS = 2
CHANNEL_NAMES = {1: "gray", 3: "RGB"}
Folders = tuple[str | Path, str | Path]  # of photographs, of their masks


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and on what to prove it."""

    model: str | Path
    out: str | Path
    formats: list[str]
    scored_folders: Folders | None  # images, masks; None: rendered cars
    calibration_folders: Folders | None  # likewise
    naming: Naming = NAMING
    opset: int = OPSET


class ExportData(NamedTuple):
    """The images that formats are calibrated and scored on, and what they are."""

    calibration: list[LabeledImage]
    calibration_source: str
    scored: list[LabeledImage]
    scored_source: str


@dataclass
class Row:
    """What is measured of a format."""

    max_difference: float = 0.0  # of the logits
    mean_difference: float = 0.0
    largest_logit: float = 0.0
    dice: float = 0.0
    megabytes: float | None = None
    seconds: list[float] = field(default_factory=list)  # of each run of one image

    @property
    def milliseconds(self) -> float:
        """Return the median latency of one image."""
        return 1000 * statistics.median(self.seconds)


# ---------------------------------------------------------------- images


def load_data(options: ExportOptions, model: nn.Module) -> ExportData:
    """Read the images to calibrate and to score on; render cars where there are none.

    Raises:
        UserError: a model of several classes has no photographs, or int8 has too few.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendered = RenderedFolders(Path(folder, "set"), model)
        calibration = []
        if "int8" in options.formats:
            folders, naming = options.calibration_folders, options.naming
            if not folders:
                folders, naming = rendered.folders("train"), NAMING
            calibration = _read(folders, naming, CALIBRATION_IMAGES + CHOICE_IMAGES, model)
        folders, naming = options.scored_folders, options.naming
        if not folders:
            folders, naming = rendered.folders("val"), NAMING
        scored = _read(folders, naming, SCORED_IMAGES, model)
    if "int8" in options.formats and len(calibration) < MIN_CALIBRATION_IMAGES:
        raise UserError(
            f"int8 is calibrated on {len(calibration)} {_describe(options.calibration_folders)}, "
            f"and needs at least {MIN_CALIBRATION_IMAGES}; name others with --calibration and "
            "--calibration-masks"
        )
    if 0 < len(calibration) <= CALIBRATION_IMAGES:  # ranges from all, and the choice on the same
        calibration = calibration * (CALIBRATION_IMAGES // len(calibration) + 1)
    return ExportData(
        calibration,
        _describe(options.calibration_folders),
        scored,
        _describe(options.scored_folders),
    )


class RenderedFolders:
    """Rendered cars in a folder, made when they are first asked for."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder = folder
        self.classes = model_classes(model)
        self.channels = model_config(model)["IN_CHANNELS"]

    def folders(self, split: str) -> Folders:
        """Return the folders of images and masks. Raises UserError for a model of other things."""
        subject = ""
        if not self.classes.single:
            subject = f"{self.classes.count} classes"
        elif self.channels not in CHANNEL_NAMES:
            subject = f"{self.channels} channels"
        if subject:
            raise UserError(
                f"a model of {subject} needs photographs of them: "
                "--calibration and --calibration-masks for int8, --images and --masks to score on"
            )
        if not self.folder.exists():
            render_set(self.folder, **RENDERED)
        return self.folder / f"{split}_images", self.folder / f"{split}_masks"


def _read(folders: Folders, naming: Naming, count: int, model: nn.Module) -> list[LabeledImage]:
    """Read at most `count` pairs, evenly spread over two folders; fewer if they are large."""
    pairs = find_pairs(*folders, naming)
    height, width = window_size(model_config(model))
    count = min(count, max(MIN_CALIBRATION_IMAGES, HELD_PIXELS // (height * width)))
    classes = settle_values([mask for _, mask in pairs], model_classes(model))
    if len(pairs) > count:
        pairs = [pairs[i * len(pairs) // count] for i in range(count)]
    config = model_config(model)
    size = network_size(config)
    pixels = Pixels.from_constants(config)
    images = []
    for image_path, mask_path in pairs:
        image = read_image(image_path, size, *pixels)
        if config["TILE"]:
            image, mask = _read_window(image, mask_path, classes, config["TILE"])
        else:
            mask = read_hard_mask(mask_path, classes)
        images.append((_prepared(image, model), mask))
    return images


def _read_window(
    image: np.ndarray, mask_path: Path, classes: Classes, tile: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a window of a picture and of its mask, where something rare is to be seen."""
    target = read_target(mask_path, classes, image.shape[:2])
    crops = Crops(tile, tile, rare_share=1.0)
    rng = np.random.default_rng(0)
    window = crops.draw(rng, target.shape, find_places(target, classes))
    image, target = (crops.fill(window.cut(levels)) for levels in (image, target))
    if classes.single:
        target = (target > 127).view(np.uint8)
    return image, target


def _prepared(image: np.ndarray, model: nn.Module) -> np.ndarray:
    """Return uint8 (H, W, C) as float32 (1, C, H, W), as the network is fed everywhere."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return to_input(batch, model).contiguous().numpy()


def _describe(folders: Folders | None) -> str:
    return f"photographs of {folders[0]}" if folders else "rendered cars"


# ---------------------------------------------------------------- proof


class SnippetRunner:
    """A file of a format, loaded and run by what a user would type; lives in its own process."""

    def __init__(self, name: str, folder: str) -> None:
        os.chdir(folder)
        sys.path.insert(0, str(PROJECT))
        system.limit_cores(THREADS)
        self.run = FORMATS[name].run
        self.names: dict[str, Any] = {}
        warnings.simplefilter("ignore")
        exec(FORMATS[name].load, self.names)

    def logits(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the logits of each batch of images."""
        results = []
        for images in batches:
            self.names["images"] = images
            exec(self.run, self.names)
            results.append(self.names["logits"])
        return results

    def seconds(self, images: np.ndarray, runs: int) -> list[float]:
        """Return how long each run of the same images takes."""
        self.names["images"] = images
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            exec(self.run, self.names)
            times.append(time.perf_counter() - started)
        return times


class Proof:
    """What a network returns in PyTorch, and how formats compare with it."""

    def __init__(self, model: nn.Module, scored: list[LabeledImage], config: Facts) -> None:
        self.model = model
        self.config = config
        self.images = [image for image, _ in scored]
        self.masks = [mask for _, mask in scored]
        self.checks = self._check_batches()
        self.expected = self.eager(self.checks)
        self.reference = self.dice(self.eager(self.images))
        self.rows = {"PyTorch, float32": Row(dice=self.reference)}
        self.processes: dict[str, WorkerProcess] = {}
        half = self.eager(self.checks, half=True)
        row = measure_differences(half, self.expected)
        row.dice = self.dice(self.eager(self.images, half=True))
        self.rows["PyTorch, bfloat16"] = row

    def _check_batches(self) -> list[np.ndarray]:
        """Return images of four sizes, in batches of 1 to 3."""
        height, width = self.images[0].shape[2:]
        multiple = self.multiple
        sizes = (
            (height + multiple, width + 2 * multiple),
            (height // 2 + 3, width // 2 + 5),
            (multiple // 2 + 1, multiple + 1),
        )
        image = torch.from_numpy(self.images[0])
        odd = [F.interpolate(image, size=size, mode="bilinear").numpy() for size in sizes]
        return [
            self.images[0],
            np.concatenate(self.images[:3]),
            *odd,
            np.concatenate([odd[1], odd[1]]),
        ]

    def eager(self, batches: Sequence[np.ndarray], half: bool = False) -> list[np.ndarray]:
        """Return the logits of each batch in PyTorch, in float32 or bfloat16."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return [self.model(torch.from_numpy(images)).float().numpy() for images in batches]

    def dice(self, logits: Sequence[np.ndarray]) -> float:
        """Return the mean Dice of the scored images, at their masks' own size."""
        pairs = zip((batch[0] for batch in logits), self.masks, strict=True)
        return mean_scores(pairs, self.config)["dice"]

    def add(self, name: str, folder: Path) -> None:
        """Load a format's file from a folder and compare it; its process goes on until drop().

        Raises:
            UserError: it does not load and run, or does not equal the network.
        """
        file = FORMATS[name].file
        try:
            self.processes[name] = WorkerProcess(SnippetRunner, name, str(folder))
            row = self._measure(name)
        except WorkerError as error:
            self.drop(name)
            raise UserError(
                f"{file} cannot be loaded and run ({error_summary(error)}); it was not kept"
            ) from error
        fault = self._fault(name, row)
        if fault:
            self.drop(name)
            raise UserError(f"{file} is not the model: {fault}; it was not kept")
        row.megabytes = Path(folder, file).stat().st_size / 1e6
        self.rows[name] = row

    def drop(self, name: str) -> None:
        """Forget a format, and end its process."""
        self.rows.pop(name, None)
        if name in self.processes:
            self.processes.pop(name).close()

    def _measure(self, name: str) -> Row:
        """Return how a loaded format differs from the network."""
        checks = self.checks
        expected = self.expected
        if FORMATS[name].multiples_only:  # such a format takes two multiples and more
            usable = [i for i, batch in enumerate(checks) if min(batch.shape[2:]) > self.multiple]
            checks = [checks[i] for i in usable]
            expected = [expected[i] for i in usable]
        row = measure_differences(self._call(name, checks), expected)
        row.dice = self.dice(self._call(name, self.images))
        return row

    @property
    def multiple(self) -> int:
        """Return what the network pads sides to a multiple of."""
        return self.model.multiple  # type: ignore[return-value]

    def _call(self, name: str, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return a format's logits of each batch, padded as it needs and cropped back."""
        padded = [self._pad(name, batch) for batch in batches]
        results = zip(self.processes[name].call("logits", padded), batches, strict=True)
        return [logits[..., : batch.shape[2], : batch.shape[3]] for logits, batch in results]

    def _pad(self, name: str, images: np.ndarray) -> np.ndarray:
        """Return float32 (B, C, H, W) as a format takes it, continued as the network does."""
        if not FORMATS[name].multiples_only:
            return images
        height, width = images.shape[2:]
        padding = ((0, 0), (0, 0), (0, -height % self.multiple), (0, -width % self.multiple))
        return np.pad(images, padding, mode="edge")

    def _fault(self, name: str, row: Row) -> str | None:
        """Return why a format is not the network, in words; None if it is."""
        if name == "int8":
            if self.reference - row.dice <= INT8_MAX_LOSS:
                return None
            return (
                f"its Dice is {row.dice:.4f}, the checkpoint's {self.reference:.4f}, and allowed "
                f"is {INT8_MAX_LOSS} less. It was scored on {len(self.images)} images; if they are "
                "few or odd ones, name others with --images and --masks, and with --calibration"
            )
        tolerance, dice_tolerance = TOLERANCE, DICE_TOLERANCE
        if name == "fp16":
            tolerance, dice_tolerance = FP16_TOLERANCE, FP16_DICE_TOLERANCE
        allowed = tolerance * max(1, row.largest_logit)
        if not row.max_difference <= allowed:  # nor is a difference that is not a number
            return f"its logits differ by up to {row.max_difference:.2g}, allowed are {allowed:.2g}"
        if abs(row.dice - self.reference) < dice_tolerance:
            return None
        return f"its Dice is {row.dice:.6f}, the checkpoint's {self.reference:.6f}"

    def measure_latency(self) -> None:
        """Measure how long one image takes on two threads; all formats take turns."""
        torch.set_num_threads(THREADS)
        image = self.images[0]
        for _ in range(TURNS):
            for name, row in self.rows.items():
                time.sleep(REST_SECONDS)
                if name in self.processes:
                    padded = self._pad(name, image)
                    seconds = self.processes[name].call("seconds", padded, RUNS)
                else:
                    seconds = self._eager_seconds(image, half="bfloat16" in name)
                row.seconds += seconds[WARM_UP_RUNS:]

    def _eager_seconds(self, image: np.ndarray, half: bool) -> list[float]:
        times = []
        for _ in range(RUNS):
            started = time.perf_counter()
            self.eager([image], half)
            times.append(time.perf_counter() - started)
        return times

    def close(self) -> None:
        """End the formats' processes."""
        for process in self.processes.values():
            process.close()
        self.processes.clear()


def measure_differences(logits: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Row:
    """Return a row with the differences of two lists of logits."""
    differences = [
        np.abs(batch - reference) for batch, reference in zip(logits, expected, strict=True)
    ]
    return Row(
        max_difference=max(difference.max() for difference in differences),
        mean_difference=float(np.mean([difference.mean() for difference in differences])),
        largest_logit=max(np.abs(reference).max() for reference in expected),
    )


# ---------------------------------------------------------------- export


def export(model: nn.Module, options: ExportOptions) -> None:
    """Write the formats and their README.md; print the table of what was measured.

    Args:
        model: of options.model, on the CPU, in eval mode.

    Raises:
        UserError: formats failed. Their files of an earlier export stay, and README.md is of the
            other formats; if all failed, it stays too.
    """
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    model = model.to(memory_format=torch.contiguous_format)
    data = load_data(options, model)
    facts = _facts(model, options.model)
    proof = Proof(model, data.scored, model_config(model))
    write = functools.partial(
        write_format,
        model=model,
        facts=facts,
        calibration=data.calibration,
        opset=options.opset,
    )
    remarks = {}
    failures = []
    try:
        # Only what is proved replaces what stands in `out`.
        with tempfile.TemporaryDirectory(dir=out, prefix=".", ignore_cleanup_errors=True) as folder:
            for name in options.formats:
                print(f"{FORMATS[name].file} ...", flush=True)
                try:
                    remarks[name] = _export_format(name, write, proof, Path(folder))
                    if name == "int8":
                        remarks[name] += f" Its ranges come from {data.calibration_source}."
                except (UserError, RuntimeError) as error:
                    failures.append(str(error))
            proof.measure_latency()
    finally:
        proof.close()
    table = render("exports_table.md", escape=False, rows=proof.rows, formats=FORMATS)
    print(table)
    if remarks:
        _write_readme(out, table, remarks, facts, options, data)
        print(f"{one_line(out)}/README.md says how each is used")
        _print_earlier_exports(out, remarks)
    if failures:
        raise UserError("\n".join(failures))


def _export_format(name: str, write: Callable[..., str], proof: Proof, staging: Path) -> str:
    """Write a format to staging, a folder in the one for all formats, and move it there if proved.

    Args:
        write: write_format of the name and a path.

    Returns:
        A remark for its users, or "".

    Raises:
        UserError, RuntimeError: it was not moved, for this reason.
    """
    file = FORMATS[name].file
    with replacing(staging / file) as temporary:
        remark = write(name, temporary)
    proof.add(name, staging)
    try:
        with replacing(staging.parent / file) as temporary:
            system.replace(staging / file, temporary)
    except UserError:
        proof.drop(name)
        raise
    return remark


def _facts(model: nn.Module, path: str | Path) -> Facts:
    """Return the constants that a user of an exported file needs."""
    config = model_config(model)
    facts = {name: config[name] for name in (*MODEL_CONSTANTS, "IN_CHANNELS", "FEATURES")}
    facts["DICE"] = read_checkpoint(path).get("best")
    facts["VERSION"] = f"carvana-unet {__version__}, torch {torch.__version__}"
    return facts


def _print_earlier_exports(out: Path, formats: Collection[str]) -> None:
    """Print which files in the folder are not of this export."""
    earlier = [
        item.file
        for name, item in FORMATS.items()
        if name not in formats and (out / item.file).exists()
    ]
    if earlier:
        print(f"of an earlier export, perhaps of another model: {', '.join(earlier)}")


def _write_readme(
    out: Path,
    table: str,
    remarks: dict[str, str],
    facts: Facts,
    options: ExportOptions,
    data: ExportData,
) -> None:
    """Write README.md, and predict.py if there is an ONNX file for it.

    Args:
        remarks: for users of each format that was written, or "".
    """
    reads_channels = facts["IN_CHANNELS"] not in CHANNEL_NAMES or bool(facts["IMAGE_RANGE"])
    smallest = next((name for name in ("int8", "onnx", "fp16") if name in remarks), None)
    text = render(
        "exports_readme.md",
        escape=False,
        model=one_line(Path(options.model).name),
        table=table,
        remarks=[remark for remark in remarks.values() if remark],
        facts=facts,
        window=window_size(facts),
        threshold=logit_threshold(facts),
        class_names=[one_line(name) for name in facts["CLASSES"]],
        multiple=facts["UNSHUFFLE"] * 2 ** len(facts["FEATURES"]),
        images=f"{len(data.scored)} {data.scored_source}",
        runs=TURNS * (RUNS - WARM_UP_RUNS),
        threads=THREADS,
        opset=options.opset,
        onnxruntime=OPSETS[options.opset],
        has_onnx=smallest is not None,
        channels=CHANNEL_NAMES.get(facts["IN_CHANNELS"], "the file's channels in their order"),
        reads_channels=reads_channels,
        formats=[FORMATS[name] for name in remarks],
    )
    files = {"README.md": text}
    if smallest:
        files["predict.py"] = _predict_script(FORMATS[smallest].file, facts, reads_channels)
    for name, content in files.items():
        with replacing(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _predict_script(model: str, facts: Facts, reads_channels: bool) -> str:
    """Return the text of predict.py for a file, with only what this model needs.

    Args:
        reads_channels: as they are stored, with tifffile, where Pillow's gray or RGB is not meant.
    """
    parts = {
        "script": "predict",
        "reading": "read_channels" if reads_channels else "read_picture",
        "logits": "predict_windows" if facts["TILE"] else "predict_whole",
    }
    texts = {
        part: (TEMPLATES / f"{name}.py.template").read_text(encoding="utf-8")
        for part, name in parts.items()
    }
    return Template(texts["script"]).substitute(
        model=model,
        libraries=", tifffile" if reads_channels else "",
        imports="import tifffile\n" if reads_channels else "",
        reading=texts["reading"],
        size='facts["IMAGE_WIDTH"], facts["IMAGE_HEIGHT"]' if facts["IMAGE_HEIGHT"] else "own_size",
        logits=texts["logits"],
    )
