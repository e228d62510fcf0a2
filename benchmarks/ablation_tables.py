"""The tables and the picture of benchmarks/ablation.py, from the results of its runs."""

from pathlib import Path
from typing import Any

import numpy as np

from gmmt_fusion.files import write_atomically

SETTINGS = ("same", "shifted")
Runs = dict[str, list[dict[str, Any]]]
"""By row, its runs by seed: {"seed", "parameters", "loss": {setting: …}, "sequences": {setting: {name: scores}}}."""


def interval(differences: np.ndarray, draws: int = 10_000) -> dict[str, float]:
    """The mean of paired differences (seeds, sequences) and its 95 % bootstrap interval over seeds and sequences."""
    random, (seeds, count) = np.random.default_rng(0), differences.shape
    rows, columns = random.integers(seeds, size=(draws, seeds)), random.integers(count, size=(draws, count))
    means = np.stack([differences[row][:, column].mean() for row, column in zip(rows, columns, strict=True)])
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


def success(results: list[dict[str, Any]], setting: str, metric: str = "SR") -> np.ndarray:
    """(seeds, sequences), percent."""
    return np.array([[s[metric] for s in result["sequences"][setting].values()] for result in results])


def losses(results: list[dict[str, Any]], setting: str) -> np.ndarray:
    """(seeds,), the tracking loss of held-out pairs."""
    return np.array([result["loss"][setting] for result in results])


def spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def summary(rows: Runs) -> list[dict[str, Any]]:
    """One entry a row and setting: means, deviation over seeds, and the paired difference to the base."""
    entries = []
    for label, results in rows.items():
        for setting in SETTINGS:
            table = success(results, setting)
            entries.append({"row": label, "setting": setting, "parameters": results[0]["parameters"],
                            "loss": float(losses(results, setting).mean()),
                            "loss_deviation_over_seeds": spread(losses(results, setting)),
                            **{m: float(success(results, setting, m).mean()) for m in ("PR", "NPR", "SR")},
                            "SR_deviation_over_seeds": spread(table.mean(1)),
                            "SR_over_base": interval(table - success(rows["base"], setting))})
    return entries


def with_spread(mean: float, deviation: float | None, form: str) -> str:
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form.strip('+')}}")


def markdown(entries: list[dict[str, Any]]) -> str:
    lines = ["| | trained | " + " | ".join(f"{setting}: loss of pairs | PR | NPR | SR | SR over base"
                                           for setting in SETTINGS) + " |",
             "|---|---|" + "---|---|---|---|---|" * len(SETTINGS)]
    for row in dict.fromkeys(entry["row"] for entry in entries):
        own = [entry for entry in entries if entry["row"] == row]
        cells = []
        for e in own:
            gain = e["SR_over_base"]
            cells += [with_spread(e["loss"], e["loss_deviation_over_seeds"], ".3f"), f"{e['PR']:.1f}",
                      f"{e['NPR']:.1f}", with_spread(e["SR"], e["SR_deviation_over_seeds"], ".1f"),
                      "" if row == "base" else f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"]
        lines.append(f"| {row} | {own[0]['parameters'] or 'none'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(winner: str, rows: Runs) -> list[dict[str, Any]]:
    """The paired differences of one row to every other: a control is to be beaten, and not the base alone."""
    entries = []
    for label, results in rows.items():
        for setting in SETTINGS if label != winner else ():
            loss = losses(rows[winner], setting) - losses(results, setting)
            entries.append({"row": label, "setting": setting, "loss": float(loss.mean()),
                            "loss_deviation_over_seeds": spread(loss),
                            "SR": interval(success(rows[winner], setting) - success(results, setting))})
    return entries


def comparison(winner: str, entries: list[dict[str, Any]]) -> str:
    lines = [f"| {winner} minus … | " + " | ".join(f"{setting}: loss of pairs | SR" for setting in SETTINGS) + " |",
             "|---|" + "---|---|" * len(SETTINGS)]
    for row in dict.fromkeys(entry["row"] for entry in entries):
        cells = [f"{with_spread(e['loss'], e['loss_deviation_over_seeds'], '+.3f')} | "
                 f"{e['SR']['mean']:+.1f} [{e['SR']['low']:+.1f}, {e['SR']['high']:+.1f}]"
                 for e in entries if e["row"] == row]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """The loss of held-out pairs, with the base's as a line, and SR over base."""
    from matplotlib.figure import Figure

    rows = [row for row in dict.fromkeys(entry["row"] for entry in entries) if row != "base"]
    figure = Figure(figsize=(11, 1.2 + 0.42 * len(rows)), layout="constrained")
    loss, success_rate = figure.subplots(1, 2, sharey=True)
    for setting, colour, shift in zip(SETTINGS, ("#0072B2", "#D55E00"), (-0.13, 0.13), strict=True):
        own = {entry["row"]: entry for entry in entries if entry["setting"] == setting}
        heights, style = np.arange(len(rows)) + shift, {"fmt": "o", "color": colour, "capsize": 3, "label": setting}
        deviations = [own[row]["loss_deviation_over_seeds"] or 0 for row in rows]
        loss.errorbar([own[row]["loss"] for row in rows], heights, xerr=deviations, **style)
        loss.axvline(own["base"]["loss"], color=colour, linewidth=0.8)
        gains = [own[row]["SR_over_base"] for row in rows]
        errors = [[abs(gain["mean"] - gain[end]) for gain in gains] for end in ("low", "high")]
        success_rate.errorbar([gain["mean"] for gain in gains], heights, xerr=errors, **style)
    success_rate.axvline(0, color="black", linewidth=0.8)
    loss.set(yticks=range(len(rows)), yticklabels=rows, xlabel="tracking loss of held-out pairs; lines: the base")
    success_rate.set(xlabel="SR over base, points")
    loss.invert_yaxis()
    for axis in (loss, success_rate):
        axis.grid(axis="x", alpha=0.3)
    success_rate.legend(frameon=False)
    figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
