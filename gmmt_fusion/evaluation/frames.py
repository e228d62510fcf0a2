"""Sequences to track: a benchmark's folders, or one's own pair of videos or picture folders.

Frames are (H, W, 3) uint8 in RGB order, read one at a time; boxes are x, y, w, h in pixels from the
top left.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .layouts import BENCHMARKS, read_truth

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
RATE = 25.0  # frames/s of the videos made of pictures, which do not say theirs
ORANGE, WHITE, BLACK = (
    (0, 94, 213),
    (255, 255, 255),
    (0, 0, 0),
)  # BGR; the first is Okabe and Ito's vermilion


class Pictures:
    """The pictures of a folder in the order of the numbers in their names; `depth` shows them as
    colour maps.
    """

    rate = RATE

    def __init__(self, folder: Path, depth: bool = False) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder of pictures")
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURES and path.name[0] != "."
        ]
        if not paths:
            raise FileNotFoundError(f"{folder} has no pictures; expected {', '.join(PICTURES)}")
        # by number: not all data sets pad their numbers
        self.paths = sorted(
            paths, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name)
        )
        self.depth = depth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        cv2, path = _opencv(), self.paths[index]
        eight_or_more = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # bits: 16 are not silently cut to 8
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED if self.depth else eight_or_more)
        if picture is None:
            raise OSError(f"{path} cannot be read as a picture")
        if picture.dtype != np.uint8 and not self.depth:
            raise ValueError(
                f"{path} has {picture.dtype} pixels; give --depth if they are millimetres, or "
                "convert the "
                "pictures to 8 bits"
            )
        return np.ascontiguousarray((colour_map(picture) if self.depth else picture)[..., ::-1])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


class Video:
    """The frames of a video file."""

    depth = False

    def __init__(self, path: Path) -> None:
        self.path, capture, cv2 = path, _open_video(path), _opencv()
        announced, self.rate = (
            int(capture.get(cv2.CAP_PROP_FRAME_COUNT)),
            capture.get(cv2.CAP_PROP_FPS) or RATE,
        )
        self.length = 0
        while capture.grab():  # what the header says is often wrong by a few frames
            self.length += 1
        capture.release()
        if not self.length:
            raise OSError(f"{path} has no frame that can be read")
        if self.length < announced:
            warnings.warn(
                f"{path} announces {announced} frames, and {self.length} can be read", stacklevel=3
            )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        capture = _open_video(self.path)
        try:
            for number in range(1, self.length + 1):
                read, frame = capture.read()
                if not read:
                    raise OSError(f"{self.path}, frame {number} cannot be read")
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()


@dataclass(frozen=True, eq=False)
class Sequence:
    """Iterates over pairs of frames, visible and auxiliary.

    Recordings often lack a modality's last frame: the one before it stands in. Where more are
    missing, the pairs are as many as the shorter modality has. `box` (4,) is the target's in the
    first frame; `truth` (M, 4) the visible modality's, NaN where it is absent.
    """

    name: str
    visible: Pictures | Video
    auxiliary: Pictures | Video
    box: np.ndarray
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        shorter, longer = sorted((len(self.visible), len(self.auxiliary)))
        return longer if longer - shorter == 1 else shorter

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pairs = itertools.islice(itertools.zip_longest(self.visible, self.auxiliary), len(self))
        last: list[np.ndarray] = []
        for number, pair in enumerate(pairs, 1):
            visible, auxiliary = last = [
                last[i] if frame is None else frame for i, frame in enumerate(pair)
            ]
            if visible.shape != auxiliary.shape:
                (h, w), (other_h, other_w) = visible.shape[:2], auxiliary.shape[:2]
                raise ValueError(
                    f"{self.name}, frame {number}: the visible picture has {w}×{h} pixels, the "
                    "auxiliary one "
                    f"{other_w}×{other_h}; align them to one size first"
                )
            yield visible, auxiliary

    def check(self) -> Sequence:
        """The sequence, if its first frames can be read and its box lies in them; else OSError or
        ValueError.
        """
        h, w = next(iter(self))[0].shape[:2]
        x, y, width, height = self.box
        if not (np.isfinite(self.box).all() and min(width, height) > 0):
            raise ValueError(
                f"{self.name}: the box in the first frame is {_show(self.box)}; expected a "
                "positive size"
            )
        if x >= w or y >= h or x + width <= 0 or y + height <= 0:
            raise ValueError(
                f"{self.name}: the box {_show(self.box)} lies outside the first frame of {w}×{h} "
                "pixels"
            )
        if (shorter := min(len(self.visible), len(self.auxiliary))) < max(
            len(self.visible), len(self.auxiliary)
        ):
            warnings.warn(
                f"{self.name} has {len(self.visible)} visible and {len(self.auxiliary)} auxiliary "
                "frames; "
                + (
                    "cut to the first"
                    if len(self) == shorter
                    else "the last stands in for the missing one of"
                )
                + f" {len(self)}",
                stacklevel=3,
            )
        if self.truth is not None and len(self.truth) > len(self):
            warnings.warn(
                f"{self.name} has {len(self.truth)} boxes of ground truth and {len(self)} frames; "
                "its results will be "
                "too short to be scored",
                stacklevel=3,
            )
        return self


def open_sequences(
    folder: str | Path, benchmark: str, names: list[str] | None = None
) -> list[Sequence]:
    """The sequences of a benchmark's folder, all of them or `names`; see `open_sequence`."""
    folder, pictures = Path(folder), BENCHMARKS[benchmark].pictures
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if names is None:
        names = sorted(path.name for path in folder.iterdir() if (path / pictures[0]).is_dir())
    if not names:
        expected = " and ".join(f"<sequence>/{name}" for name in pictures)
        raise FileNotFoundError(
            f"{folder} has no {benchmark} sequences; expected folders {expected}"
        )
    return [open_sequence(folder / name, benchmark) for name in dict.fromkeys(names)]


def open_sequence(folder: str | Path, benchmark: str | None = None) -> Sequence:
    """A sequence's folder in the layout of a benchmark, by default the one whose picture folders it
    has.

    Raises:
        OSError: a folder, a picture or the ground truth is missing or unreadable.
        ValueError: the ground truth is no list of boxes, or its first box is none in the picture.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    if benchmark is None:
        known = {BENCHMARKS[name].pictures[0]: name for name in ("lasher", "gtot", "vot-lt")}
        benchmark = next(
            (name for visible, name in known.items() if (folder / visible).is_dir()), None
        )
        if benchmark is None:
            raise FileNotFoundError(f"{folder} has none of the folders {', '.join(known)}")
    layout = BENCHMARKS[benchmark]
    visible, auxiliary = (folder / name for name in layout.pictures)
    truth = read_truth(folder.parent, benchmark, [folder.name])[folder.name][0]
    return Sequence(
        folder.name, Pictures(visible), Pictures(auxiliary, layout.long_term), truth[0], truth
    ).check()


def open_pair(
    visible: str | Path,
    auxiliary: str | Path,
    box: Any,
    name: str | None = None,
    depth: bool = False,
) -> Sequence:
    """One's own pair of videos or picture folders, aligned, with the target's box in the first
    frame.

    With `depth` the auxiliary pictures are depths in millimetres, shown as colour maps. The name is
    by default that of the visible file or folder.
    """
    first, second = (_source(Path(path)) for path in (visible, auxiliary))
    if depth:
        if not isinstance(second, Pictures):
            raise ValueError(
                f"{auxiliary} is a video, which holds no depths; expected a folder of 16-bit "
                "pictures"
            )
        second.depth = True
    return Sequence(
        name or Path(visible).absolute().stem, first, second, np.array(box, dtype=np.float64)
    ).check()


def colour_map(depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, BGR, of depths (H, W) in millimetres, cut to 10 m or three medians.

    As trackers of RGB and depth are trained: ViPT's `get_rgbd_frame(…, "rgbcolormap",
    depth_clip=True)`.
    """
    cv2 = _opencv()
    depth = np.minimum(depth, min(np.median(depth) * 3, 10000)).astype(depth.dtype)
    scaled = cv2.normalize(depth, None, alpha=0, beta=255, norm_type=cv2.NORM_MINMAX)
    return cv2.applyColorMap(np.asarray(scaled, dtype=np.uint8), cv2.COLORMAP_JET)


def write_video(path: Path, sequence: Sequence, boxes: np.ndarray) -> None:
    """An MPEG-4 video of both modalities side by side: the tracker's boxes (N, 4) solid, the
    truth's thin and white.
    """
    cv2 = _opencv()
    path.parent.mkdir(parents=True, exist_ok=True)
    # not write_atomically: OpenCV tells the kind of file from its suffix
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary, writer = Path(folder, path.name), None
        for index, (pair, box) in enumerate(zip(sequence, boxes, strict=True)):
            pictures = [np.ascontiguousarray(picture[..., ::-1]) for picture in pair]
            for picture in pictures:
                if sequence.truth is not None and index < len(sequence.truth):
                    _draw(picture, sequence.truth[index], BLACK, 3)
                    _draw(picture, sequence.truth[index], WHITE, 1)
                _draw(picture, box, ORANGE, 2)
            canvas = np.concatenate(pictures, 1)
            canvas = canvas[
                : canvas.shape[0] // 2 * 2
            ]  # MPEG-4 wants even sides; two equal widths are even
            for colour, width in ((BLACK, 3), (WHITE, 1)):
                cv2.putText(
                    canvas,
                    str(index + 1),
                    (6, 20),
                    cv2.FONT_HERSHEY_SIMPLEX,
                    0.6,
                    colour,
                    width,
                    cv2.LINE_AA,
                )
            if writer is None:
                size = canvas.shape[1], canvas.shape[0]
                writer = cv2.VideoWriter(
                    str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), sequence.visible.rate, size
                )
                if not writer.isOpened():
                    raise OSError(
                        f"{path}: this OpenCV cannot write MPEG-4 videos; pip install "
                        "opencv-python-headless"
                    )
            writer.write(canvas)
        if writer is not None:
            writer.release()
            os.replace(temporary, path)


def _source(path: Path) -> Pictures | Video:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a video or a folder of pictures")
    return Pictures(path) if path.is_dir() else Video(path)


def _draw(picture: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    if np.isfinite(box).all():
        x, y, right, bottom = (round(float(v)) for v in (*box[:2], *(box[:2] + box[2:])))
        _opencv().rectangle(picture, (x, y), (right, bottom), colour, width, _opencv().LINE_AA)


def _show(box: np.ndarray) -> str:
    return ",".join(f"{value:g}" for value in box)


def _open_video(path: Path) -> Any:
    capture = _opencv().VideoCapture(str(path))
    if not capture.isOpened():
        raise OSError(f"{path} cannot be read as a video")
    return capture


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("tracking needs OpenCV; pip install 'gmmt-fusion[track]'") from error
    return cv2
