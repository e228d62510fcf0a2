"""jpeg4py: decoding JPEG files, with OpenCV in place of libjpeg-turbo."""

from pathlib import Path
from typing import Any

import numpy as np


class JPEG:
    """A JPEG image: the name of a file, or its bytes as an array."""

    def __init__(self, source: Any) -> None:  # str, Path or array, as in jpeg4py
        self.source = source

    def decode(self) -> Any:
        """Pixels (H, W, 3), uint8, RGB.

        Raises:
            OSError: there is no such file, or it is no image.
        """
        import cv2

        if isinstance(self.source, str | Path):
            data = np.fromfile(self.source, dtype=np.uint8)
        else:
            data = np.asarray(self.source, dtype=np.uint8)
        # as libjpeg does: pixels as they are stored, whatever EXIF says about turning them
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None:
            raise OSError(f"{self.source!r:.200} is no image")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
