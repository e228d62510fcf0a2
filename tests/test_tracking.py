"""Opening sequences, driving trackers over them, and the command `track`."""

import json
import sys

import cv2
import embedded_tracker
import numpy as np
import pytest
import torch
from embedded.sequences import TEST_SEEDS, generate_sequence, write_sequence
from embedded.siamese import SEARCH_MAP
from tiny_benchmark import BOX, HEIGHT, WIDTH, dataset, picture, pictures, video
from torch import nn

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.__main__ import main
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.evaluation import layouts as benchmarks
from gmmt_fusion.evaluation.frames import colour_map, open_sequence
from gmmt_fusion.evaluation.tracking import load_tracker, run


class Follower(nn.Module):
    """Moves its box by a pixel a frame, as a tracker of OSTrack's family."""

    images: list = []  # noqa: RUF012 the test reads what the command's own instance saw
    fail_at, start = None, 0.0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), self.start))

    def initialize(self, image, info):
        Follower.images.append(image)
        self.box = info["init_bbox"]

    def track(self, image):
        assert not torch.is_grad_enabled()
        Follower.images.append(image)
        if len(Follower.images) == Follower.fail_at:
            raise KeyboardInterrupt
        self.box = [self.box[0] + 1, *self.box[1:]]
        return {"target_bbox": self.box, "best_score": 0.25}


class Pysot(Follower):
    initialize = None

    def init(self, image, box):
        Follower.images.append(image)
        self.box = box

    def track(self, image):
        return {"bbox": torch.tensor(super().track(image)["target_bbox"])}


class Lost(Follower):
    def track(self, image):
        return {"target_bbox": [1.0, 2.0, float("nan"), 4.0]}


class Mute(Follower):
    def track(self, image):
        return [1, 2, 3, 4]


class Idle:
    pass


def needs_arguments(checkpoint):
    return Follower()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Follower, "images", [])


def command(out, *arguments, tracker="Follower"):
    return main(
        ["track", "--tracker", f"test_tracking:{tracker}", "--out", str(out), *map(str, arguments)]
    )


@pytest.mark.parametrize("benchmark", benchmarks.BENCHMARKS)
def test_layouts(tmp_path, benchmark):
    dataset(tmp_path, benchmark, count=4)
    layout = benchmarks.BENCHMARKS[benchmark]
    for sequence in (open_sequence(tmp_path / "a", benchmark), open_sequence(tmp_path / "a")):
        assert (sequence.name, len(sequence), sequence.box.tolist()) == ("a", 4, BOX)
        assert sequence.truth.tolist() == [BOX] * 4
        pairs = list(sequence)
        assert [visible[0, 0].tolist() for visible, _ in pairs] == [
            [100 + frame, 20, 10] for frame in range(4)
        ]
        assert all(auxiliary.shape == (HEIGHT, WIDTH, 3) for _, auxiliary in pairs)
        expected = colour_map(picture(2, depth=True)) if layout.long_term else picture(2)
        assert np.array_equal(pairs[2][1], expected[..., ::-1])


def test_colour_map_is_that_of_vipt():
    depth = np.array([[0, 1000, 2000], [3000, 60000, 2000]], np.uint16)
    far = min(np.median(depth) * 3, 10000)
    grey = np.rint(np.minimum(depth, far) * 255 / far).astype(np.uint8)
    assert np.array_equal(colour_map(depth), cv2.applyColorMap(grey, cv2.COLORMAP_JET))
    assert depth[1, 1] == 60000


@pytest.mark.parametrize(
    ("tracker", "benchmark", "order"),
    [
        (Follower, "lasher", [100, 20, 10, 100, 20, 10]),
        (Pysot, "lasher", [10, 20, 100, 10, 20, 100]),
        (Follower, "rgbd1k", [100, 20, 10, "depth"]),
        (Pysot, "rgbd1k", [10, 20, 100, "depth"]),
    ],
)
def test_trackers_are_driven_as_their_own_scripts_do(tmp_path, tracker, benchmark, order):
    dataset(tmp_path, benchmark)
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
        order = [*order[:3], *colour_map(picture(0, depth=True))[0, 0].tolist()]
    assert image[0, 0].tolist() == order


@pytest.mark.parametrize("benchmark", ["lasher", "depthtrack"])
def test_command_tracks_resumes_and_is_evaluated(tmp_path, capsys, benchmark):
    data, out = dataset(tmp_path / "data", benchmark), tmp_path / "out"
    arguments = ("--benchmark", benchmark, "--data", data)
    assert command(out, *arguments) == 0
    assert "tracked 2 of 2 sequences: 8 frames" in capsys.readouterr().out
    rows = np.loadtxt(out / "a.txt", delimiter=",")
    assert rows[:, :4].tolist() == [[BOX[0] + frame, *BOX[1:]] for frame in range(4)]
    assert rows[:, 4:].tolist() == (
        [[0], [0.25], [0.25], [0.25]] if benchmark == "depthtrack" else [[]] * 4
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
    assert main(["evaluate", "--benchmark", benchmark, *truth]) == 0
    assert "2 sequences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracker": "Pysot"}, "tracker was 'test_tracking:Follower' and is 'test_tracking:Pysot'"),
        ({"benchmark": "rgbt234"}, "benchmark was 'lasher' and is 'rgbt234'"),
        ({"start": 1.0}, "weights was '"),
    ],
)
def test_results_of_other_settings_are_not_mixed(tmp_path, capsys, monkeypatch, change, message):
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    (data / "names.txt").write_text("a\n")
    assert (
        command(out, "--benchmark", "lasher", "--data", data, "--sequences", data / "names.txt")
        == 0
    )
    monkeypatch.setattr(Follower, "start", change.get("start", 0.0))
    benchmark = change.get("benchmark", "lasher")
    for path in ("a/visible.txt", "a/infrared.txt", "b/visible.txt", "b/infrared.txt"):
        (data / path).write_text(",".join(map(str, BOX)))
    assert (
        command(
            out, "--benchmark", benchmark, "--data", data, tracker=change.get("tracker", "Follower")
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (out / "b.txt").exists()


@pytest.mark.parametrize("kind", ["videos", "folders", "depth"])
def test_own_pair(tmp_path, capsys, kind):
    if kind == "videos":
        visible, auxiliary = video(tmp_path / "car.mp4", 5), video(tmp_path / "heat.mp4", 3)
    else:
        visible = pictures(tmp_path / "car", 5)
        auxiliary = pictures(tmp_path / "heat", 3, depth=kind == "depth")
    out = tmp_path / "out"
    own = ("--visible", visible, "--auxiliary", auxiliary, "--box", "4,6,10,8")
    if kind == "depth":
        assert command(out, *own) == 2
        assert "8.png has uint16 pixels; give --depth" in capsys.readouterr().err
        own = (*own, "--depth")
    assert command(out, *own) == 0
    assert "car has 5 visible and 3 auxiliary frames; cut to the first 3" in capsys.readouterr().err
    assert len(np.loadtxt(out / "car.txt", delimiter=",")) == 3
    assert json.loads((out / "tracking.json").read_text())["box"] == "[4.0, 6.0, 10.0, 8.0]"
    shown = cv2.VideoCapture(str(out / "videos" / "car.mp4"))
    assert shown.get(cv2.CAP_PROP_FPS) == (12 if kind == "videos" else 25)
    frames = []
    while (frame := shown.read())[0]:
        frames.append(frame[1].astype(int))
    height, width = (32, 48) if kind == "videos" else (HEIGHT - 1, WIDTH)
    assert len(frames) == 3 and frames[0].shape == (height, 2 * width, 3)
    for left in (0, width):  # in both: vermilion on the box's left edge, and not elsewhere
        distance = abs(frames[0] - [0, 94, 213]).max(-1)
        assert distance[10, left + 4] < 50 < distance[20, left + 25]


@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_results_are_scored_though_a_modality_lacks_its_last_picture(tmp_path, capsys, modality):
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    (data / "b" / modality / "11.png").unlink()
    assert command(out, "--benchmark", "lasher", "--data", data) == 0
    assert (
        "auxiliary frames; the last stands in for the missing one of 4" in capsys.readouterr().err
    )
    channels = slice(0, 3) if modality == "visible" else slice(3, 6)
    assert np.array_equal(*(image[..., channels] for image in Follower.images[-2:]))
    assert not np.array_equal(*Follower.images[-2:])  # the other modality has its own
    paths = ["--truth", str(data), "--results", str(out), "--out", str(tmp_path / "scores")]
    assert main(["evaluate", "--benchmark", "lasher", *paths]) == 0


def test_truth_of_more_frames_is_told(tmp_path, capsys):
    data = dataset(tmp_path / "data")
    for modality in ("visible", "infrared"):
        (data / "b" / modality / "11.png").unlink()
    assert command(tmp_path / "out", "--benchmark", "lasher", "--data", data) == 0
    assert (
        "b has 4 boxes of ground truth and 3 frames; its results will be too short"
        in capsys.readouterr().err
    )


def test_video_that_is_shorter_than_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        cv2, "CAP_PROP_FRAME_COUNT", cv2.CAP_PROP_FRAME_WIDTH
    )  # announces 48 frames
    path = video(tmp_path / "car.mp4", 5)
    assert (
        command(tmp_path / "out", "--visible", path, "--auxiliary", path, "--box", "4,6,10,8") == 0
    )
    assert "car.mp4 announces 48 frames, and 5 can be read" in capsys.readouterr().err


def overwrite(path, text):
    def change(data):
        (data / path).write_text(text)

    return change


def remove(data):
    for path in (data / "b" / "infrared").iterdir():
        path.unlink()


DAMAGE = {
    "no data": ({"data": "none"}, None, "none is not a folder"),
    "no sequences": (
        {"benchmark": "gtot"},
        None,
        "has no gtot sequences; expected folders <sequence>/v and",
    ),
    "unknown sequence": (
        {},
        lambda data: (data / "names.txt").write_text("a\nc\n"),
        "/c is not a folder",
    ),
    "no pictures": ({}, remove, "b/infrared has no pictures"),
    "no picture": (
        {},
        overwrite("b/visible/8.png", "text"),
        "b/visible/8.png cannot be read as a picture",
    ),
    "a later one": (
        {},
        overwrite("a/infrared/10.png", ""),
        "a/infrared/10.png cannot be read as a picture",
    ),
    "other size": (
        {},
        lambda data: cv2.imwrite(str(data / "b/visible/8.png"), np.zeros((4, 5, 3), np.uint8)),
        "b, frame 1: the visible picture has 5×4 pixels, the auxiliary one 33×25",
    ),
    "no truth": (
        {},
        lambda data: (data / "b/init.txt").unlink(),
        "lacks ground truth of sequence 'b'",
    ),
    "bad truth": ({}, overwrite("b/init.txt", "1,2,3"), "b/init.txt, line 1: 3 columns"),
    "empty box": (
        {},
        overwrite("b/init.txt", "1,2,0,4"),
        "b: the box in the first frame is 1,2,0,4; expected",
    ),
    "no box": (
        {},
        overwrite("b/init.txt", "nan,nan,nan,nan\n1,2,3,4"),
        "b: the box in the first frame is nan,nan",
    ),
    "outside": (
        {},
        overwrite("b/init.txt", "40,2,5,5"),
        "b: the box 40,2,5,5 lies outside the first frame of 33×25",
    ),
    "nan box": ({"tracker": "Lost"}, None, "a, frame 2: the tracker's box is [1.0, 2.0, nan, 4.0]"),
    "no dict": (
        {"tracker": "Mute"},
        None,
        "Mute.track returned list; expected a dict with 'target_bbox'",
    ),
    "no tracker": (
        {"tracker": "Idle"},
        None,
        "Idle has no initialize(image, info) and track(image)",
    ),
    "no function": ({"tracker": "missing"}, None, "test_tracking has no function 'missing'"),
    "arguments": (
        {"tracker": "needs_arguments"},
        None,
        "cannot be called without arguments: missing a required",
    ),
    "no fusion point": ({"fusion": "none"}, None, "error: no fusion point was found"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch, damage):
    options, change, message = DAMAGE[damage]
    monkeypatch.chdir(tmp_path)
    data = dataset(tmp_path / "data")
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
    assert message in err and "Traceback" not in err
    assert not list(tmp_path.glob("out/*.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--benchmark", "lasher"],
            "expected --benchmark and --data, or else --visible, --auxiliary and --box",
        ),
        (
            ["--visible", "a", "--auxiliary", "b", "--box", "1,2,3,4", "--data", "x"],
            "expected --benchmark",
        ),
        (["--visible", "a.mp4", "--auxiliary", "b", "--box", "1,2,3,4"], "a.mp4 does not exist"),
        (
            ["--visible", "text.mp4", "--auxiliary", "text.mp4", "--box", "1,2,3,4"],
            "text.mp4 cannot be read as a vid",
        ),
        (
            ["--visible", "v.mp4", "--auxiliary", "v.mp4", "--box=-9,2,3,4"],
            "v: the box -9,2,3,4 lies outside",
        ),
    ],
)
def test_bad_pairs(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    video(tmp_path / "v.mp4")
    assert command("out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_box_must_be_four_numbers(capsys):
    with pytest.raises(SystemExit):
        command("out", "--box", "1,2,3")
    assert "'1,2,3'; expected four numbers x,y,w,h" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["tracker", "video"])
def test_interruption_leaves_nothing_half_written(tmp_path, capsys, monkeypatch, where):
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    arguments = ("--benchmark", "lasher", "--data", data, "--video")
    with monkeypatch.context() as patch:
        if where == "tracker":
            patch.setattr(Follower, "fail_at", 6)  # the second frame of b
        else:
            patch.setattr("gmmt_fusion.evaluation.frames._draw", interrupt)
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


def test_results_of_other_frames_are_refused(tmp_path, capsys):
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    assert command(out, "--benchmark", "lasher", "--data", data) == 0
    (out / "a.txt").write_text("1,2,3,4\n")
    assert command(out, "--benchmark", "lasher", "--data", data) == 2
    assert "a.txt has 1 boxes for 4 frames; delete it" in capsys.readouterr().err
    (out / "tracking.json").unlink()
    assert command(out, "--benchmark", "lasher", "--data", data) == 2
    assert "holds results and no tracking.json" in capsys.readouterr().err


def test_tracker_of_a_file_finds_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside.py").write_text("from test_tracking import Follower as build\n")
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


def test_a_tracker_that_fails_is_named_with_its_frame(tmp_path):
    class Failing(Follower):
        def track(self, image):
            raise KeyError("score")

    sequence = open_sequence(dataset(tmp_path, "lasher", count=3) / "a", "lasher")
    with pytest.raises(RuntimeError, match="a, frame 2: Failing failed") as raised:
        run(Failing(), sequence)
    assert isinstance(raised.value.__cause__, KeyError)
