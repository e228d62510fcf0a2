"""Somebody's tracker: found by name, given a fusion, and driven as its own family is.

A tracker is any object with its family's two methods; hence the `Any`s: it has no type of ours.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..adapters import Adapter, attach
from ..attaching.attachment import Attachment, optimize_on_gpu
from ..attaching.families import find_family
from ..attaching.recognition import networks_of
from ..model.checkpoint import weights_digest
from ..model.fusion import GenerativeFusion

# under which trackers of both families return their confidence, the usual ones first: OSTrack's and
# SiamBAN's, TransT's, STARK's and MixFormer's, SiamRPN's, pytracking's, …
CONFIDENCE_KEYS = (
    "best_score",
    "max_score",
    "conf_score",
    "confidence",
    "confidence_score",
    "conf",
    "object_presence_score",
    "presence_score",
    "pred_score",
    "target_score",
    "score",
    "scores",
)


def find_confidence(out: Mapping[str, object]) -> float:
    """The confidence in what a tracker returned, under one of `CONFIDENCE_KEYS`; NaN for none."""
    for key in CONFIDENCE_KEYS:
        value = out.get(key)
        if value is None or isinstance(value, str | bytes):
            continue
        try:
            numbers = torch.as_tensor(value).detach().cpu().double().reshape(-1)
        except (TypeError, ValueError, RuntimeError):  # something else of that name
            continue
        if len(numbers) == 1:  # and not a map of scores
            return float(numbers[0])
    return math.nan


def load_tracker(spec: str, fusion: str | Path | None = None, device: str | None = None) -> Any:
    """The tracker that a named function returns, with a fusion attached where one is named.

    Args:
        spec: "module:function" or "path/to/file.py:function", called without arguments; modules
            are also looked for in the current folder.
        fusion: folder or hub id for `attach`; on a GPU it is optimised. A tracker that needs an
            adapter of its own has it as `tracker.adapter`, or its function attaches the fusion
            itself.
        device: to which the networks that it is or holds are moved, with the fusion; default where
            they are.

    Raises:
        ValueError, OSError, ImportError: no such function, or what it returns cannot be driven or
        attached to. RuntimeError: the function failed.
    """
    check_device(device)
    tracker = call_named(spec)
    find_family(tracker)
    if fusion is not None:
        _attach(tracker, fusion, spec)
    for network in networks_of(tracker) if device else ():
        network.to(device)
    return tracker


def call_named(spec: str) -> Any:
    """What a function of the user's returns, named as `load_tracker` takes it; errors as there."""
    place, _, name = str(spec).rpartition(":")
    if not place or not name:
        raise ValueError(f"{spec!r}; expected module:function or path/to/file.py:function")
    build = getattr(_import(place), name, None)
    if not callable(build):
        raise ValueError(f"{place} has no function {name!r}")
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise ValueError(f"{spec} cannot be called without arguments: {error}") from None
    try:
        return build()
    except (OSError, ImportError):  # says what it lacks
        raise
    except Exception as error:  # with its traceback: the mistake is in the tracker
        raise RuntimeError(f"{spec} failed") from error


def check_device(device: str | None) -> None:
    """Raise ValueError unless it is None, or the name of a device that this machine has."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device {device!r} cannot be used ({reason}); expected cpu, or a cuda, cuda:1, … "
            "of this machine"
        ) from None


def _attach(tracker: Any, fusion: str | Path, spec: str) -> None:
    try:
        Attachment.of(tracker)
    except ValueError:
        adapter = getattr(tracker, "adapter", None)
        handle = attach(tracker, fusion, adapter if isinstance(adapter, Adapter) else "auto")
        optimize_on_gpu(handle)
    else:
        warnings.warn(f"{spec} has attached a fusion itself; {fusion} is not used", stacklevel=3)


def name_tracker(tracker: Any) -> str:
    """Its class's name, and +GMMT where a fusion is attached."""
    try:
        attached = Attachment.of(tracker).enabled
    except ValueError:
        attached = False
    return type(tracker).__name__ + "+GMMT" * attached


def hash_networks(tracker: Any) -> str | None:
    """A hash of the networks that a tracker is or holds, and of how an attached fusion samples.

    None, with a warning, where it holds none as an attribute of its own.
    """
    held = (
        [tracker] if isinstance(tracker, nn.Module) else getattr(tracker, "__dict__", {}).values()
    )
    networks = [network for network in held if isinstance(network, nn.Module)]
    if not networks:
        warnings.warn(
            f"{type(tracker).__name__} holds no network as an attribute of its own: a run that "
            "goes on with other weights will not be noticed",
            stacklevel=2,
        )
        return None
    digests = [weights_digest(network.state_dict()) for network in networks]
    configs = [
        module.config
        for network in networks
        for module in network.modules()
        if isinstance(module, GenerativeFusion)
    ]
    return hashlib.sha256(json.dumps([digests, configs], default=str).encode()).hexdigest()


def _import(place: str) -> ModuleType:
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
