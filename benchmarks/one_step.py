"""Which training of the diffusion gives the best one-step sample.

Compares loss weightings, prediction types and timesteps: trains the generative loss alone on the
embedded tracker's features and measures, on held-out sequences, how far one step from pure noise
lands from the host's fused map: |fused* − fused|² / |fused − mean|², 0 for the host itself.

    python benchmarks/one_step.py --out benchmarks/results
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch
from measuring import machine, now, write_results
from tqdm import tqdm

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.sequences import TRAIN_SEEDS, VALIDATION_SEEDS
from embedded.siamese import SEARCH_MAP, load_tracker
from embedded.training import PairDataset


def record(seeds: range, batches: int, seed: int) -> list:
    """(features, fused) of the host on pairs of sequences, in batches of 8."""
    network = load_tracker()
    handle = attach(
        network,
        GenerativeFusion(64, size=SEARCH_MAP),
        ModuleAdapter("fusion", "head", size=SEARCH_MAP),
    )
    pairs = torch.utils.data.DataLoader(
        PairDataset(seeds, length=8 * batches, seed=seed, sequences=40), 8
    )
    with handle.recorded() as maps, torch.no_grad():
        for batch in pairs:
            network(batch)
    return maps


@torch.no_grad()
def error(fusion: GenerativeFusion, maps: list) -> float:
    distance = sum((fusion(*features) - fused).square().sum() for features, fused in maps)
    return float(
        distance
        / sum((fused - fused.mean((0, 2, 3), keepdim=True)).square().sum() for _, fused in maps)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--steps", type=int, default=100, help="optimiser steps a setting (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs a setting (default: %(default)s)"
    )
    options = parser.parse_args()

    train, test = record(TRAIN_SEEDS, 40, 1), record(VALIDATION_SEEDS, 8, 2)
    losses = [
        ("sample", "noise"),
        ("sample", "min_snr"),
        ("sample", "x_0"),
        ("v_prediction", "x_0"),
    ]
    settings = list(itertools.product(losses, (0.0, 0.5, 1.0)))
    rows, started = [], time.monotonic()
    for (prediction, weighting), last in tqdm(settings, unit="setting"):
        errors = []
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            fusion = GenerativeFusion(
                64,
                size=SEARCH_MAP,
                prediction_type=prediction,
                weighting=weighting,
                last_timestep_probability=last,
            ).manual_seed(seed)
            start = fusion.calibrate(train)
            optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 1e-3, total_steps=options.steps
            )
            for features, fused in itertools.islice(itertools.cycle(train), options.steps):
                optimizer.zero_grad()
                fusion.loss(features, fused).loss.backward()
                torch.nn.utils.clip_grad_norm_(fusion.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            errors.append(error(fusion, test))
        rows.append(
            {
                "prediction_type": prediction,
                "weighting": weighting,
                "last_timestep_probability": last,
                "errors": errors,
            }
        )

    rows.sort(key=lambda row: sum(row["errors"]))
    lines = [
        "| prediction | weighting | fraction of t = T | one-step error, a number a seed |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['prediction_type']} | {r['weighting']} | {r['last_timestep_probability']} | "
        f"{' '.join(f'{e:.4f}' for e in r['errors'])} |"
        for r in rows
    ]
    lines += [f"\nBefore training, calibrated: {start:.4f} on the calibration data."]
    report = {
        "command": " ".join(sys.argv),
        **machine(torch.device("cpu")),
        **now(),
        "seconds": time.monotonic() - started,
        "steps": options.steps,
        "calibrated": start,
        "rows": rows,
    }
    write_results(options.out, "one_step", "\n".join(lines) + "\n", report)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
