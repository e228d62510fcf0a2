"""One fine-tuning of benchmarks/ablation.py: from an arm to a trained fusion."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_arms import Arm
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.files import write_atomically
from gmmt_fusion.model.calibration import least_squares_convolution
from gmmt_fusion.training import CachedFeatures, cache_features, fine_tune, recipes

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.siamese import SEARCH_MAP, classification_loss, iou_loss, load_tracker

CHANNELS = 64
CALIBRATION = "features-of-calibration"
TRAINING = ("steps", "batch", "pairs", "training_sequences", "bfloat16")


def cache_pairs(
    dataset: Dataset[Any],
    folder: Path,
    degradation: Any = None,
    progress: bool = True,
    tracker: Any = None,
) -> None:
    """The frozen embedded tracker's maps of pairs, and their labels; `degradation` as attached."""
    fusion = GenerativeFusion(CHANNELS, size=SEARCH_MAP, residual="conv3x3")
    host = tracker or load_tracker()
    handle = attach(host, fusion, ModuleAdapter("fusion", "head", size=SEARCH_MAP))
    handle.degradation = degradation
    cache_features(
        handle,
        DataLoader(dataset, 16),
        folder,
        targets=lambda batch: {
            name: batch[name] for name in ("label_cls", "label_loc", "sequence")
        },
        forward=lambda network, batch: network(batch),
        dtype="float16",
        progress=progress,
    )


class Silent(nn.Module):
    """In place of the network: adds nothing to the residual path, which is the host's fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.last_layer = nn.Conv2d(1, 1, 1)  # in no use; every network has one

    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        return torch.zeros_like(maps[:, :CHANNELS])


class Convolutions(nn.Module):
    """A plain fusion: 3×3, 1×1, 3×3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * CHANNELS, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
        )
        self.last_layer = nn.Conv2d(
            width, CHANNELS, 3, padding=1
        )  # at zero after calibration, as every network's

    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        return self.last_layer(self.layers(maps))


WIDTHS = {"convolution": 136, "wide convolution": 448}
"""Of the plain fusions: about the parameters of the UViT (0.25 M, 0.21 M), which are the FLOP of
the UNet, too; and those of the UNet (0.98 M, 0.97 M)."""


class Frozen(nn.Module):
    """A module whose parameters are out of training's reach."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.hidden = (module.requires_grad_(False),)
        self.weight = module.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0].to(x.device)(x)


def build(arm: Arm, seed: int, features: CachedFeatures) -> Attachment:
    """The embedded tracker with the arm's fusion, calibrated, as training starts with it."""
    torch.manual_seed(seed)
    fusion = GenerativeFusion(
        CHANNELS, size=SEARCH_MAP, **{"residual": "conv3x3"} | arm.fusion
    ).manual_seed(seed)
    if arm.control:
        fusion.network = Convolutions(WIDTHS[arm.control]) if arm.control in WIDTHS else Silent()
    handle = attach(load_tracker(), fusion, ModuleAdapter("fusion", "head", size=SEARCH_MAP))
    batch = next(iter(DataLoader(features, min(128, len(features)))))
    features, fused = (
        [batch["feature_0"].float(), batch["feature_1"].float()],
        batch["fused"].float(),
    )
    if arm.calibrated:
        fusion.calibrate([(features, fused)])
    if arm.unnormalised is not None:  # the same residual path, on other numbers
        for name in ("feature", "fused"):
            getattr(fusion, f"{name}_mean").zero_()
            getattr(fusion, f"{name}_std").fill_(1 / arm.unnormalised)
        weight, bias, _ = least_squares_convolution(
            [(torch.cat(features, 1), fused)], fusion.residual.kernel_size[0]
        )
        fusion.residual.load_state_dict({"weight": weight, "bias": arm.unnormalised * bias})
    if isinstance(fusion.network, Silent):
        fusion.residual = Frozen(fusion.residual)
    return handle


def tracking_loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return losses_of(*network(batch), batch)


def losses_of(cls: Tensor, loc: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    labels = batch["label_cls"]
    return {
        "cls_loss": classification_loss(cls, labels),
        "loc_loss": iou_loss(loc, batch["label_loc"], labels == 1),
    }


def train(arm: Arm, seed: int, options: argparse.Namespace) -> Attachment:
    """Fine-tuned, or read from the working folder."""
    features = CachedFeatures(features_folder(arm, options))
    handle = build(arm, seed, CachedFeatures(options.work / CALIBRATION))
    folder = options.work / training_key(arm, seed, options)

    head = {id(p) for p in handle.head.parameters()}

    def head_slower(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
        """The head is trained already, and learns more slowly than the network, which is not."""
        new, old = (
            [p for p in parameters if (id(p) in head) is is_head] for is_head in (False, True)
        )
        groups = [
            {"params": new, "lr": 1e-3 if old else 4e-4},
            {"params": old},
        ]  # no head: the discriminator
        return recipes.adamw_optimizer(groups[arm.control == "head" :], epochs, steps_per_epoch)

    if arm.training.get("batch_statistics"):
        for module in handle.head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval = lambda module=module: (
                    module
                )  # which keeps the host's statistics in training

    recipe = getattr(recipes, arm.training["recipe"]) if "recipe" in arm.training else head_slower
    start = {name: tensor.clone() for name, tensor in handle.fusion.state_dict().items()}
    weights = folder / "weights.pt"
    if not weights.is_file():
        random, wanted = np.random.default_rng(seed), options.steps * options.batch
        passes = [random.permutation(len(features)) for _ in range(-(-wanted // len(features)))]
        chosen = np.concatenate(passes)[:wanted]
        loader = DataLoader(Subset(features, chosen.tolist()), options.batch, shuffle=True)
        torch.manual_seed(seed)
        fine_tune(
            handle,
            loader,
            tracking_loss,
            folder / "training",
            epochs=1,
            generative_weight=arm.weight,
            recipe=recipe,
            ema_decay=arm.training.get("ema_decay"),
            seed=seed,
            progress=False,
            mixed_precision="bf16" if options.bfloat16 else "no",
        )
        write_atomically(weights, lambda path: torch.save(handle.fusion.state_dict(), path))
    handle.fusion.load_state_dict(
        {
            name: torch.lerp(start[name], end, arm.interpolation)
            if end.is_floating_point()
            else end
            for name, end in torch.load(weights, weights_only=True).items()
        }
    )
    for name, value in arm.sampling.items():
        if name == "optimize":
            handle.optimize(dtype=getattr(torch, value))
        else:
            setattr(handle.fusion, name, value)
    handle.fusion.manual_seed(seed)
    handle.network.eval()
    return handle


def features_folder(arm: Arm, options: argparse.Namespace) -> Path:
    target = "twins" if arm.twins else "own"
    kind = "-".join(map(str, [arm.degradation["probability"], *arm.degradation.get("kinds", [])]))
    return (
        options.work / f"features-{target}-{kind}-{options.pairs}-of-{options.training_sequences}"
    )


def training_key(arm: Arm, seed: int, options: argparse.Namespace) -> str:
    """Names what was trained; arms that differ in how they sample or track share it."""
    what = [
        arm.fusion,
        arm.weight,
        arm.control,
        arm.degradation,
        arm.twins,
        arm.training,
        arm.calibrated,
        arm.unnormalised,
    ]
    return key({"arm": what, **{name: getattr(options, name) for name in TRAINING}}, seed)


def key(settings: dict[str, Any], seed: int) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{digest[:12]}-seed{seed}"
