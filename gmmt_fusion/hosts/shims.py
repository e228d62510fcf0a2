"""Names that Python, numpy, pandas and PyTorch had in 2022 and have no more, or mean otherwise.

Each function gets a module that was just imported, and `Patches` that record what it changes.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import contextlib
import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .no_gpu import ignore_gpu
from .opencv import adapt_opencv
from .patches import Patches
from .safe_loading import load_own_checkpoints

NUMPY = {
    "bool": bool,
    "complex": complex,
    "float": float,
    "int": int,
    "object": object,
    "str": str,
    "long": int,
    "unicode": str,
    "float_": "float64",
    "complex_": "complex128",
    "string_": "bytes_",
    "unicode_": "str_",
    "Inf": "inf",
    "Infinity": "inf",
    "PINF": "inf",
    "infty": "inf",
    "NaN": "nan",
    "alltrue": "all",
    "sometrue": "any",
    "product": "prod",
    "cumproduct": "cumprod",
    "in1d": "isin",
    "trapz": "trapezoid",
    "row_stack": "vstack",
    "round_": "round",
}
"""Removed name: its value, or what numpy calls it now."""


def restore_collections(module: ModuleType, patches: Patches) -> None:
    """collections.Mapping, Sequence, … which left with Python 3.10 for collections.abc."""
    for name in collections.abc.__all__:
        if not hasattr(module, name):
            patches.set(module, name, getattr(collections.abc, name))


def restore_numpy(numpy: ModuleType, patches: Patches) -> None:
    """np.float, np.int, … which left with numpy 1.24, and those that left with 2."""
    for name, value in NUMPY.items():
        if name not in vars(numpy) and (not isinstance(value, str) or hasattr(numpy, value)):
            patches.set(numpy, name, getattr(numpy, value) if isinstance(value, str) else value)


def restore_pandas(pandas: ModuleType, patches: Patches) -> None:
    """read_csv(squeeze=True), which left with pandas 2."""
    own = pandas.read_csv

    @functools.wraps(own)
    def read_csv(*args: Any, squeeze: bool = False, **kwargs: Any) -> Any:  # as pandas'
        table = own(*args, **kwargs)
        return table.squeeze("columns") if squeeze else table

    patches.set(pandas, "read_csv", read_csv)


def restore_local_rank(parser: type[argparse.ArgumentParser], patches: Patches) -> None:
    """`--local-rank`, as torch.distributed.launch spells it since 2.0, for `--local_rank`."""
    own = parser.parse_known_args

    @functools.wraps(own)
    def parse_known_args(self: Any, args: Any = None, namespace: Any = None) -> Any:
        import sys

        given = list(sys.argv[1:] if args is None else args)
        known = self._option_string_actions
        if "--local_rank" in known and "--local-rank" not in known:
            given = [
                "--local_rank" + argument.removeprefix("--local-rank")
                if argument.split("=")[0] == "--local-rank"
                else argument
                for argument in given
            ]
        return own(self, given, namespace)

    patches.set(parser, "parse_known_args", parse_known_args)


def restore_trax(trax: ModuleType, patches: Patches) -> None:
    """A server for one object, as the wrappers for VOT that hosts carry along know it.

    Since vot-trax 4 it has a list of objects, and takes `metadata`.
    """

    class Request(trax.server.Request):  # type: ignore[name-defined, misc]  # of no stubs
        @property
        def region(self) -> Any:
            return self.objects[0][0] if self.objects else None

    class Server(trax.Server):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, customMetadata: Any = None, **kwargs: Any) -> None:
            if customMetadata is not None:
                kwargs["metadata"] = customMetadata
            super().__init__(*args, **kwargs)

        def wait(self) -> Any:
            return Request(*super().wait())

        def status(self, objects: Any, properties: Any = None) -> Any:
            objects = objects if isinstance(objects, list) else [(objects, {})]
            return super().status(objects, properties)

    fields = getattr(trax.server.Request, "_fields", ())
    if isinstance(fields, tuple) and "objects" in fields:  # neither an older one nor a stand-in
        patches.set(trax, "Server", Server)


def restore_torch(torch: ModuleType, patches: Patches) -> None:
    """Hard-coded GPUs where there is none, and checkpoints of the host's own trainer."""
    ignore_gpu(torch, patches)
    load_own_checkpoints(torch, patches)


AFTER_IMPORT: Mapping[str, Callable[[Any, Patches], None]] = {
    "cv2": adapt_opencv,
    "numpy": restore_numpy,
    "pandas": restore_pandas,
    "torch": restore_torch,
    "trax": restore_trax,
}
"""What to do once a package is imported."""


def install(patches: Patches) -> None:
    """Do all that now, in a process that has not imported its tracker yet."""
    restore_collections(collections, patches)
    restore_local_rank(argparse.ArgumentParser, patches)
    for name, restore in AFTER_IMPORT.items():
        with contextlib.suppress(ModuleNotFoundError):  # a tracker may need no pandas
            restore(importlib.import_module(name), patches)
