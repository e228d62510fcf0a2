"""Streams that meet in the middle of a function: whose sum is fused, or that are the last."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .readings import MARGIN, Ownership, Part, best_order, is_feature, is_map
from .recording import Call, Leaf
from .searching import Head, Search
from .views import Streams, View

MOST_VIEWS, MOST_OF_A_CALL, MOST_SETS, SAMPLES = 300, 24, 60_000, 2048
GROUPS = 3
"""Streams that one module is fed with, which are tested, at most."""
EXACT = 1e-4
"""Of a sum: what of the fused map it may leave unexplained, relative to its size."""
SUM_MARGIN, SISTERS_MARGIN = 1.05, 4.0
"""Of streams that come from different modules: where they are summed, and where not."""


class StreamSearch:
    """The search for streams, where no module is the fusion."""

    def __init__(self, search: Search, head: Head) -> None:
        self.search, self.head = search, head
        self.modalities = search.modalities
        self.apart: Streams | None = None  # the last that are, where nothing more is known of them
        fused = head.fused[0]
        shape = fused.shape
        if is_map(shape):
            channels, self.length = shape[1], shape[2] * shape[3]
        else:
            channels, self.length = shape[2], max(shape[:2]) if 1 in shape[:2] else shape[1]
        self.places = list(self._find_places())
        self._look_at(channels)
        self.families = Counter(key for call in search.calls for key in _relatives(call))
        self.target, self.through = self._find_target(shape)
        every = self.views("outputs") + self.views("inputs")
        search.watch([*(view.part for view in every), *self.places])
        generator = torch.Generator().manual_seed(0)
        self.chosen = torch.randint(self.channels * self.length, (SAMPLES,), generator=generator)

    def _look_at(self, channels: int) -> None:
        """Streams have so many, and beside the search region's so many tokens, before any goes."""
        shapes = {x.shape for call in self.search.calls for x in call.inputs if len(x.shape) == 3}
        self.channels = channels
        self.templates = {0} | {s[1] - self.length for s in shapes if s[2] == channels}

    def _find_target(self, shape: Sequence[int]) -> tuple[Tensor | None, tuple[str, ...]]:
        """The head's input (B, C, H·W), or what it was projected from, to other channels.

        Then the streams have those.
        """
        value = self.head.fused[0].value()
        if value is None:
            return None, ()
        if not is_map(shape):
            value = value if value.shape[1] == self.length else value.transpose(0, 1)
        own = value.flatten(2) if is_map(shape) else value.mT
        views = self.views("outputs")
        before, through = self._before(own, views)
        while before is not None and len(through) < 4:
            if before.shape[1] == self.channels:
                before, name = self._before(before, views)
                through += name
            elif before.shape[1] == self.modalities * self.channels:
                break  # a concatenation
            else:
                self._look_at(before.shape[1])
                return before, through
        return own, ()

    # --- views ----------------------------------------------------------------------------------

    def views(self, side: str) -> list[View]:
        """Of all that is called before the head, the last first, each value once."""
        calls = [c for c in self.search.calls if c.phase == 1 and self._is_before(c)]
        when = (lambda c: -c.ended) if side == "outputs" else (lambda c: -c.began)
        found: list[View] = []
        for call in sorted(calls, key=when):
            own: list[View] = []
            for leaf in sorted(getattr(call, side), key=lambda x: len(x.path)):
                passed_on = side == "inputs" and _is_passed_on(call, leaf)
                if leaf.value is not None and is_feature(leaf, self.modalities) and not passed_on:
                    for part in self._parts(Part(call, side, leaf)):
                        own.extend(self._views(part))
            found += own[:MOST_OF_A_CALL]  # hosts return all they have, for losses in training
            if len(found) >= MOST_VIEWS:
                break
        return found

    def _is_before(self, call: Call) -> bool:
        began = self.head.call.began
        return call.name != "" and call.began < began and 0 <= call.ended < began

    def _parts(self, part: Part) -> Iterator[Part]:
        """The whole, and its m pieces, where they have the channels of the fused map."""
        m, shape = self.modalities, part.shape
        channels = 1 if is_map(shape) else 2
        if shape[channels] == self.channels:
            yield part
            if not is_map(shape) and shape[1] % m == 0:
                yield from (replace(part, axis=1, k=k, m=m) for k in range(m))
        elif shape[channels] == m * self.channels:
            yield from (replace(part, axis=channels, k=k, m=m) for k in range(m))

    def _views(self, part: Part) -> Iterator[View]:
        shape, length = part.shape, self.length
        if is_map(shape):
            if shape[2] * shape[3] == length:
                yield View(part)
        elif shape[1] == length:
            yield View(part, -length)
        elif shape[1] > length:
            yield View(part, -length)
            yield View(part, 0)
            yield View(part, 1)
        else:
            for places in self.places:
                if shape[1] - places.shape[1] in self.templates:
                    yield View(part, -places.shape[1], places)

    def _find_places(self) -> Iterator[Part]:
        """Tensors (B, L) of L different places in the map, of those that are not as many."""
        seen: list[Tensor] = []
        for call in sorted(self.search.calls, key=lambda c: -c.ended):
            if call.phase != 1 or not self._is_before(call):
                continue
            for leaf in call.outputs:
                x = leaf.value
                if x is None or x.ndim != 2 or not 1 < x.shape[1] < self.length:
                    continue
                if len(seen) == 8 or not _are_places(x, self.length):
                    continue
                if not any(torch.equal(x, y) for y in seen):
                    seen.append(x)
                    yield Part(call, "outputs", leaf)

    # --- a sum ----------------------------------------------------------------------------------

    def find_sum(self) -> Streams | None:
        """m streams whose weighted sum is the head's input, or goes through a norm to it."""
        views = self.views("outputs")
        distinct = self._distinct(views)
        for target, through in self._targets(views):
            if (found := self._solve(target, distinct, through)) is not None:
                return found
        return None

    def _distinct(self, views: Sequence[View]) -> list[View]:
        """Each value once, where it lies least deep in what a module returns."""
        found: dict[tuple[float, ...], View] = {}
        for view in views:
            columns = view.columns(self.length)
            if columns is None or columns.shape[1:] != (self.channels, self.length):
                continue
            mark = tuple(columns.flatten()[self.chosen].tolist())
            known = found.setdefault(mark, view)
            if len(view.part.leaf.path) < len(known.part.leaf.path):
                found[mark] = view
        return list(found.values())

    def _targets(self, views: Sequence[View]) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        """The head's input (B, C, H·W), and what went into the plain modules that it comes from."""
        target, through = self.target, self.through
        while target is not None and len(through) < 4:
            yield target, through
            target, name = self._before(target, views)
            if target is not None and target.shape[1] != self.channels:
                return
            through += name

    def _before(
        self, target: Tensor, views: Sequence[View]
    ) -> tuple[Tensor | None, tuple[str, ...]]:
        """What a plain module made a map of, and the name of the module."""
        network = self.search.probe.network
        for view in views:
            columns = view.columns(self.length)
            if columns is None or not torch.equal(columns, target):
                continue
            part, call = view.part, view.part.call
            axis = 1 if is_map(part.shape) else 2
            inputs = [x for x in call.inputs if _but(x.shape, axis) == _but(part.leaf.shape, axis)]
            if len(inputs) == 1 and _is_plain(network.get_submodule(call.name)):
                before = View(replace(part, side="inputs", leaf=inputs[0]), view.first, view.places)
                found = before.columns(self.length)
                if found is not None and not torch.equal(found, target):
                    return found, (call.name,)
        return None, ()

    def _solve(
        self, target: Tensor, views: Sequence[View], through: tuple[str, ...]
    ) -> Streams | None:
        m, count = self.modalities, len(views)
        while count > m and math.comb(count, m) > MOST_SETS:
            count -= 1
        views = views[:count]
        if count < m:
            return None
        goal = target.flatten()[self.chosen].double()
        if not float(goal.norm()):
            return None
        rows = [v.columns(self.length) for v in views]
        matrix = torch.stack([r.flatten()[self.chosen].double() for r in rows if r is not None])
        sets = torch.combinations(torch.arange(count), m)
        for index in _best_sets(matrix, goal, sets):
            weights = _weights(matrix[index], goal)
            if weights is None:
                continue
            views_found = tuple(views[i] for i in index.tolist())
            own = self.ownership(views_found)
            kin = len({view.part.call.name for view in views_found}) == 1
            if own is not None and (kin or own.margin > SUM_MARGIN):
                return _ordered(Streams(views_found, own, tuple(weights), through))
        return None

    # --- the last streams -----------------------------------------------------------------------

    def find_last(self) -> Streams | None:
        """The last m views that one call is fed with, and all that the head gets of them.

        With the output of that module held, and of others of one kind, noise for images must not
        change the head's input.
        """
        views, tests = self.views("inputs") + self.views("outputs"), GROUPS
        groups: dict[object, list[View]] = {}
        for view in views:
            for key in self._kin(view):
                groups.setdefault(key, []).append(view)
        end = self.head.call.began
        for group in sorted(groups.values(), key=lambda g: -max(map(_when, g))):
            group = _one_each(group, self.modalities)
            if len(group) != self.modalities:
                continue
            own = self.ownership(tuple(group))
            if own is None:
                continue
            streams = _ordered(Streams(tuple(group), own, at=max(map(_when, group)) / end))
            if self.apart is None and self._are_apart(group, own):
                self.apart = streams
            if streams.one_input and tests:
                tests -= 1
                other = self.search.beside(group[0].part.call, self.head)
                if other:
                    return replace(streams, beside=other)
        return None

    def _are_apart(self, group: Sequence[View], own: Ownership) -> bool:
        """Whether views are of one modality each: what one call gets is so more readily."""
        if len({view.part.call.key for view in group}) == 1 and group[0].part.side == "inputs":
            return own.clear
        sisters = len({view.part.call.name for view in group}) > 1
        return own.dominates and own.margin >= (SISTERS_MARGIN if sisters else MARGIN)

    def _kin(self, view: View) -> Iterator[object]:
        """By what views belong together; of calls, where there are m of them."""
        part = view.part
        about = part.side, part.shape, view.first
        yield part.call.key, about  # pieces, or tensors, of one call
        for key in _relatives(part.call) if part.axis is None else ():
            if self.families[key] == self.modalities:
                yield key, part.leaf.path, about

    def ownership(self, views: tuple[View, ...]) -> Ownership | None:
        changes = [[v.change(self.length, calls) for calls in self.search.weak()] for v in views]
        if not all(math.isfinite(x) for row in changes for x in row):
            return None
        if any(max(row) == 0 for row in changes):
            return None
        return Ownership(changes, *best_order(changes))


def _is_passed_on(call: Call, leaf: Leaf) -> bool:
    """Whether a module got a tensor from the one that calls it, which got it before."""
    parent = call.parent
    return parent is not None and any(x.value is leaf.value for x in parent.inputs)


def _are_places(x: Tensor, length: int) -> bool:
    if x.is_complex() or x.dtype == torch.bool or bool((x < 0).any() | (x >= length).any()):
        return False
    if x.is_floating_point() and not torch.equal(x, x.round()):
        return False
    if torch.equal(x[0].long(), torch.arange(x.shape[1], device=x.device)):
        return False  # all of a template's, or of nothing
    return all(len(row.unique()) == len(row) for row in x)


def _is_plain(module: nn.Module) -> bool:
    """A norm, a convolution or the like, or a few of them one after the other."""
    children = list(module.children())
    few = isinstance(module, nn.Sequential) and len(children) <= 4
    return not children or (few and all(_is_plain(child) for child in children))


def _but(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _best_sets(matrix: Tensor, goal: Tensor, sets: Tensor, count: int = 12) -> Tensor:
    """The sets of rows that explain a goal best by a weighted sum."""
    gram, against = matrix @ matrix.T, matrix @ goal
    small = gram[sets[:, :, None], sets[:, None, :]]
    small = small + 1e-10 * torch.diag_embed(small.diagonal(dim1=-2, dim2=-1) + 1e-30)
    right = against[sets]
    weights = torch.linalg.solve_ex(small, right).result
    left = goal @ goal - (weights * right).sum(-1)
    best = left.nan_to_num(nan=math.inf).argsort()[:count]
    return sets[best]


def _weights(rows: Tensor, goal: Tensor) -> list[float] | None:
    """Of a sum that is exact and has no summand that does without the others."""
    weights = torch.linalg.lstsq(rows.T, goal).solution
    norm = float(goal.norm())
    if float((weights @ rows - goal).norm()) > EXACT * norm:
        return None
    if min(float(w.abs() * r.norm()) for w, r in zip(weights, rows, strict=True)) < 0.01 * norm:
        return None
    return [float(w) for w in weights]


def _relatives(call: Call) -> Iterator[object]:
    """Names for the calls that one belongs to."""
    name, method, index = call.key
    if call.phase == 1:
        yield name, method  # calls of one module
        places = name.split(".")
        for i in range(len(places)):  # of modules that differ in one part of their names
            yield (*places[:i], "*", *places[i + 1 :], method, index)


def _when(view: View) -> int:
    return view.part.call.ended if view.part.side == "outputs" else view.part.call.began


def _one_each(group: Sequence[View], modalities: int) -> list[View]:
    """The last m of a group that are of different tensors."""
    found: dict[object, View] = {}
    for view in group:
        found.setdefault((view.part.place, view.part.axis, view.part.k), view)
    return list(itertools.islice(found.values(), modalities))


def _ordered(streams: Streams) -> Streams:
    """With the streams in the modalities' order; where that is not clear, in that of the calls."""
    views, own, every = streams.views, streams.own, range(len(streams.views))
    if own.clear:
        order = [own.order.index(j) for j in every]
    else:
        order = sorted(every, key=lambda k: (_when(views[k]), views[k].part.k))
    own = Ownership([own.changes[k] for k in order], tuple(every), own.margin)
    weights = streams.weights and tuple(streams.weights[k] for k in order)
    return replace(streams, views=tuple(views[k] for k in order), own=own, weights=weights)
