"""Noise schedulers: those of diffusers, with the settings that feature maps need."""

import copy
import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

Scheduler = Any  # of diffusers, which is imported only when one is built
PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")
MOST_TIMESTEPS = 100_000
DEFAULT = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
"""DDIM on the cosine schedule, where one step means one step from t = T: "trailing" spacing, no
clipping (features are not images), and ᾱ = 1 at the end."""


def build_scheduler(scheduler: Scheduler, prediction_type: str) -> Scheduler:
    """A diffusers scheduler: the given one, one from its config (a mapping), or the default.

    Without a "_class_name", what a mapping does not say is as in `DEFAULT`.

    Raises:
        ValueError: an unknown class, a value of another type, or a class without `alphas_cumprod`.
    """
    import diffusers  # seconds to import

    if scheduler is None or isinstance(scheduler, Mapping):
        config = dict(scheduler or {})
        if "_class_name" not in config:
            config = {**DEFAULT, **config}
        name = config["_class_name"]
        cls: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
            raise ValueError(
                f"scheduler has _class_name={name!r}; expected the name of a diffusers scheduler"
            )
        config = {"prediction_type": prediction_type, **config}
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
        _check_values(cls, config)
        try:
            with torch.device("cpu"):  # its tables are read there, whatever the default device
                scheduler = cls.from_config(config)  # type: ignore[no-untyped-call]
        except (NotImplementedError, TypeError, AttributeError) as error:
            raise ValueError(f"scheduler={config} does not fit {name}: {error}") from error
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}; expected a diffusers one with "
            "alphas_cumprod"
        )
    return scheduler


def _check_values(cls: type, config: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another type than its default's; diffusers takes any."""
    for key, parameter in inspect.signature(cls).parameters.items():
        if key not in config or parameter.default is None:
            continue
        value = config[key]
        flag, number = isinstance(parameter.default, bool), isinstance(parameter.default, int)
        kind = bool if flag else int if number else type(parameter.default)
        fits = isinstance(value, kind) or (kind is float and isinstance(value, Real))
        if not fits or isinstance(value, bool) is not flag:
            raise ValueError(f"scheduler has {key}={value!r}; expected a {kind.__name__}")
        if key == "num_train_timesteps" and not 1 <= value <= MOST_TIMESTEPS:
            raise ValueError(f"scheduler has {key}={value!r}; expected 1 to {MOST_TIMESTEPS}")


def last_timestep(scheduler: Scheduler) -> int:
    """t = T, counted from 0: where sampling starts from pure noise."""
    return int(scheduler.config.num_train_timesteps) - 1


def one_step_gives_x_0(scheduler: Scheduler) -> bool:
    """Whether one step returns its estimate of x_0 as it is, whatever η: it need not be run."""
    config = scheduler.config
    return bool(
        type(scheduler).__name__ == "DDIMScheduler"
        and config.set_alpha_to_one
        and config.timestep_spacing == "trailing"
        and not config.clip_sample
        and not config.thresholding
    )


def pitfalls(scheduler: Scheduler, steps: int) -> list[str]:
    """What in a scheduler's settings spoils feature maps that are sampled in so many steps."""
    config, found = scheduler.config, []
    if config.prediction_type == "epsilon" and steps == 1:
        found.append(
            "prediction_type='epsilon' with steps=1: at t = T an error of the predicted noise is "
            "multiplied by 1/√ᾱ_T; use 'sample' or 'v_prediction', or more steps"
        )
    if config.get("clip_sample") or config.get("thresholding"):
        found.append(
            "the scheduler clips its estimates, as those of images; feature maps are larger "
            "(clip_sample=False)"
        )
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    if (first := int(scheduler.timesteps[0])) < 0.9 * last_timestep(scheduler):
        found.append(
            f"the scheduler starts from pure noise at t = {first} of {config.num_train_timesteps} "
            f"with steps={steps} (timestep_spacing='trailing')"
        )
    return found
