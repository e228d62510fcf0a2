"""siamban's own scripts, unedited, by the launcher: all stages, then a test with the result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from siamban_host import CHECKOUT, needs_siamban
from tiny_dataset import write_dataset

from gmmt_fusion.cli import main

pytestmark = needs_siamban[:1]
SETTINGS = {
    "TRAIN.EPOCH": 2,
    "TRAIN.LR_WARMUP.EPOCH": 1,
    "TRAIN.BATCH_SIZE": 2,
    "TRAIN.PRINT_FREQ": 1,
    "DATASET.VIDEOS_PER_EPOCH": 3,
    "BACKBONE.PRETRAINED": "",
}
STREAMS = [f"../siamban_r50_l3_{name}/snapshot/checkpoint_e2.pth" for name in ("rgb", "tir")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with data in it, and the baseline trained."""
    folder = tmp_path_factory.mktemp("hosts") / "siamban"
    shutil.copytree(CHECKOUT, folder, ignore=shutil.ignore_patterns(".git", "demo"))
    data = write_dataset(folder.parent / "data", names=("a", "b"), count=3)
    for kind in ("--train", "--test"):
        assert main(["siamban-data", "--checkout", str(folder), kind, str(data)]) == 0
    for stage in ("rgb", "tir"):
        train(folder, stage)
    train(folder, "rgbt", "--set", f"TRAIN.PRETRAINED={{{','.join(STREAMS)}}}")
    return folder


def run(checkout: Path, stage: str, *arguments: str) -> str:
    """What the launcher prints, started in the folder of a config."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "gmmt_fusion", "run", *arguments],
        cwd=checkout / "experiments" / f"siamban_r50_l3_{stage}",
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def train(checkout: Path, stage: str, *arguments: str) -> str:
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    script = ["../../tools/train.py", "--cfg", "config.yaml"]
    return run(checkout, stage, *settings, *arguments, *script)


def weights(checkout: Path, stage: str, epoch: int = 2) -> dict[str, torch.Tensor]:
    path = checkout / f"experiments/siamban_r50_l3_{stage}/snapshot/checkpoint_e{epoch}.pth"
    return torch.load(path, weights_only=False)["state_dict"]


def track(checkout: Path, stage: str, *arguments: str) -> np.ndarray:
    snapshot = "../siamban_r50_l3_rgbt/snapshot/checkpoint_e2.pth"
    script = ["../../tools/test.py", "--snapshot", snapshot, "--config", "config.yaml"]
    said = run(checkout, stage, *arguments, *script, "--dataset", "OTB-lasher")
    assert ("gmmt_fusion: attached" in said) is bool(arguments)
    results = checkout / f"experiments/siamban_r50_l3_{stage}/results/OTB-lasher/checkpoint_e2"
    boxes = np.stack([np.loadtxt(results / f"{name}.txt", delimiter=",") for name in "ab"])
    assert boxes.shape == (2, 3, 4) and np.isfinite(boxes).all()
    return boxes


def test_stage_1_2_trains_the_fusion_and_the_head(checkout: Path) -> None:
    rgb, tir, both = (weights(checkout, stage) for stage in ("rgb", "tir", "rgbt"))
    for name, value in both.items():
        part, _, rest = name.partition(".")
        stream, _, inner = rest.partition(".")
        if stream in ("rgb", "tir"):  # frozen
            assert torch.equal(value, {"rgb": rgb, "tir": tir}[stream][f"{part}.{inner}"]), name
    changed = {name for name in rgb if name.startswith("head") and (both[name] != rgb[name]).any()}
    assert changed and any(name.startswith("neck.fusion") for name in both)


def test_stage_2_and_what_it_tracks(checkout: Path) -> None:
    fusion = checkout.parent / "fusion"
    options = ["--train", str(fusion), "--preset", "small-unet", "--calibrate", "1"]
    options += ["--weights", "../siamban_r50_l3_rgbt/snapshot/checkpoint_e2.pth"]
    said = train(checkout, "gmmt", *options)
    assert "attached a new fusion" in said and "saved the fusion of epoch 2" in said
    assert "generative_loss" in said
    host, trained = weights(checkout, "rgbt"), weights(checkout, "gmmt")
    assert all(torch.equal(trained[name], value) for name, value in host.items())
    resumed = ["--set=TRAIN.RESUME=snapshot/checkpoint_e1.pth", "--set=TRAIN.START_EPOCH=1"]
    before = (fusion / "model.safetensors").read_bytes()
    assert "saved the fusion of epoch 2" in train(checkout, "gmmt", *options, *resumed)
    assert (fusion / "model.safetensors").read_bytes() != before
    own, fused = track(checkout, "rgbt"), track(checkout, "gmmt", "--fusion", str(fusion))
    assert np.array_equal(own[:, 0], fused[:, 0]) and not np.array_equal(own, fused)
    script = ["../../tools/eval.py", "--tracker_path", "results", "--dataset", "OTB-lasher"]
    assert "checkpoint_e2" in run(checkout, "gmmt", *script, "--tracker_prefix", "checkpoint")
