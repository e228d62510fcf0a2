"""The command `python -m gmmt_fusion`: what its subcommands take, and what they print."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .evaluation.box_files import FORMATS
from .evaluation.layouts import LAYOUTS
from .evaluation.reports import format_table, write_curves
from .evaluation.scoring import score_folders
from .evaluation.text_files import printable, read_names
from .hosts.command import add_run
from .hosts.siamban_command import add_siamban_data

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code.

    Bad input ends in one sentence on stderr and code 2, Ctrl-C in code 130.
    """
    options = make_parser().parse_args(arguments)
    try:
        code: int | None = options.run(options)
    except (OSError, ValueError, ImportError, MemoryError) as error:
        _print(f"error: {error or 'out of memory'}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code or 0


def make_parser() -> argparse.ArgumentParser:
    """The parser; `run` of what it parses is the function that runs the subcommand."""
    parser = argparse.ArgumentParser(
        prog="python -m gmmt_fusion", description="GMMT fusion for multi-modal trackers."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_evaluate(commands)
    _add_track(commands)
    _add_figures(commands)
    add_run(commands)
    add_siamban_data(commands)
    return parser


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser(
        "evaluate", help="score result files by a benchmark's own protocol"
    )
    command.set_defaults(run=_evaluate)
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


def _add_track(commands: Commands) -> None:
    command = commands.add_parser(
        "track", help="run a tracker over a benchmark, or over your own pair of videos"
    )
    command.set_defaults(run=_track)
    command.add_argument(
        "--tracker",
        required=True,
        metavar="SPEC",
        help="module:function or file.py:function, without arguments, that returns the tracker",
    )
    command.add_argument("--fusion", metavar="DIR", help="saved fusion to attach to it")
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


def _add_figures(commands: Commands) -> None:
    command = commands.add_parser(
        "figures",
        help="draw what a fusion generates in a tracker: t-SNE, feature maps, sampling steps, "
        "boxes",
        description="Runs the tracker with its own fusion, generates the maps of the same frames, "
        "and draws both.",
    )
    command.set_defaults(run=_draw_figures)
    command.add_argument(
        "--tracker",
        required=True,
        metavar="SPEC",
        help="module:function or file.py:function that returns the tracker, as for `track`",
    )
    command.add_argument(
        "--fusion", metavar="DIR", help="folder or hub id; omit where the function attaches its own"
    )
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


def _parse_box(text: str) -> list[float]:
    try:
        x, y, w, h = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected four numbers x,y,w,h") from None
    return [x, y, w, h]


def _read_names(path: Path | None) -> list[str] | None:
    return read_names(path) if path else None


def _print(text: str, file: TextIO | None = None) -> None:
    """Print a line, whatever the terminal can show."""
    file = file or sys.stdout
    print(printable(text, getattr(file, "encoding", None) or "utf-8"), file=file)


def _note(text: object) -> None:
    _print(f"note: {text}", sys.stderr)


@contextlib.contextmanager
def _noting() -> Iterator[None]:
    """Print warnings as notes, each when it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _note(message)
        yield


def _check_output(folder: Path) -> None:
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


def _evaluate(options: argparse.Namespace) -> None:
    _check_output(options.out)
    names = _read_names(options.sequences)
    with _noting():
        scores = score_folders(
            options.results,
            options.truth,
            options.benchmark,
            sequences=names,
            attributes=options.attributes,
            format=options.format,
        )
    for tracker, score in scores.items():
        for note in score.notes:
            _note(f"{tracker}: {note}")
    count = len(next(iter(scores.values())).sequences)
    _print(f"{options.benchmark}, {count} sequences, in percent")
    _print(format_table({tracker: score.numbers for tracker, score in scores.items()}, "tracker"))
    for tracker, score in scores.items() if options.attributes else ():
        _print("\n" + format_table(score.attributes, tracker))
    written = write_curves(scores, options.out, options.benchmark)
    _print("\nwrote " + ", ".join(map(str, written)))


def _track(options: argparse.Namespace) -> None:
    own = (options.visible, options.auxiliary, options.box)
    folder = (options.benchmark, options.data)
    if all(own) == all(folder) or any((*folder, options.sequences) if all(own) else own):
        raise ValueError(
            "expected --benchmark and --data, or else --visible, --auxiliary and --box"
        )
    _check_output(options.out)
    from .evaluation.sequences import open_pair, open_sequences
    from .evaluation.trackers import load_tracker
    from .evaluation.tracking import track_folder

    given = ("tracker", "fusion", "benchmark", "data", "visible", "auxiliary", "depth", "box")
    settings = {name: str(value) for name in given if (value := getattr(options, name))}
    with _noting():
        if options.benchmark:
            names = _read_names(options.sequences)
            sequences = open_sequences(options.data, options.benchmark, names)
        else:
            sequences = [open_pair(*own, depth=options.depth)]
        tracker = load_tracker(options.tracker, options.fusion)
    times = track_folder(
        tracker,
        sequences,
        options.out,
        settings,
        confidence=bool(options.benchmark) and LAYOUTS[options.benchmark].long_term,
        videos=options.video or not options.benchmark,
        note=_note,
    )
    frames, seconds = (sum(column) for column in zip((0, 0.0), *times.values(), strict=True))
    rate = ", all were there"
    if times:
        rate = f": {frames} frames, {frames / max(seconds, 1e-9):.1f} frames/s in the tracker"
    _print(f"tracked {len(times)} of {len(sequences)} sequences{rate}; look into {options.out}")


def _draw_figures(options: argparse.Namespace) -> None:
    from .checks import check_whole_number
    from .evaluation import figures
    from .evaluation.sequences import open_sequences
    from .evaluation.trackers import load_tracker

    figures.check_packages()
    check_whole_number("--frames", options.frames, 5)
    check_whole_number("--seed", options.seed, 0, 2**32 - 1)
    _check_output(options.out)
    with _noting():
        sequences = open_sequences(options.data, options.benchmark, _read_names(options.sequences))
    results = figures.read_tracked(options.results, options.benchmark, sequences)
    for line in figures.draw_figures(
        load_tracker(options.tracker, options.fusion),
        sequences,
        options.benchmark,
        options.out,
        results=results,
        frames=options.frames,
        steps=options.steps,
        seed=options.seed,
    ):
        _print(line)
