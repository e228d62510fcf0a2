"""Opening sequences, driving trackers over them, and the command `track`."""

import json

import cv2
import embedded_tracker
import numpy as np
import pytest
import torch
from embedded.sequences import TEST_SEEDS, generate_sequence, write_sequence
from embedded.siamese import SEARCH_MAP
from tiny_dataset import BOX, HEIGHT, WIDTH, make_image, write_clip, write_dataset, write_images
from tiny_trackers import Follower, Holder, Pysot
from tracking_commands import command

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.cli import main
from gmmt_fusion.evaluation.frames import colour_map
from gmmt_fusion.evaluation.layouts import LAYOUTS
from gmmt_fusion.evaluation.sequences import open_sequence
from gmmt_fusion.evaluation.trackers import hash_networks, load_tracker
from gmmt_fusion.evaluation.tracking import run

pytestmark = pytest.mark.usefixtures("forgetful_tracker")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    write_dataset(tmp_path, name, count=4)
    layout = LAYOUTS[name]
    for sequence in (open_sequence(tmp_path / "a", name), open_sequence(tmp_path / "a")):
        assert (sequence.name, len(sequence), sequence.box.tolist()) == ("a", 4, BOX)
        assert sequence.truth.tolist() == [BOX] * 4
        pairs = list(sequence)
        assert [visible[0, 0].tolist() for visible, _ in pairs] == [
            [100 + frame, 20, 10] for frame in range(4)
        ]
        assert all(auxiliary.shape == (HEIGHT, WIDTH, 3) for _, auxiliary in pairs)
        expected = colour_map(make_image(2, depth=True)) if layout.depth else make_image(2)
        assert np.array_equal(pairs[2][1], expected[..., ::-1])


def test_colour_map_is_that_of_vipt():
    depth = np.array([[0, 1000, 2000], [3000, 60000, 2000]], np.uint16)
    far = min(np.median(depth) * 3, 10000)
    grey = np.rint(np.minimum(depth, far) * 255 / far).astype(np.uint8)
    assert np.array_equal(colour_map(depth), cv2.applyColorMap(grey, cv2.COLORMAP_JET))
    assert depth[1, 1] == 60000


@pytest.mark.parametrize(
    ("tracker", "layout", "order"),
    [
        (Follower, "lasher", [100, 20, 10, 100, 20, 10]),
        (Pysot, "lasher", [10, 20, 100, 10, 20, 100]),
        (Follower, "rgbd1k", [100, 20, 10, "depth"]),
        (Pysot, "rgbd1k", [10, 20, 100, "depth"]),
    ],
)
def test_trackers_are_driven_as_their_own_scripts_do(tmp_path, tracker, layout, order):
    write_dataset(tmp_path, layout)
    ticks = []
    boxes, confidences, seconds = run(
        tracker(), open_sequence(tmp_path / "a"), lambda: ticks.append(1)
    )
    assert boxes.tolist() == [[BOX[0] + frame, *BOX[1:]] for frame in range(4)]
    np.testing.assert_array_equal(confidences, [0] + [0.25 if tracker is Follower else np.nan] * 3)
    assert seconds > 0 and len(ticks) == 4
    image = Follower.images[0]
    assert image.shape == (HEIGHT, WIDTH, 6) and image.dtype == np.uint8
    if order[-1] == "depth":  # OpenCV's colour map as it is, for both families
        order = [*order[:3], *colour_map(make_image(0, depth=True))[0, 0].tolist()]
    assert image[0, 0].tolist() == order


@pytest.mark.parametrize("layout", ["lasher", "depthtrack"])
def test_command_tracks_resumes_and_is_evaluated(tmp_path, capsys, layout):
    data, out = write_dataset(tmp_path / "data", layout), tmp_path / "out"
    arguments = ("--benchmark", layout, "--data", data)
    assert command(out, *arguments) == 0
    assert "tracked 2 of 2 sequences: 8 frames" in capsys.readouterr().out
    rows = np.loadtxt(out / "a.txt", delimiter=",")
    assert rows[:, :4].tolist() == [[BOX[0] + frame, *BOX[1:]] for frame in range(4)]
    assert rows[:, 4:].tolist() == (
        [[0], [0.25], [0.25], [0.25]] if layout == "depthtrack" else [[]] * 4
    )
    assert [line.split(",")[:2] for line in (out / "times.csv").read_text().split()] == [
        ["a", "4"],
        ["b", "4"],
    ]

    whole = {path: path.read_bytes() for path in (out / "a.txt", out / "b.txt")}
    (out / "b.txt").unlink()
    Follower.images.clear()
    assert command(out, *arguments, "--video") == 0
    assert len(Follower.images) == 4  # b alone
    assert whole == {path: path.read_bytes() for path in whole}
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["a.mp4", "b.mp4"]
    truth = ("--truth", str(data), "--results", str(out), "--out", str(tmp_path / "curves"))
    assert main(["evaluate", "--benchmark", layout, *truth]) == 0
    assert "2 sequences" in capsys.readouterr().out


def test_hash_is_of_weights_and_of_how_the_fusion_samples():
    def build(seed=0, **options):
        torch.manual_seed(seed)
        tracker = embedded_tracker.build()
        fusion = GenerativeFusion.preset("small", 64, SEARCH_MAP, **options)
        attach(tracker, fusion, tracker.adapter)
        return hash_networks(tracker)

    assert build() == build()
    assert len({build(), build(seed=1), build(steps=3)}) == 3


def test_a_tracker_without_networks_is_told(tmp_path):
    with pytest.warns(UserWarning, match="Holder"):
        assert hash_networks(Holder()) is None
    data = write_dataset(tmp_path / "data")
    with pytest.warns(UserWarning, match="Holder"):
        arguments = ("--benchmark", "lasher", "--data", data)
        assert command(tmp_path / "out", *arguments, tracker="Holder") == 0
    assert json.loads((tmp_path / "out" / "tracking.json").read_text())["weights"] is None


@pytest.mark.parametrize("kind", ["videos", "folders", "depth"])
def test_own_pair(tmp_path, capsys, kind):
    if kind == "videos":
        visible, auxiliary = (
            write_clip(tmp_path / "car.mp4", 5),
            write_clip(tmp_path / "heat.mp4", 3),
        )
    else:
        visible = write_images(tmp_path / "car", 5)
        auxiliary = write_images(tmp_path / "heat", 3, depth=kind == "depth")
    out = tmp_path / "out"
    own = ("--visible", visible, "--auxiliary", auxiliary, "--box", "4,6,10,8")
    if kind == "depth":
        assert command(out, *own) == 2
        err = capsys.readouterr().err
        assert all(word in err for word in ("8.png", "uint16", "--depth")), err
        own = (*own, "--depth")
    assert command(out, *own) == 0
    err = capsys.readouterr().err
    assert all(word in err for word in ("car", "5 visible", "3 auxiliary", "first 3")), err
    assert len(np.loadtxt(out / "car.txt", delimiter=",")) == 3
    assert json.loads((out / "tracking.json").read_text())["box"] == "[4.0, 6.0, 10.0, 8.0]"
    shown = cv2.VideoCapture(str(out / "videos" / "car.mp4"))
    assert shown.get(cv2.CAP_PROP_FPS) == (12 if kind == "videos" else 25)
    frames = []
    while (frame := shown.read())[0]:
        frames.append(frame[1].astype(int))
    height, width = (32, 48) if kind == "videos" else (HEIGHT - 1, WIDTH)
    assert len(frames) == 3 and frames[0].shape[1:] == (2 * width, 3)
    strip = frames[0][height:]  # of text, under both
    assert len(strip) >= 8 and strip.max() > 60 and np.median(strip) < 60
    for left in (0, width):  # in both: vermilion on the box's left edge, and not elsewhere
        distance = abs(frames[0] - [0, 94, 213]).max(-1)
        assert distance[10, left + 4] < 70 < distance[20, left + 25]


@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_results_are_scored_though_a_modality_lacks_its_last_image(tmp_path, capsys, modality):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    (data / "b" / modality / "11.png").unlink()
    assert command(out, "--benchmark", "lasher", "--data", data) == 0
    assert "the last stands in for the missing one of 4" in capsys.readouterr().err
    channels = slice(0, 3) if modality == "visible" else slice(3, 6)
    assert np.array_equal(*(image[..., channels] for image in Follower.images[-2:]))
    assert not np.array_equal(*Follower.images[-2:])  # the other modality has its own
    paths = ["--truth", str(data), "--results", str(out), "--out", str(tmp_path / "scores")]
    assert main(["evaluate", "--benchmark", "lasher", *paths]) == 0


def test_videos_name_tracker_score_and_overlap(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(cv2, "putText", lambda image, text, *_: written.append(text))
    data = write_dataset(tmp_path / "data")
    assert command(tmp_path / "out", "--benchmark", "lasher", "--data", data, "--video") == 0
    assert written[:2] == ["a  1/4", "Follower"] and "truth" in written
    assert {"score 0.25", "IoU 1.00"} <= set(written)


def test_truth_of_more_frames_is_told(tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    for modality in ("visible", "infrared"):
        (data / "b" / modality / "11.png").unlink()
    assert command(tmp_path / "out", "--benchmark", "lasher", "--data", data) == 0
    err = capsys.readouterr().err
    assert all(word in err for word in ("note: b ", "4 boxes", "3 frames", "too short")), err


def test_video_that_is_shorter_than_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        cv2, "CAP_PROP_FRAME_COUNT", cv2.CAP_PROP_FRAME_WIDTH
    )  # announces 48 frames
    path = write_clip(tmp_path / "car.mp4", 5)
    assert (
        command(tmp_path / "out", "--visible", path, "--auxiliary", path, "--box", "4,6,10,8") == 0
    )
    err = capsys.readouterr().err
    assert all(word in err for word in ("car.mp4", "48 frames", "5 can be read")), err


@pytest.mark.parametrize("where", ["tracker", "video"])
def test_interruption_leaves_nothing_half_written(tmp_path, capsys, monkeypatch, where):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    arguments = ("--benchmark", "lasher", "--data", data, "--video")
    with monkeypatch.context() as patch:
        if where == "tracker":
            patch.setattr(Follower, "fail_at", 6)  # the second frame of b
        else:
            patch.setattr(cv2, "rectangle", interrupt)
        assert command(out, *arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted(
        ["a.txt", "times.csv", "tracking.json", *(["videos/a.mp4"] if where == "tracker" else [])]
    )
    assert not list(out.rglob(".*"))
    assert command(out, *arguments) == 0
    assert (out / "videos" / "a.mp4").is_file() and (out / "b.txt").is_file()


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_tracker_of_a_file_finds_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside.py").write_text("from tiny_trackers import Follower as build\n")
    (tmp_path / "mine" / "siamban.py").write_text("from beside import build\n")
    assert isinstance(load_tracker(f"{tmp_path}/mine/siamban.py:build"), Follower)
    monkeypatch.chdir(tmp_path / "mine")
    assert isinstance(load_tracker("beside:build"), Follower)
    (tmp_path / "mine" / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(
        ImportError, match=r"broken\.py cannot be imported: No module named 'no_such_package'"
    ):
        load_tracker("broken.py:build")
    with pytest.raises(FileNotFoundError, match=r"none\.py: no such file"):
        load_tracker("none.py:build")
    with pytest.raises(ValueError, match="expected module:function"):
        load_tracker("beside")


def test_embedded_tracker_takes_a_fusion(tmp_path):
    torch.manual_seed(0)
    fusion = GenerativeFusion.preset("small", 64, SEARCH_MAP)
    donor = embedded_tracker.build()
    attach(donor, fusion, donor.adapter).save_pretrained(tmp_path / "fusion")
    sequence = open_sequence(
        write_sequence(generate_sequence(TEST_SEEDS[0], frames=3), tmp_path / "walk")
    )
    tracker = load_tracker("embedded_tracker:build", tmp_path / "fusion")
    fused, _, _ = run(tracker, sequence)
    with Attachment.of(tracker).disabled():
        own, _, _ = run(tracker, sequence)
    assert np.array_equal(own, run(load_tracker("embedded_tracker:build"), sequence)[0])
    assert not np.array_equal(own, fused) and isinstance(tracker.adapter, ModuleAdapter)


@pytest.mark.parametrize("gpu", [False, True])
def test_commands_optimise_where_there_is_a_gpu(tmp_path, monkeypatch, gpu):
    tracker = load_tracker("embedded_tracker:build")
    fusion = GenerativeFusion.preset("small", 64, SEARCH_MAP)
    attach(tracker, fusion, tracker.adapter).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    attached = load_tracker("embedded_tracker:build", tmp_path)
    assert (Attachment.of(attached).fusion.fast_path is not None) is gpu
