"""Bad input of any kind, a second writer, and disks that are full: one sentence, and code 2."""

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from boxes import BOX, write_boxes
from tiny_dataset import write_dataset
from tiny_trackers import Follower

import gmmt_fusion
from gmmt_fusion.cli import main
from gmmt_fusion.evaluation.attributes import read_attributes
from gmmt_fusion.evaluation.layouts import LAYOUTS
from gmmt_fusion.evaluation.scoring import score_folders
from gmmt_fusion.evaluation.sequences import open_sequence
from gmmt_fusion.evaluation.trackers import load_tracker
from gmmt_fusion.evaluation.tracking import track_folder


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(Follower, "images", [])


def track(data, out, *more, tracker="tiny_trackers:Follower"):
    arguments = ["--benchmark", "lasher", "--data", str(data), "--out", str(out)]
    return main(["track", "--tracker", tracker, *arguments, *map(str, more)])


def complaint(capsys):
    lines = [
        line
        for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
        if line.startswith("error: ") or "Traceback" in line
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def replace(path, content):
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(content)


def become_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


DAMAGE = {
    **{
        f"settings {content[:9]!r}": (lambda out, c=content: replace(out / "tracking.json", c), [])
        for content in (b"5", b"null", b"[1]", b'"x"', b"", b"\xff\xfe\0", b"[" * 10**5, b'{"a":')
    },
    "settings are a folder": (lambda out: become_folder(out / "tracking.json"), []),
    "times are a folder": (lambda out: become_folder(out / "times.csv"), []),
    "videos are a file": (lambda out: (out / "videos").touch(), ["--video"]),
    "a result is binary": (lambda out: replace(out / "a.txt", b"\xff\0\x81"), []),
    "a result is empty": (lambda out: replace(out / "a.txt", b""), []),
    "a result is NaN": (lambda out: replace(out / "a.txt", b"nan,nan,nan,nan\n" * 4), []),
    "a result is text": (lambda out: replace(out / "a.txt", b"a\n" * 4), []),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_named(tmp_path, capsys, damage):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    assert track(data, out) == 0
    change, more = DAMAGE[damage]
    change(out)
    capsys.readouterr()
    assert track(data, out, *more) == 2
    assert str(out) in complaint(capsys)


def test_what_does_no_harm(tmp_path, capsys):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    assert track(data, out) == 0
    for name in ("tracking.json", "a.txt"):  # Windows' editors
        (out / name).write_bytes(b"\xef\xbb\xbf" + (out / name).read_bytes())
    (out / "times.csv").write_bytes(b"\xff\0\x81")
    (out / "b.txt").unlink()
    assert track(data, out) == 0
    assert "tracked 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["track", "evaluate", "figures"])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, capsys, command, place):
    (tmp_path / "file").touch()
    data, out = write_dataset(tmp_path / "data"), tmp_path / place
    write_boxes(tmp_path / "one" / "a.txt", [BOX] * 4)
    write_boxes(tmp_path / "one" / "b.txt", [BOX] * 4)
    arguments = ["--benchmark", "lasher", "--out", str(out)]
    if command == "evaluate":
        arguments += ["--truth", str(data), "--results", str(tmp_path / "one")]
    else:
        arguments += ["--data", str(data), "--tracker", "tiny_trackers:Follower"]
    assert main([command, *arguments]) == 2
    assert str(out).removesuffix("/below").removesuffix("/none") in complaint(capsys)
    assert not Follower.images


@pytest.mark.parametrize("box", [None, "far", [1, "a", 2, 3], {}, [[1, 2], [3]], [1, 2, 3]])
def test_what_is_no_box_is_shown(tmp_path, capsys, monkeypatch, box):
    monkeypatch.setattr(Follower, "track", lambda self, image: {"target_bbox": box})
    assert track(write_dataset(tmp_path / "data"), tmp_path / "out") == 2
    assert "a, frame 2: the tracker's box is" in complaint(capsys)


@pytest.mark.parametrize("seed", ["-1", str(2**70)])
def test_seeds_that_no_generator_takes(tmp_path, capsys, seed):
    arguments = ["--tracker", "tiny_trackers:Follower", "--benchmark", "lasher", "--seed", seed]
    assert main(["figures", *arguments, "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert f"--seed={seed} is out of range" in complaint(capsys)


def in_child(function):
    """The exit code and stderr of a function in a forked process, whose limits are its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            sys.stderr = os.fdopen(writing, "w")
            code = function()
            sys.stderr.flush()
            os._exit(code)
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.parametrize(
    ("limit", "left"),
    [(60, []), (900, ["a.txt", "times.csv", "tracking.json"])],  # of the settings, of a video
)
def test_a_full_disk_leaves_no_half_file(tmp_path, limit, left):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return track(data, out, "--video")

    code, err = in_child(work)
    assert code == 2 and "error: " in err and str(out) in err and "Traceback" not in err, err
    found = sorted(path.name for path in out.rglob("[!.]*") if path.is_file())
    assert found == left
    assert track(data, out, "--video") == 0 and (out / "videos" / "a.mp4").is_file()


HOLD = """
import sys
from pathlib import Path
from gmmt_fusion.files import own_folder
with own_folder(Path(sys.argv[1]), "tracks"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused(tmp_path, capsys):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    root = Path(gmmt_fusion.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", HOLD, out], cwd=root, text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        assert track(data, out) == 2
        other.kill()  # and what is killed owns nothing
    assert f"another process tracks in {out}" in complaint(capsys)
    assert not list(out.glob("*.txt")) and not Follower.images
    assert track(data, out) == 0


def test_a_tracker_that_diverges_is_drawn_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(Follower, "track", lambda self, image: {"target_bbox": [-1e30, 1, 1e30, 2]})
    data = write_dataset(tmp_path / "data")
    for _ in range(2):  # what is written can be read
        assert track(data, tmp_path / "out", "--video") == 0


def test_two_sequences_of_one_name_are_refused(tmp_path):
    data = write_dataset(tmp_path)
    sequences = [open_sequence(data / "a"), open_sequence(data / "a")]
    with pytest.raises(ValueError, match="the first is 'a'"):
        track_folder(Follower(), sequences, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_utf_8(tmp_path, capsys):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9p\xf4t"))
    write_dataset(tmp_path / "plain" / "data").parent.rename(root)  # OpenCV itself crashes there
    data, out = root / "data", root / "out"
    os.rename(data / "a", data / os.fsdecode(b"\xfc"))
    assert track(data, out, "--video") == 0
    assert sorted(os.listdir(os.fsencode(out / "videos"))) == [b"b.mp4", b"\xfc.mp4"]
    assert b"\xfc,4," in (out / "times.csv").read_bytes()
    arguments = ["--truth", data, "--results", out, "--out", root / "scores"]
    assert main(["evaluate", "--benchmark", "lasher", *map(str, arguments)]) == 0
    assert "udce9" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_tracker_s_own_exception_keeps_its_traceback(tmp_path, kind):
    code = f"def build():\n    raise {kind.__name__}('inside')\n"
    (tmp_path / "broken_tracker.py").write_text(code)
    spec = f"{tmp_path}/broken_tracker.py:build"
    with pytest.raises(RuntimeError, match="build failed") as raised:
        track(write_dataset(tmp_path / "data"), tmp_path / "out", tracker=spec)
    assert isinstance(raised.value.__cause__, kind)
    (tmp_path / "broken_tracker.py").write_text("def build():\n    open('weights.pth')\n")
    with pytest.raises(OSError, match=r"weights\.pth"):  # says what it lacks: one sentence
        load_tracker(spec)


def mutate(data, generator):
    """A few random edits of bytes, of the kinds that damaged files show."""
    data = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randint(0, len(data))
        kind = generator.randrange(5)
        if kind == 0:
            data[at : at + generator.randint(1, 8)] = b""
        elif kind == 1:
            data[at:at] = bytes(generator.randrange(256) for _ in range(generator.randint(1, 4)))
        elif kind == 2:
            words = (b"nan", b"inf", b"1e308", b"-1", b",", b"\n", b"_", b"\xef\xbb\xbf", b"\0" * 8)
            data[at:at] = generator.choice(words)
        elif kind == 3 and data:
            data[at % len(data)] ^= 1 << generator.randrange(8)
        else:
            del data[at:]
    return bytes(data)


def write_originals(root, layout):
    """Folders of truth and results of every kind; those of their files that are then damaged."""
    known = LAYOUTS[layout]
    row = [10, 10, 30, 30] if known.truth_format == "xyxy" else BOX
    for names in known.truth:
        write_boxes(root / "truth/a" / names[0], [row] * 3)
    files = [root / "truth/a" / known.truth[0][0], root / "one/a.txt", root / "flags/a.txt"]
    write_boxes(files[1], [BOX] * 3)
    write_boxes(files[2], [[1, 0]])
    (root / "flags/Attributes_order.txt").write_text("LI TC")
    if known.presence:
        write_boxes(root / "truth/a" / known.presence, [1, 0, 1])
        files.append(root / "truth/a" / known.presence)
    if known.long_term:
        (root / "truth/a/sequence").write_text("width=90\nheight=90\n")
        (root / "one/a").mkdir()
        files += [root / "truth/a/sequence", root / "one/a/a_001.bin"]
        box = struct.pack("<Bffff", 1, *BOX)
        files[-1].write_bytes(struct.pack("<hI", 1, 3) + box * 2 + struct.pack("<BI", 0, 1))
        files.append(root / "one/a/a_001_confidence.value")
        write_boxes(files[-1], [0, 0.5, 1])
    return files


@pytest.mark.parametrize("layout", ["lasher", "gtot", "depthtrack", "visevent", "vtuav"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_mutated_files_are_scored_or_named(tmp_path, layout):
    """100 of each layout; ten minutes of a coverage-guided fuzzer found no other kind of error."""
    generator, started = random.Random(layout), time.monotonic()
    files = write_originals(tmp_path, layout)
    outcomes = set()
    for _ in range(100):
        path = generator.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutate(whole, generator))
        try:
            scores = score_folders([tmp_path / "one"], tmp_path / "truth", layout)
            read_attributes(tmp_path / "flags")
            assert np.isfinite(list(scores["one"].numbers.values())).all()
            outcomes.add("scored")
        except (ValueError, OSError) as error:
            assert len(str(error).splitlines()) == 1
            outcomes.add("named")
        path.write_bytes(whole)
    assert outcomes == {"scored", "named"} and time.monotonic() - started < 30
