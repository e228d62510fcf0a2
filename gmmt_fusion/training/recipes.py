"""Recipes: an optimiser and its schedule, for `fine_tune` or a host's own loop."""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..attaching.attachment import Attachment
from ..checks import check_whole_number

Recipe = Callable[[list[nn.Parameter], int, int], tuple[Optimizer, LRScheduler]]
"""(parameters, epochs, steps_per_epoch) -> (optimizer, schedule of the learning rate).

The optimiser is over these parameters, or some of them. The schedule is stepped after every step of
the optimiser, without arguments; what it does is tried out before the first step, and put back.
"""


def paper_optimizer(
    parameters: Iterable[nn.Parameter], epochs: int, steps_per_epoch: int = 1
) -> tuple[Optimizer, LRScheduler]:
    """The paper's stage 2 (supplement, Table 2): SGD, momentum 0.9, weight decay 1e-4.

    The learning rate rises linearly from 0.001 to 0.005 over the first fifth, then falls
    log-linearly to 0.00005; both ends are reached. Call `schedule.step()` once an epoch, as the
    paper does, or with `steps_per_epoch` after every step.

    In a host's own loop `train_in_host` builds it, and adds the generative loss. By hand it is
    `optimizer, schedule = paper_optimizer(attachment.parameters(), epochs)`, after the host has
    built its own; which parameters the host has switched off does not matter.

    Raises:
        ValueError: `epochs` or `steps_per_epoch` is no whole number of at least 1.
    """
    total = _count_steps(epochs, steps_per_epoch)
    rates = [
        *np.linspace(0.001, 0.005, total // 5),
        *np.geomspace(0.005, 0.00005, total - total // 5),
    ]
    parameters = list(parameters)
    fused = _can_fuse(parameters)
    optimizer = SGD(parameters, lr=0.005, momentum=0.9, weight_decay=1e-4, fused=fused)
    return optimizer, LambdaLR(optimizer, lambda step: float(rates[min(step, total - 1)]) / 0.005)


def adamw_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    epochs: int,
    steps_per_epoch: int = 1,
) -> tuple[Optimizer, LRScheduler]:
    """AdamW at 4e-4, weight decay 1e-4: warm-up over the first twentieth, then a cosine to zero.

    Call `schedule.step()` as for `paper_optimizer`.

    Args:
        parameters: also torch's groups (dicts), each with an "lr" of its own.

    Raises:
        ValueError: `epochs` or `steps_per_epoch` is no whole number of at least 1.
    """
    total = _count_steps(epochs, steps_per_epoch)
    warm_up = max(1, total // 20)
    # AdamW takes parameters or groups, and its types say so of the whole list only
    given = cast(Any, list(parameters))
    optimizer = AdamW(given, lr=4e-4, weight_decay=1e-4, fused=_can_fuse(given))
    return optimizer, LambdaLR(
        optimizer,
        lambda step: (
            min((step + 1) / warm_up, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        ),
    )


def network_alone(attachment: Attachment) -> Recipe:
    """AdamW for the network alone: the head and the residual path, which know boxes, are kept.

    For few training sequences, with a `generative_weight` of 100: docs/evidence.md.
    """
    modules = [m for m in (attachment.head, attachment.fusion.residual) if m is not None]
    kept = {id(p) for module in modules for p in module.parameters()}

    def recipe(
        parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int
    ) -> tuple[Optimizer, LRScheduler]:
        trained = [p for p in parameters if id(p) not in kept]
        return adamw_optimizer(trained, epochs, steps_per_epoch)

    return recipe


def _can_fuse(given: list[Any]) -> bool | None:  # parameters, or groups of them
    """Whether PyTorch steps all of them in one kernel, which is several times as fast."""
    groups = [group["params"] if isinstance(group, dict) else [group] for group in given]
    parameters = [p for group in groups for p in ([group] if isinstance(group, Tensor) else group)]
    fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return True if fits else None  # None lets PyTorch choose


def _count_steps(epochs: int, steps_per_epoch: int) -> int:
    check_whole_number("epochs", epochs)
    check_whole_number("steps_per_epoch", steps_per_epoch)
    return epochs * steps_per_epoch
