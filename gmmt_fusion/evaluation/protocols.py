"""The protocols of the benchmarks, one function each: thresholds, units, pooling, and the paper.

What a function returns for a frame, the measures turn into curves and headline numbers; `PROTOCOLS`
holds both by the protocol's name. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Measure:
    """A frame is a hit where `hit(error or overlap, threshold)`; `number` reads the curve.

    Attributes:
        thresholds: (T,) of the curve, in the unit that `label` says.
        label: of the curve's horizontal axis.
        hit: compares values (1, N) with thresholds (T, 1); the curve is the fraction of hits.
        number: the headline number of thresholds (T,) and the curve's values (T,).
    """

    thresholds: np.ndarray
    label: str
    hit: Callable[[np.ndarray, np.ndarray], np.ndarray]
    number: Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class ShortTerm:
    """A protocol that scores every frame by itself.

    Attributes:
        score_frames: boxes (N, 4) and each modality's ground truth (N, 4) to {measure: (N,)}.
        measures: how each of these becomes a curve and a number.
        pool_frames: whether frames of all sequences weigh alike; else sequences weigh alike.
        modalities: how many modalities may have ground truth of their own.
        absence: whether the ground truth may be NaN, where the target is absent.
        repairs: whether results may be NaN, as the kit puts the box before in their place.
        may_lack: by how many frames a result may be shorter than the ground truth.
    """

    score_frames: Callable[[np.ndarray, Sequence[np.ndarray]], dict[str, np.ndarray]]
    measures: Mapping[str, Measure]
    pool_frames: bool = False
    modalities: tuple[int, ...] = (1, 2)
    absence: bool = False
    repairs: bool = False
    may_lack: int = 0
    long_term: ClassVar[bool] = False


@dataclass(frozen=True)
class LongTerm:
    """A protocol of targets that come and go, which a tracker reports with a confidence.

    Attributes:
        score_sequence: boxes (N, 4), ground truth (N, 4), confidences (N,), thresholds (T,) and
            the image's size (width, height) or None to precision (T,) and recall (T,).
    """

    score_sequence: Callable[
        [np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, int] | None],
        tuple[np.ndarray, np.ndarray],
    ]
    absence: ClassVar[bool] = True
    repairs: ClassVar[bool] = False  # NaN is an answer here: the target is absent
    may_lack: ClassVar[int] = 0
    long_term: ClassVar[bool] = True


def gtot(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """GTOT: in every frame the modality whose ground truth is nearer counts.

    Li et al., "Learning collaborative sparse representation for grayscale-thermal tracking", TIP
    2016.

    Nearer is the smaller centre error for PR, the larger overlap for SR. PR: fraction of frames
    with centre error < 5 px (curve 0, 0.5, … 25 px). SR: trapezoid area under the fraction of
    frames with overlap > 0, 0.02, … 1. Pooled over the frames of all sequences, so that long
    sequences weigh more. No frame is left out, the given first one included; absence is not
    annotated.
    """
    error, overlap = _better_modality(boxes, truths)
    return {"PR": error, "SR": overlap}


def rgbt234(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """RGBT234: in every frame the modality whose ground truth is nearer counts.

    Li et al., "RGB-T object tracking: benchmark and baseline", Pattern Recognition 2019.

    MPR: fraction of frames with centre error <= 20 px (curve 0, 1, … 50 px). MSR: mean over the 21
    thresholds 0, 0.05, … 1 of the fraction of frames with overlap above them. Taken per sequence,
    then averaged over sequences. No frame is left out, the given first one included; absence is
    not annotated. The ground truth of some sequences has one line more than images, and so than
    published results: the frames that both have are compared.

    GMMT's paper (Tang et al., AAAI 2024) gives PR and SR, 87.9 and 64.7 for TBSI with GMMT: with
    boxes rounded to whole pixels, and rows that are absent at a threshold counted as 0, its
    published boxes give 87.86 and 64.68; as they are, they give MPR 88.3 and MSR 65.0 here.

    VTUAV (Zhang et al., CVPR 2022) is scored in the same way, on every tenth frame, the annotated
    ones; VOT-RGBT, of whose measure only the toolkit's restarts give the boxes, with its one
    annotation.
    """
    error, overlap = _better_modality(boxes, truths)
    return {"MPR": error, "MSR": overlap}


def lasher(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """LasHeR: precision, precision in units of the target's size, and success.

    Li et al., "LasHeR: a large-scale high-diversity benchmark for RGBT tracking", TIP 2022.

    PR: fraction of frames with centre error <= 20 px (curve 0, 1, … 50 px). NPR: the same with the
    error along x in ground truth widths and along y in heights, <= 0.2 (curve 0, 0.01, … 0.5). SR:
    mean over the 21 thresholds 0, 0.05, … 1 of the fraction of frames with overlap above them.
    Taken per sequence, then averaged over sequences.

    As the official kit does (`calc_seq_err_robust`): the first box is replaced by the ground truth;
    a box of NaN, or without a positive width and height, is replaced by the one before it, except
    where the ground truth is NaN; and a frame is taken as absent where
    any of the ground truth's four numbers is not positive, thus also where the target touches the
    left or upper border. An absent frame stays in the count, as a hit at every threshold of PR and
    NPR and as a miss at every threshold of SR.
    """
    (truth,) = truths
    boxes = _repair(boxes, truth)
    present = np.all(truth > 0, axis=1)
    sizes = np.where(present.reshape(-1, 1), truth[:, 2:], 1)
    return {
        "PR": np.where(present, _centre_error(boxes, truth), -1),
        "NPR": np.where(present, _centre_error(boxes, truth, sizes), -1),
        "SR": np.where(present, intersection_over_union(boxes, truth), -1),
    }


def visevent(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """VisEvent: precision and success, with events for a second modality.

    Wang et al., "VisEvent: reliable object tracking via collaboration of frame and event flows",
    IEEE Transactions on Cybernetics 2023.

    PR and SR are LasHeR's, with the same repairs of boxes. As the official kit does: a frame with
    the target absent (flagged 0 in `absent_label.txt`, here NaN) stays in the count and is a miss
    at every threshold of both; one whose ground truth has a negative number is a hit of PR and a
    miss of SR.
    """
    (truth,) = truths
    boxes, absent = _repair(boxes, truth), np.isnan(truth).any(1)
    negative = (truth < 0).any(1)
    error = np.where(negative, -1, _centre_error(boxes, truth))
    overlap = np.where(negative | absent, -1, intersection_over_union(boxes, truth))
    return {"PR": np.where(absent, np.inf, error), "SR": overlap}


def vot_lt(
    boxes: np.ndarray,
    truth: np.ndarray,
    confidence: np.ndarray,
    thresholds: np.ndarray,
    size: tuple[int, int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """VOT long-term, also of RGBD1K and DepthTrack: precision and recall of a sequence.

    Lukežič et al., "Now you see me: evaluating performance in long-term visual tracking",
    arXiv:1804.07056.

    At each confidence threshold a frame is reported where confidence >= threshold. precision: mean
    overlap over the reported frames (1 where none is); recall: sum of overlaps of the reported
    frames over the number of frames with the target. Taken per sequence at the tracker's 100
    thresholds (98 quantiles of all its confidences, and ±infinity), averaged over sequences; F = 2
    · precision · recall / (precision + recall) of these averages, and the headline is the threshold
    with the largest F. Sequences and attributes are given at that same threshold.

    As the official toolkit does: boxes are rounded to whole pixels and cut to the image where its
    size is known; a frame reported while the target is absent (in the ground truth NaN, or a
    box without a positive size, as in DepthTrack) has overlap 0, unless the result's box is NaN
    too, then 1; the first frame is the given one and counts as not found.
    """
    overlap = _raster_overlap(boxes, truth, size)
    overlap[0] = 0
    reported = confidence[None, :] >= thresholds[:, None]
    found: np.ndarray = reported @ overlap
    count = reported.sum(1)
    precision = np.divide(found, count, out=np.ones_like(found), where=count > 0)
    recall: np.ndarray = found / (~np.isnan(truth).any(1)).sum()
    return precision, recall


def mark_empty(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4), NaN where a width or height is not positive: DepthTrack's absent targets."""
    return np.where((boxes[:, 2:] > 0).all(1, keepdims=True), boxes, np.nan)


def _repair(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) with the first one given, and the one before for what is none."""
    valid = (boxes[:, 2:] > 0).all(1) & ~np.isnan(boxes).any(1) | np.isnan(truth).any(1)
    boxes = boxes[np.maximum.accumulate(np.where(valid, np.arange(len(boxes)), 0))]
    boxes[0] = truth[0]
    return boxes


def _centre_error(
    boxes: np.ndarray, truth: np.ndarray, unit: np.ndarray | float = 1.0
) -> np.ndarray:
    """Distance of the centres (N,), in `unit`s."""
    centres, true_centres = boxes[:, :2] + boxes[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2
    squares = (centres / unit - true_centres / unit) ** 2
    return np.asarray(np.sqrt(squares.sum(1)))


def intersection_over_union(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union (N,); where there is no union, 0."""
    low, high = np.maximum(boxes[:, :2], truth[:, :2]), np.minimum(_ends(boxes), _ends(truth))
    intersection = np.clip(high - low, 0, None).prod(1)
    union = boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - intersection
    overlap = np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)
    return np.asarray(overlap)


def _ends(boxes: np.ndarray) -> np.ndarray:
    """The lower right corners (N, 2)."""
    return np.asarray(boxes[:, :2] + boxes[:, 2:])


def _better_modality(
    boxes: np.ndarray, truths: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The smallest centre error (N,) and the largest overlap (N,) over modalities."""
    error = np.min([_centre_error(boxes, truth) for truth in truths], axis=0)
    return error, np.max([intersection_over_union(boxes, truth) for truth in truths], axis=0)


def _raster_overlap(
    boxes: np.ndarray, truth: np.ndarray, size: tuple[int, int] | None
) -> np.ndarray:
    """Intersection over union (N,) of the pixels that two boxes fill, NaN boxes filling none."""
    pair = (boxes, truth)
    filled = [~np.isnan(box).any(1) for box in pair]
    whole = [
        np.rint(np.where(np.isnan(box).any(1, keepdims=True), [0, 0, 1, 1], box)) for box in pair
    ]
    lows, highs = [box[:, :2] for box in whole], [_ends(box) - 1 for box in whole]
    low, high = np.minimum(*lows), np.maximum(*highs)
    alike = (low >= high).any(1)
    if size is not None:
        low, high = np.maximum(low, 0), np.minimum(high, np.asarray(size) - 1)
    outside = (low >= high).any(1)

    def area(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        sides = np.clip(np.minimum(end, high) - np.maximum(start, low) + 1, 0, None)
        return np.asarray(sides.prod(1))

    first, second = (area(lows[i], highs[i]) * filled[i] for i in (0, 1))
    both = area(np.maximum(*lows), np.minimum(*highs)) * (filled[0] & filled[1])
    union = first + second - both
    overlap = np.divide(both, union, out=np.zeros_like(union), where=union > 0)
    return np.where(alike, 1.0, np.where(outside, 0.0, overlap))


def _at(threshold: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda thresholds, values: float(values[np.searchsorted(thresholds, threshold)])


def _mean(thresholds: np.ndarray, values: np.ndarray) -> float:
    return float(values.mean())


def _area(thresholds: np.ndarray, values: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(thresholds)).sum())


_PIXELS = "location error threshold (px)"
_OVERLAP = "overlap threshold"
_PRECISION = Measure(np.arange(51.0), _PIXELS, np.less_equal, _at(20))
_NORMALISED = Measure(
    np.arange(51) / 100, "normalised location error threshold", np.less_equal, _at(0.2)
)
_SUCCESS = Measure(np.arange(21) / 20, _OVERLAP, np.greater, _mean)

PROTOCOLS: dict[str, ShortTerm | LongTerm] = {
    "gtot": ShortTerm(
        gtot,
        {
            "PR": Measure(np.arange(51) / 2, _PIXELS, np.less, _at(5)),
            "SR": Measure(np.arange(51) / 50, _OVERLAP, np.greater, _area),
        },
        pool_frames=True,
    ),
    "rgbt234": ShortTerm(rgbt234, {"MPR": _PRECISION, "MSR": _SUCCESS}, may_lack=1),
    "lasher": ShortTerm(
        lasher,
        {"PR": _PRECISION, "NPR": _NORMALISED, "SR": _SUCCESS},
        modalities=(1,),
        absence=True,
        repairs=True,
    ),
    "visevent": ShortTerm(
        visevent,
        {"PR": _PRECISION, "SR": _SUCCESS},
        modalities=(1,),
        absence=True,
        repairs=True,
    ),
    "vot-lt": LongTerm(vot_lt),
}
