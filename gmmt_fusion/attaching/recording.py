"""What the modules of an unknown host are called with, and what they return, in one frame."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .patching import own_methods

Path: TypeAlias = tuple[Any, ...]
"""Where a tensor lies in what a host passes around: indexes and keys, the outermost first."""
Key: TypeAlias = tuple[str, str, int]
"""A module's name, which of its methods, and how often that was called in this frame before."""
MOST = 1_200_000
"""Numbers of one sample in a tensor whose values are kept: no attention matrix, no early map."""


@dataclass(eq=False, repr=False)
class Leaf:
    """A tensor in what a module got or returned; `value` is a copy, where it was kept."""

    path: Path
    shape: tuple[int, ...]
    floating: bool
    value: Tensor | None = None


@dataclass(eq=False, repr=False)
class Call:
    """One call of a module. began, ended: its place among all beginnings and ends."""

    key: Key
    parent: Call | None
    began: int
    ended: int = -1
    inputs: list[Leaf] = field(default_factory=list)
    outputs: list[Leaf] = field(default_factory=list)
    arguments: Any = None  # of the network itself, to be called with again
    phase: int = 0

    @property
    def name(self) -> str:
        return self.key[0]

    def lies_in(self, other: Call) -> bool:
        call: Call | None = self
        while call is not None and call is not other:
            call = call.parent
        return call is other


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:  # whatever hosts pass
    """The tensors in nested lists, tuples and dicts, each with its path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))


def copied(value: Any) -> Any:  # the same structure
    """The same with copies of the tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {name: copied(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


class Recorder:
    """Notes the calls of a network's modules while it is `on`.

    Args:
        network: the host's.
        held: outputs by key; such a call is made, and these are returned in place of its own.
        keep: of which calls to keep the outputs as a whole.
        wanted: which tensors' values to keep, as (key, "inputs" or "outputs", path); True for all
            that are no larger than maps of features.
        skip: methods of the network itself to leave alone.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        held: Mapping[Key, Any] | None = None,
        keep: Callable[[Call], bool] = lambda call: False,
        wanted: Collection[Any] | bool = False,
        skip: Collection[str] = (),
    ) -> None:
        self.network, self.wanted, self.skip = network, wanted, skip
        self.held, self.keep = dict(held or {}), keep
        self.kept: dict[Key, Any] = {}
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.clock, self.phase = 0, 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[Recorder]:
        """Functions stand in for the modules' methods; afterwards they are gone."""
        wrapped: list[tuple[nn.Module, str, Any]] = []
        try:
            for name, module in self.network.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                for method in self._methods(name, module):
                    own = vars(module).get(method)
                    wrapped.append((module, method, own))
                    vars(module)[method] = self._wrap(name, method, getattr(module, method))
            yield self
        finally:
            for module, method, own in wrapped:
                if own is None:
                    vars(module).pop(method, None)
                else:
                    vars(module)[method] = own

    def _methods(self, name: str, module: nn.Module) -> list[str]:
        """The forward; of the network and its parts all that may be called in its place."""
        own = own_methods(type(module)) if "." not in name else ()
        return ["forward", *(method for method in own if name or method not in self.skip)]

    def _wrap(self, name: str, method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inside = next((c for c in reversed(self.stack) if c.name == name), None)
            if method != "forward" and inside is not None:
                return function(*args, **kwargs)  # of a part that is called already
            parent = self.stack[-1] if self.stack else None
            key = name, method, self.counts[name, method]
            self.counts[name, method] += 1
            call = Call(key, parent, self._tick(), phase=self.phase)
            self.calls.append(call)
            call.inputs = self._leaves(call, "inputs", {**dict(enumerate(args)), **kwargs})
            if parent is None:
                call.arguments = copied(args), copied(kwargs)
            self.stack.append(call)
            try:
                out = function(*args, **kwargs)
            finally:
                self.stack.pop()
                call.ended = self._tick()
            if call.key in self.held:
                out = copied(self.held[call.key])
            if self.keep(call):
                self.kept[call.key] = copied(out)
            call.outputs = self._leaves(call, "outputs", out)
            return out

        return wrapper

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _leaves(self, call: Call, side: str, value: Any) -> list[Leaf]:
        found = []
        for path, x in leaves(value):
            wanted = self.wanted
            if not isinstance(wanted, bool):
                wanted = (call.key, side, path) in wanted
            copy = self._copy(x) if wanted else None
            found.append(Leaf(path, tuple(x.shape), x.is_floating_point(), copy))
        return found

    def _copy(self, x: Tensor) -> Tensor | None:
        """The values of a tensor as they are now, one copy of each."""
        if x.numel() > MOST * max(len(x) if x.ndim else 1, 1):
            return None
        if x.is_inference():
            return x.clone()
        # the tensor is kept, too, so that no other gets its id
        _, copy = self.copies.setdefault((id(x), x._version), (x, x.detach().clone()))
        return copy


def difference(value: Tensor, clean: Tensor) -> float:
    """‖value − clean‖ / ‖clean‖; 0 only where they are equal."""
    if value.shape != clean.shape:
        return float("inf")
    if torch.equal(value, clean):
        return 0.0
    one, other = value.double(), clean.double()
    scale = float(other.norm())
    return max(float((one - other).norm()) / (scale or 1.0), 1e-12)


def kept_difference(value: Tensor, clean: Tensor) -> float:
    """Of two maps (B, C, …), where neither is zero: candidates may have been eliminated.

    The places of these differ with the images, which tells nothing of the streams. NaN where no
    place is left.
    """
    both = (clean != 0).any(1) & (value != 0).any(1)
    if not both.any():
        return math.nan
    return difference(value.movedim(1, -1)[both], clean.movedim(1, -1)[both])
