"""Degraded search images: with them the generative loss asks for more than the host's own map."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..checks import check_fraction

KINDS = ("dark", "low contrast", "noisy", "blurred", "missing")
MIX = (*KINDS, *3 * ("missing",))
"""All kinds, and "missing" as often as the others together."""
Inputs = Any  # a host's inputs, of whatever structure


class Degradation:
    """Degrades one modality of some samples' search images while the fusion trains.

    It is set as `Attachment.degradation`. The host's fused map is a function of the features, so
    that a perfect generative loss gives back what the host has already. With a degradation the host
    runs twice: the clean images give the target, the degraded ones the features; what is generated
    is the fused map that the host would have had from two good modalities. Templates stay clean.

    Args:
        probability: fraction of the samples that are degraded, 0 to 1.
        kinds: of degradation, one of which is drawn for each such sample, more often if it is named
            more often; ("missing",) is modality dropout. By default half of them lack a modality.

    Raises:
        ValueError: a probability outside 0 to 1, an unknown kind, or none.
    """

    def __init__(self, probability: float = 0.6, kinds: Sequence[str] = MIX) -> None:
        check_fraction("probability", probability)
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(
                f"kinds={kinds!r} is unknown; expected one or several of {KINDS}, in a tuple"
            )
        self.probability, self.kinds = probability, tuple(kinds)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__qualname__}({arguments})"

    def __call__(self, inputs: Inputs, modalities: int, generator: torch.Generator) -> Inputs:
        """The host's inputs, of any structure, with the search images in it degraded.

        The search images are the largest among the tensors (B, 3·m, H, W) or, m in a row,
        (B, 3, H, W).

        Raises:
            ValueError: there are none.
        """
        leaves, structure = tree_flatten(inputs)
        places = _find_search_images(leaves, modalities)
        images = torch.cat([leaves[i] for i in places], dim=1)
        degraded = torch.cat(self.corrupt(images.chunk(modalities, dim=1), generator), dim=1)
        first = 0
        for i in places:
            channels = leaves[i].shape[1]
            leaves[i] = degraded[:, first : first + channels]
            first += channels
        return tree_unflatten(leaves, structure)

    def corrupt(self, images: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Copies of the images (B, 3, H, W), one tensor a modality, with some samples degraded.

        Any range and dtype will do; a degraded image stays within its own range.
        """
        batch, device, drawn_on = len(images[0]), images[0].device, generator.device
        # who is hit is decided where it is drawn: asking a GPU for it would wait for the host
        chance, strength = torch.rand(2, batch, generator=generator, device=drawn_on)
        modality, kind = (
            torch.randint(most, (batch,), generator=generator, device=drawn_on)
            for most in (len(images), len(self.kinds))
        )
        size = (batch, 1, *images[0].shape[2:])
        grain = torch.randn(size, generator=generator, device=drawn_on).to(device)
        results = [image.clone() for image in images]
        for m, image in enumerate(images):
            for k, name in enumerate(self.kinds):
                hit = (chance < self.probability) & (modality == m) & (kind == k)
                samples = hit.nonzero()[:, 0]
                if len(samples):
                    level = rearrange(0.4 + 0.6 * strength[samples], "b -> b 1 1 1").to(device)
                    samples = samples.to(device)
                    degraded = _degrade(image[samples].float(), name, level, grain[samples])
                    results[m][samples] = degraded.to(image.dtype)
        return results


def _find_search_images(leaves: Sequence[Any], modalities: int) -> list[int]:
    """Where among the leaves of a host's inputs its search images are."""
    places = [
        i
        for i, x in enumerate(leaves)
        if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (3, 3 * modalities)
    ]
    largest = max((leaves[i].shape[2:].numel() for i in places), default=0)
    places = [i for i in places if leaves[i].shape[2:].numel() == largest]
    channels = sum(leaves[i].shape[1] for i in places)
    if channels != 3 * modalities:
        raise ValueError(
            f"the host's inputs hold search images of {channels} channels; expected {modalities} "
            f"modalities of 3, in one tensor (B, {3 * modalities}, H, W) or in {modalities}. For "
            "other inputs give a degradation of your own: (inputs, modalities, generator) -> inputs"
        )
    return places


def _degrade(x: Tensor, kind: str, level: Tensor, grain: Tensor) -> Tensor:
    """Images (B, 3, H, W), each degraded within its own range, whatever its normalisation is.

    level: (B, 1, 1, 1) in 0 to 1. grain: (B, 1, H, W), of variance 1.
    """
    low, mean, high = (reduce(x, "b c h w -> b 1 1 1", how) for how in ("min", "mean", "max"))
    grain = grain * (high - low)
    if kind == "dark":
        degraded = low + (x - low) * (1 - 0.95 * level) + 0.015 * grain
    elif kind == "low contrast":
        degraded = mean + (x - mean) * (1 - 0.95 * level) + 0.015 * grain
    elif kind == "noisy":
        degraded = x + 0.2 * level * grain
    elif kind == "blurred":
        radius = max(1, min(x.shape[2:]) // 40)
        blurred = F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
        degraded = x + level * (blurred - x)
    else:
        degraded = mean + 0.015 * grain.expand_as(x)
    return torch.minimum(torch.maximum(degraded, low), high)
