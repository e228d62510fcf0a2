"""Any tracker whose fusion is one submodule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import Adapter, split_maps
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass


class ModuleAdapter(Adapter):
    """For a tracker whose fusion is one submodule and whose head is another.

    The fusion is called with m maps (B, C, H, W), with a list of them, or with their concatenation
    (B, m·C, H, W), and returns the fused map (B, C, H, W). The head may have any signature.

    Args:
        fusion, head: dotted names of the submodules.
        size: (H, W), or side, of the search region's maps. Where the fusion is called several times
            a frame, for the template too, only maps of this size are generated and the rest is
            fused by the host. Default: all.
    """

    def __init__(self, fusion: str, head: str, size: int | Sequence[int] | None = None) -> None:
        self.fusion, self.head = fusion, head
        self.size = (size, size) if isinstance(size, int) else size and tuple(size)

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {self.fusion: self.fuse}

    def fuse(
        self, current: ForwardPass, forward: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        maps = split_maps((*args, *kwargs.values()), current.modalities)
        if maps is None:
            got = [
                f"{type(x).__name__} {tuple(x.shape)}"
                if isinstance(x, Tensor)
                else type(x).__name__
                for x in (*args, *kwargs.values())
            ]
            raise ValueError(
                f"the fusion {self.fusion!r} was called with {len(got)} arguments "
                f"({', '.join(got)}); expected {current.modalities} maps (B, C, H, W), a list of "
                "them, or their concatenation. For tokens (B, N, C) write an Adapter that "
                "rearranges them into maps"
            )
        if self.size is not None and tuple(maps[0].shape[-2:]) != self.size:
            return forward(*args, **kwargs)
        return current.fuse(maps, lambda: forward(*args, **kwargs))
