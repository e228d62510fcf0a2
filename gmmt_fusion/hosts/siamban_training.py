"""The README's lines in siamban's tools/train.py, where it builds its optimiser."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..attaching.attachment import Attachment
from ..training.host_loop import train_in_host
from .fusing import attach_new, attachment_of
from .job import Job
from .patches import Patches
from .run_folder import RunFolder
from .trainers import RECIPES


def watch_training(job: Job, module: ModuleType, patches: Patches) -> None:
    """Attach a new fusion, and train it, in place of the optimiser that the script builds for its
    `ModelBuilder`; save it with each checkpoint.

    Args:
        module: that defines `ModelBuilder`, and has siamban's `cfg`.
    """
    training = Training(job, module.cfg)
    kind = module.ModelBuilder
    patches.set(kind, "__init__", training.remember(kind.__init__))
    patches.set(torch.optim, "SGD", training.optimizer_for(torch.optim.SGD))
    patches.set(torch, "save", training.saving(torch.save))


class Training:
    """A training of a fusion by siamban's tools/train.py.

    Args:
        cfg: siamban's configuration.
    """

    def __init__(self, job: Job, cfg: Any) -> None:
        self.job, self.cfg, self.folder = job, cfg, RunFolder(job)
        self.network: Callable[[], nn.Module | None] = lambda: None

    def remember(self, own: Callable[..., None]) -> Any:
        """The network's constructor; the last network is the one to be trained."""

        @functools.wraps(own)
        def __init__(network: nn.Module, *args: Any, **kwargs: Any) -> None:
            own(network, *args, **kwargs)
            self.network = weakref.ref(network)

        return __init__

    def optimizer_for(self, own: type[Optimizer]) -> Any:
        """torch.optim.SGD, or for the network that of the fusion."""

        @functools.wraps(own, updated=())
        def build(*args: Any, **kwargs: Any) -> Optimizer:
            network = self.network()
            if network is None:
                return own(*args, **kwargs)
            return train_in_host(
                attachment_of(network) or self.attach(network),
                self.cfg.TRAIN.EPOCH,
                generative_weight=self.job.generative_weight,
                recipe=RECIPES[self.job.recipe],
            )[0]

        return build

    def attach(self, network: nn.Module) -> Attachment:
        """Attach a new fusion; one that does not go on from a checkpoint may be calibrated."""
        self.folder.check_options()
        if not self.cfg.TRAIN.RESUME:
            self.folder.check_empty(
                "the checkpoint: --set TRAIN.RESUME=FILE --set TRAIN.START_EPOCH=N"
            )
        handle = attach_new(self.job, network)
        if self.job.calibrate and not self.cfg.TRAIN.RESUME:
            # the class of the loader's data, which the script has imported
            dataset = sys.modules["siamban.datasets.dataset"].BANDataset()
            loader = DataLoader(dataset, self.cfg.TRAIN.BATCH_SIZE)
            left = handle.calibrate((batch,) for batch in islice(loader, self.job.calibrate))
            self.job.say(
                f"calibrated on {self.job.calibrate} batches: {left:.1%} of the variance of the "
                "host's fused maps is left unexplained"
            )
        return handle

    def saving(self, own: Callable[..., None]) -> Any:
        """torch.save, and the fusion of the same epoch with each of the script's checkpoints."""

        @functools.wraps(own)
        def save(obj: Any, *args: Any, **kwargs: Any) -> None:
            own(obj, *args, **kwargs)
            handle = attachment_of(self.network())
            if handle is not None and isinstance(obj, dict) and "state_dict" in obj:
                self.folder.save(handle)
                folder = self.folder.path
                self.job.note("trained", str(folder))
                print(f"gmmt_fusion: saved the fusion of epoch {obj['epoch']} in {folder}")

        return save
