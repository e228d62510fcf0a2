"""ViPT and TBSI in miniature: their names, shapes, calls and classes, none of their size."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

CHANNELS, STRIDE, TEMPLATE, SEARCH = 8, 4, 16, 32  # of the images: 4×4 and 8×8 maps
TEMPLATE_TOKENS, SEARCH_TOKENS = (TEMPLATE // STRIDE) ** 2, (SEARCH // STRIDE) ** 2


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def to_maps(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=math.isqrt(tokens.shape[1])).contiguous()


def to_tokens(maps: Tensor) -> Tensor:
    return rearrange(maps, "b c h w -> b (h w) c").contiguous()


class CenterPredictor(nn.Module):
    """The head; the tracker calls `cal_bbox` and reads `feat_sz` beside its forward."""

    def __init__(self, inplanes: int = CHANNELS) -> None:
        super().__init__()
        self.feat_sz = SEARCH // STRIDE
        self.ctr = nn.Sequential(conv(inplanes, CHANNELS), nn.Conv2d(CHANNELS, 1, 1))
        self.size = nn.Sequential(conv(inplanes, CHANNELS), nn.Conv2d(CHANNELS, 2, 1))
        self.offset = nn.Sequential(conv(inplanes, CHANNELS), nn.Conv2d(CHANNELS, 2, 1))

    def forward(
        self, x: Tensor, gt_score_map: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        score_map, size_map = self.ctr(x).sigmoid(), self.size(x).sigmoid()
        offset_map = self.offset(x)
        return score_map, self.cal_bbox(score_map, size_map, offset_map), size_map, offset_map

    def cal_bbox(self, score_map: Tensor, size_map: Tensor, offset_map: Tensor) -> Tensor:
        index = score_map.flatten(1).argmax(1)
        size, offset = (
            x.flatten(2)[torch.arange(len(index)), :, index] for x in (size_map, offset_map)
        )
        corner = torch.stack([index % self.feat_sz, index // self.feat_sz], dim=1)
        return torch.cat([(corner + offset) / self.feat_sz, size], dim=1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attention = (q @ k.mT / CHANNELS**0.5).softmax(-1)
        return self.proj(attention @ v), attention


class Block(nn.Module):
    """Tokens in, tokens out; `Dropout` stands for the hosts' DropPath."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(CHANNELS), Attention(), nn.Dropout(0.3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.drop_path(self.attn(self.norm1(x))[0])


def eliminate(
    x: Tensor,
    attention: Tensor,
    index_t: Tensor,
    index_s: Tensor,
    ratio: float,
    override: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens and indexes of the search tokens that the template attends to, and the indexes of the
    others; `ratio` of the tokens, or `override` of them.
    """
    if ratio >= 1 or (override is not None and override >= 1):
        return x, index_s, None
    template = index_t.shape[1]
    keep = math.ceil((override or ratio) * index_s.shape[1])
    order = attention[:, :template, template:].mean(1).argsort(1, descending=True)
    kept = order[:, :keep, None].expand(-1, -1, x.shape[2])
    x = torch.cat([x[:, :template], x[:, template:].gather(1, kept)], dim=1)
    return x, index_s.gather(1, order[:, :keep]), index_s.gather(1, order[:, keep:])


class CEBlock(Block):
    """With candidate elimination: keeps the search tokens that the template attends to."""

    def __init__(self, keep_ratio_search: float) -> None:
        super().__init__()
        self.keep_ratio_search = keep_ratio_search

    def forward(
        self,
        x,
        global_index_t,
        global_index_s,
        mask=None,
        ce_template_mask=None,
        keep_ratio_search=None,
    ):
        update, attention = self.attn(self.norm1(x))
        x, global_index_s, removed = eliminate(
            x + self.drop_path(update),
            attention,
            global_index_t,
            global_index_s,
            self.keep_ratio_search,
            keep_ratio_search,
        )
        return x, global_index_t, global_index_s, removed, attention


class PromptBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0_0, self.conv0_1 = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(CHANNELS, 4, 1)
        self.conv1x1 = nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        main, prompt = x.chunk(2, dim=1)
        main = self.conv0_0(main)
        return self.conv1x1(main.flatten(2).softmax(-1).view_as(main) * main + self.conv0_1(prompt))


class PromptedTransformer(nn.Module):
    """ViPT's backbone of two streams: prompts for each block (vipt_deep) or one (vipt_shaw)."""

    def __init__(self, depth: int = 3, prompts: int = 3, eliminate: bool = True) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.patch_embed_prompt = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.pos_embed_z = nn.Parameter(torch.randn(1, TEMPLATE_TOKENS, CHANNELS))
        self.pos_embed_x = nn.Parameter(torch.randn(1, SEARCH_TOKENS, CHANNELS))
        self.prompt_blocks = nn.Sequential(*(PromptBlock() for _ in range(prompts)))
        self.prompt_norms = nn.Sequential(*(nn.LayerNorm(CHANNELS) for _ in range(prompts)))
        self.blocks = nn.Sequential(
            *(CEBlock(0.7 if i == 1 else 1.0) if eliminate else Block() for i in range(depth))
        )
        self.norm = nn.LayerNorm(CHANNELS)
        self.eliminate = eliminate

    @staticmethod
    def recover(x: Tensor, indexes: Tensor, removed: list[Tensor]) -> Tensor:
        """Search tokens in their places, zero where a candidate was eliminated."""
        if not removed:
            return x
        zeros = torch.zeros(
            len(x), SEARCH_TOKENS - x.shape[1], x.shape[2], device=x.device
        )  # in float32, as ViPT
        places = torch.cat([indexes, *removed], dim=1)[..., None].expand(-1, -1, x.shape[2])
        x = torch.cat([x, zeros], dim=1)
        return torch.zeros_like(x).scatter_(1, places, x)

    def forward(
        self, z: Tensor, x: Tensor, ce_template_mask=None, ce_keep_rate=None
    ) -> tuple[Tensor, dict]:
        prompts = [to_tokens(self.patch_embed_prompt(images[:, 3:])) for images in (z, x)]
        z, x = (to_tokens(self.patch_embed(images[:, :3])) for images in (z, x))
        index_t, index_s = (
            torch.arange(tokens.shape[1], device=x.device).repeat(len(x), 1) for tokens in (z, x)
        )
        tokens, removed, attention = (
            torch.cat([z + self.pos_embed_z, x + self.pos_embed_x], dim=1),
            [],
            None,
        )
        for i, block in enumerate(self.blocks):
            if i < len(self.prompt_blocks):
                z, x = (
                    tokens[:, :TEMPLATE_TOKENS],
                    self.recover(tokens[:, TEMPLATE_TOKENS:], index_s, removed),
                )
                prompts = [
                    to_tokens(
                        self.prompt_blocks[i](
                            torch.cat(
                                [
                                    to_maps(self.prompt_norms[max(i - 1, 0)](main)),
                                    to_maps(self.prompt_norms[i](prompt)),
                                ],
                                dim=1,
                            )
                        )
                    )
                    for main, prompt in zip((z, x), prompts, strict=True)
                ]
                kept = prompts[1].gather(1, index_s[..., None].expand(-1, -1, CHANNELS))
                tokens = tokens + torch.cat([prompts[0], kept], dim=1)
            if self.eliminate:
                tokens, index_t, index_s, gone, attention = block(
                    tokens, index_t, index_s, None, ce_template_mask, ce_keep_rate
                )
                removed += [gone] if gone is not None else []
            else:
                tokens = block(tokens)
        tokens = self.norm(tokens)
        x = self.recover(tokens[:, TEMPLATE_TOKENS:], index_s, removed)
        return torch.cat([tokens[:, :TEMPLATE_TOKENS], x], dim=1), {
            "attn": attention,
            "removed_indexes_s": removed,
        }


class ViPTrack(nn.Module):
    """template (B, 6, 16, 16) and search (B, 6, 32, 32) in; a dict of maps out."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone, self.box_head = PromptedTransformer(**options), CenterPredictor()

    def forward(
        self, template, search, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False
    ) -> dict:
        x, aux = self.backbone(
            z=template, x=search, ce_template_mask=ce_template_mask, ce_keep_rate=ce_keep_rate
        )
        return {**self.forward_head(x), **aux, "backbone_feat": x}

    def forward_head(self, tokens: Tensor) -> dict[str, Tensor]:
        return head_outputs(self.box_head(to_maps(tokens[:, -SEARCH_TOKENS:]), None))


class TBSIBackbone(nn.Module):
    """One transformer for both modalities; returns (B, [z_v, x_v, z_i, x_i], C) after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.blocks, self.tbsi_layers = nn.Sequential(Block(), Block()), nn.ModuleList([Block()])
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, z: list[Tensor], x: list[Tensor]) -> tuple[Tensor, dict]:
        streams = [
            torch.cat([to_tokens(self.patch_embed(images)) for images in pair], dim=1)
            for pair in zip(z, x, strict=True)
        ]
        streams = [self.blocks[0](stream) for stream in streams]
        for stream in streams:
            stream[:, TEMPLATE_TOKENS:] = self.tbsi_layers[0](stream)[
                :, TEMPLATE_TOKENS:
            ]  # in place, as TBSI
        return self.norm(torch.cat([self.blocks[1](stream) for stream in streams], dim=1)), {
            "attn": None
        }


class TBSITrack(nn.Module):
    """template and search as lists, [visible, infrared] of (B, 3, 16, 16) and (B, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = TBSIBackbone()
        self.tbsi_fuse_search = conv(2 * CHANNELS, CHANNELS)
        self.box_head = CenterPredictor()

    def forward(
        self, template, search, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False
    ) -> dict:
        x, aux = self.backbone(z=template, x=search)
        visible = x[:, TEMPLATE_TOKENS : TEMPLATE_TOKENS + SEARCH_TOKENS]
        maps = to_maps(torch.cat([visible, x[:, -SEARCH_TOKENS:]], dim=2))
        return {
            **head_outputs(self.box_head(self.tbsi_fuse_search(maps), None)),
            **aux,
            "backbone_feat": x,
        }


def head_outputs(maps: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    score_map, boxes, size_map, offset_map = maps
    return {
        "pred_boxes": boxes[:, None],
        "score_map": score_map,
        "size_map": size_map,
        "offset_map": offset_map,
    }
