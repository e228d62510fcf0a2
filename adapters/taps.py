"""Any tracker that fuses in the middle of a function: its streams are tapped on their way."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter
from .tokens import to_map, unflatten


class Tap(NamedTuple):
    """A tensor that a module returns, or gets.

    Attributes:
        module: its dotted name.
        item: where in what it returns: () is all of it, (2,) the third of a tuple, (0, "x") an item
            of an item. Of what it gets, (0,) is the first argument, ("x",) that of the name.
        of: "output" or "input".
        call: which of its calls since the forward began and before the head's; -1 is the last.
        piece: (axis, k), the k-th of m equal pieces along an axis, where one tensor holds all m.
    """

    module: str
    item: Sequence[Any] = ()
    of: str = "output"
    call: int = -1
    piece: tuple[int, int] | None = None


class TapAdapter(AtHeadAdapter):
    """For a tracker whose fused map is made by no module of its own, say a sum in a forward.

    The m modality maps are tapped where modules return or get them, as maps (B, C, H, W) or tokens
    (B, N, C); the fused map is the head's input, (B, C, H, W). It compiles as one graph
    (`fullgraph=True`) on newer PyTorch than 2.6.

    Args:
        head: dotted name of the submodule.
        taps: one for each modality, RGB first.
        tokens: (start, stop) of the search region's H·W tokens in each stream; default the last.
        places: where candidates were eliminated, taps of the places (B, L) of the L search tokens
            that were kept, the last of the N, one for each modality.
        argument: which of the maps among the head's arguments is the fused one, 0 the first.

    Raises:
        ValueError: a tap of something else than outputs and inputs, or not as many places as taps.
    """

    def __init__(
        self,
        head: str,
        taps: Sequence[Tap],
        tokens: Sequence[int | None] | None = None,
        places: Sequence[Tap] = (),
        argument: int = 0,
    ) -> None:
        self.head, self.argument = head, argument
        self.taps, self.places = list(map(Tap._make, taps)), list(map(Tap._make, places))
        self.tokens = tokens
        for tap in (*self.taps, *self.places):
            if tap.of not in ("output", "input") or tap.call >= 0:
                raise ValueError(
                    f"{tap}; expected of='output' or 'input', and call=-1, -2, … from the last"
                )
        if self.places and len(self.places) != len(self.taps):
            raise ValueError(
                f"{len(self.places)} places for {len(self.taps)} taps; expected one for each"
            )

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        tapped: dict[str, Method] = {
            tap.module: functools.partial(self.see, tap.module)
            for tap in (*self.taps, *self.places)
        }
        return {**tapped, self.head: self.fuse}

    def see(
        self,
        module: str,
        current: ForwardPass,
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:  # as forward's
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}  # int or str
        out = forward(*args, **kwargs)
        seen = [*current.memory.get(module, []), {"input": given, "output": out}]
        depth = max(-tap.call for tap in (*self.taps, *self.places) if tap.module == module)
        current.memory[module] = seen[-depth:]
        return out

    def features(self, current: ForwardPass, fused: Tensor) -> list[Tensor]:
        height, width = fused.shape[-2:]
        streams = [self._value(current, tap) for tap in self.taps]
        places = [self._value(current, tap) for tap in self.places]
        if places:
            return [to_map(*pair, fused.shape) for pair in zip(streams, places, strict=True)]
        search = slice(-height * width, None) if self.tokens is None else slice(*self.tokens)
        return [x if x.ndim == 4 else unflatten(x[:, search], height) for x in streams]

    def _value(self, current: ForwardPass, tap: Tap) -> Tensor:
        seen = current.memory.get(tap.module, [])
        if len(seen) < -tap.call:
            raise ValueError(
                f"{tap.module!r} was called {len(seen)} times before the head; expected "
                f"{-tap.call} or more"
            )
        value = seen[tap.call][tap.of]
        for step in tap.item:
            value = value[step]
        if tap.piece is not None:
            axis, k = tap.piece
            value = value.chunk(current.modalities, axis)[k]
        return cast(Tensor, value)
