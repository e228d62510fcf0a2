"""Scores of a tracker's boxes by the benchmarks' own `protocols`; `evaluate` is the way in.

Needs numpy only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .protocols import PROTOCOLS, LongTerm, ShortTerm, mark_empty

__all__ = ["PROTOCOLS", "Curve", "Scores", "Truth", "evaluate"]

Truth = np.ndarray | tuple[np.ndarray, ...]


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
        numbers: dict[str, float] = self.__dict__.get("numbers", {})
        if name in numbers:
            return numbers[name]
        raise AttributeError(
            f"Scores has no {name!r}; protocol {self.__dict__.get('protocol')!r} has {[*numbers]}"
        )

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON can hold it; an infinite threshold becomes None."""

        def plain(curve: Curve) -> dict[str, object]:
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


# a set of sequences to its headline numbers and curves
_Pool = Callable[[Sequence[str]], tuple[dict[str, float], dict[str, Curve]]]


def evaluate(
    results: Mapping[str, np.ndarray],
    truth: Mapping[str, Truth],
    protocol: str = "lasher",
    *,
    attributes: Mapping[str, Collection[str]] | None = None,
    confidences: Mapping[str, np.ndarray] | None = None,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Scores:
    """Score one tracker's boxes on sequences by one of `PROTOCOLS`.

    Results longer than the ground truth are handled as the official kit does, with a warning and
    a note.

    Args:
        results: {sequence: boxes (N, 4) as x, y, w, h in pixels}.
        truth: the same, or for GTOT and RGBT234 a tuple of them, one per modality.
        protocol: a name in `PROTOCOLS`; RGBD1K and DepthTrack are scored by "vot-lt".
        attributes: {attribute: its sequences}, to be scored by themselves, too.
        confidences: {sequence: (N,)}, for long-term protocols.
        image_sizes: {sequence: (width, height) in pixels}, for long-term protocols.

    Raises:
        ValueError: a sequence has no results or too few, boxes are not numbers, or the protocol
            is unknown.
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

    notes: list[str] = []
    unknown = [name for name in results if name not in truth]
    if unknown:
        notes.append(
            f"results without ground truth were left out: {len(unknown)}, the first is "
            f"{unknown[0]!r}"
        )
    spec = PROTOCOLS[protocol]
    if isinstance(spec, ShortTerm):
        pool = _score_short_term(results, truth, protocol, spec, notes)
    else:
        pool = _score_long_term(results, truth, spec, confidences or {}, image_sizes or {}, notes)
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


def _score_short_term(
    results: Mapping[str, np.ndarray],
    truth: Mapping[str, Truth],
    protocol: str,
    spec: ShortTerm,
    notes: list[str],
) -> _Pool:
    rates: dict[str, dict[str, np.ndarray]] = {}
    weights, extra = {}, {}
    for name, given in truth.items():
        truths = [
            _check_boxes(boxes, f"truth[{name!r}]", nan=spec.absence)
            for boxes in _modalities(given)
        ]
        lengths = [len(boxes) for boxes in truths]
        if len(truths) not in spec.modalities or len(set(lengths)) > 1:
            raise ValueError(
                f"truth[{name!r}] has {len(truths)} modalities of {lengths} boxes; protocol "
                f"{protocol!r} takes {' or '.join(map(str, spec.modalities))}, equally long"
            )
        boxes = _check_boxes(results[name], f"results[{name!r}]", nan=spec.repairs)
        extra[name] = _count_extra(name, boxes, lengths[0], spec.may_lack)
        length = min(len(boxes), lengths[0])
        frames = spec.score_frames(boxes[:length], [truth[:length] for truth in truths])
        rates[name] = {
            key: measure.hit(frames[key][None, :], measure.thresholds[:, None]).mean(1)
            for key, measure in spec.measures.items()
        }
        weights[name] = length if spec.pool_frames else 1
    _note_longer(extra, "the last ones were cut off, as the official kit does", notes)
    _note_shorter(extra, notes)

    def pool(names: Sequence[str]) -> tuple[dict[str, float], dict[str, Curve]]:
        curves, numbers, weight = {}, {}, [weights[name] for name in names]
        for key, measure in spec.measures.items():
            values = 100 * np.average([rates[name][key] for name in names], axis=0, weights=weight)
            curves[key] = Curve(measure.thresholds, values, measure.label)
            numbers[key] = measure.number(measure.thresholds, values)
        return numbers, curves

    return pool


def _score_long_term(
    results: Mapping[str, np.ndarray],
    truth: Mapping[str, Truth],
    spec: LongTerm,
    confidences: Mapping[str, np.ndarray],
    sizes: Mapping[str, tuple[int, int]],
    notes: list[str],
) -> _Pool:
    boxes, targets, scores, extra = {}, {}, {}, {}
    for name, given in truth.items():
        target = mark_empty(
            _check_boxes(_modalities(given)[0], f"truth[{name!r}]", nan=spec.absence)
        )
        if np.isnan(target).any(1).all():
            raise ValueError(
                f"truth[{name!r}] has the target in no frame, so that there is no recall"
            )
        boxes[name] = _check_boxes(results[name], f"results[{name!r}]", nan=True)
        extra[name] = _count_extra(name, boxes[name], len(target))
        targets[name] = np.pad(target, ((0, extra[name]), (0, 0)), constant_values=np.nan)
        scores[name] = np.asarray(confidences.get(name, np.zeros(len(boxes[name]))), dtype=float)
        if scores[name].shape != (len(boxes[name]),):
            raise ValueError(
                f"confidences[{name!r}] has shape {scores[name].shape}; expected "
                f"({len(boxes[name])},), one per box"
            )
    _note_longer(extra, "the target was taken as absent there, as the official toolkit does", notes)
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
    thresholds = _choose_thresholds(np.concatenate(list(scores.values())))
    rates = {
        name: spec.score_sequence(
            boxes[name], targets[name], scores[name], thresholds, sizes.get(name)
        )
        for name in boxes
    }

    def average(names: Sequence[str]) -> dict[str, np.ndarray]:
        precision, recall = 100 * np.mean([rates[name] for name in names], axis=0)
        total = precision + recall
        product = 2 * precision * recall
        f_score = np.divide(product, total, out=np.zeros_like(total), where=total > 0)
        return {"precision": precision, "recall": recall, "F": f_score}

    best = int(average(list(boxes))["F"].argmax())

    def pool(names: Sequence[str]) -> tuple[dict[str, float], dict[str, Curve]]:
        values = average(names)
        curves = {
            key: Curve(thresholds, value, "confidence threshold") for key, value in values.items()
        }
        return {key: float(value[best]) for key, value in values.items()}, curves

    return pool


def _choose_thresholds(confidences: np.ndarray, resolution: int = 100) -> np.ndarray:
    """At most `resolution` confidences, largest first, between infinities, as VOT chooses them."""
    ranked, inner = np.sort(confidences[~np.isnan(confidences)])[::-1], resolution - 2
    if len(ranked) > inner:
        step = len(ranked) // inner
        ranked = ranked[np.rint(np.linspace(step, len(ranked) - step, inner)).astype(int)]
    return np.concatenate([[np.inf], ranked, [-np.inf]])


def _check_boxes(array: np.ndarray, name: str, nan: bool = False) -> np.ndarray:
    """A copy (N, 4) in double precision, if it is boxes of finite numbers, or NaN where allowed."""
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


def _count_extra(name: str, boxes: np.ndarray, length: int, may_lack: int = 0) -> int:
    if len(boxes) < length - may_lack:
        allowed = (
            f"at most {may_lack} may be missing" if may_lack else "the official kits stop here"
        )
        raise ValueError(
            f"results[{name!r}] has {len(boxes)} boxes for {length} frames; {allowed}: write one "
            "box per frame, the given first one included"
        )
    return len(boxes) - length


def _note_longer(extra: Mapping[str, int], treatment: str, notes: list[str], most: int = 5) -> None:
    """Note which results outrun their ground truth, by how much, and what was done to them."""
    longer = [f"{name!r} (by {count})" for name, count in extra.items() if count > 0]
    if longer:
        more = f" and {len(longer) - most} more" if len(longer) > most else ""
        listed = ", ".join(longer[:most]) + more
        notes.append(
            f"{len(longer)} of {len(extra)} results outrun the ground truth; {treatment}: {listed}"
        )


def _note_shorter(extra: Mapping[str, int], notes: list[str]) -> None:
    """Note which results lack the last frames of the ground truth."""
    shorter = [name for name, count in extra.items() if count < 0]
    if shorter:
        notes.append(
            f"{len(shorter)} of {len(extra)} results are shorter than the ground truth by "
            f"{max(-extra[name] for name in shorter)}; the frames that both have were compared: "
            f"{', '.join(map(repr, shorter[:5]))}{' and more' if len(shorter) > 5 else ''}"
        )
