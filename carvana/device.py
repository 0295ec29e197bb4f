"""Where a model runs, in what precision, and how its input gets there.

What depends on the device is decided here, and for several processes in distributed.py.
"""

import contextlib
import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from carvana import system
from carvana.errors import UserError
from carvana.model_config import model_classes, model_config
from carvana.threads import cores

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
AMPERE = (8, 0)  # the first compute capability that computes in bfloat16
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "amx_tile")  # of CPUs
STEPS_TO_TRY_KERNELS_FOR = 20_000  # of training, from which it pays
OTHER_STREAM = "The AccumulateGrad node's stream"  # how a harmless warning of torch begins
TURNS = {  # forward passes at once: on CUDA each takes memory, on MPS threads disturb each other
    "cuda": threading.Semaphore(2),
    "mps": threading.Semaphore(1),
}


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
    hence the capability. bf16: on an older GPU float16 too, as cuDNN has no convolutions for it
    there, and a model that was trained on a newer one may say bf16.
    """
    if device.type == "cuda" and precision in ("auto", "bf16"):
        return torch.bfloat16 if _is_ampere(device) else torch.float16
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in BF16_CAPABILITIES):
            return torch.bfloat16
    return torch.float32


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for products of matrices that need few digits, but a wide range.

    bfloat16; float32 on MPS and on GPUs before Ampere, where it is slow or missing.
    """
    if device.type == "mps" or (device.type == "cuda" and not _is_ampere(device)):
        return torch.float32
    return torch.bfloat16


def _is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= AMPERE


def autocast(model: nn.Module, cache: bool = True) -> torch.autocast:
    """Return the context in which a model is run: mixed precision as amp_dtype says.

    Args:
        cache: keep cast weights until the end of the block.
    """
    device = device_of(model)
    dtype = amp_dtype(device, model_config(model)["PRECISION"])
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype, cache_enabled=cache)


def to_device(
    images: torch.Tensor, masks: torch.Tensor, model: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a loader's batch to the model's device, in the form that losses take.

    Args:
        images: uint8 or float (B, C, H, W); see to_input.
        masks: (B, H, W) or (B, 1, H, W). Of a single class: beside uint8 images uint8 levels up
            to 255 (not 0 and 1), else shares in [0, 1].

    Returns:
        float32 images (B, C, H, W), and masks: float32 (B, 1, H, W) of a single class, int64
        (B, H, W) of several.
    """
    masks = _copy(masks, device_of(model))
    if not model_classes(model).single:
        return to_input(images, model), masks.long()
    levels = images.dtype == masks.dtype == torch.uint8
    masks = masks.float() / 255 if levels else masks.float()
    if masks.dim() == 3:
        masks = masks.unsqueeze(1)
    return to_input(images, model), masks


def to_input(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Move images to the model's device as float32 (B, C, H, W) in its memory_format.

    uint8 levels become (level / 255 - MEAN) / STD here; floats were normalized by a pipeline.
    """
    device = device_of(model)
    images = _copy(images, device)
    if images.dtype == torch.uint8:
        config = model_config(model)
        mean = _channel_values(tuple(config["MEAN"]), device)
        std = _channel_values(tuple(config["STD"]), device)
        images = images.float().div_(255).sub_(mean).div_(std)
    return images.contiguous(memory_format=memory_format(device))


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; CUDA copies pinned memory while Python goes on.

    MPS would, too, of memory that may be free by then.
    """
    return tensor.to(device, non_blocking=pinning_pays(device))


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the order in which images and kernels lie in memory there.

    Channels last is faster; on MPS BatchNorm's gradients are wrong with it in many versions.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def resize_by_area(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return images (B, C, H, W) at a size (h, w), each pixel the mean of those that it covers.

    MPS resizes by whole factors only, so a CPU does it for it.
    """
    source = images.cpu() if images.device.type == "mps" else images
    return F.interpolate(source, size=list(size), mode="area").to(images.device)


@functools.lru_cache
def _channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return (1, C, 1, 1) of the values, made once: a copy to a GPU would wait for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


# ---------------------------------------------------------------- kernels


def choose_kernels(deterministic: bool, steps: int) -> None:
    """Take kernels of this process's GPU that give the same bits each time, or else the fastest.

    To find the fastest, cuDNN tries several for each size: 7 to 9 s for a network on an H100, whose
    steps then took 4 % less. It can find others in the next run. In short trainings it takes those
    that it expects to be fast.

    Args:
        steps: of the training.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.backends.cudnn.benchmark = not deterministic and steps >= STEPS_TO_TRY_KERNELS_FOR
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def fused_adam(device: torch.device) -> bool:
    """Return whether torch updates all of Adam's parameters in one kernel there."""
    return device.type in ("cpu", "cuda")


def forward_turn(model: nn.Module) -> AbstractContextManager:
    """Return the context of a forward pass, in which a thread may have to wait for others."""
    return TURNS.get(device_of(model).type, contextlib.nullcontext())


def cast_convolutions(model: nn.Module) -> None:
    """Keep convolutions' weights in the dtype that autocast computes in.

    This is done once instead of for each batch; the results stay the same.
    """
    dtype = amp_dtype(device_of(model), model_config(model)["PRECISION"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)


def has_cuda_graphs(device: torch.device) -> bool:
    """Return whether kernels can be recorded there, to be started together."""
    return device.type == "cuda"


def record_forward(network: nn.Module, shape: torch.Size) -> Callable:
    """Record a network's training passes on CUDA; return what replays them.

    See recorded.RecordedNetwork.

    Args:
        shape: (B, C, H, W) of the images.
    """
    device = device_of(network)
    images = torch.zeros(shape, device=device).contiguous(memory_format=memory_format(device))
    # torch replaces the forward method of what it is given: of a shell, therefore.
    shell = nn.Sequential(network).train()
    with autocast(network, cache=False):  # a graph casts the weights each time
        torch.cuda.make_graphed_callables(shell, (images,))
    warnings.filterwarnings("ignore", OTHER_STREAM)
    replay = shell.__call__  # not forward: torch holds the shell weakly, this keeps it
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch.autograd.grad(replay(images).sum(), parameters)  # raises now if it raises at all
    return replay


def count_nonzero(masks: torch.Tensor) -> torch.Tensor:
    """Return the number of pixels over 0 of each mask, int64 (B,).

    Args:
        masks: uint8 (B, pixels) of 0 and 1.
    """
    if masks.device.type == "cpu":  # NumPy counts several times as fast there
        return torch.tensor([np.count_nonzero(mask) for mask in masks.view(torch.bool).numpy()])
    return masks.count_nonzero(dim=1)


def onnx_providers(device: torch.device, available: Sequence[str]) -> list[str]:
    """Return what ONNX Runtime computes with, the first choice first, of what it has."""
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in available:
        providers.insert(0, "CUDAExecutionProvider")
    return providers


# ---------------------------------------------------------------- random states


def random_states() -> dict[str, Any]:
    """Return the states of torch's generators, that of each GPU too."""
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda_states}


def set_random_states(states: dict[str, Any]) -> None:
    """Go on with the states of random_states; those of GPUs only where there are as many.

    Raises:
        Exception: of nearly any kind, if they are something else.
    """
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


# ---------------------------------------------------------------- processes, threads, memory


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


def choose_threads(device: torch.device, batches: int) -> tuple[int, int]:
    """Return how many batches to predict at once, and the threads that torch has for each.

    A CPU's cores are shared among the batches. A GPU needs none of them: there each core reads
    and writes pictures.
    """
    if device.type != "cpu":
        return cores(), torch.get_num_threads()
    threads = min(cores(), batches)
    return threads, max(1, cores() // threads)


def photographs_at_once(device: torch.device) -> int:
    """Return how many photographs a network sees best in a batch when it masks them.

    One fills a CPU core; the activations of several at full size do not fit its cache.
    """
    return 1 if device.type == "cpu" else 4


def pinning_pays(device: torch.device) -> bool:
    """Return whether batches should lie in memory that the device reads by itself."""
    return device.type == "cuda"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held; on CUDA, its tensors on the GPU.

    0 if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory()
