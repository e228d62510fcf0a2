"""What a run shows beside its own log: in the bar, and to accelerate's trackers."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from ..attaching.attachment import Attachment

if TYPE_CHECKING:  # takes a second to import
    from accelerate import Accelerator

Images: TypeAlias = Mapping[str, np.ndarray]
"""{name: (H, W, 3) uint8, RGB}."""


def choose_shown(record: Mapping[str, float]) -> dict[str, str]:
    """What the bar shows of what was logged last: losses, and the validation."""
    return {k: f"{v:.3g}" for k, v in record.items() if "loss" in k or k == "validation"}


def list_trackers(log_with: Any) -> list[Any]:
    """What accelerate is to log with, one or several or None, as a list."""
    if log_with is None:
        return []
    return list(log_with) if isinstance(log_with, list | tuple) else [log_with]


def check_trackers(asked: list[Any], found: list[Any]) -> None:
    """Raise ImportError where accelerate has left out what is not installed."""
    for name in asked:
        if isinstance(name, str) and name != "all" and name not in map(str, found):
            raise ImportError(f"log_with={name!r} needs {name}; pip install {name}")


def log_images(
    accelerator: "Accelerator",
    attachment: Attachment,
    images: Callable[[Attachment], Images],
    step: int,
) -> None:
    """Give the images of this step to the trackers that take some; on the main process.

    Raises:
        ValueError: they are no images.
    """
    takers = [tracker for tracker in accelerator.trackers if hasattr(tracker, "log_images")]
    if not takers or not accelerator.is_main_process:
        return
    attachment.network.eval()
    try:
        with torch.no_grad():
            drawn = {name: np.asarray(image) for name, image in images(attachment).items()}
    finally:
        attachment.network.train()
    for name, image in drawn.items():
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"images returned {name!r} of shape {image.shape}, {image.dtype}; expected "
                "(H, W, 3), uint8, RGB"
            )
    for tracker in takers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({k: image[None] for k, image in drawn.items()}, step=step, **options)
