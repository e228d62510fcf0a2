"""What trackers write: boxes in every notation, prefixed files, and the VOT toolkit's."""

import struct

import numpy as np
import pytest
from boxes import NAN, write_boxes

from gmmt_fusion.evaluation.box_files import read_boxes
from gmmt_fusion.evaluation.layouts import read_image_sizes
from gmmt_fusion.evaluation.result_files import read_results

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
    np.testing.assert_array_equal(read_boxes(path, **options), expected)


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
        read_boxes(path, **options)


@pytest.mark.parametrize("names", [("a", "ba"), ("T_a", "T_ba"), ("x_1_a", "x_1_ba")])
def test_result_files_may_share_a_prefix(tmp_path, names):
    for number, name in enumerate((*names, "ba_time")):
        write_boxes(tmp_path / f"{name}.txt", [[number, 0, 1, 1]])
    boxes, confidences = read_results(tmp_path, "lasher", ["a", "ba"])
    assert [boxes[name][0, 0] for name in ("a", "ba")] == [0, 1] and not confidences


@pytest.mark.parametrize("kind", ["txt", "bin", "column"])
def test_vot_results(tmp_path, kind):
    boxes, confidences = [NAN, [1, 2, 3, 4]], [0.0, 0.75]
    if kind == "column":
        rows = [[*box, score] for box, score in zip(boxes, confidences, strict=True)]
        write_boxes(tmp_path / "a.txt", rows)
    else:
        folder = write_boxes(tmp_path / "a" / "a_001_time.value", [0.1])
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
    read, scores = read_results(tmp_path, "vot-lt", ["a"])
    np.testing.assert_array_equal(read["a"], boxes)
    np.testing.assert_array_equal(scores["a"], confidences)
    if kind == "bin":
        (tmp_path / "a/a_001.bin").write_bytes(data[:-3])
        with pytest.raises(ValueError, match=r"a_001\.bin ends in frame 1"):
            read_results(tmp_path, "vot-lt", ["a"])


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
    write_boxes(tmp_path / "a" / "a_001.txt", [[1, 2, 3, 4]] * 2)
    (tmp_path / file).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path, "vot-lt", ["a"])
        read_image_sizes(tmp_path, ["a"])
