"""BAT (Cao et al., AAAI 2024), and trackers of its structure, such as XTrack."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import missing_submodule
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter
from .structure import BLOCKS, children, first_convolution, signature
from .tokens import to_map

STREAMS = 6  # arguments of a block: two streams' tokens, and the indexes of template and search


class BATAdapter(AtHeadAdapter):
    """Two streams side by side in every block, with an adapter between them; fused by a sum.

    A block takes both streams' tokens (B, N, C) and their indexes, and returns, among more, the
    indexes of the search tokens that it kept, one set a stream. Then `backbone.norm` is called on
    each stream: these tokens, in their places, are f_rgb and f_x, and the fused map is their sum,
    the input of `box_head`, (B, C, H, W). C = 768 and H = W = 16 as published.
    """

    head = "box_head"
    modalities = 2

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        last = len(children(network, BLOCKS)) - 1
        return {
            f"{BLOCKS}.{last}": self.find_places,
            "backbone.norm": self.tap,
            self.head: self.fuse,
        }

    def missing(self, network: nn.Module) -> str | None:
        reason = missing_submodule(network, self.head, BLOCKS, f"{BLOCKS}.0", "backbone.norm")
        if reason is not None:
            return reason
        required = [n for n, needed in signature(children(network, BLOCKS)[-1]).items() if needed]
        if len(required) != STREAMS:
            return (
                f"the last of {BLOCKS} takes {', '.join(required) or 'nothing'}; expected two "
                "streams' tokens, and the indexes of the template's and the search region's"
            )
        return None

    def channels(self, network: nn.Module) -> int | None:
        convolution = first_convolution(network.get_submodule(self.head))
        return None if convolution is None else convolution.in_channels

    def find_places(
        self, current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # tokens, indexes of template and search, removed, attention; the same again; more
        out = forward(*args, **kwargs)
        current.memory["places"], current.memory["streams"] = (out[2], out[7]), []
        return out

    def tap(
        self, current: ForwardPass, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        out = forward(*args, **kwargs)
        current.memory.setdefault("streams", []).append(out)
        return out

    def features(self, current: ForwardPass, fused: Tensor) -> list[Tensor]:
        streams, places = (current.memory.get(name, ()) for name in ("streams", "places"))
        if (len(streams), len(places)) != (2, 2):
            raise ValueError(
                f"the head was called after {len(streams)} calls of backbone.norm since the last "
                "block; expected two, one a stream"
            )
        return [to_map(*pair, fused.shape) for pair in zip(streams, places, strict=True)]
