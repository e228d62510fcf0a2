"""The command `figures`: what a fusion generates in a user's tracker."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from cases import CASES

from gmmt_fusion import Attachment, attach
from gmmt_fusion.cli import main
from gmmt_fusion.evaluation.maps import collect_maps
from gmmt_fusion.evaluation.sequences import open_sequences
from gmmt_fusion.evaluation.trackers import load_tracker

CONCAT = CASES[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sequences of LasHeR, with a bright target in each modality, results, and fusions."""
    cv2 = pytest.importorskip("cv2")
    root = tmp_path_factory.mktemp("figures")
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        for kind, colour in (
            ("visible", (0, 0, 255)),
            ("infrared", (255, 255, 255)),
        ):  # BGR: a red target
            (root / "data" / name / kind).mkdir(parents=True)
            for number in range(1, 7):
                image = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
                image[20:44, 20:44] = colour
                cv2.imwrite(str(root / "data" / name / kind / f"{number:06d}.png"), image)
        boxes = "20,20,24,24\n" * 6
        (root / "data" / name / "init.txt").write_text(boxes)
        for tracker in ("base", "gmmt"):
            (root / tracker).mkdir(exist_ok=True)
            (root / tracker / f"{name}.txt").write_text(boxes)
    (root / "short").mkdir()
    for name in ("one", "two"):
        (root / "short" / f"{name}.txt").write_text("1,2,3,4\n" * 4)
    for method in ("diffusion", "raw"):
        attach(CONCAT.build(), CONCAT.make_fusion(method=method), CONCAT.adapter()).save_pretrained(
            root / method
        )
    return root


def command(root, out, fusion="diffusion", *extra, tracker="HostOfOSTrack"):
    arguments = ["--tracker", f"tiny_trackers:{tracker}", "--benchmark", "lasher"]
    arguments += ["--data", root / "data", "--out", out]
    arguments += ["--fusion", root / fusion] if fusion else []
    return main(["figures", *map(str, arguments), *extra])


@pytest.mark.parametrize("fusion", ["diffusion", "raw"])
def test_the_command_draws_everything(folders, tmp_path, capsys, fusion):
    results = ["--results", str(folders / "base"), str(folders / "gmmt")]
    assert command(folders, tmp_path, fusion, "--steps", "3", *results) == 0
    expected = {
        f"{kind}_{name}.png" for kind in ("features", "tracked_frames") for name in ("one", "two")
    }
    expected |= {"tsne.png", "sampling_steps.png"} if fusion == "diffusion" else {"tsne.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    printed = capsys.readouterr().out
    assert all(str(tmp_path / name) in printed for name in expected)
    assert ("'raw' takes no steps" in printed) == (fusion == "raw")


@pytest.mark.filterwarnings("ignore:.*stands in:UserWarning")
def test_a_modality_may_lack_its_last_image(folders, tmp_path):
    shutil.copytree(folders / "data", tmp_path / "data")
    (tmp_path / "data" / "one" / "infrared" / "000006.png").unlink()
    shutil.copytree(folders / "base", tmp_path / "base")
    shutil.copytree(folders / "raw", tmp_path / "raw")
    results = ["--results", str(tmp_path / "base")]
    assert command(tmp_path, tmp_path / "out", "raw", *results) == 0
    assert (tmp_path / "out" / "tracked_frames_one.png").is_file()


@pytest.mark.parametrize("host", ["HostOfOSTrack", "HostOfPysot"])  # the second one gets BGR
def test_maps_are_collected_with_their_search_patches_and_no_trace(folders, host):
    tracker = load_tracker(f"tiny_trackers:{host}", folders / "raw")
    inputs = torch.rand(1, 6, 4, 4), torch.rand(1, 6, 8, 8)
    before = tracker.network(*inputs)
    sequences = open_sequences(folders / "data", "lasher")
    fused, generated, names, examples = collect_maps(tracker, sequences, frames=6)
    assert names == ["one"] * 3 + ["two"] * 3
    assert fused.shape == generated.shape == (6, 8, 8, 8) and not torch.equal(fused, generated)
    assert list(examples) == ["one", "two"] and examples["one"].frame == 3
    for example in examples.values():
        visible, infrared = example.patches
        assert visible.shape == infrared.shape == (8, 8, 3)
        assert visible[4, 4].tolist() == [1, 0, 0] and infrared[4, 4].tolist() == [1, 1, 1]
        torch.testing.assert_close(
            Attachment.of(tracker).fusion(*(f[None] for f in example.features))[0],
            example.generated,
        )
    torch.testing.assert_close(tracker.network(*inputs), before, rtol=0, atol=0)
    pickle.dumps(tracker.network)  # which a hook that was left behind would not survive
    again = collect_maps(tracker, sequences, frames=6)
    assert torch.equal(again[0], fused) and torch.equal(again[1], generated)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"extra": ["--frames", "4"]}, ["--frames=4", "at least 5"], id="frames"),
        pytest.param({"extra": ["--steps", "0"]}, ["--steps=0", "from 1 to 1000"], id="steps"),
        pytest.param(
            {"extra": ["--results", "short"]},
            ["short: ", "4 boxes of one", "6 frames"],
            id="results",
        ),
        pytest.param({"fusion": None}, ["HostOfOSTrack", "--fusion"], id="nothing attached"),
        pytest.param({"tracker": "LazyHost"}, ["12 frames", "none of its maps"], id="no maps"),
    ],
)
def test_the_command_refuses(folders, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folders)
    fusion, extra = arguments.get("fusion", "diffusion"), arguments.get("extra", [])
    tracker = arguments.get("tracker", "HostOfOSTrack")
    assert command(folders, tmp_path / "out", fusion, *extra, tracker=tracker) == 2
    err = capsys.readouterr().err
    assert "error: " in err and all(word in err for word in words), err
    assert not (tmp_path / "out").exists()
