"""Hostile model files of every format: nothing in them runs, and the message says what is wrong."""

import builtins
import functools
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from bad_input import check_answer, cut, documented_kinds, rows, spoiler, write
from helpers import BEST, Payload, run_script, scene, write_model
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

import utils
from carvana import onnx_writers
from carvana.export_formats import FORMATS, beyond_torch
from carvana.exporting import _facts
from carvana.format_writers import write_format
from model import UNET, DoubleConv

PICKLED, SCRIPTED, PT2, ONNX, HALF = (
    FORMATS[name].file for name in ("pth", "torchscript", "pt2", "onnx", "fp16")
)
OMITTED = beyond_torch(FORMATS)  # those that this torch is too old to write
WRITTEN = {name: item for name, item in FORMATS.items() if name not in OMITTED}
CODE = "__import__('os').system('touch touched')"
CODE_BYTES = pickle.dumps(Payload())
NO_EXPORT = r"is no model that export.py wrote"
MORE = r"which no file of export.py does"
FOREIGN = r"which no U-Net of export.py does"
NO_PICKLE = r"is not a checkpoint that can be read \(it holds something other than tensors"
UNREADABLE = r"is not a checkpoint that can be read"
NETWORKS = {
    "plain": {"MEAN": [0.4, 0.5, 0.3], "THRESHOLD": 0.3},
    "gray, in blocks of pixels, three levels": {
        "channels": 1,
        "features": (4, 6, 8),
        "UNSHUFFLE": 2,
    },
}


def command(file):
    return ("inference.py", "--img", "car.jpg", "--model", file)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{name of a network: a folder with a photograph, a checkpoint and its files of all formats}"""
    folders = {}
    rng = np.random.default_rng(0)
    for name, constants in NETWORKS.items():
        folder = tmp_path_factory.mktemp("exported")
        Image.fromarray(scene(1)[0]).save(folder / "car.jpg")
        write_model(folder / BEST, **constants)
        model = utils.load_model(folder / BEST, "cpu").to(memory_format=torch.contiguous_format)
        shape = (1, model.in_channels, 32, 48)
        images = [(rng.random(shape, np.float32), np.eye(32, 48, dtype=np.uint8))] * 40
        facts = _facts(model, folder / BEST)
        with mock.patch.object(onnx_writers, "TARGET_LOSS", 1.0):  # the first attempt will do
            for format_name, item in WRITTEN.items():
                write_format(format_name, folder / item.file, model, facts, images)
        folders[name] = folder
    return folders


# ---------------------------------------------------------------- zips


def read_zip(path):
    """Return {name: content} of a zip, without the folder that holds everything."""
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write_zip(path, records, compression=zipfile.ZIP_STORED, folder="model/"):
    """Write (name, content) pairs; names may come twice."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in records:
            archive.writestr(f"{folder}{name}", content, compression)


@spoiler
def put(path, record, content):
    """Add or replace a record; a function makes the content from the old one."""
    records = read_zip(path)
    records[record] = content(records[record]) if callable(content) else content
    write_zip(path, records.items())


def replace(record, old, new):
    """Replace bytes of a record, which must be there."""
    return put(record, functools.partial(replaced, old=old, new=new))


def replaced(content, old, new):
    assert old in content
    return content.replace(old, new)


@spoiler
def remove_record(path, name):
    records = read_zip(path)
    del records[name]
    write_zip(path, records.items())


@spoiler
def add_twice(path, name, record, content):
    """Add a record under a name that is there already, or differs by case."""
    write_zip(path, [*read_zip(path).items(), (name, content), (record, content)])


@spoiler
def add_bomb(path, name):
    """Add 100 MB of zeros, which take 100 kB."""
    records = read_zip(path) | {name: bytes(100_000_000)}
    write_zip(path, records.items(), zipfile.ZIP_DEFLATED)


@spoiler
def add_folder(path, name):
    """Add a second folder beside the one that holds everything."""
    records = read_zip(path)
    write_zip(path, [*((f"model/{key}", value) for key, value in records.items()), (name, b"x")])


@spoiler
def write_plain_zip(path, records):
    write_zip(path, records, folder="")


@spoiler
def copy_of(path, name):
    """Replace the file by another one of its folder."""
    shutil.copy(path.with_name(name), path)


@spoiler
def pickled(path, content, **options):
    torch.save(content, path, **options)


ZIP_TRICKS = {
    "a file outside": (put("../touched", b"x"), r"it holds a file named \S*\.\./touched"),
    "an absolute name": (put("/touched", b"x"), r"it holds a file named \S*//touched"),
    "a name with a line break": (put("a\nb", b"x"), r"it holds a file named \S*a\\nb"),
    "a Windows name": (put("..\\touched", b"x"), r"it holds a file named"),
    "a file that unpacks to a thousand times its size": (
        add_bomb("data/0"),
        r"it unpacks from [\d,]+ to [\d,]+ bytes",
    ),
    "a second folder": (add_folder("x/data.pkl"), NO_EXPORT),
    "an empty zip": (write_plain_zip([]), NO_EXPORT),
    "a zip without folders": (write_plain_zip([("data.pkl", CODE_BYTES)]), NO_EXPORT),
    "a shell script": (write(b"#!/bin/sh\ntouch touched\n"), NO_EXPORT),
    "a bare pickle": (write(CODE_BYTES), NO_EXPORT),
    "cut off": (cut(0.5), NO_EXPORT),
}


# ---------------------------------------------------------------- torch.export


@spoiler
def change_json(path, record, change):
    """Change a JSON of an archive by a function."""
    content = json.loads(read_zip(path)[record])
    change(content)
    put(record, json.dumps(content))(path)


def graph(change):
    """Change the JSON of the graph by a function of it."""
    return change_json("models/model.json", change)


def node(index=0, **changes):
    """Change entries of an operator's call."""
    return graph(functools.partial(change_node, index=index, changes=changes))


def change_node(program, index, changes):
    program["graph_module"]["graph"]["nodes"][index] |= changes


def target(name):
    return node(3, target=name)


@spoiler
def set_argument(path, operator, name, value):
    """Set an argument of the first call of an operator."""
    graph(functools.partial(change_argument, operator=operator, name=name, value=value))(path)


def change_argument(program, operator, name, value):
    nodes = program["graph_module"]["graph"]["nodes"]
    call = next(entry for entry in nodes if operator in entry["target"])
    (argument,) = (entry for entry in call["inputs"] if entry["name"] == name)
    argument["arg"] = value


def set_expression(program, text):
    (entry, *_) = program["graph_module"]["graph"]["sym_int_values"].values()
    entry["as_expr"]["expr_str"] = text


def expression(text):
    return graph(functools.partial(set_expression, text=text))


def set_size_expression(program):
    value = program["graph_module"]["graph"]["tensor_values"]["x"]
    value["sizes"][0] = {"as_expr": {"expr_str": CODE, "hint": {"as_int": 2}}}


def set_signature(program, **changes):
    program["graph_module"]["module_call_graph"][0]["signature"] |= changes


def signature(**changes):
    return graph(functools.partial(set_signature, **changes))


def set_first_input(program, spec):
    program["graph_module"]["signature"]["input_specs"][0] = spec


def first_input(spec):
    return graph(functools.partial(set_first_input, spec=spec))


def return_twice(program):
    outputs = program["graph_module"]["signature"]["output_specs"]
    outputs.append(outputs[0])


def double_again_and_again(program):
    nodes = program["graph_module"]["graph"]["nodes"]
    call = next(entry for entry in nodes if "cat" in entry["target"])
    nodes += [call] * 40


def rename_all(program):
    """Name the input a piece of Python, wherever its name stands."""
    text = json.dumps(program).replace('"x"', f'"x={CODE}"')
    program.clear()
    program |= json.loads(text)


def set_weight(weights, **changes):
    weights["config"]["downs.0.conv.0.weight"] |= changes


def weight(**changes):
    return change_json(WEIGHTS, functools.partial(set_weight, **changes))


def set_weight_meta(weights, **changes):
    weights["config"]["downs.0.conv.0.weight"]["tensor_meta"] |= changes


def weight_meta(**changes):
    return change_json(WEIGHTS, functools.partial(set_weight_meta, **changes))


def rename_weight(weights, name):
    weights["config"][name] = weights["config"].pop("downs.0.conv.0.weight")


def pickled_weight(path):
    """Put a payload in a weight's place, and say that it is a pickle."""
    weight(use_pickle=True)(path)
    put("data/weights/weight_0", torch_bytes(Payload()))(path)


@spoiler
def constant(path, name, content, use_pickle=True):
    """Add a constant to the archive."""
    entry = {"path_name": name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None}
    put("data/constants/model_constants_config.json", json.dumps({"config": {"c": entry}}))(path)
    put(f"data/constants/{name}", content)(path)


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def older_layout(path):
    """Write an archive of torch 2.7 with payloads in all of its pickles."""
    program = read_zip(path)["models/model.json"]
    payload = torch_bytes(Payload())
    names = ("state_dict", "constants", "example_inputs")
    pickles = [(f"serialized_{name}.pt", payload) for name in names]
    records = [("version", "8.20"), ("serialized_exported_program.json", program), *pickles]
    write_zip(path, records, folder="")


def zeros_of_any_size(path):
    """Give a weight no data and a size of 4 TB, which torch would fill with zeros."""
    put("data/weights/weight_0", b"")(path)
    weight_meta(sizes=[{"as_int": 10**6}] * 4)(path)


WEIGHTS = "data/weights/model_weights_config.json"
EXPRESSION = r"its graph holds the text .*, which could be code"
PT2_FILES = ZIP_TRICKS | {
    "sample inputs with a payload": (
        put("data/sample_inputs/model.pt", torch_bytes(((Payload(),), {}))),
        r"model.pt holds something other than tensors and plain values, which could be code",
    ),
    "sample inputs that are a bare pickle": (
        put("data/sample_inputs/model.pt", CODE_BYTES),
        r"which could be code",
    ),
    "a weight with a payload": (pickled_weight, r"downs.0.conv.0.weight is a pickle"),
    "a constant with a payload": (constant("tensor_0", torch_bytes(Payload())), MORE),
    "an opaque object with a payload": (constant("opaque_obj_0", CODE_BYTES), MORE),
    "a custom object with a payload": (constant("custom_obj_0", CODE_BYTES), MORE),
    "a constant that is not used": (put("data/constants/tensor_0", CODE_BYTES), MORE),
    "weights of an older kind with a payload": (
        put("data/weights/model.pt", torch_bytes(Payload())),
        MORE,
    ),
    "constants of an older kind with a payload": (
        put("data/constants/model.pt", torch_bytes(Payload())),
        MORE,
    ),
    "an archive of torch 2.7 with payloads": (older_layout, NO_EXPORT),
    "a compiled library": (
        put("data/aotinductor/model/x.wrapper.so", b"\x7fELF"),
        rf"it holds data/aotinductor/model/x.wrapper.so, {MORE}",
    ),
    "a second model": (put("models/other.json", b"{}"), rf"it holds models/other.json, {MORE}"),
    "code as a size": (expression(CODE), EXPRESSION),
    "code as a size of the input": (graph(set_size_expression), EXPRESSION),
    "code behind a size": (expression(f"Integer(1) + {CODE}"), EXPRESSION),
    "a size that is a number too large to write": (expression("Integer(9**9**9**9)"), EXPRESSION),
    "a size in thousands of parentheses": (expression("(" * 5000 + ")" * 5000), EXPRESSION),
    "code as a range": (
        graph(lambda program: program["range_constraints"].update({CODE: {}})),
        r"its graph has ranges of",
    ),
    "code as the name of the input": (graph(rename_all), NO_EXPORT),
    "code as the name of an argument": (
        signature(forward_arg_names=[f"x={CODE}"]),
        r"its graph is called with something other than one batch",
    ),
    "code as the name of a result": (node(2, name=f"x;{CODE}"), EXPRESSION),
    "a named tuple as input": (
        signature(in_spec='[1, {"type": "os.system", "context": "touch touched"}]'),
        r"is called with something other than one batch",
    ),
    "a text as input": (
        first_input({"constant_input": {"name": "x", "value": {"as_string": CODE}}}),
        r"its graph takes a constant_input",
    ),
    "two results": (graph(return_twice), r"its graph returns more than one result"),
    "an operator that maps a file": (
        target("torch.ops.aten.from_file.default"),
        rf"it calls torch.ops.aten.from_file.default, {FOREIGN}",
    ),
    "an operator of a library": (target("torch.ops.mylib.run.default"), FOREIGN),
    "a branch": (target("torch.ops.higher_order.cond"), FOREIGN),
    "a loop": (target("torch.ops.higher_order.while_loop"), FOREIGN),
    "a function of Python": (target("_operator.call"), FOREIGN),
    "a function of torch": (target("torch.load"), FOREIGN),
    "a text as an argument": (
        set_argument("conv2d", "bias", {"as_string": CODE}),
        r"its graph holds as_string",
    ),
    "an object as an argument": (
        set_argument("conv2d", "bias", {"as_custom_obj": {"name": "x", "class_fqn": "x"}}),
        r"its graph holds as_custom_obj",
    ),
    "a stride of a thousand millions": (
        set_argument("conv_transpose2d", "stride", {"as_ints": [10**9, 10**9]}),
        r"its graph calls an operator with stride \[1000000000, 1000000000\]",
    ),
    "tensors doubled 40 times": (
        graph(double_again_and_again),
        r"it calls torch.ops.aten.cat.default 42 times; a U-Net of 2 levels does so at most 2",
    ),
    "a weight of 4 TB": (
        weight_meta(sizes=[{"as_int": 10**6}] * 4),
        r"it holds a tensor of size \(1000000, 1000000, 1000000, 1000000\) for 108 numbers",
    ),
    "a weight of 4 TB without data": (zeros_of_any_size, r"1000000\) for 0 numbers"),
    "a weight that begins elsewhere": (
        weight_meta(storage_offset={"as_int": 10**9}),
        r"it holds a tensor of size \(4, 3, 3, 3\) for 108 numbers",
    ),
    "a weight with strides beyond its data": (
        weight_meta(strides=[{"as_int": 10**9}] * 4),
        r"it holds a tensor of size \(4, 3, 3, 3\) for 108 numbers",
    ),
    "a weight out of another file": (weight(path_name="../../../../etc/passwd"), NO_EXPORT),
    "a weight that hides a method": (
        change_json(WEIGHTS, functools.partial(rename_weight, name="__class__")),
        r"it holds weights named __class__",
    ),
    "constants of a million levels": (
        change_json("extra/config.json", lambda config: config.update(FEATURES=[1] * 10**6)),
        r"FEATURES is \[1, 1",
    ),
    "constants of other classes": (
        change_json("extra/config.json", lambda config: config.update(CLASSES=["a", "b"])),
        r"its logits are of shape \(1, 1, 32, 48\), expected \(1, 2, 32, 48\)",
    ),
    "constants that are a list": (put("extra/config.json", b"[" * 10**5), NO_EXPORT),
    "no constants": (remove_record("extra/config.json"), NO_EXPORT),
    "a TorchScript file": (copy_of(SCRIPTED), NO_EXPORT),
    "a checkpoint": (copy_of(BEST), NO_EXPORT),
}


# ---------------------------------------------------------------- TorchScript


class Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "touched")
        return x[:, :1]


class MapsAFile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + torch.from_file("touched", True, 4)[0]


class SavesWhenLoaded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        torch.save(state[0], "touched")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


class NeverEnds(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            x = x + 1
        return x[:, :1]


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            torch.save(x, "touched")
        return x[:, :1]


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert False, "a message of a stranger"  # noqa: B011
        return x


class Prints(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("a message of a stranger")
        return x[:, :1]


class Warns(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("a message of a stranger")  # noqa: B028
        return x[:, :1]


class TakesAllMemory(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + torch.zeros([1000000, 1000000]).sum()


class Seeds(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return x[:, :1]


class ReturnsTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@spoiler
def script(path, module_class):
    """Write a scripted module with the constants of the good file."""
    config = read_zip(path)["extra/config.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(module_class())
        torch.jit.save(module, path, _extra_files={"config.json": config})


TOP = "code/__torch__/carvana/any_size.py"
CONVOLUTIONS = "code/__torch__/torch/nn/modules/conv.py"


def before_return(line):
    """Add a statement to the first method that runs."""
    return replace(TOP, b"return _8", f"{line}\n    return _8".encode())


def returning(value):
    return replace(TOP, b"return _8", f"return {value}".encode())


@spoiler
def claim(path, old, new):
    """Replace bytes of data.pkl behind the first storage."""
    content = read_zip(path)["data.pkl"]
    place = content.index(old, content.index(b"FloatStorage"))
    put("data.pkl", content[:place] + new + content[place + len(old) :])(path)


FIRST_COUNT = b"Kl"  # the numbers of the first kernel in data.pkl: 4 * 3 * 3 * 3 = 108
CALLED = r"a layer of it is called more than once, or never"
TORCHSCRIPT_FILES = ZIP_TRICKS | {
    "writes a file": (script(Saves), r"it calls .*torch.save.*, which no U-Net of export.py does"),
    "maps a file": (script(MapsAFile), rf"torch.from_file.*, {FOREIGN}"),
    "writes a file when loaded": (
        script(SavesWhenLoaded),
        r"it holds a method __(get|set)state__, which no layer of export.py has",
    ),
    "a loop without end": (script(NeverEnds), rf"it calls torch.add, {FOREIGN}"),
    "a branch": (script(Branches), rf"it calls .*torch.save.*, {FOREIGN}"),
    "a failure with a message": (script(Fails), NO_EXPORT),
    "a message": (script(Prints), rf"print.*, {FOREIGN}"),
    "a warning": (script(Warns), rf"it calls .*warn.*, {FOREIGN}"),
    "all memory": (script(TakesAllMemory), rf"it calls .*torch.zeros.*, {FOREIGN}"),
    "a seed": (script(Seeds), rf"it calls .*manual_seed.*, {FOREIGN}"),
    "two results": (script(ReturnsTwo), r"its code holds Tuple"),
    "a line that writes a file": (
        before_return('_9 = torch.save(x, "touched")'),
        rf"it calls torch.save, {FOREIGN}",
    ),
    "an expression that writes a file": (
        before_return('torch.save(x, "touched")'),
        rf"it calls torch.save, {FOREIGN}",
    ),
    "a function under another name": (
        before_return('_9 = torch.save\n    _10 = _9(x, "touched")'),
        rf"it calls _9, {FOREIGN}",
    ),
    "a file's name": (before_return('_9 = "/etc/passwd"'), r"the constant '/etc/passwd'"),
    "an operator of a library": (before_return("_9 = ops.mylib.run(x)"), FOREIGN),
    "a keyword": (
        replace(TOP, b", 3, 0, _1)", b", 3, 0, end=_1)"),
        r"its code holds keyword",
    ),
    "an attribute of a tensor": (returning("x.grad"), r"its code holds x.grad"),
    "an attribute by its name": (
        returning('getattr(x, "__class__")'),
        r"its code holds getattr\(x, '__class__'\)",
    ),
    "a method of a text": (
        returning('"replicate".format(x)'),
        r"its code calls 'replicate'.format",
    ),
    "a loop": (
        before_return("while True:\n      _9 = x"),
        r"its code holds While",
    ),
    "a condition": (before_return("if True:\n      _9 = x"), r"its code holds If"),
    "a statement": (before_return("x"), r"its code holds Expr"),
    "a lambda": (before_return("_9 = lambda: 0"), r"its code holds Lambda"),
    "a comprehension": (before_return("_9 = [_1 for _1 in x]"), r"its code holds ListComp"),
    "an import": (
        replace(TOP, b"class AnySize", b"import os\nclass AnySize"),
        r"more than classes",
    ),
    "a function": (
        replace(TOP, b"class AnySize", b"def f(x: Tensor) -> Tensor:\n  return x\nclass AnySize"),
        r"holds more than classes",
    ),
    "a decorator": (replace(TOP, b"class AnySize", b"@torch.save\nclass AnySize"), NO_EXPORT),
    "a class of another kind": (replace(TOP, b"(Module)", b"(NamedTuple)"), r"is no layer"),
    "code as a type": (
        replace(TOP, b"training : bool", f'training : "{CODE}"'.encode()),
        r"its code holds",
    ),
    "no Python": (put(TOP, b"\x00\xff"), NO_EXPORT),
    "thousands of parentheses": (returning("(" * 9000 + "x" + ")" * 9000), NO_EXPORT),
    "padding of a thousand millions": (
        replace(TOP, b"torch.rsub(torch.remainder(width, 4), 4)", b"torch.rsub(width, 1000000000)"),
        r"its code holds the constant 1000000000",
    ),
    "tensors doubled 40 times": (
        before_return("\n    ".join(f"c{i} = torch.cat([x, x], 1)" for i in range(40))),
        r"it calls torch.cat 42 times; a U-Net of 2 levels does so at most 2 times",
    ),
    "a network that runs twice": (
        before_return("_9 = (model).forward(x)"),
        CALLED,
    ),
    "a network that calls itself": (
        replace(TOP, b"(model).forward(x0, )", b"(self).forward(x0, )"),
        CALLED,
    ),
    "a layer that is not there": (
        replace(TOP, b"(model).forward(x0, )", b"(model).forward7(x0, )"),
        r"its code calls forward7 of a layer",
    ),
    "a class twice": (
        replace(TOP, b"class AnySize", b"class AnySize(Module):\n  x : bool\nclass AnySize"),
        r"it defines __torch__.carvana.any_size.AnySize twice",
    ),
    "8 GB of numbers out of memory beside a weight": (
        claim(FIRST_COUNT, b"J\xff\xff\xff\x7f"),
        r"data.pkl claims 2147483647 numbers of the 432 bytes in 0",
    ),
    "a weight larger than its data": (
        claim(b"K\x04K\x03K\x03K\x03t", b"K\xffK\xffK\x03K\x03t"),
        r"it holds a tensor of size \(255, 255, 3, 3\) for 108 numbers",
    ),
    "a weight of a negative size": (
        claim(b"K\x04K\x03K\x03K\x03t", b"J\xff\xff\xff\xffK\x03K\x03K\x03t"),
        r"it holds a tensor of size \(-1, 3, 3, 3\)",
    ),
    "a weight out of another file": (
        claim(b"X\x03\x00\x00\x00cpu", b"X\x04\x00\x00\x00cuda"),
        r"data.pkl claims",
    ),
    "a tensor in a switch's place": (
        replace(CONVOLUTIONS, b"weight : Tensor", b"weight : bool"),
        r"data.pkl holds a weight of another type than the code says",
    ),
    "a layer in another one's place": (
        replace(
            "data.pkl", b"c__torch__.torch.nn.modules.pooling\nMaxPool2d", b"c__torch__.model\nUNET"
        ),
        r"data.pkl holds other attributes than __torch__.model.UNET has",
    ),
    "an argument with a value": (
        replace(TOP, b"x: Tensor)", b"x: Tensor, y: Tensor=self.model)"),
        r"its code holds def forward",
    ),
    "a list of parameters that is computed": (
        replace(TOP, b"__parameters__ = []", b"__parameters__ = [torch.size(x, 2)]"),
        r"AnySize holds __parameters__",
    ),
    "data.pkl with a payload": (put("data.pkl", CODE_BYTES), r"data.pkl holds \w+, which no file"),
    "data.pkl that names a function": (
        replace("data.pkl", b"ccollections\nOrderedDict", b"cos\nsystem"),
        r"data.pkl names os.system, which could be code",
    ),
    "data.pkl that names a class of a library": (
        replace("data.pkl", b"c__torch__.model\nUNET", b"c__torch__.torch.classes.x\nY"),
        r"data.pkl names __torch__.torch.classes.x.Y",
    ),
    "data.pkl that makes room for 4,000 million objects": (
        put("data.pkl", b"\x80\x02}r\xff\xff\xff\xff."),
        r"data.pkl puts objects into places out of order",
    ),
    "constants with a payload": (
        put("constants.pkl", CODE_BYTES),
        r"constants.pkl holds constants",
    ),
    "code for telephones": (put("bytecode.pkl", CODE_BYTES), rf"it holds bytecode.pkl, {MORE}"),
    "names that differ by case": (
        add_twice("Data.pkl", "DATA.PKL", CODE_BYTES),
        r"it holds Data.pkl twice",
    ),
    "constants of other classes": (
        change_json("extra/config.json", lambda config: config.update(CLASSES=["a", "b"])),
        r"its logits are of shape \(1, 1, 32, 48\), expected \(1, 2, 32, 48\)",
    ),
    "no constants": (remove_record("extra/config.json"), NO_EXPORT),
    "a torch.export file": (copy_of(PT2), NO_EXPORT),
}


# ---------------------------------------------------------------- a pickled network


class Calls:
    """Unpickled by anything but a careful reader, it calls a function."""

    def __init__(self, function, *args):
        self.function = function
        self.args = args

    def __reduce__(self):
        return self.function, self.args


def network(**attributes):
    model = UNET(features=[4])
    for name, value in attributes.items():
        object.__setattr__(model, name, value)
    return model


def network_with(name, tensor):
    """Return a network with a weight in another one's place."""
    model = UNET(features=[4])
    owner, _, attribute = name.rpartition(".")
    model.get_submodule(owner)._parameters[attribute] = tensor
    return model


def cyclic_network():
    model = UNET(features=[4])
    model._modules["inner"] = model
    return model


def network_of_many_layers():
    """Return a network of 2**40 layers, of which each is there once."""
    layer = nn.ReLU()
    for _ in range(40):
        layer = nn.Sequential(layer, layer)
    model = UNET(features=[4])
    model.inner = layer
    return model


def nested(depth):
    """Return a list in a list in a list."""
    result = []
    for _ in range(depth):
        result = [result]
    return result


def with_hook(function):
    model = UNET(features=[4])
    model._forward_pre_hooks[0] = function
    return model


def tar_of_payloads(path):
    """Write a checkpoint of the format of torch before 0.1.10, a tar."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(CODE_BYTES)
            archive.addfile(entry, io.BytesIO(CODE_BYTES))


@spoiler
def bytes_of(path, old, new, content):
    """Write torch.save's file with other bytes in its pickle."""
    torch.save(content, path)
    replace("data.pkl", old, new)(path)


@spoiler
def write_two_readings(path, small, large):
    """Write a zip of one tensor that small data are stored for, and large ones under that name."""
    torch.save({"final_conv.bias": torch.zeros(4096)}, path)
    records = read_zip(path)
    modest = records["data.pkl"].replace(b"M\x00\x10", b"K\x01")
    contents = {"data.pkl": (modest, records["data.pkl"]), "data/0": (bytes(4), bytes(4 * 4096))}
    first, second = contents[large]
    others = [(name, content) for name, content in records.items() if name != large]
    write_zip(path, [*others, (small, first), (large, second)])


@spoiler
def lengthen(path, count):
    """Add zeros, behind which Python finds no zip any more, though torch does."""
    torch.save({"final_conv.bias": torch.zeros(4096), "more": torch.zeros(30_000)}, path)
    with open(path, "ab") as file:
        file.write(bytes(count))


@spoiler
def write_pickle(path, content):
    """Write a zip of torch.save's with another pickle."""
    torch.save({"final_conv.bias": torch.zeros(1)}, path)
    put("data.pkl", content)(path)


GROWING_KEY = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)" + b"2\x86" * 40
STORAGE_TRICKS = {
    "a pickle in capital letters": (write_two_readings("DATA.PKL", "data.pkl"), "twice"),
    "two pickles": (write_two_readings("data.pkl", "data.pkl"), "twice"),
    "data twice": (write_two_readings("data/0", "data/0"), "twice"),
    "zeros behind its end": (lengthen(67_000), NO_EXPORT + "|" + UNREADABLE),
    "an array of a terabyte": (
        write_pickle(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"."),
        "bytearray8|" + NO_EXPORT,
    ),
    "a name that doubles": (
        write_pickle(GROWING_KEY + b"X\x03\x00\x00\x00cpuK\x01tQ."),
        "its pickle holds DUP|" + NO_EXPORT,
    ),
}
WIDE = torch.zeros(1).expand(10**6, 10**6)
NAN = torch.full((1,), float("nan"))
NOT_ALLOWED = r"Weights only load failed|Unsupported|" + NO_EXPORT
LEGACY = {"_use_new_zipfile_serialization": False}
PICKLED_FILES = (
    ZIP_TRICKS
    | STORAGE_TRICKS
    | {
        "a payload beside the weights": (pickled(network(extra=Payload())), NOT_ALLOWED),
        "a payload in the constants": (pickled(network(config={"MEAN": Payload()})), NOT_ALLOWED),
        "a payload as a weight": (pickled(network_with("final_conv.bias", Payload())), NOT_ALLOWED),
        "a payload as the network": (pickled(Payload()), NOT_ALLOWED),
        "a payload of the older format": (pickled(network(extra=Payload()), **LEGACY), NOT_ALLOWED),
        "a tar of payloads": (tar_of_payloads, NO_EXPORT),
        "a function that evaluates": (pickled(network(extra=Calls(eval, CODE))), NOT_ALLOWED),
        "a function that imports": (
            pickled(network(extra=Calls(builtins.__import__, "this"))),
            NOT_ALLOWED,
        ),
        "a function that looks up": (
            pickled(network(extra=Calls(getattr, {}, "get"))),
            NOT_ALLOWED,
        ),
        "a function that opens a file": (
            pickled(network(extra=Calls(open, "touched", "w"))),
            NOT_ALLOWED,
        ),
        "a function that loads": (
            pickled(network(extra=Calls(torch.load, "car.jpg"))),
            NOT_ALLOWED,
        ),
        "a method as a function": (
            bytes_of(
                b"ctorch.nn.modules.activation\nReLU", b"cmodel\nUNET.forward", UNET(features=[4])
            ),
            NO_EXPORT,
        ),
        "a function that is not called": (pickled(network(extra=os.system)), NOT_ALLOWED),
        "a hook": (pickled(with_hook(os.remove)), NOT_ALLOWED),
        "a bound function": (
            pickled(network(forward=functools.partial(os.system, "touch touched"))),
            NOT_ALLOWED,
        ),
        "a NumPy array": (pickled(network(extra=np.zeros(3))), NOT_ALLOWED),
        "a layer of another kind": (pickled(network(extra=nn.Linear(1, 1))), NOT_ALLOWED),
        "a layer of that network": (pickled(DoubleConv(3, 4)), r"no UNET but DoubleConv"),
        "a list of layers": (pickled(nn.Sequential(nn.ReLU())), r"no UNET but Sequential"),
        "a list": (pickled([1, 2]), r"no UNET but list"),
        "a network in itself": (pickled(cyclic_network()), r"it holds more than 10,000 layers"),
        "a network of 2**40 layers": (
            pickled(network_of_many_layers()),
            r"more than 10,000 layers",
        ),
        "constants in ten thousand lists": (
            bytes_of(b"X\x05\x00\x00\x00extra", b"(" * 10**5, network(extra=1)),
            NO_EXPORT,
        ),
        "constants that are absurd": (pickled(network(config={"STD": [0.0]})), r"STD is \[0.0\]"),
        "constants that are a list": (pickled(network(config=[1])), NO_EXPORT),
        "constants of other classes": (
            pickled(network(config={"CLASSES": ["a", "b"]})),
            r"2 CLASSES, but logits of 1",
        ),
        "blocks of a million pixels": (pickled(network(unshuffle=10**6)), r"UNSHUFFLE is 1000000"),
        "blocks of no pixels": (pickled(network(unshuffle=0)), r"UNSHUFFLE is 0"),
        "blocks of text": (pickled(network(unshuffle="2")), r"UNSHUFFLE is '2'"),
        "a weight that is not a number": (
            pickled(network_with("final_conv.bias", nn.Parameter(NAN))),
            r"final_conv.bias holds values that are infinite or not numbers",
        ),
        "a weight of 4 TB": (
            pickled(network_with("final_conv.weight", WIDE)),
            r"claims the shape \(1000000, 1000000\) for 4 bytes",
        ),
        "a weight larger than its data": (
            bytes_of(b"K\x01K\x04K\x01K\x01t", b"K\xffK\xffK\x01K\x01t", UNET(features=[4])),
            NO_EXPORT,
        ),
        "a sparse weight": (
            pickled(network_with("final_conv.weight", torch.eye(3).to_sparse())),
            NO_EXPORT,
        ),
        "a weight of whole numbers": (
            pickled(network_with("final_conv.weight", torch.zeros(1, 4, 1, 1, dtype=torch.int32))),
            r"holds int32",
        ),
        "a weight of text": (
            pickled(network_with("final_conv.bias", "x")),
            r"no plain tensor but str",
        ),
        "a weight of another size": (
            pickled(network_with("final_conv.bias", nn.Parameter(torch.zeros(7)))),
            r"its weights are not those of a UNET",
        ),
        "a weight too many": (
            pickled(network_with("extra", nn.Parameter(torch.zeros(1)))),
            r"its weights are not those of a UNET",
        ),
        "a weight missing": (
            pickled(network_with("final_conv.bias", None)),
            r"not those of a UNET",
        ),
        "129 channels": (pickled(UNET(129, 1, [4])), r"images of 129 channels, expected 1 to 128"),
    }
)


# ---------------------------------------------------------------- ONNX


@spoiler
def change_onnx(path, change):
    """Change the model by a function of it."""
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


@spoiler
def external(path, location, **entries):
    """Let the weights of the first layer lie in another file."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    length = 4 * int(np.prod(tensor.dims))
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location, "length": length} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())


@spoiler
def operator(path, name, domain="", **attributes):
    """Add an operator whose result is not used."""
    model = onnx.load(path)
    node = helper.make_node(name, ["input"], ["unused"], domain=domain, **attributes)
    model.graph.node.append(node)
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    path.write_bytes(model.SerializeToString())


@spoiler
def attribute(path, operator_name, name, value):
    """Set an attribute of the first operator of a kind."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == operator_name)
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    path.write_bytes(model.SerializeToString())


def body():
    """Return a graph for a loop or a branch."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_graph([], "body", [], [value])


def add_function(model):
    sets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("x", "f", ["a"], ["b"], [], sets))


def add_training(model):
    model.training_info.add().initialization.CopyFrom(body())


def add_sparse(model):
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    tensor = helper.make_sparse_tensor(values, indices, [10**12])
    model.graph.sparse_initializer.append(tensor)


def add_input(model):
    value = helper.make_tensor_value_info("other", TensorProto.FLOAT, [1])
    model.graph.input.append(value)


def add_output(model):
    model.graph.output.append(model.graph.value_info[0])


def claim_dimensions(model):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([10**6, 10**6])


def claim_negative(model):
    model.graph.initializer[0].dims[0] = -1


def add_table(model):
    model.graph.initializer.append(helper.make_tensor("table", TensorProto.INT64, [1], [10**12]))


def add_texts(model):
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"x"]))


def add_doubles(model):
    model.graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [1], [1.0]))


def take_for_bfloat16(model):
    """Let the first weights be numbers of another type that are as long."""
    tensor = next(item for item in model.graph.initializer if len(item.dims) == 4)
    tensor.data_type = TensorProto.BFLOAT16


def take_for_float32(model):
    """Let the first weights be numbers of another type that are twice as long."""
    tensor = next(item for item in model.graph.initializer if len(item.dims) == 4)
    tensor.data_type = TensorProto.FLOAT


def double_onnx(model):
    names = ["input", *(f"double{index}" for index in range(40))]
    for name, result in zip(names, names[1:], strict=False):
        model.graph.node.append(helper.make_node("Concat", [name, name], [result], axis=1))


def set_metadata(model, key, value):
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value


def metadata(key, value):
    return change_onnx(functools.partial(set_metadata, key=key, value=value))


def remove_metadata(model):
    del model.metadata_props[:]


def flow_in_a_circle(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def swap_layers(model):
    """Give a layer the weights of another one."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    convolutions[0].input[1] = convolutions[2].input[1]


ELSEWHERE = r"its weights lie in another file, "
GRAPH_KIND = rf"an operator of it holds a graph, {MORE}|{FOREIGN}"
ONNX_FILES = {
    "weights out of any file": (external("/etc/passwd"), rf"{ELSEWHERE}/etc/passwd"),
    "weights out of a folder above": (external("../../etc/passwd"), rf"{ELSEWHERE}\.\./"),
    "weights out of a file beside": (
        external("car.jpg"),
        rf"{ELSEWHERE}car.jpg",
    ),
    "weights out of a huge file": (external("/dev/zero", length=10**12), rf"{ELSEWHERE}/dev/zero"),
    "weights of no file": (external(""), ELSEWHERE),
    "an operator of a library": (operator("Run", "mylib"), rf"it calls mylib.Run, {FOREIGN}"),
    "an operator of Python": (operator("PyOp", "ai.onnx.contrib"), rf"PyOp, {FOREIGN}"),
    "an operator that opens a compiled model": (
        operator("EPContext", "com.microsoft", ep_cache_context="/tmp/x"),
        rf"com.microsoft.EPContext, {FOREIGN}",
    ),
    "an operator of training": (operator("Adam", "ai.onnx.preview.training"), FOREIGN),
    "an operator of ONNX Runtime": (operator("FusedConv", "com.microsoft"), FOREIGN),
    "operators of a library that are not used": (
        change_onnx(lambda model: model.opset_import.append(helper.make_opsetid("mylib", 1))),
        r"it uses operators of mylib",
    ),
    "a branch": (operator("If", then_branch=body(), else_branch=body()), FOREIGN),
    "a loop without end": (operator("Loop", body=body()), FOREIGN),
    "a scan": (operator("Scan", body=body(), num_scan_inputs=1), FOREIGN),
    "a tensor of any size": (operator("ConstantOfShape"), FOREIGN),
    "a tensor repeated": (operator("Tile"), FOREIGN),
    "a range": (operator("Range"), FOREIGN),
    "random numbers": (operator("RandomNormal", shape=[10**6, 10**6]), FOREIGN),
    "a decoder of pictures": (operator("ImageDecoder"), FOREIGN),
    "a regular expression": (operator("RegexFullMatch", pattern="(a+)+b"), FOREIGN),
    "a sum in a text": (operator("Einsum", equation="abcd->" + "a" * 999), FOREIGN),
    "a constant in an operator": (
        operator("Constant", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        FOREIGN,
    ),
    "a graph in an operator": (attribute("Conv", "x", body()), GRAPH_KIND),
    "a tensor in an operator": (
        attribute("Conv", "x", helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        rf"an operator of it holds a tensor, {MORE}",
    ),
    "a text in an operator": (attribute("Conv", "auto_pad", CODE), r"has auto_pad"),
    "a stride of a thousand millions": (
        attribute("ConvTranspose", "strides", [10**9, 10**9]),
        r"has strides \[0, 1000000000, 1000000000\]",
    ),
    "pads of a thousand millions": (attribute("Conv", "pads", [10**9] * 4), r"has pads"),
    "a function": (change_onnx(add_function), rf"its model holds functions, {MORE}"),
    "a training": (change_onnx(add_training), rf"its model holds training_info, {MORE}"),
    "a sparse tensor of 4 TB": (change_onnx(add_sparse), rf"holds sparse_initializer, {MORE}"),
    "a tensor of 4 TB": (change_onnx(claim_dimensions), NO_EXPORT),
    "a tensor of a negative size": (change_onnx(claim_negative), NO_EXPORT),
    "a table with a huge number": (change_onnx(add_table), r"its table table holds 1000000000000"),
    "tensors doubled 40 times": (
        change_onnx(double_onnx),
        r"it calls Concat 43 times; a U-Net of 2 levels does so at most 7 times",
    ),
    "a second input": (change_onnx(add_input), r"it takes and returns input, other, output"),
    "a second result": (change_onnx(add_output), r"it takes and returns input, output, "),
    "a graph in a circle": (change_onnx(flow_in_a_circle), NO_EXPORT),
    "weights of another layer": (change_onnx(swap_layers), NO_EXPORT),
    "constants missing": (change_onnx(remove_metadata), NO_EXPORT),
    "constants of a million levels": (
        metadata("FEATURES", str([1] * 10**5)),
        r"FEATURES is \[1, 1",
    ),
    "constants that are code": (metadata("MEAN", CODE), NO_EXPORT),
    "constants in ten thousand lists": (metadata("MEAN", "[" * 10**5), NO_EXPORT),
    "constants of other classes": (
        metadata("CLASSES", '["a", "b"]'),
        r"its logits are of shape \(1, 1, 32, 48\), expected \(1, 2, 32, 48\)",
    ),
    "the other format of ONNX Runtime": (write(b"\x08\x00\x00\x00ORTM" + bytes(1000)), NO_EXPORT),
    "a pickle": (write(CODE_BYTES), NO_EXPORT),
    "a shell script": (write(b"#!/bin/sh\ntouch touched\n"), NO_EXPORT),
    "a zip": (copy_of(SCRIPTED), NO_EXPORT),
    "empty": (write(b""), NO_EXPORT),
    "cut off": (cut(0.5), NO_EXPORT),
}
HALF_FILES = {
    "16 bits: a cast to texts": (
        attribute("Cast", "to", TensorProto.STRING),
        rf"it casts to string, {MORE}",
    ),
    "16 bits: a cast to complex numbers": (
        attribute("Cast", "to", TensorProto.COMPLEX128),
        rf"it casts to complex128, {MORE}",
    ),
    "16 bits: a cast more": (
        operator("Cast", to=TensorProto.FLOAT16),
        r"it calls Cast 3 times; a U-Net of 2 levels does so at most 2 times",
    ),
    "16 bits: texts": (change_onnx(add_texts), rf"it holds a tensor of string, {MORE}"),
    "16 bits: numbers of 64 bits": (
        change_onnx(add_doubles),
        rf"it holds a tensor of double, {MORE}",
    ),
    "16 bits: weights of another type": (
        change_onnx(take_for_bfloat16),
        rf"it holds a tensor of bfloat16, {MORE}",
    ),
    "16 bits: weights twice as long as their data": (change_onnx(take_for_float32), NO_EXPORT),
    "16 bits: weights out of any file": (external("/etc/passwd"), rf"{ELSEWHERE}/etc/passwd"),
}


# ---------------------------------------------------------------- checkpoints


FIRST = "downs.0.conv.0.weight"


def weights(**changes):
    """Return a bare state_dict with some entries replaced; __ in a name stands for a dot."""
    renamed = {name.replace("__", "."): value for name, value in changes.items()}
    return dict(UNET(features=[4]).state_dict()) | renamed


def first(value):
    return pickled(weights() | {FIRST: value})


CYCLE = []
CYCLE.append(CYCLE)
CHECKPOINT_FILES = STORAGE_TRICKS | {
    "a negative storage": (bytes_of(b"Kl", b"J\xff\xff\xff\xff", weights()), UNREADABLE),
    "a file outside of its zip": (put("../touched", b"x"), r"it holds a file named"),
    "a payload": (pickled(weights(extra=Payload())), NO_PICKLE),
    "a payload of the older format": (pickled(weights(extra=Payload()), **LEGACY), NO_PICKLE),
    "a payload as a name": (pickled({Payload(): torch.zeros(1)}), NO_PICKLE),
    "a payload in the optimizer": (
        pickled({"state_dict": weights(), "optimizer": {"state": [Payload()]}}),
        NO_PICKLE,
    ),
    "a bare pickle": (write(CODE_BYTES), UNREADABLE),
    "a shell script": (write(b"#!/bin/sh\ntouch touched\n"), UNREADABLE),
    "a tar of payloads": (tar_of_payloads, UNREADABLE),
    "a function that evaluates": (pickled(weights(extra=Calls(eval, CODE))), NO_PICKLE),
    "a function that looks up": (pickled(weights(extra=Calls(getattr, {}, "get"))), NO_PICKLE),
    "a function that opens a file": (
        pickled(weights(extra=Calls(open, "touched", "w"))),
        NO_PICKLE,
    ),
    "a function that loads": (pickled(weights(extra=Calls(torch.load, "car.jpg"))), NO_PICKLE),
    "a function that is not called": (pickled(weights(extra=os.system)), NO_PICKLE),
    "a whole network": (pickled(UNET(features=[4])), NO_PICKLE),
    "a NumPy array": (pickled(weights(extra=np.zeros(3))), NO_PICKLE),
    "a list in itself": (
        pickled(weights(extra=CYCLE)),
        rf"extra is no plain tensor but list|{UNREADABLE}",
    ),
    "a torch.export file": (copy_of(PT2), UNREADABLE),
    "a TorchScript file": (copy_of(SCRIPTED), UNREADABLE),
    "a weight of 4 TB": (first(WIDE), r"claims the shape \(1000000, 1000000\) for 4 bytes"),
    "a weight larger than its data": (
        bytes_of(b"K\x04K\x03K\x03K\x03t", b"K\xffK\xffK\x03K\x03t", weights()),
        UNREADABLE,
    ),
    "more numbers than its data": (bytes_of(b"Kl", b"M\xff\xff", weights()), UNREADABLE),
    "a weight without memory": (first(torch.zeros(4, 3, 3, 3, device="meta")), r"error: "),
    "a sparse weight": (first(torch.eye(3).to_sparse()), r"is no plain tensor|" + UNREADABLE),
    "a weight that is not a number": (
        first(torch.full((4, 3, 3, 3), float("nan"))),
        r"holds values that are infinite or not numbers",
    ),
    "a weight of complex numbers": (first(torch.zeros(4, 3, 3, 3) * 1j), r"holds complex64"),
    "a name with a terminal's codes": (
        pickled(weights() | {"\x1b[2Jx": torch.zeros(1)}),
        r"error: [^\x1b]*\\x1b",
    ),
    "cut off": (cut(0.5), UNREADABLE),
}


# ---------------------------------------------------------------- the tests

HOSTILE = {
    "torch.export": rows(command(PT2), PT2, PT2_FILES),
    "TorchScript": rows(command(SCRIPTED), SCRIPTED, TORCHSCRIPT_FILES),
    "a pickled network": rows(command(PICKLED), PICKLED, PICKLED_FILES),
    "ONNX": rows(command(ONNX), ONNX, ONNX_FILES) + rows(command(HALF), HALF, HALF_FILES),
    "checkpoint": rows(command(BEST), BEST, CHECKPOINT_FILES),
}
ALL_BAD = [bad for table in HOSTILE.values() for bad in table]
OMITTED_FILES = {FORMATS[name].file for name in OMITTED}
BAD = [bad for bad in ALL_BAD if bad.file not in OMITTED_FILES]
if "pt2" in OMITTED:
    BAD = [bad for bad in BAD if bad.name != "a torch.export file"]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.file}: {bad.name}"[:80])
def test_hostile_models_are_refused(bad, exported, tmp_path):
    check_answer(bad, exported["plain"], tmp_path / "work")


@pytest.mark.parametrize("format_name", HOSTILE)
def test_every_format_has_many_hostile_files(format_name):
    assert len({bad.name for bad in HOSTILE[format_name]}) >= 20


def test_hostile_models_are_documented():
    assert documented_kinds(__file__) == len(ALL_BAD)


ALLOWED_DIFFERENCES = {"fp16": 0.02, "int8": 10}


@pytest.mark.parametrize("format_name", WRITTEN)
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_models_load_and_compute_the_same(exported, name, format_name):
    folder = exported[name]
    expected = utils.load_model(folder / BEST, "cpu")
    model = utils.load_model(folder / FORMATS[format_name].file, "cpu")
    assert model.config.items() >= (expected.config | {"PRECISION": "fp32"}).items()
    for size in ((32, 48), (33, 50), (5, 70)):
        images = torch.rand(2, expected.in_channels, *size)
        with torch.inference_mode():
            difference = (model(images) - expected(images)).abs().max()
        assert difference < ALLOWED_DIFFERENCES.get(format_name, 1e-4)


HARMLESS = {
    "guards that are code": (
        PT2,
        graph(lambda program: program.update(guards_code=[f"{CODE} == 0"])),
    ),
    "messages that name functions": (
        PT2,
        node(2, metadata={"source_fn_stack": "a,torch.load", "stack_trace": CODE}),
    ),
    "other sample inputs": (PT2, put("data/sample_inputs/model.pt", torch_bytes(((), {})))),
    "a debug file with a payload": (SCRIPTED, put(f"{TOP}.debug_pkl", CODE_BYTES)),
    "traced inputs with a payload": (SCRIPTED, put("traced_inputs.pkl", CODE_BYTES)),
    "a comment": (SCRIPTED, before_return("# type: (Tensor) -> None")),
    "the name of the other format of ONNX Runtime": (
        ONNX,
        change_onnx(lambda model: setattr(model, "producer_name", "ORTM")),
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_unused_contents_of_a_model_do_nothing(kind, exported, tmp_path):
    file, spoil = HARMLESS[kind]
    if not (exported["plain"] / file).exists():
        pytest.skip("this torch is too old to write such a file")
    work = tmp_path / "work"
    shutil.copytree(exported["plain"], work)
    run_script(work, *command(file), "--out", "good")
    spoil(work / file)
    run_script(work, *command(file), "--out", "spoiled")
    masks = [(work / name / "car_mask.png").read_bytes() for name in ("good", "spoiled")]
    assert masks[0] == masks[1]
    assert not (work / "touched").exists()


def test_attributes_of_a_pickled_network_hide_no_method(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = utils.load_model(exported["plain"] / PICKLED, "cpu")
    images = torch.rand(1, 3, 32, 48)
    expected = model(images)
    model.__dict__ |= {"forward": nn.ReLU(), "state_dict": set, "to": nn.ReLU()}
    model._forward_pre_hooks[0] = nn.ReLU()
    torch.save(model, "hidden.pth")
    assert torch.equal(utils.load_model("hidden.pth", "cpu")(images), expected)
