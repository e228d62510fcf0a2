"""How somebody's tracker is driven: by the two methods of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Family:
    """How trackers of one family are driven: `start` on the first frame, then `track(image)`.

    Attributes:
        start: the name of the method that gets the first image and the target's box.
        pack: the box, as a list, as that method takes it.
        box_key: under which `track` returns the box.
        rgb: whether the images are RGB; else they are BGR.
    """

    start: str
    pack: Callable[[list[float]], object]
    box_key: str
    rgb: bool

    def takes_bgr(self, depth: bool) -> tuple[bool, bool]:
        """Whether the visible and the auxiliary image are given as BGR.

        A depth's colour map is BGR for both families, as ViPT gives it.
        """
        return not self.rgb, not self.rgb or depth

    def join(self, visible: np.ndarray, auxiliary: np.ndarray, depth: bool) -> np.ndarray:
        """One image (H, W, 6) of two (H, W, 3) in RGB order, as the family takes it."""
        images = zip((visible, auxiliary), self.takes_bgr(depth), strict=True)
        return np.concatenate([x[..., ::-1] if bgr else x for x, bgr in images], 2)


OSTRACK = Family("initialize", lambda box: {"init_bbox": box}, "target_bbox", rgb=True)
PYSOT = Family("init", lambda box: box, "bbox", rgb=False)


def find_family(tracker: Any) -> Family:  # a user's object
    """The family as which a tracker is driven; ValueError if it has the methods of none."""
    for family in (OSTRACK, PYSOT):
        if all(callable(getattr(tracker, name, None)) for name in (family.start, "track")):
            return family
    raise ValueError(
        f"{type(tracker).__name__} has no initialize(image, info) and track(image), as OSTrack's "
        "family, nor init(image, box) and track(image), as pysot's"
    )
