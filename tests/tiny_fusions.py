"""Small fusions and maps for them, always the same."""

from typing import Any

import torch
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion

TINY: dict[str, Any] = {"network_config": {"width": 16, "heads": 2}}
NETWORKS = {
    "uvit": TINY,
    "unet": {"network": "unet", "network_config": {"widths": (8, 16, 24), "depth": 1}},
}
COMBINATIONS = [
    (method, network) for method in ("diffusion", "cgan", "raw") for network in NETWORKS
]


def build(channels: int = 8, seed: int = 0, **options: Any) -> GenerativeFusion:
    """A small fusion whose network's last layer is not at zero."""
    torch.manual_seed(seed)
    fusion = GenerativeFusion(channels, **{"size": 8, **TINY, **options}).eval()
    for parameter in fusion.network.last_layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return fusion


def maps(
    modalities: int = 2, shape: tuple[int, ...] = (2, 8, 8, 8), dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [(2 * torch.randn(shape, generator=generator) + 1).to(dtype) for _ in range(modalities)]
