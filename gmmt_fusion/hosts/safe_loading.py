"""`torch.load` of what a host's own trainer saved, which it refuses since 2.6."""

from __future__ import annotations

import functools
import pickle
import sys
import zipfile
from types import ModuleType
from typing import Any

from .patches import Patches


def load_own_checkpoints(torch: ModuleType, patches: Patches) -> None:
    """Let `torch.load(path)` read such a checkpoint where it would refuse its classes.

    Classes that the host has defined and imported itself (its settings and averages, without which
    a trainer does not resume) are made; any other is inert, as in `load_host_checkpoint`. No
    function that the file names is called. A call that says `weights_only` is left alone.
    """
    own = torch.load

    @functools.wraps(own)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        try:
            return own(f, map_location, *args, **kwargs)
        except pickle.UnpicklingError:
            if "weights_only" in kwargs or hasattr(f, "read"):
                raise
            if not zipfile.is_zipfile(f):  # of torch before 1.6
                from ..attaching.host_checkpoint import load_host_checkpoint

                return load_host_checkpoint(f, map_location or "cpu")
            with torch.serialization.safe_globals(_classes_of(torch, f)):
                return own(f, map_location, *args, weights_only=True, **kwargs)

    patches.set(torch, "load", load)


def _classes_of(torch: ModuleType, path: Any) -> list[Any]:
    from ..attaching.inert_pickle import NotLoaded

    found: list[Any] = [*_dtypes()]
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        known = _host_class(name) or _numpy_name(name)
        # the name is the file's
        found.append((known or type("NotLoaded", (NotLoaded,), {"name": name}), name))
    return found


def _host_class(name: str) -> type | None:
    """A class that a module defines which the process has imported from no installed package.

    Not one that the module has imported itself: such a name could stand for anything.
    """
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module)
    file = str(getattr(loaded, "__file__", None) or "")
    outside = any(part in file for part in ("site-packages", "dist-packages"))
    value = vars(loaded).get(attribute) if loaded and file and not outside else None
    standard = module.split(".")[0] in sys.stdlib_module_names
    own = isinstance(value, type) and value.__module__ == module
    return value if own and not standard else None


def _dtypes() -> list[type]:
    """The classes of numpy's dtypes: a scalar's is asked for without being named in the file."""
    import numpy as np

    return [value for value in vars(np.dtypes).values() if isinstance(value, type)]


def _numpy_name(name: str) -> Any:  # a class, or numpy's own maker of scalars
    import numpy as np

    module, _, attribute = name.rpartition(".")
    if attribute == "scalar" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        return np.float64(0).__reduce__()[0]
    if name == "numpy.dtype":
        return np.dtype
    return None
