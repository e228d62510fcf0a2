"""`find_fusion`: where an unknown tracker fuses, and which adapter takes it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.probing import BOX, Probe, seeded, texture
from gmmt_fusion.attaching.readings import MARGIN, Part, is_map, ownership
from gmmt_fusion.attaching.recognition import recognise
from gmmt_fusion.attaching.searching import Head, Search
from gmmt_fusion.attaching.streams import StreamSearch
from gmmt_fusion.attaching.views import Streams
from gmmt_fusion.model.fusion import GenerativeFusion

from .auto import ADAPTERS
from .proposals import (
    Proposal,
    fusion_code,
    propose_concat,
    propose_encoder,
    propose_module,
    propose_streams,
    tap_adapter_code,
)
from .trial import Refused, check

CONCAT_MARGIN, LATE = 4.0, 0.5


@dataclass
class FoundFusion:
    """What `find_fusion` found: proposals that were checked, the best first; print it.

    Attributes:
        host: the network's class. head: what is known of its head, in words.
        proposals: each with `lines`, `adapter`, `fusion`, `sure` and `evidence`.
        also: of a tracker that `attach` knows, what the search sees by itself, unchecked.
        refused: what else was thought of, and why it is not.
        seen: rows of what the frame has shown, for where nothing is proposed.
        seconds: that it took.
    """

    host: str
    head: str
    proposals: list[Proposal] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lines(self) -> str:
        """To paste; "" where nothing was found."""
        return self.proposals[0].lines if self.proposals else ""

    @property
    def adapter(self) -> Adapter | str | None:
        """For `attach`."""
        return self.proposals[0].adapter if self.proposals else None

    @property
    def fusion(self) -> GenerativeFusion | None:
        """For `attach`, with the right channels and size."""
        return self.proposals[0].fusion if self.proposals else None

    @property
    def sure(self) -> str:
        """ "sure", "likely", or "nothing was found"."""
        return self.proposals[0].sure if self.proposals else "nothing was found"

    def __str__(self) -> str:
        text = [f"{self.host}: {self.head}"]
        for number, proposal in enumerate(self.proposals, 1):
            text += ["", f"{number}. {proposal.what} [{proposal.sure}]"]
            text += [f"   - {line}" for line in proposal.evidence]
            text += ["", *(f"    {line}".rstrip() for line in proposal.lines.splitlines())]
        if self.also:
            text += ["", "the search by itself, not checked:", *(f"- {line}" for line in self.also)]
        if not self.proposals:
            text += ["", "nothing was found. What the frame has shown:", *self.seen]
        if self.refused:
            text += ["", "thought of, and refused:", *(f"- {line}" for line in self.refused)]
        return "\n".join([*text, "", f"{self.seconds:.1f} s"])


def find_fusion(
    tracker: object, inputs: Any = None, box: Sequence[float] | None = None
) -> FoundFusion:
    """Run one frame of a tracker, and propose the adapter that puts a generative fusion into it.

    A copy is experimented with: the tracker stays as it is.

    Args:
        tracker: the object that is driven as OSTrack's or pysot's family is, on frames (H, W, 3·m);
            or the network alone.
        inputs: a frame (H, W, 3·m) uint8, the modalities on channels, RGB first; by default of
            noise. Of a network alone, the inputs of one forward, a tuple or a dict.
        box: x, y, w, h of the target in the frame, in pixels; by default the middle.

    Raises:
        ValueError: the tracker cannot be driven or copied. RuntimeError: it failed on the frame.
    """
    started = time.perf_counter()
    if inputs is None and isinstance(tracker, nn.Module) and not hasattr(tracker, "track"):
        raise ValueError(
            f"{type(tracker).__name__} is a network; expected example inputs of one forward with "
            "it, a tuple or a dict: find_fusion(network, inputs)"
        )
    if inputs is None:
        inputs, box = texture(), BOX
    if isinstance(inputs, np.ndarray) and box is None:
        height, width = inputs.shape[:2]
        box = [width * 3 / 8, height * 3 / 8, width / 4, height / 4]
    probe = Probe(tracker, inputs, box or BOX)
    with seeded(probe.network):
        found = _find(probe)
    found.seconds = time.perf_counter() - started
    return found


def _find(probe: Probe) -> FoundFusion:
    host = type(probe.network).__name__
    try:
        search = Search.of(probe)
    except Exception as error:  # whatever the tracker raises
        raise _failed(probe, error) from error
    head = search.find_head()
    if head is None:
        return FoundFusion(host, "no part of it takes what changes with the search images")
    shapes = ", ".join(str(p.shape) for p in head.fused)
    word = "decides the box" if head.decides else "is called last"
    found = FoundFusion(host, f"its head is {head.name!r}, which {word}, fed with {shapes}")
    search.watch([*head.fused, *(p for r, _ in search.module_readings(head) for p in r)])
    streams = StreamSearch(search, head) if len(head.fused) == 1 else None
    changes = [max(part.change(calls) for part in head.fused) for calls in search.weak()]
    if len(changes) < 2 or min(changes) == 0:
        without = [j for j, x in enumerate(changes) if x == 0] or [1]
        found.seen.append(
            f"the head's input does not change with image {without[0] + 1}: the tracker is of one "
            "modality, or its trained weights are not loaded, as what is added to a pretrained "
            "tracker often starts at zero"
        )
        found.seen += _rows(search, head)
        return found
    for make in _proposals(search, head, streams):
        proposal = None
        try:
            proposal = make()
            if proposal is None:
                continue
            if found.proposals:  # attach finds it by itself
                code = " ".join(proposal.adapter_code.split())
                found.also = [f"{proposal.what} [{proposal.sure}]", *proposal.evidence, code]
                break
            proposal.evidence += check(proposal.lines, search, head, proposal.apart)
            found.proposals.append(proposal)
        except Refused as error:
            found.refused.append(f"{proposal.what}: {error}" if proposal else str(error))
            continue
        if proposal.adapter_code:
            break
    found.seen = [*_unproven(search, head, streams), *_rows(search, head)]
    return found


def _unproven(search: Search, head: Head, streams: StreamSearch | None) -> list[str]:
    """What looks like streams of one modality each, where nothing shows that these are fused."""
    rows = []
    pieces = _pieces(search, head)
    if pieces and all(_was_returned(piece, search) for piece in pieces):
        rows.append(
            f"the head takes {len(pieces)} maps concatenated; that they are of one modality each "
            f'was not shown: ConcatAdapter(head="{head.name}")'
        )
    if streams is None or streams.apart is None or not is_map(head.fused[0].shape):
        return rows
    try:
        code = " ".join(tap_adapter_code(search, head, streams.apart).split())
    except Refused:
        return rows
    return [
        *rows,
        f"streams of one modality each were last seen at {streams.apart.at:.0%} of the calls up to "
        f"the head's; that all is fused of them was not shown, and it may be too early: {code}",
    ]


def _proposals(
    search: Search, head: Head, streams: StreamSearch | None
) -> Iterator[Callable[[], Proposal | None]]:
    """The likeliest first."""
    yield lambda: _recognised(search, head)
    ways: list[tuple[Callable[[], Any], Callable[..., Proposal]]] = [
        (lambda: search.find_module(head), propose_module)
    ]
    if streams is not None:
        last = functools.cache(streams.find_last)
        ways += [
            (streams.find_sum, propose_streams),
            (lambda: _concatenation(search, head), propose_concat),
            (lambda: _late(last()), propose_streams),
            (lambda: search.find_encoder(head), propose_encoder),
            (lambda: last() if _late(last()) is None else None, propose_streams),
        ]
    for find, propose in ways:
        found = find()
        if found is not None:
            yield functools.partial(propose, search, head, found)
    if streams is None:
        yield functools.partial(
            _refuse,
            f"the head takes {len(head.fused)} maps that change with the images; where they are "
            "levels, write an Adapter as siamban.SiamBANAdapter, which concatenates them",
        )


def _late(found: Streams | None) -> Streams | None:
    """Streams that are tapped late enough to be preferred to an encoder's."""
    return found if found is not None and found.at >= LATE else None


def _refuse(why: str) -> Proposal:
    raise Refused(why)


def _recognised(search: Search, head: Head) -> Proposal | None:
    """What `attach` finds by itself."""
    try:
        network, adapter = recognise(search.probe.tracker, [cls() for cls in ADAPTERS])
    except ValueError:
        return None
    channels, fused = adapter.channels(network), adapter.out_channels(network)
    shape = head.fused[0].shape
    size = shape[2:] if is_map(shape) else (16, 16)
    code = fusion_code(search, channels or shape[1], size, fused, adapter.modalities or 2)
    what = f"attach finds it by itself: {type(adapter).__name__}"
    return Proposal(what, "", code, "sure", apart=False)


def _concatenation(search: Search, head: Head) -> list[list[float]] | None:
    """How the m pieces of the head's input depend on the modalities, where they are of one each."""
    pieces = _pieces(search, head)
    search.watch(pieces)
    own = ownership(pieces, search.weak()) if pieces else None
    if own is None or own.order != tuple(range(len(pieces))):
        return None
    made = all(_was_returned(piece, search) for piece in pieces)
    return own.changes if own.margin >= (MARGIN if made else CONCAT_MARGIN) else None


def _pieces(search: Search, head: Head) -> tuple[Part, ...]:
    """The head's input, cut into m on channels where that goes."""
    part, m = head.fused[0], search.modalities
    if len(head.fused) > 1 or not is_map(part.shape) or part.shape[1] % m:
        return ()
    return tuple(Part(part.call, part.side, part.leaf, 1, k, m) for k in range(m))


def _was_returned(piece: Part, search: Search) -> bool:
    """Whether a piece of the head's input is what some module returned."""
    value = piece.value()
    if value is None:  # not recorded
        return False
    columns = value.flatten(2)
    length = columns.shape[2]
    for call in search.calls:
        for leaf in call.outputs if call.ended < piece.call.began else ():
            x = leaf.value
            if x is None or x.ndim not in (3, 4) or call.phase != 1:
                continue
            other = x.flatten(2) if x.ndim == 4 else x[:, -length:].mT
            if other.shape == columns.shape and torch.equal(other, columns):
                return True
    return False


def _rows(search: Search, head: Head) -> list[str]:
    """What the last modules before the head got and returned."""
    calls = [c for c in search.calls if c.phase == 1 and c.name and c.began <= head.call.began]
    rows = []
    for call in sorted(calls, key=lambda c: c.began)[-16:]:
        module = search.probe.network.get_submodule(call.name)
        given, got = (
            " ".join(str(x.shape) for x in side if x.floating) or "-"
            for side in (call.inputs, call.outputs)
        )
        rows.append(f"{call.name} ({type(module).__name__}): {given} → {got}")
    return rows


def _failed(probe: Probe, error: Exception) -> Exception:
    """What to say where the tracker fails on its first frame."""
    if probe.driven and probe.modalities > 1:
        try:
            probe.inputs = np.ascontiguousarray(probe.inputs[..., :3])
            probe.modalities = 1
            probe.run()
        except Exception:  # it fails on RGB as well
            pass
        else:
            return ValueError(
                f"{type(probe.tracker).__name__} runs on RGB frames (H, W, 3), and fails on frames "
                f"of two modalities, (H, W, 6) ({error}): there is nothing to fuse. For SiamBAN "
                "call gmmt_fusion.adapters.siamban.two_stream(model) first"
            )
    alone = (
        "its network can be searched alone, with the inputs of a forward: find_fusion(net, inputs)"
    )
    hint = f"; {alone}" if probe.driven else ""
    return RuntimeError(f"{type(probe.tracker).__name__} failed on the frame: {error}{hint}")
