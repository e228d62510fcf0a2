"""The paper's ablations on the embedded tracker: what the fusion brings, against controls.

    python benchmarks/ablation.py table2    # what is gained, against controls, by which method
    python benchmarks/ablation.py window    # the tracker's own parameter, for base, head and DM

and, on validation sequences, weight, steps, blocks, patches, weighting, prediction, training,
noise, precision, degradation or interpolation in their place.

Every row is a fine-tuning of equal budget on the same cached features, then the tracking loss and
success of held-out pairs of template and search image, and tracking through held-out sequences,
in two settings: "same", degraded as in training, and "shifted", heavier. A seed is of the training
and of the first boxes, which all seeds but 0 move by a pixel or so, the same for every row. A run
that is finished is not run again: an interrupted command goes on, and tables share their runs.
Writes --out/ablation_TABLE.{md,json,png}. How many seeds, steps and sequences a table has by
default is in RECIPES, in ablation_arms.py.
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from ablation_arms import BASE, RECIPES, TABLES, Arm
from ablation_scoring import SEVERITY, SPLITS, pairs_folder, score_pairs, track
from ablation_tables import against, comparison, markdown, plot, summary
from ablation_training import (
    CALIBRATION,
    TRAINING,
    build,
    cache_pairs,
    features_folder,
    key,
    train,
    training_key,
)
from measuring import machine, now, write_results
from tqdm import tqdm

from gmmt_fusion.files import write_atomically
from gmmt_fusion.training import CachedFeatures, Degradation
from gmmt_fusion.training.degradation import KINDS

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


from embedded.sequences import TRAIN_SEEDS
from embedded.siamese import load_tracker
from embedded.training import PairDataset, Scenes, Twins


def measure(arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one run, from its file where there is one."""
    torch.set_num_threads(1)
    settings = {
        "arm": {k: v for k, v in vars(arm).items() if k != "label"},
        "split": options.split,
        "held_out_pairs": list(options.held_out_pairs),
        "sequences": options.sequences,
        **{name: getattr(options, name) for name in TRAINING},
    }
    path = options.work / "results" / f"{key(settings, seed)}.json"
    if path.is_file():
        return json.loads(path.read_text())
    started = time.monotonic()
    if arm.control == "base":  # what is attached holds the host's fusion and head
        handle, network = (
            build(arm, seed, CachedFeatures(options.work / CALIBRATION)),
            load_tracker(),
        )
        parameters = 0
    else:
        handle = train(arm, seed, options)
        network = handle.network
        parameters = sum(
            p.numel() for p in (handle.head if arm.control == "head" else handle).parameters()
        )
    result = {
        "settings": settings,
        "seed": seed,
        "seconds_training": time.monotonic() - started,
        "parameters": parameters,
        "pairs": {
            setting: score_pairs(handle, setting, arm.degraded, options) for setting in SEVERITY
        },
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        result["sequences"] = {
            setting: track(
                network,
                options.split,
                setting,
                options.sequences,
                arm.degraded,
                arm.window,
                jitter=seed,
            )
            for setting in SEVERITY
        }
    result |= {"seconds": time.monotonic() - started, "threads": torch.get_num_threads(), **now()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(result)))
    return result


def measure_in_turn(
    arms: list[Arm], seed: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The arms of one training, in one process: two would train into one folder."""
    return [measure(arm, seed, options) for arm in arms]


def prepare(arms: list[Arm], options: argparse.Namespace) -> None:
    """Cache the features of the frozen tracker that all runs train on and are judged on."""
    for arm in arms:
        if arm.control != "base":
            write_features(
                features_folder(arm, options),
                TRAIN_SEEDS,
                options.training_sequences,
                options.pairs,
                (Scenes if arm.twins else Degradation)(**{"kinds": KINDS} | arm.degradation),
            )
    write_features(options.work / CALIBRATION, TRAIN_SEEDS, *options.calibration_pairs)
    kinds = {arm.degraded for arm in arms}
    for (number, (setting, severity)), degraded in itertools.product(
        enumerate(SEVERITY.items()), kinds
    ):
        start = 5000 * number + 2500  # the sequences before are tracked
        write_features(
            pairs_folder(setting, degraded, options),
            SPLITS[options.split][start : start + 2500],
            *options.held_out_pairs,
            severity=severity,
            degraded=degraded,
        )


def write_features(
    folder: Path,
    seeds: range,
    sequences: int,
    pairs: int,
    degradation: Degradation | None = None,
    **scenes: Any,
) -> None:
    with contextlib.suppress(OSError, ValueError):
        CachedFeatures(folder)
        return  # complete: rendering the pairs again takes a minute
    kind = Twins if isinstance(degradation, Scenes) else PairDataset
    dataset = kind(seeds, sequences, length=pairs, seed=17, **scenes)
    cache_pairs(dataset, folder, degradation)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=2, help="fine-tunings a row")
    parser.add_argument("--steps", type=int, default=400, help="of fine-tuning")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9600, help="cached training pairs")
    parser.add_argument("--training-sequences", type=int, default=600, help="that they are of")
    parser.add_argument("--sequences", type=int, default=4, help="tracked in each setting")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train and track in "
        "mixed precision: up to twice as fast on a processor that has it (avx512_bf16 or amx_bf16)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="validation for what is tuned"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="of the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    # of how many sequences, how many
    parser.set_defaults(calibration_pairs=(20, 128), held_out_pairs=(200, 1024))
    parser.set_defaults(**RECIPES.get(parser.parse_args().table, {}))
    options = parser.parse_args()
    for name in ("seeds", "steps", "batch", "pairs", "training_sequences", "sequences"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")

    arms = [BASE, *TABLES[options.table]]
    prepare(arms, options)
    rows: dict[str, list[dict[str, Any]]] = {arm.label: [] for arm in arms}
    trainings: dict[tuple[int, str], list[Arm]] = {}
    for seed in range(options.seeds):
        for arm in arms:
            trainings.setdefault((seed, training_key(arm, seed, options)), []).append(arm)
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = {
            pool.submit(measure_in_turn, shared, seed, options): shared
            for (seed, _), shared in trainings.items()
        }
        try:
            for job in tqdm(
                as_completed(jobs), total=len(jobs), desc=options.table, unit="training"
            ):
                for arm, result in zip(jobs[job], job.result(), strict=True):
                    rows[arm.label].append(result)
        except BaseException:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # an error is told at once, and not after all other runs
            raise
    for results in rows.values():
        results.sort(key=lambda result: result["seed"])  # seeds are paired
    entries = summary(rows)
    report = {
        "command": " ".join(["python", *sys.argv]),
        **machine(torch.device("cpu")),
        **now(),
        "seconds": sum(result["seconds"] for results in rows.values() for result in results),
        "rows": entries,
        "runs": rows,
    }
    name, compared = f"ablation_{options.table}", ""
    if "DM, UNet" in rows:
        report["DM, UNet minus"] = against("DM, UNet", rows)
        compared = "\n" + comparison("DM, UNet", report["DM, UNet minus"])
    for result in itertools.chain(*rows.values()):
        for held in result["pairs"].values():
            del held["success"]  # many lines; the runs' own files keep them
    text = (
        f"{markdown(entries)}{compared}\n\n"
        f"{options.seeds} seeds, {options.steps} steps of batch {options.batch}; in each setting "
        f"{options.held_out_pairs[1]} pairs and {options.sequences} tracked sequences of 60 frames "
        f"of {options.split} seeds; ± is the standard deviation over seeds, [ ] the 95 % "
        "bootstrap interval of the paired difference over seeds and sequences; pairs are counted "
        "by their sequences.\n\n"
        f"`{report['command']}`, {report['seconds'] / 60:.0f} minutes of one core, "
        f"{report['processor']}, "
        f"torch {report['torch']}, diffusers {report['diffusers']}, {report['date']}\n"
    )
    write_results(options.out, name, text, report, digits=4)
    plot(entries, options.out / f"{name}.png", f"{options.table}, {options.seeds} seeds")
    print(text)


if __name__ == "__main__":
    main()
