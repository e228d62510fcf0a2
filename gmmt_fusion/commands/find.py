"""`find`: where an unknown tracker fuses, and the lines that attach a fusion there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import add_pair, add_tracker, noting, print_line


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Runs one frame of a tracker, tries out which of its modules fuses the modalities, and "
        "prints the lines to paste, once it has run them."
    )
    add_tracker(command, fusion=False)
    command.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of one sequence in a benchmark's layout, for its first frame (default: noise)",
    )
    add_pair(command)


def run(options: argparse.Namespace) -> int:
    """Exit code 1 where nothing was found."""
    own = (options.visible, options.auxiliary, options.box)
    if any(own) and (options.data or not all(own)):
        raise ValueError("expected --data, or else --visible, --auxiliary and --box, or none")
    from ..adapters.finding import find_fusion
    from ..evaluation.trackers import load_tracker

    with noting():
        tracker = load_tracker(options.tracker, device=options.device)
        frame, box = _first_frame(options, tracker) if options.data or any(own) else (None, None)
        found = find_fusion(tracker, frame, box)
    print_line(str(found))
    return 0 if found.proposals else 1


def _first_frame(options: argparse.Namespace, tracker: Any) -> tuple[Any, list[float]]:
    """The first frame (H, W, 6) as the tracker's family takes it, and its box."""
    from ..attaching.families import find_family
    from ..evaluation.sequences import open_pair, open_sequence

    if options.data:
        sequence = open_sequence(options.data)
    else:
        sequence = open_pair(options.visible, options.auxiliary, options.box, depth=options.depth)
    visible, auxiliary = next(iter(sequence))
    depth = getattr(sequence.auxiliary, "depth", False)
    return find_family(tracker).join(visible, auxiliary, depth), sequence.box.tolist()
