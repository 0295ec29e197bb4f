"""Write a network in each of the export formats."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from carvana.any_size import AnySize, example_input
from carvana.export_formats import FORMATS, OPSET, Facts, LabeledImage
from carvana.exported import CONFIG_FILE


def write_format(
    name: str,
    path: Path,
    model: nn.Module,
    facts: Facts,
    calibration: Sequence[LabeledImage],
    opset: int = OPSET,
) -> str:
    """Write a model in a format; return a remark for its users, or "".

    Args:
        name: one of FORMATS.
        facts: the constants that a user of the file needs.
        calibration: for int8 only.
        opset: of OPSETS, for ONNX only.
    """
    with contextlib.ExitStack() as quiet:  # torch and onnx print much that is of no use to users
        quiet.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        quiet.callback(logging.disable, logging.NOTSET)
        logging.disable(logging.CRITICAL)
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if not FORMATS[name].is_onnx:
            TORCH_WRITERS[name](path, model, facts)
            return ""
        # onnx and onnxruntime are needed for these formats alone.
        from carvana import onnx_writers

        if name == "int8":
            return onnx_writers.write_int8(path, model, facts, calibration, opset)
        write = onnx_writers.write_fp16 if name == "fp16" else onnx_writers.write_onnx
        write(path, model, facts, opset)
    return ""


def _write_weights(path: Path, model: nn.Module, facts: Facts) -> None:
    torch.save({"state_dict": model.state_dict(), "config": facts}, path)


def _write_whole_model(path: Path, model: nn.Module, facts: Facts) -> None:
    torch.save(model, path)


def _write_torchscript(path: Path, model: nn.Module, facts: Facts) -> None:
    traced = torch.jit.trace(AnySize(model).eval(), example_input(model))
    buffer = io.BytesIO()  # writing to a full disk itself, torch aborts the process
    torch.jit.save(traced, buffer, _extra_files={CONFIG_FILE: json.dumps(facts)})
    path.write_bytes(buffer.getvalue())


def _write_pt2(path: Path, model: nn.Module, facts: Facts) -> None:
    multiple: int = model.multiple  # type: ignore[assignment]
    shapes = {
        0: torch.export.Dim("batch"),
        2: multiple * torch.export.Dim("rows"),
        3: multiple * torch.export.Dim("columns"),
    }
    size = (2, model.in_channels, 3 * multiple, 5 * multiple)
    example = torch.rand(size)  # type: ignore[arg-type]
    program = torch.export.export(model, (example,), dynamic_shapes={"x": shapes})
    buffer = io.BytesIO()  # as above
    torch.export.save(program, buffer, extra_files={CONFIG_FILE: json.dumps(facts)})
    path.write_bytes(buffer.getvalue())


TORCH_WRITERS: dict[str, Callable[[Path, nn.Module, Facts], None]] = {
    "weights": _write_weights,
    "pth": _write_whole_model,
    "torchscript": _write_torchscript,
    "pt2": _write_pt2,
}
