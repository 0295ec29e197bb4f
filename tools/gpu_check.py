"""Check that this machine's GPU does all that it should, and measure how fast.

python tools/gpu_check.py
python tools/gpu_check.py --parts resuming memory    some of it
python tools/gpu_check.py --images data/train_images --masks data/train_masks   on real photographs

The first epoch in each precision, and compiled; resuming; what happens where the GPU's memory is
short; exported models; two processes, where there are two GPUs; how many images a second pass each
stage. It prints a table for docs/benchmarks.md and a verdict, and exits with status 1 if something
is wrong. Without a GPU it does the same on the CPU, in a small form.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from carvana import options
from carvana.checkpoint import read_checkpoint
from carvana.device import amp_dtype, find_device
from carvana.errors import error_summary, user_errors
from carvana.export_formats import beyond_torch, missing_modules
from carvana.files import replacing
from carvana.pairs import check_folders, find_pairs
from carvana.rendering import render_set
from carvana.worker_process import WorkerProcess
from model import UNET
from tools.benchmark import add_parts, describe_machine, repeat_photographs
from tools.recipes import OurRecipe, ReadyBatches, start_recipe, timed

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("precision", "resuming", "memory", "exports", "processes", "speed", "inference")
CHECKPOINT = "my_checkpoint.pth.tar"
SPARE_MEMORY = 3 * 10**9  # bytes of the GPU that are left where it is made short
HUGE = (4096, 6144)  # a network's size, at which one image takes more than that
DICE_TOLERANCE = 0.05  # between precisions, after one epoch
MASK_TOLERANCE = 0.001  # share of pixels by which an exported model's masks may differ
COMMAND_LIMIT = 240  # seconds that one command may take
OUTPUTS = {  # options of inference.py
    "masks": ("--no-overlay",),
    "masks and overlays": (),
    "masks and cutouts": ("--no-overlay", "--cutout"),
    "a csv of run lengths": ("--no-save", "--rle", "runs.csv"),
}
COMPILED = {"auto": "", "false": ", kernel by kernel", "true": ", torch.compile"}
RESUMED = {  # options of trainings that are resumed
    "fp32, deterministic": ("--precision", "fp32", "--deterministic", "true"),
    "auto, deterministic": ("--deterministic", "true"),
    "fp32": ("--precision", "fp32"),
    "auto": (),
}


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    cars: int  # that are rendered, where no photographs are given
    train: tuple[str, ...]  # options of each training
    compiled: bool  # whether a training with torch.compile is tried too
    resumed: tuple[str, ...]  # names in RESUMED
    formats: tuple[str, ...]  # exports
    networks: tuple[tuple[tuple[int, ...], int], ...]  # FEATURES and BATCH_SIZE, to be timed
    steps: int
    photographs: int
    outputs: tuple[str, ...]  # names in OUTPUTS


FULL = Plan(
    cars=40,
    train=("--preset", "small", "--batch-size", "16"),
    compiled=True,
    resumed=("fp32, deterministic", "auto, deterministic", "fp32", "auto"),
    formats=("torchscript", "pt2", "onnx"),
    networks=(
        ((64, 128, 256, 512), 16),
        ((64, 128, 256, 512), 64),
        ((16, 32, 64, 128), 16),
        ((16, 32, 64, 128), 128),
    ),
    steps=30,
    photographs=1024,
    outputs=("masks", "masks and overlays", "masks and cutouts", "a csv of run lengths"),
)
SMALL = Plan(
    cars=3,
    train=("--features", "4", "8", "--image-height", "32", "--image-width", "48"),
    compiled=False,
    resumed=("auto, deterministic",),
    formats=("pth",),
    networks=(((4, 8), 2),),
    steps=2,
    photographs=4,
    outputs=("masks",),
)


class Check:
    """What has been found so far, and how commands are run."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.device = find_device(args.device)
        self.plan = FULL if self.device.type == "cuda" else SMALL
        self.report: dict[str, Any] = {"machine": describe_machine(self.device)}
        self.faults: list[str] = []

    def expect(self, condition: bool, fault: str) -> None:
        """Note a fault unless the condition holds."""
        if not condition:
            self.faults.append(fault)
            print(f"FAULT: {fault}")

    def succeeded(self, finished: SimpleNamespace, name: str) -> bool:
        """Return whether a command did; note what it says if not."""
        self.expect(not finished.status, f"{name}: {last_line(finished.err)}")
        return not finished.status

    def command(self, *words: object, launcher: tuple = (sys.executable,)) -> SimpleNamespace:
        """Run a script of the project; return its status, stdout, stderr and seconds."""
        script, *arguments = map(str, words)
        started = time.perf_counter()
        process = subprocess.Popen(
            [*launcher, str(ROOT / script), *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=COMMAND_LIMIT)
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed: torchrun ends its processes
            process.communicate()
            status, out, err = -1, "", f"it took over {COMMAND_LIMIT} s"
        seconds = time.perf_counter() - started
        return SimpleNamespace(status=status, out=out, err=err, seconds=seconds)

    def train(self, name: str, *extra: object, launcher: tuple = (sys.executable,)) -> Any:
        """Train in a folder of its own below this one; return what command() does, and .folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        data = ["--train-img-dir", self.args.images, "--train-mask-dir", self.args.masks]
        data += ["--val-img-dir", self.args.images, "--val-mask-dir", self.args.masks]
        files = ["--checkpoint-file", folder / CHECKPOINT, "--saved-images-dir", folder / "saved"]
        files += ["--best-checkpoint-file", folder / "best.pth.tar"]
        files += ["--cache-dir", self.folder / "cache"]
        finished = self.command(
            "train.py",
            *self.plan.train,
            *data,
            *files,
            *("--device", self.device.type, "--gallery-max", 0, "--full-res-every", 0),
            *extra,
            launcher=launcher,
        )
        finished.folder = folder
        return finished


def last_line(text: str) -> str:
    """Return the last line of an output that is not empty."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def print_table(header: str, rows: list[list[str]]) -> None:
    """Print rows as a Markdown table; the first column is text, the others are numbers."""
    columns = header.split(" | ")
    print(f"\n| {header} |\n|---{'|---:' * (len(columns) - 1)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


# ---------------------------------------------------------------- that it is right


def check_precision(check: Check) -> None:
    """Train an epoch in each precision, and compiled: do all learn alike?"""
    precisions = ["fp32", "fp16"]
    if amp_dtype(check.device, "bf16") == torch.bfloat16:
        precisions.append("bf16")
    runs = [(precision, "auto") for precision in precisions]  # on CUDA recorded
    if check.plan.compiled:
        runs += [(precisions[-1], "false"), (precisions[-1], "true")]
    rows = []
    results = check.report["precision"] = []
    check.train("warm", "--num-epochs", 0)  # decodes into the cache
    for precision, compiled in runs:
        name = precision + COMPILED[compiled]
        choices = ("--precision", precision, "--compile", compiled)
        finished = check.train(f"{precision}-{compiled}", "--num-epochs", 1, *choices)
        if not check.succeeded(finished, name):
            continue
        (epoch,) = read_checkpoint(finished.folder / CHECKPOINT)["history"]
        results.append({"name": name, "command_seconds": finished.seconds, **epoch})
        check.expect("not be recorded" not in finished.err, f"{name}: was not recorded")
        numbers = f"{epoch['train_loss']:.4f} {epoch['dice']:.4f}"
        numbers += f" {epoch['images_per_second']:.0f} {epoch['peak_memory_mb']:.0f}"
        rows.append([name, *numbers.split(), f"{finished.seconds:.1f}"])
        difference = abs(epoch["dice"] - results[0]["dice"])
        check.expect(difference < DICE_TOLERANCE, f"{name}: its Dice differs by {difference:.3f}")
    header = "first epoch | train loss | Dice | images/s | memory, MB | the whole command, s"
    print_table(header, rows)


def check_resuming(check: Check) -> None:
    """Compare two epochs in one run with two runs of one epoch each."""
    rows = []
    results = check.report["resuming"] = {}
    check.train("warm", "--num-epochs", 0)
    with ThreadPoolExecutor() as pool:  # nothing is timed here
        trained = list(pool.map(functools.partial(train_twice, check), check.plan.resumed))
    for name, runs in zip(check.plan.resumed, trained, strict=True):
        if not all(check.succeeded(run, f"resuming, {name}") for run in runs):
            continue
        states = [read_checkpoint(run.folder / CHECKPOINT) for run in (runs[0], runs[2])]
        difference = largest_difference(*(state["state_dict"] for state in states))
        dices = [state["history"][-1]["dice"] for state in states]
        results[name] = {"difference": difference, "dice": dices}
        verdict = "bit for bit" if difference == 0 else f"weights differ by up to {difference:.1e}"
        rows.append([name, verdict, f"{dices[0]:.5f}", f"{dices[1]:.5f}"])
        if "deterministic" in name or check.device.type == "cpu":
            check.expect(difference == 0, f"resuming is not exact: {name}")
    print_table("resumed after an epoch | weights | Dice in one run | resumed", rows)


def train_twice(check: Check, name: str) -> list[Any]:
    """Train two epochs in one run, and two in two; return all three runs."""
    folder = re.sub(r"\W+", "-", name)
    extra = (*RESUMED[name], "--schedule", "constant")
    return [
        check.train(f"{folder}-once", "--num-epochs", 2, *extra),
        check.train(f"{folder}-twice", "--num-epochs", 1, *extra),
        check.train(f"{folder}-twice", "--num-epochs", 2, "--load-model", "true", *extra),
    ]


def largest_difference(first: dict, second: dict) -> float:
    """Return the largest difference of two state dicts' floats."""
    differences = [
        (first[name].double() - second[name].double()).abs().max()
        for name in first
        if first[name].is_floating_point()
    ]
    return torch.stack(differences).max().item()  # nan if there is one


@contextlib.contextmanager
def short_memory(device: torch.device) -> Iterator[None]:
    """Leave only SPARE_MEMORY of the GPU free within the block, as another program may."""
    free, _ = torch.cuda.mem_get_info(device)
    block = torch.empty(max(0, free - SPARE_MEMORY), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del block
        torch.cuda.empty_cache()


def check_memory(check: Check) -> None:
    """Run out of the GPU's memory in each script: is it said in words, and nothing lost?"""
    if check.device.type != "cuda":
        print("\nno GPU: its memory cannot run out")
        return
    model = check.folder / "huge.pth.tar"
    write_untrained(model, *HUGE)
    image = find_pairs(check.args.images, check.args.masks)[0][0]
    folder = check.folder / "short"
    large = ("--features", 64, 128, 256, 512, "--batch-size", 256, "--num-epochs", 2)
    common = ("--device", "cuda", "--model", model)
    trained = check.train("short", "--num-epochs", 1)
    if not check.succeeded(trained, "memory"):
        return
    before = (folder / CHECKPOINT).read_bytes()
    with short_memory(check.device):
        outcomes = {
            "train.py": check.train("short", *large),
            "evaluate.py": check.command(
                "evaluate.py", *common, "--images", check.args.images, "--masks", check.args.masks
            ),
            "inference.py": check.command("inference.py", *common, "--img", image),
        }
    rows = []
    for script, finished in outcomes.items():
        message = last_line(finished.err)
        fault = f"{script}, memory: status {finished.status}: {message}"
        said = "GPU's memory is too small" in message and "Traceback" not in finished.err
        check.expect(finished.status == 2 and said, fault)
        rows.append([script, message[:300]])
    kept = list(folder.glob(f"*{CHECKPOINT}*"))
    check.expect(
        any(path.read_bytes() == before for path in kept), "memory: the checkpoint before is lost"
    )
    check.report["memory"] = dict(rows)
    print_table("out of memory | message", rows)


def write_untrained(path: Path, height: int, width: int) -> None:
    """Write the checkpoint of a random default network for images of this size."""
    config = {"IMAGE_HEIGHT": height, "IMAGE_WIDTH": width}
    torch.save({"state_dict": UNET().state_dict(), "config": config}, path)


def check_exports(check: Check) -> None:
    """Mask a photograph with exported models, and compare the masks with the checkpoint's."""
    trained = check.train("exported", "--num-epochs", 1)
    if not check.succeeded(trained, "exports"):
        return
    checkpoint = trained.folder / CHECKPOINT
    formats = [name for name in check.plan.formats if can_be_written(name)]
    arguments = ("--model", checkpoint, "--formats", *formats, "--out", "exports")
    data = ("--images", check.args.images, "--masks", check.args.masks)
    if not check.succeeded(check.command("export.py", *arguments, *data), "export.py"):
        return
    image = find_pairs(check.args.images, check.args.masks)[0][0]
    masks: dict[str, np.ndarray] = {}
    rows = []
    models = [checkpoint, *sorted((check.folder / "exports").glob("*model*.*"))]
    with ThreadPoolExecutor() as pool:
        commands = list(pool.map(functools.partial(mask_by, check, image), models))
    for model, finished in zip(models, commands, strict=True):
        if not check.succeeded(finished, model.name):
            continue
        (path,) = (check.folder / f"masks-{model.name}").glob("*.png")
        masks[model.name] = np.asarray(Image.open(path)) > 0
        if CHECKPOINT not in masks:  # there is nothing to compare with
            continue
        share = float(np.mean(masks[model.name] != masks[CHECKPOINT]))
        check.expect(
            share < MASK_TOLERANCE, f"{model.name}: {100 * share:.2f} % of its mask differ"
        )
        rows.append([model.name, f"{100 * share:.4f} %"])
    check.report["exports"] = rows
    print_table("a mask by | pixels that differ", rows)


def can_be_written(name: str) -> bool:
    """Return whether a format needs nothing that is not installed; if it does, say what."""
    lacks = [*missing_modules([name]), *(["a newer torch"] if beyond_torch([name]) else [])]
    if lacks:
        print(f"{name} is left out, as it needs {' and '.join(lacks)}")
    return not lacks


def mask_by(check: Check, image: Path, model: Path) -> SimpleNamespace:
    """Mask a photograph by a model, into a folder of its own; return what command() does."""
    arguments = ("--img", image, "--model", model, "--out", f"masks-{model.name}")
    return check.command("inference.py", *arguments, "--no-overlay", "--device", check.device.type)


def check_processes(check: Check) -> None:
    """Train an epoch in two processes, on CUDA each with a GPU of its own."""
    if check.device.type == "cuda" and torch.cuda.device_count() < 2:
        print("\none GPU: two processes over NCCL were not tried")
        return
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one = check.train("one", "--num-epochs", 1)
    two = check.train("two", "--num-epochs", 1, launcher=launcher)
    succeeded = [check.succeeded(run, "processes") for run in (one, two)]
    if not all(succeeded):
        return
    dices = [read_checkpoint(run.folder / CHECKPOINT)["history"][0]["dice"] for run in (one, two)]
    check.report["processes"] = dices
    check.expect(abs(dices[0] - dices[1]) < DICE_TOLERANCE, "processes: two learn something else")
    print(f"\nDice after an epoch in one process {dices[0]:.4f}, in two {dices[1]:.4f}")


# ---------------------------------------------------------------- how fast it is


def measure_speed(check: Check) -> None:
    """Print images a second of each stage, and what share of the GPU they use."""
    rows = []
    results = check.report["speed"] = []
    for features, batch_size in check.plan.networks:
        args = SimpleNamespace(
            images=check.args.images,
            masks=check.args.masks,
            size=(160, 240),
            features=list(features),
            batch_size=batch_size,
            steps=check.plan.steps,
            cache_dir=check.folder / "cache",
            device=check.args.device,
        )
        process = WorkerProcess(start_recipe, CachedRecipe, args, daemon=False)
        with contextlib.closing(process) as recipe:
            results.append(time_recipe(recipe) | {"features": features, "batch_size": batch_size})
        rows.append(speed_row(results[-1]))
    print_table(
        "network, batch | loader alone | step, kernel by kernel | step | epoch | the GPU waits "
        "| share of peak | evaluation | at full size too",
        rows,
    )
    peak = max(result["peak"] for result in results)
    print(
        f"\nImages a second at 160x240, augmented, from the cache. Peak: a large matrix product, "
        f"{peak / 1e12:.1f} TFLOP/s in {str(amp_dtype(check.device)).removeprefix('torch.')}."
    )


class CachedRecipe(OurRecipe):
    """What train.py is made of, without the loader that decodes the files in each epoch."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        del self.loaders["ours"]

    def plain_step(self) -> float:
        """Return the seconds per image of steps whose kernels are started one by one."""
        trained, self.trained = self.trained, self.model
        self.train(ReadyBatches(self.ready[:1]))  # its first step takes longer
        seconds = timed(lambda: self.train(self.ready)) / self.images
        self.trained = trained
        return seconds

    def kernels(self) -> float:
        """Return the seconds per image in which a step's kernels run on the GPU; 0 on a CPU."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        if self.device.type != "cuda":
            return 0.0
        with torch.profiler.profile(activities=activities) as profile:
            self.train(self.ready)
        microseconds = sum(event.self_device_time_total for event in profile.key_averages())
        return microseconds / 1e6 / self.images


def time_recipe(recipe: WorkerProcess) -> dict[str, float]:
    """Return seconds per image (of loader, steps and epoch medians of three turns), and the rest.

    That is FLOP per image ("flops") and the GPU's peak in FLOP/s ("peak").
    """
    recipe.call("epoch")  # starts the workers
    times: dict[str, list[float]] = {"loader": [], "plain_step": [], "step": [], "epoch": []}
    for _ in range(3):
        times["plain_step"].append(recipe.call("plain_step"))
        epoch = recipe.call("epoch")
        times["loader"].append(recipe.call("loader")["ours, cached"])
        times["step"].append(epoch["ours, step alone"])
        times["epoch"].append(epoch["ours, cached"])
    recipe.call("evaluation")  # starts its workers
    evaluation = recipe.call("evaluation")
    return {name: statistics.median(values) for name, values in times.items()} | {
        "evaluation": evaluation["ours"],
        "full_evaluation": evaluation["ours, at full size too"],
        "peak": recipe.call("peak"),
        "flops": recipe.call("flops"),
        "kernels": recipe.call("kernels"),
    }


def speed_row(result: dict[str, Any]) -> list[str]:
    """Return a row of the table of speeds."""
    waiting = "-"
    if result["kernels"]:
        waiting = f"{100 * max(0.0, 1 - result['kernels'] / result['epoch']):.0f} %"
    share = result["flops"] / result["step"] / result["peak"]
    return [
        f"{' '.join(map(str, result['features']))}, {result['batch_size']}",
        *(f"{1 / result[name]:.0f}" for name in ("loader", "plain_step", "step", "epoch")),
        waiting,
        f"{100 * share:.0f} %",
        *(f"{1 / result[name]:.0f}" for name in ("evaluation", "full_evaluation")),
    ]


def measure_inference(check: Check) -> None:
    """Print photographs a second from file to file with the weights that come with the project."""
    photographs = check.folder / "photographs"
    repeat_photographs(check.args.images, check.args.masks, check.plan.photographs, photographs)
    rows = []
    results = check.report["inference"] = {}
    for name in check.plan.outputs:
        arguments = ("--img", photographs, "--out", "made", "--device", check.device.type)
        finished = check.command("inference.py", *arguments, *OUTPUTS[name])
        shutil.rmtree(check.folder / "made", ignore_errors=True)
        check.succeeded(finished, f"inference, {name}")
        speed = re.search(r"([\d.]+) images/s", finished.out)
        if speed is None:
            continue
        results[name] = {"per_second": float(speed[1]), "seconds": finished.seconds}
        rows.append([name, speed[1], f"{finished.seconds:.1f}"])
    print_table(
        f"{check.plan.photographs} photographs to | photographs/s | the whole command, s", rows
    )


# ---------------------------------------------------------------- options and report


PART_FUNCTIONS: dict[str, Callable[[Check], None]] = {
    "precision": check_precision,
    "resuming": check_resuming,
    "memory": check_memory,
    "exports": check_exports,
    "processes": check_processes,
    "speed": measure_speed,
    "inference": measure_inference,
}


def parse_args() -> argparse.Namespace:
    """Return the options, checked."""
    parser = options.make_parser(__doc__)
    add_parts(parser, PARTS)
    parser.add_argument("--images", metavar="DIR", help="photographs; default: rendered cars")
    parser.add_argument("--masks", metavar="DIR", help="their masks")
    options.add_device_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    options.check_json_folder(args.json)
    if (args.images is None) != (args.masks is None):
        parser.error("--images and --masks go together")
    if args.images:
        check_folders((args.images, args.masks))
        args.images, args.masks = map(os.path.abspath, (args.images, args.masks))
    return args


def main() -> int:
    """Do what the options name; return the exit status."""
    args = parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # in the processes started from here
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args, Path(folder))
        print(check.report["machine"], flush=True)
        if not args.images:
            render_set(check.folder / "cars", cars=check.plan.cars, val_cars=1)
            args.images = str(check.folder / "cars/train_images")
            args.masks = str(check.folder / "cars/train_masks")
        for part in args.parts:
            started = time.perf_counter()
            try:
                PART_FUNCTIONS[part](check)
            except Exception as error:  # a part that fails must not hide the others
                check.expect(False, f"{part}: {type(error).__name__}: {error_summary(error)}")
            print(f"\n({part}: {time.perf_counter() - started:.0f} s)", flush=True)
        if args.json:
            with replacing(args.json) as temporary:
                report = check.report | {"faults": check.faults}
                temporary.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    if check.faults:
        print("\nverdict: wrong are\n  " + "\n  ".join(check.faults))
        return 1
    print(f"\nverdict: all is well ({', '.join(args.parts)})")
    return 0


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
