"""Archives of torch.export: checked to hold a U-Net's graph and weights before torch opens them.

torch.export.load unpickles whatever is in them, evaluates the texts of symbolic sizes and of
guards as Python, loads compiled libraries, and makes Python source of the names in a graph.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from carvana.untrusted import (
    Limits,
    Records,
    Refused,
    check_extent,
    check_names,
    check_operators,
    quoted,
)
from carvana.untrusted_tensors import load_tensors

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
RECORD = re.compile(
    rf"{GRAPH}|{WEIGHTS}|{CONSTANTS}|{SAMPLES}|data/weights/weight_\d+|archive_format"
    r"|archive_version|byteorder|\.data/version"
)
UNUSED = re.compile(r"\.data/serialization_id|extra/config\.json")
OPERATORS: Limits = {
    "torch.ops.aten.batch_norm.default": (4, 2),
    "torch.ops.aten.cat.default": (1, 0),
    "torch.ops.aten.conv2d.default": (4, 3),
    "torch.ops.aten.conv_transpose2d.input": (1, 0),
    "torch.ops.aten.max_pool2d.default": (1, 0),
    "torch.ops.aten.pixel_shuffle.default": (0, 1),
    "torch.ops.aten.pixel_unshuffle.default": (0, 1),
    "torch.ops.aten.relu_.default": (4, 2),
    "torch.ops.aten.slice.Tensor": (0, 2),
    "torch.ops.aten.sym_size.int": (0, 2),
}
# What may be written in a call, by the argument's name; everything else comes from other calls.
LITERALS = {
    "cudnn_enabled": (False, True),
    "dim": (1, 2, 3),
    "downscale_factor": tuple(range(2, 9)),
    "kernel_size": ([2, 2],),
    "padding": ([1, 1],),
    "stride": ([1, 1], [2, 2]),
    "training": (False,),
    "upscale_factor": tuple(range(2, 9)),
}
KINDS = {  # of the values in a graph
    "as_bool",
    "as_expr",
    "as_float",
    "as_int",
    "as_ints",
    "as_name",
    "as_none",
    "as_sym_int",
    "as_tensor",
    "as_tensors",
}
INPUTS = {"user_input", "parameter", "buffer"}
TEXT = re.compile(r"[\w.+]{0,200}", re.ASCII)  # too little to be code
RANGE_NAME = re.compile(r"(\d+\*)?s\d+")
EXPRESSION = re.compile(  # a product of symbols and numbers, as SymPy writes it
    r"(Mul\(|Integer\(\d{1,9}\)|Symbol\('s\d{1,9}'(, positive=True)?(, integer=True)?\)"
    r"|, |\)){1,50}"
)
WEIGHT_NAME = re.compile(
    r"(downs|bottleneck|ups|final_conv)(\.\d{1,3}|\.conv)*"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
ITEM_SIZES = {7: 4, 5: 8}  # float32 and int64, by their numbers in the archive
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
NO_KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
ONE_ARGUMENT = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]}
SIGNATURE = {"type": "builtins.tuple", "context": "null"}
IN_SPEC = [1, SIGNATURE | {"children_spec": [ONE_ARGUMENT, NO_KEYWORDS]}]
OUT_SPEC = [1, LEAF]


def check_pt2(records: Records, levels: int) -> Records:
    """Return the records of an archive that torch needs, all of them checked.

    The graph is written anew, without what torch would only show in messages.

    Raises:
        Refused: it holds anything but the graph of a U-Net with so many levels and its weights.
        Exception: of nearly any kind, if it is damaged.
    """
    kept = {name: content for name, content in records.items() if not UNUSED.fullmatch(name)}
    check_names(kept, RECORD)
    if json.loads(kept[CONSTANTS]) != {"config": {}}:
        raise Refused("it holds constants besides its weights, which no file of export.py does")
    try:
        load_tensors(kept[SAMPLES])
    except Exception as error:  # a hostile pickle can raise nearly anything
        raise Refused(
            f"{SAMPLES} holds something other than tensors and plain values, which could be code"
        ) from error
    program = _checked_program(json.loads(kept[GRAPH]), levels)
    weights = _checked_weights(json.loads(kept[WEIGHTS]), kept)
    return kept | {
        GRAPH: json.dumps(program).encode(),
        WEIGHTS: json.dumps(weights).encode(),
        CONSTANTS: b'{"config": {}}',
        SAMPLES: b"",
    }


def _checked_program(program: dict[str, Any], levels: int) -> dict[str, Any]:
    """Return a graph with its signature, without messages and guards."""
    module = program["graph_module"]
    nodes = module["graph"]["nodes"]
    check_operators(Counter(str(node["target"]) for node in nodes), OPERATORS, levels)
    for node in nodes:
        node["metadata"] = {}
        for argument in node["inputs"]:
            _check_argument(argument)
    specs = module["signature"]["input_specs"]
    kinds = {kind for spec in specs for kind in spec}
    if not kinds <= INPUTS:
        raise Refused(f"its graph takes a {quoted(sorted(kinds - INPUTS)[0])}")
    outputs = module["signature"]["output_specs"]
    if [list(output) for output in outputs] != [["user_output"]]:
        raise Refused("its graph returns more than one result")
    module["module_call_graph"] = [_checked_call(module["module_call_graph"][0])]
    _check_values(program | {"guards_code": [], "range_constraints": {}, "graph_module": None})
    _check_values(module | {"module_call_graph": []})
    ranges = program["range_constraints"]
    if not all(RANGE_NAME.fullmatch(name) for name in ranges):
        raise Refused(f"its graph has ranges of {quoted(sorted(ranges))}")
    _check_values(list(ranges.values()))
    return program | {"guards_code": []}


def _checked_call(call: dict[str, Any]) -> dict[str, Any]:
    """Return how the graph is called: with one tensor, which it names x."""
    signature = call["signature"]
    specs = [json.loads(signature["in_spec"]), json.loads(signature["out_spec"])]
    if specs != [IN_SPEC, OUT_SPEC] or signature["forward_arg_names"] != ["x"]:
        raise Refused("its graph is called with something other than one batch of images")
    return {
        "fqn": "",
        "signature": {
            "inputs": [],
            "outputs": [],
            "in_spec": json.dumps(IN_SPEC),
            "out_spec": json.dumps(OUT_SPEC),
            "forward_arg_names": ["x"],
        },
    }


def _check_argument(argument: dict[str, Any]) -> None:
    """Raise Refused if a call's argument is written with a value that no U-Net needs."""
    name = argument["name"]
    for kind, value in argument["arg"].items():
        if kind in ("as_int", "as_ints", "as_bool") and value not in LITERALS.get(name, ()):
            raise Refused(f"its graph calls an operator with {quoted(name)} {quoted(value)}")


def _check_values(value: Any, key: str = "") -> None:
    """Raise Refused if a text in a graph, or the kind of a value, is none that export.py writes."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not TEXT.fullmatch(name) or (name.startswith("as_") and name not in KINDS):
                raise Refused(f"its graph holds {quoted(name)}, which no file of export.py does")
            _check_values(item, name)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, key)
    elif isinstance(value, str):
        pattern = EXPRESSION if key == "expr_str" else TEXT
        if not pattern.fullmatch(value):
            raise Refused(f"its graph holds the text {quoted(value)}, which could be code")


def _checked_weights(weights: dict[str, Any], records: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the table of weights. Raises Refused if one is not as large as its data."""
    for name, entry in weights["config"].items():
        meta = entry["tensor_meta"]
        data = records[f"data/weights/{entry['path_name']}"]
        if not WEIGHT_NAME.fullmatch(name):
            raise Refused(f"it holds weights named {quoted(name)}")
        if entry["use_pickle"] is not False:
            raise Refused(f"its weight {name} is a pickle, which could be code")
        sizes = [size["as_int"] for size in meta["sizes"]]
        strides = [stride["as_int"] for stride in meta["strides"]]
        count = len(data) // ITEM_SIZES[meta["dtype"]]
        check_extent(count, meta["storage_offset"]["as_int"], sizes, strides)
    _check_values(weights)
    return weights
