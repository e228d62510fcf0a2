"""Trackers without a fusion, whose head takes the concatenation of the modality maps."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter


class ConcatAdapter(AtHeadAdapter):
    """For a tracker whose head takes m maps concatenated on channels, (B, m·C, H, W), as CAFormer.

    The fused map is the concatenation, made by no module: give the fusion out_channels=m·C. As it
    holds all that the features do, the generative loss alone asks for nothing new: train with an
    `Attachment.degradation`.

    Args:
        head: dotted name of the submodule.
    """

    def __init__(self, head: str = "box_head") -> None:
        self.head = head

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {self.head: self.fuse}

    def features(self, current: ForwardPass, fused: Tensor) -> Sequence[Tensor]:
        return fused.chunk(current.modalities, dim=1)
