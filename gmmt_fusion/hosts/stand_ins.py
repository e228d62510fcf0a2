"""What stands in for packages that trackers of 2022 import, and that are not installed.

Of those that a tracker needs a part of, a module in `missing` does the work of that part. Of all
others names can be imported, and using one raises an error that says what to install.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

WORKING: Mapping[str, tuple[str, Sequence[str]]] = {
    "colorama": ("colorama", ("Back", "Fore", "Style", "deinit", "init", "reinit")),
    "jpeg4py": ("jpeg4py", ("JPEG",)),
    "tensorboardX": ("tensorboardx", ("SummaryWriter",)),
    "torch._six": (
        "torch_six",
        ("container_abcs", "inf", "int_classes", "nan", "string_classes"),
    ),
    "torch.utils.tensorboard": ("tensorboard", ("SummaryWriter",)),
    "torchvision": ("torchvision", ("__version__", "_is_tracing")),
    "torchvision.ops.boxes": ("torchvision", ("box_area",)),
    "torchvision.transforms": ("torchvision", ("ToTensor",)),
    "torchvision.transforms.functional": ("torchvision", ("normalize",)),
}
"""Module: its stand-in in `missing`, and the names that this one has of it."""

PACKAGES: Mapping[str, str] = {
    "colorama": "colorama",
    "imp": "nothing: the module left Python with 3.12",
    "jpeg4py": "jpeg4py",
    "lmdb": "lmdb",
    "pycocotools": "pycocotools",
    "tensorboardX": "tensorboardX",
    "torch._six": "nothing: the module left PyTorch with 2.0",
    "torch.utils.tensorboard": "tensorboard",
    "torchvision": "the torchvision that belongs to this torch",
    "trax": "vot-trax",
    "turtle": "Python with Tk",
    "visdom": "visdom",
    "vot": "vot-toolkit",
    "wandb": "wandb",
}
"""Those that get a stand-in, and what to install for the real one."""

UNUSABLE = {"torch.utils.tensorboard": "tensorboard", "turtle": "_tkinter"}
"""Modules that are there, and fail where another is missing."""

PATIENCE = 100  # times that one process may ask for what is missing


class MissingPackageError(ImportError):
    """A tracker uses something of a package that is not installed."""


class StandIn(type):
    """The class of what stands for a name of a missing package: it can be imported and subclassed.

    Raises:
        MissingPackageError: it is called.
    """

    times = 0

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # whatever the package's takes
        _refuse(cls)

    def __getattr__(cls, name: str) -> StandIn:
        return stand_in(cls.__module__, f"{cls.__qualname__}.{name}")


def _refuse(cls: type) -> None:
    packages = {**{name: name for name in _asked}, **PACKAGES}
    name, package = next(  # a host's subclass has it among its bases
        (f"{base.__module__}.{base.__qualname__}", package)
        for base in cls.__mro__
        for package in (base.__module__, *_parents(base.__module__))
        if package in packages
    )
    problem = (
        f"this tracker uses {name}, and {package} is not installed; install {packages[package]}"
    )
    StandIn.times += 1
    if StandIn.times >= PATIENCE:  # a bare `except` in a loop that tries again would never end
        print(f"error: {problem} (asked for {StandIn.times} times)", file=sys.stderr, flush=True)
        os._exit(2)
    raise MissingPackageError(problem)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


_asked: dict[str, None] = {}  # packages beyond `PACKAGES` that somebody wanted stand-ins for


def stand_in(module: str, name: str) -> StandIn:
    """What stands for `name` of a missing module.

    Raises:
        AttributeError: a name that Python itself looks up, such as `__path__`.
    """
    if name.rpartition(".")[2].startswith("__"):
        raise AttributeError(name)
    return StandIn(name.rpartition(".")[2], (), {"__module__": module, "__qualname__": name})


class StandInModule(types.ModuleType):
    """A module of a missing package: its names, but for those that do their work, stand in."""

    def __getattr__(self, name: str) -> StandIn:
        return stand_in(self.__name__, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that have a stand-in, with all their submodules.

    As the last of `sys.meta_path` it is asked for what nothing else has found; as the first, with
    `unusable`, for what is found and cannot work.
    """

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self.packages):
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandInModule:
        return StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ in WORKING:
            name, exports = WORKING[module.__name__]
            working = importlib.import_module(f".missing.{name}", __package__)
            vars(module).update({export: getattr(working, export) for export in exports})


def install_stand_ins(*more: str) -> None:
    """Let imports of `PACKAGES`, and of `more` packages, find a stand-in from now on.

    The whole process gets them, and only for what is not installed or cannot be imported.
    """
    known = {
        name for finder in sys.meta_path if isinstance(finder, Finder) for name in finder.packages
    }
    _asked.update(dict.fromkeys(more))
    broken = [name for name, needs in UNUSABLE.items() if not _is_installed(needs)]
    if first := [name for name in broken if name not in known]:
        sys.meta_path.insert(0, Finder(first))
    if last := [name for name in (*PACKAGES, *more) if name not in known and name not in broken]:
        sys.meta_path.append(Finder(last))


def _is_installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None
