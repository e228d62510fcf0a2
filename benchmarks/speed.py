"""What a fusion costs on this machine: alone, in a training step, and in a tracker's frame.

    python benchmarks/speed.py --out benchmarks/results

measures row after row, each in a process of its own, and writes speed.json after each and speed.md
from it; started again with the same settings, it goes on where it was. What is compared is
interleaved. A time is the fastest, a ratio is that of the fastest and, in brackets, the median over
the rounds. Memory on a CPU is read from Linux's /proc. HOSTS=DIR adds frames of the real trackers,
from checkouts in DIR/TBSI, DIR/ViPT, DIR/BAT, DIR/SDSTrack and DIR/siamban.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from bench import Bench, Row
from measuring import (
    REAL_HOSTS,
    has_bfloat16,
    machine,
    now,
)
from speed_measures import MEASURES

from gmmt_fusion.files import write_atomically
from gmmt_fusion.model.config import PRESETS
from gmmt_fusion.model.methods import METHODS


def plan(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows: what is measured and its arguments."""
    device = torch.device(options.device)
    dtypes = ["float32", *(["bfloat16"] if has_bfloat16(device) else [])]
    dtypes += ["TF32", "float16"] * (device.type == "cuda")
    rows: list[tuple[str, ...]] = []
    for kind in options.measure:
        if kind in ("inference", "training", "peak"):
            rows += [(kind, *row) for row in itertools.product(options.presets, options.methods)]
        elif kind == "frame":
            rows += [
                (kind, "vit_b", preset, dtype) for preset in options.presets for dtype in dtypes
            ]
            rows += [(kind, "embedded", preset, "float32") for preset in ("small", "small-unet")]
            if "HOSTS" in os.environ and not options.quick:
                rows += [
                    (kind, name, preset, "float32")
                    for name in REAL_HOSTS
                    for preset in ("small", *(["small-unet"] if "siamban" in name else []))
                ]
        elif kind == "compiled":
            rows += [
                (kind, preset, "bfloat16") for preset in options.presets if device.type == "cuda"
            ]
        else:
            names = {"attaching": ("vit_b", "embedded", "empty"), "memory": ("attached", "kept")}
            rows += [(kind, name) for name in names[kind]] if kind in names else [(kind,)]
    return rows


def measure(options: argparse.Namespace, row: tuple[str, ...]) -> Row:
    """One row in a process of its own: its peak memory is its own, and nothing warms it up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--row", *row]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took more than {options.limit} s (--limit)"}
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"skipped": f"ended with {done.returncode}; see the messages above"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=10, help="for each comparison (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds for a row (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs"
    )
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bench = Bench(options)
    if options.row:
        kind, *arguments = options.row
        with torch.set_grad_enabled(kind in ("training", "memory")):
            print(json.dumps({**MEASURES[kind](bench, *arguments), **now()}))
        return

    from speed_tables import tables
    from tqdm import tqdm

    options.out.mkdir(parents=True, exist_ok=True)
    kinds = [bench.device.type] * (bench.device.type != "cpu") + ["quick"] * bench.quick
    path = options.out / f"{'_'.join(['speed', *kinds])}.json"
    settings = {
        "format": 3,
        "machine": machine(bench.device),
        "quick": options.quick,
        "seconds": options.seconds,
        "batches": options.batches,
    }
    report = json.loads(path.read_text()) if path.is_file() else {}
    if {
        key: report.get(key) for key in settings
    } != settings:  # of another machine, or measured otherwise
        report = {**settings, "rows": {}}
    rows = [
        row
        for row in plan(options)
        if "skipped" in report["rows"].get(" ".join(row), {"skipped": ""})
    ]
    for row in tqdm(rows, unit="row"):
        report["rows"][" ".join(row)] = measure(options, row)
        write_atomically(path, lambda file: file.write_text(json.dumps(report, indent=1) + "\n"))
    text = tables(report)
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
