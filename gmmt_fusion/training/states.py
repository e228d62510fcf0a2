"""States of optimisers and schedules, as what is read back without running any code."""

from collections import Counter, OrderedDict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = Any  # of an optimiser or a schedule, whoever wrote it
KIND = "gmmt_fusion.kind"  # the key by which a packed object is known
PLAIN = (type(None), bool, int, float, complex, str)
MAPPINGS = {"OrderedDict": OrderedDict, "Counter": Counter}
SEQUENCES = {"set": set, "frozenset": frozenset}


def pack(state: State, place: str) -> State:
    """A state in plain numbers, text and tensors, and lists, tuples and dicts of them.

    Arrays, deques, sets and the dicts of `collections` are written so that `unpack` gives them
    back; NumPy's numbers become Python's.

    Args:
        place: of the state, for the error.

    Raises:
        ValueError: it holds something else; says where.
    """
    kind = type(state)
    if kind in PLAIN or isinstance(state, Tensor | torch.dtype | torch.device):
        return state
    if isinstance(state, np.generic) and type(state.item()) in PLAIN:
        return state.item()
    if kind is np.ndarray and state.dtype.kind in "biufc":
        raw = torch.from_numpy(np.frombuffer(state.tobytes(), np.uint8).copy())
        return {KIND: "array", "dtype": state.dtype.str, "shape": state.shape, "raw": raw}
    if kind in (list, tuple, torch.Size):
        entries = [pack(entry, f"{place}[{i}]") for i, entry in enumerate(state)]
        return entries if kind is list else tuple(entries)
    if kind is deque:
        return {KIND: "deque", "entries": pack(list(state), place), "maxlen": state.maxlen}
    if kind in SEQUENCES.values():
        return {KIND: kind.__name__, "entries": pack(list(state), place)}
    if kind is dict or kind in MAPPINGS.values():
        items = {
            pack(key, f"{place}'s key"): pack(entry, f"{place}[{key!r}]")
            for key, entry in state.items()
        }
        return items if kind is dict else {KIND: kind.__name__, "entries": items}
    raise ValueError(
        f"{place} is a {kind.__name__}, which a checkpoint could not give back; expected numbers, "
        "text, tensors, arrays, or lists, tuples, sets, deques and dicts of them in the state_dict "
        "of what the recipe returns"
    )


def unpack(state: State) -> State:
    """What `pack` was given."""
    if isinstance(state, list | tuple):
        return type(state)(unpack(entry) for entry in state)
    if not isinstance(state, dict):
        return state
    kind = state.get(KIND)
    if kind is None:
        return {key: unpack(entry) for key, entry in state.items()}
    if kind == "array":
        raw = state["raw"].cpu().numpy().tobytes()
        return np.frombuffer(raw, state["dtype"]).reshape(state["shape"]).copy()
    entries = unpack(state["entries"])
    if kind == "deque":
        return deque(entries, state["maxlen"])
    return {**MAPPINGS, **SEQUENCES}[kind](entries)
