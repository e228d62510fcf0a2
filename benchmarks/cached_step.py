"""Where the time of a fine-tuning step from the cache goes, on the embedded tracker.

    OMP_NUM_THREADS=1 python benchmarks/cached_step.py --out benchmarks/results

Milliseconds of processor time in this process, the median over steps, without the first. Loading
is in the same process, as it is without workers.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import feature_cache
import torch
from feature_cache import build_embedded
from measuring import tell_command, write_results
from torch.utils.data import DataLoader

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.training import cache_features, fine_tune, fine_tuning, run_state

PARTS = (
    *("loading", "transfer", "U", "head", "tracking loss", "backward", "clipping", "reading"),
    *("optimiser", "log", "other"),
)


class Clock:
    """Processor time by part; what is called inside of another part counts there alone."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.inside = False

    def start_step(self) -> None:
        self.begun, self.parts = time.process_time(), defaultdict(float)

    def end_step(self) -> None:
        whole = time.process_time() - self.begun
        self.steps.append({**self.parts, "other": whole - sum(self.parts.values())})

    def wrap(self, owner: Any, name: str, part: str) -> None:
        own = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return own(*args, **kwargs)
            self.inside, begun = True, time.process_time()
            try:
                return own(*args, **kwargs)
            finally:
                self.inside = False
                self.parts[part] += time.process_time() - begun

        setattr(owner, name, timed)


def measure(steps: int, batch: int, folder: Path, **fusion: Any) -> dict[str, float]:
    """Milliseconds of every part of a step."""
    import accelerate.utils
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    host, clock = build_embedded(64), Clock()
    if fusion:
        host["fusion"] = GenerativeFusion(64, size=24, **fusion)
    handle = attach(host["network"].eval(), host["fusion"], host["adapter"])
    cache = cache_features(
        handle,
        DataLoader(host["data"], batch),
        folder / "cache",
        forward=host["forward"],
        dtype="float16",
        targets=lambda data: {name: data[name] for name in host["labels"]},
        progress=False,
    )
    clock.wrap(accelerate.utils, "send_to_device", "transfer")
    clock.wrap(handle.fusion, "loss", "U")
    clock.wrap(handle.head, "forward", "head")
    for name in ("classification_loss", "iou_loss"):
        clock.wrap(feature_cache, name, "tracking loss")
    clock.wrap(Accelerator, "backward", "backward")
    clock.wrap(fine_tuning._Loop, "reduce_to_means", "reading")
    clock.wrap(Accelerator, "clip_grad_norm_", "clipping")
    clock.wrap(AcceleratedOptimizer, "step", "optimiser")
    clock.wrap(run_state.RunState, "log", "log")
    load = fine_tuning._Loop._group_batches

    def group(self: Any, *args: Any) -> Any:
        batches = load(self, *args)
        clock.start_step()
        while True:
            begun = time.process_time()
            found = next(batches, None)
            if found is None:
                return
            clock.parts["loading"] += time.process_time() - begun
            yield found
            clock.end_step()
            clock.start_step()

    fine_tuning._Loop._group_batches = group
    loader = DataLoader(cache, batch, shuffle=True)
    epochs = -(-steps * batch // len(cache))
    fine_tune(handle, loader, host["cached"], folder / "run", epochs=epochs, progress=True)
    fine_tuning._Loop._group_batches = load
    taken = clock.steps[1:]
    return {part: 1e3 * statistics.median(step.get(part, 0.0) for step in taken) for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.steps, options.batch, Path(folder))
    whole = sum(found.values())
    lines = ["| part | ms | fraction |", "|---|---|---|"]
    lines += [f"| {part} | {ms:.2f} | {ms / whole:.0%} |" for part, ms in found.items()]
    rest = whole - sum(found[part] for part in ("U", "head", "tracking loss", "backward"))
    lines += [
        "",
        f"All but U, head, tracking loss and their backward: {rest:.2f} ms of {whole:.2f}.",
        "",
        tell_command(f"batch {options.batch}"),
    ]
    print("\n".join(lines))
    if options.out:
        write_results(options.out, "cached_step", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
