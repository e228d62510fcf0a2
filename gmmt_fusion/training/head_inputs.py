"""What one forward of the host gives a cache: its maps, and how its head is called with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from ..attaching.attachment import Attachment

CACHEABLE = "a cache holds tensors, numbers, strings, and lists and dicts of them"


@dataclass(frozen=True)
class HeadInputs:
    """A call of the head, without the values of its tensors.

    structure: of {"args": [...], "kwargs": {...}}, in which each leaf of `leaves` is
    {"fused": [start, channels]}, a part of the fused map's channels, {"tensor": name}, a tensor of
    its own, or {"value": v}, a number, a string, a bool or None.
    """

    structure: TreeSpec
    leaves: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        fused: Tensor,
        tensors: dict[str, Tensor],
    ) -> "HeadInputs":
        """Describe a call of the head; tensors that are not of the fused map go into `tensors`.

        Raises:
            ValueError: an argument cannot be cached.
        """
        leaves, structure = tree_flatten({"args": list(args), "kwargs": dict(kwargs)})
        _check_structure(structure)
        described: list[dict[str, Any]] = []
        for leaf in leaves:
            described.append(_describe(leaf, fused, described, tensors))
        return cls(structure, described)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "HeadInputs":
        """The inverse of `to_json`."""
        return cls(treespec_loads(stored["structure"]), stored["leaves"])

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON, the structure as torch's pytree writes it."""
        return {"structure": treespec_dumps(self.structure), "leaves": self.leaves}

    @property
    def use_fused(self) -> bool:
        """Whether any argument is the fused map or a part of it."""
        return any("fused" in leaf for leaf in self.leaves)

    def rebuild(
        self, fused: Tensor, tensors: Mapping[str, Tensor]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The head's (args, kwargs) with another fused map (B, C, H, W) and other tensors."""
        inputs = tree_unflatten(
            [_rebuild(leaf, fused, tensors) for leaf in self.leaves], self.structure
        )
        return inputs["args"], inputs["kwargs"]


def record_forward(
    attachment: Attachment, run: Callable[[], object]
) -> tuple[dict[str, Tensor], HeadInputs]:
    """The maps of one forward by name, and how the head is called with them.

    Args:
        run: the forward. It fuses once, and calls the head once.

    Returns:
        feature_0 …, fused (B, C, H, W), and head_0 … (B, …), the other tensors that the head gets;
        and the call.

    Raises:
        ValueError: it fuses or calls the head more often or not at all, or the head is called with
            something that cannot be cached, or not with the fused map.
    """
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def keep(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        calls.append((args, kwargs))

    hook = attachment.host_head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with attachment.recorded() as pairs:
            run()
    finally:
        hook.remove()
    if attachment.degradation is not None and attachment.network.training:
        calls = calls[len(calls) // 2 :]  # the clean inputs come first
    if len(pairs) != 1 or len(calls) != 1:
        raise ValueError(
            f"a forward fused {len(pairs)} maps and called the head {len(calls)} times; a cache "
            "needs one each (forward=… says what a training forward is)"
        )
    (features, fused), (args, kwargs) = pairs[0], calls[0]
    for given in (fused, pairs[0].host):  # an adapter at the head swaps what the head was given
        tensors = {**{f"feature_{i}": f for i, f in enumerate(features)}, "fused": fused}
        head_inputs = HeadInputs.of(args, kwargs, given, tensors)
        if head_inputs.use_fused:
            return tensors, head_inputs
    raise ValueError(
        "no argument of the head is the fused map or a part of its channels: something of the host "
        "comes between them, and the head alone cannot be trained; take it into the adapter's head"
    )


def _check_structure(structure: TreeSpec) -> None:
    try:
        same = treespec_loads(treespec_dumps(structure)) == structure
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"the head gets a structure that cannot be stored ({error}); {CACHEABLE}"
        ) from error
    if not same:
        raise ValueError(f"the head gets a structure that cannot be stored; {CACHEABLE}")


def _describe(
    leaf: object, fused: Tensor, before: Sequence[dict[str, Any]], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """A leaf of the head's arguments as JSON; `before` are those described already."""
    if not isinstance(leaf, Tensor):
        if leaf is None or isinstance(leaf, bool | int | float | str):
            return {"value": leaf}
        raise ValueError(f"the head gets a {type(leaf).__name__}; {CACHEABLE}")
    # several levels arrive as parts of the fused map
    channels = leaf.shape[1] if leaf.ndim == 4 else 0
    starts = range(0, fused.shape[1], channels) if channels else ()
    parts = [
        {"fused": [start, channels]}
        for start in starts
        if torch.equal(leaf, fused[:, start : start + channels])
    ]
    if parts:
        return next((part for part in parts if part not in before), parts[0])
    if leaf.ndim == 0 or len(leaf) != len(fused):
        raise ValueError(
            f"the head gets a tensor of shape {tuple(leaf.shape)}; expected one entry a sample, "
            f"({len(fused)}, …), so that samples can be shuffled"
        )
    name = f"head_{sum(name.startswith('head_') for name in tensors)}"
    tensors[name] = leaf
    return {"tensor": name}


def _rebuild(described: Mapping[str, Any], fused: Tensor, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_describe`, with another fused map."""
    ((kind, value),) = described.items()
    if kind == "fused":
        start, channels = value
        return fused[:, start : start + channels].contiguous()
    return tensors[value] if kind == "tensor" else value
