"""Empty stand-ins for packages that trackers of 2022 import, and do not need to track or train.

The whole process gets them, and only for what is not installed.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence

from torch import Tensor

PACKAGES = (
    "colorama",
    "jpeg4py",
    "lmdb",
    "pycocotools",
    "tensorboardX",
    "tkinter",
    "torch._six",
    "torchvision",
    "visdom",
    "vot",
    "wandb",
)
"""Those that a frame and a training step need nothing of, but for what `USED` holds."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4) as x, y, x, y."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


USED: Mapping[str, Mapping[str, object]] = {
    "torch._six": {"string_classes": (str, bytes), "int_classes": int},
    "torchvision": {"__version__": "1.0"},
    "torchvision.ops.boxes": {"box_area": box_area},
}
"""All that the trackers use of the packages, by module."""


class StandIn(type):
    """The class of empty classes: every public attribute of one is another one."""

    def __getattr__(cls, name: str) -> "StandIn":
        return stand_in(name)


class StandInModule(types.ModuleType):
    """An empty module whose every public attribute is an empty class."""

    def __getattr__(self, name: str) -> StandIn:
        return stand_in(name)


def stand_in(name: str) -> StandIn:
    """An empty class of this name.

    Raises:
        AttributeError: a name that Python itself looks up, such as `__path__`.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    return StandIn(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds some packages, with all their submodules, where nothing else did.

    Attributes:
        packages: their names.
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
        vars(module).update(USED.get(module.__name__, {}))


def install_stand_ins(*more: str) -> None:
    """Let imports of `PACKAGES`, and of `more` packages, find a stand-in from now on."""
    known = {
        name for finder in sys.meta_path if isinstance(finder, Finder) for name in finder.packages
    }
    missing = [name for name in (*PACKAGES, *more) if name not in known]
    if missing:
        sys.meta_path.append(Finder(missing))
