"""Lost modalities and few data: what is lost when, and one tiny run of both tables."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import data
import data_training
import lost
from embedded.lost import GROUPS, KINDS, SHIFT, lose, plan_losses
from embedded.sequences import TEST_SEEDS, VALIDATION_SEEDS, generate_sequence

from gmmt_fusion.evaluation.missing import make_missing


@pytest.mark.parametrize(
    ("group", "fraction"), list(itertools.product(GROUPS, (0.0, 0.3, 0.6, 0.9, 1.0)))
)
def test_what_is_lost(group: str, fraction: float) -> None:
    for seed in range(8):
        plan = plan_losses(61, group, fraction, seed)
        assert plan.sum() == round(60 * fraction) and not plan.all(1).any() and not plan[0].any()
        np.testing.assert_array_equal(plan, plan_losses(61, group, fraction, seed))
        if group == "long-time" and fraction:
            modality = int(plan.any(0).argmax())
            edges = np.flatnonzero(np.diff(np.r_[0, plan[:, modality], 0]))
            assert len(edges) == 2 and not plan[:, 1 - modality].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*is blank")
def test_how_it_is_lost(kind: str) -> None:
    sequence = generate_sequence(TEST_SEEDS[0], frames=4)
    plan = np.zeros((4, 2), bool)
    plan[2, 1] = plan[3, 0] = True
    spoiled = lose(sequence, plan, kind)
    for frames, before, t in (
        (spoiled.infrared, sequence.infrared, 2),
        (spoiled.visible, sequence.visible, 3),
    ):
        expected = {
            "frozen": before[t - 1],
            "shifted": np.roll(before[t], (SHIFT, -SHIFT), (0, 1)),
        }.get(kind, make_missing(before[t - 1], t + 1))
        np.testing.assert_array_equal(frames[t], expected)
        for other in {0, 1, 2, 3} - {t}:
            np.testing.assert_array_equal(frames[other], before[other])


@pytest.mark.parametrize("given", [("never", 0.5), ("random", 1.5)])
def test_bad_losses(given: Any) -> None:
    with pytest.raises(ValueError, match=r"expected one of .* and 0 to 1"):
        plan_losses(10, *given, seed=0)


def test_a_tiny_run_of_both_tables(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    splits = {"validation": (VALIDATION_SEEDS, 2), "test": (TEST_SEEDS, 3)}
    for module, name, value in (
        (data, "SPLITS", splits),
        (lost, "SPLITS", splits),
        (data_training, "BATCH", 2),
        (data_training, "PAIRS", 2),
        (data_training, "CALIBRATED", 4),
    ):
        monkeypatch.setattr(module, name, value)
    folders = ["--steps", "2", "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    for module, arguments in (
        (data, ["--sequences", "2", "--rows", "DM", "head"]),
        (lost, ["--trained", "2", "--tracked", "1", "--groups", "random", "--rows", "DM"]),
    ):
        arguments += ["--seeds", "1", *folders]
        for more in ([], ["--report"]):
            monkeypatch.setattr(sys, "argv", ["x", *arguments, *more])
            module.main()
        text = capsys.readouterr().out
        assert "| base |" in text and "| DM | 1 |" in text
    tables = json.loads((tmp_path / "data.json").read_text())["tables"]
    best, end = (next(e for e in tables[0]["rows"] if e["budget"] == b) for b in ("best", "end"))
    assert best["row"] == end["row"] == "DM" and best["steps"][0] in (0, 1, 2)
    rows = json.loads((tmp_path / "lost.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["base", "DM"] and 0 <= rows[1]["SR"][0] <= 100
