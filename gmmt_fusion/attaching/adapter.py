"""What attaching needs to know of a host tracker."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .patching import Method


class Adapter(ABC):
    """Where a host's modality maps come from, where its fused map goes in, and which is its head.

    For a tracker whose fusion is one submodule use `ModuleAdapter`. For any other, subclass, in a
    user's own script or, for everybody, in a file of adapters/ that its ADAPTERS lists: name
    the `head`, and return from `points` the submodules to step in for, each with a method
    `method(current, forward, *args, **kwargs)`, which is called in place of the submodule's forward
    and returns what it would have returned. In it

    - `forward(*args, **kwargs)` is what the module does: its own forward, or for the head that of
      the head in use, the new one while a map is generated;
    - `current` is the `ForwardPass`, of this thread and this forward alone:
      `current.fuse(features, fused)` gives the map that the head gets, for m maps (B, C, H, W) and
      the host's own fused map, or a function that computes it, which is called only where needed;
      `current.memory` is a dict that keeps what one method saw for another;
      `current.generating` says that the host's own fused map is not needed;
      `current.network` is the host's network, `current.modalities` is m.

    The head needs a method only where the fused map is its input. A host is never imported:
    recognise it in `missing` by class name and structure. An adapter keeps no tensors, so that it
    can be copied and pickled.
    """

    head: str = ""
    modalities: int | None = None  # m, where the structure fixes it

    @abstractmethod
    def points(self, network: nn.Module) -> Mapping[str, Method]:
        """Dotted names of submodules, each with the method that steps in for it."""

    def missing(self, network: nn.Module) -> str | None:
        """What `network` lacks to be this adapter's host, as a phrase, or None if it fits."""
        return missing_submodule(network, self.head, *self.points(network))

    def channels(self, network: nn.Module) -> int | None:
        """C of the modality maps where the structure tells: another fusion is refused at once."""
        return None

    def out_channels(self, network: nn.Module) -> int | None:
        """C of the fused map where the structure tells; by default that of the modality maps."""
        return self.channels(network)


def missing_submodule(network: nn.Module, *names: str) -> str | None:
    """The first dotted name that is no submodule of `network`, as a phrase, or None."""
    for name in names:
        module, path = network, ""
        for part in name.split("."):
            children = {name: m for name, m in module._modules.items() if m is not None}
            if part not in children:
                owner = f"{path!r}" if path else "it"
                return f"no submodule {name!r} ({owner} has {', '.join(children) or 'none'})"
            module, path = children[part], f"{path}.{part}".lstrip(".")
    return None


def split_maps(args: tuple[Any, ...], modalities: int, ndim: int = 4) -> list[Tensor] | None:
    """What a fusion was called with: m tensors of one shape, a list of them, or one, concatenated.

    Arguments beside them that are no tensors, or of another shape, are the host's own.

    Args:
        ndim: of the tensors, 4 of maps (B, C, H, W), 3 of tokens (B, N, C).

    Returns:
        m tensors, or one; None where the arguments, whatever the host passes, are neither.
    """
    flat: list[Any] = []
    for a in args:  # PyTorch 2.6 compiles no union of types in a comprehension
        flat += a if isinstance(a, list) or isinstance(a, tuple) else [a]  # noqa: SIM101
    tensors = [x for x in flat if isinstance(x, Tensor) and x.ndim == ndim]
    alike = [x for x in tensors if x.shape == tensors[0].shape]
    return alike if len(alike) in (1, modalities) else None
