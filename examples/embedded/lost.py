"""Sequences in which one modality is lost for a while, by the groups of the benchmarks for that.

After RGBT234-Miss and its siblings (Lu et al., "Modality-missing RGBT tracking", IJCV 2024), which
lose 30, 60 or 90 % of the frames: at random, one modality for long, or both ways in one sequence.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gmmt_fusion.evaluation.missing import fill_missing

from .sequences import RGBTSequence

GROUPS = ("random", "mixed", "long-time")
KINDS = ("missing", "black", "frozen", "shifted")
SHIFT = 6  # pixels along either side


def plan_losses(frames: int, group: str, fraction: float, seed: int) -> np.ndarray:
    """(frames, 2), True where the visible or the infrared image is lost; never both, nor frame 0.

    group: "random" loses frames one by one; "long-time" a stretch of one modality; "mixed" half of
    them in such a stretch, the others at random.
    """
    if group not in GROUPS or not 0 <= fraction <= 1:
        raise ValueError(
            f"group={group!r}, fraction={fraction}; expected one of {GROUPS} and 0 to 1"
        )
    rng = np.random.default_rng([seed, GROUPS.index(group)])
    lost, count = np.zeros((frames, 2), bool), round(fraction * (frames - 1))
    stretch = {"random": 0, "mixed": count // 2, "long-time": count}[group]
    first = 1 + int(rng.integers(frames - stretch))
    lost[first : first + stretch, rng.integers(2)] = True
    rest = rng.permutation(np.flatnonzero(~lost[1:].any(1)) + 1)[: count - int(lost.sum())]
    lost[rest, rng.integers(2, size=len(rest))] = True
    return lost


def lose(sequence: RGBTSequence, lost: np.ndarray, kind: str = "missing") -> RGBTSequence:
    """The sequence with frames lost where `lost` (frames, 2) says so.

    kind: "missing" and "black" are fed to the tracker as `track` feeds them; "frozen" repeats the
    last image, and "shifted" moves it by `SHIFT` pixels, as where a camera was knocked.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {KINDS}")
    streams = {}
    for number, name in enumerate(("visible", "infrared")):
        frames = list(getattr(sequence, name))
        for t in np.flatnonzero(lost[:, number]):
            if kind == "missing":
                frames[t] = None
            elif kind == "black":
                frames[t] = np.zeros_like(frames[t])
            elif kind == "frozen":
                frames[t] = frames[t - 1]
            else:
                frames[t] = np.roll(frames[t], (SHIFT, -SHIFT), (0, 1))
        streams[name] = list(fill_missing(frames, f"{sequence.name}: the {name} modality"))
    return replace(sequence, **streams)
