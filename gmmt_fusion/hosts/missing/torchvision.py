"""torchvision: what hosts of OSTrack's family need of it to track and to train."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__version__ = "0.20.0"


def box_area(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4) as x, y, x, y."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def normalize(tensor: Tensor, mean: Any, std: Any, inplace: bool = False) -> Tensor:
    """(tensor - mean) / std of every channel, of (…, C, H, W); mean and std are numbers.

    Raises:
        TypeError, ValueError: it is no tensor of numbers with fractions, or a std is 0.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"normalize got a {type(tensor).__name__}; expected a tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"normalize got a tensor of {tensor.dtype}; expected a float tensor")
    offset, scale = (
        torch.as_tensor(x, dtype=tensor.dtype, device=tensor.device).view(-1, 1, 1)
        for x in (mean, std)
    )
    if (scale == 0).any():
        raise ValueError(f"normalize got std={std}; expected no 0")
    tensor = tensor if inplace else tensor.clone()
    return tensor.sub_(offset).div_(scale)


class ToTensor:
    """An image (H, W, C), uint8, as a tensor (C, H, W) from 0 to 1."""

    def __call__(self, image: Any) -> Tensor:  # a PIL image or an array
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return tensor.float().div(255) if tensor.dtype == torch.uint8 else tensor


def _is_tracing() -> bool:
    return bool(torch._C._get_tracing_state())
