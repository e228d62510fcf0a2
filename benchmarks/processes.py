"""Two processes of one thread against one of one and of two: samples a second from the cache.

    python benchmarks/processes.py --out benchmarks/results

Fine-tunes the embedded tracker from its cache with batches of 8 in all, three times in turn; the
fastest of each, without the first steps. For a machine of two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from feature_cache import build_embedded
from measuring import tell_command, write_results
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gmmt_fusion import attach
from gmmt_fusion.training import CachedFeatures, cache_features, fine_tune

BATCH, SAMPLES, WARM = 8, 320, 8
WAYS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}


def make(folder: Path) -> None:
    host = build_embedded(SAMPLES)
    handle = attach(host["network"].eval(), host["fusion"], host["adapter"])
    cache_features(
        handle,
        DataLoader(host["data"], BATCH),
        folder,
        forward=host["forward"],
        dtype="float16",
        targets=lambda data: {name: data[name] for name in host["labels"]},
    )


def train(cache: Path) -> None:
    """In each process: prints the seconds of a step."""
    host, times = build_embedded(1), []
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    handle = attach(host["network"].eval(), host["fusion"], host["adapter"])

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> Any:
        times.append(time.perf_counter())
        return host["cached"](network, batch)

    loader = DataLoader(CachedFeatures(cache), BATCH // processes, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        shared = os.environ.get("RUN_FOLDER", folder)
        fine_tune(handle, loader, loss, shared, epochs=1, progress=False)
    if os.environ.get("RANK", "0") == "0":
        steps = times[WARM:]
        print((steps[-1] - steps[0]) / (len(steps) - 1))


def launch(processes: int, threads: int, cache: Path) -> float:
    """Samples a second."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*(command if processes > 1 else [sys.executable]), __file__, "--train", str(cache)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "RUN_FOLDER": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return BATCH / float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)  # the same host everywhere
    if options.train:
        train(options.train)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "cache"))
        rates: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(3):
            for name, way in WAYS.items():
                rates[name].append(launch(*way, Path(folder, "cache")))
    first = max(next(iter(rates.values())))
    lines = ["| | samples a second | against the first |", "|---|---|---|"]
    lines += [f"| {name} | {max(r):.1f} | {max(r) / first:.2f} × |" for name, r in rates.items()]
    lines += ["", tell_command(f"batches of {BATCH} in all")]
    print("\n".join(lines))
    if options.out:
        write_results(options.out, "processes", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
