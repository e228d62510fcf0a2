"""SDSTrack (Hou et al., CVPR 2024), and trackers of its structure."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import missing_submodule
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter
from .structure import BLOCKS, children, first_convolution, signature
from .tokens import to_map

STREAMS, BOTH = ("rgb", "dte"), "rgb_dte"  # what the host calls a block's modes
Streams = list[tuple[Tensor, Tensor]]
"""Of each stream its tokens (B, N, C) and the places (B, L) of those of the search region."""


class SDSTrackAdapter(AtHeadAdapter):
    """Two streams that share their blocks and meet in some; fused by the norm of their mean.

    The last block is called three times: for the RGB stream, for the other, and for both after each
    other on one token axis. What it returns then, in its places, is f_rgb and f_x; the fused map is
    the input of `box_head`, (B, C, H, W). C = 768 and H = W = 16 as published.

    All of it happens twice in training, on clean and on masked images, which the host calls paths:
    two fused maps in one forward, and a list of two dicts out.
    """

    head = "box_head"
    modalities = 2

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        last = len(children(network, BLOCKS)) - 1
        return {f"{BLOCKS}.{last}": self.tap, self.head: self.fuse}

    def missing(self, network: nn.Module) -> str | None:
        reason = missing_submodule(network, self.head, BLOCKS, f"{BLOCKS}.0")
        if reason is not None:
            return reason
        names = list(signature(children(network, BLOCKS)[-1]))
        if not {"path", "sub_mode"} <= set(names):
            return (
                f"the last of {BLOCKS} takes {', '.join(names) or 'nothing'}; expected 'path' and "
                "'sub_mode' among them, as blocks that are called for one stream, the other, and "
                "both"
            )
        return None

    def channels(self, network: nn.Module) -> int | None:
        convolution = first_convolution(network.get_submodule(self.head))
        return None if convolution is None else convolution.in_channels

    def tap(
        self, current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # tokens, indexes of the template and of the search region by path and mode, more
        out = forward(*args, **kwargs)
        path, mode = (x for x in (*args, *kwargs.values()) if isinstance(x, str))
        if mode == BOTH:
            template, places = (
                [indexes[path + stream] for stream in STREAMS] for indexes in out[1:3]
            )
            lengths = [t.shape[1] + p.shape[1] for t, p in zip(template, places, strict=True)]
            pairs = zip(out[0].split(lengths, dim=1), places, strict=True)
            current.memory[path] = list(pairs), None
        return out

    def features(self, current: ForwardPass, fused: Tensor) -> list[Tensor]:
        path = _path_of(fused, current.memory)
        pairs, _ = current.memory[path]
        current.memory[path] = pairs, fused
        return [to_map(tokens, places, fused.shape) for tokens, places in pairs]


def _path_of(fused: Tensor, memory: dict[str, tuple[Streams, Tensor | None]]) -> str:
    """The path that a fused map (B, C, H, W) is of, where the head is called path by path."""
    for path, (_, seen) in memory.items():
        if seen is None:
            return path
    for path, (_, seen) in memory.items():  # activation checkpointing calls the head again
        if seen is not None and torch.equal(seen, fused):
            return path
    raise ValueError(
        f"the head was called before the last block ran with mode {BOTH!r} for its path"
    )
