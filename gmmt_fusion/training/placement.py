"""Where a run is computed: devices, processes and precision, and the host there while it trains."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..attaching.attachment import Attachment
from .logging import check_trackers, list_trackers

if TYPE_CHECKING:  # takes a second to import
    from accelerate import Accelerator


@contextlib.contextmanager
def start_accelerator(
    mixed_precision: str | None, folder: Path, log_with: Any
) -> "Iterator[Accelerator]":
    """Devices, processes and precision of this run alone: the next may have another precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    # a head may leave parameters unused, and a discriminator has a turn of its own
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # the others wait while the first one validates
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    users, asked = is_initialized(), list_trackers(log_with)
    try:
        accelerator = Accelerator(
            # where there are processes and no device, accelerate would look for one all the same
            cpu=not getattr(torch, "accelerator", torch.cuda).is_available(),
            mixed_precision=mixed_precision,
            kwargs_handlers=[unused, patience],
            project_dir=folder,
            log_with=asked or None,
        )
        check_trackers(asked, accelerator.log_with)
        yield accelerator
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
