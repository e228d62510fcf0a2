"""Sequences to track: a benchmark's folders, or one's own pair of videos or folders of images.

Boxes are x, y, w, h in pixels from the top left.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .frames import Images, Video, align
from .layouts import find_sequences, get_layout, guess_layout, read_start, read_truth
from .missing import fill_missing
from .protocols import PROTOCOLS
from .text_files import check_folder, check_names

Frames = Images | Video | Sequence[np.ndarray | None]


@dataclass(frozen=True, eq=False)
class TrackingSequence:
    """Iterates over pairs of frames, visible and auxiliary, (H, W, 3) uint8 in RGB order.

    Where a modality's frame is None or blank, what stands for it comes in its place; see `missing`.

    Attributes:
        name: of the sequence, and of its result file.
        visible, auxiliary: the frames of each modality, equally many; see `frames.align`.
        box: (4,), the target's in the first frame.
        truth: (N, 4), the target's in the visible frames, NaN where it is absent or not annotated.
    """

    name: str
    visible: Frames
    auxiliary: Frames
    box: np.ndarray
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.visible)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        streams = (
            fill_missing(frames, f"{self.name}: the {modality} modality")
            for modality, frames in (("visible", self.visible), ("auxiliary", self.auxiliary))
        )
        for number, (visible, auxiliary) in enumerate(zip(*streams, strict=True), 1):
            if visible.shape != auxiliary.shape:
                (h, w), (other_h, other_w) = visible.shape[:2], auxiliary.shape[:2]
                raise ValueError(
                    f"{self.name}, frame {number}: the visible image has {w}×{h} pixels, the "
                    f"auxiliary one {other_w}×{other_h}; align them to one size first"
                )
            yield visible, auxiliary

    def check(self) -> TrackingSequence:
        """The sequence, if its first frames can be read and its box lies in them.

        Raises:
            OSError: a frame cannot be read. ValueError: the box is empty or lies outside.
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
        return self


def open_sequences(
    folder: str | Path, layout: str, names: Iterable[str] | None = None
) -> list[TrackingSequence]:
    """The sequences of a benchmark's folder, all of them or `names`; see `open_sequence`.

    Raises:
        ValueError: none is named, or two of one name in different folders.
    """
    folder = check_folder(folder)
    names = find_sequences(folder, layout) if names is None else list(names)
    if not names:
        raise ValueError("names has no sequence; expected one or more, or None for all")
    paths = {Path(os.path.abspath(folder / name)): None for name in names}
    check_names([str(path) for path in paths])
    return [open_sequence(path, layout) for path in paths]


def open_sequence(folder: str | Path, layout: str | None = None) -> TrackingSequence:
    """The sequence in a folder that is laid out as a benchmark's.

    Args:
        folder: of one sequence.
        layout: a name in `LAYOUTS`, by default the one whose folders of images it has.

    Raises:
        OSError: a folder, an image or the ground truth is missing or unreadable.
        ValueError: frames have no partner, the ground truth is no list of boxes, or its first box
        is none in the image.
    """
    folder = check_folder(Path(folder).absolute())
    layout = guess_layout(folder) if layout is None else layout
    known = get_layout(layout)
    truth = read_truth(folder.parent, layout, [folder.name])[folder.name][0]
    first, second = (folder / name for name in known.images)
    visible, auxiliary = _align(folder.name, Images(first), Images(second, known.depth))
    if start := read_start(folder.parent, layout, folder.name):
        visible, auxiliary = (
            stream.select(range(start, len(stream))) for stream in (visible, auxiliary)
        )
        _warn(f"{folder.name} is tracked from frame {start + 1}, the first with the target")
    truth = known.spread_truth(truth, len(visible))
    if len(truth) > len(visible) + PROTOCOLS[known.protocol].may_lack:
        _warn(
            f"{folder.name} has {len(truth)} boxes of ground truth and {len(visible)} frames; "
            "its results will be too short to be scored"
        )
    return TrackingSequence(folder.name, visible, auxiliary, truth[0], truth).check()


def open_pair(
    visible: str | Path,
    auxiliary: str | Path,
    box: Sequence[float],
    name: str | None = None,
    depth: bool = False,
) -> TrackingSequence:
    """One's own aligned pair of videos or folders of images.

    Args:
        visible, auxiliary: a video file or a folder of images each.
        box: the target's in the first frame, as x, y, w, h in pixels.
        name: by default that of the visible file or folder.
        depth: whether the auxiliary images are depths in millimetres, shown as colour maps.

    Raises:
        OSError: a file is missing or unreadable. ValueError: depths of a video, frames without a
        partner, or a bad box.
    """
    name = name or Path(visible).absolute().stem
    streams = _align(name, _open_frames(Path(visible)), _open_frames(Path(auxiliary), depth))
    return TrackingSequence(name, *streams, np.array(box, dtype=np.float64)).check()


def _align(
    name: str, visible: Images | Video, auxiliary: Images | Video
) -> tuple[Images | Video, Images | Video]:
    """The aligned streams, with the sequence's name in errors and warnings."""
    try:
        visible, auxiliary, notes = align(visible, auxiliary)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for note in notes:
        _warn(f"{name} {note}")
    return visible, auxiliary


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _open_frames(path: Path, depth: bool = False) -> Images | Video:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a video or a folder of images")
    if path.is_dir():
        return Images(path, depth)
    if depth:
        raise ValueError(
            f"{path} is a video, which holds no depths; expected a folder of 16-bit images"
        )
    return Video(path)


def _show(box: np.ndarray) -> str:
    return ",".join(f"{value:g}" for value in box)
