"""Models that export.py wrote, run as if they were UNETs."""

import json
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from device import INPUT_RULES, sound_input
from model import UNET, DoubleConv
from pictures import UserError, brief, printable

CONFIG = "config.json"  # in a TorchScript file and a .pt2: what in an .onnx is metadata
SUFFIXES = (".onnx", ".pt2", ".pth")
WHOLE_MODEL = [
    UNET,
    DoubleConv,
    nn.ModuleList,
    nn.Sequential,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    set,
]


class Exported(nn.Module):
    """run(float32 (B, C, H, W)) -> logits (B, classes, H, W), as a module with a .config."""

    def __init__(self, run, config, device):
        super().__init__()
        self.run, self.config = run, config
        self.nothing = nn.Parameter(
            torch.empty(0, device=device), requires_grad=False
        )  # tells device_of() where it is

    def forward(self, images):
        return self.run(images)


def load_exported(path, device):
    """A file of export.py's -> a module in eval mode. No pickle in it is run. Raises UserError where it is none."""
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch's own, about what is deprecated in it
            run, config = {".onnx": _onnx, ".pt2": _pt2, ".pth": _pth}[Path(path).suffix](
                path, device
            )
        whole = isinstance(run, UNET)
        known = sound_input(config, run.in_channels if whole else config["IN_CHANNELS"])
        if whole:
            run.config = config | {"IN_CHANNELS": run.in_channels}
            return run
        if config["IN_CHANNELS"] not in (1, 3) or known.keys() != INPUT_RULES.keys():
            raise ValueError("IN_CHANNELS is neither 1 nor 3, or a constant is missing")
        known |= {"IN_CHANNELS": config["IN_CHANNELS"], "FEATURES": config["FEATURES"]}
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        raise UserError(
            f"{printable(path)} is no model that export.py wrote ({brief(error)}); export it again, or name another"
        ) from error
    return Exported(run, known | {"PRECISION": "fp32"}, device).eval()


def _onnx(path, device):
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{printable(path)} needs onnxruntime, which is not installed; pip install onnxruntime"
        ) from None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # several threads of ours may call at once
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] * (
        device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    )
    session = onnxruntime.InferenceSession(
        path, options, providers=[*wanted, "CPUExecutionProvider"]
    )
    config = {
        name: json.loads(value)
        for name, value in session.get_modelmeta().custom_metadata_map.items()
    }
    return lambda images: torch.from_numpy(
        session.run(None, {"input": images.contiguous().cpu().numpy()})[0]
    ).to(device), config


def _pt2(path, device):
    extra = {CONFIG: ""}
    module = torch.export.load(path, extra_files=extra).module().to(device)
    config = json.loads(extra[CONFIG])
    multiple = config["UNSHUFFLE"] * 2 ** len(config["FEATURES"])

    def run(images):  # it takes multiples only
        height, width = images.shape[2:]
        return module(
            F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        )[:, :, :height, :width]

    return run, config


def _pth(path, device):
    if any("/code/" in name for name in zipfile.ZipFile(path).namelist()):  # TorchScript
        extra = {CONFIG: ""}
        module = torch.jit.load(path, map_location=device, _extra_files=extra)
        return module, json.loads(extra[CONFIG])
    with torch.serialization.safe_globals(
        WHOLE_MODEL
    ):  # these classes and no others: nothing else that it names is run
        model = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(model, UNET):
        raise ValueError("no UNET")
    return model.to(memory_format=torch.channels_last).eval(), getattr(model, "config", {})
