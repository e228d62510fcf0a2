"""Running a tracker over sequences, as its own test script would, and writing what it found."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from ..attaching.families import find_family
from ..files import differences, own_folder, write_atomically
from .box_files import MOST, read_boxes
from .sequences import TrackingSequence
from .text_files import printable
from .trackers import CONFIDENCE_KEYS, find_confidence, hash_networks, name_tracker
from .videos import write_video

SETTINGS, TIMES = "tracking.json", "times.csv"


def run(
    tracker: Any,  # a user's object, see `trackers`
    sequence: TrackingSequence,
    progress: Callable[[], object] | None = None,
    note: Callable[[str], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Track one target through a sequence; `progress` is called after every frame.

    `note` is told, once and at the first tracked frame, where the tracker gives no confidence.

    The tracker is called as its own scripts do, on frames (H, W, 6) uint8: `initialize(image,
    {"init_bbox": box})` and `track(image)["target_bbox"]`, images RGB, for OSTrack's family;
    `init(image, box)` and `track(image)["bbox"]`, images BGR, for pysot's. A depth's colour map is
    BGR for both, as ViPT gives it.

    Returns:
        Boxes (N, 4), the first one being the given; confidences (N,), NaN where the tracker gives
        none and, as VOT's are, 0 in the first frame; and the seconds spent in the tracker, without
        those of reading frames.

    Raises:
        ValueError: the tracker returned something else, or a box that is not finite. RuntimeError:
        the tracker failed.
    """
    family, first_box = find_family(tracker), sequence.box.tolist()
    depth = getattr(sequence.auxiliary, "depth", False)  # a list of frames does not say
    boxes, confidences, seconds = [sequence.box], [0.0], 0.0
    for number, (visible, auxiliary) in enumerate(sequence, 1):
        image = family.join(visible, auxiliary, depth)
        place = f"{sequence.name}, frame {number}"
        started = time.perf_counter()
        try:
            with torch.no_grad():  # siamban's scripts leave gradients on
                if number > 1:
                    out = tracker.track(image)
                else:
                    getattr(tracker, family.start)(image, family.pack(first_box))
        except Exception as error:  # with its traceback: the mistake is in the tracker
            raise RuntimeError(f"{place}: {type(tracker).__name__} failed") from error
        seconds += time.perf_counter() - started
        if number > 1:
            box, confidence = _read_output(out, family.box_key, type(tracker).__name__, place)
            boxes.append(box)
            confidences.append(confidence)
            if note is not None and number == 2 and np.isnan(confidence):
                note(
                    f"{place}: the tracker gives no confidence, so that all frames will count as "
                    f"reported; it returned {', '.join(map(str, out))}; expected one of "
                    f"{', '.join(CONFIDENCE_KEYS)}"
                )
        if progress is not None:
            progress()
    return np.array(boxes), np.array(confidences), seconds


def track_folder(
    tracker: Any,  # a user's object, see `trackers`
    sequences: Sequence[TrackingSequence],
    folder: str | Path,
    settings: Mapping[str, object],
    *,
    confidence: bool = False,
    videos: bool = False,
    progress: bool = True,
    note: Callable[[str], object] = warnings.warn,
) -> dict[str, tuple[int, float]]:
    """Track the sequences that have no result in `folder` yet; each file is whole or not there.

    Writes `<sequence>.txt`, a line of `times.csv` (name, frames, seconds in the tracker) and
    `videos/<sequence>.mp4`.

    Args:
        settings: what the results depend on, of JSON; with a hash of the weights it is kept in
            `tracking.json`.
        confidence: write a fifth column after x, y, w, h, where the tracker gives confidences.
        videos: write videos, too; also of sequences that were tracked before.
        progress: show a bar.
        note: is told what is done otherwise than one might expect.

    Returns:
        {sequence: (frames, seconds in the tracker)} of those tracked now.

    Raises:
        OSError: another process writes into the folder, or it cannot be written to.
        ValueError: it holds results of other settings, weights or frames; or as `run`.
    """
    folder = Path(folder)
    if twice := [name for name, n in Counter(s.name for s in sequences).items() if n > 1]:
        raise ValueError(
            f"{len(twice)} names are of more than one sequence, the first is {twice[0]!r}; track "
            "them one after the other, with a folder each"
        )
    with own_folder(folder, "tracks", "videos"):
        there = [s for s in sequences if (folder / f"{s.name}.txt").is_file()]
        _claim(folder, {**settings, "weights": hash_networks(tracker)}, bool(there))
        done = {s.name: _read_done(folder / f"{s.name}.txt", s) for s in there}
        with (folder / TIMES).open("a", encoding="utf-8", errors="surrogateescape") as times:
            return _track_missing(
                tracker, sequences, folder, done, times, confidence, videos, progress, note
            )


def _track_missing(
    tracker: Any,
    sequences: Sequence[TrackingSequence],
    folder: Path,
    done: dict[str, np.ndarray],
    times: TextIO,
    confidence: bool,
    videos: bool,
    progress: bool,
    note: Callable[[str], object],
) -> dict[str, tuple[int, float]]:
    from tqdm import tqdm

    taken: dict[str, tuple[int, float]] = {}
    scores: dict[str, np.ndarray] = {}
    title = name_tracker(tracker)
    total = sum(len(sequence) for sequence in sequences if sequence.name not in done)
    with tqdm(total=total, unit="frame", disable=not progress) as bar:
        for sequence in sequences:
            name, video = sequence.name, folder / "videos" / f"{sequence.name}.mp4"
            bar.set_description(printable(name))
            if name not in done:
                once = note if confidence and not taken else None
                boxes, confidences, seconds = run(tracker, sequence, bar.update, once)
                scores[name] = confidences
                done[name] = _join_columns(name, boxes, confidences) if confidence else boxes
                _write_boxes(folder / f"{name}.txt", done[name])
                taken[name] = len(sequence), seconds
                times.write(f"{name},{len(sequence)},{seconds:.3f}\n")
                times.flush()
            if videos and not video.is_file():
                shown = scores.get(name, done[name][:, 4] if done[name].shape[1] > 4 else None)
                write_video(video, sequence, done[name][:, :4], note, tracker=title, scores=shown)
    return taken


def _read_done(path: Path, sequence: TrackingSequence) -> np.ndarray:
    boxes = read_boxes(path, confidence=True)
    if len(boxes) != len(sequence):
        raise ValueError(f"{path} has {len(boxes)} boxes for {len(sequence)} frames; delete it")
    return boxes


def _read_output(out: object, key: str, tracker: str, place: str) -> tuple[np.ndarray, float]:
    """The box (4,) and the confidence in what a tracker returned; NaN where it gives none."""
    if not isinstance(out, Mapping) or key not in out:
        found = list(out) if isinstance(out, Mapping) else type(out).__name__
        raise ValueError(f"{tracker}.track returned {found}; expected a dict with {key!r}")
    try:
        given = torch.as_tensor(out[key])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{place}: the tracker's box is {out[key]!r}; expected four finite numbers"
        ) from None
    box: np.ndarray = given.detach().cpu().double().reshape(-1).numpy()
    if len(box) != 4 or not (np.abs(box) < MOST).all():  # as they are read
        raise ValueError(
            f"{place}: the tracker's box is {box.tolist()}; expected four finite numbers"
        )
    return box, find_confidence(out)


def _join_columns(name: str, boxes: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """Rows (N, 5) of boxes and confidences; (N, 4) where the tracker never gives a confidence."""
    missing = np.flatnonzero(np.isnan(confidences[1:])) + 2
    if 0 < len(missing) < len(boxes) - 1:
        raise ValueError(f"{name}, frame {missing[0]}: the tracker gives no confidence here")
    return boxes if len(missing) else np.column_stack([boxes, confidences])


def _write_boxes(path: Path, rows: np.ndarray) -> None:
    formats = ["%.4f"] * 4 + ["%.8g"] * (rows.shape[1] - 4)
    write_atomically(path, partial(np.savetxt, X=rows, fmt=formats, delimiter=","))


def _claim(folder: Path, settings: Mapping[str, object], resumes: bool) -> None:
    """Note the settings in a new folder; refuse one that holds results of others."""
    path = folder / SETTINGS
    if not path.is_file():
        if resumes:
            raise ValueError(
                f"{folder} holds results and no {SETTINGS} that says of what; name another folder"
            )
        write_atomically(path, lambda to: to.write_text(json.dumps(settings, indent=1) + "\n"))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise ValueError(f"{path} is no JSON of settings; name another folder, or delete it")
    if found := differences(before, settings):
        raise ValueError(
            f"{folder} holds results of other settings: {found}; name another folder, or delete it"
        )
