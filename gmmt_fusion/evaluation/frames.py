"""Where frames come from: a folder of images or a video file.

Frames are (H, W, 3) uint8 in RGB order, read one at a time.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
RATE = 25.0  # frames/s of the videos made of images, which do not say theirs


class Images:
    """The images of a folder, in the order of the numbers in their names.

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
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        ]
        if not paths:
            raise FileNotFoundError(f"{folder} has no images; expected {', '.join(SUFFIXES)}")
        # by number: not all data sets pad their numbers
        self.paths = sorted(
            paths, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name)
        )
        self.depth = depth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        cv2, path = import_opencv(), self.paths[index]
        eight_or_more = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH  # bits: 16 are not silently cut to 8
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED if self.depth else eight_or_more)
        if image is None:
            raise OSError(f"{path} cannot be read as an image")
        if image.dtype != np.uint8 and not self.depth:
            raise ValueError(
                f"{path} has {image.dtype} pixels; give --depth if they are millimetres, or "
                "convert the images to 8 bits"
            )
        return np.ascontiguousarray((colour_map(image) if self.depth else image)[..., ::-1])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


class Video:
    """The frames of a video file; as many as can be read, with a warning where it announces more.

    Raises:
        OSError: the file is no video, or no frame of it can be read.
    """

    depth = False

    def __init__(self, path: Path) -> None:
        self.path, capture, cv2 = path, _open_capture(path), import_opencv()
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate: float = capture.get(cv2.CAP_PROP_FPS) or RATE
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
        capture = _open_capture(self.path)
        try:
            for number in range(1, self.length + 1):
                read, frame = capture.read()
                if not read:
                    raise OSError(f"{self.path}, frame {number} cannot be read")
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()


def colour_map(depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, BGR, of depths (H, W) in millimetres, cut to 10 m or three medians.

    As trackers of RGB and depth are trained: ViPT's `get_rgbd_frame(…, "rgbcolormap",
    depth_clip=True)`.
    """
    cv2 = import_opencv()
    depth = np.minimum(depth, min(np.median(depth) * 3, 10000)).astype(depth.dtype)
    scaled = cv2.normalize(depth, None, alpha=0, beta=255, norm_type=cv2.NORM_MINMAX)
    return np.asarray(cv2.applyColorMap(np.asarray(scaled, dtype=np.uint8), cv2.COLORMAP_JET))


def import_opencv() -> Any:  # a module of another library, imported when it is first needed
    """OpenCV, or an ImportError that says how to install it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("tracking needs OpenCV; pip install 'gmmt-fusion[track]'") from error
    return cv2


def _open_capture(path: Path) -> Any:  # OpenCV's
    capture = import_opencv().VideoCapture(str(path))
    if not capture.isOpened():
        raise OSError(f"{path} cannot be read as a video")
    return capture
