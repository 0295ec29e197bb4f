"""Where a model runs, in what precision, and what its input is there."""

import functools
import math
import os
import re
import shutil
import sys
from importlib.util import find_spec

import torch

from pictures import UserError, cores, printable

LINEAGE_INPUT = {
    "IMAGE_HEIGHT": 160,
    "IMAGE_WIDTH": 240,
    "MEAN": [0.0],
    "STD": [1.0],
    "THRESHOLD": 0.5,
    "MASK_RESIZE": "area",
    "PRECISION": "auto",
    "UNSHUFFLE": 1,
    "CLASSES": ["car"],
    "PALETTE": [],
    "IGNORE_INDEX": 255,
}  # of a model that carries no configuration
INPUT_RULES = {  # what a configuration that comes with a file may say; channels: the network's
    "IMAGE_HEIGHT": lambda value, channels: type(value) is int and 1 <= value <= 16384,
    "IMAGE_WIDTH": lambda value, channels: type(value) is int and 1 <= value <= 16384,
    "MEAN": lambda value, channels: (
        isinstance(value, list)
        and len(value) in (1, channels)
        and all(type(one) in (int, float) and -10 <= one <= 10 for one in value)
    ),
    "STD": lambda value, channels: (
        isinstance(value, list)
        and len(value) in (1, channels)
        and all(type(one) in (int, float) and 1e-6 <= one <= 1000 for one in value)
    ),
    "THRESHOLD": lambda value, channels: type(value) in (int, float) and 0 < value < 1,
    "MASK_RESIZE": lambda value, channels: value in ("area", "nearest"),
    "PRECISION": lambda value, channels: value in ("auto", "bf16", "fp16", "fp32"),
    "CLASSES": lambda value, channels: (
        isinstance(value, list)
        and 1 <= len(value) <= 255
        and all(isinstance(name, str) for name in value)
    ),
    "PALETTE": lambda value, channels: (
        isinstance(value, list)
        and all(
            isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in value
        )
    ),
    "IGNORE_INDEX": lambda value, channels: type(value) is int and 0 <= value <= 255,
    "UNSHUFFLE": lambda value, channels: type(value) is int and 1 <= value <= 8,
}


def sound_input(config, channels):
    """Those constants of a configuration from a file that INPUT_RULES is about. Raises ValueError, in words, where one breaks its rule."""
    known = {name: config[name] for name in INPUT_RULES if name in config}
    faults = [
        f"{name} is {printable(repr(value)):.60}"
        for name, value in known.items()
        if not INPUT_RULES[name](value, channels)
    ]
    if faults:
        raise ValueError("; ".join(faults))
    return known


def find_device(name="auto"):
    """ "auto" -> the first there is of cuda, mps and cpu; another name -> that device, or UserError where it is missing."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if not there[name.split(":")[0]]:
        raise UserError(
            f"DEVICE is {name!r}, but torch {torch.__version__} finds none here; "
            f"use --device auto (it would take {find_device('auto')})"
        )
    return torch.device(name)


def amp_dtype(device, precision="auto"):
    """The dtype that convolutions are computed in on a device.

    auto: bfloat16 where the hardware has it (Ampere and later, CPUs with avx512_bf16 or amx), else
    float16 on CUDA, else float32. torch.cuda.is_bf16_supported() also counts emulation, hence the capability."""
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    if device.type == "cuda":
        return (
            torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        )
    if device.type == "cpu":
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("amx_tile"):
            return torch.bfloat16
    return torch.float32


def config_of(model):
    """The constants a model was made with; the lineage's for a model that carries none."""
    return LINEAGE_INPUT | getattr(unwrapped(model), "config", {})


def unwrapped(model):
    """The network itself, out of what torch.compile and DistributedDataParallel put around it."""
    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    return model


def device_of(model):
    return next(model.parameters()).device


def autocast(model):
    """The context in which a model is run: mixed precision as amp_dtype says."""
    device = device_of(model)
    dtype = amp_dtype(device, config_of(model)["PRECISION"])
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_device(images, masks, model):
    """A batch of a loader -> float32 images (B, C, H, W) and masks on the model's device: float32 (B, 1, H, W), or of several classes int64 (B, H, W).

    uint8 levels become (level / 255 - MEAN) / STD here; floats were normalised by a pipeline and pass."""
    masks = masks.to(device_of(model), non_blocking=True)
    masks = masks.float() if len(config_of(model)["CLASSES"]) == 1 else masks.long()
    return to_input(images, model), masks.unsqueeze(
        1
    ) if masks.dim() == 3 and masks.is_floating_point() else masks


def to_input(images, model):
    """The images' part of to_device."""
    device, config = device_of(model), config_of(model)
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        mean, std = (_levels(tuple(config[name]), device) for name in ("MEAN", "STD"))
        images = (images.float() / 255 - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


@functools.lru_cache
def _levels(values, device):
    """Values per channel as a (1, C, 1, 1) tensor, made once: each copy to a GPU from here would wait for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def refuse_what_cannot_fit(parameters, batch, first_feature, device):
    """UserError where even the least that training takes is more memory than there is: a system short of memory kills without a word.

    batch: (B, H, W). Weights, gradients and two values of the optimizer's for each, and what the first level keeps for its gradients."""
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):  # not on Windows
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    needed = 16 * parameters + 8 * math.prod(batch) * first_feature
    if needed > there:
        raise UserError(
            f"{parameters / 1e6:,.0f} M parameters and batches of {batch[0]} images of {batch[1]}x{batch[2]} take {needed / 1e9:,.0f} GB at least, "
            f"{there / 1e9:,.0f} GB are there; make FEATURES, BATCH_SIZE, IMAGE_HEIGHT or IMAGE_WIDTH smaller"
        )


def choose_workers(device, cached):
    """How many processes a loader takes: none where the network needs all cores and reading takes a hundredth of its time."""
    return 0 if device.type == "cpu" and cached else min(cores(), 8 if device.type == "cuda" else 2)


def keep_half(model):
    """Convolutions' weights in the type that autocast computes in, once for all instead of for each batch; the results stay the same."""
    dtype = amp_dtype(device_of(model), config_of(model)["PRECISION"])
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            module.to(dtype)


def compiling_pays(choice, device, seconds):
    """Whether to torch.compile with so many seconds of training ahead, by the constant COMPILE: on its own where what that needs is there."""
    able = (
        device.type == "cuda"
        and find_spec("triton")
        and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    )
    return choice == "true" or choice == "auto" and bool(able) and seconds > 300


def peak_memory(device):
    """Bytes that this process (on CUDA: its tensors on the GPU) held at most; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
