"""The command `evaluate`: tables, curves and complaints."""

import json
import sys
import warnings

import pytest
from boxes import BOX, shifted, write_boxes

from gmmt_fusion.cli import main


@pytest.fixture
def lasher_folders(tmp_path):
    for name in ("a", "b"):
        write_boxes(tmp_path / "truth" / f"{name}.txt", [BOX] * 3)
        write_boxes(tmp_path / "one" / f"{name}.txt", [BOX] * 3)
        write_boxes(tmp_path / "two" / f"two_{name}.txt", [BOX, BOX, shifted(90), BOX])
    return tmp_path


def command(folder, *trackers, extra=()):
    results = [str(folder / tracker) for tracker in trackers]
    output = ["--out", str(folder / "out")]
    truth = ["--truth", str(folder / "truth")]
    return main(
        ["evaluate", "--benchmark", "lasher", *truth, "--results", *results, *output, *extra]
    )


@pytest.mark.parametrize("plots", [True, False], ids=["with plots", "without matplotlib"])
def test_command_prints_a_table_and_writes_curves(lasher_folders, capsys, monkeypatch, plots):
    if plots:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_boxes(lasher_folders / "flags" / "a.txt", [[1, 0]])
    write_boxes(lasher_folders / "flags" / "b.txt", [[0, 1]])
    (lasher_folders / "flags" / "Attributes_order.txt").write_text("LI, TC")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes = ["--attributes", str(lasher_folders / "flags")]
        assert command(lasher_folders, "one", "two", extra=attributes) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["tracker", "PR", "NPR", "SR"] in rows and ["one", "100.0", "100.0", "95.2"] in rows
    assert "LI, low illumination; TC, thermal crossover" in out
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
    images = {path.name for path in (lasher_folders / "out").glob("*.png")}
    assert images == ({"lasher.png", "lasher_LI.png", "lasher_TC.png"} if plots else set())


def test_command_keeps_folders_of_one_name_apart(lasher_folders, capsys):
    (lasher_folders / "more").mkdir()
    (lasher_folders / "one").rename(lasher_folders / "more/two")
    assert command(lasher_folders, "two", "more/two") == 0
    assert str(lasher_folders / "more/two") in capsys.readouterr().out


def remove_files(folder):
    for path in folder.iterdir():
        path.unlink()


SPOILED = {
    "a sequence without results": (
        lambda root: (root / "one/b.txt").unlink(),
        ["one", "1 of 2 sequences", "'b'"],
    ),
    "a line of three numbers": (
        lambda root: (root / "one/b.txt").write_text("1,2,3,4\n1,2,3\n"),
        ["b.txt", "line 2", "3 columns"],
    ),
    "a line with NaN": (
        lambda root: (root / "one/b.txt").write_text("1,2,3,4\n1,nan,3,4\n"),
        ["b.txt", "line 2", "nan"],
    ),
    "too few lines": (
        lambda root: (root / "one/b.txt").write_text("1,2,3,4\n"),
        ["one", "'b'", "1 boxes", "3 frames"],
    ),
    "no text": (
        lambda root: (root / "one/b.txt").write_bytes(b"\xff\xfe\x00\x81"),
        ["b.txt", "not a text file"],
    ),
    "no results": (lambda root: remove_files(root / "one"), ["one", "no result"]),
    "no ground truth": (
        lambda root: remove_files(root / "truth"),
        ["truth", "no lasher ground truth"],
    ),
    "no folder of results": (
        lambda root: (root / "one").rename(root / "gone"),
        ["one", "not a folder"],
    ),
    "no folder of ground truth": (
        lambda root: (root / "truth").rename(root / "gone"),
        ["truth", "not a folder"],
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_command_ends_bad_input_in_one_sentence(lasher_folders, capsys, case):
    spoil, words = SPOILED[case]
    spoil(lasher_folders)
    assert command(lasher_folders, "one") == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize("protocol", ["rgbd1k", "depthtrack", "vot-lt"])
def test_layouts_of_one_protocol_are_scored_by_it(tmp_path, protocol):
    write_boxes(tmp_path / "truth" / "a" / "groundtruth.txt", [BOX] * 3)
    write_boxes(tmp_path / "one" / "a.txt", [[*BOX, confidence] for confidence in (0, 1, 0.5)])
    results = ["--results", str(tmp_path / "one"), "--out", str(tmp_path / "out")]
    truth = ["--truth", str(tmp_path / "truth")]
    assert main(["evaluate", "--benchmark", protocol, *truth, *results]) == 0
    written = json.loads((tmp_path / "out" / f"{protocol}.json").read_text())["one"]
    assert written["protocol"] == "vot-lt"
    expected = {"precision": 100.0, "recall": 200 / 3, "F": 80.0}
    assert written["numbers"] == pytest.approx(expected)
