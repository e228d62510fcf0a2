"""STTrack, CAFormer, SUTrack and SeqTrackv2 in miniature: their names, shapes and calls."""

from typing import Any

import torch
from stand_ins import (
    CHANNELS,
    SEARCH_TOKENS,
    STRIDE,
    TEMPLATE_TOKENS,
    Block,
    CenterPredictor,
    conv,
    head_outputs,
    to_maps,
    to_tokens,
)
from torch import Tensor, nn


class Stream(nn.Module):
    """The tokens (B, N, C) of a template and a search image of one modality, the template first."""

    def __init__(self, channels: int = 3, search_first: bool = False) -> None:
        super().__init__()
        self.search_first = search_first
        self.patch_embed = nn.Conv2d(channels, CHANNELS, STRIDE, STRIDE)
        self.pos_embed_z = nn.Parameter(torch.randn(1, TEMPLATE_TOKENS, CHANNELS))
        self.pos_embed_x = nn.Parameter(torch.randn(1, SEARCH_TOKENS, CHANNELS))
        self.blocks, self.norm = nn.ModuleList([Block(), Block()]), nn.LayerNorm(CHANNELS)

    def embed(self, z: Tensor, x: Tensor) -> Tensor:
        z = to_tokens(self.patch_embed(z)) + self.pos_embed_z
        x = to_tokens(self.patch_embed(x)) + self.pos_embed_x
        return torch.cat([x, z] if self.search_first else [z, x], dim=1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        tokens = self.embed(z, x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class TokenFusion(nn.Module):
    """Two streams of tokens, in whatever form, to one."""

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x_rgb: Tensor, x_e: Tensor) -> Tensor:
        return x_rgb + x_e + self.op(torch.cat([x_rgb, x_e], dim=-1))


class STTrack(nn.Module):
    """template (B, 6, 16, 16) and a list of searches (B, 6, 32, 32) in; a list of dicts out.

    Both streams' tokens are fused, templates too; a convolution stands between them and the head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.MambaFusion = Stream(), TokenFusion()
        self.decode_fuse_search, self.box_head = conv(CHANNELS, CHANNELS), CenterPredictor()

    def forward(self, template: Tensor, search: list[Tensor]) -> list[dict[str, Any]]:
        return [self.forward_one(template, x) for x in search]

    def forward_one(self, template: Tensor, search: Tensor) -> dict[str, Any]:
        streams = [
            self.backbone(z, x)
            for z, x in zip(template.split(3, dim=1), search.split(3, dim=1), strict=True)
        ]
        fused = self.MambaFusion(*streams)[:, -SEARCH_TOKENS:, :]
        maps = self.box_head(self.decode_fuse_search(to_maps(fused)), None)
        return {**head_outputs(maps), "backbone_feat": torch.cat(streams, dim=1)}


class CAFormer(nn.Module):
    """template and search as lists of two images; the head takes both streams' maps."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.box_head = Stream(), CenterPredictor(2 * CHANNELS)

    def forward(self, template: list[Tensor], search: list[Tensor]) -> dict[str, Any]:
        assert len(template) == 2 and len(search) == 2
        x = torch.cat([self.backbone(*pair) for pair in zip(template, search, strict=True)], 2)
        return {**self.forward_head(x), "backbone_feat": x}

    def forward_head(self, feature: Tensor, gt_score_map: Tensor | None = None) -> dict[str, Any]:
        return head_outputs(self.box_head(to_maps(feature[:, -SEARCH_TOKENS:]), gt_score_map))


class Encoder(nn.Module):
    """SUTrack's: lists of images (B, 6, H, W) in, a list of tokens out, a class token first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.cls_token = (
            Stream(6, search_first=True),
            nn.Parameter(torch.randn(CHANNELS)),
        )

    def forward(
        self, template_list: list[Tensor], search_list: list[Tensor], text_src: Tensor | None
    ) -> list[Tensor]:
        tokens = self.body(template_list[0], search_list[0])
        return [torch.cat([self.cls_token.expand(len(tokens), 1, -1), tokens], dim=1)]


class SUTRACK(nn.Module):
    """One stream of six channels, called in stages."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), CenterPredictor()
        self.task_decoder = nn.Linear(CHANNELS, 4)

    def forward(
        self,
        template_list: list[Tensor] | None = None,
        search_list: list[Tensor] | None = None,
        text_src: Tensor | None = None,
        feature: list[Tensor] | None = None,
        mode: str = "encoder",
    ) -> Any:
        if mode == "encoder":
            return self.forward_encoder(template_list, search_list, text_src)
        return self.forward_decoder(feature), self.task_decoder(feature[0].mean(1))

    def forward_encoder(self, template_list, search_list, text_src=None) -> list[Tensor]:
        return self.encoder(template_list, search_list, text_src)

    def forward_decoder(
        self, feature: list[Tensor], gt_score_map: Tensor | None = None
    ) -> dict[str, Any]:
        tokens = feature[0][:, 1 : SEARCH_TOKENS + 1]
        return head_outputs(self.decoder(to_maps(tokens), gt_score_map))


class InterfaceBlock(nn.Module):
    """SeqTrackv2's: both streams' maps, concatenated, to one that is added to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class InterfacedStream(Stream):
    def __init__(self) -> None:
        super().__init__(search_first=True)
        self.interface_blocks = nn.Sequential(InterfaceBlock(), InterfaceBlock())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        tokens, other = (
            self.embed(*images) for images in zip(z.split(3, dim=1), x.split(3, dim=1), strict=True)
        )
        lengths = [SEARCH_TOKENS, TEMPLATE_TOKENS]
        for block, interface in zip(self.blocks, self.interface_blocks, strict=True):
            pairs = zip(tokens.split(lengths, dim=1), other.split(lengths, dim=1), strict=True)
            maps = [interface(to_maps(torch.cat(pair, dim=2))) for pair in pairs]
            other = torch.cat([to_tokens(x) for x in maps], dim=1)
            tokens = block(tokens + other)
        return self.norm(tokens)


class SequenceDecoder(nn.Module):
    """Boxes as a sequence of words: `forward` on given ones, `inference` word by word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(10, CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, src: Tensor, pos_embed: Tensor, seq: Tensor) -> Tensor:
        words = self.embedding(seq)  # (B, L, C); src is (N, B, C)
        memory = (src + pos_embed).tanh().mean(0)[:, None].expand_as(words)
        return self.body(torch.cat([words, memory], dim=-1))

    def inference(
        self, src: Tensor, pos_embed: Tensor, seq: Tensor, vocab_embed: nn.Module
    ) -> dict[str, Tensor]:
        confidences = []
        for _ in range(4):
            likelihood = vocab_embed(self(src, pos_embed, seq)[:, -1]).softmax(-1)
            confidences.append(likelihood)
            seq = torch.cat([seq, likelihood.topk(k=1, dim=-1)[1]], dim=-1)
        return {"pred_boxes": seq[:, -4:], "confidence": torch.cat(confidences, dim=-1)}


class SEQTRACKV2(nn.Module):
    """Two streams in the encoder, a decoder of sequences, called in stages."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"body": InterfacedStream()})
        self.decoder, self.vocab_embed = SequenceDecoder(), nn.Linear(CHANNELS, 10)
        self.pos_embed = nn.Parameter(torch.randn(1, SEARCH_TOKENS, CHANNELS))

    def forward(
        self,
        template_list: list[Tensor] | None = None,
        search_list: list[Tensor] | None = None,
        xz: list[Tensor] | None = None,
        seq: Tensor | None = None,
        mode: str = "encoder",
    ) -> Any:
        if mode == "encoder":
            return [self.encoder["body"](template_list[0], search_list[0])]
        memory, position = self.memory(xz)
        return self.vocab_embed(self.decoder(memory, position, seq))

    def inference_decoder(self, xz: list[Tensor], seq: Tensor) -> dict[str, Tensor]:
        memory, position = self.memory(xz)
        return self.decoder.inference(memory, position, seq, self.vocab_embed)

    def memory(self, xz: list[Tensor]) -> tuple[Tensor, Tensor]:
        memory = xz[-1][:, :SEARCH_TOKENS].permute(1, 0, 2)
        return memory, self.pos_embed.permute(1, 0, 2).expand_as(memory)
