"""Spoilt search pictures: what makes the generative loss ask for more than the host's own fused map."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .checks import check_share

KINDS = ("dark", "washed out", "noisy", "blurred", "gone")


class Degradation:
    """Spoils one modality of some samples' search pictures, in training; set it as `Attachment.degradation`.

    The host's fused map is a function of the features, so that a perfect generative loss gives back what the host has
    already. With a degradation the host runs twice: the clean pictures give the target, the spoilt ones the features;
    what is generated is the fused map that the host would have had from two good modalities. Templates stay clean.

    Args:
        probability: share of the samples that are spoilt.
    """

    def __init__(self, probability: float = 0.5) -> None:
        check_share("probability", probability)
        self.probability = probability

    def __repr__(self) -> str:
        return f"Degradation({self.probability})"

    def __call__(self, inputs: Any, modalities: int, generator: torch.Generator) -> Any:
        """The host's inputs, of any structure, with the search pictures in it spoilt.

        The search pictures are the largest among the tensors (B, 3·m, H, W) or, m in a row, (B, 3, H, W).

        Raises:
            ValueError: there are none.
        """
        leaves, structure = tree_flatten(inputs)
        places = [i for i, x in enumerate(leaves)
                  if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (3, 3 * modalities)]
        largest = max((leaves[i].shape[2:].numel() for i in places), default=0)
        places = [i for i in places if leaves[i].shape[2:].numel() == largest]
        channels = sum(leaves[i].shape[1] for i in places)
        if channels != 3 * modalities:
            raise ValueError(f"the host's inputs hold search pictures of {channels} channels; expected {modalities} "
                             f"modalities of 3, in one tensor (B, {3 * modalities}, H, W) or in {modalities}. For "
                             "other inputs give a degradation of your own: (inputs, modalities, generator) -> inputs")
        pictures = torch.cat([leaves[i] for i in places], dim=1)
        spoilt = self.spoil(list(pictures.chunk(modalities, dim=1)), generator)
        for i, part in zip(places, torch.cat(spoilt, dim=1).split([leaves[i].shape[1] for i in places], dim=1),
                           strict=True):
            leaves[i] = part
        return tree_unflatten(leaves, structure)

    def spoil(self, pictures: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Pictures (B, 3, H, W), one tensor a modality, of any range and dtype, some of them spoilt."""
        results = [picture.clone() for picture in pictures]
        for item in range(len(pictures[0])):
            chance, strength = torch.rand(2, generator=generator, device=generator.device).tolist()
            modality, kind = (int(torch.randint(most, (), generator=generator, device=generator.device))
                              for most in (len(pictures), len(KINDS)))
            if chance < self.probability:
                clean = pictures[modality][item]
                results[modality][item] = _spoil(clean, KINDS[kind], 0.4 + 0.6 * strength, generator).to(clean.dtype)
        return results


def _spoil(picture: Tensor, kind: str, strength: float, generator: torch.Generator) -> Tensor:
    """A picture (3, H, W) within its own range, whatever its normalisation is."""
    x = picture.float()
    low, mean, high = x.amin(), x.mean(), x.amax()
    grain = torch.randn((1, *x.shape[1:]), generator=generator, device=generator.device).to(x.device) * (high - low)
    if kind == "dark":
        x = low + (x - low) * (1 - 0.95 * strength) + 0.015 * grain
    elif kind == "washed out":
        x = mean + (x - mean) * (1 - 0.95 * strength) + 0.015 * grain
    elif kind == "noisy":
        x = x + 0.2 * strength * grain
    elif kind == "blurred":
        radius = max(1, round(strength * min(x.shape[1:]) / 40))
        x = F.avg_pool2d(F.pad(x[None], (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)[0]
    else:
        x = mean + 0.015 * grain.expand_as(x)
    return x.clamp(low, high)
