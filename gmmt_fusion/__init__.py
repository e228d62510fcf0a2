"""Generative fusion for multi-modal trackers (GMMT, AAAI 2024): two lines in somebody else's
tracker.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .adapters.auto import attach
    from .adapters.finding import find_fusion
    from .attaching.attachment import Attachment
    from .attaching.host_checkpoint import load_host_checkpoint
    from .model.fusion import FusionOutput, GenerativeFusion
    from .training.host_loop import train_in_host

__all__ = [
    "Attachment",
    "FusionOutput",
    "GenerativeFusion",
    "__version__",
    "attach",
    "find_fusion",
    "load_host_checkpoint",
    "train_in_host",
]

_HOMES = {
    "Attachment": "attaching.attachment",
    "attach": "adapters.auto",
    "find_fusion": "adapters.finding",
    "FusionOutput": "model.fusion",
    "GenerativeFusion": "model.fusion",
    "load_host_checkpoint": "attaching.host_checkpoint",
    "train_in_host": "training.host_loop",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import gmmt_fusion` costs next to
    nothing.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
