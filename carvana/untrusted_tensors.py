"""Zips of torch.save: checked to hold all that their tensors claim before torch reads them.

Versions of torch up to 2.9 at least read beyond a tensor's data if the pickle says so.
"""

import io
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from carvana.untrusted import Refused, is_zip, quoted, read_records, write_records

# What torch reads with weights_only=True. Others may take memory or time without end.
OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_SET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BINUNICODE", "SHORT_BINSTRING", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1"),
}
STORAGE_BYTES = {  # of a number, by torch's names of storages
    **dict.fromkeys(("UntypedStorage", "ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("ShortStorage", "HalfStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("IntStorage", "FloatStorage"), 4),
    **dict.fromkeys(("LongStorage", "DoubleStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}


def load_tensors(path: str | Path | bytes) -> Any:
    """Return what torch.save wrote, on the CPU. Code in it does not run.

    Args:
        path: of a file, or the content of a zip.

    Raises:
        Refused: a tensor is larger than its data, or the zip could be read in two ways.
        Exception: of nearly any kind, if it is not as torch.save wrote it.
    """
    if not isinstance(path, bytes) and not is_zip(path):  # torch before 1.6 wrote none
        return torch.load(path, map_location="cpu", weights_only=True)
    records = read_records(path)
    _check_storages(records["data.pkl"], {name: len(data) for name, data in records.items()})
    return torch.load(write_records(records), map_location="cpu", weights_only=True)


def _check_storages(content: bytes, sizes: Mapping[str, int]) -> None:
    """Raise Refused if a storage that a pickle names is larger than its record in the zip."""
    for opcode, _, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise Refused(f"its pickle holds {opcode.name}, which torch does not read")
    StorageChecker(content, sizes).load()


class Anything:
    """Stands for any class or object that a pickle names: it takes everything and does nothing."""

    def __init__(self, *_: Any) -> None:
        """Take what the object would be made of."""

    def _take(self, *_: Any) -> None:
        """Take what would be put into the object."""

    __call__ = __setstate__ = __setitem__ = append = extend = _take


class StorageChecker(pickle._Unpickler):
    """Reads a pickle into stand-ins: nothing that it names is imported or run.

    It is Python's own unpickler in Python; the one in C makes room for as many objects as the
    largest number in the pickle.
    """

    def __init__(self, content: bytes, sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content))
        self.sizes = sizes  # bytes of each record of the zip

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function."""
        return STORAGE_BYTES.get(name, Anything)

    def persistent_load(self, pid: Any) -> Anything:
        """Return what stands for a storage. Raises Refused if the zip holds less of it."""
        if type(pid) is not tuple or len(pid) != 5:
            raise Refused("its pickle names no storage where torch expects one")
        _, item_bytes, key, _, count = pid
        if type(item_bytes) is not int or type(key) is not str or type(count) is not int:
            raise Refused("its pickle describes a storage as torch does not")
        if not 0 <= count * item_bytes <= self.sizes.get(f"data/{key}", -1):
            raise Refused(f"its tensor {quoted(key)} is larger than its data")
        return Anything()
