"""Videos of what was tracked: both modalities side by side, with the boxes drawn in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .frames import import_opencv
from .sequences import TrackingSequence

# BGR; the first is Okabe and Ito's vermilion
ORANGE, WHITE, BLACK = (0, 94, 213), (255, 255, 255), (0, 0, 0)


def write_video(path: Path, sequence: TrackingSequence, boxes: np.ndarray) -> None:
    """Write an MPEG-4 video of a tracked sequence.

    Args:
        path: of the video, ending in .mp4; the file is whole or not there.
        sequence: its ground truth, if any, is drawn thin and white.
        boxes: the tracker's, (N, 4) as x, y, w, h in pixels, drawn solid.

    Raises:
        OSError: a frame cannot be read, or this OpenCV writes no such videos.
    """
    cv2 = import_opencv()
    path.parent.mkdir(parents=True, exist_ok=True)
    # not write_atomically: OpenCV tells the kind of file from its suffix
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary, writer = Path(folder, path.name), None
        for image in _draw_frames(sequence, boxes):
            if writer is None:
                height, width = image.shape[:2]
                codec, rate = cv2.VideoWriter_fourcc(*"mp4v"), sequence.visible.rate
                writer = cv2.VideoWriter(str(temporary), codec, rate, (width, height))
                if not writer.isOpened():
                    raise OSError(
                        f"{path}: this OpenCV cannot write MPEG-4 videos; pip install "
                        "opencv-python-headless"
                    )
            writer.write(image)
        if writer is not None:
            writer.release()
            os.replace(temporary, path)


def _draw_frames(sequence: TrackingSequence, boxes: np.ndarray) -> Iterator[np.ndarray]:
    """Frames (H, 2 W, 3), BGR, of both modalities with their boxes and number; H is even."""
    truth = sequence.truth if sequence.truth is not None else np.empty((0, 4))
    for index, (pair, box) in enumerate(zip(sequence, boxes, strict=True)):
        images = [np.ascontiguousarray(image[..., ::-1]) for image in pair]
        for image in images:
            if index < len(truth):
                _draw_box(image, truth[index], BLACK, 3)
                _draw_box(image, truth[index], WHITE, 1)
            _draw_box(image, box, ORANGE, 2)
        both = np.concatenate(images, 1)
        both = both[: both.shape[0] // 2 * 2]  # MPEG-4 wants even sides; equal widths add up to one
        _draw_text(both, str(index + 1))
        yield both


def _draw_box(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], width: int) -> None:
    if np.isfinite(box).all():
        cv2 = import_opencv()
        x, y, right, bottom = (round(float(v)) for v in (*box[:2], *(box[:2] + box[2:])))
        cv2.rectangle(image, (x, y), (right, bottom), colour, width, cv2.LINE_AA)


def _draw_text(image: np.ndarray, text: str) -> None:
    cv2 = import_opencv()
    for colour, width in ((BLACK, 3), (WHITE, 1)):
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, text, (6, 20), font, 0.6, colour, width, cv2.LINE_AA)
