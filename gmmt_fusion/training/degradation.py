"""Degraded search pictures: what makes the generative loss ask for more than the host's own fused
map.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..checks import check_share

KINDS = ("dark", "low contrast", "noisy", "blurred", "missing")


class Degradation:
    """Degrades one modality of some samples' search pictures, in training; set it as
    `Attachment.degradation`.

    The host's fused map is a function of the features, so that a perfect generative loss gives back
    what the host has already. With a degradation the host runs twice: the clean pictures give the
    target, the degraded ones the features; what is generated is the fused map that the host would
    have had from two good modalities. Templates stay clean.

    Args:
        probability: share of the samples that are degraded.
        kinds: of degradation, one of which is drawn for each such sample; ("missing",) is modality
            dropout.

    Raises:
        ValueError: a share outside 0 to 1, an unknown kind, or none.
    """

    def __init__(self, probability: float = 0.5, kinds: Sequence[str] = KINDS) -> None:
        check_share("probability", probability)
        if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(
                f"kinds={kinds!r} is unknown; expected one or several of {KINDS}, in a tuple"
            )
        self.probability, self.kinds = probability, tuple(kinds)

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def __call__(self, inputs: Any, modalities: int, generator: torch.Generator) -> Any:
        """The host's inputs, of any structure, with the search pictures in it degraded.

        The search pictures are the largest among the tensors (B, 3·m, H, W) or, m in a row, (B, 3,
        H, W).

        Raises:
            ValueError: there are none.
        """
        leaves, structure = tree_flatten(inputs)
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
                f"the host's inputs hold search pictures of {channels} channels; expected "
                f"{modalities} "
                f"modalities of 3, in one tensor (B, {3 * modalities}, H, W) or in {modalities}. "
                "For "
                "other inputs give a degradation of your own: (inputs, modalities, generator) -> "
                "inputs"
            )
        pictures = torch.cat([leaves[i] for i in places], dim=1)
        degraded = self.corrupt(list(pictures.chunk(modalities, dim=1)), generator)
        for i, part in zip(
            places,
            torch.cat(degraded, dim=1).split([leaves[i].shape[1] for i in places], dim=1),
            strict=True,
        ):
            leaves[i] = part
        return tree_unflatten(leaves, structure)

    def corrupt(self, pictures: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Pictures (B, 3, H, W), one tensor a modality, of any range and dtype, some of them
        degraded.
        """
        batch, device = len(pictures[0]), pictures[0].device
        chance, strength = torch.rand(2, batch, generator=generator, device=generator.device).to(
            device
        )
        modality, kind = (
            torch.randint(most, (batch,), generator=generator, device=generator.device).to(device)
            for most in (len(pictures), len(self.kinds))
        )
        grain = torch.randn(
            (batch, 1, *pictures[0].shape[2:]), generator=generator, device=generator.device
        ).to(device)
        results = [picture.clone() for picture in pictures]
        for m, picture in enumerate(pictures):
            for k, name in enumerate(self.kinds):
                items = ((chance < self.probability) & (modality == m) & (kind == k)).nonzero()[
                    :, 0
                ]
                if len(items):
                    level = rearrange(0.4 + 0.6 * strength[items], "b -> b 1 1 1")
                    degraded = _degrade(picture[items].float(), name, level, grain[items])
                    results[m][items] = degraded.to(picture.dtype)
        return results


def _degrade(x: Tensor, kind: str, level: Tensor, grain: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), each within its own range, whatever its normalisation is; level (B, 1,
    1, 1) in 0..1.
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
