"""Unpickling without importing or calling anything that a file names.

`torch.load(weights_only=True)` refuses hosts' own classes, knows them by a list of the whole
process, and lets a few bytes ask for gigabytes. Here a class that is not known becomes an inert
stand-in, everything that is built is bounded by what the file holds, and threads do not meet.
"""

import codecs
import io
import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MAPPINGS = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
}
"""dict and its subclasses in hosts' checkpoints; they become an OrderedDict."""

NUMBERS = {
    "b1": "?",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
"""numpy's type codes, as those of `struct`."""

FORBIDDEN = (
    pickle.BYTEARRAY8 + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER + pickle.EXT1 + pickle.EXT2
) + (pickle.EXT4 + pickle.INST + pickle.OBJ)
"""What torch.save does not write, and what allocates before it reads, or names classes oddly."""

MOST_EXPANDED = 2**20  # numbers of a tensor that repeats those of its storage


class NotLoaded:
    """Stands where a checkpoint holds an object of a class that was not loaded, without content."""

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "NotLoaded":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drop an element of a list's subclass."""

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class PlainMapping:
    """Stands for a subclass of dict: making one gives an OrderedDict."""

    def __new__(cls, *args: Any) -> Any:
        items = args[0] if args and isinstance(args[0], list) else []
        _check_keys(pair[0] for pair in items)
        return OrderedDict(items)


class NumpyType(NotLoaded):
    """Stands for `numpy.dtype`: keeps the type's code and byte order."""

    code, order = "", "<"

    def __init__(self, code: Any = "", *args: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if tuple(state)[1:2] == (">",) else "<"


class Storage:
    """Numbers that tensors are views of: bytes, and what a number is."""

    def __init__(self, untyped: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.untyped, self.dtype = untyped, dtype


# the C unpickler allocates a table of any size that a file asks for; this one has few types
_Unpickler: Any = pickle._Unpickler


class InertUnpickler(_Unpickler):  # type: ignore[misc]
    """One pickle of a checkpoint.

    Args:
        file: the pickle.
        load_storage: makes a `Storage` of a persistent id.
    """

    dispatch = {  # noqa: RUF012 (as in the class that it is of)
        code: load for code, load in _Unpickler.dispatch.items() if code not in FORBIDDEN
    }

    def __init__(self, file: io.BufferedIOBase, load_storage: Callable[[Any], Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self.load_storage = load_storage

    def persistent_load(self, identity: Any) -> Storage:
        return self.load_storage(identity)

    def find_class(self, module: str, name: str) -> Any:  # a function or class, of ours or inert
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in MAPPINGS:
            return PlainMapping
        if full in CALLS:
            return CALLS[full]
        if module == "torch" and isinstance(known := getattr(torch, name, None), torch.dtype):
            return known
        if module in ("torch", "torch.storage") and name.removesuffix("Storage") in DTYPES:
            return DTYPES[name.removesuffix("Storage")]
        kind = NumpyType if full == "numpy.dtype" else NotLoaded
        return type("NotLoaded", (kind,), {"name": full})

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    dispatch[pickle.FROZENSET[0]] = load_frozenset


def _check_keys(keys: Iterable[Any]) -> None:
    """Hashing a nested tuple takes the process's stack, or time without end."""
    for key in keys:
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, tuple | frozenset):
                raise pickle.UnpicklingError("a dict has a nested tuple for a key")


def _make_set(items: Any = ()) -> set[Any]:
    _check_keys(items)
    return set(items)


def _make_bytes(text: Any = b"", *encoding: Any) -> bytes:
    """bytes, bytearray and codecs.encode; a number would be a size."""
    if isinstance(text, str):
        return codecs.encode(text, "latin1")
    if isinstance(text, bytes):
        return text
    raise pickle.UnpicklingError(f"bytes are made of a {type(text).__name__}")


def _make_number(kind: Any = None, data: Any = None) -> Any:
    """One of numpy's scalars as a Python number, such as siamban's learning rates."""
    if isinstance(kind, NumpyType) and kind.code in NUMBERS and isinstance(data, bytes):
        return struct.unpack(kind.order + NUMBERS[kind.code], data)[0]
    return NotLoaded()


def _make_size(sizes: Any = ()) -> torch.Size:
    return torch.Size(int(size) for size in sizes)


def _make_device(*args: Any) -> torch.device:
    return torch.device(*args)


def _make_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    about: Any = None,
) -> Any:
    """`torch._utils._rebuild_tensor_v2`, which would let a storage grow to any size."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor is made of a {type(storage).__name__}")
    offset, size, stride = int(offset), tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or len(size) > 64 or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError(f"a tensor has size {size} and stride {stride}")
    numbers = storage.untyped.nbytes() // storage.dtype.itemsize
    count = 1
    for side in size:
        count *= side
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if count > max(numbers, MOST_EXPANDED):
        return NotLoaded()  # the same numbers again and again
    if count > 0 and last >= numbers:
        raise pickle.UnpicklingError(
            f"a tensor of size {size} does not fit its storage of {numbers} numbers"
        )
    tensor = torch.empty(0, dtype=storage.dtype, device=storage.untyped.device)
    if count > 0:
        tensor.set_(storage.untyped, offset, size, stride)
    else:
        tensor = tensor.new_empty(size) if max(size) <= MOST_EXPANDED else tensor
    about = about if isinstance(about, dict) else {}
    if tensor.is_complex() and about.get("conj"):
        tensor = torch._conj(tensor)
    if about.get("neg"):
        tensor = torch._neg_view(tensor)
    return tensor.requires_grad_(bool(requires_grad and tensor.is_floating_point()))


def _make_newer_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    *rest: Any,
) -> Any:
    """`_rebuild_tensor_v3`: of dtypes that have no storage of their own."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        return NotLoaded()
    own = Storage(storage.untyped, dtype)
    return _make_tensor(own, offset, size, stride, requires_grad, hooks, *rest[:1])


def _make_parameter(data: Any, requires_grad: Any = True, *_: Any) -> torch.nn.Parameter:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter is made of a {type(data).__name__}")
    return torch.nn.Parameter(data, bool(requires_grad and data.is_floating_point()))


def _make_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes of its own, or of a subclass: the plain tensor."""
    return function(*args) if function in (_make_tensor, _make_parameter) else NotLoaded()


CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _make_bytes,
    "builtins.bytearray": _make_bytes,
    "builtins.bytes": _make_bytes,
    "builtins.complex": complex,
    "builtins.frozenset": _make_set,
    "builtins.set": _make_set,
    "numpy.core.multiarray.scalar": _make_number,
    "numpy._core.multiarray.scalar": _make_number,
    "torch.Size": _make_size,
    "torch.device": _make_device,
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor_v3": _make_newer_tensor,
    "torch._utils._rebuild_parameter": _make_parameter,
    "torch._utils._rebuild_parameter_with_state": _make_parameter,
    "torch._tensor._rebuild_from_type_v2": _make_from_type,
    "torch.nn.parameter.Parameter": _make_parameter,
}
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}
