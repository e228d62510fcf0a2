"""Ctrl-C at any line: what attaching began, it undoes or ends."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, images
from test_law import anatomy, assert_same_anatomy

import gmmt_fusion
from gmmt_fusion import Attachment, attach

CONCAT = CASES[0]
HOUSE = str(Path(gmmt_fusion.__file__).parent / "attaching")


class Interrupt:
    """Raises KeyboardInterrupt at the first time that one line of the house runs."""

    def __init__(self, place: tuple[str, int] | None) -> None:
        self.place, self.seen = place, set[tuple[str, int]]()

    def __enter__(self) -> "Interrupt":
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if os.path.dirname(file) != HOUSE:  # called for every function: be quick
            return None
        here = file, frame.f_lineno
        if event == "line" and here not in self.seen:
            self.seen.add(here)
            if here == self.place:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def interrupt_everywhere(run: Callable[[], None]) -> Iterator[tuple[str, int]]:
    """Run again and again, each time interrupted at another line; yields after each."""
    with Interrupt(None) as whole:
        run()
    yield "", 0
    interrupted = 0
    for place in sorted(whole.seen):
        try:
            with Interrupt(place):
                run()
        except KeyboardInterrupt:
            interrupted += 1
            yield place
        else:
            yield "", 0
    assert interrupted > 0.9 * len(whole.seen) > 10  # some lines run the first time only


def test_attach_undoes_itself_wherever_it_is_interrupted() -> None:
    network, fusion = CONCAT.build(), CONCAT.make_fusion()
    before = anatomy(network)

    def run() -> None:
        attach(network, fusion, CONCAT.adapter(), calibrate=[images()])

    for place in interrupt_everywhere(run):
        if place == ("", 0):
            Attachment.of(network).detach()
            fusion.head = None
        assert_same_anatomy(anatomy(network), before)
        assert fusion.head is None and fusion.head_state is None, place
    attach(network, fusion, CONCAT.adapter())


def test_detach_ends_wherever_it_is_interrupted() -> None:
    network = CONCAT.build()
    before, expected = anatomy(network), CONCAT.run(network)
    handles: list[Attachment] = []

    def run() -> None:
        handles.append(attach(network, CONCAT.make_fusion(), CONCAT.adapter()))
        handles[-1].detach()

    for place in interrupt_everywhere(run):
        handles[-1].detach()
        assert_same_anatomy(anatomy(network), before)
        assert torch.equal(CONCAT.run(network), expected), place


@pytest.mark.parametrize("context", ["disabled", "recorded"])
def test_contexts_end_wherever_they_are_interrupted(context: str) -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    expected = CONCAT.run(network)

    def run() -> None:
        with getattr(handle, context)():
            CONCAT.run(network)

    for place in interrupt_everywhere(run):
        assert torch.equal(CONCAT.run(network), expected), place
        assert not any(p.requires_grad for p in network.rgb.parameters()), place
        assert not network.rgb.training
