"""The quickstart: what it says before it starts, and the fusion that is shipped for it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("cv2")
import quickstart
from embedded.sequences import TEST_SEEDS, generate_sequence
from embedded.siamese import load_tracker
from embedded_tracker import EmbeddedTracker

from gmmt_fusion import attach
from gmmt_fusion.cli import main


def parse(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["quickstart.py", *map(str, arguments)])
    return quickstart.parse()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], ["24 generated sequences", "for 300 steps", "minutes", "threads round otherwise"]),
        (["checkpoints/step-00000040"], ["Goes on with the fine-tuning after step 40 of 300"]),
        (["checkpoints/step-00000300", "final"], ["fine-tuned before", "delete it"]),
    ],
    ids=["new", "interrupted", "finished"],
)
def test_it_says_in_one_line_what_it_will_do(monkeypatch, tmp_path, made, words):
    options = parse(monkeypatch, "--out", tmp_path)
    for name in made:
        (quickstart.training_folder(options) / name).mkdir(parents=True)
    text = quickstart.announce(options)
    assert "\n" not in text and all(word in text for word in words), text


def test_a_finished_training_is_taken_again(monkeypatch, tmp_path):
    options = parse(monkeypatch, "--out", tmp_path, "--steps", 5)
    attach(load_tracker(), quickstart.SHIPPED, EmbeddedTracker.adapter).save_pretrained(
        quickstart.training_folder(options) / "final"
    )
    monkeypatch.setattr(quickstart, "fine_tune_fusion", None)  # would be called
    handle = quickstart.attach_fusion(load_tracker(), options)
    assert handle.attached and "--steps 5" in handle.fusion.about["training"]["command"]
    assert (tmp_path / "fusion" / "README.md").is_file()


def test_the_shipped_fusion_tells_how_it_was_made(capsys):
    assert main(["info", str(quickstart.SHIPPED), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert "examples/quickstart.py" in content["training"]["command"]
    assert content["bytes"] < 6e6 and content["license"] == "apache-2.0"
    assert content["host"]["host"] == "SiameseTracker"


def test_the_end_in_seconds_with_the_shipped_fusion(monkeypatch, tmp_path, capsys):
    few = generate_sequence(TEST_SEEDS[0], frames=3)
    monkeypatch.setattr(quickstart, "load_sequences", lambda options: [few])
    out = tmp_path / "runs" / "new"
    assert quickstart.main(parse(monkeypatch, "--pretrained", "--out", out)) == 0
    printed = capsys.readouterr()
    assert "| +GMMT |" in printed.out and "next: gmmt-fusion info" in printed.out
    assert str(quickstart.SHIPPED) in printed.err
    images = {path.name for path in Path(out).glob("*.png")}
    assert {"curves.png", "frames_best.png", "features_worst.png"} <= images
