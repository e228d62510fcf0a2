"""Tensors of a host as the search region's maps, and m of them that are streams."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .readings import Calls, Ownership, Part, is_map
from .recording import kept_difference


@dataclass(frozen=True)
class View:
    """A part as the search region's map (B, C, H·W).

    first: of tokens, the place of the first one of the search region; negative from the end.
    places: what holds the places of those that were kept, where candidates were eliminated.
    """

    part: Part
    first: int = 0
    places: Part | None = None

    def columns(self, length: int, calls: Calls | None = None) -> Tensor | None:
        value = self.part.value(calls)
        if value is None:
            return None
        if is_map(value.shape):
            return value.flatten(2)
        if self.places is None:
            end = self.first + length
            return value[:, self.first : end or None].mT
        places = self.places.value(calls)
        if places is None or places.shape[1] > value.shape[1]:
            return None
        count = places.shape[1]
        kept = value[:, self.first :] if self.first < 0 else value[:, :count]
        index = places.long()[..., None].expand_as(kept)
        whole = value.new_zeros(value.shape[0], length, value.shape[-1])
        return whole.scatter(1, index, kept).mT

    def change(self, length: int, calls: Calls) -> float:
        """As `Part.kept_change`."""
        clean, other = self.columns(length), self.columns(length, calls)
        if clean is None or other is None or clean.shape != other.shape:
            return math.nan
        return kept_difference(other, clean)


@dataclass(frozen=True)
class Streams:
    """m views that are fused in a function, and told apart by their modality.

    weights: of each in the fused map, where that is their sum. through: the modules that the sum
    goes through on its way to the head, a norm say. beside: of streams that one module is fed with,
    the name of those whose output goes into the fused map with its own.
    """

    views: tuple[View, ...]
    own: Ownership
    weights: tuple[float, ...] | None = None
    through: tuple[str, ...] = ()
    beside: str = ""
    at: float = 1.0

    @property
    def channels(self) -> int:
        shape = self.views[0].part.shape
        return shape[1] if is_map(shape) else shape[2]

    @property
    def one_input(self) -> bool:
        """Whether they are what one call of a module gets, all tokens of it, and returns one of."""
        part, calls = self.views[0].part, {view.part.call.key for view in self.views}
        return (
            len(calls) == 1
            and part.side == "inputs"
            and self.views[0].places is None
            and [x.shape for x in part.call.outputs if x.floating] == [part.shape]
        )
