"""m modality maps, in any of the forms in which hosts pass them from module to module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .recording import Call, Key, Leaf, Path, difference, kept_difference

MARGIN = 1.3
"""How much more a map must depend on its own modality than on the others', to be told from them."""
Calls = Mapping[Key, Call]


@dataclass(frozen=True)
class Part:
    """A tensor that a call got or returned, or the k-th of m pieces of it along an axis."""

    call: Call
    side: str
    leaf: Leaf
    axis: int | None = None
    k: int = 0
    m: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.leaf.shape)
        if self.axis is not None:
            shape[self.axis] //= self.m
        return tuple(shape)

    def value(self, calls: Calls | None = None) -> Tensor | None:
        """Its values, in the clean run or in another."""
        leaf: Leaf | None = self.leaf
        if calls is not None:
            call = calls.get(self.call.key)
            leaf = next((x for x in getattr(call, self.side, ()) if x.path == self.leaf.path), None)
        if leaf is None or leaf.value is None or leaf.shape != self.leaf.shape:
            return None
        return leaf.value if self.axis is None else leaf.value.chunk(self.m, self.axis)[self.k]

    def change(self, calls: Calls) -> float:
        """How much it differs in another run, relative to its size."""
        clean, other = self.value(), self.value(calls)
        if clean is None or other is None:
            return math.nan if clean is None else math.inf
        return difference(other, clean)

    def kept_change(self, calls: Calls) -> float:
        """As `change`, of a map at the places where no candidate was eliminated."""
        clean, other = self.value(), self.value(calls)
        if clean is None or other is None or not is_map(clean.shape):
            return self.change(calls)
        return kept_difference(other, clean)

    @property
    def place(self) -> tuple[Key, str, Path]:
        return self.call.key, self.side, self.leaf.path


Reading = tuple[Part, ...]


def is_map(shape: Sequence[int]) -> bool:
    return len(shape) == 4


def is_feature(leaf: Leaf, modalities: int) -> bool:
    """Maps (B, C, H, W) or tokens (B, N, C), and no image."""
    shape = leaf.shape
    if not leaf.floating or len(shape) not in (3, 4) or min(shape, default=0) < 1:
        return False
    return not is_image(leaf, modalities) and max(shape[1:]) > 1


def is_image(leaf: Leaf, modalities: int) -> bool:
    shape = leaf.shape
    return leaf.floating and len(shape) == 4 and shape[1] in (1, 3, 4, 3 * modalities)


def readings(call: Call, side: str, modalities: int) -> Iterator[Reading]:
    """m tensors of one shape, or one that m concatenate to: on channels, or on the token axis."""
    found = [x for x in getattr(call, side) if is_feature(x, modalities)]
    shapes = {x.shape: [y for y in found if y.shape == x.shape] for x in found}
    for same in shapes.values():
        if len(same) >= modalities:  # also hosts that make a third map of two modalities
            yield tuple(Part(call, side, x) for x in same)
    for leaf in found if len(found) == 1 else ():
        for axis in (1,) if is_map(leaf.shape) else (2, 1):
            if leaf.shape[axis] % modalities == 0 and leaf.shape[axis] >= 2 * modalities:
                pieces = range(modalities)
                yield tuple(Part(call, side, leaf, axis, k, modalities) for k in pieces)


@dataclass(frozen=True)
class Ownership:
    """Which modality each of m maps depends on most.

    changes[k][j]: of map k, with noise in place of modality j. order[k]: the modality of map k; of
    more maps than modalities, of those told best. margin: by how much they depend more on their own
    than in the next best order; 1 is not at all.
    """

    changes: list[list[float]]
    order: tuple[int, ...]
    margin: float

    @property
    def clear(self) -> bool:
        return self.margin >= MARGIN

    @property
    def dominates(self) -> bool:
        """Whether each map depends clearly more on its own modality than on any other."""
        return all(
            row[j] > MARGIN * x
            for row, j in zip(self.changes, self.order, strict=True)
            for i, x in enumerate(row)
            if i != j
        )


def ownership(parts: Reading, noisy: Sequence[Calls]) -> Ownership | None:
    """None where one was not recorded in all runs, or depends on nothing."""
    changes = [[part.kept_change(calls) for calls in noisy] for part in parts]
    if not all(math.isfinite(x) for row in changes for x in row):
        return None
    if any(max(row) == 0 for row in changes):
        return None
    return Ownership(changes, *best_order(changes))


def best_order(changes: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], float]:
    """The order of modalities under which the maps depend most on their own, and its margin."""
    logs = [[math.log(max(x, 1e-6)) for x in row] for row in changes]
    modalities = range(len(changes[0]))
    if len(modalities) == 1:
        return (0,) * len(changes), 1.0
    best: tuple[float, tuple[int, ...]] = 1.0, tuple(modalities)
    for rows in itertools.combinations(range(len(logs)), len(modalities)):
        scores = sorted(
            (
                (sum(logs[k][j] for k, j in zip(rows, order, strict=True)), order)
                for order in itertools.permutations(modalities)
            ),
            reverse=True,
        )
        margin = math.exp(min(scores[0][0] - scores[1][0], 50.0))
        best = max(best, (margin, scores[0][1]))
    return best[1], best[0]
