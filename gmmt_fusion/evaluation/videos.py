"""Videos of what was tracked: both modalities side by side, with the boxes drawn in."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .frames import RATE, openable
from .images import import_opencv
from .protocols import intersection_over_union
from .sequences import TrackingSequence
from .text_files import printable

MOST_TICKS, LEAST_RATE = 65535, 0.01
FAR = 1e5  # pixels, outside of any image
# BGR; the first is Okabe and Ito's vermilion
ORANGE, WHITE, BLACK = (0, 94, 213), (255, 255, 255), (0, 0, 0)


def write_video(
    path: Path,
    sequence: TrackingSequence,
    boxes: np.ndarray,
    note: Callable[[str], object] = warnings.warn,
    *,
    tracker: str = "tracker",
    scores: np.ndarray | None = None,
) -> None:
    """Write an MPEG-4 video of a tracked sequence, with a line of text under each frame.

    Args:
        path: of the video, ending in .mp4; the file is whole or not there.
        sequence: its ground truth, if any, is drawn white on black, and the overlap told.
        boxes: the tracker's, (N, 4) as x, y, w, h in pixels, drawn in vermilion.
        note: is told where the video has another frame rate.
        tracker: its name. scores: its confidences (N,), NaN where there is none.

    Raises:
        OSError: a frame cannot be read, the disk is full, or this OpenCV writes no such videos.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    given = getattr(sequence.visible, "rate", RATE)  # a list of frames does not say
    rate = round_rate(given)
    if abs(rate - given) > 1e-3:
        note(f"{path.name} has {rate:g} frames/s; MPEG-4 cannot hold {given:g}")
    # not write_atomically: OpenCV tells the kind of file from its suffix
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary = Path(folder, "video.mp4")
        with openable(temporary) as name:
            _encode(name, _draw_frames(sequence, boxes, tracker, scores), rate, path)
            _check_whole(name, len(sequence), path)
        os.replace(temporary, path)


def round_rate(rate: float) -> float:
    """The nearest frame rate that MPEG-4 can hold, where a whole number up to 65535 counts ticks.

    OpenCV takes as many of up to three decimals as it needs.
    """
    if not (math.isfinite(rate) and rate > 0):
        return RATE
    digits = next((n for n in (3, 2, 1) if rate * 10**n <= MOST_TICKS), 0)
    return float(min(max(round(rate, digits), LEAST_RATE), MOST_TICKS))


def _encode(name: str, frames: Iterator[np.ndarray], rate: float, path: Path) -> None:
    cv2, writer = import_opencv(), None
    try:
        for image in frames:
            if writer is None:
                height, width = image.shape[:2]
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(name, codec, rate, (width, height))
                if not writer.isOpened():
                    raise OSError(
                        f"{path}: OpenCV cannot write a video of {width}×{height} pixels and "
                        f"{rate:g} frames/s there; is the disk full? Else pip install "
                        "opencv-python-headless, which writes MPEG-4"
                    )
            writer.write(image)
    finally:
        if writer is not None:
            writer.release()


def _check_whole(name: str, frames: int, path: Path) -> None:
    """Raise OSError for a video without its last frame: OpenCV's writer tells of no failure."""
    cv2 = import_opencv()
    capture = cv2.VideoCapture(name)
    capture.set(cv2.CAP_PROP_POS_FRAMES, frames - 1)
    whole = capture.grab()
    capture.release()
    if not whole:
        raise OSError(f"{path} could not be written whole; is the disk full?")


def _draw_frames(
    sequence: TrackingSequence, boxes: np.ndarray, tracker: str, scores: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Frames (H, 2 W, 3), BGR, of both modalities with their boxes and a line of text."""
    truth = sequence.truth if sequence.truth is not None else np.empty((0, 4))
    for index, (pair, box) in enumerate(zip(sequence, boxes, strict=True)):
        images = [np.ascontiguousarray(image[..., ::-1]) for image in pair]
        words = [(f"{sequence.name}  {index + 1}/{len(sequence)}", WHITE), (tracker, ORANGE)]
        if scores is not None and np.isfinite(scores[index]):
            words.append((f"score {scores[index]:.2f}", ORANGE))
        if index < len(truth) and np.isfinite(truth[index]).all():
            overlap = intersection_over_union(box[None], truth[index][None])[0]
            words += [("truth", WHITE), (f"IoU {overlap:.2f}", WHITE)]
        for image in images:
            if index < len(truth):
                _draw_box(image, truth[index], BLACK, 3)
                _draw_box(image, truth[index], WHITE, 1)
            _draw_box(image, box, ORANGE, _line_width(box))
        both = np.concatenate(
            [np.concatenate(images, 1), _write_line(2 * images[0].shape[1], words)]
        )
        yield both[: both.shape[0] // 2 * 2]  # MPEG-4 wants even sides; equal widths add up to one


def _line_width(box: np.ndarray) -> int:
    """In pixels: thin where the target is small."""
    return 1 if np.isfinite(box).all() and min(box[2:]) < 40 else 2


def _draw_box(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    if np.isfinite(box).all():
        cv2 = import_opencv()
        corners = np.clip([*box[:2], *(box[:2] + box[2:])], -FAR, FAR)  # OpenCV's are integers
        x, y, right, bottom = (round(float(v)) for v in corners)
        cv2.rectangle(image, (x, y), (right, bottom), colour, width, cv2.LINE_AA)


def _write_line(width: int, words: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """A dark strip (h, width, 3) with words in their colours, as large as they fit."""
    cv2, font = import_opencv(), 0  # FONT_HERSHEY_SIMPLEX, which has no other letters
    words = [(printable(text, "ascii"), colour) for text, colour in words]
    gap = 14.0
    needed = sum(cv2.getTextSize(text, font, 1.0, 1)[0][0] + 2 * gap for text, _ in words)
    scale = float(np.clip((width - gap) / needed, 0.25, 0.8))
    strip = np.full((round(40 * scale) // 2 * 2, width, 3), 30, np.uint8)
    x = gap * scale
    for text, colour in words:
        place = round(x), round(0.72 * len(strip))
        cv2.putText(strip, text, place, font, scale, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(text, font, scale, 1)[0][0] + 2 * gap * scale
    return strip
