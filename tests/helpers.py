"""What several test files share: pictures, models, tiny runs, and scripts as commands."""

import contextlib
import csv
import functools
import importlib.util
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import config
from carvana import export_formats, options
from carvana.checkpoint import read_checkpoint, training_state
from carvana.rendering import ANGLES, new_car, new_studio, render
from model import UNET

ROOT = Path(__file__).resolve().parent.parent
LAST, BEST = "my_checkpoint.pth.tar", "best_checkpoint.pth.tar"
OWN_MODEL = ("--model", BEST)
# Constants of a training that takes a second.
TINY = {
    "IMAGE_HEIGHT": 32,
    "IMAGE_WIDTH": 48,
    "FEATURES": [4, 8],
    "LEARNING_RATE": 0.01,
    "BATCH_SIZE": 4,
    "NUM_WORKERS": 0,
    "PRECISION": "fp32",
}
TIMINGS = ("seconds", "images_per_second", "peak_memory_mb")  # they differ from run to run


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# ---------------------------------------------------------------- pages


@contextlib.contextmanager
def open_browser():
    """Give a browser without a display; skip the test where there is none."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no chromium here")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


# ---------------------------------------------------------------- pictures


def scene(seed, height=48, width=72):
    """Return a rendered photograph of a car, uint8 (H, W, 3), and its mask of 0 and 1."""
    photograph, mask = _render(seed, height, width)
    return photograph.copy(), mask.copy()


@functools.lru_cache(maxsize=200)
def _render(seed, height, width):
    rng = np.random.default_rng(seed)
    car = new_car(rng)
    studio = new_studio(rng)
    return render(car, studio, seed % ANGLES, (height, width), rng)


def ramp(height=40, width=60):
    """Return a smooth color picture, which survives JPEG nearly unchanged."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 2 * x, 200 - 3 * y, 90 + x + y], axis=2).astype(np.uint8)


def class_indices(seed=0, size=(24, 36)):
    """Return a mask of three classes, and some pixels of 255, uint8 (H, W)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, (4, 6), dtype=np.uint8)
    mask = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST)
    mask[rng.random(size) < 0.02] = 255
    return mask


def write_mask(path, mask):
    """Write a mask as Carvana's are: a palette gif of 0 and 1 in black and white."""
    gif = Image.fromarray(mask.astype(np.uint8), "L").convert("P")
    gif.putpalette([0, 0, 0, 255, 255, 255])
    gif.save(path)


def write_pairs(images, masks, cars, angles=2, first=0, **size):
    """Write cars x angles pairs, named and stored as Carvana's."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for car in range(first, first + cars):
        for angle in range(1, angles + 1):
            image, mask = scene(100 * car + angle, **size)
            name = f"{car:012x}_{angle:02d}"
            Image.fromarray(image).save(images / f"{name}.jpg", quality=92)
            write_mask(masks / f"{name}_mask.gif", mask)


def write_parts(folder, cars, angles=2, suffix="_mask"):
    """Write cars x angles pairs of four classes, PARTS, under names that are not Carvana's."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for car in range(cars):
        for angle in range(angles):
            rng = np.random.default_rng([car, angle])
            shape = new_car(rng)
            studio = new_studio(rng)
            image, mask = render(shape, studio, 5 * angle, (48, 72), rng, parts=True)
            name = f"scene{car}-{angle}"
            Image.fromarray(image).save(folder / f"images/{name}.jpg", quality=92)
            Image.fromarray(mask).save(folder / f"masks/{name}{suffix}.png")


def split_folders(folder):
    """Return the folders of training images and masks and of validation images and masks."""
    names = ("train_images", "train_masks", "val_images", "val_masks")
    return [Path(folder, "data", name) for name in names]


def picture_width_height(path):
    """Return (width, height) of a picture that can be read to its end."""
    with Image.open(path) as image:
        image.load()
        return image.size


# ---------------------------------------------------------------- files


def file_contents(folder):
    """Return {relative path: bytes} of all files below a folder, without caches."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def csv_rows(path):
    """Return the rows of a csv file as lists of text."""
    with open(path, newline="") as file:
        return list(csv.reader(file))


class Payload:
    """Unpickled by anything but a careful reader, it makes a file."""

    def __reduce__(self):
        return os.system, ("touch touched",)


# ---------------------------------------------------------------- scripts as commands


class Finished(NamedTuple):
    """What a script ended with."""

    returncode: int
    stdout: str
    stderr: str


needs_onnx = pytest.mark.skipif(
    "onnx" in export_formats.beyond_torch(["onnx"]), reason="this torch is too old to write ONNX"
)


def tiny_options(**changes):
    """Return the words of a command line that set TINY with changes: NUM_EPOCHS=1."""
    arguments = []
    for name, value in (TINY | changes).items():
        values = value if isinstance(value, list | tuple) else [value]
        texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in values]
        arguments += [options.option_name(name), *texts]
    return arguments


def tiny_settings(**changes):
    """Return the constants for train.main of a tiny run."""
    cfg = options.load(config, [])
    return SimpleNamespace(**(vars(cfg) | TINY | {"SAVE_IMAGES_MAX": 1} | changes))


def run_script(folder, script, *arguments, status=0):
    """Run a script in this process, as from the command line in `folder`; check its status.

    It is for tests that are not about processes: importing torch takes seconds. Like a process it
    leaves working folder, arguments, streams, signals and threads as they were.
    """
    argv = [str(ROOT / script), *map(str, arguments)]
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with (
        working_folder(folder),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _process_restored(),
    ):
        code = _exit_code(argv[0])
    finished = Finished(code, _written(out), _written(err))
    return check_status(finished, status)


@contextlib.contextmanager
def working_folder(folder):
    """Make a folder the working folder for a while, as contextlib.chdir of Python 3.11 does."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _process_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _exit_code(script):
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        return exit.code or 0
    return 0


def _written(stream):
    stream.flush()
    return stream.buffer.getvalue().decode()


def script_command(script, *arguments, processes=0, launcher=()):
    """Return the words that start a script; with `processes`, so many of them under torchrun."""
    command = [sys.executable]
    if processes:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", processes, *launcher]
    else:
        command += ["-W", "error::UserWarning:__main__"]
    return [str(word) for word in (*command, ROOT / script, *arguments)]


def run_process(folder, script, *arguments, status=0, env=None, **more):
    """Run a script as a process of its own in `folder`, and check its status.

    Args:
        env: environment variables besides those of this process.
        more: keyword arguments of script_command.
    """
    finished = subprocess.run(
        script_command(script, *arguments, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | (env or {}),
    )
    return check_status(finished, status)


def start_at_once(folder, count, script, *arguments):
    """Run a script in so many processes at once; return their statuses and what they said."""
    started = [
        subprocess.Popen(
            script_command(script, *arguments),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    messages = [process.communicate(timeout=60)[1] for process in started]
    assert not any("Traceback" in message for message in messages)
    return [process.returncode for process in started], messages


def wait_for_end(process):
    """Return the status that a process ends with; kill it if it does not end."""
    try:
        return process.wait(60)
    finally:
        process.kill()


def check_status(finished, status):
    """Return what finished if it ended with the status that was expected, without traceback."""
    assert finished.returncode == status, (
        f"exit {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    )
    if status == 2:
        assert "Traceback" not in finished.stderr
    return finished


def load_tool(name):
    """Return a file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- models and checkpoints


def reference_logits(x, weights, levels, training=False):
    """Return what a tutorial's network computes: plain function calls on a state_dict."""
    skips = []
    for level in range(levels):
        x = _double_conv(x, weights, f"downs.{level}", training)
        skips.append(x)
        x = F.max_pool2d(x, 2, 2)
    x = _double_conv(x, weights, "bottleneck", training)
    for level in range(levels):
        name = f"ups.{2 * level}"
        x = F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
        x = torch.cat((skips[-1 - level], x), dim=1)
        x = _double_conv(x, weights, f"ups.{2 * level + 1}", training)
    return F.conv2d(x, weights["final_conv.weight"], weights["final_conv.bias"])


def _double_conv(x, weights, name, training):
    for conv, norm in ((0, 1), (3, 4)):
        x = F.conv2d(x, weights[f"{name}.conv.{conv}.weight"], padding=1)
        prefix = f"{name}.conv.{norm}"
        x = F.batch_norm(
            x,
            weights[f"{prefix}.running_mean"].clone(),
            weights[f"{prefix}.running_var"].clone(),
            weights[f"{prefix}.weight"],
            weights[f"{prefix}.bias"],
            training=training,
        )
        x = F.relu(x)
    return x


def randomize(model, seed=0):
    """Move BatchNorm's statistics and all biases away from 0 and 1, so that a swap shows."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def no_scaler(device="cpu"):
    """Return a gradient scaler that does nothing."""
    return torch.amp.GradScaler(device, enabled=False)


def write_model(path, features=(4, 8), channels=3, seed=0, **constants):
    """Write the checkpoint of a random network that finds a car in every photograph."""
    torch.manual_seed(seed)
    outputs = 1
    model = randomize(UNET(channels, outputs, list(features), constants.get("UNSHUFFLE", 1)), seed)
    size = {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48}
    model.config = size | {"PRECISION": "fp32", "IN_CHANNELS": channels} | constants
    with torch.no_grad():
        logits = model.eval()(torch.rand(8, channels, 32, 48))
        model.final_conv.bias -= logits.mean()
        model.final_conv.weight /= logits.std()
        model.final_conv.bias /= logits.std()
    optimizer = torch.optim.Adam(model.parameters())
    progress = {"run": "a run", "epoch": 1, "best": 0.5, "history": []}
    torch.save(training_state(model, optimizer, no_scaler(), progress), path)
    return path


def is_same(value: Any, reference: Any) -> bool:
    """Return whether nested dicts, lists and tensors are equal to the last bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype == reference.dtype and torch.equal(value, reference)
    if isinstance(value, dict):
        same_keys = value.keys() == reference.keys()
        return same_keys and all(is_same(value[key], reference[key]) for key in value)
    if isinstance(value, list | tuple):
        return len(value) == len(reference) and all(map(is_same, value, reference))
    return value == reference


def run_result(filename=LAST):
    """Return what a run ended with, without the seconds that it took."""
    state = read_checkpoint(filename)
    history = [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in state["history"]
    ]
    return learned_state(state) | {"history": history}


def learned(filename=LAST):
    """Return run_result without the losses of the training steps.

    Their sums are rounded in another way where an epoch is resumed.
    """
    state = read_checkpoint(filename)
    scores = [(row["dice"], row["full_dice"], row["val_loss"]) for row in state["history"]]
    return learned_state(state) | {"scores": scores}


def learned_state(state):
    """Return the entries of a checkpoint that an interruption must not change."""
    names = ("state_dict", "optimizer", "scaler", "epoch", "best", "random")
    return {name: state[name] for name in names}


def run_with_small_files(folder, limit, script, *arguments):
    """Run a script in a process that can write files of at most `limit` bytes: a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    return subprocess.run(
        script_command(script, *arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)),
    )
