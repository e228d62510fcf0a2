"""The tables and the figure of benchmarks/ablation.py, from the results of its runs."""

from pathlib import Path
from typing import Any

import numpy as np

from gmmt_fusion.files import write_atomically

SETTINGS = {"same": "Degraded as in training", "shifted": "Degraded more heavily than in training"}
UNDEGRADED = ", pictures not degraded"
"""Ends the label of a row that is tested on the same scenes with two good modalities."""
Runs = dict[str, list[dict[str, Any]]]
"""By row, its runs by seed: {"seed", "parameters", "pairs": {setting: {"loss", "success": [that of
a sequence's pairs, …]}}, "sequences": {setting: {name: scores}}}."""


def _draw(random: np.random.Generator, draws: int, number: int) -> np.ndarray:
    """How often each of `number` is drawn in each of `draws` samples with replacement."""
    drawn = random.integers(number, size=(draws, number)) + number * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * number).reshape(draws, number)


def interval(differences: np.ndarray, draws: int = 10_000) -> dict[str, float]:
    """The mean of paired differences (seeds, sequences), and its 95 % bootstrap interval."""
    random, (seeds, count) = np.random.default_rng(0), differences.shape
    rows, columns = (_draw(random, draws, number) for number in (seeds, count))
    means = (rows @ differences * columns).sum(1) / differences.size
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


def stack_scores(results: list[dict[str, Any]], setting: str, metric: str = "SR") -> np.ndarray:
    """(seeds, sequences), percent."""
    return np.array(
        [[s[metric] for s in result["sequences"][setting].values()] for result in results]
    )


def pairs(results: list[dict[str, Any]], setting: str) -> np.ndarray:
    """(seeds, sequences), the success of held-out pairs, percent."""
    return np.array([result["pairs"][setting]["success"] for result in results])


def losses(results: list[dict[str, Any]], setting: str) -> np.ndarray:
    """(seeds,), the tracking loss of held-out pairs."""
    return np.array([result["pairs"][setting]["loss"] for result in results])


def spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def differences(
    one: list[dict[str, Any]], other: list[dict[str, Any]], setting: str
) -> dict[str, Any]:
    """What one row has over another, seed by seed and sequence by sequence."""
    loss = losses(one, setting) - losses(other, setting)
    return {
        "loss": float(loss.mean()),
        "loss_deviation_over_seeds": spread(loss),
        "pairs_SR": interval(pairs(one, setting) - pairs(other, setting)),
        "SR": interval(stack_scores(one, setting) - stack_scores(other, setting)),
    }


def summary(rows: Runs) -> list[dict[str, Any]]:
    """One entry for each row and setting: means, deviations, paired differences to the base."""
    entries = []
    for label, results in rows.items():
        for setting in SETTINGS:
            loss, table = losses(results, setting), stack_scores(results, setting)
            entries.append(
                {
                    "row": label,
                    "setting": setting,
                    "parameters": results[0]["parameters"],
                    "loss": float(loss.mean()),
                    "loss_deviation_over_seeds": spread(loss),
                    "pairs_SR": float(pairs(results, setting).mean()),
                    **{
                        m: float(stack_scores(results, setting, m).mean())
                        for m in ("PR", "NPR", "SR")
                    },
                    "SR_deviation_over_seeds": spread(table.mean(1)),
                    "over_base": differences(results, rows["base"], setting),
                }
            )
    return entries


def with_spread(mean: float, deviation: float | None, form: str) -> str:
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form.strip('+')}}")


def with_interval(gain: dict[str, float]) -> str:
    return f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"


def markdown(entries: list[dict[str, Any]]) -> str:
    """A table for each setting."""
    lines = []
    for setting, title in SETTINGS.items():
        lines += [
            f"| {title} | trained | loss of pairs (less is better) | SR of pairs | SR of pairs "
            "over base "
            "| PR | NPR | SR | SR over base |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for e in entries:
            if e["setting"] == setting:
                over = [
                    ("" if e["row"] == "base" else with_interval(e["over_base"][of]))
                    for of in ("pairs_SR", "SR")
                ]
                cells = [
                    e["row"],
                    str(e["parameters"] or "none"),
                    with_spread(e["loss"], e["loss_deviation_over_seeds"], ".3f"),
                    f"{e['pairs_SR']:.1f}",
                    over[0],
                    f"{e['PR']:.1f}",
                    f"{e['NPR']:.1f}",
                    with_spread(e["SR"], e["SR_deviation_over_seeds"], ".1f"),
                    over[1],
                ]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def against(winner: str, rows: Runs) -> list[dict[str, Any]]:
    """The paired differences of one row to every other on the same images, controls included."""
    labels = (winner, winner + UNDEGRADED)
    return [
        {
            "row": label,
            "setting": setting,
            **differences(rows[labels[label.endswith(UNDEGRADED)]], results, setting),
        }
        for label, results in rows.items()
        if label not in labels
        for setting in SETTINGS
    ]


def comparison(winner: str, entries: list[dict[str, Any]]) -> str:
    heads = "".join(f" | {setting}: loss of pairs | SR of pairs | SR" for setting in SETTINGS)
    lines = [f"| {winner} minus …{heads} |", "|---|" + "---|---|---|" * len(SETTINGS)]
    for row in dict.fromkeys(entry["row"] for entry in entries):
        cells = [
            " | ".join(
                [
                    with_spread(e["loss"], e["loss_deviation_over_seeds"], "+.3f"),
                    with_interval(e["pairs_SR"]),
                    with_interval(e["SR"]),
                ]
            )
            for e in entries
            if e["row"] == row
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """What each row has over the base: loss of held-out pairs, their SR, and SR in tracking."""
    from matplotlib.figure import Figure

    rows = [row for row in dict.fromkeys(entry["row"] for entry in entries) if row != "base"]
    figure = Figure(figsize=(14, 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    labels = {
        "loss": "loss of pairs over base",
        "pairs_SR": "SR of pairs over base, points",
        "SR": "SR in tracking over base, points",
    }
    for (setting, name), colour, shift in zip(
        SETTINGS.items(), ("#0072B2", "#D55E00"), (-0.13, 0.13), strict=True
    ):
        own = {entry["row"]: entry["over_base"] for entry in entries if entry["setting"] == setting}
        heights = np.arange(len(rows)) + shift
        for axis, of in zip(axes, labels, strict=True):
            gains = [own[row][of] for row in rows]
            if of == "loss":
                errors: Any = [own[row]["loss_deviation_over_seeds"] or 0 for row in rows]
            else:
                errors = [
                    [abs(gain["mean"] - gain[end]) for gain in gains] for end in ("low", "high")
                ]
                gains = [gain["mean"] for gain in gains]
            axis.errorbar(gains, heights, xerr=errors, fmt="o", color=colour, capsize=3, label=name)
    for axis, label in zip(axes, labels.values(), strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set(yticks=range(len(rows)), yticklabels=rows)
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
