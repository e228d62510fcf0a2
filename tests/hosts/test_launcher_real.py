"""ViPT's and TBSI's own scripts through the launcher: fine-tune, go on, track. Needs `HOSTS`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from embedded.sequences import generate_sequence
from hosts.harness import NAMES, checkout

cv2 = pytest.importorskip("cv2")
pytest.importorskip("pandas", reason="of the extra hosts")

AUTHORS = "/media/jiawen/Datasets/Tracking/DATASET/LasHeR"
WEIGHTS = """
import sys, torch
import host_runs, {example} as host
from gmmt_fusion.hosts import checkouts
cfg = host.configuration(checkouts.prepare("."), "{config}")
torch.save({{"net": host_runs.randomise(host.build_network(cfg)).state_dict()}}, sys.argv[1])
"""
TBSI = "vitb_256_tbsi_32x4_4e4_lasher_15ep_in1k"
SCRIPTS = {
    "vipt": {
        "weights": "models/ViPT_deep_rgbt.pth",
        "folders": ["lasher_dir=../LasHeR/trainingset"],
        "train": "--script vipt --config deep_rgbt",
        "test": f"--path {AUTHORS}=../LasHeR RGBT_workspace/test_rgbt_mgpus.py --script_name vipt "
        "--yaml_name deep_rgbt --threads 1",
        "results": "RGBT_workspace/results/LasHeR/deep_rgbt/made.txt",
    },
    "tbsi": {
        "weights": f"output/{TBSI}/checkpoints/train/tbsi_track/{TBSI}/TBSITrack_ep0015.pth.tar",
        "folders": [
            "lasher_train_dir=../LasHeR/trainingset",
            "lasher_test_dir=../LasHeR/testingset",
        ],
        "train": f"--script tbsi_track --config {TBSI}",
        "test": f"--set lasher_path=../LasHeR tracking/test.py tbsi_track {TBSI} "
        "--dataset_name lasher_test --runid 15",
        "results": f"output/test/tracking_results/tbsi_track/{TBSI}_15/made.txt",
    },
}
FEW = {
    "MODEL.PRETRAIN_FILE": "",
    "TRAIN.BATCH_SIZE": 1,
    "TRAIN.NUM_WORKER": 0,
    "TRAIN.PRINT_INTERVAL": 1,
    "TRAIN.VAL_EPOCH_INTERVAL": 9,
    "DATA.TRAIN.SAMPLE_PER_EPOCH": 2,
    "DATA.VAL.SAMPLE_PER_EPOCH": 1,
}


def lay_out(folder: Path, names: list[str]) -> None:
    """LasHeR's folders, of one generated sequence: each training name is a link to it."""
    sequence = generate_sequence(0, 20)
    for part, count in (("trainingset", 20), ("testingset", 3)):
        target = folder / part / "made"
        boxes = "".join(
            ",".join(map(str, box)) + "\n" for box in sequence.boxes_visible[:count].tolist()
        )
        for modality in ("visible", "infrared"):
            (target / modality).mkdir(parents=True)
            for number, image in enumerate(getattr(sequence, modality)[:count]):
                cv2.imwrite(str(target / modality / f"{number:06d}.jpg"), image[..., ::-1])
            (target / f"{modality}.txt").write_text(boxes)
        (target / "init.txt").write_text(boxes)
        (folder / f"{part}List.txt").write_text("made\n")
    for name in names:
        (folder / "trainingset" / name).symlink_to("made")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_hosts_own_scripts(name: str, tmp_path: Path) -> None:
    source = checkout(name)
    if source is None:
        pytest.skip(f"HOSTS names no folder with a checkout of {NAMES[name][1]}")
    what = SCRIPTS[name]
    host = tmp_path / "host"
    shutil.copytree(
        source, host, ignore=shutil.ignore_patterns(".git", "output", "results", "*.pth")
    )
    lists = host.glob("lib/train/data_specs/lasher_*.txt")
    lay_out(tmp_path / "LasHeR", sorted({n for path in lists for n in path.read_text().split()}))
    examples = str(Path(__file__).parents[2] / "examples")

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=host,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": examples},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    weights = host / str(what["weights"])
    weights.parent.mkdir(parents=True, exist_ok=True)
    python("-c", WEIGHTS.format(example=name, config=NAMES[name][2]), str(weights))
    before = {path: path.read_bytes() for path in host.rglob("*.py")}
    settings = [f"{k}={v}" for k, v in FEW.items()] + list(what["folders"])
    for epochs in (1, 2):
        out = python(
            *["-m", "gmmt_fusion", "run", "--train", "../fusion", "--weights", str(weights)],
            *[word for setting in settings for word in ("--set", setting)],
            *["--set", f"TRAIN.EPOCH={epochs}", "tracking/train.py", *str(what["train"]).split()],
            *["--save_dir", "../out", "--mode", "single"],
        )
        assert f"saved the fusion of epoch {epochs}" in out and "Loss/generative" in out
    assert "[train: 1," not in out  # it went on
    out = python("-m", "gmmt_fusion", "run", "--fusion", "../fusion", *str(what["test"]).split())
    assert "gmmt_fusion: attached" in out
    assert len((host / str(what["results"])).read_text().splitlines()) == 3
    assert before == {path: path.read_bytes() for path in host.rglob("*.py")}
