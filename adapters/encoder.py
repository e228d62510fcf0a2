"""Trackers of one stream, which mix the modalities in their encoder's first layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter
from .tokens import as_slice, flatten, unflatten


class EncoderAdapter(AtHeadAdapter):
    """For a tracker of one stream, whose images have all modalities (B, 3·m, H, W), as SUTrack.

    It has no modality maps: the encoder runs once more for each modality, on images that show it m
    times, as such trackers are given images of one modality. What the head would get of these
    passes is f_1 … f_m, and what it gets of the host's own is the fused map.

    The cost: m more passes of the encoder, in a frame and in a training step. A frame of
    SUTrack-T224 took 2.97 times the processor time. An encoder that keeps something from call to
    call is not for this adapter.

    Args:
        encoder, head: dotted names of the submodules. Of what the encoder returns, in whatever
            structure, the head gets a map (B, C, H, W), or tokens (B, N, C) as one.
        tokens: (start, stop), or a slice, of the search region's H·W tokens among them. Default:
            the last.
    """

    def __init__(
        self, encoder: str, head: str, tokens: slice | Sequence[int | None] | None = None
    ) -> None:
        self.encoder, self.head = encoder, head
        self.tokens = None if tokens is None else as_slice(tokens)

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {self.encoder: self.encode, self.head: self.fuse}

    def encode(
        self, current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # whatever the host's encoder returns
        m, inputs = current.modalities, (args, kwargs)
        if not any(_has_images(x, m) for x in tree_leaves(inputs)):
            raise ValueError(
                f"the encoder {self.encoder!r} was called without images (B, {3 * m}, H, W); "
                f"expected {m} modalities of 3 channels in one tensor"
            )
        passes = []
        for i in range(m):
            shown_args, shown_kwargs = tree_map(lambda x, i=i: _show(x, i, m), inputs)
            passes.append(tree_leaves(forward(*shown_args, **shown_kwargs)))
        out = forward(*args, **kwargs)  # last, so that what the host keeps of a call is of its own
        for own, *shown in zip(tree_leaves(out), *passes, strict=True):
            if isinstance(own, Tensor):
                current.memory[tuple(own.shape)] = own, shown
        return out

    def features(self, current: ForwardPass, fused: Tensor) -> Sequence[Tensor]:
        for own, shown in reversed(current.memory.values()):
            maps = [self._map_of(x, fused.shape) for x in (own, *shown)]
            found = [x for x in maps if x is not None]
            if len(found) == len(maps):
                self._check(current, found[0], own, fused)
                return found[1:]
        raise ValueError(
            f"the head {self.head!r} got a map {tuple(fused.shape)}, and the encoder "
            f"{self.encoder!r} returned {_listed(current.memory)} before it; expected the map, or "
            "tokens (B, N, C), of which tokens=… are the map's"
        )

    def _map_of(self, x: Tensor, shape: torch.Size) -> Tensor | None:
        batch, channels, height, width = shape
        if x.ndim == 3:
            first, last = self.tokens or (-height * width, None)
            x = x[:, first:last]
            return unflatten(x, height) if x.shape == (batch, height * width, channels) else None
        return x if x.shape == shape else None

    def _check(self, current: ForwardPass, found: Tensor, own: Tensor, fused: Tensor) -> None:
        """Raise ValueError where the head's input is another part of the encoder's output."""
        if current.generating or torch.compiler.is_compiling() or torch.equal(found, fused):
            return
        tokens, count = flatten(fused), fused.shape[2:].numel()
        starts = range(own.shape[1] - count + 1 if own.ndim == 3 else 0)
        right = [i for i in starts if torch.equal(own[:, i : i + count], tokens)]
        hint = f"tokens=({right[0]}, {right[0] + count})" if right else "a module nearer to it"
        raise ValueError(
            f"the head's input is not what tokens={self.tokens} of the encoder's output "
            f"{tuple(own.shape)} make; give the adapter {hint}"
        )


def _has_images(x: object, modalities: int) -> bool:
    return isinstance(x, Tensor) and x.ndim >= 4 and x.shape[-3] == 3 * modalities


def _show(x: Any, modality: int, modalities: int) -> Any:
    """Images of all modalities with one of them in the place of each; anything else as it is."""
    if not _has_images(x, modalities):
        return x
    image = x.chunk(modalities, dim=-3)[modality]
    return torch.cat([image] * modalities, dim=-3)


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "nothing"
