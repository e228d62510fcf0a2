"""Frames of one moment: by the numbers in names, by time, with an offset, or refused by name."""

import cv2
import numpy as np
import pytest
from tiny_dataset import write_dataset

from gmmt_fusion.evaluation.layouts import LAYOUTS
from gmmt_fusion.evaluation.pairing import pair_names, pair_times
from gmmt_fusion.evaluation.sequences import open_pair, open_sequence

TEN = range(1, 11)


def pair(folder, visible, auxiliary):
    streams = [[folder / name for name in names] for names in (visible, auxiliary)]
    first, second, offset = pair_names(*streams)
    found = zip(first, second, strict=False)
    return [(streams[0][i].name, streams[1][j].name) for i, j in found], offset


@pytest.mark.parametrize(
    ("visible", "auxiliary", "offset"),
    [
        ([f"{n:05d}v.jpg" for n in TEN], [f"{n:05d}i.jpg" for n in TEN], 0),  # GTOT, RGBT234
        ([f"v{n:06d}.jpg" for n in TEN], [f"i{n:06d}.jpg" for n in TEN], 0),  # LasHeR
        ([f"{n:08d}.jpg" for n in TEN], [f"{n:08d}.png" for n in TEN], 0),  # DepthTrack
        ([f"visible_{n - 1:04d}.png" for n in TEN], [f"img-{n}.bmp" for n in TEN], 1),
        ([f"{n + 100}.png" for n in TEN], [f"{n}.png" for n in TEN], -100),
        # clocks that differ, before or after the number of the frame
        ([f"r-{n * 33}-{n}.png" for n in TEN], [f"d-{n * 33 + 9}-{n}.png" for n in TEN], 0),
        ([f"{n}_{n * 33}.png" for n in TEN], [f"{n}_{n * 35}.png" for n in TEN], 0),
        # numbers that are the same for all, and not the frame's
        ([f"cam2_{n}_rgb8.png" for n in TEN], [f"cam7_{n}_t16_x2.png" for n in TEN], 0),
        (["12_59.png", "13_00.png"], ["12_59.png", "13_00.png"], 0),  # minutes and seconds
        ([f"{n}.png" for n in range(0, 50, 5)], [f"{n}.png" for n in range(0, 50, 5)], 0),
        ([f"{n}.png" for n in TEN], [f"{n}.png" for n in range(1, 10)], 0),  # lacks the last
        ([f"{n}.png" for n in range(9)], [f"{n + 50}.png" for n in range(8)], 50),
        (["a.png", "b.png"], ["a.bmp", "b.bmp"], 0),
        (["a.png"], ["b.png"], 0),
    ],
)
def test_by_number(tmp_path, visible, auxiliary, offset):
    shorter = min(len(visible), len(auxiliary))
    expected = list(zip(visible[:shorter], auxiliary[:shorter], strict=True))
    assert pair(tmp_path, visible, auxiliary) == (expected, offset)
    backwards = pair(tmp_path, visible[::-1], auxiliary)
    assert backwards == (expected, offset)


@pytest.mark.parametrize(
    ("visible", "auxiliary", "words"),
    [
        (range(0, 25, 5), range(25), ["/1.png", "number 1"]),
        (range(0, 25, 5), range(5), ["/1.png", "number 1"]),
        (TEN, range(2, 11), ["/1.png", "number 1"]),  # lacks the first; or another offset
        ([1, 1.5, 2], [1, 2, 3], ["no partner"]),
        (["1", "01"], ["1", "2"], ["01.png and 1.png", "same number 1"]),
        (["1", "2"], ["2", "02"], ["02.png and 2.png", "same number 2"]),
        (["a", "b"], ["a", "c"], ["b.png cannot be paired", "no number"]),
    ],
)
def test_what_cannot_be_paired_is_named(tmp_path, visible, auxiliary, words):
    with pytest.raises(ValueError) as raised:
        pair(tmp_path, [f"{n}.png" for n in visible], [f"{n}.png" for n in auxiliary])
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("visible", "auxiliary", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 4], [(1, 1), (2, 2), (3, None), (4, 4)]),
        ([1, 2, 4], [1, 3, 4], [(1, 1), (2, None), (None, 3), (4, 4)]),
        ([0, 5, 10, 15], [0, 5, 15], [(0, 0), (5, 5), (10, None), (15, 15)]),
        ([1, 2, 3, 4, 5], [1, 2, 4], [(1, 1), (2, 2), (3, None), (4, 4), (5, None)]),
        ([1, 2], [1, 2, 3, 4], [(1, 1), (2, 2)]),  # ends before: cut as recordings are
    ],
)
def test_what_a_folder_lacks_in_between_is_missing(tmp_path, visible, auxiliary, expected):
    streams = [[tmp_path / f"{n:03d}.png" for n in stream] for stream in (visible, auxiliary)]
    first, second, offset = pair_names(*streams)
    numbers = (visible, auxiliary)
    found = [
        tuple(None if i is None else of[i] for i, of in zip(pair, numbers, strict=True))
        for pair in zip(first, second, strict=False)
    ]
    assert found == expected and offset == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_refuses_a_hole_under_an_offset_and_tells_of_it(tmp_path, layout):
    folder = write_dataset(tmp_path, layout, names=("a",)) / "a"
    images = folder / LAYOUTS[layout].images[1]
    for path in sorted(images.iterdir(), reverse=True):
        path.rename(path.with_name(f"x{int(path.stem) + 200}.png"))
    with pytest.warns(UserWarning, match=r"visible image n is paired with auxiliary image n \+ 20"):
        assert len(open_sequence(folder, layout)) == 4
    (images / "x209.png").unlink()
    with pytest.raises(ValueError, match=r"a: .*has no partner"):
        open_sequence(folder, layout)


def write_video(path, rate, count, codec="mp4v"):
    """A video whose frames show when they were: 200 · t, in seconds."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (64, 48))
    for frame in range(count):
        writer.write(np.full((48, 64, 3), round(200 * frame / rate), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("rates", "counts", "length", "note"),
    [
        ((30, 30), (30, 30), 30, None),
        ((30, 29.97), (30, 30), 30, None),
        ((30, 10), (30, 10), 30, "30/s and 10 auxiliary ones at 10/s; paired by time"),
        ((10, 30), (10, 30), 10, "paired by time"),
        ((30, 25), (30, 25), 30, "paired by time"),
        ((25, 30), (20, 30), 20, "paired by time"),
        ((30, 9), (30, 5), 16, "the first 16 visible"),  # 4/9 s, and what the last stands for
        ((30, 30), (30, 20), 20, "cut to the first 20"),
        ((30, 30), (30, 29), 30, "the last stands in"),
    ],
)
@pytest.mark.parametrize("codec", ["mp4v", "MJPG"])
def test_videos_by_time(tmp_path, recwarn, rates, counts, length, note, codec):
    suffix = "mp4" if codec == "mp4v" else "avi"
    videos = [
        write_video(tmp_path / f"{i}.{suffix}", *given, codec)
        for i, given in enumerate(zip(rates, counts, strict=True))
    ]
    sequence = open_pair(*videos, [4, 4, 10, 10])
    assert len(sequence) == length
    shown = [[image[0, 0, 0] / 200 for image in frames] for frames in sequence]
    apart = np.abs(np.diff(shown)).max()
    assert apart <= (2 / 30 if note == "the last stands in" else 0.75 / min(rates) + 0.03)
    texts = [str(warning.message) for warning in recwarn]
    assert (note is None and not texts) or (len(texts) == 1 and note in texts[0]), texts


def test_a_video_that_drops_frames_is_refused():
    steady = np.arange(30) / 30
    assert pair_times(steady, steady + 0.005) is None  # jitter
    with pytest.raises(ValueError, match=r"visible frame 11, at 0\.333 s, has no partner"):
        pair_times(steady, np.delete(steady, [10, 11]))
    with pytest.raises(ValueError, match="no partner"):
        pair_times(np.delete(steady, 5)[:20], np.delete(steady, [10, 11])[:20])


def test_images_beside_a_video_need_numbers_without_gaps(tmp_path):
    video, images = write_video(tmp_path / "v.mp4", 30, 5), tmp_path / "i"
    images.mkdir()
    for number in (7, 8, 9, 10, 11):
        cv2.imwrite(str(images / f"{number}.png"), np.zeros((48, 64, 3), np.uint8))
    assert len(open_pair(video, images, [4, 4, 10, 10])) == 5
    (images / "9.png").unlink()
    with pytest.raises(ValueError, match="after number 8 there is a gap"):
        open_pair(video, images, [4, 4, 10, 10])
