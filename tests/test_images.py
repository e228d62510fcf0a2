"""Files of images and videos as decoders meet them: whole, of 8 bits, with any name; or refused."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from tiny_dataset import make_image, write_clip

from gmmt_fusion.evaluation.frames import Video, _check_pixels, openable
from gmmt_fusion.evaluation.images import read_depth, read_image
from gmmt_fusion.evaluation.sequences import open_pair
from gmmt_fusion.evaluation.videos import round_rate

NOISE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def encode(suffix, image=NOISE, options=()):
    return cv2.imencode(suffix, image, options)[1].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0, 1, 2, 20, 0.3, 0.5, 0.9, -1])
def test_half_a_file_is_named(tmp_path, suffix, kept):
    data = encode(suffix)
    path = tmp_path / f"v000002{suffix}"
    path.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else kept])
    if suffix == ".tif" and kept == -1:
        return  # its last byte may be of a table that nobody needs
    for read in (read_image, read_depth):
        with pytest.raises(OSError, match=rf"v000002\{suffix} cannot be read as an image"):
            read(path)


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)]
)
def test_jpeg_ends_where_its_own_image_does(tmp_path, options):
    path, data = tmp_path / "a.jpg", encode(".jpg", options=options)
    thumbnail = (
        struct.pack(
            ">2sH6s", b"\xff\xe1", 8 + len(small := encode(".jpg", NOISE[:8, :8])), b"Exif\0\0"
        )
        + small
    )
    for whole in (data, data + bytes(100), data[:2] + thumbnail + data[2:]):
        path.write_bytes(whole)
        assert read_image(path).shape == NOISE.shape
    for half in (data[:-2], data[: len(data) // 2] + bytes(len(data) // 2)):
        path.write_bytes(data[:2] + thumbnail + half[2:])
        with pytest.raises(OSError, match=r"a\.jpg cannot be read"):
            read_image(path)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png_of(40000, 40000),
        png_of(2**31 - 1, 2**31 - 1),
        b"BM" + struct.pack("<IIIIii", 100, 0, 54, 40, 50000, -50000) + bytes(40),
        encode(".png").replace(b"IDAT", b"IDAt"),
        encode(".png")[:100] + b"\0\1\2" + encode(".png")[103:],
        b"<html>404</html>",
        b"\xff\xd8\xff",
        b"\xff\xd8" + bytes(50),
    ],
)
def test_damaged_headers_are_named(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(OSError, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png")


def test_grey_alpha_and_deep_images(tmp_path):
    path, grey = tmp_path / "a.png", NOISE[..., 0]
    for stored in (grey, np.dstack([NOISE, grey]), NOISE):
        path.write_bytes(encode(".png", stored))
        colour = np.dstack([grey] * 3) if stored.ndim == 2 else NOISE
        np.testing.assert_array_equal(read_image(path), colour)
    for dtype, suffix in ((np.uint16, ".png"), (np.uint16, ".tif"), (np.float32, ".tif")):
        path = tmp_path / f"deep{suffix}"
        path.write_bytes(encode(suffix, (grey * 100.0).astype(dtype)))
        with pytest.raises(
            ValueError, match=rf"deep\{suffix} has {np.dtype(dtype)} pixels.*8 bits"
        ):
            read_image(path)
        np.testing.assert_array_equal(read_depth(path), (grey * 100.0).astype(dtype))


def test_depths_are_one_channel(tmp_path):
    path, depth = tmp_path / "a.png", make_image(0, depth=True)
    path.write_bytes(encode(".png", np.dstack([depth] * 3)))
    np.testing.assert_array_equal(read_depth(path), depth)
    for image in (np.dstack([depth] * 4), np.dstack([depth, depth, depth + 1])):
        path.write_bytes(encode(".png", image))
        with pytest.raises(ValueError, match=r"a\.png has \d channels that differ"):
            read_depth(path)
    path = tmp_path / "a.tif"
    path.write_bytes(encode(".tif", np.full((4, 4), np.nan, np.float32)))
    with pytest.raises(ValueError, match=r"a\.tif has depths that are not finite"):
        read_depth(path)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a\.png is no file"):
        read_image(tmp_path / "a.png")


NAMES = [b"\xfc.mp4", "ü é.mp4".encode(), b"%03d.mp4", b"file:a.mp4", b"no suffix\xff"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_video(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / os.fsdecode(name)
    write_clip(tmp_path / "plain.mp4", 3).rename(path)
    for given in (path, path.relative_to(tmp_path)):
        sequence = open_pair(given, given, [4, 6, 10, 8])
        assert len(list(sequence)) == 3
    if path.suffix == ".mp4":
        new = path.with_stem(f"new{path.stem}")
        with openable(new) as given:  # to be written
            write_clip(given)
        assert new.is_file()


def test_grey_video_of_16_bits_is_refused(tmp_path):
    path, options = tmp_path / "deep.mkv", [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U]
    options += [cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    codec = cv2.VideoWriter_fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 25.0, (64, 48), options)
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no such video")
    for frame in range(3):
        writer.write(np.full((48, 64), 300 * frame, np.uint16))
    writer.release()
    with pytest.raises(ValueError, match=r"deep\.mkv holds pixels of 16 bits"):
        Video(path)


@pytest.mark.parametrize(
    ("tag", "refused", "told"),
    [
        (b"I420", False, False),
        (b"Y800", False, False),
        (b"BGR\x18", False, False),
        (b"\0\0\0\0", False, False),
        (b"Y3\x0b\x0a", False, True),  # yuv420p10
        (b"Y1\0\x0c", True, False),  # gray12
        (b"\x10\0001Y", True, False),  # gray16, big-endian
    ],
)
def test_bits_of_a_video(tag, refused, told, recwarn):
    try:
        _check_pixels("a.mkv", int.from_bytes(tag, "little"))
        assert not refused
    except ValueError:
        assert refused
    assert bool(list(recwarn)) == told


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (30, 30),
        (23.976, 23.976),
        (66.6667, 66.67),
        (119.8765, 119.88),
        (1000.0004, 1000.0),
        (29.97002997, 29.97),
        (1e6, 65535),
        (1e-5, 0.01),
        (0, 25),
        (-3, 25),
        (float("nan"), 25),
        (float("inf"), 25),
    ],
)
def test_frame_rates_that_mpeg_4_holds(tmp_path, rate, expected):
    assert round_rate(rate) == pytest.approx(expected)
    writer = cv2.VideoWriter(
        str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), round_rate(rate), (64, 48)
    )
    assert writer.isOpened()
    writer.release()
