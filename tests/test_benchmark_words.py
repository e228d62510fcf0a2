"""Each benchmark's own words: for absence, for lengths, for folders, and for confidences."""

import math

import numpy as np
import pytest
import torch
from boxes import BOX, NAN, shifted, write_boxes
from tiny_dataset import write_dataset
from tiny_trackers import Follower

from gmmt_fusion.cli import main
from gmmt_fusion.evaluation.attributes import read_attributes
from gmmt_fusion.evaluation.layouts import find_sequences, guess_layout, read_truth
from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.evaluation.result_files import read_results
from gmmt_fusion.evaluation.scoring import score_folders
from gmmt_fusion.evaluation.sequences import open_sequence
from gmmt_fusion.evaluation.trackers import CONFIDENCE_KEYS, find_confidence

FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xb0\xff\xfe"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(Follower, "images", [])


def score(folder, layout, results, truth, **options):
    """{sequence: rows} of results and {file: rows} of truth, scored through their files."""
    for name, rows in results.items():
        write_boxes(folder / "one" / f"{name}.txt", rows)
    for name, rows in truth.items():
        write_boxes(folder / "truth" / name, rows)
    return score_folders([folder / "one"], folder / "truth", layout, **options)["one"]


@pytest.mark.parametrize("absent", [NAN, [12, 12, 0, 0], [12, 12, -1, -1], [0, 0, 0, 0]])
@pytest.mark.parametrize("layout", ["depthtrack", "rgbd1k", "vot-lt"])
def test_long_term_targets_without_a_size_are_absent(tmp_path, layout, absent):
    results = {"a": [[*BOX, 0.9]] * 10 + [[*BOX, 0.1]] * 10}
    found = score(tmp_path, layout, results, {"a/groundtruth.txt": [BOX] * 10 + [absent] * 10})
    assert found.numbers == pytest.approx({"precision": 90.0, "recall": 90.0, "F": 90.0})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([BOX, NAN, NAN], 100.0),  # the one before, twice
        ([NAN, BOX, BOX], 100.0),  # the first is given
        ([BOX, shifted(90), NAN], 100 / 3),
        ([shifted(90), NAN, BOX], 200 / 3),  # the tracker's own first one is repeated
    ],
)
@pytest.mark.parametrize("layout", ["lasher", "visevent"])
def test_nan_is_the_box_before(tmp_path, layout, rows, expected):
    file = "a/init.txt" if layout == "lasher" else "a/groundtruth.txt"
    found = score(tmp_path, layout, {"a": rows}, {file: [BOX] * 3})
    assert found.numbers["PR"] == pytest.approx(expected)


@pytest.mark.parametrize("layout", ["rgbt234", "gtot"])
def test_nan_is_refused_where_the_kit_has_no_word_for_it(tmp_path, layout):
    files = {"rgbt234": ("visible.txt", "infrared.txt")}
    names = files.get(layout, ("groundTruth_v.txt", "groundTruth_i.txt"))
    with pytest.raises(ValueError, match=r"a\.txt, line 2: 'nan,nan,nan,nan' is no box"):
        score(tmp_path, layout, {"a": [BOX, NAN]}, {f"a/{name}": [BOX] * 2 for name in names})


@pytest.mark.parametrize("where", ["truth/a/init.txt", "one/a.txt"])
def test_codes_are_vot_s_and_not_lasher_s(tmp_path, where):
    write_boxes(tmp_path / "truth/a/init.txt", [BOX] * 5)
    write_boxes(tmp_path / "one/a.txt", [BOX] * 5)
    (tmp_path / where).write_text("1\n" * 5)
    with pytest.raises(ValueError, match=r"line 1: 1 columns; expected 4"):
        score_folders([tmp_path / "one"], tmp_path / "truth", "lasher")


@pytest.mark.parametrize(("lines", "allowed"), [(4, True), (3, False)])
def test_rgbt234_results_may_lack_the_last_frame(tmp_path, lines, allowed):
    truth = {"a/visible.txt": [BOX] * 4 + [shifted(90)], "a/infrared.txt": [BOX] * 5}
    if not allowed:
        with pytest.raises(ValueError, match=r"3 boxes for 5 frames; at most 1 may be missing"):
            score(tmp_path, "rgbt234", {"a": [BOX] * lines}, truth)
        return
    found = score(tmp_path, "rgbt234", {"a": [BOX] * lines}, truth)
    assert found.MPR == 100.0
    assert found.notes == (
        "1 of 1 results are shorter than the ground truth by 1; the frames that both have were "
        "compared: 'a'",
    )


def test_visevent_counts_absent_frames_as_missed_and_starts_with_the_target(tmp_path):
    truth = {"a/groundtruth.txt": [[0] * 4, BOX, BOX, BOX, [-3, 1, 20, 20]]}
    for name, flags in {"a": [0, 1, 1, 0, 1]}.items():
        write_boxes(tmp_path / "truth" / name / "absent_label.txt", flags)
    found = score(tmp_path, "visevent", {"a": [BOX] * 4}, truth)  # as trackers write them
    assert found.numbers == pytest.approx({"PR": 75.0, "SR": 50 * 20 / 21})
    (tmp_path / "truth/a/absent_label.txt").write_text("1\n2\n1\n1\n1\n")
    with pytest.raises(ValueError, match=r"absent_label\.txt, line 2: '2' is no flag"):
        read_truth(tmp_path / "truth", "visevent")
    (tmp_path / "truth/a/absent_label.txt").write_text("1\n1\n")
    with pytest.raises(ValueError, match=r"absent_label\.txt has 2 lines for 5 boxes"):
        read_truth(tmp_path / "truth", "visevent")


def test_visevent_is_tracked_from_its_first_target_on(tmp_path):
    folder = write_dataset(tmp_path, "visevent", names=("a",)) / "a"
    (folder / "absent_label.txt").write_text("0\n1\n1\n0\n")
    with pytest.warns(UserWarning, match="a is tracked from frame 2"):
        sequence = open_sequence(folder, "visevent")
    assert len(sequence) == len(sequence.truth) == 3 and np.isnan(sequence.truth[2]).all()
    assert next(iter(sequence))[0][0, 0, 0] == 101


@pytest.mark.parametrize("rows", [25, 3])
def test_vtuav_is_scored_on_every_tenth_frame(tmp_path, rows):
    boxes = [shifted(90)] * 25
    boxes[0] = boxes[10] = boxes[20] = BOX
    results = {"T_a": boxes if rows == 25 else [BOX] * 3}  # as the kit's, or annotated ones only
    found = score(tmp_path, "vtuav", results, {"a/rgb.txt": [BOX] * 3, "a/ir.txt": [BOX] * 3})
    assert found.MPR == 100.0 and not found.notes


def test_vtuav_is_tracked_in_every_frame(tmp_path, recwarn):
    folder = write_dataset(tmp_path, "vtuav", names=("a",), count=25) / "a"
    for name in ("rgb.txt", "ir.txt"):
        write_boxes(folder / name, [[4, 6, 10, 8]] * 3)
    sequence = open_sequence(folder)
    assert len(sequence) == 25 and not list(recwarn)
    assert np.flatnonzero(~np.isnan(sequence.truth).any(1)).tolist() == [0, 10, 20]


def test_vot_rgbt_is_told_from_vot_depth_and_takes_corners(tmp_path):
    for name, auxiliary, guess in (("a", "ir", "vot-rgbt"), ("b", "depth", "vot-lt")):
        for kind in ("color", auxiliary):
            (tmp_path / name / kind).mkdir(parents=True)
        assert guess_layout(tmp_path / name) == guess
    corners = [10, 10, 30, 10, 30, 30, 10, 30]
    found = score(tmp_path, "vot-rgbt", {"a": [BOX] * 2}, {"a/groundtruth.txt": [corners] * 2})
    assert found.MPR == 100.0


STRAYS = {
    "truth/list.txt": "a\nb\n",
    "truth/testingsetList.txt": "a\nb\n",
    "truth/readme.txt": "Please cite our paper, 2 of 3.\n",
    "truth/._a.txt": FORK,
    "truth/.DS_Store": FORK,
    "truth/Thumbs.db": FORK,
    "truth/__MACOSX/visible/._1.png": FORK,
    "truth/a/._init.txt": FORK,
    "truth/a/visible/._8.png": FORK,
    "truth/a/visible/Thumbs.db": FORK,
    "truth/a/visible/readme.txt": "1",
    "one/._a.txt": FORK,
    "one/.DS_Store": FORK,
    "one/readme.txt": "Results.",
    "flags/._a.txt": FORK,
}


@pytest.mark.parametrize(
    ("stray", "flat"), [*((stray, False) for stray in STRAYS), ("all", False), ("all", True)]
)
def test_what_lies_beside_sequences_is_none(tmp_path, stray, flat):
    write_dataset(tmp_path / "truth")
    for name in ("a", "b"):
        write_boxes(tmp_path / "one" / f"{name}.txt", [BOX] * 4)
        write_boxes(tmp_path / "flags" / f"{name}.txt", [[1, 0]])
        if flat:
            (tmp_path / "truth" / name / "init.txt").unlink()
            write_boxes(tmp_path / "truth" / f"{name}.txt", [[4, 6, 10, 8]] * 4)
    (tmp_path / "flags/Attributes_order.txt").write_text("LI TC")
    for path in STRAYS if stray == "all" else [stray]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        content = STRAYS[path]
        (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    common = ["--benchmark", "lasher"]
    scored = ["--truth", tmp_path / "truth", "--results", tmp_path / "one"]
    scored += ["--attributes", tmp_path / "flags", "--out", tmp_path / "scores"]
    assert main(["evaluate", *common, *map(str, scored)]) == 0
    assert find_sequences(tmp_path / "truth", "lasher") == ["a", "b"]
    assert set(read_attributes(tmp_path / "flags")["LI"]) == {"a", "b"}
    tracked = ["--data", tmp_path / "truth", "--tracker", "tiny_trackers:Follower"]
    assert main(["track", *common, *map(str, tracked), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.txt")) == ["a.txt", "b.txt"]


def test_a_text_without_boxes_is_told_and_a_damaged_one_is_not_left_out(tmp_path):
    write_boxes(tmp_path / "a.txt", [BOX])
    (tmp_path / "b.txt").write_text("<html>404</html>")
    with pytest.warns(UserWarning, match=r"b\.txt has no line that is a box, and is left out"):
        assert list(read_truth(tmp_path, "lasher")) == ["a"]
    for content, words in (("", "empty"), ("x\n1,2,3,4\n", "line 1"), ("1,2,3,4\n1,2\n", "line 2")):
        (tmp_path / "b.txt").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_truth(tmp_path, "lasher")


def test_two_sequences_of_one_name_are_not_one(tmp_path, capsys):
    for folder in ("p", "q"):
        write_dataset(tmp_path / "data" / folder)
    names, out = tmp_path / "names.txt", tmp_path / "out"
    data = ["--benchmark", "lasher", "--sequences", str(names)]
    track = [*data, "--data", str(tmp_path / "data"), "--tracker", "tiny_trackers:Follower"]
    score = [*data, "--truth", str(tmp_path / "data"), "--results", str(out)]
    for text, code in (("p/a\nq/a\n", 2), ("p/a\nq/b\np/a/\n./q/b\n", 0)):
        names.write_text(text)
        assert main(["track", *track, "--out", str(out)]) == code
        err = capsys.readouterr().err
        assert not code or ("p/a and " in err and "q/a have the same name" in err)
    assert sorted(path.name for path in out.glob("*.txt")) == ["a.txt", "b.txt"]
    names.write_text("p/a\nq/b\n")  # and what is tracked by these names is scored by them
    assert main(["evaluate", *score, "--out", str(tmp_path / "scores")]) == 0
    with pytest.raises(ValueError, match="p/a and q/a have the same name"):
        read_results(out, "lasher", ["p/a", "q/a"])


@pytest.mark.parametrize("key", CONFIDENCE_KEYS)
@pytest.mark.parametrize("value", [0.5, torch.tensor([0.5]), np.array([[0.5]]), np.float32(0.5)])
def test_confidences_under_usual_names(key, value):
    assert find_confidence({"target_bbox": BOX, key: value}) == 0.5


@pytest.mark.parametrize("value", [None, "high", torch.rand(16, 16), [], object(), {"a": 1}])
def test_what_is_no_confidence(value):
    assert math.isnan(find_confidence({"score": value}))
    assert find_confidence({"score": value, "conf_score": 0.5}) == 0.5


class Silent(Follower):
    """Names its confidence as nobody does."""

    def track(self, image):
        return {"target_bbox": self.box, "prob": 0.5}


@pytest.mark.parametrize(("layout", "told"), [("depthtrack", True), ("lasher", False)])
def test_no_confidence_is_told_once(tmp_path, monkeypatch, capsys, layout, told):
    monkeypatch.setattr("tiny_trackers.Follower", Silent)
    write_dataset(tmp_path / "data", layout)
    arguments = ["--benchmark", layout, "--data", tmp_path / "data", "--out", tmp_path / "out"]
    assert main(["track", "--tracker", "tiny_trackers:Follower", *map(str, arguments)]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "no confidence" in line]
    assert len(notes) == told
    if told:
        words = ("a, frame 2", "target_bbox, prob", "best_score", "conf_score")
        assert all(word in notes[0] for word in words), notes


@pytest.mark.filterwarnings("ignore:.*image size")
def test_arrays_are_scored_as_files_are():
    truth = {"a": np.array([BOX, BOX, [3, 3, 0, 0]])}
    scores = evaluate(
        {"a": np.array([BOX, BOX, NAN])}, truth, "vot-lt", confidences={"a": np.array([0, 1, 1])}
    )
    assert scores.numbers == pytest.approx({"precision": 100.0, "recall": 100.0, "F": 100.0})
