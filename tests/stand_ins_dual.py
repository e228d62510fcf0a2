"""BAT and SDSTrack in miniature: their names, shapes, calls and classes, none of their size."""

import torch
from stand_ins import (
    CHANNELS,
    SEARCH_TOKENS,
    STRIDE,
    TEMPLATE_TOKENS,
    Attention,
    CenterPredictor,
    PromptedTransformer,
    eliminate,
    head_outputs,
    to_maps,
    to_tokens,
)
from torch import Tensor, nn

recover = PromptedTransformer.recover


class DualBlock(nn.Module):
    """BAT's: both streams by the same weights, with an adapter across, and ten values out."""

    def __init__(self, keep_ratio_search: float) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(CHANNELS), Attention(), nn.Dropout(0.3)
        self.adap_t = nn.Linear(CHANNELS, CHANNELS)
        self.keep_ratio_search = keep_ratio_search

    def forward(
        self,
        x,
        xi,
        global_index_template,
        global_index_templatei,
        global_index_search,
        global_index_searchi,
        mask=None,
        ce_template_mask=None,
        keep_ratio_search=None,
    ):
        normed = self.norm1(x), self.norm1(xi)
        indexes = (
            (global_index_template, global_index_search),
            (global_index_templatei, global_index_searchi),
        )
        outputs = []
        for i, (stream, (index_t, index_s)) in enumerate(zip((x, xi), indexes, strict=True)):
            update, attention = self.attn(normed[i])
            stream = stream + self.drop_path(update) + self.drop_path(self.adap_t(normed[1 - i]))
            stream, index_s, removed = eliminate(
                stream, attention, index_t, index_s, self.keep_ratio_search, keep_ratio_search
            )
            outputs += [stream, index_t, index_s, removed, attention]
        return tuple(outputs)


class MixingBlock(DualBlock):
    """XTrack's: more values out, and another adapter."""

    def forward(
        self,
        x,
        xi,
        global_index_template,
        global_index_templatei,
        global_index_search,
        global_index_searchi,
        mask=None,
        ce_template_mask=None,
        keep_ratio_search=None,
    ):
        out = super().forward(
            x,
            xi,
            global_index_template,
            global_index_templatei,
            global_index_search,
            global_index_searchi,
            mask,
            ce_template_mask,
            keep_ratio_search,
        )
        return *out, out[0].square().mean(), None, None


def indexes(images: Tensor, tokens: int) -> Tensor:
    return torch.arange(tokens, device=images.device).repeat(len(images), 1)


class DualTransformer(nn.Module):
    """BAT's backbone: the sum of two normed streams."""

    def __init__(self, block: type[DualBlock] = DualBlock) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.pos_embed_z = nn.Parameter(torch.randn(1, TEMPLATE_TOKENS, CHANNELS))
        self.pos_embed_x = nn.Parameter(torch.randn(1, SEARCH_TOKENS, CHANNELS))
        self.blocks = nn.Sequential(*(block(0.7 if i == 1 else 1.0) for i in range(3)))
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, z, x, ce_template_mask=None, ce_keep_rate=None) -> tuple[Tensor, dict]:
        streams = [
            torch.cat(
                [
                    to_tokens(self.patch_embed(images[:, part])) + position
                    for images, position in ((z, self.pos_embed_z), (x, self.pos_embed_x))
                ],
                dim=1,
            )
            for part in (slice(0, 3), slice(3, 6))
        ]
        index_t = index_ti = indexes(z, TEMPLATE_TOKENS)
        index_s = index_si = indexes(x, SEARCH_TOKENS)
        removed: tuple[list[Tensor], list[Tensor]] = ([], [])
        rgb, other = streams
        for block in self.blocks:
            out = block(rgb, other, index_t, index_ti, index_s, index_si, None, None, ce_keep_rate)
            rgb, index_t, index_s, gone, attention, other, index_ti, index_si, gone_i, _ = out[:10]
            for kept, one in zip(removed, (gone, gone_i), strict=True):
                kept += [one] if one is not None else []
        rgb, other = self.norm(rgb), self.norm(other)
        whole = [
            torch.cat(
                [
                    tokens[:, :TEMPLATE_TOKENS],
                    recover(tokens[:, TEMPLATE_TOKENS:], index, gone),
                ],
                dim=1,
            )
            for tokens, index, gone in (
                (rgb, index_s, removed[0]),
                (other, index_si, removed[1]),
            )
        ]
        return whole[0] + whole[1], {"attn": attention, "removed_indexes_s": removed[0]}


class BATrack(nn.Module):
    """template (B, 6, 16, 16) and search (B, 6, 32, 32) in; a dict of maps out."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone, self.box_head = DualTransformer(**options), CenterPredictor()

    def forward(
        self, template, search, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False
    ) -> dict:
        x, aux = self.backbone(
            z=template, x=search, ce_template_mask=ce_template_mask, ce_keep_rate=ce_keep_rate
        )
        return {**self.forward_head(x), **aux, "backbone_feat": x}

    def forward_head(self, tokens: Tensor, gt_score_map: Tensor | None = None) -> dict:
        return head_outputs(self.box_head(to_maps(tokens[:, -SEARCH_TOKENS:]), gt_score_map))


class SharedBlock(nn.Module):
    """SDSTrack's: called for one stream, the other, and both, with dicts of indexes in and out."""

    def __init__(self, keep_ratio_search: float) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(CHANNELS), Attention(), nn.Dropout(0.3)
        self.Space_X_DTE_Adapter = nn.Linear(CHANNELS, CHANNELS)
        self.Space_X_X_DTE_Adapter = nn.Linear(CHANNELS, CHANNELS)
        self.keep_ratio_search = keep_ratio_search

    def forward(
        self,
        x,
        global_index_template,
        global_index_search,
        mask=None,
        ce_template_mask=None,
        keep_ratio_search=None,
        path=None,
        sub_mode=None,
    ):
        update, attention = self.attn(self.norm1(x))
        if sub_mode == "dte":
            update = self.Space_X_DTE_Adapter(update)
        elif sub_mode == "rgb_dte":
            update = self.Space_X_X_DTE_Adapter(update)
        x, removed = x + self.drop_path(update), None
        if sub_mode != "rgb_dte":
            key = path + sub_mode
            x, global_index_search[key], removed = eliminate(
                x,
                attention,
                global_index_template[key],
                global_index_search[key],
                self.keep_ratio_search,
                keep_ratio_search,
            )
        return x, global_index_template, global_index_search, removed, attention


class SharedTransformer(nn.Module):
    """SDSTrack's backbone: the norm of the mean of two streams, once a path."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.patch_embed_multimodal = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.pos_embed_z = nn.Parameter(torch.randn(1, TEMPLATE_TOKENS, CHANNELS))
        self.pos_embed_x = nn.Parameter(torch.randn(1, SEARCH_TOKENS, CHANNELS))
        self.blocks = nn.Sequential(*(SharedBlock(0.7 if i == 1 else 1.0) for i in range(3)))
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(  # noqa: C901 (the host's)
        self, z, x, ce_template_mask=None, ce_keep_rate=None, infer=False
    ):
        embedded = [
            torch.cat([to_tokens(embed(images[:, part])) for images in (z, x)], dim=1)
            for embed, part in (
                (self.patch_embed, slice(0, 3)),
                (self.patch_embed_multimodal, slice(3, 6)),
            )
        ]
        position = torch.cat([self.pos_embed_z, self.pos_embed_x], dim=1)
        tokens, index_t, index_s, removed, attention = {}, {}, {}, {}, None
        paths = ["fine_"] if infer else ["fine_", "masked_"]
        for path in paths:
            for mode, stream in zip(("rgb", "dte"), embedded, strict=True):
                if path == "masked_":  # from the global random state, in evaluation mode too
                    drawn = torch.rand(stream.shape[:2]).to(stream.device)
                    stream = stream.masked_fill(drawn[..., None] < 0.3, 0)
                tokens[path + mode], removed[path + mode] = stream + position, []
                index_t[path + mode] = indexes(z, TEMPLATE_TOKENS)
                index_s[path + mode] = indexes(x, SEARCH_TOKENS)
        for i, block in enumerate(self.blocks):
            for path in paths:
                for mode in ("rgb", "dte", "rgb_dte"):
                    key = path + mode
                    if mode == "rgb_dte":
                        if i == 0:
                            continue
                        index_t[key] = indexes(z, 2 * TEMPLATE_TOKENS)
                        index_s[key] = indexes(x, 2 * SEARCH_TOKENS)
                        tokens[key] = torch.cat([tokens[path + "rgb"], tokens[path + "dte"]], dim=1)
                    tokens[key], index_t, index_s, gone, attention = block(
                        tokens[key], index_t, index_s, None, None, ce_keep_rate, path, mode
                    )
                    if mode == "rgb_dte":
                        length = tokens[path + "rgb"].shape[1]
                        tokens[path + "rgb"] = tokens[key][:, :length]
                        tokens[path + "dte"] = tokens[key][:, length:]
                    elif gone is not None:
                        removed[key].append(gone)
        outputs, auxiliary = [], []
        for path in paths:
            whole = []
            for key in (path + "rgb", path + "dte"):
                x = recover(tokens[key][:, TEMPLATE_TOKENS:], index_s[key], removed[key])
                whole.append(torch.cat([tokens[key][:, :TEMPLATE_TOKENS], x], dim=1))
            outputs.append(self.norm(sum(whole) / len(whole)))
            auxiliary.append({"attn": attention, "removed_indexes_s": removed[path + "dte"]})
        return outputs, auxiliary


class SDSTrack(nn.Module):
    """As BATrack; out a list of dicts, of the clean and the masked images, or with `infer` one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.box_head = SharedTransformer(), CenterPredictor()

    def forward(
        self,
        template,
        search,
        ce_template_mask=None,
        ce_keep_rate=None,
        return_last_attn=False,
        infer=False,
    ):
        outputs, auxiliary = self.backbone(
            z=template,
            x=search,
            ce_template_mask=ce_template_mask,
            ce_keep_rate=ce_keep_rate,
            infer=infer,
        )
        parts = []
        for x, aux in zip(outputs, auxiliary, strict=True):
            maps = self.box_head(to_maps(x[:, -SEARCH_TOKENS:]), None)
            parts.append({**head_outputs(maps), **aux, "backbone_feat": x})
        return parts[0] if infer else parts
