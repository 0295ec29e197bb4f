"""Models that export.py wrote, run as if they were networks of the project."""

import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from carvana.checkpoint import holds_dict
from carvana.device import memory_format, onnx_providers
from carvana.errors import UserError, error_summary, first_few, one_line, torch_advice
from carvana.model_config import TUTORIAL_DEFAULTS, check_model_config
from carvana.schema import MOST_CHANNELS
from carvana.untrusted import (
    Records,
    Refused,
    check_size,
    count_levels,
    is_zip,
    read_records,
    write_records,
)
from carvana.untrusted_pt2 import check_pt2
from carvana.untrusted_tensors import load_tensors
from carvana.untrusted_torchscript import check_torchscript
from carvana.weights import kind_of, network_shape, weight_fault

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
REQUIRED = {"IMAGE_HEIGHT", "IMAGE_WIDTH", "MEAN", "STD", "THRESHOLD"}
MAX_LAYERS = 10_000  # of a pickled network
Run = Callable[[torch.Tensor], torch.Tensor]


class Exported(nn.Module):
    """run(float32 (B, C, H, W)) -> logits (B, classes, H, W), as a module with a .config."""

    def __init__(self, run: Run, config: dict[str, Any], device: torch.device, path: Path) -> None:
        super().__init__()
        self.run = run
        self.config = config
        self.path = path
        # Tells device_of() where the model is.
        self.nothing = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images. Raises UserError if the file computes something else."""
        try:
            logits = self.run(images)
        except Exception as error:  # a hostile graph can raise nearly anything
            if torch_advice(error):
                raise
            raise UserError(_not_exported(self.path, error)) from error
        expected = (len(images), len(self.config["CLASSES"]), *images.shape[2:])
        if logits.shape != expected:
            shapes = f"its logits are of shape {tuple(logits.shape)}, expected {expected}"
            raise UserError(_not_exported(self.path, ValueError(shapes)))
        return logits


def is_exported(path: str | Path) -> bool:
    """Return whether a file is one of export.py's, not a state_dict that others named .pth."""
    path = Path(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    if path.suffix != ".pth":
        return True
    if is_zip(path):
        try:
            check_size(path)
        except Exception:  # load_exported says what is wrong with it
            return True
    return _is_torchscript(path) or not holds_dict(path)


def load_exported(
    path: str | Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    """Return a file of export.py's as a module in eval mode.

    The file may come from a stranger: nothing in it is run or opened by a library before it has
    been checked to be what export.py writes.

    Args:
        network_classes: the network's class, then those of its parts: what a pickled one may
            consist of.

    Raises:
        UserError: the file is not one of export.py's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about what is deprecated in it
            return _load(Path(path), device, network_classes)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged or hostile file can raise nearly anything
        raise UserError(_not_exported(path, error)) from error


def _not_exported(path: str | Path, error: Exception) -> str:
    return (
        f"{one_line(path)} is no model that export.py wrote ({error_summary(error)}); export it "
        "again, or name another"
    )


def _load(
    path: Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    if path.suffix == ".onnx":
        run, config = _load_onnx(path, device)
        return Exported(run, config, device, path).eval()
    if path.suffix == ".pth" and not _is_torchscript(path):
        return _load_whole_model(path, device, network_classes)
    records = read_records(path)
    config = _checked_config(json.loads(records[f"extra/{CONFIG_FILE}"]))
    load = _load_pt2 if path.suffix == ".pt2" else _load_torchscript
    return Exported(load(records, config, device), config, device, path).eval()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the constants that came with a network, complete.

    Raises:
        ValueError: one is not valid, or one is missing that every version of export.py wrote.
    """
    channels = config["IN_CHANNELS"]
    known = check_model_config(config, channels)
    missing = REQUIRED - known.keys()
    if channels not in range(1, MOST_CHANNELS + 1) or missing:
        raise ValueError(f"IN_CHANNELS is {channels}, missing are {sorted(missing)}")
    count_levels(config)
    network = {"IN_CHANNELS": channels, "FEATURES": config["FEATURES"], "PRECISION": "fp32"}
    return TUTORIAL_DEFAULTS | known | network


# ---------------------------------------------------------------- a whole pickled network


def _load_whole_model(
    path: Path, device: torch.device, network_classes: tuple[type[nn.Module], ...]
) -> nn.Module:
    """Return a network of this project with the weights of a pickled one.

    Of the pickled one nothing runs: its attributes could hide methods.
    """
    # Only these classes: nothing else that the file names is imported.
    with torch.serialization.safe_globals([*network_classes, *LAYERS]):
        pickled = load_tensors(path)
    if type(pickled) is not network_classes[0]:
        raise ValueError(f"no UNET but {kind_of(pickled)}")
    weights = _collect_weights(pickled)
    unshuffle = vars(pickled).get("unshuffle", 1)
    check_model_config({"UNSHUFFLE": unshuffle}, channels=1)
    shape = network_shape(weights, unshuffle)
    with torch.device("meta"):  # allocates nothing before the shapes are seen to fit
        model = network_classes[0](**shape)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError("its weights are not those of a UNET") from error
    model.config = _pickled_config(vars(pickled).get("config", {}), shape)
    return model.float().to(device, memory_format=memory_format(device)).eval()


def _collect_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a pickled network's weights by name, without calling anything of it."""
    weights: dict[str, torch.Tensor] = {}
    layers = [("", network)]
    for _ in range(MAX_LAYERS):
        if not layers:
            break
        prefix, layer = layers.pop()
        state = vars(layer)
        weights |= {f"{prefix}{name}": tensor for name, tensor in state["_parameters"].items()}
        weights |= {f"{prefix}{name}": tensor for name, tensor in state["_buffers"].items()}
        layers += [(f"{prefix}{name}.", inner) for name, inner in state["_modules"].items()]
    if layers:
        raise Refused(f"it holds more than {MAX_LAYERS:,} layers")
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    faults = {name: weight_fault(tensor) for name, tensor in weights.items()}
    described = [f"{one_line(name)} {fault}" for name, fault in faults.items() if fault]
    if described:
        raise ValueError(first_few(described))
    return weights


def _pickled_config(config: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """Return the constants of a pickled network, checked; a tutorial's has none."""
    channels = shape["in_channels"]
    outputs = shape["out_channels"]
    if not isinstance(config, dict):
        raise ValueError(f"its constants are {kind_of(config)}")
    known = check_model_config(config, channels)
    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"it is for images of {channels} channels, expected 1 to {MOST_CHANNELS}")
    if "CLASSES" not in known and outputs > 1:
        known["CLASSES"] = [f"class {index}" for index in range(outputs)]
    classes = known.get("CLASSES", TUTORIAL_DEFAULTS["CLASSES"])
    if len(classes) != outputs:
        raise ValueError(f"{len(classes)} CLASSES, but logits of {outputs}")
    return known | {"IN_CHANNELS": channels, "FEATURES": shape["features"]}


# ---------------------------------------------------------------- graphs


def _load_torchscript(records: Records, config: dict[str, Any], device: torch.device) -> nn.Module:
    archive = write_records(check_torchscript(records, len(config["FEATURES"])))
    # torch reads a large file much faster than a buffer.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pth")
        path.write_bytes(archive.getvalue())
        return torch.jit.load(path, map_location=device)


def _load_pt2(records: Records, config: dict[str, Any], device: torch.device) -> "MultipleRun":
    levels = len(config["FEATURES"])
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # its errors are raised too
    archive = write_records(check_pt2(records, levels))
    try:
        program = torch.export.load(archive)
    except RuntimeError as error:  # it points to what it would have logged
        raise ValueError("torch cannot read its graph") from error
    module = program.module(check_guards=False).to(device)  # guards are code; sides are padded
    return MultipleRun(module, config["UNSHUFFLE"] * 2**levels)


class MultipleRun:
    """A module that takes sides of a multiple only, for any sides: padded and cropped back."""

    def __init__(self, module: nn.Module, multiple: int) -> None:
        self.module = module
        self.multiple = multiple

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return self.module(F.pad(images, padding, mode="replicate"))[:, :, :height, :width]


def _load_onnx(path: Path, device: torch.device) -> tuple["OnnxRun", dict[str, Any]]:
    try:
        # Not in requirements.txt.
        import onnxruntime

        from carvana.untrusted_onnx import check_onnx, read_metadata, read_onnx
    except ImportError as error:
        raise UserError(
            f"{one_line(path)} needs {error.name}, which is not installed; "
            "pip install -r requirements-export.txt"
        ) from None
    model = read_onnx(path.read_bytes())
    metadata = read_metadata(model)
    config = _checked_config({name: json.loads(value) for name, value in metadata.items()})
    content = check_onnx(model, len(config["FEATURES"]))
    options = onnxruntime.SessionOptions()
    # Several threads of ours may call at once.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Whatever the first bytes look like.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # its errors are raised too
    providers = onnx_providers(device, onnxruntime.get_available_providers())
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    return OnnxRun(session, device), config


class OnnxRun:
    """An ONNX Runtime session that takes and returns tensors."""

    def __init__(self, session: Any, device: torch.device) -> None:
        self.session = session
        self.device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        (logits,) = self.session.run(None, {"input": images.contiguous().cpu().numpy()})
        return torch.from_numpy(logits).to(self.device)
