"""The ablations: statistics, disjoint seeds, and one tiny run from end to end."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import ablation
import ablation_arms
import ablation_scoring
import ablation_tables
import ablation_training
from embedded.sequences import TRAIN_SEEDS, generate_sequence
from embedded.training import Scenes
from torch.utils.data import DataLoader

from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.training import CachedFeatures


def result(seed: int, values: list[float], parameters: int = 10) -> dict[str, Any]:
    sequences = {f"s{i}": {"PR": v, "NPR": v, "SR": v} for i, v in enumerate(values)}
    pairs = {"loss": 0.5 - 0.1 * seed, "success": [2 * v for v in values]}
    return {
        "seed": seed,
        "parameters": parameters,
        "sequences": dict.fromkeys(ablation_tables.SETTINGS, sequences),
        "pairs": dict.fromkeys(ablation_tables.SETTINGS, pairs),
    }


@pytest.mark.parametrize(
    ("differences", "low", "high"),
    [
        ([[2.0] * 8], 2.0, 2.0),  # nothing to doubt
        ([[-1.0, 1.0] * 50], -0.25, 0.25),
        ([[0.0] * 9 + [10.0]], 0.0, 3.5),  # one sequence does not make a gain
        ([[-1.0] * 9, [3.0] * 9], -1.0, 3.0),  # nor one seed
    ],
)
def test_bootstrap_interval(differences: list[list[float]], low: float, high: float) -> None:
    found = ablation_tables.interval(np.array(differences))
    assert found["mean"] == pytest.approx(np.mean(differences))
    assert low - 1e-9 <= found["low"] <= found["mean"] <= found["high"] <= high + 1e-9
    assert found == ablation_tables.interval(np.array(differences))


def test_differences_are_paired() -> None:
    base = np.array([10.0, 50.0, 90.0])
    rows = {
        "base": [result(0, base.tolist())],
        "better": [result(s, (base + 3 + s).tolist()) for s in range(3)],
    }
    entries = {(e["row"], e["setting"]): e for e in ablation_tables.summary(rows)}
    better = entries["better", "shifted"]
    assert better["over_base"]["SR"] == pytest.approx(
        {"mean": 4.0, "low": 3.0, "high": 5.0}, abs=0.01
    )
    assert better["over_base"]["pairs_SR"] == pytest.approx(
        {"mean": 8.0, "low": 6.0, "high": 10.0}, abs=0.01
    )
    assert better["SR_deviation_over_seeds"] == pytest.approx(1.0) and better[
        "SR"
    ] == pytest.approx(54.0)
    assert better["loss"] == pytest.approx(0.4) and better[
        "loss_deviation_over_seeds"
    ] == pytest.approx(0.1)
    against = ablation_tables.against("better", rows)
    assert [(e["row"], e["SR"]["mean"], e["loss"]) for e in against] == [
        ("base", *map(pytest.approx, (4.0, -0.1)))
    ] * 2
    gains = "+8.0 [+6.0, +10.0] | +4.0 [+3.0, +5.0] |"
    assert f"| base | -0.100 ± 0.100 | {gains}" in ablation_tables.comparison("better", against)
    text = ablation_tables.markdown(list(entries.values()))
    assert (
        text.count(
            "| better | 10 | 0.400 ± 0.100 | 108.0 | +8.0 [+6.0, +10.0] | 54.0 | 54.0 | 54.0 ± 1.0 "
            "| +4.0 ["
            "+3.0, +5.0] |"
        )
        == 2
    )


def test_what_is_compared_saw_the_same_images() -> None:
    rows = {
        name + suffix: [result(0, [value + 100 * bool(suffix)])]
        for suffix in ("", ablation_tables.UNDEGRADED)
        for name, value in (("base", 10.0), ("DM", 17.0))
    }
    entries = ablation_tables.against("DM", rows)
    assert [(e["row"], e["SR"]["mean"]) for e in entries] == [("base", 7.0)] * 2 + [
        ("base" + ablation_tables.UNDEGRADED, 7.0)
    ] * 2


def test_success_of_pairs_is_that_of_their_boxes() -> None:
    """Against gmmt_fusion's success rate of the same boxes, (x, y, w, h)."""
    random = np.random.default_rng(0)
    point = random.uniform(50, 60, (200, 2))
    found, truth = (random.uniform(2, 30, (200, 4)) for _ in range(2))
    overlap = ablation_scoring.overlaps(*(torch.from_numpy(x) for x in (found, truth)))
    boxes = [np.concatenate([point - x[:, :2], x[:, :2] + x[:, 2:]], 1) for x in (found, truth)]
    expected = evaluate({"s": boxes[0]}, {"s": boxes[1]}, "rgbt234").MSR
    assert ablation_scoring.success(overlap).mean().item() == pytest.approx(expected)


def test_no_sequence_is_in_two_sets() -> None:
    sets = [set(TRAIN_SEEDS)]
    for seeds in ablation_scoring.SPLITS.values():
        sets += [set(seeds[:5000]), set(seeds[5000:])]
    assert sum(map(len, sets)) == len(set.union(*sets))


ARMS = {
    "head": ablation_arms.HEAD,
    "convolution": ablation_arms.Arm("", ablation_arms.RAW, control="convolution"),
    "diffusion": ablation_arms.Arm(
        "DM",
        ablation_arms.BEST | {"network_config": {"widths": [32], "depth": 1}},
        sampling={"steps": 2},
        training={"recipe": "paper_optimizer", "ema_decay": 0.5, "batch_statistics": True},
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """The options of tiny runs whose features are cached."""
    options = argparse.Namespace(
        work=tmp_path_factory.mktemp("ablation"),
        pairs=32,
        training_sequences=2,
        steps=2,
        batch=4,
        sequences=1,
        split="validation",
        bfloat16=False,
        calibration_pairs=(2, 16),
        held_out_pairs=(2, 16),
    )
    ablation.prepare([ablation_arms.BASE, *ARMS.values()], options)
    return options


@pytest.mark.parametrize("name", ARMS)
def test_a_run_from_end_to_end(
    name: str, prepared: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, options = ARMS[name], prepared
    short = [generate_sequence(ablation_scoring.SPLITS["validation"][0], frames=6)]
    monkeypatch.setattr(ablation_scoring, "sequences", lambda *_: short)
    calibration = CachedFeatures(options.work / ablation_training.CALIBRATION)
    handle = ablation_training.build(arm, 0, calibration)
    before = {name: p.detach().clone() for name, p in handle.fusion.named_parameters()}
    found = ablation.measure(arm, 0, options)
    assert all(0 <= v["SR"] <= 100 for table in found["sequences"].values() for v in table.values())
    fusion = ablation_training.train(arm, 0, options).fusion
    trained = dict(fusion.named_parameters())
    moved = any(
        not x.equal(fusion.get_buffer(name))
        for name, x in handle.fusion.named_buffers()
        if "running" in name
    )
    assert moved == ("batch_statistics" in arm.training)
    changed = {
        name.split(".")[0] for name, value in before.items() if not value.equal(trained[name])
    }
    assert changed == ({"head"} if arm.control == "head" else {"head", "network", "residual"})
    monkeypatch.setattr(ablation, "train", None)  # a run that is finished is not run again
    assert ablation.measure(arm, 0, options) == found


def test_starts(prepared: argparse.Namespace) -> None:
    """With other numbers, but the same residual path, a fusion starts as near to the host's map."""
    features = CachedFeatures(prepared.work / ablation_training.CALIBRATION)
    batch = next(iter(DataLoader(features, 16)))
    maps, fused = [batch[f"feature_{i}"].float() for i in (0, 1)], batch["fused"].float()

    def error(**options: Any) -> float:
        fusion = ablation_training.build(
            ablation_arms.Arm("", ablation_arms.BEST, **options), 0, features
        ).fusion
        return float((fusion(*maps) - fused).square().mean() / fused.var())

    for scale in (None, 0.1, 1.0, 10.0):
        assert error(unnormalised=scale) < 1e-3
    assert error(calibrated=False) > 0.1


def test_twins_are_one_scene(tmp_path: Path) -> None:
    """The target of `Twins` is the host's map of the clean scene, the features are the degraded."""
    kinds = {
        "degraded": (None, True),
        "clean": (None, False),
        "twins": (Scenes(0.0), None),
    }
    for name, (degradation, degraded) in kinds.items():
        options = {} if degraded is None else {"degraded": degraded}
        ablation.write_features(tmp_path / name, TRAIN_SEEDS, 2, 8, degradation, **options)
    bad, good, twins = (CachedFeatures(tmp_path / name)[5] for name in kinds)
    assert not bad["fused"].equal(good["fused"])
    assert twins["fused"].equal(good["fused"])
    for name in ("feature_0", "feature_1", "head_0", "label_loc"):
        assert twins[name].equal(bad[name]), name


def test_undegraded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ablation_scoring,
        "generate_sequence",
        lambda seed, **k: generate_sequence(seed, frames=5, **k),
    )
    options = argparse.Namespace(
        work=tmp_path,
        pairs=16,
        training_sequences=2,
        steps=2,
        batch=4,
        sequences=2,
        split="validation",
        bfloat16=False,
        calibration_pairs=(2, 16),
        held_out_pairs=(4, 32),
    )
    arms = [ablation_arms.BASE, ablation_arms.replace(ablation_arms.BASE, degraded=False)]
    ablation.prepare(arms, options)
    base, undegraded = (ablation.measure(arm, 0, options) for arm in arms)
    assert base["parameters"] == undegraded["parameters"] == 0
    for setting in ablation_scoring.SEVERITY:
        assert undegraded["pairs"][setting]["loss"] < base["pairs"][setting]["loss"]
        assert {
            name.removesuffix("_undegraded") for name in undegraded["sequences"][setting]
        } == set(base["sequences"][setting])
