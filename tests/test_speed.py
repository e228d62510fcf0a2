"""The speed benchmark runs, goes on where it was, and writes what it measured."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import speed
from speed_tables import fractions, goals

ROWS = [
    "inference small cgan",
    "inference paper-unet cgan",
    "training small cgan",
    "training paper-unet cgan",
    "peak small cgan",
    "peak paper-unet cgan",
    "frame vit_b small float32",
    "frame vit_b paper-unet float32",
    "frame embedded small float32",
    "frame embedded small-unet float32",
    "attaching vit_b",
    "attaching embedded",
    "attaching empty",
    "memory attached",
    "memory kept",
    "importing",
    "limits",
]


def test_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = [
        "--quick",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--seconds",
        "0.01",
        "--presets",
        "small",
        "paper-unet",
        "--methods",
        "cgan",
        "--batches",
        "1",
        "2",
    ]
    measured, broken = [], "training small cgan"

    def in_this_process(options: Any, row: tuple[str, ...]) -> Any:
        measured.append(" ".join(row))
        if measured[-1] == broken:
            return {"skipped": "too large"}
        monkeypatch.setattr(sys, "argv", ["speed.py", *arguments, "--row", *row])
        speed.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def run() -> str:
        monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
        speed.main()
        return (tmp_path / "speed_quick.md").read_text()

    monkeypatch.setattr(speed, "measure", in_this_process)
    text = run()
    assert [
        row for row in measured if "bfloat16" not in row
    ] == ROWS and f"- {broken}: not measured, too large" in text
    broken = ""
    assert "not measured" not in run() and measured[-1] == "training small cgan"

    rows = json.loads((tmp_path / "speed_quick.json").read_text())["rows"]
    assert set(ROWS) <= rows.keys()
    named = {tuple(name.split()): row for name, row in rows.items()}
    row = rows["inference paper-unet cgan"]
    assert row["batches"].keys() == {"1", "2"}
    for batch in row["batches"].values():
        rate, roofline = fractions(named, row, batch, "optimised")
        assert (
            batch["gflop"] > 0
            and 0 < rate <= roofline
            and batch["relative_error"]["optimised"] < 1e-5
        )
    frames = rows["frame vit_b small float32"]["frames"]
    assert {"untouched", "no fusion", "plain", "optimised"} <= frames.keys()
    assert frames["untouched"]["fastest_ratio"] == 1 and frames["plain"]["fastest_ms"] > 0


def test_goals_are_judged_by_the_attached_host() -> None:
    milliseconds = {
        "untouched": 3.0,
        "no fusion": 2.0,
        "plain": 50.0,
        "optimised": 40.0,
    }
    frames = {
        path: {"fastest_ms": value, "median_ratio": value / 3}
        for path, value in milliseconds.items()
    }
    rows = {
        ("frame", "vit_b", "paper-uvit", "bfloat16"): {"frames": frames},
        ("attaching", "vit_b"): {
            "untouched": {"fastest_ms": 900.0},
            "attached": {"median_ratio": 1.005},
        },
        ("attaching", "empty"): {
            "untouched": {"fastest_ms": 0.01},
            "attached": {"fastest_ms": 0.06},
        },
    }
    text = "\n".join(goals(rows, quick=False, on_gpu=True))
    assert (
        "attaching, vit_b, by the 50 µs that it adds to an empty host: 1.000, goal at most 1.01"
        in text
    )
    assert (
        "paper-uvit on the ViT-B host in bfloat16, optimised, frames/s: 25.000, goal at least "
        "80.00, MISSED" in text
    )
    assert "attaching, vit_b: 1.005, goal at most 1.01" in text and text.count("MISSED") == 2
