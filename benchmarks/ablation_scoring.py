"""What a trained fusion of benchmarks/ablation.py is worth: tracking, and held-out pairs."""

import argparse
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_tables import SETTINGS
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gmmt_fusion import Attachment
from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.training import CachedFeatures

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from ablation_training import losses_of
from embedded.sequences import TEST_SEEDS, VALIDATION_SEEDS, generate_sequence
from embedded.tracking import run_together

SPLITS = {"test": TEST_SEEDS, "validation": VALIDATION_SEEDS}
SEVERITY = dict(zip(SETTINGS, (1.0, 1.5), strict=True))


@cache
def sequences(split: str, setting: str, count: int, degraded: bool) -> list:
    """Sequences of a setting; no seed belongs to two of them."""
    start = list(SEVERITY).index(setting) * 5000
    return [
        generate_sequence(seed, severity=SEVERITY[setting], degraded=degraded)
        for seed in SPLITS[split][start : start + count]
    ]


def track(
    network: nn.Module,
    split: str,
    setting: str,
    count: int,
    degraded: bool,
    window: float,
    jitter: int,
) -> dict[str, dict[str, float]]:
    """PR, NPR and SR of every sequence, by LasHeR's protocol, percent.

    jitter: seeds shifts of the first boxes by a pixel or so, as one run of one tracker is a matter
    of luck, too; 0 is none.
    """
    chosen, boxes = sequences(split, setting, count, degraded), {}
    shifts = np.random.default_rng(jitter).normal(0, float(jitter > 0), (count, 2))
    for first in range(0, count, 16):
        boxes |= run_together(
            network, chosen[first : first + 16], shifts[first : first + 16], window=window
        )
    return evaluate(boxes, {s.name: s.boxes_visible for s in chosen}, "lasher").sequences


@torch.no_grad()
def score_pairs(
    handle: Attachment, setting: str, degraded: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """The mean tracking loss of held-out pairs, and their success by sequence.

    The sequences of these pairs are not tracked. The box of a pair is that of the highest score.
    Pairs without a target count in the loss alone.
    """
    features = CachedFeatures(pairs_folder(setting, degraded, options))
    network, training = features.network(handle), handle.network.training
    handle.network.eval()
    losses, successes = [], defaultdict(list)
    for batch in DataLoader(features, 32):
        cls, loc = network(batch)
        losses.append(sum(float(term) for term in losses_of(cls, loc, batch).values()))
        best = rearrange(cls[:, 1] - cls[:, 0], "b h w -> b (h w)").argmax(1)
        found, truth = (
            rearrange(x.float(), "b c h w -> b (h w) c")[torch.arange(len(best)), best]
            for x in (loc, batch["label_loc"])
        )
        for i in (batch["label_cls"] == 1).any((1, 2)).nonzero()[:, 0]:
            successes[int(batch["sequence"][i])].append(
                float(success(overlaps(found[i], truth[i])))
            )
    handle.network.train(training)
    return {
        "loss": float(np.mean(losses)),
        "success": [float(np.mean(of)) for _, of in sorted(successes.items())],
    }


def success(overlap: Tensor) -> Tensor:
    """The fraction of the thresholds 0, 0.05, … 1 that each overlap (…) exceeds, percent."""
    return 100 * (overlap[..., None] > torch.arange(21) / 20).float().mean(-1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU (…) of boxes (…, 4), each the distances left, top, right, bottom from the same point."""

    def area(box: Tensor) -> Tensor:
        return (box[..., 0] + box[..., 2]).clamp(min=0) * (box[..., 1] + box[..., 3]).clamp(min=0)

    common = area(torch.minimum(one, other))
    return common / (area(one) + area(other) - common)


def pairs_folder(setting: str, degraded: bool, options: argparse.Namespace) -> Path:
    pairs = "{1}-of-{0}".format(*options.held_out_pairs)
    return (
        options.work / f"pairs-{options.split}-{setting}{'' if degraded else '-undegraded'}-{pairs}"
    )
