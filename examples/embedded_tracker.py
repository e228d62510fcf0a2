"""The embedded RGB-T tracker for `gmmt-fusion track`, and sequences to try it on.

    python examples/embedded_tracker.py data
    gmmt-fusion track --tracker examples/embedded_tracker.py:build --benchmark lasher \\
        --data data --out results/base --video
    gmmt-fusion evaluate --benchmark lasher --truth data --results results/base

With `--fusion examples/embedded/fusion` it tracks with the fusion that is shipped, fine-tuned by
quickstart.py.
"""

import sys
from pathlib import Path

import numpy as np
from embedded.sequences import TEST_SEEDS, generate_sequence, write_sequence
from embedded.siamese import SEARCH_MAP, load_tracker
from embedded.tracking import Tracker

from gmmt_fusion.adapters import ModuleAdapter


class EmbeddedTracker:
    """Driven as OSTrack's family is, on frames (H, W, 6)."""

    adapter = ModuleAdapter(fusion="fusion", head="head", size=SEARCH_MAP)

    def __init__(self) -> None:
        self.network = load_tracker()
        self.tracker = Tracker(self.network)

    def initialize(self, image: np.ndarray, info: dict) -> None:
        self.tracker.init(image[..., :3], image[..., 3:], info["init_bbox"])

    def track(self, image: np.ndarray) -> dict:
        box = self.tracker.track(image[..., :3], image[..., 3:])
        return {"target_bbox": box.tolist(), "best_score": self.tracker.score}


def build() -> EmbeddedTracker:
    return EmbeddedTracker()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIR, the folder to write four generated sequences to")
    for seed in TEST_SEEDS[:4]:
        sequence = generate_sequence(seed)
        print(write_sequence(sequence, Path(sys.argv[1], sequence.name)))


if __name__ == "__main__":
    main()
