"""`gmmt-fusion siamban-data`: RGB-T data where siamban looks for its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..evaluation.layouts import LAYOUTS
from ..evaluation.text_files import read_names


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Writes into a checkout of siamban, where it keeps its data (git ignores it): with --train "
        "crops of both modalities and their annotations, with --test the list of frames to track, "
        "and the configs of the paper's stages."
    )
    command.add_argument("--checkout", required=True, type=Path, metavar="DIR", help="of siamban")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--train", type=Path, metavar="DIR", help="sequences to train on")
    what.add_argument("--test", type=Path, metavar="DIR", help="sequences to track")
    command.add_argument(
        "--benchmark",
        default="lasher",
        choices=[name for name, layout in LAYOUTS.items() if not layout.depth],
        help="the folder's layout (default: %(default)s)",
    )
    command.add_argument(
        "--sequences", type=Path, metavar="FILE", help="names of the sequences, one per line"
    )


def run(options: argparse.Namespace) -> None:
    """Write the data, and say where it is.

    Raises:
        OSError, ValueError: no such checkout, or the data is not laid out so.
    """
    from .siamban_data import check_checkout, write_configs, write_test_set, write_training_set

    checkout, layout = check_checkout(options.checkout), options.benchmark
    names = read_names(options.sequences) if options.sequences else None
    if options.train:
        count, pairs = write_training_set(checkout, options.train, layout, names)
        print(f"wrote {pairs} pairs of crops of {count} sequences: training_dataset/{layout}")
    else:
        name, count = write_test_set(checkout, options.test, layout, names)
        print(f"wrote a list of {count} sequences: testing_dataset/{name}, for --dataset {name}")
    for path in write_configs(checkout, layout):
        print(f"wrote {path}")
