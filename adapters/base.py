"""What attaching needs to know of a host tracker."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class Adapter(ABC):
    """Where a host's modality maps come from, where its fused map goes in, and which module is its
    head.

    For a tracker whose fusion is one submodule use `ModuleAdapter`. For any other, subclass: name
    the `head`, and return from `points` the submodules to step in for, each with a method
    `method(plugin, host, *args, **kwargs)` that is called in place of the submodule's forward and
    returns what it would have returned. In it

    - `host(*args, **kwargs)` is the submodule's own forward; for the head, the new head's;
    - `plugin.fuse(features, fused)` gives the generated map for m maps (B, C, H, W). `fused` is the
      host's own map, or a function that computes it, which is called only where it is needed;
    - `plugin.memory` is a dict that keeps what one method saw for another, until `fuse` clears it;
    - `plugin.generating` says that the host's own fused map is not needed in this call.

    The head needs a method only where the fused map is its input. A host is never imported:
    recognise it in `missing` by class name and structure. An adapter keeps no tensors, so that it
    can be copied and pickled.
    """

    head: str = ""
    modalities: int | None = None  # m, where the structure fixes it

    @abstractmethod
    def points(self, network: nn.Module) -> Mapping[str, Callable[..., Any]]:
        """Dotted names of submodules, each with the method that steps in for it."""

    def missing(self, network: nn.Module) -> str | None:
        """What `network` lacks to be this adapter's host, as a phrase ("no submodule 'neck'"), or
        None if it fits.
        """
        return missing_submodule(network, self.head, *self.points(network))

    def channels(self, network: nn.Module) -> int | None:
        """C of the fused map where the structure tells, to refuse a fusion of another width before
        any forward.
        """
        return None


def missing_submodule(network: nn.Module, *names: str) -> str | None:
    """The first dotted name that is no submodule of `network`, as a phrase, or None."""
    for name in names:
        try:
            network.get_submodule(name)
        except AttributeError:
            children = ", ".join(child for child, _ in network.named_children())
            return f"no submodule {name!r} (it has {children or 'none'})"
    return None


def split_maps(args: tuple[Any, ...], modalities: int) -> list[Tensor] | None:
    """The m maps that a fusion was called with: m tensors, one list of m, or their concatenation on
    channels.
    """
    if len(args) == 1 and isinstance(args[0], list | tuple):
        args = tuple(args[0])
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4 and modalities > 1:
        return list(args[0].chunk(modalities, dim=1))
    return (
        list(args) if len(args) == modalities and all(isinstance(a, Tensor) for a in args) else None
    )
