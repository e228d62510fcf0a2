"""Statistics of a host's maps, and the linear map between them by least squares, both in
float64.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def moments(maps: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (C,) each, over batches of maps (B, C, H, W).

    A channel that never moves (a dead ReLU, say) gets standard deviation 1: dividing by nothing
    would blow up noise.
    """
    count = 0
    total = squares = torch.zeros(())
    for x in maps:
        values = _double(rearrange(x, "b c h w -> c (b h w)"))
        count += values.shape[1]
        total = total + values.sum(dim=1)
        squares = squares + values.square().sum(dim=1)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(std > 1e-6 * std.max().clamp(min=1e-30), std, torch.ones_like(std))


def least_squares_convolution(
    batches: Iterable[tuple[Tensor, Tensor]], kernel: int, ridge: float = 1e-6
) -> tuple[Tensor, Tensor, float]:
    """The zero-padded convolution that takes inputs (B, C_in, H, W) nearest to targets (B, C_out,
    H, W).

    Solves the normal equations with a ridge relative to their mean diagonal, so that redundant
    channels do no harm.

    Returns:
        weight (C_out, C_in, kernel, kernel), bias (C_out,), and the share of the targets' variance
        left unexplained.
    """
    count = 0
    gram = cross = target_sum = target_squares = torch.zeros(())
    for inputs, targets in batches:
        for x, y in zip(
            inputs, targets, strict=True
        ):  # one map at a time: an unfolded batch is large
            columns = F.unfold(_double(x[None]), kernel, padding=kernel // 2)[0]
            columns = torch.cat([columns, columns.new_ones(1, columns.shape[1])])
            y = _double(rearrange(y, "c h w -> c (h w)"))
            gram = gram + columns @ columns.T
            cross = cross + columns @ y.T
            count += y.shape[1]
            target_sum = target_sum + y.sum(dim=1)
            target_squares = target_squares + y.square().sum(dim=1)
    penalty = (
        ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    penalty[-1, -1] = 0  # the bias is free
    solution = torch.linalg.solve(gram + penalty, cross)
    residual = (
        target_squares.sum() - 2 * (solution * cross).sum() + (solution * (gram @ solution)).sum()
    )
    variance = target_squares.sum() - (target_sum.square() / count).sum()
    weight = rearrange(solution[:-1], "(c kh kw) o -> o c kh kw", kh=kernel, kw=kernel)
    return weight, solution[-1], float((residual / variance.clamp(min=1e-30)).clamp(0, 1))


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have no float64
