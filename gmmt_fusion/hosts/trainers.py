"""Stepping into the trainer of a host's: the three lines' effect, and errors that are not lost."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import distributed

from ..training import recipes
from ..training.host_loop import train_in_host
from .fusing import attach_new, attachment_of
from .job import Job
from .patches import Patches
from .run_folder import RunFolder

RECIPES = {"paper": recipes.paper_optimizer, "adamw": recipes.adamw_optimizer}


def watch_trainer(job: Job, kind: type, patches: Patches) -> None:
    """Step into a class that has pytracking's `train(max_epochs, …)`, and in it `actor.net`.

    Errors end it, also where it would be `fail_safe`; with `job.train` it trains the fusion.
    """
    own: Callable[..., Any] = kind.train  # type: ignore[attr-defined]
    signature = inspect.signature(own)

    @functools.wraps(own)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        if "fail_safe" in call.arguments:
            call.arguments["fail_safe"] = False
        if not job.train:
            return own(*call.args, **call.kwargs)
        epochs = next(v for k, v in call.arguments.items() if k in ("max_epochs", "epochs"))
        run = Run(job, self, epochs)
        result = own(*call.args, **call.kwargs)
        run.finish()
        return result

    patches.set(kind, "train", train)


class Run:
    """One training of a fusion by a host's trainer.

    Args:
        trainer: with `actor` (that has a `net`), `optimizer`, `lr_scheduler` and `loaders`.
        epochs: as many as it will train.
    """

    def __init__(self, job: Job, trainer: Any, epochs: int) -> None:
        self.job, self.trainer, self.folder = job, trainer, RunFolder(job)
        self.folder.check_options()
        self.handle = attachment_of(trainer.actor.net) or attach_new(job, trainer.actor.net)
        trainer.optimizer, trainer.lr_scheduler = train_in_host(
            self.handle,
            epochs,
            trainer.actor,
            generative_weight=job.generative_weight,
            recipe=RECIPES[job.recipe],
        )
        self.saved = False
        self.own_epoch, self.own_save = trainer.train_epoch, trainer.save_checkpoint
        trainer.train_epoch, trainer.save_checkpoint = self.train_epoch, self.save_checkpoint

    def train_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's, before whose first epoch a new fusion is calibrated."""
        if self.trainer.epoch == 1:
            self.folder.check_empty("the --save_dir that it was trained in")
            if self.job.calibrate:
                self.calibrate()
        self.saved = False
        return self.own_epoch(*args, **kwargs)

    def calibrate(self) -> None:
        """Set the fusion by what the host computes for a few batches of its own loader."""
        left = self.handle.calibrate(self.batches())
        self.job.say(
            f"calibrated on {self.job.calibrate} batches: {left:.1%} of the variance of the host's "
            "fused maps is left unexplained"
        )
        if distributed.is_available() and distributed.is_initialized():
            state = [*self.handle.fusion.parameters(), *self.handle.fusion.buffers()]
            for tensor in state:  # each process has drawn batches of its own
                distributed.broadcast(tensor.detach(), 0)

    def batches(self) -> Iterator[Callable[[], Any]]:
        loader = next(loader for loader in self.trainer.loaders if loader.training)
        for data in islice(loader, self.job.calibrate):
            data = _move(data, self.trainer.device)
            data["epoch"], data["settings"] = self.trainer.epoch, self.trainer.settings
            yield functools.partial(self.trainer.actor.forward_pass, data)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's, and the fusion of the same epoch."""
        result = self.own_save(*args, **kwargs)
        self.save()
        return result

    def save(self) -> None:
        self.folder.save(self.handle)
        self.saved = True

    def finish(self) -> None:
        """Save what is not saved yet, and say so."""
        torch.set_grad_enabled(True)  # which the trainer leaves off after a validation
        self.job.note("trained", str(self.folder.path))
        if distributed.is_available() and distributed.is_initialized() and distributed.get_rank():
            return
        if not self.saved:
            self.save()
        self.job.say(f"saved the fusion of epoch {self.trainer.epoch} in {self.folder.path}")


def _move(data: Any, device: Any) -> Any:
    """A batch of any host's on a device: what has a `to`, also in dicts."""
    if hasattr(data, "to"):
        return data.to(device)
    if isinstance(data, Mapping):
        return {name: _move(value, device) for name, value in data.items()}
    return data
