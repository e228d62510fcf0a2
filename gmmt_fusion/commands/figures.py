"""`figures`: draw what a fusion generates in a tracker."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation.layouts import LAYOUTS
from ..evaluation.text_files import read_names
from .console import add_tracker, check_output, noting, print_line


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Runs the tracker with its own fusion, generates the maps of the same frames, and draws "
        "both: t-SNE, feature maps, sampling steps, boxes."
    )
    add_tracker(command)
    command.add_argument("--benchmark", required=True, choices=LAYOUTS)
    command.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="the benchmark's sequences"
    )
    command.add_argument(
        "--sequences",
        type=Path,
        metavar="FILE",
        help="names of the sequences to take, one per line",
    )
    command.add_argument(
        "--frames",
        type=int,
        default=500,
        metavar="N",
        help="points of the t-SNE, spread over all frames (default: %(default)s)",
    )
    command.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="sampling steps to draw, of diffusion (default: %(default)s)",
    )
    command.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of result files, one per tracker: draws their boxes into frames",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of t-SNE and of noise that is not fixed"
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the figures"
    )


def run(options: argparse.Namespace) -> None:
    from ..checks import check_whole_number
    from ..evaluation import figures
    from ..evaluation.sequences import open_sequences
    from ..evaluation.trackers import load_tracker

    figures.check_packages()
    check_whole_number("--frames", options.frames, 5)
    check_whole_number("--seed", options.seed, 0, 2**32 - 1)
    check_output(options.out)
    with noting():
        names = read_names(options.sequences) if options.sequences else None
        sequences = open_sequences(options.data, options.benchmark, names)
    results = figures.read_tracked(options.results, options.benchmark, sequences)
    for line in figures.draw_figures(
        load_tracker(options.tracker, options.fusion, options.device),
        sequences,
        options.benchmark,
        options.out,
        results=results,
        frames=options.frames,
        steps=options.steps,
        seed=options.seed,
    ):
        print_line(line)
