"""Train the small Siamese RGB-T tracker of the examples: `python examples/train_tracker.py --out runs/tracker --seed 0`.

Stage 1.1 trains backbone, neck and head for each modality alone; stage 1.2 freezes backbones and necks and trains the
fusion block and a head for the fused features. An interrupted run goes on where it stopped, if started again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from embedded.sequences import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, generate_sequence
from embedded.siamese import MODALITIES, SiameseTracker, load_tracker
from embedded.tracking import run
from embedded.training import PairDataset, save_atomically, train_stage
from safetensors.torch import save_file


def train(arguments: argparse.Namespace) -> Path:
    """All stages, and the weights in one file; returns its path."""
    stages = MODALITIES + ("fusion",) if arguments.stage == "all" else (arguments.stage,)
    networks = {}
    for number, stage in enumerate(MODALITIES + ("fusion",)):
        if stage not in stages and not (stage in MODALITIES and "fusion" in stages):
            continue
        torch.manual_seed(arguments.seed + number)
        single = stage in MODALITIES
        network = SiameseTracker((stage,) if single else MODALITIES)
        trained = [network]
        if not single:
            for name in MODALITIES:
                network.backbones[name].load_state_dict(networks[name].backbones[name].state_dict())
                network.necks[name].load_state_dict(networks[name].necks[name].state_dict())
            trained = [network.fusion, network.head]
        pairs = arguments.pairs if single else arguments.fusion_pairs
        data_seed = 10 * arguments.seed + number
        print(f"{stage}: rendering {arguments.sequences} sequences", flush=True)
        dataset = PairDataset(TRAIN_SEEDS, arguments.sequences, length=pairs, seed=data_seed)
        networks[stage] = train_stage(
            network, trained, dataset, arguments.out / f"{stage}.pt", batch=arguments.batch,
            report=lambda line, stage=stage: print(f"{stage} {line}", flush=True),
        )  # fmt: skip
    if "fusion" not in networks:
        return arguments.out
    state = {name: value for name, value in networks["fusion"].state_dict().items()}
    for name in MODALITIES:  # the heads of stage 1.1 come along: tracking with one modality is worth comparing
        state.update({f"alone.{name}.{key}": v for key, v in networks[name].state_dict().items() if "head." in key})
    halves = {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in state.items()}
    path = arguments.out / "siamese_rgbt.safetensors"
    save_atomically(halves, path, save_file)
    return path


def overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (N,) of boxes (N, 4) and truth (N, 4), as x, y, w, h."""
    low = np.maximum(boxes[:, :2], truth[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    return inner / (boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - inner)


def evaluate(path: Path, seeds: range, severities=(1.0, 1.5)) -> None:
    """Success rate (area under the curve, that is the mean IoU) of the fused tracker and of each modality alone."""
    for severity in severities:
        scores: dict[str, list[float]] = {}
        frames, spent = 0, 0.0
        for seed in seeds:
            sequence = generate_sequence(seed, severity=severity)
            for modalities in (MODALITIES, *((name,) for name in MODALITIES)):
                started = time.monotonic()
                boxes = run(load_tracker(modalities, path), sequence)
                spent, frames = spent + time.monotonic() - started, frames + len(sequence)
                truth = sequence.boxes_infrared if modalities == ("infrared",) else sequence.boxes_visible
                scores.setdefault(" + ".join(modalities), []).append(float(overlap(boxes, truth).mean()))
        text = ", ".join(f"{name} {100 * np.mean(values):.1f}" for name, values in scores.items())
        print(f"severity {severity}: SR {text} ({len(seeds)} sequences, {frames / spent:.0f} frames/s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("all", *MODALITIES, "fusion"), default="all")
    parser.add_argument("--pairs", type=int, default=48_000, help="training pairs of each modality")
    parser.add_argument("--fusion-pairs", type=int, default=32_000)
    parser.add_argument("--sequences", type=int, default=480, help="sequences rendered for each stage")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test", action="store_true", help="close with the test seeds instead of the validation seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = train(arguments)
    if path.is_file():
        evaluate(path, (TEST_SEEDS if arguments.test else VALIDATION_SEEDS)[:40])


if __name__ == "__main__":
    main()
