"""Where a model runs, in what precision, and how its input gets there."""

import functools
import math
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from carvana import system
from carvana.distributed import FIRST
from carvana.errors import UserError, plural, warn
from carvana.model_config import model_classes, model_config
from carvana.system import SHARED_MEMORY
from carvana.threads import cores

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
AMPERE = (8, 0)  # the first compute capability that computes in bfloat16
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "amx_tile")  # of CPUs
SHARED_MEMORY_SHARE = 0.8  # of what is free: others use it too
SECONDS_TO_COMPILE_FOR = 300  # of training ahead, from which torch.compile pays


def find_device(name: str = "auto") -> torch.device:
    """Return the named device; "auto": the first available of cuda, mps and cpu.

    Raises:
        UserError: torch finds no such device here.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    best = next(device for device, present in available.items() if present)
    if name == "auto":
        name = best
    if not available.get(name.split(":")[0]):
        raise UserError(
            f"DEVICE is {name!r}, but torch {torch.__version__} finds none here; "
            f"use --device auto (it would take {best})"
        )
    return torch.device(name)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model is on."""
    return next(model.parameters()).device


def amp_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """Return the dtype that convolutions are computed in on a device.

    auto: bfloat16 where the hardware has it (Ampere and later, CPUs with avx512_bf16 or amx),
    else float16 on CUDA, else float32. torch.cuda.is_bf16_supported() also counts emulation,
    hence the capability.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        modern = torch.cuda.get_device_capability(device) >= AMPERE
        return torch.bfloat16 if modern else torch.float16
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in BF16_CAPABILITIES):
            return torch.bfloat16
    return torch.float32


def autocast(model: nn.Module) -> torch.autocast:
    """Return the context in which a model is run: mixed precision as amp_dtype says."""
    device = device_of(model)
    dtype = amp_dtype(device, model_config(model)["PRECISION"])
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_device(
    images: torch.Tensor, masks: torch.Tensor, model: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a loader's batch to the model's device, in the form that losses take.

    Args:
        images: uint8 or float (B, C, H, W); see to_input.
        masks: (B, H, W) or (B, 1, H, W); of a single class shares in [0, 1], or uint8 levels
            beside uint8 images.

    Returns:
        float32 images (B, C, H, W), and masks: float32 (B, 1, H, W) of a single class, int64
        (B, H, W) of several.
    """
    masks = masks.to(device_of(model), non_blocking=True)
    if not model_classes(model).single:
        return to_input(images, model), masks.long()
    levels = images.dtype == masks.dtype == torch.uint8
    masks = masks.float() / 255 if levels else masks.float()
    if masks.dim() == 3:
        masks = masks.unsqueeze(1)
    return to_input(images, model), masks


def to_input(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Move images to the model's device as float32 (B, C, H, W), channels last.

    uint8 levels become (level / 255 - MEAN) / STD here; floats were normalized by a pipeline.
    """
    device = device_of(model)
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        config = model_config(model)
        mean = _channel_values(tuple(config["MEAN"]), device)
        std = _channel_values(tuple(config["STD"]), device)
        images = (images.float() / 255 - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


@functools.lru_cache
def _channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return (1, C, 1, 1) of the values, made once: a copy to a GPU would wait for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def count_parameters(network_class: type[nn.Module], **shape: Any) -> int:
    """Return how many parameters a network of this shape has, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network_class(**shape).parameters())


def check_memory(
    parameters: int, batch: Sequence[int], first_channels: float, device: torch.device
) -> None:
    """Raise UserError if even the least that training takes exceeds the memory there is.

    A system that runs out of memory kills without a message. The least is weights, gradients
    and two optimizer values for each, and what the first level keeps for its gradients.

    Args:
        batch: (images, height, width).
        first_channels: of the first level, per pixel of the image.
    """
    available = system.total_memory()
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    if available is None:
        return
    needed = 16 * parameters + 8 * math.prod(batch) * first_channels
    if needed > available:
        images, height, width = batch
        raise UserError(
            f"{parameters / 1e6:,.0f} M parameters and batches of {images} images of "
            f"{height}x{width} take at least {needed / 1e9:,.0f} GB, but this machine has "
            f"{available / 1e9:,.0f} GB; make FEATURES, BATCH_SIZE, IMAGE_HEIGHT or IMAGE_WIDTH "
            "smaller"
        )


def choose_workers(device: torch.device, cached: bool) -> int:
    """Return how many processes a loader takes.

    0 on a CPU with a cache: the network needs all cores, and reading takes a hundredth of its
    time.
    """
    if device.type == "cpu" and cached:
        return 0
    return min(cores(), 8 if device.type == "cuda" else 2)


def fit_workers(workers: int, bytes_per_worker: int) -> int:
    """Return as many of a loader's workers as shared memory has room for, with a warning if fewer.

    Workers on Linux hand over batches in SHARED_MEMORY, of which a container has 64 MB by default.
    Training and validation can both have batches there, in each process of a machine.
    """
    if not workers or not bytes_per_worker or not os.path.isdir(SHARED_MEMORY):
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    each = 2 * bytes_per_worker * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fitting = min(workers, int(free * SHARED_MEMORY_SHARE // each))
    if fitting < workers and FIRST:
        warn(
            f"warning: {plural(workers, 'worker')} can need {workers * each / 1e6:,.0f} MB of "
            f"{SHARED_MEMORY}, which has {free / 1e6:,.0f} MB free; reading with {fitting} instead "
            "of NUM_WORKERS. docker run --shm-size 2g makes it larger"
        )
    return fitting


def cast_convolutions(model: nn.Module) -> None:
    """Keep convolutions' weights in the dtype that autocast computes in.

    This is done once instead of for each batch; the results stay the same.
    """
    dtype = amp_dtype(device_of(model), model_config(model)["PRECISION"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def compiling_pays(choice: str, device: torch.device, seconds: float) -> bool:
    """Return whether to torch.compile, by the constant COMPILE.

    Args:
        choice: "true", "false", or "auto": on CUDA, if a compiler is there and it pays.
        seconds: of training that lie ahead.
    """
    if choice != "auto":
        return choice == "true"
    if device.type != "cuda" or seconds <= SECONDS_TO_COMPILE_FOR:
        return False
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return find_spec("triton") is not None and any(map(shutil.which, compilers))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held; on CUDA, its tensors on the GPU.

    0 if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory()
