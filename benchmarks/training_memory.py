"""What a training step keeps in memory, with and without activation checkpointing.

    python benchmarks/training_memory.py --out benchmarks/results

The sum is counted, on maps without numbers (device "meta"): float32 weights, their gradients,
AdamW's two moments, and what autograd keeps for the backward of the network. Step and peak are
measured, on the CPU, for the presets of --run; a process of its own for each, so that nothing of
one is left for the next.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from bench import Bench
from measuring import tell_command, write_results
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.model.config import PRESETS

CHANNELS, SIZE = 768, 16


def build(preset: str, checkpointing: bool) -> GenerativeFusion:
    options = {**PRESETS[preset].get("network_config", {}), "checkpointing": checkpointing}
    return GenerativeFusion.preset(preset, CHANNELS, SIZE, network_config=options).train()


def count(preset: str, batch: int, checkpointing: bool) -> tuple[float, float]:
    """Bytes of the weights, and of what autograd keeps."""
    with torch.device("meta"):
        fusion = build(preset, checkpointing)
        maps = torch.empty(batch, 3 * CHANNELS, SIZE, SIZE)
        timesteps = torch.zeros(batch, dtype=torch.long)
    weights = {p.untyped_storage()._cdata for p in fusion.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()._cdata
        if not isinstance(x, nn.Parameter) and storage not in weights:
            kept[storage] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _ = fusion.network(maps, timesteps).square().mean()
    held = sum(x.untyped_storage().nbytes() for x in kept.values())
    return 4 * sum(p.numel() for p in fusion.parameters()), held


def run(preset: str, batch: int, checkpointing: bool, threads: int) -> tuple[float, float]:
    """Peak beyond what was there before the second step, MB, and the fastest of three, ms."""
    bench = Bench(argparse.Namespace(device="cpu", quick=False, seconds=1, threads=threads))
    fusion = build(preset, checkpointing)
    optimizer = torch.optim.AdamW(fusion.parameters(), 1e-4, fused=True)
    maps = bench.maps(batch, 3)

    def step() -> None:
        output = fusion.loss(maps[:2], maps[2])
        (output.loss + output.fused.square().mean()).backward()
        optimizer.step()

    step()  # gradients and moments stay
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return bench.peak(step), 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--run", nargs="*", choices=PRESETS, default=["small", "paper-uvit"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        preset, checkpointing = options.one
        print(*run(preset, options.batches[0], checkpointing == "True", options.threads))
        return
    lines = [
        "| preset | batch | checkpointing | weights + gradients + moments | kept for the backward "
        "| sum | measured peak beyond weights, gradients, moments | step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        for batch in options.batches:
            for checkpointing in (False, True):
                weights, kept = count(preset, batch, checkpointing)
                measured = ""
                if preset in options.run and batch == options.batches[0]:
                    command = [sys.executable, __file__, "--one", preset, str(checkpointing)]
                    command += ["--batches", str(batch), "--threads", str(options.threads)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    peak, step = map(float, done.stdout.split())
                    measured = f"{peak:.0f} MB | {step:.0f} ms"
                lines.append(
                    f"| `{preset}` | {batch} | {'yes' if checkpointing else 'no'} "
                    f"| {4 * weights / 1e9:.2f} GB | {kept / 1e9:.2f} GB "
                    f"| {(4 * weights + kept) / 1e9:.2f} GB | {measured or ' | '} |"
                )
    lines += [
        "",
        f"C = {CHANNELS}, {SIZE}×{SIZE} maps, float32. {tell_command()}",
    ]
    print("\n".join(lines))
    if options.out:
        write_results(options.out, "training_memory", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
