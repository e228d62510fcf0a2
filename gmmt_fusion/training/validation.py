"""Validation of a run: of the host alone, of the start and of every epoch; the best is left."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ..attaching.attachment import Attachment
from ..model import checkpoint
from .feature_cache import HostMapMissing
from .run_state import RunState

Validate = Callable[[Attachment], float]
"""(attachment in eval mode) -> a number, more is better."""


def validate_start(state: RunState, validate: Validate) -> None:
    """Log what the host is worth without the fusion, "base", and what the run starts with."""

    def without(attachment: Attachment) -> float:
        with attachment.disabled():
            try:
                return validate(attachment)
            except HostMapMissing as error:
                warnings.warn(str(error), stacklevel=2)
                return math.nan

    state.log({"base": _score(state, without)})
    validate_weights(state, validate)


def validate_weights(state: RunState, validate: Validate) -> None:
    """Log the validation of the present weights, and keep the best ones.

    Those of the moving average where there is one. Ties are kept as they are: the earlier weights
    are nearer to the host.
    """
    average = state.average
    if average is not None:
        average.store(state.parameters)
        average.copy_to(state.parameters)
    value = _score(state, validate)
    if value > state.best:
        state.best, state.best_step = value, state.step
        path = state.folder / "best"
        state.on_main(lambda: state.save_fusion(path, validation=value, best=value))
    if average is not None:
        average.restore(state.parameters)
    state.log({"validation": value, "best": state.best, "best_step": state.best_step})


def _score(state: RunState, validate: Validate) -> float:
    """The main process validates, and the others wait."""
    from accelerate.utils import broadcast_object_list

    state.attachment.network.eval()
    value = [0.0]
    if state.accelerator.is_main_process:
        with torch.no_grad():
            value = [float(validate(state.attachment))]
    number: float = broadcast_object_list(value)[0]
    state.attachment.network.train()
    return number


def leave_best(state: RunState) -> dict[str, float]:
    """Load the best weights, and say where nothing that was trained is better than before.

    Returns:
        Their scores.

    Raises:
        OSError: they are not as they were written.
    """
    if state.best_step < 0:  # no validation gave a number
        return {}
    path: Path = state.folder / "best"
    checkpoint.load_state(state.attachment.fusion, checkpoint.load(path)[1], path)
    base, text = state.record.get("base", state.best), ""
    if state.best < base:
        text = (
            f"the best validation is {state.best:g}, and the host's own fusion has {base:g}: track "
            "without the fusion, or train otherwise"
        )
    elif state.best_step == 0 < state.step:
        text = f"no epoch's validation was above the start's {state.best:g}, and the start is kept"
    if text and state.accelerator.is_main_process:
        warnings.warn(text, stacklevel=6)
    return {"validation": state.best}
