"""What a run is left with: the best weights, the start's included, and when it stops."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from torch import Tensor
from training_data import Loss, assert_same, attached, labels, weights
from training_runs import QUIET, fail_once, read_log, train

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.training import fine_tune

CONCAT = CASES[0]
STEPS = 4  # an epoch


class Scores:
    """A validation that returns the given numbers, and keeps the weights that it saw."""

    def __init__(self, *numbers: float) -> None:
        self.numbers: Iterator[float] = iter(numbers)
        self.seen: list[dict[str, Tensor]] = []
        self.enabled: list[bool] = []

    def __call__(self, attachment: Attachment) -> float:
        assert not attachment.network.training and not torch.is_grad_enabled()
        self.seen.append(weights(attachment))
        self.enabled.append(attachment.enabled)
        return next(self.numbers)


# validations of the host, the start and each epoch; which weights are left; what is said
RUNS: dict[str, tuple[tuple[float, ...], int, str | None]] = {
    "an epoch is best": ((0.1, 0.1, 0.3, 0.9, 0.2), 3, None),
    "the last is best": ((0.1, 0.1, 0.3, 0.4, 0.5), 4, None),
    "nothing beats the start": ((0.5, 0.5, 0.4, 0.5, 0.1), 1, "above the start's 0.5"),
    "nothing beats the host": ((0.9, 0.5, 0.6, 0.7, 0.1), 3, "the host's own fusion has 0.9"),
    "no number": ((float("nan"),) * 5, -1, None),
}


@pytest.mark.parametrize("average", [None, 0.9])
@pytest.mark.parametrize("name", RUNS)
def test_the_best_weights_are_left(name: str, average: float | None, tmp_path: Path) -> None:
    numbers, kept, said = RUNS[name]
    handle, scores = attached(CONCAT), Scores(*numbers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        last = fine_tune(
            handle,
            labels(),
            Loss(CONCAT),
            tmp_path,
            epochs=3,
            ema_decay=average,
            validate=scores,
            **QUIET,
        )
    told = [str(w.message) for w in caught if "validation" in str(w.message)]
    assert len(told) == (said is not None) and all(str(said) in text for text in told)
    assert scores.enabled == [False, True, True, True, True]
    assert last["best_step"] == (-1 if kept < 0 else STEPS * (kept - 1))
    names = {name for name, _ in handle.fusion.named_parameters()}

    def learned(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name in names}

    assert_same(learned(scores.seen[kept]), learned(weights(handle)))
    saved = attach(CONCAT.build(), tmp_path / "final", CONCAT.adapter())
    assert_same(weights(saved), weights(handle))


PATIENCE = {1: 2, 2: 5, 3: 6}
"""Epochs that are trained with each, of six."""


@pytest.mark.parametrize("patience", PATIENCE)
def test_early_stopping_is_the_same_when_it_is_resumed(patience: int, tmp_path: Path) -> None:
    """The validation is of the weights, so that a resumed run has the same."""
    numbers = (0.0, 0.1, 0.5, 0.2, 0.6, 0.3, 0.4, 0.5)
    count = STEPS * PATIENCE[patience]

    def run(folder: Path, numbers: tuple[float, ...]) -> Attachment:
        options: Any = {"epochs": 6, "patience": patience, "validate": Scores(*numbers)}
        return train(folder, **options)

    whole = run(tmp_path / "whole", numbers)
    log = read_log(tmp_path / "whole")
    assert max(line["step"] for line in log) == count
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_once(patch, Loss, "__call__", STEPS + 2, KeyboardInterrupt())
        run(tmp_path / "killed", numbers)
    resumed = run(tmp_path / "killed", numbers[3:])
    assert_same(weights(whole), weights(resumed))
    assert read_log(tmp_path / "killed") == log
    again = run(tmp_path / "killed", ())  # finished: nothing is left to validate
    assert_same(weights(whole), weights(again))


def test_patience_needs_a_validation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience=2 counts epochs that validate"):
        train(tmp_path, patience=2)


def test_the_best_is_found_damaged(tmp_path: Path) -> None:
    train(tmp_path, validate=Scores(0.0, 0.1, 0.2))
    (tmp_path / "best" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(OSError, match="best"):
        train(tmp_path, validate=Scores())
    GenerativeFusion.from_pretrained(tmp_path / "final")
