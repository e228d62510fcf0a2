"""The maps that a host fuses while it tracks, and those that its fusion would generate there."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ..attaching.attachment import Attachment
from ..attaching.families import find_family
from .sequences import TrackingSequence
from .tracking import run


@dataclass(frozen=True, eq=False)
class Example:
    """What one frame of a sequence gave.

    Attributes:
        frame: its index in the sequence.
        patches: the search patches (H, W, 3), float, RGB, in 0 to 1; visible, then auxiliary.
        features: of each modality, (C, h, w).
        fused: the host's map, (C, h, w).
        generated: the fusion's, (C, h, w).
    """

    frame: int
    patches: list[np.ndarray]
    features: list[Tensor]
    fused: Tensor
    generated: Tensor


class Maps(NamedTuple):
    """What a run over sequences gave.

    fused: the host's maps, generated: the fusion's, (N, C, h, w) each on the CPU. sequences: the
    name of the one that each is of. examples: by sequence, the frame in the middle of those taken.
    """

    fused: Tensor
    generated: Tensor
    sequences: list[str]
    examples: dict[str, Example]


def collect_maps(
    tracker: Any,  # a user's object, see `trackers`
    sequences: Sequence[TrackingSequence],
    frames: int = 500,
    progress: Callable[[], object] | None = None,
) -> Maps:
    """Run a tracker with its own fusion, and generate the map of some of its frames.

    Args:
        tracker: with a fusion attached.
        sequences: to run it over.
        frames: how many maps to take, evenly spread over all frames but the first ones.
        progress: called after every frame.

    Where several maps are fused in one frame, the last one is taken.

    Raises:
        ValueError: nothing is attached, or no map would be generated.
    """
    attachment, family = Attachment.of(tracker), find_family(tracker)
    places = [(sequence, frame) for sequence in sequences for frame in range(len(sequence))]
    chosen, shown = _choose_frames(places, frames)
    numbers = itertools.count()
    fused: list[Tensor] = []
    generated: list[Tensor] = []
    names: list[str] = []
    examples: dict[str, Example] = {}

    def keep() -> None:
        index = next(numbers)
        if index in chosen and pairs:
            features, host = pairs[-1]
            made = attachment.fusion(*features)
            fused.append(host[0].cpu())
            generated.append(made[0].cpu())
            sequence, frame = places[index]
            names.append(sequence.name)
            if index in shown:
                depth = getattr(sequence.auxiliary, "depth", False)
                patches = _find_patches(seen, family.takes_bgr(depth))
                examples[sequence.name] = Example(
                    frame, patches, [f[0] for f in features], host[0], made[0]
                )
        pairs.clear()
        seen.clear()
        if progress is not None:
            progress()

    with attachment.recorded() as pairs, _watch_first_convolutions(attachment) as seen:
        for sequence in sequences:
            run(tracker, sequence, keep)
    if not fused:
        raise ValueError(
            f"the tracker ran {len(places)} frames, and none of its maps is one that would be "
            "generated: look at the adapter's size, and whether the tracker calls the network with "
            "the fusion"
        )
    return Maps(torch.stack(fused), torch.stack(generated), names, examples)


def _choose_frames(
    places: Sequence[tuple[TrackingSequence, int]], count: int
) -> tuple[set[int], set[int]]:
    """The indices of the places to take, and of the middle one of each sequence among them."""
    searched = [index for index, (_, frame) in enumerate(places) if frame > 0]
    spread = np.linspace(0, len(searched) - 1, min(count, len(searched))).round().astype(int)
    chosen = {searched[i] for i in spread}
    of_sequence: dict[str, list[int]] = {}
    for index in sorted(chosen):
        of_sequence.setdefault(places[index][0].name, []).append(index)
    return chosen, {indices[len(indices) // 2] for indices in of_sequence.values()}


@contextlib.contextmanager
def _watch_first_convolutions(attachment: Attachment) -> Iterator[list[Tensor]]:
    """Collect the images (B, 3, H, W) or (B, 3·m, H, W) that the first convolutions see."""
    seen: list[Tensor] = []
    channels = 3, 3 * attachment.fusion.modalities
    own = set(attachment.fusion.modules())
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in attachment.network.modules()
        if isinstance(module, nn.Conv2d) and module.in_channels in channels and module not in own
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _find_patches(seen: Sequence[Tensor], bgr: Sequence[bool]) -> list[np.ndarray]:
    """The search patches (H, W, 3), visible and auxiliary, among what first convolutions saw.

    Each channel is stretched to its range, as hosts differ in their normalisation. The search
    patches are the largest, templates being smaller, and trackers take the visible one first. An
    empty list if no convolution saw an image.
    """
    images = [
        image
        for x in seen
        for image in rearrange(x[0].detach().float().cpu(), "(m c) h w -> m h w c", c=3).numpy()
    ]
    largest = max((image.size for image in images), default=0)
    patches: list[np.ndarray] = []
    for image in images:
        if image.size == largest and not any(np.array_equal(image, other) for other in patches):
            patches.append(image)
    stretched = [
        (patch - patch.min((0, 1))) / np.maximum(np.ptp(patch, (0, 1)), 1e-6) for patch in patches
    ]
    return [
        patch[..., ::-1] if flip else patch for patch, flip in zip(stretched, bgr, strict=False)
    ]
