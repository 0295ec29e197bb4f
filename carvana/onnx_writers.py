"""ONNX files in float32, in 16 bits, and in 8 by ONNX Runtime's static quantization."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from carvana.any_size import AnySize, example_input
from carvana.evaluation import mean_scores
from carvana.export_formats import CALIBRATION_IMAGES, OPSET, Facts, LabeledImage

TARGET_LOSS = 0.0003  # of Dice; layers go back to float until the loss is no larger
NEAR_OUTLINE = 1.0  # logits closer to a decision than this
Run = Callable[[np.ndarray], np.ndarray]  # images (B, C, H, W) -> logits


class Attempt(NamedTuple):
    """A quantized file."""

    loss: float  # of Dice
    description: str  # of the layers that stay in float
    content: bytes


class CalibrationImages(CalibrationDataReader):
    """Images, one after the other, as ONNX Runtime asks for them."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.inputs: Iterator[dict[str, np.ndarray]] = iter({"input": image} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, None after the last."""
        return next(self.inputs, None)


def write_onnx(path: Path, model: nn.Module, facts: Facts, opset: int = OPSET) -> None:
    """Write a model as ONNX of a version of operators, with its constants as metadata."""
    shapes = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    torch.onnx.export(
        AnySize(model).eval(),
        (example_input(model),),
        path,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        opset_version=opset,
        verbose=False,
    )
    _complete(path, facts, opset)


def write_fp16(path: Path, model: nn.Module, facts: Facts, opset: int = OPSET) -> None:
    """Write a model as ONNX whose weights are float16, and whose images and logits float32."""
    write_onnx(path, model, facts, opset)
    half = ONNXModel(convert_float_to_float16(onnx.load(path), keep_io_types=True))
    half.topological_sort()  # the converter appends the first operator to the others
    onnx.save(half.model, path)


def _complete(path: Path, facts: Facts, opset: int) -> None:
    """Add the constants to a file, and let every ONNX Runtime load it that knows its operators."""
    model = onnx.load(path)
    # Exporters write the latest, which older ONNX Runtimes refuse whatever is in the file.
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    _remove_traces(model.graph)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    for value in (*model.graph.input, *model.graph.output):
        for axis, meaning in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = meaning
    onnx.save(model, path)


def _remove_traces(graph: onnx.GraphProto) -> None:
    """Remove where in the source code each operator is from, which old versions do not know."""
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]


def write_int8(
    path: Path,
    model: nn.Module,
    facts: Facts,
    calibration: Sequence[LabeledImage],
    opset: int = OPSET,
) -> str:
    """Write a model as ONNX in 8 bits per channel; return which layers stayed in float.

    Ranges come from the calibration images. What rounding shifts the logits near the outline by,
    on average, is given back to the last bias (after the bias correction of Nagel et al., 2019,
    arXiv:1906.04721). Layers go back to float, a kind at a time, until Dice on other calibration
    images falls by no more than TARGET_LOSS.
    """
    images = [image for image, _ in calibration[:CALIBRATION_IMAGES]]
    choice = calibration[CALIBRATION_IMAGES:]
    unshuffle: int = model.unshuffle  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "float.onnx")
        write_onnx(plain, model, facts, opset)
        run = _session(plain)
        expected = _class_logits(run, images)
        reference = _mean_dice(run, choice, facts)
        attempts: list[Attempt] = []
        for description, excluded in _choices(plain).items():
            quantized = _quantize(plain, path, images, excluded)
            shift = _shift_near_outline(expected, _class_logits(quantized, images))
            shifted = _with_bias(plain, shift.repeat(unshuffle**2))
            quantized = _quantize(shifted, path, images, excluded)
            loss = reference - _mean_dice(quantized, choice, facts)
            attempts.append(Attempt(loss, description, path.read_bytes()))
            if loss <= TARGET_LOSS:
                break
    best = min(attempts, key=lambda attempt: attempt.loss)
    path.write_bytes(best.content)
    _complete(path, facts, opset)
    return (
        f"In int8 {best.description} stayed in float: on {len(choice)} images to choose by, Dice "
        f"is {best.loss:+.5f} lower then."
    )


def _choices(path: Path) -> dict[str, list[str]]:
    """Return {description: names of the layers that stay in float}, in the order to try."""
    nodes = onnx.load(path).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    transposed = [node.name for node in nodes if node.op_type == "ConvTranspose"]
    first = convolutions[:1]
    last = convolutions[-1:]
    return {
        "nothing": [],
        "the last convolution": last,
        "the first and the last convolution": first + last,
        "the transposed convolutions": transposed,
        "the transposed, the first and the last convolutions": transposed + first + last,
    }


def _session(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(None, {"input": images})[0]


def _quantize(source: Path, path: Path, images: Sequence[np.ndarray], excluded: list[str]) -> Run:
    """Write `source` in 8 bits to `path`, and return how to run it."""
    quantize_static(
        source,
        path,
        CalibrationImages(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        nodes_to_exclude=excluded,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return _session(path)


def _class_logits(run: Run, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the logits of all images, (classes, images, h, w)."""
    return np.concatenate([run(image) for image in images]).swapaxes(0, 1)


def _shift_near_outline(expected: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return by how much logits are too low on average where a decision is close, (classes,)."""
    if len(expected) == 1:
        margin = np.abs(expected[0])
    else:
        second, largest = np.sort(expected, axis=0)[-2:]
        margin = largest - second
    near = margin < NEAR_OUTLINE
    if not near.any():
        return np.zeros(len(expected))
    return (expected - logits)[:, near].mean(1)


def _with_bias(path: Path, shift: np.ndarray) -> Path:
    """Return the path of a copy whose last convolution's bias is larger by `shift` (channels,)."""
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    name = last.input[2]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(bias) + shift.astype(np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, name))
    shifted = path.with_name("shifted.onnx")
    onnx.save(model, shifted)
    return shifted


def _mean_dice(run: Run, pairs: Sequence[LabeledImage], facts: Facts) -> float:
    return mean_scores([(run(image)[0], mask) for image, mask in pairs], facts)["dice"]
