"""Where an unknown host fuses, by experiments on one frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

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
from .recording import Call, Key, Leaf, difference

TESTS = 16
"""Candidates that are held, at most: a run of the host each."""
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
    sizes: list[tuple[int, ...]] = field(default_factory=list)

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

    @classmethod
    def of(cls, probe: Probe) -> Search:
        calls, result = probe.record(wanted=True)
        return cls(probe, calls, result, {call.key: call for call in calls})

    @property
    def modalities(self) -> int:
        return self.probe.modalities

    def noisy(self, wanted: Sequence[Part], noise: Sequence[int]) -> dict[Key, Call]:
        """The calls with weak noise, which changes little but what depends on it."""
        calls, _ = self.probe.record(noise, WEAK, wanted={part.place for part in wanted})
        return {call.key: call for call in calls}

    # --- the head -------------------------------------------------------------------------------

    def find_head(self) -> Head | None:
        """The last part of the network that decides the result, fed with no image."""
        scope: Call | None = None
        head: Head | None = None
        forwards = {call.name for call in self.calls if call.key[1] == "forward"}
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
        if scope is not None:
            return call.parent is scope
        if call.name == "":
            return False
        return call.parent is None or (call.parent.name == "" and call.parent.parent is None)

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
            same = [c for c in self.calls if c.phase == 1 and c.key[:2] == head.call.key[:2]]
            held = self.probe.keep([c.key for c in same])
            _, result = self.probe.record(self.probe.everything, held=held)
            if any(p in result and _same(result[p], self.result[p]) for p in boxes):
                head.decides = True
                return head
        return found[-1] if found else None

    # --- fusions that are a module --------------------------------------------------------------

    def find_modules(self, head: Head) -> list[ModuleFusion]:
        """The best first."""
        pairs = list(self._module_readings(head))
        wanted = [part for reading, _ in pairs for part in reading]
        noisy = [self.noisy(wanted, [j]) for j in self.probe.everything]
        found: list[ModuleFusion] = []
        tests = 0
        for reading, output in pairs:
            own = ownership(reading, noisy)
            if own is None or not own.clear:
                continue
            if any(output.call.lies_in(f.call) and f.keeps_channels for f in found):
                continue
            if tests == TESTS:
                break
            tests += 1
            cut = self.cut(output.call, head)
            if cut <= 1e-6 * head.change:
                equal = len(head.fused) == 1 and equals(output, head.fused[0])
                found.append(ModuleFusion(reading, output, own, cut, equal))
        return sorted(found, key=lambda f: -f.keeps_channels)

    def _module_readings(self, head: Head) -> Iterator[tuple[Reading, Part]]:
        """Calls with m maps in and one out, the last first, the outer before the inner."""
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

    def cut(self, call: Call, head: Head) -> float:
        """How much the head's input changes with noise while a module's output is held."""
        same = [c.key for c in self.calls if c.key[:2] == call.key[:2] and c.phase == 1]
        held = self.probe.keep(same)
        calls, _ = self.probe.record(
            self.probe.everything, held=held, wanted={p.place for p in head.fused}
        )
        by_key = {c.key: c for c in calls}
        return max(p.change(by_key) for p in head.fused)


def fits(reading: Reading, leaf: Leaf) -> bool:
    """Whether an output may be fused from maps, or from tokens."""
    shape = reading[0].shape
    if reading[0].axis is not None or len(leaf.shape) != len(shape):
        return leaf.shape == shape  # pieces are told by that they are as large as the whole
    if is_map(shape):
        return leaf.shape[0] == shape[0] and leaf.shape[2:] == shape[2:]
    return leaf.shape[:2] == shape[:2]


def equals(part: Part, other: Part) -> bool:
    one, two = part.value(), other.value()
    return one is not None and two is not None and one.shape == two.shape and torch.equal(one, two)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return difference(one, other) == 0
