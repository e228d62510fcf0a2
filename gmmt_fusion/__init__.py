"""Generative fusion for multi-modal trackers (GMMT, AAAI 2024): two lines in somebody else's tracker."""

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .attachment import Attachment, attach
    from .fusion import FusionOutput, GenerativeFusion

__all__ = ["Attachment", "FusionOutput", "GenerativeFusion", "__version__", "attach"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import gmmt_fusion` costs next to nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import attachment, fusion

    value = getattr(attachment if name in ("attach", "Attachment") else fusion, name)
    globals()[name] = value
    return value
