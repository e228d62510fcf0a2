"""Where an unknown host fuses, by experiments on one frame."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .probing import Probe, Result
from .readings import (
    Ownership,
    Part,
    Reading,
    is_feature,
    is_image,
    is_map,
    ownership,
    readings,
)
from .recording import Call, Key, Leaf, Path, difference

TESTS = 16
"""Candidates that are held, at most: a run of the host each."""
KINDS = 8
"""Modules that are held together with one, by the pattern of their names, at most."""
WEAK = 0.1


@dataclass
class Head:
    """The module that predicts the box, in its last call.

    fused: what of its input changes with the search images. change: how much, with noise.
    decides: whether holding its output keeps the result.
    """

    call: Call
    fused: list[Part]
    change: float
    decides: bool

    @property
    def name(self) -> str:
        return self.call.name


@dataclass
class ModuleFusion:
    """A module fed with m maps or streams of tokens, which returns one.

    cut: how much the head's input changes with noise while its output is held. equal: whether its
    output is the head's input.
    """

    reading: Reading
    output: Part
    own: Ownership
    cut: float
    equal: bool

    @property
    def call(self) -> Call:
        return self.output.call

    @property
    def keeps_channels(self) -> bool:
        return self.reading[0].shape == self.output.shape


@dataclass
class Search:
    """What one frame has shown: the calls of a clean run, and those with noise."""

    probe: Probe
    calls: list[Call]
    result: Result
    by_key: dict[Key, Call] = field(default_factory=dict)
    watched: set[tuple[Key, str, Path]] = field(default_factory=set)
    _weak: list[dict[Key, Call]] | None = None
    _kept: dict[Key, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, probe: Probe) -> Search:
        recorder = probe.recorder(wanted=True, keep=_is_part)
        result = probe.run((), recorder)
        by_key = {call.key: call for call in recorder.calls}
        return cls(probe, recorder.calls, result, by_key, _kept=recorder.kept)

    @property
    def modalities(self) -> int:
        return self.probe.modalities

    def watch(self, parts: Iterable[Part]) -> None:
        """Look at these too, in the runs with weak noise."""
        places = {part.place for part in parts}
        if not places <= self.watched:
            self.watched |= places
            self._weak = None

    def weak(self) -> list[dict[Key, Call]]:
        """The calls with weak noise in each modality, which changes little but what depends on it.

        With the values of what is watched.
        """
        if self._weak is None:
            runs = [
                self.probe.record([j], WEAK, wanted=self.watched) for j in range(self.modalities)
            ]
            self._weak = [{call.key: call for call in calls} for calls, _ in runs]
        return self._weak

    def keep(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The whole outputs of calls in a run without noise."""
        keys = list(keys)
        if missing := [key for key in keys if key not in self._kept]:
            self._kept.update(self.probe.keep(missing))
        return {key: self._kept[key] for key in keys}

    def alike(self, call: Call) -> list[Key]:
        """Of a module, all calls in the frame but those at the tracker's start."""
        return [c.key for c in self.calls if c.key[:2] == call.key[:2] and c.phase == 1]

    # --- the head -------------------------------------------------------------------------------

    def find_head(self) -> Head | None:
        """The last part of the network that decides the result, fed with no image."""
        scope: Call | None = None
        head: Head | None = None
        forwards = {  # of modules that are not called by another method of their own
            call.name
            for call in self.calls
            if call.key[1] == "forward" and (call.parent is None or call.parent.name != call.name)
        }
        while True:
            parts = [
                call
                for call in self.calls
                if call.phase == 1
                and self._is_part(call, scope)
                and (call.key[1] == "forward" or call.name not in forwards)
                and self._features(call)
            ]
            inputs = [p for call in parts for p in self._features(call)]
            calls, noisy = self.probe.record(
                self.probe.everything, wanted={p.place for p in inputs}
            )
            by_key = {call.key: call for call in calls}
            found = [
                Head(call, changed, max(p.change(by_key) for p in changed), False)
                for call in parts
                if (changed := [p for p in self._features(call) if p.change(by_key) > 0])
            ]
            deeper = self._deciding(found, noisy)
            if deeper is None:
                return head
            head = deeper
            if not self._takes_images(head.call):
                return head
            scope = head.call

    def _takes_images(self, call: Call) -> bool:
        """Whether a module gets what the network itself gets, and is not a part, but most of it."""
        sizes = {
            x.shape[2:]
            for other in self.calls
            if other.name == ""
            for x in other.inputs
            if is_image(x, self.modalities)
        }
        return any(is_image(x, self.modalities) and x.shape[2:] in sizes for x in call.inputs)

    def _is_part(self, call: Call, scope: Call | None) -> bool:
        """Whether a call is made by the network itself, or by the module in `scope`."""
        return _is_part(call) if scope is None else call.parent is scope

    def _features(self, call: Call) -> list[Part]:
        module = self.probe.network.get_submodule(call.name)
        if not any(True for _ in module.parameters()):
            return []
        return [
            Part(call, "inputs", x)
            for x in call.inputs
            if x.floating and len(x.shape) in (3, 4) and x.value is not None
        ]

    def _deciding(self, found: list[Head], noisy: Result) -> Head | None:
        changed = [p for p, x in self.result.items() if p in noisy and not _same(noisy[p], x)]
        boxes = [p for p in changed if any("box" in str(part) for part in p)] or changed
        for head in reversed(found if boxes else []):
            held = self.keep(self.alike(head.call))
            _, result = self.probe.record(self.probe.everything, held=held)
            if any(p in result and _same(result[p], self.result[p]) for p in boxes):
                head.decides = True
                return head
        return found[-1] if found else None

    # --- fusions that are a module --------------------------------------------------------------

    def module_readings(self, head: Head) -> list[tuple[Reading, Part]]:
        """Calls with m maps in and one out: first those that keep the channels, the last first, the
        outer before the inner.
        """
        pairs = list(self._module_readings(head))
        return sorted(pairs, key=lambda pair: pair[0][0].shape != pair[1].shape)

    def find_module(self, head: Head) -> ModuleFusion | None:
        """The module that fuses: its maps are of one modality each, and its output is a cut."""
        pairs = self.module_readings(head)
        self.watch(part for reading, _ in pairs for part in reading)
        candidates = [
            (reading, output, own)
            for reading, output in pairs
            if (own := ownership(reading, self.weak())) is not None and own.clear
        ][:TESTS]
        self.keep({key for _, output, _ in candidates for key in self.alike(output.call)})
        for reading, output, own in candidates:
            cut = self.cut(head, output.call)
            if cut <= 1e-6 * head.change:
                equal = len(head.fused) == 1 and equals(output, head.fused[0])
                return ModuleFusion(reading, output, own, cut, equal)
        return None

    def _module_readings(self, head: Head) -> Iterator[tuple[Reading, Part]]:
        for call in sorted(self.calls, key=lambda c: -c.ended):
            if call.phase != 1 or call.name in ("", head.name) or call.lies_in(head.call):
                continue
            if call.ended > head.call.began or call.ended < 0:
                continue
            outputs = [x for x in call.outputs if is_feature(x, self.modalities)]
            for reading in readings(call, "inputs", self.modalities):
                fit = [x for x in outputs if fits(reading, x)]
                if len(fit) == 1 and reading[0].value() is not None:
                    yield reading, Part(call, "outputs", fit[0])

    def find_encoder(self, head: Head) -> tuple[Part, int] | None:
        """What gets the images of all modalities, and returns the head's input.

        With the first of the head's tokens among those returned.
        """
        fused = head.fused[0].value()
        for call in sorted(self.calls, key=lambda c: -c.ended):
            if call.phase != 1 or call.name == "" or call.ended > head.call.began:
                continue
            if not any(
                len(x.shape) > 3 and x.shape[-3] == 3 * self.modalities for x in call.inputs
            ):
                continue
            for leaf in call.outputs:
                start = None if fused is None or leaf.value is None else starts(leaf.value, fused)
                if start is not None:
                    return Part(call, "outputs", leaf), start
        return None

    def cut(self, head: Head, *calls: Call, others: Iterable[Key] = ()) -> float:
        """How much the head's input changes with noise while the outputs of modules are held."""
        held = self.keep([*others, *(key for call in calls for key in self.alike(call))])
        seen, _ = self.probe.record(
            self.probe.everything, held=held, wanted={p.place for p in head.fused}
        )
        by_key = {c.key: c for c in seen}
        return max(p.change(by_key) for p in head.fused)

    def beside(self, call: Call, head: Head) -> str:
        """What the head's input is made of beside a module's output, where that is of one kind.

        A kind are modules that differ in the numbers in their names, as all blocks of a backbone,
        in their calls before this one. Held with it they hold the head's input, alone they do not.
        """
        kinds: dict[str, list[Key]] = {}
        for other in sorted(self.calls, key=lambda c: -c.ended):
            before = other.phase == 1 and other.name and other.ended < call.began
            if before and not f"{other.name}.".startswith(f"{call.name}."):
                kinds.setdefault(re.sub(r"\d+", "*", other.name), []).append(other.key)
        for kind, keys in itertools.islice(kinds.items(), KINDS):
            if self.cut(head, call, others=keys) == 0 < self.cut(head, others=keys):
                return kind
        return ""


def _is_part(call: Call) -> bool:
    """Whether a call is made by the network itself, or in its place."""
    if call.name == "":
        return False
    return call.parent is None or (call.parent.name == "" and call.parent.parent is None)


def fits(reading: Reading, leaf: Leaf) -> bool:
    """Whether an output may be fused from maps, or from tokens."""
    shape = reading[0].shape
    if reading[0].axis is not None or len(leaf.shape) != len(shape):
        return leaf.shape == shape  # pieces are told by that they are as large as the whole
    if is_map(shape):
        return leaf.shape[0] == shape[0] and leaf.shape[2:] == shape[2:]
    return leaf.shape[:2] == shape[:2]


def starts(value: Tensor, fused: Tensor) -> int | None:
    """Where the head's map (B, C, H, W) lies in what was returned: a map, or tokens (B, N, C)."""
    if torch.equal(value, fused):
        return 0
    if value.ndim != 3 or fused.ndim != 4:
        return None
    tokens = fused.flatten(2).mT
    for start in reversed(range(value.shape[1] - tokens.shape[1] + 1)):
        if torch.equal(value[:, start : start + tokens.shape[1]], tokens):
            return start
    return None


def equals(part: Part, other: Part) -> bool:
    one, two = part.value(), other.value()
    return one is not None and two is not None and one.shape == two.shape and torch.equal(one, two)


def _same(one: Tensor, other: Tensor) -> bool:
    return difference(one.nan_to_num(), other.nan_to_num()) == 0  # untrained hosts give NaN
