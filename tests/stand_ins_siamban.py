"""A tiny tracker with SiamBAN's contract: class names, `template`, `track`, the neck's crop."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmt_fusion.adapters import siamban

CHANNELS = 8


def layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Backbone(nn.Module):
    """Crops (B, 3, H, W) to maps of stride 8, one for each of `used_layers`."""

    def __init__(self, used_layers: list[int]) -> None:
        super().__init__()
        self.used_layers = used_layers
        self.layer1 = nn.Conv2d(3, 6, 15, stride=8)
        self.layer2, self.layer3 = layer(6, 12), layer(12, 10)
        self.layer4 = layer(10, 14) if 4 in used_layers else lambda x: x

    def forward(self, images: Tensor) -> Any:
        maps = [self.layer1(images / 255)]
        for later in (self.layer2, self.layer3, self.layer4):
            maps.append(later(maps[-1]))
        out = [maps[index - 1] for index in self.used_layers]
        return out if len(out) > 1 else out[0]


class AdjustLayer(nn.Module):
    """To the head's channels; the middle 7×7 of a small map."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS)
        )

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.downsample(maps)
        return maps[..., 4:11, 4:11] if maps.shape[-1] < 20 else maps


class AdjustAllLayer(nn.Module):
    def __init__(self, inputs: list[int]) -> None:
        super().__init__()
        for index, channels in enumerate(inputs):
            self.add_module(f"downsample{index + 2}", AdjustLayer(channels))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [adjust(level) for adjust, level in zip(self.children(), levels, strict=True)]


class DepthwiseBAN(nn.Module):
    """Depthwise cross correlation of template and search; needs contiguous maps."""

    class Branch(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, outputs, 1)

        def forward(self, z_f: Tensor, x_f: Tensor) -> Tensor:
            x_f = self.norm(x_f)
            batch, channels = x_f.shape[:2]
            scores = F.conv2d(
                x_f.view(1, batch * channels, *x_f.shape[2:]),
                z_f.contiguous().view(batch * channels, 1, 7, 7),
                groups=batch * channels,
            )
            return self.out(scores.view(batch, channels, *scores.shape[2:]) / 49)

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.loc = self.Branch(2), self.Branch(4)

    def forward(self, z_f: Tensor, x_f: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls(z_f, x_f), self.loc(z_f, x_f)


class MultiBAN(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        for index in range(levels):
            self.add_module(f"box{index + 2}", DepthwiseBAN())
        self.loc_scale = nn.Parameter(torch.ones(levels))

    def forward(self, z_fs: list[Tensor], x_fs: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes = [box(z_f, x_f) for box, z_f, x_f in zip(self.children(), z_fs, x_fs, strict=True)]
        cls = torch.stack([c for c, _ in boxes]).mean(0)
        loc = torch.stack(
            [torch.exp(scale * d) for scale, (_, d) in zip(self.loc_scale, boxes, strict=True)]
        )
        return cls, loc.mean(0)


class ModelBuilder(nn.Module):
    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        self.backbone = Backbone([3] if levels == 1 else [2, 3, 4])
        self.neck = AdjustLayer(10) if levels == 1 else AdjustAllLayer([12, 10, 14])
        self.head = DepthwiseBAN() if levels == 1 else MultiBAN(levels)

    def template(self, z: Tensor) -> None:
        self.zf = self.neck(self.backbone(z))

    def track(self, x: Tensor) -> dict[str, Tensor]:
        cls, loc = self.head(self.zf, self.neck(self.backbone(x)))
        return {"cls": cls, "loc": loc}

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        z_f, x_f = self.backbone(data["template"]), self.backbone(data["search"])
        cls, loc = self.head(self.neck(z_f), self.neck(x_f))
        cls_loss, loc_loss = (
            F.cross_entropy(cls, data["label_cls"]),
            (loc - data["label_loc"]).abs().mean(),
        )
        return {"total_loss": cls_loss + loc_loss, "cls_loss": cls_loss, "loc_loss": loc_loss}


def single(levels: int = 1, seed: int = 0) -> ModelBuilder:
    """A model of one modality in eval mode, its BatchNorms not at their start, by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ModelBuilder(levels).eval()
        if levels == 1:
            model.head = siamban.OneLevelHead(model.head)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def build(levels: int = 1) -> nn.Module:
    """An RGB-T model of two differently trained ones in eval mode, its fusion not at its start."""
    model = siamban.two_stream(single(levels), single(levels, seed=1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in model.neck.fusion.levels:
            block[0].weight.add_(0.1 * torch.randn(block[0].weight.shape, generator=generator))
    return model


def crops(
    batch: int = 2, channels: int = 6, template: int = 127, search: int = 255
) -> tuple[Tensor, Tensor]:
    """Template and search crops, 0 to 255, always the same."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        255 * torch.rand(batch, channels, side, side, generator=generator)
        for side in (template, search)
    )


def inputs(model: nn.Module, **options: Any) -> tuple[Tensor, Tensor]:
    """The crops in the model's own dtype and device."""
    like = next(model.parameters())
    return tuple(x.to(like) for x in crops(**options))


def run(model: nn.Module, **options: Any) -> Tensor:
    """One frame at inference: cls and loc, (B, 6, 25, 25)."""
    template, search = inputs(model, **options)
    model.template(template)
    return torch.cat(list(model.track(search).values()), dim=1)


def batch(model: nn.Module, **options: Any) -> dict[str, Tensor]:
    """What the host's data loader gives."""
    template, search = inputs(model, **options)
    generator = torch.Generator().manual_seed(3)
    label_cls = torch.randint(2, (len(search), 25, 25), generator=generator).to(search.device)
    return {
        "template": template,
        "search": search,
        "label_cls": label_cls,
        "label_loc": torch.rand(len(search), 4, 25, 25, generator=generator).to(search),
    }


def train(model: nn.Module) -> dict[str, Tensor]:
    """One forward in training; beside the losses, the classes that the head gave, as "scores"."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = getattr(model, "module", model).head.register_forward_hook(
        lambda *call: seen.append(call[-1])
    )
    try:
        return {**model(batch(model)), "scores": seen[0][0]}
    finally:
        hook.remove()
