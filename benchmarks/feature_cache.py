"""Epoch times of fine-tuning through the host, and from a cache of its features.

Two hosts: the embedded Siamese tracker on its own training pairs, and a two-stream ViT-B tracker
with the sizes of TBSI (12 blocks of width 768 on 2 × 320 tokens, a 3×3 convolution that fuses,
three towers of convolutions as the head). The fusion is the preset "small". An epoch is the median
step times the steps; loading and optimiser are in it.

    python benchmarks/feature_cache.py --out benchmarks/results
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import ViTB, machine, now, write_results
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.training import cache_features, fine_tune

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.sequences import TRAIN_SEEDS
from embedded.siamese import SEARCH_MAP, SiameseTracker, classification_loss, iou_loss
from embedded.training import PairDataset

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]


class RandomPairs(Dataset):
    """Crops of noise: what an image shows does not change how long it takes."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "template": torch.rand(6, 128, 128),
            "search": torch.rand(6, 256, 256),
            "label": torch.rand(5, 16, 16),
        }


def build_vit_b(samples: int) -> dict[str, Any]:
    def compute_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (network(batch["template"], batch["search"]) - batch["label"]).square().mean()

    def compute_cached_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (network(batch) - batch["label"]).square().mean()

    return {
        "network": ViTB(),
        "fusion": GenerativeFusion.preset("small", 768),
        "data": RandomPairs(samples),
        "adapter": ModuleAdapter("fuse", "head"),
        "through": compute_loss,
        "cached": compute_cached_loss,
        "labels": ["label"],
        "forward": lambda network, batch: network(batch["template"], batch["search"]),
    }


def build_embedded(samples: int) -> dict[str, Any]:
    def compute_cached_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        cls, loc = network(batch)
        return classification_loss(cls, batch["label_cls"]) + iou_loss(
            loc, batch["label_loc"], batch["label_cls"] == 1
        )

    return {
        "network": SiameseTracker(),
        "fusion": GenerativeFusion.preset("small", 64, SEARCH_MAP),
        "data": PairDataset(TRAIN_SEEDS, sequences=8, length=samples),
        "adapter": ModuleAdapter("fusion", "head", size=SEARCH_MAP),
        "cached": compute_cached_loss,
        "through": lambda network, batch: network(batch)["total_loss"],
        "labels": ["label_cls", "label_loc"],
        "forward": lambda network, batch: network(batch),
    }


def measure_epoch(handle: Any, loader: DataLoader, loss: Loss, folder: Path) -> float:
    """Seconds for each sample, without the first step, which warms up."""
    times: list[float] = []

    def time_step(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        times.append(time.perf_counter())
        return loss(network, batch)

    fine_tune(handle, loader, time_step, folder, epochs=1, progress=False)
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    return statistics.median(steps) / loader.batch_size


def measure(host: dict[str, Any], batch: int, dtype: str | None, folder: Path) -> dict[str, Any]:
    handle = attach(host["network"].eval(), host["fusion"], host["adapter"])
    loader = DataLoader(host["data"], batch, shuffle=True)
    started = time.perf_counter()
    cache = cache_features(
        handle,
        loader,
        folder / "cache",
        forward=host["forward"],
        dtype=dtype,
        progress=False,
        targets=lambda data: {name: data[name] for name in host["labels"]},
    )
    filled = (time.perf_counter() - started) / len(cache)
    through = measure_epoch(handle, loader, host["through"], folder / "through")
    cached = measure_epoch(
        handle, DataLoader(cache, batch, shuffle=True), host["cached"], folder / "from cache"
    )
    return {
        "batch": batch,
        "samples": len(cache),
        "dtype": dtype or "float32",
        "seconds_per_sample_filling": filled,
        "seconds_per_sample_through_host": through,
        "seconds_per_sample_from_cache": cached,
        "ratio": through / cached,
        "megabytes_per_sample": cache.bytes_per_sample / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--hosts", nargs="+", choices=("embedded", "vit_b"), default=("embedded", "vit_b")
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="steps of an epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="samples a step (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    options = parser.parse_args()

    report: dict[str, Any] = {
        "command": " ".join(sys.argv),
        **machine(torch.device("cpu")),
        **now(),
        "rows": {},
    }
    for name in options.hosts:
        torch.manual_seed(0)
        host = {"embedded": build_embedded, "vit_b": build_vit_b}[name](
            options.steps * options.batch
        )
        with tempfile.TemporaryDirectory() as folder:
            report["rows"][name] = measure(host, options.batch, options.dtype, Path(folder))
    lines = [
        "| host | batch | through the host | from the cache | faster | filling the cache | disk |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['batch']} | {1000 * row['seconds_per_sample_through_host']:.1f} "
        "ms/sample "
        f"| {1000 * row['seconds_per_sample_from_cache']:.1f} ms/sample | {row['ratio']:.1f}× "
        f"| {1000 * row['seconds_per_sample_filling']:.1f} ms/sample "
        f"| {row['megabytes_per_sample']:.2f} MB/sample ({row['dtype']}) |"
        for name, row in report["rows"].items()
    ]
    lines += [
        "",
        ", ".join(
            f"{key} {report[key]}" for key in ("device", "processor", "threads", "load", "torch")
        ),
    ]
    write_results(options.out, "feature_cache", "\n".join(lines) + "\n", report)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
