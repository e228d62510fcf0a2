"""Image files: decoded from their bytes, whole or refused, with the name of the file."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

MOST_PIXELS = 1 << 27  # 16K × 8K: what claims more is damaged, and is not allocated
# a marker in JPEG's coded data: a 255 that is not stuffed with 0, and starts no interval anew
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def import_opencv() -> Any:  # a module of another library, imported when it is first needed
    """OpenCV, or an ImportError that says how to install it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("tracking needs OpenCV; pip install 'gmmt-fusion[track]'") from error
    return cv2


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8, BGR, as `cv2.imread` shows it: grey three times, alpha left out, upright.

    Raises:
        OSError: the file is missing, no image or half of one. ValueError: it has other pixels than
        of 8 bits.
    """
    cv2 = import_opencv()
    # the pixels as they are: those of 16 bits are not silently cut to 8; grey ones of 32 bits are
    # only decoded unchanged
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8:
        raise ValueError(
            f"{path} has {image.dtype} pixels; give --depth if they are millimetres, or convert "
            "the images to 8 bits"
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise OSError(f"{path} cannot be read as an image of colours")
    return image


def read_depth(path: Path) -> np.ndarray:
    """(H, W), in the type that is stored; also of an image with the same depth in each channel.

    Raises:
        OSError: as `read_image`. ValueError: it is no map of depths.
    """
    image = _decode(path, import_opencv().IMREAD_UNCHANGED)
    depth = image if image.ndim == 2 else image[..., 0]
    if image.ndim == 3 and not (image.shape[2] in (1, 3) and (image == depth[..., None]).all()):
        raise ValueError(
            f"{path} has {image.shape[2]} channels that differ; expected depths in one channel"
        )
    if not np.isfinite(depth).all():
        raise ValueError(f"{path} has depths that are not finite; expected millimetres")
    return depth


def _decode(path: Path, *ways: int) -> np.ndarray:
    """The image by the first of OpenCV's flags by which it is one."""
    cv2 = import_opencv()
    if path.exists() and not path.is_file():  # a pipe, say, on which one would wait for ever
        raise OSError(f"{path} is no file")
    data = path.read_bytes()
    if problem := _find_problem(data):
        raise OSError(f"{path} cannot be read as an image: {problem}")
    for flags in ways:
        try:
            # from bytes: OpenCV opens no name that is not UTF-8, and shows half of some files
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:  # a header that claims too much, or nonsense
            image = None
        if image is not None:
            return np.asarray(image)
    raise OSError(f"{path} cannot be read as an image; it is damaged, or of another kind")


def _find_problem(data: bytes) -> str | None:
    """What is wrong with a file that a decoder might show in part, without a word."""
    if not data:
        return "it is empty"
    try:
        if data.startswith(b"\xff\xd8"):
            return _check_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _check_png(data)
        if data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            return _check_size(width, abs(height))
    except (IndexError, struct.error):
        return "it ends early"
    return None


def _check_jpeg(data: bytes) -> str | None:
    """Follow the markers to the end of the image, which a thumbnail inside has, too."""
    offset = 2
    while True:
        while data[offset + 1] == 0xFF:  # fill bytes
            offset += 1
        if data[offset] != 0xFF:
            return "its markers are damaged"
        marker = data[offset + 1]
        if marker == 0xD9:
            return None
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, offset + 5)
            if problem := _check_size(width, height):
                return problem
        offset += 2 + length
        if marker == 0xDA:  # coded data follow until the next marker
            found = _MARKER.search(data, offset)
            if found is None:
                return "it ends early"
            offset = found.start()


def _check_png(data: bytes) -> str | None:
    offset, width, height = 8, 0, 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 4 : offset + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, offset + 8 + length)
        if kind[:1].isupper() and zlib.crc32(body) != checksum:
            return f"its part {kind.decode('latin-1')} is damaged"
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", body, 4)
            if problem := _check_size(width, height):
                return problem
        if kind == b"IEND":
            return None
        offset += 12 + length


def _check_size(width: int, height: int) -> str | None:
    if width * height > MOST_PIXELS:
        return f"it claims {width}×{height} pixels, more than {MOST_PIXELS}"
    return None
