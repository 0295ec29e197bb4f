"""ONNX models: checked to hold a U-Net's graph and weights before ONNX Runtime opens them.

ONNX Runtime reads weights from any other file that a model names.
"""

from collections import Counter
from typing import Any

import onnx
from onnx import TensorProto

from carvana.untrusted import Limits, Refused, check_operators, quoted

OPERATORS: Limits = {
    "Add": (0, 4),
    "Cast": (0, 2),
    "Concat": (1, 5),
    "Conv": (4, 3),
    "ConvTranspose": (1, 0),
    "DepthToSpace": (0, 1),
    "DequantizeLinear": (20, 20),
    "Div": (0, 2),
    "MaxPool": (1, 0),
    "Mod": (0, 4),
    "Mul": (0, 3),
    "Pad": (0, 1),
    "QuantizeLinear": (10, 10),
    "Relu": (4, 2),
    "Reshape": (0, 8),
    "Shape": (0, 8),
    "Slice": (0, 4),
    "Squeeze": (0, 2),
    "Sub": (0, 2),
    "Transpose": (0, 1),
}
NEVER_WRITTEN = "which no file of export.py does"
LARGEST_ATTRIBUTE = 16  # of strides, pads, axes
LARGEST_INTEGER = 2**20  # in the tables of sizes that a graph computes with
STRINGS = {b"NOTSET", b"edge", b"CRD"}
CAST_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16}
TENSOR_TYPES = CAST_TYPES | {
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
}
# Fields of a model and of its graph that may be filled.
MODEL_FIELDS = {
    "ir_version",
    "opset_import",
    "producer_name",
    "producer_version",
    "graph",
    "metadata_props",
}
GRAPH_FIELDS = {"node", "name", "initializer", "input", "output", "value_info", "metadata_props"}


def read_onnx(content: bytes) -> onnx.ModelProto:
    """Return an ONNX model without what is in no ONNX model. Raises an error if it is none."""
    model = onnx.load_model_from_string(content)
    model.DiscardUnknownFields()
    return model


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Return the texts that an ONNX model carries."""
    return {entry.key: entry.value for entry in model.metadata_props}


def check_onnx(model: onnx.ModelProto, levels: int) -> bytes:
    """Return an ONNX model, written anew from what was checked.

    Raises:
        Refused: it holds anything but the graph of a U-Net with so many levels and its weights.
    """
    graph = model.graph
    _check_fields(model, MODEL_FIELDS, "model")
    _check_fields(graph, GRAPH_FIELDS, "graph")
    operators = [f"{node.domain}.{node.op_type}".removeprefix(".") for node in graph.node]
    check_operators(Counter(operators), OPERATORS, levels)
    domains = [operator_set.domain for operator_set in model.opset_import if operator_set.domain]
    if domains:
        raise Refused(f"it uses operators of {quoted(domains[0])}")
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            _check_attribute(attribute)
            if node.op_type == "Cast" and attribute.i not in CAST_TYPES:
                raise Refused(f"it casts to {_type_name(attribute.i)}, {NEVER_WRITTEN}")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != ["input", "output"]:
        raise Refused(f"it takes and returns {quoted(', '.join(names))}")
    return model.SerializeToString()


def _check_fields(message: Any, allowed: set[str], name: str) -> None:
    """Raise Refused if anything but the allowed fields of a message is filled."""
    foreign = [field.name for field, _ in message.ListFields() if field.name not in allowed]
    if foreign:
        raise Refused(f"its {name} holds {foreign[0]}, {NEVER_WRITTEN}")


def _check_attribute(attribute: onnx.AttributeProto) -> None:
    """Raise Refused if an attribute is no small number or known word."""
    kinds = onnx.AttributeProto
    if attribute.type not in (kinds.INT, kinds.INTS, kinds.STRING):
        kind = kinds.AttributeType.Name(attribute.type).lower()
        raise Refused(f"an operator of it holds a {kind}, {NEVER_WRITTEN}")
    numbers = [attribute.i, *attribute.ints]
    if max(map(abs, numbers)) > LARGEST_ATTRIBUTE or attribute.s not in (b"", *STRINGS):
        value = attribute.s or numbers
        raise Refused(f"an operator of it has {quoted(attribute.name)} {quoted(value)}")


def _type_name(number: int) -> str:
    """Return the name of a type of numbers, for a message."""
    known = number in TensorProto.DataType.values()
    return TensorProto.DataType.Name(number).lower() if known else f"type {number}"


def _check_tensor(tensor: TensorProto) -> None:
    """Raise Refused if weights lie in another file, or are not as large as their data."""
    if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
        places = ", ".join(entry.value for entry in tensor.external_data if entry.key == "location")
        raise Refused(f"its weights lie in another file, {quoted(places)}")
    if tensor.data_type not in TENSOR_TYPES:
        raise Refused(f"it holds a tensor of {_type_name(tensor.data_type)}, {NEVER_WRITTEN}")
    values = onnx.numpy_helper.to_array(tensor)  # raises ValueError if there are more or fewer
    if tensor.data_type == TensorProto.INT64 and abs(values).max(initial=0) > LARGEST_INTEGER:
        raise Refused(f"its table {quoted(tensor.name)} holds {values.max()}")
