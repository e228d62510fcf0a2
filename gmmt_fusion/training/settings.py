"""The settings of a fine-tuning: what changes the result of a run."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..attaching.attachment import Attachment
from ..checks import check_choice, check_fraction, check_whole_number
from .recipes import Recipe, adamw_optimizer

PRECISIONS = (None, "no", "fp16", "bf16")


@dataclass(frozen=True)
class FineTuningSettings:
    """What changes the result of a run; `fine_tune` takes each of them as a keyword argument.

    Args:
        epochs: in all; a finished run goes on if it is started again with more.
        generative_weight: λ in Loss = Loss_track + λ · Loss_gen (Eq. 5), at least 0.
        recipe: `adamw_optimizer`, `paper_optimizer`, or a function of your own (parameters, epochs,
            steps_per_epoch) -> (optimizer, schedule). It is called once more for the discriminator
            of a CGAN.
        max_gradient_norm: gradients are clipped to it; None does not clip.
        accumulation: batches a step.
        mixed_precision: "no", "fp16" or "bf16"; None is what `accelerate launch` or `accelerate
            config` says.
        ema_decay: of a moving average of the weights, from 0 to 1, 0.999 say: the average is
            validated, and left in the end. None makes none.
        seed: of everything random, from 0; Python's, NumPy's and PyTorch's own random numbers are
            set to it.

    Raises:
        ValueError, TypeError: a value is out of range, or a setting is not known.
    """

    epochs: int = 100
    generative_weight: float = 5.0
    recipe: Recipe = adamw_optimizer
    max_gradient_norm: float | None = 1.0
    accumulation: int = 1
    mixed_precision: str | None = None
    ema_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_number("epochs", self.epochs)
        check_whole_number("accumulation", self.accumulation)
        check_whole_number("seed", self.seed, 0, 2**32 - 1)  # NumPy takes no more
        check_generative_weight(self.generative_weight)
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(
                f"max_gradient_norm={self.max_gradient_norm} is out of range; expected above 0, or "
                "None"
            )
        if self.ema_decay is not None:
            check_fraction("ema_decay", self.ema_decay)
        check_recipe(self.recipe)


def check_generative_weight(value: Any) -> None:
    """Raise ValueError unless `value` can be λ."""
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"generative_weight={value} is out of range; expected λ of at least 0")


def check_recipe(value: Any) -> None:
    """Raise TypeError unless `value` can be a `Recipe`."""
    if not callable(value):
        raise TypeError(
            f"recipe={value!r}; expected adamw_optimizer, paper_optimizer, or a function "
            "(parameters, epochs, steps_per_epoch) -> (optimizer, schedule)"
        )


def check_attached(value: Any, verb: str) -> None:
    """Raise TypeError or ValueError unless `value` is an attachment that is in its host."""
    if not isinstance(value, Attachment):
        raise TypeError(f"attachment is a {type(value).__name__}; expected what attach() returns")
    if not value.attached:
        raise ValueError(
            f"the attachment is detached; attach the fusion again, and {verb} with that"
        )


def check_callables(**functions: Any) -> None:
    """Raise TypeError unless each is a function or None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r:.60} cannot be called; expected a function")
