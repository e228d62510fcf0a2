"""Running somebody's tracker over sequences, as its own test script would, and writing what it
found.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..files import write_atomically
from ..model.fusion import GenerativeFusion
from . import layouts as benchmarks
from .frames import Sequence, open_pair, open_sequence, open_sequences, write_video

__all__ = [
    "Sequence",
    "load_tracker",
    "open_pair",
    "open_sequence",
    "open_sequences",
    "run",
    "track_folder",
]

SETTINGS = "tracking.json"


def load_tracker(spec: str, fusion: Any = None) -> Any:
    """The tracker that a function without arguments returns, with a fusion attached where one is
    named.

    Args:
        spec: "module:function" or "path/to/file.py:function"; modules are also looked for in the
            current folder.
        fusion: folder or hub id for `attach`. A tracker that needs an adapter of its own has it as
            `tracker.adapter`, or its function attaches the fusion itself.

    Raises:
        ValueError, OSError, ImportError: no such function, or what it returns cannot be driven or
        attached to.
    """
    from ..adapters import Adapter
    from ..attaching.attachment import Attachment, attach

    place, _, name = str(spec).rpartition(":")
    if not place or not name:
        raise ValueError(f"tracker {spec!r}; expected module:function or path/to/file.py:function")
    build = getattr(_module(place), name, None)
    if not callable(build):
        raise ValueError(f"{place} has no function {name!r}")
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise ValueError(f"{spec} cannot be called without arguments: {error}") from None
    tracker = build()
    _is_ostrack(tracker)
    if fusion is None:
        return tracker
    try:
        Attachment.of(tracker)
    except ValueError:
        adapter = getattr(tracker, "adapter", None)
        attach(tracker, fusion, adapter if isinstance(adapter, Adapter) else "auto")
    else:
        warnings.warn(f"{spec} has attached a fusion itself; {fusion} is not used", stacklevel=2)
    return tracker


def run(
    tracker: Any, sequence: Sequence, progress: Callable[[], object] | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Track one target through a sequence; `progress` is called after every frame.

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
    ostrack = _is_ostrack(tracker)
    key, rgb, rgb_too = (
        ("target_bbox", 1, -1 if sequence.auxiliary.depth else 1) if ostrack else ("bbox", -1, -1)
    )
    boxes, confidences, seconds = [sequence.box], [0.0], 0.0
    for number, (visible, auxiliary) in enumerate(sequence, 1):
        image = np.concatenate([visible[..., ::rgb], auxiliary[..., ::rgb_too]], 2)
        started = time.perf_counter()
        try:
            with torch.no_grad():  # siamban's scripts leave gradients on
                if number > 1:
                    out = tracker.track(image)
                elif ostrack:
                    tracker.initialize(image, {"init_bbox": sequence.box.tolist()})
                else:
                    tracker.init(image, sequence.box.tolist())
        except Exception as error:  # with its traceback: the mistake is in the tracker
            raise RuntimeError(
                f"{sequence.name}, frame {number}: {type(tracker).__name__} failed"
            ) from error
        seconds += time.perf_counter() - started
        if number > 1:
            if not isinstance(out, Mapping) or key not in out:
                found = list(out) if isinstance(out, Mapping) else type(out).__name__
                raise ValueError(
                    f"{type(tracker).__name__}.track returned {found}; expected a dict with {key!r}"
                )
            box = torch.as_tensor(out[key]).detach().cpu().double().reshape(-1).numpy()
            if len(box) != 4 or not np.isfinite(box).all():
                place = f"{sequence.name}, frame {number}"
                raise ValueError(
                    f"{place}: the tracker's box is {box.tolist()}; expected four finite numbers"
                )
            boxes.append(box)
            confidences.append(float(out.get("best_score", out.get("max_score", np.nan))))
        if progress is not None:
            progress()
    return np.array(boxes), np.array(confidences), seconds


def track_folder(
    tracker: Any,
    sequences: List[Sequence],
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    confidence: bool = False,
    videos: bool = False,
    progress: bool = True,
) -> dict[str, tuple[int, float]]:
    """Track the sequences that have no result in `folder` yet; each file is written when it is
    whole.

    Writes `<sequence>.txt` (x, y, w, h and, with `confidence`, a fifth column where the tracker
    gives one), a line of `times.csv`, and `videos/<sequence>.mp4`. `settings`, of JSON, and a hash
    of the weights go to `tracking.json`.

    Returns:
        {sequence: (frames, seconds in the tracker)} of those tracked now.

    Raises:
        ValueError: the folder holds results of other settings, weights or frames; or as `run`.
    """
    from tqdm import tqdm

    folder, times = Path(folder), {}
    paths = {sequence.name: folder / f"{sequence.name}.txt" for sequence in sequences}
    done = {
        name: benchmarks.read_boxes(path, confidence=True)
        for name, path in paths.items()
        if path.is_file()
    }
    _claim(folder, {**settings, "weights": _weights(tracker)}, bool(done))
    for sequence in sequences:
        if len(done.get(sequence.name, sequence)) != len(sequence):
            raise ValueError(
                f"{paths[sequence.name]} has {len(done[sequence.name])} boxes for {len(sequence)} "
                "frames; delete it"
            )
    total = sum(len(sequence) for sequence in sequences if sequence.name not in done)
    with tqdm(total=total, unit="frame", disable=not progress) as bar:
        for sequence in sequences:
            name, video = sequence.name, folder / "videos" / f"{sequence.name}.mp4"
            bar.set_description(name)
            if name not in done:
                boxes, confidences, seconds = run(tracker, sequence, bar.update)
                missing = np.flatnonzero(np.isnan(confidences[1:])) + 2
                if confidence and 0 < len(missing) < len(boxes) - 1:
                    raise ValueError(
                        f"{name}, frame {missing[0]}: the tracker gives no confidence here"
                    )
                done[name] = rows = (
                    np.column_stack([boxes, confidences])
                    if confidence and not len(missing)
                    else boxes
                )
                formats = ["%.4f"] * 4 + ["%.8g"] * (rows.shape[1] - 4)
                write_atomically(
                    paths[name], partial(np.savetxt, X=rows, fmt=formats, delimiter=",")
                )
                times[name] = len(sequence), seconds
                with (folder / "times.csv").open("a") as file:
                    file.write(f"{name},{len(sequence)},{seconds:.3f}\n")
            if videos and not video.is_file():
                write_video(video, sequence, done[name][:, :4])
    return times


def _claim(folder: Path, settings: Mapping[str, Any], resumes: bool) -> None:
    """Note the settings in a new folder; refuse one that holds results of others."""
    path = folder / SETTINGS
    if not path.is_file():
        if resumes:
            raise ValueError(
                f"{folder} holds results and no {SETTINGS} that says of what; name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda to: to.write_text(json.dumps(settings, indent=1) + "\n"))
        return
    try:
        before = dict(json.loads(path.read_text()))
    except ValueError:
        raise ValueError(f"{path} is no JSON of settings; name another folder") from None
    for key in sorted({*before, *settings}):
        if before.get(key) != settings.get(key):
            change = f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"
            raise ValueError(
                f"{folder} holds results of other settings: {change}; name another folder, or "
                "delete it"
            )


def _weights(tracker: Any) -> str | None:
    """A hash of the networks that the tracker is or holds: their weights, and how an attached
    fusion samples.
    """
    held = (
        [tracker]
        if isinstance(tracker, nn.Module)
        else list(getattr(tracker, "__dict__", {}).values())
    )
    networks = [network for network in held if isinstance(network, nn.Module)]
    if not networks:
        warnings.warn(
            f"{type(tracker).__name__} holds no network as an attribute of its own: a run that "
            "goes on with "
            "other weights will not be noticed",
            stacklevel=2,
        )
        return None
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, torch.Tensor):
                digest.update(
                    value.detach()
                    .cpu()
                    .contiguous()
                    .reshape(-1)
                    .view(torch.uint8)
                    .numpy()
                    .tobytes()
                )
        for module in network.modules():
            if isinstance(module, GenerativeFusion):
                digest.update(json.dumps(module.config, default=str).encode())
    return digest.hexdigest()


def _is_ostrack(tracker: Any) -> bool:
    """Whether the tracker is driven as OSTrack's family is, and not as pysot's."""
    for start, ostrack in (("initialize", True), ("init", False)):
        if callable(getattr(tracker, start, None)) and callable(getattr(tracker, "track", None)):
            return ostrack
    raise ValueError(
        f"{type(tracker).__name__} has no initialize(image, info) and track(image), as OSTrack's "
        "family, nor "
        "init(image, box) and track(image), as pysot's"
    )


def _module(place: str) -> Any:
    """The module of a dotted name or a file; either finds what lies beside it."""
    path = Path(place)
    file = path if path.suffix == ".py" else None
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"{place}: no such file")
    folder = str(file.resolve().parent if file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if file is None:
            return importlib.import_module(place)
        # not its own name, which may be that of the tracker's package
        name = f"tracker_in_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise ImportError(f"{place} cannot be imported: {error}") from error
