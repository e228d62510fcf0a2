"""How much data a generative fusion needs, what a degradation brings, and what a lost sensor costs.

    python benchmarks/data.py                                        # everything: hours
    python benchmarks/data.py --sequences 12 --rows DM RAW head      # a part of it
    python benchmarks/data.py --report                               # of what is finished

Fine-tunings of the embedded tracker on few sequences, of equal budget, and with the budget chosen
on validation sequences, the start included. Judged by the success of held-out pairs of template and
search image in three settings: degraded as in training, 1.5 times as severely, and with one
modality of the search image missing. With --depth the second modality is depth: the same scenes,
rendered in millimetres of 16 bits with a sensor's holes, and a tracker that is trained for them.
Every seed draws its own training sequences. A run that is finished is not run again. Writes
--out/data.{md,json,png} (data_depth.…) of all finished runs of these arguments.
"""

import argparse
import json
import operator
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_tables import interval, with_interval
from data_training import (
    BATCH,
    TESTED,
    VALIDATED,
    Row,
    Run,
    build,
    prepare,
    score,
    train,
    write_features,
)
from measuring import machine, now, write_results
from tqdm import tqdm

from gmmt_fusion import Attachment
from gmmt_fusion.evaluation.canvas import colours, make_figure, save
from gmmt_fusion.files import write_atomically
from gmmt_fusion.training import CachedFeatures, Degradation

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.sequences import TEST_SEEDS, VALIDATION_SEEDS

RAW = {"method": "raw"}
KEPT: dict[str, Any] = {"frozen_residual": True, "head_rate": 0.0}
"""The path that starts as the host's fusion and the head stay as they are; chosen on validation."""
ROWS = {
    "DM": Row("DM", **KEPT),
    "DM-100": Row("DM, λ = 100", weight=100.0, **KEPT),
    "RAW": Row("RAW", RAW, **KEPT),
    "RAW-100": Row("RAW, λ = 100", RAW, 100.0, **KEPT),
    "head": Row("head retrained alone", RAW, 0.0, "head"),
    "none": Row("UNet, no generative loss", RAW, 0.0, **KEPT),
    "convolutions": Row("plain convolutions, the UNet's size", RAW, 0.0, "convolution", **KEPT),
}
MORE_ROWS = {
    "DM-20": Row("DM, λ = 20", weight=20.0, **KEPT),
    "DM-decay": Row("DM, weight decay 0.1", weight_decay=0.1, **KEPT),
    "DM-dropout": Row("DM, dropout 0.1", dropout=0.1, **KEPT),
    "DM-T": Row("DM, trained from pure noise alone", {"last_timestep_probability": 1.0}, **KEPT),
    "DM-all": Row("DM, path and head trained"),
    "DM-10000": Row("DM, λ = 10⁴", weight=1e4, **KEPT),
    "RAW-10000": Row("RAW, λ = 10⁴", RAW, 1e4, **KEPT),
    "DM-missing": Row("DM, path and head trained, missing only", kinds=("missing",)),
    "RAW-all": Row("RAW, path and head trained", RAW),
}
"""What few data might need; run by name only. λ of 10⁴ leaves the boxes no say."""
SETTINGS = ("as in training", "1.5 times as severe", "one modality missing")
SPLITS = {"validation": (VALIDATION_SEEDS, VALIDATED), "test": (TEST_SEEDS, TESTED)}
BUDGETS = {"end": "after all steps", "best": "budget chosen on validation"}
SIZES = (12, 40, 120, 600)


def held_out(split: str, run: Run) -> list[Path]:
    """Cached pairs of each setting; their sequences are not those of the other tables' pairs."""
    seeds, pairs = SPLITS[split]
    missing = Degradation(1.0, ("missing",))
    kinds = ((1.0, None), (1.5, None), (1.0, missing))
    folders = []
    for number, (severity, degradation) in enumerate(kinds):
        first, name = (5000, 7000, 9000)[number], f"{split}-{number}"
        part, scenes = seeds[first : first + 1000], {"severity": severity, "frames": 2}
        folders.append(write_features(run, name, part, pairs, pairs, 0, degradation, **scenes))
    return folders


def base_file(work: Path, depth: bool) -> Path:
    """The results of the tracker as it is."""
    return work / "results" / ("depth-" * depth + "base.json")


def measure(run: Run) -> None:
    """One run, and its result."""
    started = time.process_time()
    validation, test = (held_out(split, run) for split in SPLITS)
    base = base_file(run.work, run.depth)
    if not base.is_file():
        head = replace(run, row=ROWS["head"], seed=0)  # its output is the host's
        handle = build(head, CachedFeatures(prepare(run)[1]))
        keep(base, {"test": [score(handle, one)[1] for one in test]})
    handle = train(run, validation)
    result: dict[str, Any] = {"seed": run.seed, "curve": read_curve(run.folder / "training")}
    result["best"] = result["end"] = [score(handle, one)[1] for one in test]
    if max(result["curve"], key=result["curve"].get) != str(run.steps):
        handle.fusion.load_state_dict(
            torch.load(run.folder / "end.pt", run.device, weights_only=True)
        )
        result["end"] = [score(handle, one)[1] for one in test]
    if run.row.label == "DM" and run.seed == 0:
        result["interpolation"] = interpolate(handle, run, validation)
    result |= {"seconds": time.process_time() - started, "device": run.device}
    keep(run.result, result | now())


def interpolate(handle: Attachment, run: Run, validation: list[Path]) -> dict[str, float]:
    """Validation of weights between the start and the end of training (Wortsman et al. 2022)."""
    start = build(run, CachedFeatures(prepare(run)[1])).fusion.state_dict()
    end = torch.load(run.folder / "end.pt", run.device, weights_only=True)
    found = {}
    for part in (0.25, 0.5, 0.75):
        handle.fusion.load_state_dict(
            {
                name: torch.lerp(start[name], tensor, part)
                if tensor.is_floating_point()
                else tensor
                for name, tensor in end.items()
            }
        )
        found[f"{part:g}"] = sum(score(handle, one)[0] for one in validation) / len(validation)
    return found


def read_curve(folder: Path) -> dict[str, float]:
    """Validation by step; the mean over the settings."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {str(line["step"]): line["validation"] / 3 for line in lines if "validation" in line}


def keep(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content)))


def gains(one: list[dict[str, Any]], other: list[dict[str, Any]], budget: str) -> dict[str, Any]:
    """Paired differences of two rows with the same seeds, percent, by setting.

    "degraded" is of the first two settings together.
    """

    def stack(results: list[dict[str, Any]], number: int) -> np.ndarray:
        return np.array([list(result[budget][number].values()) for result in results])

    parts = [stack(one, i) - stack(other, i) for i in range(len(SETTINGS))]
    together = {"degraded": np.concatenate(parts[:2], 1), "missing": parts[2]}
    return {name: interval(values) for name, values in together.items()}


def summarise(runs: dict[str, list[dict[str, Any]]], base: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each row and budget: what it has over the base, and the first row over it."""
    entries, (first, winners) = [], next(iter(runs.items()))
    for label, results in runs.items():
        hosts = [{budget: base["test"] for budget in BUDGETS}] * len(results)
        for budget in BUDGETS:
            means = [
                statistics.fmean(value for r in results for value in r[budget][i].values())
                for i in range(len(SETTINGS))
            ]
            curves = [list(result["curve"].values()) for result in results]
            pick = max if budget == "best" else operator.itemgetter(-1)
            entry: dict[str, Any] = {
                "row": label,
                "budget": budget,
                "seeds": len(results),
                "validation": statistics.fmean(map(pick, curves)),
                "SR": means,
                "over_base": gains(results, hosts, budget),
            }
            shared = {r["seed"]: r for r in winners}
            if label != first and all(r["seed"] in shared for r in results):
                pairs = [shared[r["seed"]] for r in results]
                entry["first_over"] = gains(pairs, results, budget)
            if budget == "best":
                steps = [max(r["curve"], key=lambda step: r["curve"][step]) for r in results]
                entry["steps"] = sorted(map(int, steps))
            entries.append(entry)
    return entries


def markdown(entries: list[dict[str, Any]], base: dict[str, Any], title: str) -> str:
    """A table for each budget."""
    own = [statistics.fmean(part.values()) for part in base["test"]]
    lines = []
    for budget, name in BUDGETS.items():
        lines += [
            f"| {title}, {name} | seeds | validation | SR | degraded, over base "
            "| missing, over base | degraded, first row over it | missing, first row over it |",
            "|---|---|---|---|---|---|---|---|",
            f"| base | | | {' / '.join(f'{value:.1f}' for value in own)} | | | | |",
        ]
        for e in entries:
            if e["budget"] == budget:
                parts = [e["over_base"], e.get("first_over")]
                cells = [
                    with_interval(part[kind]) if part else ""
                    for part in parts
                    for kind in ("degraded", "missing")
                ]
                means = " / ".join(f"{value:.1f}" for value in e["SR"])
                start = f"| {e['row']} | {e['seeds']} | {e['validation']:.1f} | {means} |"
                lines.append(f"{start} {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def plot(tables: list[dict[str, Any]], path: Path) -> None:
    """What each row has over the base after all steps, by the number of sequences."""
    kinds = {"degraded": "degraded images", "missing": "one modality missing"}
    figure = make_figure(11, 4.2)
    axes = figure.subplots(1, len(kinds), sharey=True)
    found = {e["row"] for table in tables for e in table["rows"]}
    rows = [row.label for row in ROWS.values() if row.label in found]
    for (kind, name), axis in zip(kinds.items(), axes, strict=True):
        for number, (row, colour) in enumerate(zip(rows, colours(len(rows)), strict=True)):
            placed = [
                (index + 0.1 * (number - len(rows) / 2), e["over_base"][kind])
                for index, table in enumerate(tables)
                for e in table["rows"]
                if (e["row"], e["budget"]) == (row, "end")
            ]
            means = [gain["mean"] for _, gain in placed]
            errors = [[abs(g["mean"] - g[end]) for _, g in placed] for end in ("low", "high")]
            places = [place for place, _ in placed]
            kind_of = {"fmt": "os^"[number // 6], "color": colour, "capsize": 3, "label": row}
            axis.errorbar(places, means, errors, **kind_of)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(
            title=name,
            xlabel="training sequences, with or without Degradation",
            xticks=range(len(tables)),
        )
        axis.set_xticklabels(
            [f"{t['sequences']}" + "\nwithout" * (t["degradation"] == "without") for t in tables]
        )
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("SR over the base, points, 95 % interval")
    axes[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def report(options: argparse.Namespace, done: dict[tuple[int, str], dict[str, list[Any]]]) -> str:
    """Write what is finished; returns the text."""
    path = base_file(options.work, options.depth)
    if not path.is_file():
        sys.exit("nothing is finished yet")
    base, text, tables, seconds, count = json.loads(path.read_text()), "", [], [], 0
    for (sequences, kind), runs in done.items():
        entries = summarise(runs, base)
        every = [result for results in runs.values() for result in results]
        count += len(every)
        seconds += [r["seconds"] for r in every if r.get("device", "cpu") == "cpu"]
        text += markdown(entries, base, f"{sequences} sequences, {kind} Degradation") + "\n"
        tables.append({"sequences": sequences, "degradation": kind, "rows": entries})
        if "DM" in runs:
            tables[-1]["validation of DM"] = [r["curve"] for r in runs["DM"]]
            tables[-1]["interpolation"] = runs["DM"][0].get("interpolation")
    others = f", and {elsewhere} runs on a GPU" if (elsewhere := count - len(seconds)) else ""
    text += (
        f"SR of pairs, percent: {' / '.join(SETTINGS)}; {SPLITS['test'][1]} pairs each "
        f"(validation: {SPLITS['validation'][1]}, the mean of the settings); "
        f"{options.steps} steps of {BATCH}; [ ] is the 95 % bootstrap interval of the paired "
        f"difference over seeds and sequences.\n\n`python {' '.join(sys.argv)}`, "
        f"{sum(seconds) / 60:.0f} minutes of one core{others}, "
        f"{machine(torch.device('cpu'))['processor']}, {now()['date']}\n"
    )
    content = {**machine(torch.device("cpu")), **now(), "tables": tables}
    name = "data_depth" if options.depth else "data"
    write_results(options.out, name, text, content, digits=3)
    plot(tables, options.out / f"{name}.png")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, nargs="+", default=SIZES)
    known = ROWS | MORE_ROWS
    parser.add_argument("--rows", nargs="+", choices=known, default=list(ROWS))
    parser.add_argument("--degradation", nargs="+", choices=("with", "without"), default=["with"])
    parser.add_argument("--depth", action="store_true", help="RGB and depth, not RGB and thermal")
    parser.add_argument("--steps", type=int, default=384, help="of 8 pairs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=Path("runs/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the cache has degraded")  # the base is scored apart
    jobs = [
        (sequences, kind, seed, row)
        for seed in range(options.seeds)
        for sequences in options.sequences
        for kind in options.degradation
        for row in options.rows
    ]
    done: dict[tuple[int, str], dict[str, list[Any]]] = {}
    for sequences, kind, seed, name in tqdm(jobs, unit="run", disable=options.report):
        row = known[name]
        if kind == "without":
            row = Row(**vars(row) | {"probability": 0.0})
        run = Run(row, sequences, seed, options.steps, options.work, options.depth, options.device)
        if not options.report and not run.result.is_file():
            measure(run)
        if run.result.is_file():
            result = json.loads(run.result.read_text())
            done.setdefault((sequences, kind), {}).setdefault(row.label, []).append(result)
    print(report(options, done))


if __name__ == "__main__":
    main()
