"""One adapter for each host tracker; `ADAPTERS` are those that `attach(adapter="auto")` tries, in
this order.
"""

from . import siamban
from .base import Adapter
from .module import ModuleAdapter
from .siamban import SiamBANAdapter
from .tbsi import TBSIAdapter
from .vipt import ViPTAdapter

ADAPTERS: tuple[type[Adapter], ...] = (ViPTAdapter, TBSIAdapter, SiamBANAdapter)

__all__ = [
    "ADAPTERS",
    "Adapter",
    "ModuleAdapter",
    "SiamBANAdapter",
    "TBSIAdapter",
    "ViPTAdapter",
    "siamban",
]
