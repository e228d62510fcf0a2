"""Tracking with a lost sensor: base, controls and DM, by the groups of modality-missing benchmarks.

    python benchmarks/lost.py                       # after benchmarks/data.py; trains what it lacks
    python benchmarks/lost.py --report              # of what is finished

The fusions are those of benchmarks/data.py at --trained sequences, with the budget chosen on
validation; half of their degraded samples lack a modality. Every test sequence loses 60 % of its
frames: at random, in one stretch of one modality, or both ways, and, in a stretch, frozen or
shifted by a few pixels. --fusion adds a saved one, such as the quickstart's. Writes
--out/lost.{md,json} of all finished runs.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_scoring import success
from ablation_tables import interval, with_interval
from data import MORE_ROWS, ROWS, SPLITS, keep, measure
from data_training import ADAPTER, Run, build, prepare
from measuring import machine, now, write_results
from tqdm import tqdm

from gmmt_fusion import attach
from gmmt_fusion.files import file_digest
from gmmt_fusion.model import checkpoint
from gmmt_fusion.training import CachedFeatures

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.lost import lose, plan_losses
from embedded.sequences import generate_sequence
from embedded.siamese import load_tracker
from embedded.tracking import run_together

LOSSES = {
    "random": ("random", "missing"),
    "mixed": ("mixed", "missing"),
    "long-time": ("long-time", "missing"),
    "long-time, frozen": ("long-time", "frozen"),
    "long-time, shifted": ("long-time", "shifted"),
}
FRACTION = 0.6
PARTS = ("lost", "whole")  # frames of which a modality is lost, and the others


def overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (N,) of boxes (N, 4), x, y, w, h."""
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:])
    common = np.maximum(ends - np.maximum(boxes[:, :2], truth[:, :2]), 0).prod(1)
    return common / (boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - common)


def track(network: torch.nn.Module, name: str, count: int, jitter: int) -> dict[str, list[float]]:
    """Success of the frames of each sequence that lack a modality, and of the others, percent."""
    group, kind = LOSSES[name]
    rows: dict[str, list[float]] = {part: [] for part in PARTS}
    shifts = np.random.default_rng(jitter).normal(0, float(jitter > 0), (count, 2))
    seeds = SPLITS["test"][0][9500 : 9500 + count]
    for first in range(0, count, 8):
        plans, spoiled = [], []
        for seed in seeds[first : first + 8]:
            sequence = generate_sequence(seed)
            plans.append(plan_losses(len(sequence), group, FRACTION, seed))
            spoiled.append(lose(sequence, plans[-1], kind))
        found = run_together(network, spoiled, shifts[first : first + 8])
        for sequence, plan in zip(spoiled, plans, strict=True):
            scores = success(
                torch.from_numpy(overlap(found[sequence.name], sequence.boxes_visible))
            ).numpy()
            is_lost = plan.any(1)
            rows["lost"].append(float(scores[is_lost].mean()))
            rows["whole"].append(float(scores[1:][~is_lost[1:]].mean()))
    return rows


def measure_tracking(
    run: Run | Path | None, seed: int, path: Path, options: argparse.Namespace
) -> None:
    """Track with a run's fusion, a saved one or the base; every group has its place in the file."""
    network, started = load_tracker(), time.process_time()
    if isinstance(run, Path):
        network = attach(network, run, ADAPTER).network.eval()
    elif run is not None:
        if not run.result.is_file():
            measure(run)
        handle = build(run, CachedFeatures(prepare(run)[1]))
        best = run.folder / "training" / "best"
        checkpoint.load_state(handle.fusion, checkpoint.load(best)[1], best)
        handle.fusion.manual_seed(seed)
        network = handle.network.eval()
    result = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "groups": {}}
    for name in options.groups:
        if name not in result["groups"]:
            result["groups"][name] = track(network, name, options.tracked, seed)
            result["seconds"] += time.process_time() - started
            started = time.process_time()
            keep(path, result)


def gain(one: list[dict[str, Any]], other: list[dict[str, Any]], group: str, part: str) -> Any:
    stacks = [np.array([r["groups"][group][part] for r in results]) for results in (one, other)]
    return interval(stacks[0] - stacks[1])


def report(options: argparse.Namespace, runs: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Write what is finished of every row; returns the text."""
    lines, content = [], []
    first = next(label for label in (*runs, "") if label != "base")
    winner = runs.get(first, {})
    for group in options.groups:
        lines += [
            f"| {group} | seeds | SR, lost / whole frames | lost, over base | whole, over base "
            "| lost, first row over it |",
            "|---|---|---|---|---|---|",
        ]
        for label, by_seed in runs.items():
            seeds = [s for s, r in by_seed.items() if group in r["groups"] and s in runs["base"]]
            if not seeds or any(group not in runs["base"][s]["groups"] for s in seeds):
                continue
            own, base = ([of[s] for s in seeds] for of in (by_seed, runs["base"]))
            means = [float(np.mean([r["groups"][group][part] for r in own])) for part in PARTS]
            entry: dict[str, Any] = {"group": group, "row": label, "seeds": len(seeds), "SR": means}
            cells = ["", "", ""]
            if label != "base":
                entry["over_base"] = {part: gain(own, base, group, part) for part in PARTS}
                cells[:2] = [with_interval(entry["over_base"][part]) for part in PARTS]
            if label != first and all(
                group in winner.get(s, {"groups": {}})["groups"] for s in seeds
            ):
                entry["first_over"] = gain([winner[s] for s in seeds], own, group, "lost")
                cells[2] = with_interval(entry["first_over"])
            content.append(entry)
            scores = f"{means[0]:.1f} / {means[1]:.1f}"
            lines.append(f"| {label} | {len(seeds)} | {scores} | {' | '.join(cells)} |")
        lines.append("")
    seconds = sum(r["seconds"] for by_seed in runs.values() for r in by_seed.values())
    text = "\n".join(lines) + (
        f"\nSuccess in tracking, percent, of the {FRACTION:.0%} of the frames that lack a modality "
        f"and of the others; {options.tracked} test sequences of 60 frames a group; fine-tuned on "
        f"{options.trained} sequences; [ ] 95 % bootstrap interval of the paired difference over "
        f"seeds and sequences.\n\n`python {' '.join(sys.argv)}`, {seconds / 60:.0f} minutes of one "
        f"core for the tracking, {machine(torch.device('cpu'))['processor']}, {now()['date']}\n"
    )
    content = {**machine(torch.device("cpu")), **now(), "rows": content}
    write_results(options.out, "lost", text, content, digits=3)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", choices=LOSSES, default=list(LOSSES))
    known = ROWS | MORE_ROWS
    parser.add_argument("--rows", nargs="+", choices=known, default=list(ROWS))
    parser.add_argument("--fusion", type=Path, help="folder of a saved one, in a row of its own")
    parser.add_argument("--trained", type=int, default=40, help="sequences of fine-tuning")
    parser.add_argument("--steps", type=int, default=384, help="of fine-tuning")
    parser.add_argument("--tracked", type=int, default=32, help="test sequences a group")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*is blank in frame")
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    names = ["base", *options.rows, *(["saved"] if options.fusion else [])]
    jobs = [(seed, name) for seed in range(options.seeds) for name in names]
    for seed, name in tqdm(jobs, unit="run", disable=options.report):
        run: Run | Path | None = None
        stem, label = name, name
        if name == "saved":
            run = options.fusion
            stem = f"saved-{file_digest(options.fusion / 'model.safetensors')[:12]}"
            label = f"the saved fusion {options.fusion}"
        elif name != "base":
            run = Run(known[name], options.trained, seed, options.steps, options.work)
            stem, label = run.name.split("-")[0], run.row.label
        path = options.work / "lost" / f"{options.tracked}-{stem}-seed{seed}.json"
        if not options.report:
            measure_tracking(run, seed, path, options)
        if path.is_file():
            runs.setdefault(label, {})[seed] = json.loads(path.read_text())
    print(report(options, runs))


if __name__ == "__main__":
    main()
