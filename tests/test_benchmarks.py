"""Result files, ground truth folders, and the command that scores them."""

import json
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_metrics import BOX, NAN, shifted, write

from gmmt_fusion.__main__ import main
from gmmt_fusion.evaluation import layouts as benchmarks

CORNERS = "10,20,30,20,30,60,10,60"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("1,2,3,4\n5,6,7,8\n", {}, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("1\t2\t3\t4", {}, [[1, 2, 3, 4]]),
        ("1 2  3 4\r\n", {}, [[1, 2, 3, 4]]),
        ("\ufeff1.5, 2e0, 3, 4,\n\n", {}, [[1.5, 2, 3, 4]]),
        ("1,2,3,5", {"format": "xyxy"}, [[1, 2, 2, 3]]),
        ("3,2,1,5,.5", {"format": "xyxy", "confidence": True}, [[1, 2, 2, 3, 0.5]]),
        (CORNERS, {}, [[10, 20, 20, 40]]),
        ("10,60,30,60,30,20,10,20", {"format": "corners"}, [[10, 20, 20, 40]]),
        ("10.5,20,30,20,30,60.4,10.5,60.4", {"round_corners": True}, [[11, 20, 20, 40]]),
        ("10.5,20,30,20,30,60.4,10.5,60.4", {}, [[10.5, 20, 19.5, 40.4]]),
        ("1.5,2,3,4", {"round_corners": True}, [[1.5, 2, 3, 4]]),
        ("1\n1,2,3,4\nnan,nan,nan,nan", {"nan": True}, [NAN, [1, 2, 3, 4], NAN]),
        (
            "1\n1,2,3,4,0.5\nnan nan nan nan .2",
            {"nan": True, "confidence": True},
            [[*NAN, 0], [1, 2, 3, 4, 0.5], [*NAN, 0.2]],
        ),
    ],
)
def test_read_boxes(tmp_path, text, options, expected):
    path = tmp_path / "boxes.txt"
    path.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(benchmarks.read_boxes(path, **options), expected)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("1,2,3,4\n1,2,3\n", {}, r"boxes\.txt, line 2: 3 columns; expected 4 or 8"),
        ("1,2,3,4\n\n1,2,3,4\n", {}, "line 2: 0 columns"),
        (f"1,2,3,4\n{CORNERS}", {}, "line 2: 8 columns; expected 4"),
        ("1,2,3,4,5", {}, "line 1: 5 columns"),
        (CORNERS, {"format": "xywh"}, "line 1: 8 columns; expected 4"),
        ("1,2,3,4\n1,nan,3,4", {}, "line 2: '1,nan,3,4' is no box"),
        ("nan,nan,nan,nan", {}, "line 1: .* is no box"),
        ("1,2,3,inf", {"nan": True}, "line 1: .* is no box"),
        ("x,y,w,h\n1,2,3,4", {}, "line 1: 'x,y,w,h' is not a row of numbers"),
        ("", {}, r"boxes\.txt is empty"),
        ("1,2,3,4", {"format": "yolo"}, "format 'yolo' is unknown"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, options, message):
    path = tmp_path / "boxes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.read_boxes(path, **options)


@pytest.mark.parametrize(
    ("benchmark", "files", "modalities"),
    [
        (
            "gtot",
            {"a/groundTruth_v.txt": [10, 20, 13, 24], "a/groundTruth_i.txt": [11, 20, 13, 24]},
            2,
        ),
        (
            "rgbt234",
            {
                "a/visible.txt": [10, 20, 3, 4],
                "a/infrared.txt": [11, 20, 2, 4],
                "a/init.txt": [0] * 4,
            },
            2,
        ),
        ("lasher", {"a.txt": [10, 20, 3, 4]}, 1),
        ("lasher", {"a/init.txt": [10, 20, 3, 4], "a/visible.txt": [0] * 4}, 1),
        ("lasher", {"a/visible.txt": [10, 20, 3, 4], "notes/readme.md": [0]}, 1),
        ("rgbd1k", {"a/groundtruth_rect.txt": [10, 20, 3, 4]}, 1),
        ("depthtrack", {"a/groundtruth.txt": [10, 20, 3, 4]}, 1),
        ("vot-lt", {"a/groundtruth.txt": [10, 20, 3, 4]}, 1),
    ],
)
def test_ground_truth_layouts(tmp_path, benchmark, files, modalities):
    for name, row in files.items():
        write(tmp_path / name, [row, row])
    truth = benchmarks.read_truth(tmp_path, benchmark)
    assert list(truth) == ["a"] and len(truth["a"]) == modalities
    np.testing.assert_array_equal(truth["a"][0], [[10, 20, 3, 4]] * 2)
    with pytest.raises(FileNotFoundError, match="sequence 'b'; expected <sequence>/"):
        benchmarks.read_truth(tmp_path, benchmark, ["a", "b"])


@pytest.mark.parametrize("names", [("a", "ba"), ("T_a", "T_ba"), ("x_1_a", "x_1_ba")])
def test_result_files_may_share_a_prefix(tmp_path, names):
    for number, name in enumerate((*names, "ba_time")):
        write(tmp_path / f"{name}.txt", [[number, 0, 1, 1]])
    boxes, confidences = benchmarks.read_results(tmp_path, "lasher", ["a", "ba"])
    assert [boxes[name][0, 0] for name in ("a", "ba")] == [0, 1] and not confidences


@pytest.mark.parametrize("kind", ["txt", "bin", "column"])
def test_vot_results(tmp_path, kind):
    boxes, confidences = [NAN, [1, 2, 3, 4]], [0.0, 0.75]
    if kind == "column":
        write(
            tmp_path / "a.txt",
            [[*box, score] for box, score in zip(boxes, confidences, strict=True)],
        )
    else:
        folder = write(tmp_path / "a" / "a_001_time.value", [0.1])
        (folder / "a_001_confidence.value").write_text("\n0.75\n")
        (folder / "a_001.txt").write_text("1\n1,2,3,4\n")
    if kind == "bin":
        (tmp_path / "a/a_001.txt").unlink()
        data = (
            struct.pack("<hI", 1, 2)
            + struct.pack("<BI", 0, 1)
            + struct.pack("<Bffff", 1, 1, 2, 3, 4)
        )
        (tmp_path / "a/a_001.bin").write_bytes(data)
    read, scores = benchmarks.read_results(tmp_path, "vot-lt", ["a"])
    np.testing.assert_array_equal(read["a"], boxes)
    np.testing.assert_array_equal(scores["a"], confidences)
    if kind == "bin":
        (tmp_path / "a/a_001.bin").write_bytes(data[:-3])
        with pytest.raises(ValueError, match=r"a_001\.bin ends in frame 1"):
            benchmarks.read_results(tmp_path, "vot-lt", ["a"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a/a_001_confidence.value", b"0.5\n", r"a_001_confidence\.value has 1 lines; expected 2"),
        (
            "a/a_001_confidence.value",
            b"\nhigh\n",
            r"a_001_confidence\.value, line 2: 'high' is not a number",
        ),
        (
            "a/a_001_confidence.value",
            b"\xff\xfe\x81",
            r"a_001_confidence\.value is not a text file",
        ),
        (
            "a/sequence",
            b"width=wide\nheight=4",
            r"a/sequence: width and height are \['wide', '4'\]; expected whole",
        ),
    ],
)
def test_bad_vot_files_are_named(tmp_path, file, text, message):
    write(tmp_path / "a" / "a_001.txt", [[1, 2, 3, 4]] * 2)
    (tmp_path / file).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        benchmarks.read_results(tmp_path, "vot-lt", ["a"])
        benchmarks.read_image_sizes(tmp_path, ["a"])


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"flags/a.txt": "1,0", "flags/b.txt": "1,1", "Attributes_order.txt": "LI, TC"}, "flags"),
        (
            {
                "flags/LI.txt": "1\n1\n",
                "flags/TC.txt": "0\n1\n",
                "flags/SequencesName.txt": "a\nb\n",
            },
            "flags",
        ),
        ({"table.txt": "a\t\t0 0 0 1 0 0 0 0\n\nb 0 0 0 1 0 1 0 0\n"}, "table.txt"),
    ],
)
def test_attribute_layouts(tmp_path, files, path):
    (tmp_path / "flags").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    attributes = benchmarks.read_attributes(tmp_path / path)
    assert attributes["LI"] == {"a", "b"} and attributes["TC"] == {"b"}
    name = next(name for name in files if name.startswith(path))
    (tmp_path / name).write_text(files[name].replace("1", "1 1", 1))
    with pytest.raises(ValueError, match=rf"{Path(name).name}.* flags; expected"):
        benchmarks.read_attributes(tmp_path / path)


@pytest.fixture
def lasher_folders(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "truth" / f"{name}.txt", [BOX] * 3)
        write(tmp_path / "one" / f"{name}.txt", [BOX] * 3)
        write(tmp_path / "two" / f"two_{name}.txt", [BOX, BOX, shifted(90), BOX])
    return tmp_path


def command(folder, *trackers, extra=()):
    results = [str(folder / tracker) for tracker in trackers]
    output = ["--out", str(folder / "out")]
    truth = ["--truth", str(folder / "truth")]
    return main(
        ["evaluate", "--benchmark", "lasher", *truth, "--results", *results, *output, *extra]
    )


@pytest.mark.parametrize("plots", [True, False])
def test_command_prints_a_table_and_writes_curves(lasher_folders, capsys, monkeypatch, plots):
    if plots:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write(lasher_folders / "flags" / "a.txt", [[1, 0]])
    write(lasher_folders / "flags" / "b.txt", [[0, 1]])
    (lasher_folders / "flags" / "Attributes_order.txt").write_text("LI, TC")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            command(
                lasher_folders, "one", "two", extra=["--attributes", str(lasher_folders / "flags")]
            )
            == 0
        )
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["tracker", "PR", "NPR", "SR"] in rows and ["one", "100.0", "100.0", "95.2"] in rows
    assert ["two", "66.7", "66.7", "63.5"] in rows and ["LI", "66.7", "66.7", "63.5"] in rows
    assert (
        err.startswith("note: two: 2 of 2 results outrun the ground truth")
        and len(err.splitlines()) == 1
    )
    written = json.loads((lasher_folders / "out/lasher.json").read_text())
    assert written["two"]["numbers"]["PR"] == pytest.approx(200 / 3)
    assert written["two"]["attribute_curves"]["LI"]["SR"]["values"][0] == pytest.approx(200 / 3)
    rows = (lasher_folders / "out/lasher.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 * (51 + 51 + 21) and "two,TC,PR,20,66.6667" in rows
    pictures = {path.name for path in (lasher_folders / "out").glob("*.png")}
    assert pictures == ({"lasher.png", "lasher_LI.png", "lasher_TC.png"} if plots else set())


def test_command_keeps_folders_of_one_name_apart(lasher_folders, capsys):
    (lasher_folders / "more").mkdir()
    (lasher_folders / "one").rename(lasher_folders / "more/two")
    assert command(lasher_folders, "two", "more/two") == 0
    assert str(lasher_folders / "more/two") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: (f / "one/b.txt").unlink(),
            ["one", "lacks the results of 1 of 2 sequences", "'b'"],
        ),
        (
            lambda f: (f / "one/b.txt").write_text("1,2,3,4\n1,2,3\n"),
            ["b.txt", "line 2", "3 columns"],
        ),
        (
            lambda f: (f / "one/b.txt").write_text("1,2,3,4\n1,nan,3,4\n"),
            ["b.txt", "line 2", "nan"],
        ),
        (
            lambda f: (f / "one/b.txt").write_text("1,2,3,4\n"),
            ["one", "'b'", "1 boxes for 3 frames"],
        ),
        (
            lambda f: (f / "one/b.txt").write_bytes(b"\xff\xfe\x00\x81"),
            ["b.txt", "not a text file"],
        ),
        (lambda f: [path.unlink() for path in (f / "one").iterdir()], ["one", "has no result"]),
        (
            lambda f: [path.unlink() for path in (f / "truth").iterdir()],
            ["truth", "has no lasher ground truth"],
        ),
        (lambda f: (f / "one").rename(f / "gone"), ["one", "is not a folder"]),
        (lambda f: (f / "truth").rename(f / "gone"), ["truth", "is not a folder"]),
    ],
)
def test_command_ends_bad_input_in_one_sentence(lasher_folders, capsys, spoil, words):
    spoil(lasher_folders)
    assert command(lasher_folders, "one") == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
    assert all(word in err for word in words), err
