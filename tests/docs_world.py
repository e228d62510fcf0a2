"""What the pages' code runs on: a tracker of ViT-B's width and TBSI's shape that costs next to
nothing, pairs of images for it, and a loss.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gmmt_fusion import GenerativeFusion, attach

CHANNELS, STRIDE, TEMPLATE, SEARCH = 768, 16, 128, 256


class BoxHead(nn.Module):
    """A score map, and boxes (B, 1, 4) in fractions of the search image."""

    feat_sz = SEARCH // STRIDE

    def __init__(self) -> None:
        super().__init__()
        self.score, self.box = nn.Conv2d(CHANNELS, 1, 1), nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, maps: Tensor, gt_score_map: Tensor | None = None) -> dict[str, Tensor]:
        boxes = self.box(maps).mean((-1, -2)).sigmoid()[:, None]
        return {"score_map": self.score(maps).sigmoid(), "pred_boxes": boxes}


class TwoStreamTracker(nn.Module):
    """template and search as lists, [visible, infrared] of (B, 3, H, W), and OSTrack's two
    methods on frames (H, W, 6).
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        self.tbsi_fuse_search = nn.Sequential(
            nn.Conv2d(2 * CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)
        )
        self.box_head = BoxHead()

    def forward(self, template: list[Tensor], search: list[Tensor]) -> dict[str, Tensor]:
        maps = torch.cat([self.backbone(image) for image in search], dim=1)
        return self.box_head(self.tbsi_fuse_search(maps))

    def initialize(self, image: np.ndarray, info: dict[str, Any]) -> None:
        self.box = info["init_bbox"]

    def track(self, image: np.ndarray) -> dict[str, Any]:
        crop = torch.zeros(1, 6, SEARCH, SEARCH)
        height, width = image.shape[:2]
        crop[..., :height, :width] = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        self(list(crop[..., :TEMPLATE, :TEMPLATE].split(3, 1)), list(crop.split(3, 1)))
        return {"target_bbox": self.box, "best_score": 0.5}


def build() -> TwoStreamTracker:
    torch.manual_seed(0)
    return TwoStreamTracker().eval()


class Pairs(Dataset[dict[str, Any]]):
    """Template and search as the tracker takes them, and the box in the search image."""

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        images = {
            name: list(torch.rand(2, 3, side, side, generator=generator))
            for name, side in (("template", TEMPLATE), ("search", SEARCH))
        }
        return {**images, "box": torch.rand(1, 4, generator=generator)}


def loader(length: int = 4, batch_size: int = 2) -> DataLoader[dict[str, Any]]:
    return DataLoader(Pairs(length), batch_size)


def batches(count: int = 2) -> list[dict[str, Any]]:
    """Of the network's inputs, by name."""
    return [{name: b[name] for name in ("template", "search")} for b in loader(2 * count)]


def box_loss(out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.l1_loss(out["pred_boxes"], batch["box"])


def save_fusion(folder: str, **options: Any) -> None:
    """A fusion for the tracker, as a fine-tuning would have left it."""
    attach(build(), GenerativeFusion.preset("small", CHANNELS, **options)).save_pretrained(folder)
