"""What adapters share whose host has its fused map nowhere but at the head's input."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.plugin import ForwardPass


class AtHeadAdapter(Adapter):
    """The fused map is a map that the head is called with; `fuse` is the head's method."""

    argument: int = 0  # which of them, the first

    @abstractmethod
    def features(self, current: ForwardPass, fused: Tensor) -> Sequence[Tensor]:
        """The m maps (B, C, H, W) that the head's input `fused` is of."""

    def fuse(
        self, current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # whatever the host's head returns
        positional = list(args)
        places: list[tuple[Any, Any]] = [(positional, i) for i in range(len(args))]
        places += [(kwargs, name) for name in kwargs]
        maps = [(holder, key) for holder, key in places if _is_map(holder[key])]
        if len(maps) <= self.argument:
            kinds = ", ".join(type(holder[key]).__name__ for holder, key in places)
            raise ValueError(
                f"the head {self.head!r} was called with {kinds or 'nothing'}; expected the fused "
                "map (B, C, H, W) as an argument"
            )
        holder, key = maps[self.argument]
        fused: Tensor = holder[key]
        holder[key] = generated = current.fuse(self.features(current, fused), fused)
        if generated.shape != fused.shape:
            raise ValueError(
                f"the fusion gives maps {tuple(generated.shape)}, and the head {self.head!r} takes "
                f"{tuple(fused.shape)}; build it with out_channels={fused.shape[1]}"
            )
        return forward(*positional, **kwargs)


def _is_map(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4
