"""The command `python -m gmmt_fusion`; each subcommand is one function, registered in `_parser`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .evaluation import figures, plots
from .evaluation import layouts as benchmarks
from .evaluation.metrics import Scores, evaluate
from .files import write_atomically


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input ends in one sentence on stderr and exit code 2, Ctrl-C in
    130.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gmmt_fusion", description="GMMT fusion for multi-modal trackers."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "evaluate", help="score result files by a benchmark's own protocol"
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("--benchmark", required=True, choices=benchmarks.BENCHMARKS)
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
        choices=benchmarks.FORMATS,
        help="of the result files; auto takes 4 numbers as xywh",
    )
    command.add_argument(
        "--out",
        default=Path("evaluation"),
        type=Path,
        metavar="DIR",
        help="folder of the curves (default: %(default)s)",
    )

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
    command.add_argument("--benchmark", choices=benchmarks.BENCHMARKS, help="layout of --data")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of a benchmark's sequences"
    )
    command.add_argument(
        "--sequences", type=Path, metavar="FILE", help="names of the sequences, one per line"
    )
    command.add_argument("--video", action="store_true", help="write annotated videos, too")
    command.add_argument(
        "--visible", type=Path, metavar="PATH", help="your own video, or folder of pictures"
    )
    command.add_argument(
        "--auxiliary", type=Path, metavar="PATH", help="the same in thermal or depth"
    )
    command.add_argument(
        "--depth", action="store_true", help="its pictures are depths, 16 bits, millimetres"
    )
    command.add_argument(
        "--box", type=_box, metavar="X,Y,W,H", help="of the target in its first frame, in pixels"
    )
    figures.add_command(commands)
    return parser


def _box(text: str) -> list[float]:
    try:
        x, y, w, h = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected four numbers x,y,w,h") from None
    return [x, y, w, h]


def _track(options: argparse.Namespace) -> None:
    own = (options.visible, options.auxiliary, options.box)
    folder = (options.benchmark, options.data)
    if all(own) == all(folder) or any((*folder, options.sequences) if all(own) else own):
        raise ValueError(
            "expected --benchmark and --data, or else --visible, --auxiliary and --box"
        )
    from .evaluation import tracking

    given = ("tracker", "fusion", "benchmark", "data", "visible", "auxiliary", "depth", "box")
    settings = {name: str(value) for name in given if (value := getattr(options, name))}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        if options.benchmark:
            names = benchmarks.read_names(options.sequences) if options.sequences else None
            sequences = tracking.open_sequences(options.data, options.benchmark, names)
        else:
            sequences = [tracking.open_pair(*own, depth=options.depth)]
        tracker = tracking.load_tracker(options.tracker, options.fusion)
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    times = tracking.track_folder(
        tracker,
        sequences,
        options.out,
        settings,
        confidence=bool(options.benchmark) and benchmarks.BENCHMARKS[options.benchmark].long_term,
        videos=options.video or not options.benchmark,
    )
    frames, seconds = (sum(column) for column in zip((0, 0.0), *times.values(), strict=True))
    rate = (
        f": {frames} frames, {frames / seconds:.1f} frames/s in the tracker"
        if times
        else ", all were there"
    )
    print(f"tracked {len(times)} of {len(sequences)} sequences{rate}; look into {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    names = benchmarks.read_names(options.sequences) if options.sequences else None
    truth = benchmarks.read_truth(options.truth, options.benchmark, names)
    attributes = benchmarks.read_attributes(options.attributes) if options.attributes else None
    sizes = benchmarks.read_image_sizes(options.truth, list(truth))
    scores = {}
    for tracker, folder in benchmarks.tracker_names(options.results).items():
        boxes, confidences = benchmarks.read_results(
            folder, options.benchmark, list(truth), options.format
        )
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
    print(
        "\n".join(_table({tracker: score.numbers for tracker, score in scores.items()}, "tracker"))
    )
    for tracker, score in scores.items() if attributes else ():
        print("\n" + "\n".join(_table(score.attributes, tracker)))
    written = write_curves(scores, options.out, options.benchmark)
    print("\nwrote " + ", ".join(map(str, written)))


def _table(rows: Mapping[str, Mapping[str, float]], head: str) -> list[str]:
    columns = list(next(iter(rows.values()), {}))
    width = max(map(len, [head, *rows]))
    lines = [head.ljust(width) + "".join(f"  {column:>9}" for column in columns)]
    for name, numbers in rows.items():
        lines.append(name.ljust(width) + "".join(f"  {numbers[column]:9.1f}" for column in columns))
    return lines


def write_curves(scores: Mapping[str, Scores], folder: Path, name: str) -> list[Path]:
    """Write {tracker: scores} as `name`.json (everything), `name`.csv (the curves) and, with
    matplotlib, `name`.png.

    The curves of each attribute are in the first two as well, and in `name`_ATTRIBUTE.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.csv"]
    text = json.dumps(
        {tracker: score.to_dict() for tracker, score in scores.items()}, indent=1, allow_nan=False
    )
    write_atomically(written[0], lambda path: path.write_text(text + "\n"))

    def write_rows(path: Path) -> None:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["tracker", "attribute", "curve", "threshold", "percent"])
            for tracker, score in scores.items():
                for attribute, curves in {"": score.curves, **score.attribute_curves}.items():
                    for key, curve in curves.items():
                        rows.writerows(
                            [tracker, attribute, key, f"{threshold:.6g}", f"{value:.6g}"]
                            for threshold, value in zip(curve.thresholds, curve.values, strict=True)
                        )

    write_atomically(written[1], write_rows)
    with contextlib.suppress(ImportError):  # the numbers need no matplotlib
        written.append(plots.curves(scores, folder / f"{name}.png"))
        for key in next(iter(scores.values())).attributes:
            of_key = {
                tracker: replace(
                    score, numbers=score.attributes[key], curves=score.attribute_curves[key]
                )
                for tracker, score in scores.items()
            }
            written.append(plots.curves(of_key, folder / f"{name}_{key}.png"))
    return written


if __name__ == "__main__":
    sys.exit(main())
