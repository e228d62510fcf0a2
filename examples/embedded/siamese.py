"""A small two-stream Siamese RGB-T tracker after SiamBAN (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange, reduce, repeat
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MODALITIES = ("visible", "infrared")
TEMPLATE_SIZE, SEARCH_SIZE = 95, 191  # crops, pixels
STRIDE = 8
TEMPLATE_MAP, SEARCH_MAP = 6, 24  # sides of the maps at the fusion
RESPONSE = SEARCH_MAP - TEMPLATE_MAP + 1
WEIGHTS = Path(__file__).parent / "weights" / "siamese_rgbt.safetensors"


def convolution(
    inputs: int, outputs: int, kernel: int = 3, *, relu: bool = True, **options
) -> nn.Sequential:
    """Convolution + BatchNorm (+ ReLU)."""
    layers = [nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Residual(nn.Module):
    """Two 3×3 convolutions with a shortcut: (B, inputs, H, W) to (B, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        spread = {"padding": dilation, "dilation": dilation}
        self.first = convolution(inputs, outputs, stride=stride, **spread)
        self.second = convolution(outputs, outputs, relu=False, **spread)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity() if same else convolution(inputs, outputs, 1, relu=False, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Backbone(nn.Sequential):
    """(B, 3, H, W) -> (B, widths[-1], H / 8, W / 8)."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 96)):
        stem, one, two, three = widths
        super().__init__(
            convolution(3, stem, 5, stride=2, padding=2),
            Residual(stem, one, stride=2),
            Residual(one, two, stride=2),
            Residual(two, three, dilation=2),
        )


class Neck(nn.Sequential):
    """1×1 convolution to the head's channels; a template's map is cut to its centre."""

    def __init__(self, inputs: int, channels: int):
        super().__init__(*convolution(inputs, channels, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.shape[-1] < SEARCH_MAP:
            edge = (x.shape[-1] - TEMPLATE_MAP) // 2
            x = x[..., edge : edge + TEMPLATE_MAP, edge : edge + TEMPLATE_MAP]
        return x


def depthwise_correlation(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate x (B, C, H, W) with kernel (B or 1, C, h, w), channel by channel.

    Returns (B, C, H - h + 1, W - w + 1).
    """
    batch, channels = x.shape[:2]
    kernel = repeat(kernel, "1 c h w -> b c h w", b=batch) if kernel.shape[0] == 1 else kernel
    x, kernel = rearrange(x, "b c h w -> 1 (b c) h w"), rearrange(kernel, "b c h w -> (b c) 1 h w")
    return rearrange(
        F.conv2d(x, kernel, groups=batch * channels), "1 (b c) h w -> b c h w", b=batch
    )


class Branch(nn.Module):
    """Depth-wise cross-correlation, then 1x1 convolutions."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.kernel = convolution(channels, channels)
        self.search = convolution(channels, channels)
        self.head = nn.Sequential(
            convolution(channels, channels, 1), nn.Conv2d(channels, outputs, 1)
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.head(depthwise_correlation(self.search(x), self.kernel(z)))


class BoxAdaptiveHead(nn.Module):
    """Scores and boxes of a response.

    cls (B, 2, R, R): background and target; loc (B, 4, R, R): distances left, top, right, bottom in
    crop pixels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.cls = Branch(channels, 2)
        self.loc = Branch(channels, 4)
        nn.init.zeros_(self.loc.head[-1].bias)

    def forward(self, z_features: Tensor, x_features: Tensor) -> tuple[Tensor, Tensor]:
        # Clamped, because the exponential of an untrained branch may overflow.
        loc = self.loc(z_features, x_features).clamp(-4, 3)
        # Untrained, about half the side that a square target has in the search crop.
        return self.cls(z_features, x_features), 2.5 * STRIDE * torch.exp(loc)


class SiameseTracker(nn.Module):
    """Backbones and necks of each modality, a fusion, and a box-adaptive head.

    Crops are visible and infrared images on channels, 0..255: template (B, 6, 95, 95), search
    (B, 6, 191, 191). The modality maps reach `fusion` as one concatenation: (B, 2C, 6, 6) of the
    template, (B, 2C, 24, 24) of the search. With a single modality there is nothing to fuse: the
    map goes straight to the head.
    """

    def __init__(
        self, modalities: Sequence[str] = MODALITIES, channels: int = 64, widths=(16, 32, 64, 96)
    ):
        super().__init__()
        unknown = set(modalities) - set(MODALITIES)
        if unknown or not modalities:
            raise ValueError(
                f"modalities={tuple(modalities)}; expected one or both of {MODALITIES}"
            )
        self.modalities = tuple(modalities)
        self.backbones = nn.ModuleDict({name: Backbone(widths) for name in self.modalities})
        self.necks = nn.ModuleDict({name: Neck(widths[-1], channels) for name in self.modalities})
        many = len(self.modalities) > 1
        self.fusion = (
            convolution(channels * len(self.modalities), channels, padding=1, relu=False)
            if many
            else nn.Identity()
        )
        self.head = BoxAdaptiveHead(channels)
        self.zf: Tensor | None = None

    def modality_features(self, crops: Tensor) -> list[Tensor]:
        """One map (B, C, h, w) per modality of crops (B, 6, H, W)."""
        dtype = next(self.parameters()).dtype
        features = []
        for name in self.modalities:
            first = 3 * MODALITIES.index(name)
            image = (crops[:, first : first + 3].to(dtype) - 112) / 64
            features.append(self.necks[name](self.backbones[name](image)))
        return features

    def features(self, crops: Tensor) -> Tensor:
        """The fused map (B, C, h, w)."""
        return self.fusion(torch.cat(self.modality_features(crops), 1))

    def template(self, z: Tensor) -> None:
        """Keep the features of the template crop, for `track`."""
        self.zf = self.features(z)

    def track(self, x: Tensor) -> dict[str, Tensor]:
        if self.zf is None:
            raise RuntimeError("track() before template(): there is nothing to look for")
        cls, loc = self.head(self.zf, self.features(x))
        return {"cls": cls, "loc": loc}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch of pairs.

        batch: template, search, label_cls (B, R, R) in {1, 0, -1}, label_loc (B, 4, R, R), pixels.
        """
        cls, loc = self.head(self.features(batch["template"]), self.features(batch["search"]))
        cls_loss = classification_loss(cls, batch["label_cls"])
        loc_loss = iou_loss(loc, batch["label_loc"], batch["label_cls"] == 1)
        return {"total_loss": cls_loss + loc_loss, "cls_loss": cls_loss, "loc_loss": loc_loss}


def classification_loss(cls: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, half from the target's, half from the background's points; none of -1."""
    losses = F.cross_entropy(cls.float(), labels.clamp(min=0), reduction="none")
    target, rest = (labels == 1).float(), (labels == 0).float()
    mean_target = (losses * target).sum() / target.sum().clamp(min=1)
    mean_rest = (losses * rest).sum() / rest.sum().clamp(min=1)
    return 0.5 * (mean_target + mean_rest)


def iou_loss(loc: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
    """-log IoU of the boxes at the chosen points, as in SiamBAN.

    loc and labels (B, 4, R, R), chosen (B, R, R).
    """
    loc, labels = loc.float(), labels.float().clamp(min=0)
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (loc, labels)]
    least = torch.minimum(loc, labels)
    overlap = (least[:, 0] + least[:, 2]) * (least[:, 1] + least[:, 3])
    losses = -torch.log((overlap + 1) / (areas[0] + areas[1] - overlap + 1))
    weight = chosen.float()
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def points(size: int = RESPONSE, device=None) -> Tensor:
    """Centres (2, size, size) of the response's points: x, y from the crop's centre, pixels."""
    steps = (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2) * STRIDE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y])


def make_labels(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """SiamBAN's labels of boxes (B, 4), corners x1, y1, x2, y2 from the centre of the crop, pixels.

    Inside the ellipse of half the box: 1; outside the ellipse of the box: 0; between: -1. An empty
    box has no target.
    """
    where = points(device=boxes.device)
    x1, y1, x2, y2 = (rearrange(boxes[:, i], "b -> b 1 1") for i in range(4))
    w, h = (x2 - x1).clamp(min=1e-3), (y2 - y1).clamp(min=1e-3)
    distance = ((where[0] - (x1 + x2) / 2) / w) ** 2 + ((where[1] - (y1 + y2) / 2) / h) ** 2
    cls = torch.full_like(distance, -1, dtype=torch.long)
    cls[distance > 1 / 4] = 0
    cls[distance < 1 / 16] = 1
    # A small target may fall between the points: its nearest one counts then.
    nearest = distance == reduce(distance, "b h w -> b 1 1", "min")
    cls = torch.where(nearest & (distance < 1 / 4), 1, cls)
    cls = torch.where((x2 - x1 < 1) | (y2 - y1 < 1), torch.zeros_like(cls), cls)
    loc = torch.stack([where[0] - x1, where[1] - y1, x2 - where[0], y2 - where[1]], 1)
    return cls, loc


def load_tracker(
    modalities: Sequence[str] = MODALITIES, path: str | Path = WEIGHTS
) -> SiameseTracker:
    """The trained tracker in eval mode: both modalities fused, or one alone with its own head."""
    network = SiameseTracker(modalities)
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }
    if len(network.modalities) == 1:
        head = f"alone.{network.modalities[0]}."
        state.update(
            {
                name.removeprefix(head): value
                for name, value in state.items()
                if name.startswith(head)
            }
        )
    own = network.state_dict().keys()
    network.load_state_dict({name: value for name, value in state.items() if name in own})
    return network.eval()
