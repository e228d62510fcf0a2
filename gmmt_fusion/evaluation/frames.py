"""Where frames come from: a folder of images or a video file.

Frames are (H, W, 3) uint8 in RGB order, read one at a time.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .images import import_opencv, read_depth, read_image
from .pairing import order_without_gaps, pair_names, pair_times
from .text_files import list_folder

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
RATE = 25.0  # frames/s of the videos made of images, which do not say theirs


class Images:
    """The images of a folder, in the order of the numbers in their names.

    Attributes:
        found: the files. paths: one for each frame, None where it is missing.

    Args:
        folder: everything in it that ends in one of `SUFFIXES` is an image.
        depth: show them as colour maps of depths in millimetres; see `colour_map`.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """

    rate = RATE

    def __init__(self, folder: Path, depth: bool = False) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder of images")
        paths = [path for path in list_folder(folder) if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise FileNotFoundError(f"{folder} has no images; expected {', '.join(SUFFIXES)}")
        # by number: not all data sets pad their numbers
        self.found = sorted(
            paths, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name)
        )
        self.paths: list[Path | None] = [*self.found]
        self.folder, self.depth = folder, depth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self.paths[index]
        if path is None:
            raise ValueError(f"{self.folder} has no image of frame {index + 1}")
        image = colour_map(read_depth(path)) if self.depth else read_image(path)
        return np.ascontiguousarray(image[..., ::-1])

    def __iter__(self) -> Iterator[np.ndarray | None]:
        return (None if path is None else self[index] for index, path in enumerate(self.paths))

    def select(self, indices: Sequence[int | None]) -> Images:
        """The images at these places; None is where one is missing."""
        chosen = copy.copy(self)
        chosen.paths = [None if index is None else self.paths[index] for index in indices]
        return chosen


class Video:
    """The frames of a video file; as many as can be read, with a warning where it announces more.

    Attributes:
        times: (N,), seconds since the first frame.

    Raises:
        OSError: the file is no video, or no frame of it can be read. ValueError: it holds more than
        8 bits of one channel, which OpenCV would cut to 8.
    """

    depth = False

    def __init__(self, path: Path) -> None:
        self.path, cv2 = path, import_opencv()
        times = []
        with _open_capture(path) as capture:
            announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            rate = float(capture.get(cv2.CAP_PROP_FPS))
            _check_pixels(path, int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)))
            while capture.grab():  # what the header says is often wrong by a few frames
                times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        if not times:
            raise OSError(f"{path} has no frame that can be read")
        self.rate = rate if np.isfinite(rate) and rate > 0 else RATE
        self.times = np.array(times) - times[0]
        if not (np.diff(self.times) > 0).all():  # also where they are NaN
            self.times = np.arange(len(times)) / self.rate
        self.indices: Sequence[int | None] = range(len(times))
        if len(times) < announced:
            warnings.warn(
                f"{path} announces {int(announced)} frames, and {len(times)} can be read",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray | None]:
        with _open_capture(self.path) as capture:
            at = -1
            for index in self.indices:
                if index is None:
                    yield None
                    continue
                while at < index:
                    at += 1
                    if not capture.grab():
                        raise OSError(f"{self.path}, frame {at + 1} cannot be read")
                read, frame = capture.retrieve()
                if not read:
                    raise OSError(f"{self.path}, frame {at + 1} cannot be read")
                yield np.ascontiguousarray(frame[..., ::-1])

    def select(self, indices: Sequence[int | None]) -> Video:
        """The frames at these places, in order; None is where one is missing."""
        chosen = copy.copy(self)
        chosen.indices = [None if index is None else self.indices[index] for index in indices]
        chosen.times = np.array([np.nan if i is None else self.times[i] for i in indices])
        return chosen


def align(
    visible: Images | Video, auxiliary: Images | Video
) -> tuple[Images | Video, Images | Video, list[str]]:
    """Both streams with equally many frames, each a pair, and notes on what was done.

    Images are paired by the numbers in their names, videos by time where they do not run in step.
    An image that one folder lacks in between is missing there; see `missing`.
    Recordings often lack a modality's last frame: the one before it stands in. Where only more at
    the end are missing, the pairs are as many as the shorter modality has.

    Raises:
        ValueError: a frame has no partner; see `pairing`.
    """
    notes = []
    lengths = [len(visible), len(auxiliary)]
    orders: list[Sequence[int | None]] = [range(length) for length in lengths]
    if isinstance(visible, Images) and isinstance(auxiliary, Images):
        *orders, offset = pair_names(visible.found, auxiliary.found)
        for order, stream in zip(orders, (visible, auxiliary), strict=True):
            if lacks := [number for number, index in enumerate(order, 1) if index is None]:
                notes.append(
                    f"lacks {len(lacks)} of {len(order)} images in {stream.folder.name}, the first "
                    f"is that of frame {lacks[0]}; they are fed as missing"
                )
        lengths = [len(order) for order in orders]
        if offset:
            notes.append(
                f"has numbers with an offset: visible image n is paired with auxiliary image n "
                f"{'+' if offset > 0 else '-'} {abs(offset)}"
            )
    elif isinstance(visible, Video) and isinstance(auxiliary, Video):
        nearest = pair_times(visible.times, auxiliary.times)
        if nearest is not None:
            notes.append(
                f"has {lengths[0]} visible frames at {visible.rate:g}/s and {lengths[1]} auxiliary "
                f"ones at {auxiliary.rate:g}/s; paired by time, the first {len(nearest)} visible "
                "ones each with the auxiliary one that is nearest"
            )
            return visible.select(range(len(nearest))), auxiliary.select(nearest), notes
    else:
        orders = [
            order_without_gaps(stream.found) if isinstance(stream, Images) else range(len(stream))
            for stream in (visible, auxiliary)
        ]
    shorter, longer = sorted(lengths)
    length = longer if longer - shorter == 1 else shorter
    if shorter < longer:
        cut = length == shorter
        treatment = "cut to the first" if cut else "the last stands in for the missing one of"
        notes.append(
            f"has {lengths[0]} visible and {lengths[1]} auxiliary frames; {treatment} {length}"
        )
    chosen = [[*order, order[-1]][:length] for order in orders]
    return visible.select(chosen[0]), auxiliary.select(chosen[1]), notes


def colour_map(depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, BGR, of depths (H, W) in millimetres, cut to 10 m or three medians.

    As trackers of RGB and depth are trained: ViPT's `get_rgbd_frame(…, "rgbcolormap",
    depth_clip=True)`.
    """
    cv2 = import_opencv()
    depth = np.minimum(depth, min(np.median(depth) * 3, 10000)).astype(depth.dtype)
    scaled = cv2.normalize(depth, None, alpha=0, beta=255, norm_type=cv2.NORM_MINMAX)
    return np.asarray(cv2.applyColorMap(np.asarray(scaled, dtype=np.uint8), cv2.COLORMAP_JET))


@contextlib.contextmanager
def openable(path: Path) -> Iterator[str]:
    """A name of a file, there or not, with which OpenCV neither crashes nor takes it for a URL."""
    name = str(path.absolute())
    if name.isascii() and "%" not in name:
        yield name
        return
    suffix = path.suffix if path.suffix.isascii() and "%" not in path.suffix else ""
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, f"video{suffix}")
        os.symlink(path.absolute(), link)
        yield link


@contextlib.contextmanager
def _open_capture(path: Path) -> Iterator[Any]:  # OpenCV's
    with openable(path) as name:
        capture = import_opencv().VideoCapture(name)
    try:
        if not capture.isOpened():
            raise OSError(f"{path} cannot be read as a video")
        yield capture
    finally:
        capture.release()


def _check_pixels(path: Path, tag: int) -> None:
    """Refuse grey pixels of more than 8 bits, of which OpenCV would keep 8; warn of colours.

    FFmpeg's tags of those formats are a letter, their planes, and a byte of the bits.
    """
    code = tag.to_bytes(4, "little") if 0 <= tag < 1 << 32 else b""
    if code[-1:] == b"Y":  # big-endian
        code = code[::-1]
    if code[:1] != b"Y" or not 8 < code[3] <= 16:
        return
    text = f"{path} holds pixels of {code[3]} bits, of which OpenCV keeps 8"
    if code[1:2] == b"1":
        raise ValueError(
            f"{text}; export the frames as images of 8 bits, or of 16 with --depth if they are "
            "millimetres"
        )
    warnings.warn(text, stacklevel=4)
