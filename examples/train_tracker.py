"""Train the small Siamese RGB-T tracker of the examples:

    python examples/train_tracker.py --out runs/tracker --seed 0

Stage 1.1 trains backbone, neck and head for each modality alone; stage 1.2 freezes backbones and
necks and trains the fusion block and a head for the fused features. An interrupted run goes on
where it stopped, if started again.
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
from embedded.training import PairDataset, train_stage
from safetensors.torch import save_file

from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.files import write_atomically


def train(arguments: argparse.Namespace) -> Path:
    """All stages, and the weights in one file; returns its path."""
    stages = (*MODALITIES, "fusion") if arguments.stage == "all" else (arguments.stage,)
    networks = {}
    for number, stage in enumerate((*MODALITIES, "fusion")):
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
        checkpoint = arguments.out / f"{stage}.pt"
        steps = pairs // arguments.batch
        if (
            checkpoint.is_file()
            and (state := torch.load(checkpoint, weights_only=True))["step"] >= steps
        ):
            network.load_state_dict(state["network"])
            networks[stage] = network.eval()
            continue
        print(f"{stage}: rendering {arguments.sequences} sequences", flush=True)
        dataset = PairDataset(TRAIN_SEEDS, arguments.sequences, length=pairs, seed=data_seed)
        networks[stage] = train_stage(
            network, trained, dataset, checkpoint, batch=arguments.batch,
            report=lambda line, stage=stage: print(f"{stage} {line}", flush=True),
        )  # fmt: skip
    if "fusion" not in networks:
        return arguments.out
    state = {name: value for name, value in networks["fusion"].state_dict().items()}
    for name in (
        MODALITIES
    ):  # the heads of stage 1.1 come along: tracking with one modality is worth comparing
        state.update(
            {
                f"alone.{name}.{key}": v
                for key, v in networks[name].state_dict().items()
                if "head." in key
            }
        )
    halves = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in state.items()
    }
    path = arguments.out / "siamese_rgbt.safetensors"
    write_atomically(path, lambda to: save_file(halves, to))
    return path


def score(path: Path, seeds: range, severities=(1.0, 1.5)) -> None:
    """Print LasHeR's scores and frames/s, of the fused tracker and of each modality alone."""
    networks = {
        "fused": load_tracker(path=path),
        **{name: load_tracker((name,), path) for name in MODALITIES},
    }
    for severity in severities:
        results: dict[str, dict[str, np.ndarray]] = {name: {} for name in networks}
        spent = dict.fromkeys(networks, 0.0)
        truth = {}
        for seed in seeds:
            sequence = generate_sequence(seed, severity=severity)
            truth[sequence.name] = sequence.boxes_visible
            for name, network in networks.items():
                started = time.monotonic()
                results[name][sequence.name] = run(network, sequence)
                spent[name] += time.monotonic() - started
        frames = sum(map(len, truth.values()))
        for name, boxes in results.items():
            numbers = ", ".join(
                f"{key} {value:.1f}" for key, value in evaluate(boxes, truth).numbers.items()
            )
            print(
                f"severity {severity:g}, {name}: {numbers}; {frames / spent[name]:.0f} frames/s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=("all", *MODALITIES, "fusion"), default="all")
    parser.add_argument("--pairs", type=int, default=14_400, help="training pairs of each modality")
    parser.add_argument("--fusion-pairs", type=int, default=8_000)
    parser.add_argument(
        "--sequences", type=int, default=300, help="sequences rendered for each stage"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=int, default=40, help="sequences of the closing evaluation")
    parser.add_argument(
        "--test",
        action="store_true",
        help="close with the test seeds instead of the validation seeds",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = train(arguments)
    if path.is_file():
        score(path, (TEST_SEEDS if arguments.test else VALIDATION_SEEDS)[: arguments.score])


if __name__ == "__main__":
    main()
