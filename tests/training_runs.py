"""Runs of `fine_tune` in which everything has a state, and accidents that happen to them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from training_data import Loss, attached, labels

from gmmt_fusion import Attachment, GenerativeFusion
from gmmt_fusion.training import fine_tune

CONCAT = CASES[0]
QUIET: dict[str, Any] = {"progress": False}
LONG: dict[str, Any] = {
    "epochs": 2,
    "accumulation": 2,
    "save_every": 1,
    "ema_decay": 0.9,
    "seed": 3,
    **QUIET,
}


class Restless(Loss):
    """Draws from every global generator, and dies when its time has come."""

    def __init__(
        self, case: Case, calls: float = float("inf"), accident: Any = KeyboardInterrupt
    ) -> None:
        super().__init__(case)
        self.calls, self.accident = calls, accident

    def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise self.accident
        drawn = np.random.rand()  # noqa: NPY002 (augmentations draw from it)
        return super().__call__(network, batch) * (1 + random.random() + drawn + torch.rand(()))


def run_long(folder: Path, loss: Any = None, **options: Any) -> Attachment:
    """Six steps of all that has a state: shuffling, augmentation, CGAN, EMA, validation, losses."""
    handle = attached(CONCAT, method="cgan")
    options.setdefault("validate", lambda attachment: float(CONCAT.run(attachment.network).mean()))
    loader = labels(12, noise=0.1, shuffle=True)
    fine_tune(handle, loader, loss or Restless(CONCAT), folder, **{**LONG, **options})
    return handle


def run_alone(folder: Path) -> None:
    """`run_long` in a process that may not have read conftest.py."""
    torch.set_num_threads(1)
    run_long(folder)


def train(folder: Path, handle: Any = None, loader: Any = None, **options: Any) -> Attachment:
    handle = handle or attached(CONCAT)
    loss = options.pop("tracking_loss", Loss(CONCAT))
    fine_tune(handle, loader or labels(), loss, folder, **{"epochs": 1, **QUIET, **options})
    return handle


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fail_once(patch: Any, target: Any, name: str, when: int, error: BaseException) -> None:
    """Let call number `when` of `target.name` raise `error`."""
    real, calls = getattr(target, name), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == when:
            raise error
        return real(*args, **kwargs)

    patch.setattr(target, name, fail)


def mean_loss(case: Case) -> Any:
    """A loss that is a mean over the labels of a batch, however many."""

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = case.train(network)
        score = (out["scores"] if isinstance(out, dict) else out[0]).mean()
        return {
            "square": (score - batch["label"]).square().mean(),
            "linear": (score * batch["label"]).mean(),
        }

    return loss


FULL = OSError(28, "No space left on device")
ACCIDENTS: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any] | None]] = {
    "Ctrl-C in the first step": lambda patch: {"loss": Restless(CONCAT, calls=0)},
    "Ctrl-C in the middle of a step": lambda patch: {"loss": Restless(CONCAT, calls=5)},
    "full disk at the weights": lambda patch: fail_once(
        patch, GenerativeFusion, "save_pretrained", 3, FULL
    ),
    "full disk at the optimiser": lambda patch: fail_once(patch, torch, "save", 2, FULL),
    "Ctrl-C at a rename": lambda patch: fail_once(patch, os, "replace", 14, KeyboardInterrupt()),
    "Ctrl-C at the removal": lambda patch: fail_once(
        patch, shutil, "rmtree", 1, KeyboardInterrupt()
    ),
    "error in validation": lambda patch: {"validate": lambda attachment: 1 / 0},
}
"""Each gives arguments of `run_long`, or None where it patches what the run calls."""
