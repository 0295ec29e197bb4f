"""Where the time goes, and how much less of it than the plain recipe takes.

python tools/benchmark.py [--parts PART ...]

The plain recipe is what tutorials do: every epoch decodes the full-size files in two workers, and
the network computes in float32 with channels first. It runs in a process of its own, ours in
another, and the two take turns; each figure is the median of --rounds turns. Leave the machine to
it meanwhile.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import config
from carvana import options
from carvana.device import find_device
from carvana.errors import UserError, user_errors
from carvana.files import replacing
from carvana.pairs import check_folders, find_pairs
from carvana.system import link_or_copy, processor_name
from carvana.worker_process import WorkerProcess
from tools.growth import Growth, start_growth
from tools.recipes import OurRecipe, PlainInference, PlainRecipe, start_recipe, timed

INFERENCE = Path(__file__).resolve().parent.parent / "inference.py"
PARTS = ("reading", "loader", "step", "epoch", "evaluation", "inference", "scaling")
SIZE = (config.IMAGE_HEIGHT, config.IMAGE_WIDTH)
Times = dict[str, float]  # recipe -> seconds per image


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = options.make_parser(__doc__)
    add_parts(parser, PARTS)
    options.add_pair_folders(parser, config.TRAIN_IMG_DIR, config.TRAIN_MASK_DIR)
    _add_number(parser, "--features", config.FEATURES, "channels of the network's levels")
    _add_number(parser, "--batch-size", config.BATCH_SIZE, "images a step")
    _add_number(parser, "--steps", 4, "steps in a turn")
    _add_number(parser, "--rounds", 3, "turns of each")
    _add_number(parser, "--scales", [100, 1000, 10_000], "images, for the part scaling")
    _add_number(parser, "--files", 512, "photographs, for the part inference")
    parser.add_argument(
        "--model",
        metavar="FILE",
        default=config.BEST_CHECKPOINT_FILE,
        help="checkpoint, for the part inference; default %(default)s",
    )
    options.add_device_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    return parser


def add_parts(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Add the option that names some of the parts."""
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=parts,
        default=parts,
        metavar="PART",
        help=f"some of {' '.join(parts)}; default: all",
    )


def _add_number(
    parser: argparse.ArgumentParser, name: str, default: int | list[int], description: str
) -> None:
    """Add an option of one whole number, or of several if the default is a list."""
    nargs = "+" if isinstance(default, list) else None
    parser.add_argument(
        name,
        type=int,
        nargs=nargs,
        default=default,
        metavar="N",
        help=f"{description}; default %(default)s",
    )


def parse_args() -> argparse.Namespace:
    """Return the options, checked."""
    args = make_parser().parse_args()
    numbers = (args.batch_size, args.steps, args.rounds, args.files)
    if min(*numbers, *args.features, *args.scales) < 1:
        raise UserError(
            "expected --batch-size, --steps, --rounds, --files, --features and --scales of at "
            "least 1"
        )
    if not Path(args.model).is_file():
        if args.parts != PARTS and "inference" in args.parts:
            raise UserError(
                f"no checkpoint {args.model!r} for the part inference; train one, or name another "
                "with --model"
            )
        args.parts = [part for part in args.parts if part != "inference"]
    options.check_json_folder(args.json)
    check_folders((args.images, args.masks))
    args.size = SIZE
    args.cache_dir = config.CACHE_DIR
    return args


# ---------------------------------------------------------------- the parts of training


def measure_training(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure and print the parts that both recipes have."""
    parts = [part for part in args.parts if part not in ("inference", "scaling")]
    if not parts:
        return
    with _worker(PlainRecipe, args) as plain, _worker(OurRecipe, args) as ours:
        for part in parts:
            rounds = []
            peaks = []
            for _ in range(args.rounds):
                if part == "step":
                    peaks.append(ours.call("peak"))
                rounds.append(plain.call(part) | ours.call(part))
            times = medians(rounds)
            report[part] = times
            note = ""
            if part == "step":
                note = _note_step(report, times, ours.call("flops"), max(peaks))
            if part == "epoch":
                note = _note_epoch(report, times)
            print_table(part, times, note)


def _worker(recipe: type, args: argparse.Namespace) -> contextlib.closing:
    """Return a context with a recipe in a process, whose loaders have workers of their own."""
    return contextlib.closing(WorkerProcess(start_recipe, recipe, args, daemon=False))


def medians(rounds: list[Times]) -> Times:
    """Return the median of each figure over the rounds."""
    return {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}


def _note_step(report: dict[str, Any], times: Times, flops: int, peak: float) -> str:
    report["flops_per_image"] = flops
    report["peak_flops"] = peak
    report["share_of_peak"] = flops / times["ours"] / peak
    return (
        f"{flops / 1e9:.1f} GFLOP per image; ours reaches {100 * report['share_of_peak']:.0f} % of "
        f"the {peak / 1e9:,.0f} GFLOP/s of a large matrix product"
    )


def _note_epoch(report: dict[str, Any], times: Times) -> str:
    report["epoch_to_step"] = times["ours, cached"] / times["ours, step alone"]
    ratio = times["plain"] / times["ours, cached"]
    return (
        f"An epoch with a warm cache takes {report['epoch_to_step']:.3f} times its steps alone; "
        f"the plain recipe takes {ratio:.2f} times ours."
    )


def print_table(part: str, times: Times, note: str = "") -> None:
    """Print how long each recipe takes, also as a multiple of the last row."""
    print(f"\n| {part} | ms per image | images/s | times ours |\n|---|---:|---:|---:|")
    *_, last = times.values()
    for name, seconds in times.items():
        print(f"| {name} | {1000 * seconds:.2f} | {1 / seconds:.1f} | {seconds / last:.2f} |")
    if note:
        print(f"\n{note}")


# ---------------------------------------------------------------- inference as a command


def measure_inference(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure and print how long photographs take to their masks."""
    rounds = []
    with _worker(PlainInference, args) as plain:
        for _ in range(args.rounds):
            ours = run_inference(args, args.files) / args.files
            rounds.append(plain.call("inference") | {"ours, the whole command": ours})
    report["inference"] = medians(rounds)
    report["first_mask_s"] = _median_of(args.rounds, lambda: run_inference(args, 1))
    report["import_torch_s"] = _median_of(
        args.rounds, lambda: timed(lambda: _run([sys.executable, "-c", "import torch"]))
    )
    print_table(
        f"photograph to mask, {args.files} files",
        report["inference"],
        f"The first mask is there {report['first_mask_s']:.1f} s after the start of the process, "
        f"{report['import_torch_s']:.1f} s of which `import torch` takes.",
    )


def _median_of(rounds: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(rounds))


def repeat_photographs(images: str, masks: str, count: int, folder: Path) -> None:
    """Make a folder of so many photographs, links to those of the pairs in turn."""
    folder.mkdir()
    paths = [image.resolve() for image, _ in find_pairs(images, masks)]
    for i in range(count):
        path = paths[i % len(paths)]
        link_or_copy(path, folder / f"{i:06d}{path.suffix}")


def run_inference(args: argparse.Namespace, count: int) -> float:
    """Return the seconds of inference.py, from its start to its end, for so many photographs."""
    with tempfile.TemporaryDirectory() as folder:
        repeat_photographs(args.images, args.masks, count, Path(folder, "photographs"))
        command = [sys.executable, INFERENCE, "--no-overlay", "--img", f"{folder}/photographs"]
        command += ["--out", f"{folder}/out", "--model", args.model, "--device", args.device]
        return timed(lambda: _run(command))


def _run(command: list) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# ---------------------------------------------------------------- how time and memory grow


def measure_growth(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure and print how time and memory grow with the number of images."""
    print(
        "\n| images | finding and pairing, s | decoding into the cache, s | loading an epoch, s "
        "| evaluation, s | private memory, MB |\n" + 6 * "|---:" + "|"
    )
    report["scaling"] = []
    for count in args.scales:
        process = WorkerProcess(start_growth, Growth, args, daemon=False)
        with contextlib.closing(process):
            row = process.call("measure", count)
        report["scaling"].append(row)
        print(
            f"| {count:,} | {row['find_s']:.1f} | {row['decode_s']:.1f} | {row['load_s']:.1f} "
            f"| {row['evaluate_s']:.1f} | {row['private_mb']:.0f} |"
        )


# ---------------------------------------------------------------- report


def describe_machine(device: torch.device) -> str:
    """Return processor, GPU, cores and versions in one line."""
    name = processor_name()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores; {versions}"


def main() -> None:
    """Measure what the options name."""
    args = parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # in the processes started from here
    report = {
        "machine": describe_machine(find_device(args.device)),
        "features": args.features,
        "batch_size": args.batch_size,
        "size": SIZE,
        "steps": args.steps,
        "rounds": args.rounds,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(
        f"{report['machine']}\nfeatures {' '.join(map(str, args.features))}, batches of "
        f"{args.batch_size} at {SIZE[0]}x{SIZE[1]}, medians of {args.rounds} turns of "
        f"{args.steps} steps"
    )
    measure_training(args, report)
    if "inference" in args.parts:
        measure_inference(args, report)
    if "scaling" in args.parts:
        measure_growth(args, report)
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        main()
