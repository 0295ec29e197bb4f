"""Models that export.py wrote, run as if they were networks of the project."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from carvana.checkpoint import holds_dict
from carvana.errors import UserError, error_summary, one_line
from carvana.model_config import MODEL_CONSTANTS, check_model_config

CONFIG_FILE = "config.json"  # in a TorchScript file and a .pt2; an .onnx has metadata instead
SUFFIXES = (".onnx", ".pt2", ".pth")
LAYERS = [  # what a pickled network may be made of, besides the project's own modules
    nn.ModuleList,
    nn.Sequential,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    set,
]
Run = Callable[[torch.Tensor], torch.Tensor]


class Exported(nn.Module):
    """run(float32 (B, C, H, W)) -> logits (B, classes, H, W), as a module with a .config."""

    def __init__(self, run: Run, config: dict[str, Any], device: torch.device) -> None:
        super().__init__()
        self.run = run
        self.config = config
        # Tells device_of() where the model is.
        self.nothing = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        return self.run(images)


def is_exported(path: str | Path) -> bool:
    """Return whether a file is one of export.py's, not a state_dict that others named .pth."""
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    return path.suffix != ".pth" or not holds_dict(path)


def load_exported(
    path: str | Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    """Return a file of export.py's as a module in eval mode.

    Args:
        network_classes: the network's class, then those of its parts: what a pickled one may
            consist of.

    Raises:
        UserError: the file is not one of export.py's.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, about what is deprecated in it
            return _load(Path(path), device, network_classes)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        raise UserError(
            f"{one_line(path)} is no model that export.py wrote ({error_summary(error)}); export "
            "it again, or name another"
        ) from error


def _load(
    path: Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    if path.suffix == ".pth" and not _is_torchscript(path):
        return _load_whole_model(path, device, network_classes)
    loaders = {".onnx": _load_onnx, ".pt2": _load_pt2, ".pth": _load_torchscript}
    run, config = loaders[path.suffix](path, device)
    channels = config["IN_CHANNELS"]
    known = check_model_config(config, channels)
    if channels not in (1, 3) or known.keys() != MODEL_CONSTANTS.keys():
        raise ValueError("IN_CHANNELS is neither 1 nor 3, or a constant is missing")
    known |= {"IN_CHANNELS": channels, "FEATURES": config["FEATURES"], "PRECISION": "fp32"}
    return Exported(run, known, device).eval()


def _load_whole_model(
    path: Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    # Only these classes: nothing else that the file names is run.
    with torch.serialization.safe_globals([*network_classes, *LAYERS]):
        model = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(model, network_classes[0]):
        raise ValueError("no UNET")
    config = getattr(model, "config", {})
    check_model_config(config, model.in_channels)
    model.config = config | {"IN_CHANNELS": model.in_channels}
    return model.to(memory_format=torch.channels_last).eval()


def _is_torchscript(path: Path) -> bool:
    return any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def _load_torchscript(path: Path, device: torch.device) -> tuple[Run, dict[str, Any]]:
    extra_files = {CONFIG_FILE: ""}
    module = torch.jit.load(path, map_location=device, _extra_files=extra_files)
    return module, json.loads(extra_files[CONFIG_FILE])


def _load_onnx(path: Path, device: torch.device) -> tuple[Run, dict[str, Any]]:
    try:
        import onnxruntime  # not one of the requirements
    except ImportError:
        raise UserError(
            f"{one_line(path)} needs onnxruntime, which is not installed; pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    # Several threads of ours may call at once.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    metadata = session.get_modelmeta().custom_metadata_map
    config = {name: json.loads(value) for name, value in metadata.items()}
    return OnnxRun(session, device), config


class OnnxRun:
    """An ONNX Runtime session that takes and returns tensors."""

    def __init__(self, session: Any, device: torch.device) -> None:
        self.session = session
        self.device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        (logits,) = self.session.run(None, {"input": images.contiguous().cpu().numpy()})
        return torch.from_numpy(logits).to(self.device)


def _load_pt2(path: Path, device: torch.device) -> tuple[Run, dict[str, Any]]:
    extra_files = {CONFIG_FILE: ""}
    module = torch.export.load(path, extra_files=extra_files).module().to(device)
    config = json.loads(extra_files[CONFIG_FILE])
    multiple = config["UNSHUFFLE"] * 2 ** len(config["FEATURES"])
    return MultipleRun(module, multiple), config


class MultipleRun:
    """A module that takes sides of a multiple only, for any sides: padded and cropped back."""

    def __init__(self, module: nn.Module, multiple: int) -> None:
        self.module = module
        self.multiple = multiple

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return self.module(F.pad(images, padding, mode="replicate"))[:, :, :height, :width]
