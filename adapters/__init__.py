"""One adapter for each host tracker; `ADAPTERS` are those that `attach(adapter="auto")` tries, in this order."""

from .base import Adapter
from .module import ModuleAdapter

ADAPTERS: tuple[type[Adapter], ...] = ()

__all__ = ["ADAPTERS", "Adapter", "ModuleAdapter"]
