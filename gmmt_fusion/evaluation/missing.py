"""What a tracker is given where a modality has no image: a grey one, as in training.

It is what `Degradation` calls "missing": the mean of the image, with a faint grain. As there is no
image to take the mean of, the last one that was there stands for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np

GRAIN = 0.015  # deviation of the grain, as a part of the last image's range
FLAT = 4  # grey levels that the channels of a blank image may vary by, as some codecs let them


def is_blank(image: np.ndarray) -> bool:
    """Whether an image (H, W, 3) is all of one colour: black, say, where a sensor gave nothing."""
    return bool((np.ptp(image.reshape(-1, image.shape[-1]), axis=0) <= FLAT).all())


def make_missing(last: np.ndarray, number: int) -> np.ndarray:
    """The image of frame `number` that stands for none, (H, W, 3) uint8, grey.

    Args:
        last: (H, W, 3) uint8, the modality's last image that was there.
        number: seeds the grain, so that a frame is the same whenever it is asked for.
    """
    low, high = int(last.min()), int(last.max())
    grain = np.random.default_rng(number).standard_normal(last.shape[:2], dtype=np.float32)
    grey = np.rint(np.clip(last.mean() + GRAIN * (high - low) * grain, low, high))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def fill_missing(frames: Iterable[np.ndarray | None], of: str = "") -> Iterator[np.ndarray]:
    """Frames with an image for each that is missing: None, or blank after one that is not.

    Args:
        frames: (H, W, 3) uint8, or None.
        of: their sequence and modality, for messages.

    Raises:
        ValueError: the first image is None.
    """
    last, told = None, False
    for number, image in enumerate(frames, 1):
        if image is not None and not is_blank(image):
            last = image
        elif last is not None:
            if image is not None and not told:
                warnings.warn(f"{of} is blank in frame {number}, and fed as missing", stacklevel=3)
                told = True
            image = make_missing(last, number)
        elif image is None:
            raise ValueError(
                f"{of} has no image in frame {number}, nor one before; a tracker starts with both "
                "modalities"
            )
        yield image
