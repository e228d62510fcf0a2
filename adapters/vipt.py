"""ViPT (Zhu et al., CVPR 2023) with deep prompts, and trackers of its structure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import missing_submodule
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

from .at_head import AtHeadAdapter
from .structure import BLOCKS, children, first_convolution

PROMPT_BLOCKS = "backbone.prompt_blocks"


class ViPTAdapter(AtHeadAdapter):
    """The fusion is spread over prompt blocks: the last is tapped, and what follows it replaced.

    Every block of `backbone.prompt_blocks` is called twice a frame, with the template's maps and
    then the search region's, (B, 2·C, H, W): the main stream (RGB) and the prompt stream. Those of
    the last block for the search region are f_rgb and f_x; the fused map is the input of
    `box_head`, (B, C, H, W). C = 768, H = W = 16 and a template of 8×8 as published.

    At inference the last transformer block is skipped, so that the host's output has `None` for its
    attention.
    """

    head = "box_head"
    modalities = 2

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        prompt_blocks, blocks = children(network, PROMPT_BLOCKS), children(network, BLOCKS)
        points: dict[str, Method] = {
            f"{PROMPT_BLOCKS}.{len(prompt_blocks) - 1}": self.tap,
            self.head: self.fuse,
        }
        # a block that eliminates candidates tells the host which are gone
        if getattr(blocks[-1], "keep_ratio_search", 1) == 1:
            points[f"{BLOCKS}.{len(blocks) - 1}"] = self.skip
        return points

    def missing(self, network: nn.Module) -> str | None:
        reason = missing_submodule(network, self.head, BLOCKS, PROMPT_BLOCKS)
        if reason is not None:
            return reason
        prompts, depth = (len(children(network, name)) for name in (PROMPT_BLOCKS, BLOCKS))
        if prompts != depth:
            return (
                f"{PROMPT_BLOCKS} has length {prompts}, {BLOCKS} {depth}; expected as many, as in "
                "vipt_deep (vipt_shaw has one, at the input, and its modalities are one stream "
                "after it)"
            )
        return None

    def channels(self, network: nn.Module) -> int | None:
        convolution = first_convolution(children(network, PROMPT_BLOCKS)[-1])
        return None if convolution is None else convolution.in_channels

    def tap(self, current: ForwardPass, forward: Callable[..., Tensor], maps: Tensor) -> Tensor:
        current.memory[tuple(maps.shape[-2:])] = maps  # the template's are smaller, or come first
        return forward(maps)

    def skip(
        self,
        current: ForwardPass,
        forward: Callable[..., Any],
        tokens: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not current.generating:
            return forward(tokens, *args, **kwargs)
        indexes = (*args, *kwargs.values())[:2]
        # with candidate elimination: called with the template's and the search region's token
        # indexes, and returns (tokens, both, the removed indexes, attention); without: tokens in,
        # tokens out
        return (tokens, *indexes, None, None) if len(indexes) == 2 else tokens

    def features(self, current: ForwardPass, fused: Tensor) -> Sequence[Tensor]:
        maps = current.memory.get(tuple(fused.shape[-2:]))
        if maps is None:
            raise ValueError(
                f"the head got a map of {tuple(fused.shape[-2:])}; the last prompt block ran on "
                f"{', '.join(map(str, current.memory)) or 'nothing'} before it"
            )
        chunks: tuple[Tensor, ...] = maps.chunk(2, dim=1)
        return chunks
