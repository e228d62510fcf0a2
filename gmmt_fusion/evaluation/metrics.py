"""Scores of a tracker's boxes by the benchmarks' own protocols.

Needs numpy only. Every protocol is one function below (`gtot`, `rgbt234`, `lasher`, `vot_lt`) whose
docstring states its thresholds, units, pooling, paper, and what frames without the target count;
`evaluate` is the way in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Truth = np.ndarray | tuple[np.ndarray, ...]
_Pool = Callable[[Sequence[str]], "tuple[dict[str, float], dict[str, Curve]]"]


@dataclass(frozen=True)
class Curve:
    """`values` (T,) in percent over `thresholds` (T,), whose meaning and unit `label` says."""

    thresholds: np.ndarray
    values: np.ndarray
    label: str


@dataclass(frozen=True)
class Scores:
    """What one tracker scores under one protocol; every number is in percent.

    `numbers` are the protocol's headline numbers, also readable as attributes (`scores.PR`);
    `sequences` and `attributes` hold the same numbers for each sequence and for the sequences of
    each attribute, `attribute_curves` the curves of the latter; `notes` say what was done to
    results that did not fit the ground truth.
    """

    protocol: str
    numbers: dict[str, float]
    curves: dict[str, Curve]
    sequences: dict[str, dict[str, float]]
    attributes: dict[str, dict[str, float]] = field(default_factory=dict)
    attribute_curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> float:
        numbers = self.__dict__.get("numbers", {})
        if name in numbers:
            return numbers[name]
        raise AttributeError(
            f"Scores has no {name!r}; protocol {self.__dict__.get('protocol')!r} has {[*numbers]}"
        )

    def to_dict(self) -> dict:
        """Everything as JSON can hold it; an infinite threshold becomes None."""

        def plain(curve: Curve) -> dict:
            thresholds = [
                threshold if np.isfinite(threshold) else None
                for threshold in curve.thresholds.tolist()
            ]
            return {"label": curve.label, "thresholds": thresholds, "values": curve.values.tolist()}

        curves = {name: plain(curve) for name, curve in self.curves.items()}
        of_attributes = {
            key: {n: plain(c) for n, c in of.items()} for key, of in self.attribute_curves.items()
        }
        return {
            **vars(self),
            "curves": curves,
            "attribute_curves": of_attributes,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Measure:
    """A frame is a hit where `hit(error or overlap, threshold)`; `number` reads the headline off
    the curve.
    """

    thresholds: np.ndarray
    label: str
    hit: Callable[..., np.ndarray]
    number: Callable[[_Measure, np.ndarray], float]


def _at(threshold: float) -> Callable[[_Measure, np.ndarray], float]:
    return lambda measure, values: float(values[np.searchsorted(measure.thresholds, threshold)])


def _mean(measure: _Measure, values: np.ndarray) -> float:
    return float(values.mean())


def _area(measure: _Measure, values: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(measure.thresholds)).sum())


_PIXELS = "location error threshold (px)"
_OVERLAP = "overlap threshold"


def _centre_error(
    boxes: np.ndarray, truth: np.ndarray, unit: np.ndarray | float = 1.0
) -> np.ndarray:
    """Distance of the centres (N,), in `unit`s."""
    centres, true_centres = boxes[:, :2] + boxes[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2
    return np.sqrt(((centres / unit - true_centres / unit) ** 2).sum(1))


def _overlap(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union (N,); where there is no union, 0."""
    low, high = np.maximum(boxes[:, :2], truth[:, :2]), np.minimum(_ends(boxes), _ends(truth))
    intersection = np.clip(high - low, 0, None).prod(1)
    union = boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)


def _ends(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:]


def _better_modality(
    boxes: np.ndarray, truths: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    error = np.min([_centre_error(boxes, truth) for truth in truths], axis=0)
    return error, np.max([_overlap(boxes, truth) for truth in truths], axis=0)


def gtot(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """GTOT (Li et al., "Learning collaborative sparse representation for grayscale-thermal
    tracking", TIP 2016).

    In every frame the modality whose ground truth is nearer counts: the smaller centre error for
    PR, the larger overlap for SR. PR: share of frames with centre error < 5 px (curve 0, 0.5, … 25
    px). SR: trapezoid area under the share of frames with overlap > 0, 0.02, … 1. Pooled over the
    frames of all sequences, so that long sequences weigh more. No frame is left out, the given
    first one included; absence is not annotated.
    """
    error, overlap = _better_modality(boxes, truths)
    return {"PR": error, "SR": overlap}


def rgbt234(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """RGBT234 (Li et al., "RGB-T object tracking: benchmark and baseline", Pattern Recognition
    2019).

    In every frame the modality whose ground truth is nearer counts. MPR: share of frames with
    centre error <= 20 px (curve 0, 1, … 50 px). MSR: mean over the 21 thresholds 0, 0.05, … 1 of
    the share of frames with overlap above them. Taken per sequence, then averaged over sequences.
    No frame is left out, the given first one included; absence is not annotated.
    """
    error, overlap = _better_modality(boxes, truths)
    return {"MPR": error, "MSR": overlap}


def lasher(boxes: np.ndarray, truths: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """LasHeR (Li et al., "LasHeR: a large-scale high-diversity benchmark for RGBT tracking", TIP
    2022).

    PR: share of frames with centre error <= 20 px (curve 0, 1, … 50 px). NPR: the same with the
    error along x in ground truth widths and along y in heights, <= 0.2 (curve 0, 0.01, … 0.5). SR:
    mean over the 21 thresholds 0, 0.05, … 1 of the share of frames with overlap above them. Taken
    per sequence, then averaged over sequences.

    As the official kit does: the first box is replaced by the ground truth; a box without a
    positive width and height is replaced by the one before it; and a frame is taken as absent where
    any of the ground truth's four numbers is not positive, thus also where the target touches the
    left or upper border. An absent frame stays in the count, as a hit at every threshold of PR and
    NPR and as a miss at every threshold of SR.
    """
    (truth,) = truths
    valid = (boxes[:, 2:] > 0).all(1)
    boxes = boxes[np.maximum.accumulate(np.where(valid, np.arange(len(boxes)), 0))]
    boxes[0] = truth[0]
    present = np.all(truth > 0, axis=1)
    sizes = np.where(present.reshape(-1, 1), truth[:, 2:], 1)
    return {
        "PR": np.where(present, _centre_error(boxes, truth), -1),
        "NPR": np.where(present, _centre_error(boxes, truth, sizes), -1),
        "SR": np.where(present, _overlap(boxes, truth), -1),
    }


def vot_lt(
    boxes: np.ndarray,
    truth: np.ndarray,
    confidence: np.ndarray,
    thresholds: np.ndarray,
    size: Sequence[int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """VOT long-term, also of RGBD1K and DepthTrack (Lukežič et al., "Now you see me",
    arXiv:1804.07056).

    At each confidence threshold a frame is reported where confidence >= threshold. precision: mean
    overlap over the reported frames (1 where none is); recall: sum of overlaps of the reported
    frames over the number of frames with the target. Taken per sequence at the tracker's 100
    thresholds (98 quantiles of all its confidences, and ±infinity), averaged over sequences; F = 2
    · precision · recall / (precision + recall) of these averages, and the headline is the threshold
    with the largest F. Sequences and attributes are given at that same threshold.

    As the official toolkit does: boxes are rounded to whole pixels and cut to the image where its
    size is known; a frame reported while the target is absent (NaN in the ground truth) has overlap
    0, unless the result's box is NaN too, then 1; the first frame is the given one and counts as
    not found.
    """
    overlap = _raster_overlap(boxes, truth, size)
    overlap[0] = 0
    reported = confidence[None, :] >= thresholds[:, None]
    found, count = reported @ overlap, reported.sum(1)
    precision = np.divide(found, count, out=np.ones_like(found), where=count > 0)
    return precision, found / (~np.isnan(truth).any(1)).sum()


def _raster_overlap(boxes: np.ndarray, truth: np.ndarray, size: Sequence[int] | None) -> np.ndarray:
    """Overlap (N,) of the pixels that two boxes fill, NaN boxes filling none."""
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
        return np.clip(np.minimum(end, high) - np.maximum(start, low) + 1, 0, None).prod(1)

    first, second = (area(lows[i], highs[i]) * filled[i] for i in (0, 1))
    both = area(np.maximum(*lows), np.minimum(*highs)) * (filled[0] & filled[1])
    union = first + second - both
    overlap = np.divide(both, union, out=np.zeros_like(union), where=union > 0)
    return np.where(alike, 1.0, np.where(outside, 0.0, overlap))


@dataclass(frozen=True)
class _ShortTerm:
    frames: Callable[[np.ndarray, Sequence[np.ndarray]], dict[str, np.ndarray]]
    measures: dict[str, _Measure]
    pool_frames: bool = False
    modalities: tuple[int, ...] = (1, 2)


_PRECISION = _Measure(np.arange(51.0), _PIXELS, np.less_equal, _at(20))
_NORMALISED = _Measure(
    np.arange(51) / 100, "normalised location error threshold", np.less_equal, _at(0.2)
)
_SUCCESS = _Measure(np.arange(21) / 20, _OVERLAP, np.greater, _mean)
_GTOT = {
    "PR": _Measure(np.arange(51) / 2, _PIXELS, np.less, _at(5)),
    "SR": _Measure(np.arange(51) / 50, _OVERLAP, np.greater, _area),
}
_SHORT_TERM = {
    "gtot": _ShortTerm(gtot, _GTOT, pool_frames=True),
    "rgbt234": _ShortTerm(rgbt234, {"MPR": _PRECISION, "MSR": _SUCCESS}),
    "lasher": _ShortTerm(
        lasher, {"PR": _PRECISION, "NPR": _NORMALISED, "SR": _SUCCESS}, modalities=(1,)
    ),
}
_LONG_TERM = ("vot-lt", "rgbd1k", "depthtrack")
PROTOCOLS = (*_SHORT_TERM, *_LONG_TERM)


def evaluate(
    results: Mapping[str, np.ndarray],
    truth: Mapping[str, Truth],
    protocol: str = "lasher",
    *,
    attributes: Mapping[str, Collection[str]] | None = None,
    confidences: Mapping[str, np.ndarray] | None = None,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Scores:
    """Score `results`, {sequence: (N, 4) boxes as x, y, w, h in px}, against `truth`, by one of
    `PROTOCOLS`.

    `truth` holds (N, 4) boxes, or for GTOT and RGBT234 a tuple of them, one per modality.
    `attributes` is {attribute: its sequences}. The long-term protocols take `confidences`,
    {sequence: (N,)}, and `image_sizes`, {sequence: (width, height)}. Results longer than the ground
    truth are handled as the official kit does, with a warning and a note; shorter ones, a missing
    sequence and boxes that are not numbers raise ValueError.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"protocol {protocol!r} is unknown; expected one of {', '.join(PROTOCOLS)}"
        )
    names = list(truth)
    if not names:
        raise ValueError("truth has no sequence; expected {name: boxes}")
    missing = [name for name in names if name not in results]
    if missing:
        raise ValueError(
            f"results lack {len(missing)} of {len(names)} sequences, the first is {missing[0]!r}"
        )

    notes = []
    unknown = [name for name in results if name not in truth]
    if unknown:
        notes.append(
            f"results without ground truth were left out: {len(unknown)}, the first is "
            f"{unknown[0]!r}"
        )
    if protocol in _SHORT_TERM:
        pool = _short_term(results, truth, protocol, notes)
    else:
        pool = _long_term(results, truth, confidences or {}, image_sizes or {}, notes)
    for note in notes:
        warnings.warn(note, stacklevel=2)

    chosen = {
        key: [name for name in names if name in set(members)]
        for key, members in (attributes or {}).items()
    }
    numbers, curves = pool(names)
    pooled = {key: pool(members) for key, members in chosen.items() if members}
    return Scores(
        protocol=protocol,
        numbers=numbers,
        curves=curves,
        sequences={name: pool([name])[0] for name in names},
        attributes={key: scores for key, (scores, _) in pooled.items()},
        attribute_curves={key: curves for key, (_, curves) in pooled.items()},
        notes=tuple(notes),
    )


def _short_term(
    results: Mapping[str, np.ndarray], truth: Mapping[str, Truth], protocol: str, notes: list[str]
) -> _Pool:
    spec, rates, weights, extra = _SHORT_TERM[protocol], {}, {}, {}
    for name, given in truth.items():
        truths = [
            _boxes(box, f"truth[{name!r}]", nan=protocol == "lasher") for box in _modalities(given)
        ]
        lengths = [len(box) for box in truths]
        if len(truths) not in spec.modalities or len(set(lengths)) > 1:
            raise ValueError(
                f"truth[{name!r}] has {len(truths)} modalities of {lengths} boxes; protocol "
                f"{protocol!r} takes "
                f"{' or '.join(map(str, spec.modalities))}, equally long"
            )
        boxes = _boxes(results[name], f"results[{name!r}]")
        extra[name] = _extra(name, boxes, lengths[0])
        frames = spec.frames(boxes[: lengths[0]], truths)
        rates[name] = {
            key: measure.hit(frames[key][None, :], measure.thresholds[:, None]).mean(1)
            for key, measure in spec.measures.items()
        }
        weights[name] = lengths[0] if spec.pool_frames else 1
    _tell_longer(extra, "the last ones were cut off, as the official kit does", notes)

    def pool(names: Sequence[str]) -> tuple[dict[str, float], dict[str, Curve]]:
        curves, numbers, weight = {}, {}, [weights[name] for name in names]
        for key, measure in spec.measures.items():
            values = 100 * np.average([rates[name][key] for name in names], axis=0, weights=weight)
            curves[key] = Curve(measure.thresholds, values, measure.label)
            numbers[key] = measure.number(measure, values)
        return numbers, curves

    return pool


def _long_term(
    results: Mapping[str, np.ndarray],
    truth: Mapping[str, Truth],
    confidences: Mapping[str, np.ndarray],
    sizes: Mapping[str, tuple[int, int]],
    notes: list[str],
) -> _Pool:
    boxes, targets, scores, extra = {}, {}, {}, {}
    for name, given in truth.items():
        target = _boxes(_modalities(given)[0], f"truth[{name!r}]", nan=True)
        if np.isnan(target).any(1).all():
            raise ValueError(
                f"truth[{name!r}] has the target in no frame, so that there is no recall"
            )
        boxes[name] = _boxes(results[name], f"results[{name!r}]", nan=True)
        extra[name] = _extra(name, boxes[name], len(target))
        targets[name] = np.pad(target, ((0, extra[name]), (0, 0)), constant_values=np.nan)
        scores[name] = np.asarray(confidences.get(name, np.zeros(len(boxes[name]))), dtype=float)
        if scores[name].shape != (len(boxes[name]),):
            raise ValueError(
                f"confidences[{name!r}] has shape {scores[name].shape}; expected "
                f"({len(boxes[name])},), one per box"
            )
    _tell_longer(extra, "the target was taken as absent there, as the official toolkit does", notes)
    bare = [name for name in truth if name not in confidences]
    if bare:
        notes.append(
            f"{len(bare)} of {len(truth)} results have no confidences; all their frames count as "
            "reported"
        )
    unbounded = [name for name in truth if name not in sizes]
    if unbounded:
        notes.append(
            f"{len(unbounded)} of {len(truth)} sequences have no image size; their boxes were not "
            "cut to it"
        )
    thresholds = _confidence_thresholds(np.concatenate(list(scores.values())))
    rates = {
        name: vot_lt(boxes[name], targets[name], scores[name], thresholds, sizes.get(name))
        for name in boxes
    }

    def mean(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        precision, recall = 100 * np.mean([rates[name] for name in names], axis=0)
        total = precision + recall
        return (
            precision,
            recall,
            np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0),
        )

    best = int(mean(list(boxes))[2].argmax())

    def pool(names: Sequence[str]) -> tuple[dict[str, float], dict[str, Curve]]:
        values = dict(zip(("precision", "recall", "F"), mean(names), strict=True))
        curves = {
            key: Curve(thresholds, value, "confidence threshold") for key, value in values.items()
        }
        return {key: float(value[best]) for key, value in values.items()}, curves

    return pool


def _confidence_thresholds(confidences: np.ndarray, resolution: int = 100) -> np.ndarray:
    ranked, inner = np.sort(confidences[~np.isnan(confidences)])[::-1], resolution - 2
    if len(ranked) > inner:
        step = len(ranked) // inner
        ranked = ranked[np.rint(np.linspace(step, len(ranked) - step, inner)).astype(int)]
    return np.concatenate([[np.inf], ranked, [-np.inf]])


def _boxes(array: np.ndarray, name: str, nan: bool = False) -> np.ndarray:
    boxes = np.array(array, dtype=float)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(
            f"{name} has shape {boxes.shape}; expected (N, 4), one box x, y, w, h per frame"
        )
    bad = np.flatnonzero((np.isinf(boxes) if nan else ~np.isfinite(boxes)).any(1))
    if len(bad):
        raise ValueError(
            f"{name}[{bad[0]}] is {boxes[bad[0]].tolist()}; expected four finite numbers"
        )
    return boxes


def _modalities(truth: Truth) -> tuple[np.ndarray, ...]:
    return truth if isinstance(truth, tuple) else (truth,)


def _extra(name: str, boxes: np.ndarray, length: int) -> int:
    if len(boxes) < length:
        raise ValueError(
            f"results[{name!r}] has {len(boxes)} boxes for {length} frames; the official kits stop "
            "here too: "
            "write one box per frame, the given first one included"
        )
    return len(boxes) - length


def _tell_longer(extra: Mapping[str, int], treatment: str, notes: list[str], most: int = 5) -> None:
    longer = [f"{name!r} (by {count})" for name, count in extra.items() if count]
    if longer:
        listed = ", ".join(longer[:most]) + (
            f" and {len(longer) - most} more" if len(longer) > most else ""
        )
        notes.append(
            f"{len(longer)} of {len(extra)} results outrun the ground truth; {treatment}: {listed}"
        )
