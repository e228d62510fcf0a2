"""Scores for reading: tables in text, and files of numbers and curves."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..files import write_atomically
from .attributes import explain
from .metrics import Scores
from .plots import draw_curves


def format_table(rows: Mapping[str, Mapping[str, float]], head: str) -> str:
    """Lines of text, {name: {column: percent}} under a line of `head` and the columns' names."""
    columns = list(next(iter(rows.values()), {}))
    width = max(map(len, [head, *rows]))
    lines = [head.ljust(width) + "".join(f"  {column:>9}" for column in columns)]
    for name, numbers in rows.items():
        lines.append(name.ljust(width) + "".join(f"  {numbers[column]:9.1f}" for column in columns))
    return "\n".join(lines)


def write_curves(scores: Mapping[str, Scores], folder: Path, name: str) -> list[Path]:
    """Write {tracker: scores} into files, and return their paths.

    `name`.json has everything, `name`.csv the curves and, with matplotlib, `name`.png draws them.
    The curves of each attribute are in the first two as well, and in `name`_ATTRIBUTE.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.csv"]
    text = json.dumps(
        {tracker: score.to_dict() for tracker, score in scores.items()}, indent=1, allow_nan=False
    )
    write_atomically(written[0], lambda path: path.write_text(text + "\n"))
    write_atomically(written[1], lambda path: _write_rows(path, scores))
    with contextlib.suppress(ImportError):  # the numbers need no matplotlib
        written.append(draw_curves(scores, folder / f"{name}.png"))
        for key in next(iter(scores.values())).attributes:
            of_key = {
                tracker: replace(
                    score, numbers=score.attributes[key], curves=score.attribute_curves[key]
                )
                for tracker, score in scores.items()
            }
            written.append(draw_curves(of_key, folder / f"{name}_{key}.png", explain(key)))
    return written


def _write_rows(path: Path, scores: Mapping[str, Scores]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["tracker", "attribute", "curve", "threshold", "percent"])
        for tracker, score in scores.items():
            writer.writerows([tracker, *row] for row in _list_points(score))


def _list_points(score: Scores) -> Iterator[list[str]]:
    """Attribute ("" for all sequences), curve, threshold and percent of every point."""
    for attribute, curves in {"": score.curves, **score.attribute_curves}.items():
        for key, curve in curves.items():
            for threshold, value in zip(curve.thresholds, curve.values, strict=True):
                yield [attribute, key, f"{threshold:.6g}", f"{value:.6g}"]
