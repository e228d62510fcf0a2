"""Where a run is computed: devices, processes and precision, and the host there while it trains."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..attaching.attachment import Attachment

if TYPE_CHECKING:  # takes a second to import
    from accelerate import Accelerator


@contextlib.contextmanager
def start_accelerator(
    mixed_precision: str | None, folder: Path, tensorboard: bool
) -> "Iterator[Accelerator]":
    """Devices, processes and precision of this run alone: the next may have another precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        InitProcessGroupKwargs,
        is_tensorboard_available,
    )

    if tensorboard and not is_tensorboard_available():
        raise ImportError("tensorboard=True needs tensorboard; pip install tensorboard")
    # a head may leave parameters unused, and a discriminator has a turn of its own
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # the others wait while the first one validates
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    users = is_initialized()
    try:
        yield Accelerator(
            # where there are processes and no device, accelerate would look for one all the same
            cpu=not getattr(torch, "accelerator", torch.cuda).is_available(),
            mixed_precision=mixed_precision,
            kwargs_handlers=[unused, patience],
            project_dir=folder,
            log_with="tensorboard" if tensorboard else None,
        )
    finally:
        if not users:
            AcceleratorState._reset_state()


@contextlib.contextmanager
def put_in_training(attachment: Attachment, device: torch.device) -> Iterator[None]:
    """The network in training mode on a device inside the `with`; then where and as it was."""
    network = attachment.network
    training, before = network.training, next(network.parameters()).device
    patches = {"forward", "_original_forward", "_is_accelerate_prepared"}  # accelerate's
    patches -= vars(network).keys()
    weight = attachment.total_loss_weight
    attachment.total_loss_weight = None  # λ is applied here, once
    try:
        network.to(device).train()
        yield
    finally:
        for name in patches & vars(network).keys():
            delattr(network, name)
        attachment.total_loss_weight = weight
        network.to(before).train(training)
