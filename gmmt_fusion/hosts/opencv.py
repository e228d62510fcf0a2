"""OpenCV as hosts use it: images of pairs, and windows on a machine without."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

from .patches import Patches


def adapt_opencv(cv2: ModuleType, patches: Patches) -> None:
    """`read_pairs` and `close_no_windows`."""
    read_pairs(cv2, patches)
    close_no_windows(cv2, patches)


def read_pairs(cv2: ModuleType, patches: Patches) -> None:
    """Let `cv2.imread` read a name like `{visible,infrared}/1.jpg` as one image (H, W, 6)."""
    from .siamban_data import read_pair, split_pair

    own = cv2.imread

    @functools.wraps(own)
    def imread(filename: Any, *args: Any, **kwargs: Any) -> Any:  # as OpenCV's
        pair = split_pair(os.fspath(filename))
        return own(filename, *args, **kwargs) if pair is None else read_pair(*pair)

    patches.set(cv2, "imread", imread)


def close_no_windows(cv2: ModuleType, patches: Patches) -> None:
    """Let `cv2.destroyAllWindows` do nothing in an OpenCV without windows, which has none open."""
    own = cv2.destroyAllWindows

    @functools.wraps(own)
    def destroy_all_windows() -> None:
        try:
            own()
        except cv2.error as error:
            if "not implemented" not in str(error):
                raise

    patches.set(cv2, "destroyAllWindows", destroy_all_windows)
