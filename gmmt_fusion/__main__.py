"""The command `python -m gmmt_fusion`; each subcommand is one function, registered in `_parser`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import benchmarks, plots
from .metrics import Scores, evaluate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input ends in one sentence on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gmmt_fusion", description="GMMT fusion for multi-modal trackers.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("evaluate", help="score result files by a benchmark's own protocol")
    command.set_defaults(run=_evaluate)
    command.add_argument("--benchmark", required=True, choices=benchmarks.BENCHMARKS)
    command.add_argument(
        "--truth", required=True, type=Path, metavar="DIR", help="ground truth, as the benchmark ships it"
    )
    command.add_argument(
        "--results", required=True, type=Path, nargs="+", metavar="DIR", help="one folder of result files per tracker"
    )
    command.add_argument("--sequences", type=Path, metavar="FILE", help="names of the sequences to score, one per line")
    command.add_argument("--attributes", type=Path, metavar="PATH", help="attribute files, as the benchmark ships them")
    command.add_argument(
        "--format", default="auto", choices=benchmarks.FORMATS, help="of the result files; auto takes 4 numbers as xywh"
    )
    command.add_argument(
        "--output",
        default=Path("evaluation"),
        type=Path,
        metavar="DIR",
        help="folder of the curves (default: %(default)s)",
    )
    return parser


def _evaluate(options: argparse.Namespace) -> None:
    names = benchmarks.read_names(options.sequences) if options.sequences else None
    truth = benchmarks.read_truth(options.truth, options.benchmark, names)
    attributes = benchmarks.read_attributes(options.attributes) if options.attributes else None
    sizes = benchmarks.read_image_sizes(options.truth, list(truth))
    scores = {}
    for tracker, folder in _tracker_names(options.results).items():
        boxes, confidences = benchmarks.read_results(folder, options.benchmark, list(truth), options.format)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the notes say the same, below
            try:
                scores[tracker] = evaluate(
                    boxes,
                    truth,
                    options.benchmark,
                    attributes=attributes,
                    confidences=confidences,
                    image_sizes=sizes,
                )
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from None
        for note in scores[tracker].notes:
            print(f"note: {tracker}: {note}", file=sys.stderr)
    print(f"{options.benchmark}, {len(truth)} sequences, in percent")
    print("\n".join(_table({tracker: score.numbers for tracker, score in scores.items()}, "tracker")))
    for tracker, score in scores.items() if attributes else ():
        print("\n" + "\n".join(_table(score.attributes, tracker)))
    written = write_curves(scores, options.output, options.benchmark)
    print("\nwrote " + ", ".join(map(str, written)))


def _tracker_names(folders: Sequence[Path]) -> dict[str, Path]:
    """{name: folder}: the folders' own names, or their whole paths where two names are alike."""
    names = [folder.resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)
    }


def _table(rows: Mapping[str, Mapping[str, float]], head: str) -> list[str]:
    columns = list(next(iter(rows.values()), {}))
    width = max(map(len, [head, *rows]))
    lines = [head.ljust(width) + "".join(f"  {column:>9}" for column in columns)]
    for name, numbers in rows.items():
        lines.append(name.ljust(width) + "".join(f"  {numbers[column]:9.1f}" for column in columns))
    return lines


def write_curves(scores: Mapping[str, Scores], folder: Path, name: str) -> list[Path]:
    """Write {tracker: scores} as `name`.json (everything), `name`.csv (the curves) and, with matplotlib, `name`.png."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.csv"]
    written[0].write_text(
        json.dumps({tracker: score.to_dict() for tracker, score in scores.items()}, indent=1, allow_nan=False) + "\n"
    )
    with written[1].open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tracker", "curve", "threshold", "percent"])
        for tracker, score in scores.items():
            for key, curve in score.curves.items():
                rows.writerows(
                    [tracker, key, f"{threshold:.6g}", f"{value:.6g}"]
                    for threshold, value in zip(curve.thresholds, curve.values, strict=True)
                )
    with contextlib.suppress(ImportError):  # the numbers need no matplotlib
        written.append(plots.curves(scores, folder / f"{name}.png"))
    return written


if __name__ == "__main__":
    sys.exit(main())
