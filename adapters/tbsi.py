"""TBSI (Hui et al., CVPR 2023), and trackers of its structure."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .structure import first_convolution


class TBSIAdapter(Adapter):
    """The fusion is one submodule, called once a frame with the search region's two maps.

    It is `tbsi_fuse_search`. Its input (B, 2·C, H, W) is f_rgb and f_tir on channels, its output
    (B, C, H, W) the fused map; C = 768 and H = W = 16 as published. `box_head` stays where it is,
    as the host's tracker calls its `cal_bbox`.
    """

    head = "box_head"
    modalities = 2

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {"tbsi_fuse_search": self.fuse}

    def channels(self, network: nn.Module) -> int | None:
        convolution = first_convolution(network.get_submodule("tbsi_fuse_search"))
        return None if convolution is None else convolution.out_channels

    def fuse(self, current: ForwardPass, forward: Callable[..., Tensor], maps: Tensor) -> Tensor:
        return current.fuse(maps.chunk(2, dim=1), lambda: forward(maps))
