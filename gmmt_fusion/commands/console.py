"""What subcommands share: printing to any terminal, notes on stderr, checks before long work."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..evaluation.text_files import printable


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line, whatever the terminal can show."""
    file = file or sys.stdout
    print(printable(text, getattr(file, "encoding", None) or "utf-8"), file=file)


def note(text: object) -> None:
    """Print a note on stderr."""
    print_line(f"note: {text}", sys.stderr)


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """Print warnings as notes, each when it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: note(message)
        yield


def check_output(folder: Path) -> None:
    """Refuse, before hours of work, a folder that cannot be written to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is not a folder; give another --out")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        problem = f"{there} cannot be written to ({error.strerror}); give another --out"
        raise OSError(problem) from None


def add_tracker(command: argparse.ArgumentParser, *, fusion: bool = True) -> None:
    """The arguments of commands that run a user's tracker; with `fusion`, one attached to it."""
    command.add_argument(
        "--tracker",
        required=True,
        metavar="SPEC",
        help="module:function or file.py:function, without arguments, that returns the tracker",
    )
    if fusion:
        command.add_argument(
            "--fusion",
            metavar="DIR",
            help="saved fusion to attach, a folder or hub id; omit where the function does it",
        )
    command.add_argument(
        "--device",
        metavar="NAME",
        help="where the tracker's networks go: cpu, cuda, cuda:1, … (default: where they are)",
    )


def add_pair(command: argparse.ArgumentParser) -> None:
    """The arguments of commands that take one's own pair of videos."""
    command.add_argument(
        "--visible", type=Path, metavar="PATH", help="your own video, or folder of images"
    )
    command.add_argument(
        "--auxiliary", type=Path, metavar="PATH", help="the same in thermal or depth"
    )
    command.add_argument(
        "--depth", action="store_true", help="its images are depths, 16 bits, millimetres"
    )
    command.add_argument(
        "--box",
        type=_parse_box,
        metavar="X,Y,W,H",
        help="the target's in the first frame, in pixels",
    )


def _parse_box(text: str) -> list[float]:
    try:
        x, y, w, h = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected four numbers x,y,w,h") from None
    return [x, y, w, h]
