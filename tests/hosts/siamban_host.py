"""A real checkout of siamban, unmodified, in the folder HOSTS: models, video and tracker."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.adapters import siamban

CHECKOUT = Path(os.environ.get("HOSTS", "")) / "siamban"
needs_siamban = [
    pytest.mark.skipif(
        "HOSTS" not in os.environ or not (CHECKOUT / "siamban").is_dir(),
        reason="HOSTS names no folder with a checkout of siamban",
    ),
    pytest.mark.usefixtures("siamban_host"),
]
BOX = [100.0, 90.0, 50.0, 40.0]


def configure(levels: int) -> Any:
    from siamban.core.config import cfg
    from yacs.config import CfgNode

    for part in (cfg.BACKBONE, cfg.ADJUST, cfg.BAN):
        part.KWARGS = CfgNode(new_allowed=True)
    cfg.merge_from_file(str(CHECKOUT / "experiments" / "siamban_r50_l234" / "config.yaml"))
    cfg.CUDA = False
    if levels == 1:
        cfg.BACKBONE.KWARGS = CfgNode({"used_layers": [3]})
        cfg.ADJUST.TYPE, cfg.ADJUST.KWARGS = (
            "AdjustLayer",
            CfgNode({"in_channels": 1024, "out_channels": 256}),
        )
        cfg.BAN.TYPE, cfg.BAN.KWARGS = "DepthwiseBAN", CfgNode({"cls_out_channels": 2})
    return cfg


def build(levels: int, seed: int) -> nn.Module:
    """Random weights, with distances of about those of a trained network."""
    from siamban.models.model_builder import ModelBuilder

    torch.manual_seed(seed)
    model = ModelBuilder()
    if levels == 1:
        model.head = siamban.OneLevelHead(model.head)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("loc.head.3.bias"):
                parameter.fill_(3.0)
    return settled(model, channels=3)


def settled(model: nn.Module, channels: int = 6) -> nn.Module:
    """With the BatchNorm statistics of the video's own crops, in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    pair = crops(4, channels)
    with torch.no_grad():
        model.train().template(pair["template"])
        model.track(pair["search"])
    for norm in norms:
        norm.momentum = 0.1
    del model.zf
    return model.eval()


def frames(count: int = 2) -> list[np.ndarray]:
    """H×W×6 uint8, a bright square that moves over noise."""
    random = np.random.default_rng(0)
    background = random.integers(0, 120, (240, 320, 6)).astype(np.uint8)
    video = []
    for index in range(count):
        frame = background.copy()
        x, y = 100 + 4 * index, 90 + 2 * index
        frame[y : y + 40, x : x + 50] = (220, 60, 40, 240, 240, 240)
        video.append(frame)
    return video


def crops(count: int, channels: int) -> dict[str, Tensor]:
    video = (
        torch.from_numpy(np.stack(frames(count)))
        .permute(0, 3, 1, 2)[:, :channels]
        .float()
        .contiguous()
    )
    return {
        name: F.interpolate(
            video[..., 110 - side : 110 + side, 125 - side : 125 + side], (size, size)
        )
        for name, side, size in (("template", 45, 127), ("search", 90, 255))
    }


def batch(size: int = 2, channels: int = 6) -> dict[str, Tensor]:
    """What upstream's data loader gives."""
    from siamban.core.config import cfg
    from siamban.datasets.point_target import PointTarget
    from siamban.utils.bbox import Corner

    np.random.seed(0)  # noqa: NPY002
    labels = [
        PointTarget()(Corner(100, 95, 160, 150), cfg.TRAIN.OUTPUT_SIZE, False) for _ in range(size)
    ]
    cls, loc = (torch.from_numpy(np.stack(values)) for values in zip(*labels, strict=True))
    return {**crops(size, channels), "label_cls": cls, "label_loc": loc}


def boxes(model: nn.Module, video: list[np.ndarray]) -> np.ndarray:
    """Upstream's own tracker on all frames but the first, gradients on, as its test scripts do."""
    from siamban.tracker.tracker_builder import build_tracker

    tracker = build_tracker(model)
    tracker.init(video[0], BOX)
    found = np.array([tracker.track(frame)["bbox"] for frame in video[1:]])
    assert np.isfinite(found).all()
    del model.zf  # with a graph where nothing is frozen: such a host cannot be copied
    return found


def optimiser(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """`build_opt_lr` of upstream's tools/train.py, which cannot be imported, being a script."""
    from siamban.core.config import cfg
    from siamban.utils.lr_scheduler import build_lr_scheduler

    tree = ast.parse((CHECKOUT / "tools" / "train.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "build_opt_lr"]
    names = {"cfg": cfg, "nn": nn, "torch": torch, "build_lr_scheduler": build_lr_scheduler}
    exec(compile(tree, "train.py", "exec"), names)
    return names["build_opt_lr"](model, cfg.BACKBONE.TRAIN_EPOCH)


def plugin(levels: int, perturbed: bool = True) -> GenerativeFusion:
    fusion = GenerativeFusion.preset("small-unet", 256 * levels, 31)
    if perturbed:
        nn.init.normal_(
            fusion.network.last_layer.weight, std=0.05, generator=torch.Generator().manual_seed(0)
        )
    return fusion
