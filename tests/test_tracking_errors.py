"""What the command `track` refuses: one sentence that names the file, the frame or the option."""

import cv2
import numpy as np
import pytest
from tiny_dataset import BOX, write_clip, write_dataset
from tiny_trackers import Failing, Follower
from tracking_commands import command

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.evaluation.sequences import open_sequence, open_sequences
from gmmt_fusion.evaluation.tracking import run

pytestmark = pytest.mark.usefixtures("forgetful_tracker")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            {"tracker": "Pysot"},
            ["tracker", "'tiny_trackers:Follower' there", "'tiny_trackers:Pysot' here"],
            id="tracker",
        ),
        pytest.param(
            {"benchmark": "rgbt234"}, ["benchmark", "'lasher' there", "'rgbt234' here"], id="layout"
        ),
        pytest.param({"start": 1.0}, ["weights", "there", "here"], id="weights"),
    ],
)
def test_results_of_other_settings_are_not_mixed(tmp_path, capsys, monkeypatch, change, words):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    (data / "names.txt").write_text("a\n")
    some = ("--sequences", data / "names.txt")
    assert command(out, "--benchmark", "lasher", "--data", data, *some) == 0
    monkeypatch.setattr(Follower, "start", change.get("start", 0.0))
    for path in ("a/visible.txt", "a/infrared.txt", "b/visible.txt", "b/infrared.txt"):
        (data / path).write_text(",".join(map(str, BOX)))
    arguments = ("--benchmark", change.get("benchmark", "lasher"), "--data", data)
    assert command(out, *arguments, tracker=change.get("tracker", "Follower")) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in [str(out), "name another folder, or delete it", *words]), err
    assert not (out / "b.txt").exists()


def test_confidences_of_some_frames_only_are_refused(tmp_path, capsys):
    data = write_dataset(tmp_path / "data", "depthtrack")
    arguments = ("--benchmark", "depthtrack", "--data", data)
    assert command(tmp_path / "out", *arguments, tracker="Unsure") == 2
    assert "a, frame 2: the tracker gives no confidence" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.txt"))


def test_an_empty_list_of_names_is_not_all(tmp_path):
    with pytest.raises(ValueError, match="no sequence"):
        open_sequences(write_dataset(tmp_path), "lasher", [])


def overwrite(path, text):
    def change(data):
        (data / path).write_text(text)

    return change


def remove_images(data):
    for path in (data / "b" / "infrared").iterdir():
        path.unlink()


def shrink_image(data):
    cv2.imwrite(str(data / "b/visible/8.png"), np.zeros((4, 5, 3), np.uint8))


def save_fusion(data):
    GenerativeFusion(8, method="raw").save_pretrained(data.parent / "own")


DAMAGE = {  # what is asked for, what is done to the data, and what the complaint names
    "no data": ({"data": "none"}, None, ["none", "not a folder"]),
    "no sequences": ({"benchmark": "gtot"}, None, ["gtot", "<sequence>/v", "<sequence>/i"]),
    "unknown sequence": ({}, overwrite("names.txt", "a\nc\n"), ["/c", "not a folder"]),
    "no images": ({}, remove_images, ["b/infrared", "no images"]),
    "no image": ({}, overwrite("b/visible/8.png", "text"), ["b/visible/8.png", "as an image"]),
    "a later one": ({}, overwrite("a/infrared/10.png", ""), ["a/infrared/10.png", "as an image"]),
    "other size": ({}, shrink_image, ["b, frame 1", "5×4", "33×25"]),
    "no truth": ({}, lambda data: (data / "b/init.txt").unlink(), ["'b'", "ground truth"]),
    "bad truth": ({}, overwrite("b/init.txt", "1,2,3"), ["b/init.txt, line 1", "3 columns"]),
    "empty box": ({}, overwrite("b/init.txt", "1,2,0,4"), ["b: ", "first frame", "1,2,0,4"]),
    "no box": ({}, overwrite("b/init.txt", "nan,nan,nan,nan\n1,2,3,4"), ["b: ", "nan,nan"]),
    "outside": ({}, overwrite("b/init.txt", "40,2,5,5"), ["b: ", "40,2,5,5", "outside", "33×25"]),
    "nan box": ({"tracker": "Lost"}, None, ["a, frame 2", "[1.0, 2.0, nan, 4.0]"]),
    "no dict": ({"tracker": "Mute"}, None, ["Mute.track", "list", "'target_bbox'"]),
    "no tracker": ({"tracker": "Idle"}, None, ["Idle", "initialize(image, info)", "init(image"]),
    "no function": ({"tracker": "missing"}, None, ["tiny_trackers", "'missing'"]),
    "arguments": ({"tracker": "needs_arguments"}, None, ["without arguments", "'checkpoint'"]),
    "no fusion": ({"fusion": "none"}, None, ["error: none is missing", "save_pretrained"]),
    "no fusion point": ({"fusion": "own"}, save_fusion, ["error: no fusion point"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch, damage):
    options, change, words = DAMAGE[damage]
    monkeypatch.chdir(tmp_path)
    data = write_dataset(tmp_path / "data")
    (data / "names.txt").write_text("a\nb\n")
    if change:
        change(data)
    arguments = [
        "--benchmark",
        options.get("benchmark", "lasher"),
        "--data",
        options.get("data", data),
    ]
    arguments += [] if "benchmark" in options else ["--sequences", data / "names.txt"]
    arguments += ["--fusion", options["fusion"]] if "fusion" in options else []
    assert command("out", *arguments, tracker=options.get("tracker", "Follower")) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and "Traceback" not in err, err
    assert not list(tmp_path.glob("out/*.txt"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["--benchmark", "lasher"],
            ["--data", "--visible", "--auxiliary", "--box"],
            id="half of a benchmark",
        ),
        pytest.param(
            ["--visible", "a", "--auxiliary", "b", "--box", "1,2,3,4", "--data", "x"],
            ["--benchmark", "or else"],
            id="both kinds",
        ),
        pytest.param(
            ["--visible", "a.mp4", "--auxiliary", "b", "--box", "1,2,3,4"],
            ["a.mp4", "not exist"],
            id="no file",
        ),
        pytest.param(
            ["--visible", "text.mp4", "--auxiliary", "text.mp4", "--box", "1,2,3,4"],
            ["text.mp4", "as a video"],
            id="no video",
        ),
        pytest.param(
            ["--visible", "v.mp4", "--auxiliary", "v.mp4", "--box", "1,2,3,4", "--depth"],
            ["v.mp4", "depths", "16-bit images"],
            id="depths of a video",
        ),
        pytest.param(
            ["--visible", "v.mp4", "--auxiliary", "v.mp4", "--box=-9,2,3,4"],
            ["v: ", "-9,2,3,4", "outside"],
            id="box outside",
        ),
    ],
)
def test_bad_pairs(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    write_clip(tmp_path / "v.mp4")
    assert command("out", *arguments) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_box_must_be_four_numbers(capsys):
    with pytest.raises(SystemExit):
        command("out", "--box", "1,2,3")
    err = capsys.readouterr().err
    assert "'1,2,3'" in err and "x,y,w,h" in err


def test_results_of_other_frames_are_refused(tmp_path, capsys):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    assert command(out, "--benchmark", "lasher", "--data", data) == 0
    (out / "a.txt").write_text("1,2,3,4\n")
    assert command(out, "--benchmark", "lasher", "--data", data) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("a.txt", "1 boxes", "4 frames", "delete it")), err
    (out / "tracking.json").unlink()
    assert command(out, "--benchmark", "lasher", "--data", data) == 2
    assert "holds results and no tracking.json" in capsys.readouterr().err


def test_a_tracker_that_fails_is_named_with_its_frame(tmp_path):
    sequence = open_sequence(write_dataset(tmp_path, "lasher", count=3) / "a", "lasher")
    with pytest.raises(RuntimeError, match="a, frame 2: Failing") as raised:
        run(Failing(), sequence)
    assert isinstance(raised.value.__cause__, KeyError)
