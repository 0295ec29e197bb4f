"""The formats that a network is exported in: how each is loaded and run."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
RUN_TORCH = "with torch.no_grad():\n    logits = model(torch.from_numpy(images)).numpy()"
RUN_ONNX = 'logits = session.run(None, {"input": images})[0]'
OPSET = 20
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
    multiples_only: bool = False  # takes sides that are multiples of 2**levels * unshuffle only
    remark: str = ""  # for its users

    @property
    def load(self) -> str:
        """Return the Python that loads the file, for users to copy."""
        return self.load_template.format(file=self.file)


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
    "onnx": Format(
        "unet_model_onnx.onnx",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")',
        RUN_ONNX,
        ONNX_MODULES,
    ),
    "int8": Format(
        "unet_model_int8.onnx",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("{file}")',
        RUN_ONNX,
        ONNX_MODULES,
    ),
    "pt2": Format(
        "unet_model.pt2",
        'import torch\nmodel = torch.export.load("{file}").module()',
        RUN_TORCH,
        multiples_only=True,
        remark=TORCH_RUNS_CODE,
    ),
}


def missing_modules(formats: list[str]) -> list[str]:
    """Return the modules that these formats need and that are not installed."""
    needed = {module for name in formats for module in FORMATS[name].modules}
    return sorted(module for module in needed if find_spec(module) is None)
