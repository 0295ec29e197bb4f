"""TorchScript archives: checked to hold a U-Net's layers and calls before torch opens them.

torch.jit.load compiles the code in an archive, runs __setstate__ methods of it, and believes what
its data.pkl says of the sizes of tensors: a larger one is read from beyond its memory.
"""

import ast
import io
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from carvana.untrusted import (
    Limits,
    Records,
    Refused,
    check_extent,
    check_names,
    check_operators,
    quoted,
)

RECORD = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|data/\d+|code/__torch__/[\w/]+\.py"
)
# Written by torch.jit.save, and of no use here.
UNUSED = re.compile(
    r"code/__torch__/[\w/]+\.py\.debug_pkl|traced_inputs\.pkl|traced_inputs/\d+|\.data/\w+"
    r"|extra/config\.json"
)
NO_CONSTANTS = b"\x80\x02)."  # the pickle of an empty tuple
OPERATORS: Limits = {
    "int": (0, 6),
    "ops.prim.NumToTensor": (0, 4),
    "torch._convolution": (5, 3),
    "torch.batch_norm": (4, 2),
    "torch.cat": (1, 0),
    "torch.max_pool2d": (1, 0),
    "torch.pad": (0, 1),
    "torch.pixel_shuffle": (0, 1),
    "torch.pixel_unshuffle": (0, 1),
    "torch.relu_": (4, 2),
    "torch.remainder": (0, 4),
    "torch.rsub": (0, 2),
    "torch.size": (0, 4),
    "torch.slice": (0, 8),
}
SYNTAX = (
    *(ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg),
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.Call, ast.Attribute, ast.Name),
    *(ast.Constant, ast.List, ast.Subscript, ast.Load, ast.Store),
)
OPERATOR = re.compile(r"(torch|ops)\.|(?!getattr$)\w+$")  # but not a method of a layer
METHOD = re.compile(r"forward\d*")
ARGUMENTS = re.compile(r"self: __torch__[\w.]+, \w+: Tensor", re.ASCII)
ANNOTATION = re.compile(r"Tensor|bool|Optional\[bool\]|__torch__(\.\w+)+", re.ASCII)
STRING = re.compile(r"\w{1,40}", re.ASCII)  # a way to pad, names of layers and of tensors
WHOLE_AXIS = 2**63 - 1  # where a slice ends that takes everything
LARGEST_INTEGER = 8 * 2**12  # what sides are padded to a multiple of
OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "SETITEMS", "EMPTY_TUPLE", "TUPLE"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE", "BININT", "BININT1", "BININT2"),
}
ITEM_SIZES = {"FloatStorage": 4, "LongStorage": 8}
Types = dict[str, dict[str, str]]  # class -> {attribute: its annotation}


class Call(NamedTuple):
    """A method of a layer's class that is called."""

    type: str
    method: str


class Code(NamedTuple):
    """What the source code of an archive defines."""

    types: Types
    methods: set[Call]


def check_torchscript(records: Records, levels: int) -> Records:
    """Return the records of a TorchScript archive that torch needs, all of them checked.

    The code is written anew from its syntax tree, so that torch reads the same as was checked.

    Raises:
        Refused: it holds anything but the layers and calls of a U-Net with so many levels.
        Exception: of nearly any kind, if it is damaged.
    """
    kept = {name: content for name, content in records.items() if not UNUSED.fullmatch(name)}
    check_names(kept, RECORD)
    if kept["constants.pkl"] != NO_CONSTANTS:
        raise Refused("constants.pkl holds constants, which no file of export.py does")
    trees = {name: ast.parse(kept[name]) for name in kept if name.startswith("code/")}
    code = _read_definitions(trees)
    calls = _check_code(trees, code, levels)
    root = _check_pickle(kept["data.pkl"], kept, code.types)
    # Then every method runs once at most: no recursion, no loops, no time that grows by itself.
    if max(calls.values(), default=0) > 1 or code.methods - calls.keys() != {Call(root, "forward")}:
        raise Refused("a layer of it is called more than once, or never")
    return kept | {name: f"{ast.unparse(tree)}\n".encode() for name, tree in trees.items()}


# ---------------------------------------------------------------- code


def _read_definitions(trees: Mapping[str, ast.Module]) -> Code:
    """Return the classes of all files, with their attributes and methods."""
    code = Code({}, set())
    for name, tree in trees.items():
        for definition in tree.body:
            if not isinstance(definition, ast.ClassDef):
                raise Refused(f"{quoted(name)} holds more than classes")
            type_name = f"{_module_name(name)}.{definition.name}"
            if type_name in code.types:
                raise Refused(f"it defines {quoted(type_name)} twice")
            code.types[type_name] = _check_class(type_name, definition, code.methods)
    return code


def _check_class(type_name: str, definition: ast.ClassDef, methods: set[Call]) -> dict[str, str]:
    """Return the annotations of a class; add its methods."""
    attributes = {}
    extras = (*definition.keywords, *definition.decorator_list)
    if extras or [ast.unparse(base) for base in definition.bases] != ["Module"]:
        raise Refused(f"{quoted(type_name)} is no layer")
    for statement in definition.body:
        match statement:
            case ast.FunctionDef(name=name) if METHOD.fullmatch(name):
                methods.add(Call(type_name, name))
            case ast.FunctionDef(name=name):
                raise Refused(f"it holds a method {quoted(name)}, which no layer of export.py has")
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=None):
                attributes[name] = ast.unparse(annotation)
            case ast.Assign(
                targets=[
                    ast.Subscript(
                        value=ast.Name(id="__annotations__"),
                        slice=ast.Constant(value=str() as name),
                    )
                ],
                value=annotation,
            ):
                _check_annotation(annotation)
                attributes[name] = ast.unparse(annotation)
            case ast.Assign(
                targets=[ast.Name(id="__parameters__" | "__buffers__")],
                value=ast.List(elts=names),
            ) if all(isinstance(name, ast.Constant) for name in names):
                pass
            case _:
                raise Refused(f"{quoted(type_name)} holds {quoted(ast.unparse(statement))}")
    return attributes


def _check_code(trees: Mapping[str, ast.Module], code: Code, levels: int) -> Counter[Call]:
    """Return how often the code calls each method; check everything else that it does."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    operators = Counter(name for name in functions if OPERATOR.match(name))
    check_operators(operators, OPERATORS, levels)
    for node in nodes:
        _check_node(node)
    calls: Counter[Call] = Counter()
    for name, tree in trees.items():
        definitions = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for definition in definitions:
            for statement in definition.body:
                if isinstance(statement, ast.FunctionDef):
                    body = Body(f"{_module_name(name)}.{definition.name}", code)
                    body.read(statement)
                    calls.update(body.calls)
    return calls


def _module_name(record: str) -> str:
    return record.removeprefix("code/").removesuffix(".py").replace("/", ".")


def _check_node(node: ast.AST) -> None:
    """Raise Refused if a piece of syntax is none that traced layers need."""
    if not isinstance(node, SYNTAX):
        raise Refused(f"its code holds {type(node).__name__}, which no layer of export.py does")
    match node:
        case ast.arg(annotation=ast.expr() as annotation):
            _check_annotation(annotation)
        case (
            ast.AnnAssign(annotation=annotation) | ast.FunctionDef(returns=ast.expr() as annotation)
        ):
            _check_annotation(annotation)
    if isinstance(node, ast.Constant):
        value = node.value
        is_text = isinstance(value, str) and STRING.fullmatch(value)
        is_whole = isinstance(value, int) and (value <= LARGEST_INTEGER or value == WHOLE_AXIS)
        if not (is_text or is_whole or isinstance(value, float) or value is None):
            raise Refused(f"its code holds the constant {quoted(repr(value))}")


def _check_annotation(annotation: ast.expr) -> None:
    if not ANNOTATION.fullmatch(ast.unparse(annotation)):
        raise Refused(f"its code holds {quoted(ast.unparse(annotation))}")


class Body:
    """The body of a method of a layer.

    Attributes: calls, the methods of layers that it calls.
    """

    def __init__(self, type_name: str, code: Code) -> None:
        self.code = code
        self.types = {"self": type_name}  # of the variables that are layers
        self.calls: list[Call] = []

    def read(self, function: ast.FunctionDef) -> None:
        """Read the statements of a method. Raises Refused for what traced layers do not do."""
        if function.decorator_list or not ARGUMENTS.fullmatch(ast.unparse(function.args)):
            raise Refused(f"its code holds {quoted(ast.unparse(function))}")
        for statement in function.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._read_value(value)
                    if name in self.types:
                        raise Refused(f"its code assigns {quoted(name)} twice")
                    if layer := self._layer(value):
                        self.types[name] = layer
                case ast.Return(value=ast.expr() as value):
                    self._read_value(value)
                case _:
                    raise Refused(f"its code holds {quoted(ast.unparse(statement))}")

    def _layer(self, value: ast.expr) -> str | None:
        """Return the type of an expression that is a layer of a layer, None for any other."""
        match value:
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                pass
            case ast.Call(
                func=ast.Name(id="getattr"),
                args=[ast.Name(id=owner), ast.Constant(value=str() as name)],
            ):
                pass
            case _:
                return None
        annotation = self.code.types.get(self.types.get(owner, ""), {}).get(name)
        return annotation if annotation in self.code.types else None

    def _read_value(self, value: ast.expr) -> None:
        """Note the calls in an expression."""
        for node in _walk_values(value):
            match node:
                case ast.Call(keywords=[_, *_]):
                    raise Refused(f"its code holds {quoted(ast.unparse(node))}")
                case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=owner), _]):
                    if owner not in self.types:
                        raise Refused(f"its code holds {quoted(ast.unparse(node))}")
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)) if (
                    owner in self.types
                ):
                    self.calls.append(Call(self.types[owner], method))
                    if self.calls[-1] not in self.code.methods:
                        raise Refused(f"its code calls {quoted(method)} of a layer")
                case ast.Call(func=function) if ast.unparse(function) not in OPERATORS:
                    raise Refused(f"its code calls {quoted(ast.unparse(function))}")
                case ast.Attribute(value=ast.Name(id=owner)) if owner in self.types:
                    pass
                case ast.Attribute():
                    raise Refused(f"its code holds {quoted(ast.unparse(node))}")


def _walk_values(value: ast.expr) -> Iterator[ast.expr]:
    """Yield an expression and those in it, but of a call only the arguments."""
    yield value
    inner = [*value.args] if isinstance(value, ast.Call) else [*ast.iter_child_nodes(value)]
    for node in inner:
        if isinstance(node, ast.expr):
            yield from _walk_values(node)


# ---------------------------------------------------------------- tensors


def _check_pickle(content: bytes, records: Records, types: Types) -> str:
    """Return the type of the object in data.pkl.

    Raises:
        Refused: it holds anything but layers of these types, plain values, and tensors that
            are as large as their data.
    """
    places = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise Refused(f"data.pkl holds {opcode.name}, which no file of export.py does")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            if argument != places:  # torch would make room for every place up to this one
                raise Refused("data.pkl puts objects into places out of order")
            places += 1
    root = TensorReader(content, records, types).load()
    if not isinstance(root, Layer) or not root.is_built:
        raise Refused("data.pkl holds no layer")
    return root.type_name


class Layer:
    """Stands for an object of a class in the archive's code."""

    type_name = ""
    annotations: Mapping[str, str] = {}
    is_built = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Check the attributes. torch trusts that they are of the types that the code says."""
        if not isinstance(state, dict) or state.keys() != self.annotations.keys():
            raise Refused(f"data.pkl holds other attributes than {quoted(self.type_name)} has")
        for name, value in state.items():
            if not _is_of_type(value, self.annotations[name]):
                raise Refused(f"data.pkl holds a {quoted(name)} of another type than the code says")
        self.is_built = True


def _is_of_type(value: Any, annotation: str) -> bool:
    if annotation == "Tensor":
        return isinstance(value, Tensor)
    if annotation in ("bool", "Optional[bool]"):
        return isinstance(value, bool) or (value is None and annotation != "bool")
    return isinstance(value, Layer) and value.type_name == annotation and value.is_built


class StorageType(NamedTuple):
    """Stands for a storage class of torch."""

    item_size: int


class Storage(NamedTuple):
    """Stands for the numbers of a tensor."""

    count: int  # type: ignore[assignment]  # hides tuple.count


class Tensor:
    """Stands for a tensor."""


def rebuild_tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Return what stands for a tensor. Raises Refused if it reaches beyond its storage."""
    check_extent(storage.count, offset, size, stride)
    return Tensor()


class TensorReader(pickle.Unpickler):
    """Reads data.pkl into stand-ins: nothing that it names is imported or run."""

    def __init__(self, content: bytes, records: Records, types: Types) -> None:
        super().__init__(io.BytesIO(content))
        self.records = records
        self.layers = {
            name: type("Layer", (Layer,), {"type_name": name, "annotations": annotations})
            for name, annotations in types.items()
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function. Raises Refused for any that is unknown."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in ITEM_SIZES:
            return StorageType(ITEM_SIZES[name])
        if f"{module}.{name}" in self.layers:
            return self.layers[f"{module}.{name}"]
        raise Refused(f"data.pkl names {quoted(f'{module}.{name}')}, which could be code")

    def persistent_load(self, pid: Any) -> Storage:
        """Return what stands for a storage. Raises Refused if its data is of another size."""
        _, storage_type, key, device, count = pid
        size = len(self.records[f"data/{key}"])
        if device != "cpu" or type(count) is not int or count * storage_type.item_size != size:
            raise Refused(f"data.pkl claims {quoted(count)} numbers of the {size} bytes in {key}")
        return Storage(count)
