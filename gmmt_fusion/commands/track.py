"""`track`: run a tracker over a benchmark, or over one's own pair of videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation.layouts import LAYOUTS
from ..evaluation.text_files import read_names
from .console import add_pair, add_tracker, check_output, note, noting, print_line


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_tracker(command)
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the result files"
    )
    command.add_argument("--benchmark", choices=LAYOUTS, help="layout of --data")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of a benchmark's sequences"
    )
    command.add_argument(
        "--sequences", type=Path, metavar="FILE", help="names of the sequences, one per line"
    )
    command.add_argument("--video", action="store_true", help="write annotated videos, too")
    add_pair(command)


def run(options: argparse.Namespace) -> None:
    own = (options.visible, options.auxiliary, options.box)
    folder = (options.benchmark, options.data)
    if all(own) == all(folder) or any((*folder, options.sequences) if all(own) else own):
        raise ValueError(
            "expected --benchmark and --data, or else --visible, --auxiliary and --box"
        )
    check_output(options.out)
    from ..evaluation.sequences import open_pair, open_sequences
    from ..evaluation.trackers import load_tracker
    from ..evaluation.tracking import track_folder

    given = ("tracker", "fusion", "benchmark", "data", "visible", "auxiliary", "depth", "box")
    settings = {name: str(value) for name in given if (value := getattr(options, name))}
    with noting():
        if options.benchmark:
            names = read_names(options.sequences) if options.sequences else None
            sequences = open_sequences(options.data, options.benchmark, names)
        else:
            sequences = [open_pair(*own, depth=options.depth)]
        tracker = load_tracker(options.tracker, options.fusion, options.device)
    times = track_folder(
        tracker,
        sequences,
        options.out,
        settings,
        confidence=bool(options.benchmark) and LAYOUTS[options.benchmark].long_term,
        videos=options.video or not options.benchmark,
        note=note,
    )
    frames, seconds = (sum(column) for column in zip((0, 0.0), *times.values(), strict=True))
    rate = ", all were there"
    if times:
        rate = f": {frames} frames, {frames / max(seconds, 1e-9):.1f} frames/s in the tracker"
    print_line(f"tracked {len(times)} of {len(sequences)} sequences{rate}; look into {options.out}")
