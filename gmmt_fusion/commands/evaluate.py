"""`evaluate`: score result files by a benchmark's own protocol."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation.attributes import explain
from ..evaluation.box_files import FORMATS
from ..evaluation.layouts import LAYOUTS
from ..evaluation.reports import format_table, write_curves
from ..evaluation.scoring import score_folders
from ..evaluation.text_files import read_names
from .console import check_output, note, noting, print_line


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--benchmark", required=True, choices=LAYOUTS)
    command.add_argument(
        "--truth",
        required=True,
        type=Path,
        metavar="DIR",
        help="ground truth, as the benchmark ships it",
    )
    command.add_argument(
        "--results",
        required=True,
        type=Path,
        nargs="+",
        metavar="DIR",
        help="one folder of result files per tracker",
    )
    command.add_argument(
        "--sequences",
        type=Path,
        metavar="FILE",
        help="names of the sequences to score, one per line",
    )
    command.add_argument(
        "--attributes",
        type=Path,
        metavar="PATH",
        help="attribute files, as the benchmark ships them",
    )
    command.add_argument(
        "--format",
        default="auto",
        choices=FORMATS,
        help="of the result files; auto takes 4 numbers as xywh",
    )
    command.add_argument(
        "--out",
        default=Path("evaluation"),
        type=Path,
        metavar="DIR",
        help="folder of the curves (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    check_output(options.out)
    with noting():
        scores = score_folders(
            options.results,
            options.truth,
            options.benchmark,
            sequences=read_names(options.sequences) if options.sequences else None,
            attributes=options.attributes,
            format=options.format,
        )
    for tracker, score in scores.items():
        for text in score.notes:
            note(f"{tracker}: {text}")
    count = len(next(iter(scores.values())).sequences)
    print_line(f"{options.benchmark}, {count} sequences, in percent")
    print_line(format_table({name: score.numbers for name, score in scores.items()}, "tracker"))
    for tracker, score in scores.items() if options.attributes else ():
        print_line("\n" + format_table(score.attributes, tracker))
    if options.attributes:
        codes = next(iter(scores.values())).attributes
        print_line("\n" + "; ".join(map(explain, codes)))
    written = write_curves(scores, options.out, options.benchmark)
    print_line("\nwrote " + ", ".join(map(str, written)))
