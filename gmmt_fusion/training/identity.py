"""What a run is: everything that changes its result, as JSON, so that a resumed run is the same."""

import json
import re
from typing import TYPE_CHECKING, Any

from ..attaching.attachment import Attachment
from ..model.checkpoint import weights_digest
from .settings import FineTuningSettings

if TYPE_CHECKING:  # takes a second to import
    from accelerate import Accelerator

Identity = dict[str, Any]  # JSON


def describe_run(
    accelerator: "Accelerator", attachment: Attachment, settings: FineTuningSettings
) -> Identity:
    """Settings but for the recipe, which is told by what it returns; processes, host, degradation.

    In Python's numbers, whatever the settings came in.
    """
    optional = {key: getattr(settings, key) for key in ("max_gradient_norm", "ema_decay")}
    return {
        "seed": int(settings.seed),
        "accumulation": int(settings.accumulation),
        "generative_weight": float(settings.generative_weight),
        **{key: x if x is None else float(x) for key, x in optional.items()},
        "mixed_precision": accelerator.mixed_precision,  # where None was given, the launcher's
        "processes": accelerator.num_processes,
        **describe_source(attachment),
        "degradation": describe_degradation(attachment),
    }


def describe_source(attachment: Attachment) -> Identity:
    """What the host's maps depend on: host and adapter; of the fusion only its shape."""
    digest = weights_digest(attachment.host_state_dict())
    source = {**attachment.describe(), "host_weights": digest}
    as_read_back: Identity = json.loads(json.dumps(source))  # tuples are lists
    return as_read_back


def describe_degradation(attachment: Attachment) -> str | None:
    """What tells a degradation from another, in any process: a function's name, or its repr."""
    degradation = attachment.degradation
    if degradation is None:
        return None
    if hasattr(degradation, "__qualname__"):
        return f"{degradation.__module__}.{degradation.__qualname__}"
    text = repr(degradation)
    if text.startswith("<"):  # of an object that has no repr of its own
        text = f"{type(degradation).__qualname__}({vars(degradation)!r})"
    return re.sub(" at 0x[0-9a-fA-F]+", "", text)


def summarise(identity: Identity) -> Identity:
    """What a reader wants to know of a run: its settings, and the optimiser at the start."""
    learner = identity["fusion"]
    group = learner["group 0"]
    settings = (
        *("epochs", "batches", "batch_size", "accumulation", "processes", "mixed_precision"),
        *("generative_weight", "max_gradient_norm", "ema_decay", "seed", "degradation"),
    )
    return {
        "optimizer": learner["optimizer"],
        "learning_rate": group.get("lr"),
        "weight_decay": group.get("weight_decay"),
        "schedule": learner["schedule"]["class"],
        **{name: identity[name] for name in settings if identity.get(name) is not None},
    }
