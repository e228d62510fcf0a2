"""Tiny trackers, each fusing in another way; at module level, so that they pickle."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from gmmt_fusion.adapters import Adapter
from gmmt_fusion.attaching.plugin import ForwardPass

CHANNELS = 8


def stream(channels: int = CHANNELS) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Tanh()
    )


class BoxHead(nn.Sequential):
    """A head with a method and an attribute that hosts use beside its forward."""

    feat_sz = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.Conv2d(CHANNELS, 4, 1),
        )

    def cal_bbox(self, score: Tensor) -> Tensor:
        return score.amax((-1, -2)) * self.feat_sz


class ConcatTracker(nn.Module):
    """One fusion block on the concatenation, a dict out, as TBSI."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.tir = stream(), stream()
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.box_head = BoxHead()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        maps = [self.rgb(search[:, :3]), self.tir(search[:, 3:])]
        scores = self.box_head(self.fuse(torch.cat(maps, dim=1)))
        return {"scores": scores, "pred_boxes": self.box_head.cal_bbox(scores)}


class MapsTracker(nn.Module):
    """A fusion module of three maps in keywords, a head of two arguments inside a container, a
    tuple out.
    """

    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3 * CHANNELS, CHANNELS, 1)

        def forward(self, rgb: Tensor, tir: Tensor, depth: Tensor) -> Tensor:
            return self.mix(torch.cat([rgb, tir, depth], dim=1))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(CHANNELS, 1, 1)

        def forward(self, maps: Tensor, *, scale: float = 1.0) -> Tensor:
            return scale * self.score(maps)

    def __init__(self) -> None:
        super().__init__()
        self.streams = nn.ModuleList(stream() for _ in range(3))
        self.neck = nn.ModuleDict({"fusion": self.Fusion()})
        self.heads = nn.ModuleList([self.Head()])

    def forward(self, template: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        images = [search[:, :3], search[:, 3:], search[:, 1:4]]
        rgb, tir, depth = (s(x) for s, x in zip(self.streams, images, strict=True))
        fused = self.neck["fusion"](rgb=rgb, tir=tir, depth=depth)
        return self.heads[0](fused, scale=2.0), fused.mean()


class SiameseTracker(nn.Module):
    """A fusion called on template and search alike, `template` and `track` beside `forward`, as
    SiamBAN.
    """

    class Fusion(nn.Conv2d):
        def forward(self, maps: list[Tensor]) -> Tensor:
            return super().forward(torch.cat(maps, dim=1))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(CHANNELS, 2, 1)

        def forward(self, template: Tensor, search: Tensor) -> Tensor:
            return self.score(search * template.mean((-1, -2), keepdim=True))

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.tir = stream(), stream()
        self.fusion = self.Fusion(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.head = self.Head()

    def fuse(self, images: Tensor) -> Tensor:
        return self.fusion([self.rgb(images[:, :3]), self.tir(images[:, 3:])])

    def template(self, template: Tensor) -> None:
        self.zf = self.fuse(template)

    def track(self, search: Tensor) -> dict[str, Tensor]:
        return {"cls": self.head(self.zf, self.fuse(search))}

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        score = self.head(self.fuse(template), self.fuse(search))
        return {"scores": score, "total_loss": score.square().mean()}


class SumTracker(nn.Module):
    """Fuses by a sum in the middle of `forward`; its modality maps are two calls of one norm on
    tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = BoxHead()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        rgb, tir = (
            self.norm(self.embed(rearrange(x, "b c h w -> b (h w) c")))
            for x in search.split(3, dim=1)
        )
        fused = rearrange(rgb + tir, "b (h w) c -> b c h w", h=search.shape[-2])
        return {"scores": self.head(fused)}


class SumAdapter(Adapter):
    """For SumTracker: modality maps from `norm`, the fused map at the head's input."""

    head = "head"

    def points(self, network: nn.Module) -> dict[str, Any]:
        return {"norm": self.norm, "head": self.fuse}

    def norm(self, current: ForwardPass, forward: Any, tokens: Tensor) -> Tensor:
        out = forward(tokens)
        current.memory.setdefault("tokens", []).append(out)
        return out

    def fuse(self, current: ForwardPass, forward: Any, fused: Tensor) -> Tensor:
        height = fused.shape[-2]
        maps = [rearrange(t, "b (h w) c -> b c h w", h=height) for t in current.memory["tokens"]]
        return forward(current.fuse(maps, fused))
