"""The formats that a network is exported in: how each is loaded and run."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
ONNX_TORCH = (2, 7)  # the first whose dynamo exporter succeeds for sides of any size
RUN_TORCH = "with torch.no_grad():\n    logits = model(torch.from_numpy(images)).numpy()"
LOAD_ONNX = 'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")'
RUN_ONNX = 'logits = session.run(None, {"input": images})[0]'
# The first ONNX Runtime that loads each version of ONNX's operators.
OPSETS = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}
OPSET = min(OPSETS)  # a network needs no later one
CALIBRATION_IMAGES = 32  # from which int8's ranges of activations come
CHOICE_IMAGES = 40  # more, on which it is chosen which layers stay in float
TORCH_RUNS_CODE = (
    "torch runs code that is in such a file: load only your own like this; inference.py checks a "
    "file first."
)
Facts = dict[str, Any]  # the constants that are written into a file
LabeledImage = tuple[np.ndarray, np.ndarray]  # float32 (1, C, H, W), mask uint8 (H, W)


class Format(NamedTuple):
    """A format: images, float32 (B, C, H, W), become logits (B, classes, H, W)."""

    file: str
    load_template: str  # Python that loads {file}
    run: str  # Python that runs it
    modules: tuple[str, ...] = ()  # needed to write it, besides the requirements
    torch: tuple[int, int] = (2, 6)  # the oldest that can write it
    multiples_only: bool = False  # takes sides that are multiples of 2**levels * unshuffle only
    remark: str = ""  # for its users

    @property
    def load(self) -> str:
        """Return the Python that loads the file, for users to copy."""
        return self.load_template.format(file=self.file)

    @property
    def is_onnx(self) -> bool:
        """Return whether ONNX Runtime runs it."""
        return self.file.endswith(".onnx")


FORMATS = {
    "weights": Format(
        "unet_weights.pth.tar",
        "import torch, utils  # in this project's folder\n"
        'model = utils.load_model("{file}", "cpu")',
        RUN_TORCH,
    ),
    "pth": Format(
        "unet_model.pth",
        "import torch\n# in this project's folder; runs what is in the file\n"
        'model = torch.load("{file}", weights_only=False)',
        RUN_TORCH,
        remark="Loading it runs code that is in it: only for files that you made yourself.",
    ),
    "torchscript": Format(
        "unet_model_torchjit.pth",
        'import torch\nmodel = torch.jit.load("{file}")',
        RUN_TORCH,
        remark=TORCH_RUNS_CODE,
    ),
    "onnx": Format("unet_model_onnx.onnx", LOAD_ONNX, RUN_ONNX, ONNX_MODULES, ONNX_TORCH),
    "fp16": Format(
        "unet_model_fp16.onnx",
        LOAD_ONNX,
        RUN_ONNX,
        ONNX_MODULES,
        ONNX_TORCH,
        remark="Images and logits are float32. A CPU without arithmetic in 16 bits computes it in "
        "float32: smaller, but no faster there. It needs ONNX Runtime 1.15.",
    ),
    "int8": Format(
        "unet_model_int8.onnx",
        LOAD_ONNX,
        RUN_ONNX,
        ONNX_MODULES,
        ONNX_TORCH,
        remark="ONNX Runtime 1.18 fails on it unless graph_optimization_level of its "
        "SessionOptions is ORT_ENABLE_EXTENDED; versions before and after it do not.",
    ),
    "pt2": Format(
        "unet_model.pt2",
        'import torch\nmodel = torch.export.load("{file}").module()',
        RUN_TORCH,
        torch=(2, 9),  # earlier ones pickle the weights in it
        multiples_only=True,
        remark=TORCH_RUNS_CODE,
    ),
}


def missing_modules(formats: list[str]) -> list[str]:
    """Return the modules that these formats need and that are not installed."""
    needed = {module for name in formats for module in FORMATS[name].modules}
    return sorted(module for module in needed if find_spec(module) is None)


def installed_torch() -> str:
    """Return the installed torch's version, without importing it."""
    return version("torch")


def torch_version() -> tuple[int, int]:
    """Return the first two numbers of the installed torch's version."""
    major, minor = re.findall(r"\d+", installed_torch())[:2]
    return int(major), int(minor)


def beyond_torch(formats: Iterable[str]) -> list[str]:
    """Return the formats that need a newer torch than is installed."""
    installed = torch_version()
    return [name for name in formats if FORMATS[name].torch > installed]
