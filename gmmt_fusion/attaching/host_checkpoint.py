"""Reading the checkpoints of host trackers, which `torch.load` refuses since 2.6, without running
any of their code.
"""

import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MAPPINGS = {
    "collections.defaultdict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "addict.addict.Dict",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
}
"""Subclasses of dict in hosts' checkpoints; they become an OrderedDict."""

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


class NotLoaded:
    """Stands where a checkpoint holds an object of a class that was not loaded; it has none of the
    object's content.
    """

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "NotLoaded":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class Mapping:
    """Stands for a subclass of dict: calling it gives an OrderedDict, the one that `torch.load`
    accepts items for.
    """

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class Type(NotLoaded):
    """Stands for `numpy.dtype`: keeps the type's code and byte order."""

    code, order = "", "<"

    def __init__(self, code: Any = "", *args: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if tuple(state)[1:2] == (">",) else "<"


class Number(NotLoaded):
    """Stands for numpy's scalars: calling it gives a Python number, such as siamban's learning
    rates.
    """

    def __new__(cls, kind: Any = None, data: Any = None) -> Any:
        if isinstance(kind, Type) and kind.code in NUMBERS and isinstance(data, bytes):
            return struct.unpack(kind.order + NUMBERS[kind.code], data)[0]
        return super().__new__(cls)


KNOWN = {
    "numpy.dtype": Type,
    "numpy.core.multiarray.scalar": Number,
    "numpy._core.multiarray.scalar": Number,
    **dict.fromkeys(MAPPINGS, Mapping),
}


def load_host_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A host's checkpoint (`.pth`, `.pth.tar`), without the host's repository on the import path.

    Tensors, numbers, strings and containers are loaded as they are; an object of any other class
    becomes an inert `NotLoaded`. Nothing that the file names is imported or called. Subclasses of
    list, and of dict other than those of `MAPPINGS`, cannot be read.

    The weights are under "net" in checkpoints of the OSTrack family (ViPT, TBSI; beside
    "optimizer", "stats", "settings", "epoch", …), under "state_dict" in siamban's (beside
    "optimizer" and "epoch"); some have the weights themselves at the top, some names with a leading
    "module.".

    Args:
        path: the file.
        map_location: where tensors go, as in `torch.load`.

    Returns:
        The dict that the host saved.

    Raises:
        OSError: the file is missing, cut off, or no checkpoint that can be read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError(f"{path} is missing; expected a host's checkpoint, a .pth or .pth.tar file")
    try:
        inert: list[Any] = [(_stand_in(name), name) for name in sorted(_unknown_names(path))]
        with torch.serialization.safe_globals(inert):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        first = next(iter(str(error).splitlines()), "")
        raise OSError(
            f"{path} is cut off, or no checkpoint of torch.save that can be read without running "
            "code: "
            f"{type(error).__name__}: {first}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise OSError(
            f"{path} holds a {type(checkpoint).__name__}; expected a dict, as hosts' trainers save"
        )
    return checkpoint


def _stand_in(name: str) -> type:
    # a class of its own for each name: torch.load finds it by identity
    return type("NotLoaded", (KNOWN.get(name, NotLoaded),), {"name": name})


def _unknown_names(path: Path) -> set[str]:
    """The classes and functions that the file names and `torch.load` does not know; nothing is
    unpickled.
    """
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return set(_legacy_names(path))


def _legacy_names(path: Path) -> Iterator[str]:
    """All names in a file of torch before 1.6, as siamban's published weights: five pickles, then
    the tensors.
    """
    with path.open("rb") as file:
        for _ in range(5):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    module, name = NAME_MAPPING.get(
                        (module, name), (IMPORT_MAPPING.get(module, module), name)
                    )
                    yield f"{module}.{name}"
