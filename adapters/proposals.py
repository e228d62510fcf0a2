"""From what a search has seen to lines to paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.readings import Part, is_map
from gmmt_fusion.attaching.recording import Call
from gmmt_fusion.attaching.searching import Head, ModuleFusion, Search
from gmmt_fusion.attaching.views import Streams, View
from gmmt_fusion.model.fusion import GenerativeFusion

from .trial import Refused


@dataclass
class Proposal:
    """An adapter, and the lines that attach a fusion with it.

    Attributes:
        what: the fusion point, in words.
        lines: to paste, complete. They were run as they are.
        sure: "sure" or "likely".
        evidence: what the search and the check have seen.
        apart: whether the check asks that the maps depend on a modality of their own each.
    """

    what: str
    adapter_code: str
    fusion_code: str
    sure: str
    apart: bool = True
    evidence: list[str] = field(default_factory=list)

    @property
    def lines(self) -> str:
        names = [n for n in _ADAPTERS if f"{n}(" in self.adapter_code]
        imports = ["from gmmt_fusion import GenerativeFusion, attach"]
        if names:
            imports.append(f"from gmmt_fusion.adapters import {', '.join(names)}")
        adapter = f"adapter = {self.adapter_code}\n" if self.adapter_code else ""
        last = "fusion, adapter" if self.adapter_code else "fusion"
        return (
            "\n".join(imports)
            + f"\n\nfusion = {self.fusion_code}\n{adapter}handle = attach(tracker, {last})\n"
        )

    def _made(self) -> dict[str, Any]:
        import gmmt_fusion.adapters

        names = {**vars(gmmt_fusion.adapters), "GenerativeFusion": GenerativeFusion}
        adapter = eval(self.adapter_code, names) if self.adapter_code else "auto"
        return {"adapter": adapter, "fusion": eval(self.fusion_code, names)}

    @property
    def adapter(self) -> Adapter | str:
        """For `attach`: a new one, or "auto"."""
        adapter: Adapter | str = self._made()["adapter"]
        return adapter

    @property
    def fusion(self) -> GenerativeFusion:
        """A new one for `attach`, of the right channels and size."""
        fusion: GenerativeFusion = self._made()["fusion"]
        return fusion


_ADAPTERS = ("ConcatAdapter", "EncoderAdapter", "ModuleAdapter", "Tap", "TapAdapter")


def fusion_code(
    search: Search, channels: int, size: Sequence[int], out_channels: int | None, modalities: int
) -> str:
    transformer = any(isinstance(m, nn.LayerNorm) for m in search.probe.network.modules())
    options = [f'"{"small" if transformer else "small-unet"}", {channels}, size={_size(size)}']
    if modalities != 2:
        options.append(f"modalities={modalities}")
    if out_channels not in (None, channels):
        options.append(f"out_channels={out_channels}")
    return f"GenerativeFusion.preset({', '.join(options)})"


def propose_module(search: Search, head: Head, found: ModuleFusion) -> Proposal:
    """ModuleAdapter, for a module that is fed with m maps, or streams of tokens."""
    call, part = found.call, found.reading[0]
    shape, options = part.shape, ""
    if is_map(shape):
        size, channels, fused = shape[2:], shape[1], found.output.shape[1]
        sizes = {x.shape[2:] for c in search.calls if c.name == call.name for x in c.inputs}
        if len(sizes) > 1:
            options = f", size={_size(size)}"
    else:
        size, (start, stop) = _search_tokens(search, head, found)
        channels, fused = shape[2], found.output.shape[2]
        options = f", tokens=({start}, {stop}), size={_size(size)}"
        if shape[0] != 1 and shape[1] == 1:
            options += ", batch_first=False"
    path = found.output.leaf.path
    if len(path) > 1:
        raise Refused(f"its output is nested, at {path}; ModuleAdapter takes output=index or key")
    if path:
        options += f", output={path[0]!r}"
    where = "the head's input" if found.equal else "what the head's input is made of"
    kind = "maps" if is_map(shape) else "streams of tokens"
    joined = "" if part.axis is None else ", concatenated"
    return Proposal(
        f"the module {call.name!r} fuses: {len(found.reading)} {kind} {shape} in{joined}, one out",
        f'ModuleAdapter(fusion="{call.name}", head="{head.name}"{options})',
        fusion_code(search, channels, size, fused, len(found.reading)),
        "sure" if found.keeps_channels and found.own.margin > 2 else "likely",
        evidence=[
            f"its output {found.output.shape} is {where}",
            f"with noise for images and its output held, the head's input changes by {found.cut:g} "
            f"(not held: {head.change:.2g})",
            *own_words(found.own.changes, found.own.order, search.modalities),
            *_often(search, call),
        ],
    )


def _often(search: Search, call: Call) -> list[str]:
    """Whether a module gets maps of this size more than once in a frame."""
    shapes = [x.shape[1:] for x in call.inputs]  # of any batch
    calls = [c for c in search.calls if c.key[:2] == call.key[:2] and c.phase == call.phase]
    count = sum([x.shape[1:] for x in c.inputs] == shapes for c in calls)
    if count < 2:
        return []
    return [f"it is called {count} times a frame with such: each time a map is generated"]


def _search_tokens(
    search: Search, head: Head, found: ModuleFusion
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of the search region's map, and its tokens among those of a stream.

    The others may be anything, and the head's input stays.
    """
    shape = head.fused[0].shape
    size = (shape[2], shape[3]) if is_map(shape) else _square(shape[1])
    count, length = found.reading[0].shape[1], size[0] * size[1]
    if count == length:
        return size, (0, length)
    if count < length:
        raise Refused(
            f"it fuses {count} tokens of a map of {length}: candidates are eliminated before it"
        )
    if found.output.shape[1] == length:
        return size, (count - length, count)
    for start in (count - length, 0, 1):
        if start + length <= count and _matter_only(search, head, found, start, start + length):
            return size, (start, start + length)
    raise Refused(f"which {length} of its {count} tokens are the search region's was not found")


def _matter_only(search: Search, head: Head, found: ModuleFusion, start: int, stop: int) -> bool:
    held = search.probe.keep([found.call.key])
    out = held[found.call.key]
    for step in found.output.leaf.path:
        out = out[step]
    out[:, :start] += 1.0
    out[:, stop:] -= 1.0
    calls, _ = search.probe.record((), held=held, wanted={p.place for p in head.fused})
    by_key = {c.key: c for c in calls}
    return max(p.change(by_key) for p in head.fused) == 0


def propose_concat(search: Search, head: Head, changes: list[list[float]]) -> Proposal:
    """ConcatAdapter, for a head that takes the modalities' concatenation."""
    shape, m = head.fused[0].shape, search.modalities
    return Proposal(
        f"no module fuses: the head {head.name!r} takes {m} maps concatenated, {shape}",
        f'ConcatAdapter(head="{head.name}")',
        fusion_code(search, shape[1] // m, shape[2:], shape[1], m),
        "sure",
        evidence=own_words(changes, tuple(range(m)), m),
    )


def propose_encoder(search: Search, head: Head, found: tuple[Part, int]) -> Proposal:
    """EncoderAdapter, for a tracker of one stream."""
    (part, start), shape = found, head.fused[0].shape
    length = shape[2] * shape[3]
    tokens = ""
    if not is_map(part.shape) and start + length != part.shape[1]:
        tokens = f", tokens=({start}, {start + length})"
    return Proposal(
        f"one stream: {part.call.name!r} gets the images of all modalities, and mixes them in its "
        "first layers; it runs once more for each modality",
        f'EncoderAdapter(encoder="{part.call.name}", head="{head.name}"{tokens})',
        fusion_code(search, shape[1], shape[2:], None, search.modalities),
        "likely",
        evidence=[f"the head's input {shape} is what it returns, {part.shape}"],
    )


def propose_streams(search: Search, head: Head, found: Streams) -> Proposal:
    """TapAdapter, for streams that meet in a function."""
    shape = head.fused[0].shape
    if not is_map(shape):
        return _propose_part(search, head, found)
    names = " and ".join(sorted({view.part.call.name for view in found.views}))
    if found.weights is not None:
        weights = " + ".join(f"{w:.3g} · f_{k + 1}" for k, w in enumerate(found.weights))
        after = f", before {', '.join(map(repr, found.through))}" if found.through else ""
        what = f"the fused map is a sum of streams, {weights}{after}; the streams come from {names}"
        evidence = ["the sum is exact: it leaves nothing of the fused map unexplained"]
    else:
        what = f"{names!r} is fed with {len(found.views)} streams, and the fused map is made of it"
        evidence = _beside(found)
    if found.views[0].places is not None:
        evidence.append("candidates are eliminated: tokens are scattered to their recorded places")
    return Proposal(
        what,
        tap_adapter_code(search, head, found),
        fusion_code(search, found.channels, shape[2:], shape[1], search.modalities),
        "sure" if found.weights is not None else "likely",
        found.weights is None,
        [*evidence, *own_words(found.own.changes, found.own.order, search.modalities)],
    )


def _beside(found: Streams) -> list[str]:
    seen = (
        f"with its output and that of {found.beside!r} held, noise for images changes the head's "
        "input by 0; with either alone it changes"
    )
    hardly = "the streams are hardly of one modality each: check that f_1 is RGB's"
    return [seen] if found.own.clear else [seen, hardly]


def tap_adapter_code(search: Search, head: Head, found: Streams) -> str:
    """Of the streams, each as it was seen."""
    shape, m = head.fused[0].shape, search.modalities
    options = [f'head="{head.name}"']
    options.append(_list_code("taps", [_tap_code(search, head, v, m) for v in found.views]))
    first = found.views[0].first
    if found.views[0].places is not None:
        places = [View(view.places) for view in found.views if view.places is not None]
        options.append(_list_code("places", [_tap_code(search, head, v, m) for v in places]))
    elif first >= 0 and not is_map(found.views[0].part.shape):
        options.append(f"tokens=({first}, {first + shape[2] * shape[3]})")
    maps = [x.path for x in head.call.inputs if len(x.shape) == 4]
    if argument := maps.index(head.fused[0].leaf.path):
        options.append(f"argument={argument}")
    return "TapAdapter(\n    " + ",\n    ".join(options) + ",\n)"


def _propose_part(search: Search, head: Head, found: Streams) -> Proposal:
    """ModuleAdapter, for a module that fuses but is not all that the head's tokens are made of."""
    part = found.views[0].part
    outputs = [x for x in part.call.outputs if x.path == () and x.shape == part.shape]
    if not (outputs and is_map(part.shape)):
        raise Refused(
            f"the head takes tokens {head.fused[0].shape}, which TapAdapter does not; streams that "
            f"are apart were last seen at {part.call.name!r}"
        )
    size, m = part.shape[2:], search.modalities
    return Proposal(
        f"{part.call.name!r} is the last that is fed with {m} maps {part.shape} and returns one",
        f'ModuleAdapter(fusion="{part.call.name}", head="{head.name}", size={_size(size)})',
        fusion_code(search, part.shape[1], size, None, m),
        "likely",
        evidence=[
            *_beside(found),
            *own_words(found.own.changes, found.own.order, m),
            *_often(search, part.call),
        ],
    )


def _list_code(name: str, items: Sequence[str]) -> str:
    return f"{name}=[\n" + "".join(f"        {item},\n" for item in items) + "    ]"


def _tap_code(search: Search, head: Head, view: View, modalities: int) -> str:
    part = view.part
    name, method, index = part.call.key
    if method != "forward":
        raise Refused(f"{name}.{method} is no forward, and cannot be tapped")
    later = [
        c
        for c in search.calls
        if c.key[:2] == (name, method) and index < c.key[2] and c.began < head.call.began
    ]
    options = [f'"{name}"']
    if part.leaf.path:
        options.append(f"item={part.leaf.path!r}".replace("'", '"'))
    if part.side == "inputs":
        options.append('of="input"')
    if later:
        options.append(f"call={-1 - len(later)}")
    if part.axis is not None:
        options.append(f"piece=({part.axis}, {part.k})")
    return f"Tap({', '.join(options)})"


def own_words(
    changes: Sequence[Sequence[float]], order: Sequence[int], modalities: int
) -> list[str]:
    """How the maps depend on the modalities."""
    names = ["RGB", "the auxiliary image", "the third image"]
    words = [
        f"f_{k + 1} changes by "
        + ", ".join(f"{x:.2g} with {_name(names, j)}" for j, x in enumerate(row))
        for k, row in enumerate(changes)
    ]
    if tuple(order) != tuple(range(len(order))):
        words.append(f"the maps come in the order {', '.join(_name(names, j) for j in order)}")
    return words


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"image {index + 1}"


def _size(size: Sequence[int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"({size[0]}, {size[1]})"


def _square(count: int) -> tuple[int, int]:
    side = round(count**0.5)
    if side * side != count:
        raise Refused(f"the head takes {count} tokens, which are no square map")
    return side, side
