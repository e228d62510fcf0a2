"""What a recipe returns: checked before the first step, told apart from others, and moved along."""

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .recipes import Recipe

if TYPE_CHECKING:  # takes a second to import
    from accelerate.optimizer import AcceleratedOptimizer

EXPECTED = "expected (optimizer, schedule), as adamw_optimizer and paper_optimizer return them"
NOT_COMPARED = (
    *("params", "base_lrs"),  # compared as "parameters" and "lr"
    *("foreach", "fused", "capturable", "differentiable"),  # how a step is computed
)
TRACED = 5000  # steps of a schedule that are compared, at most


def call_recipe(
    recipe: Recipe, parameters: Sequence[nn.Parameter], epochs: int, steps_per_epoch: int
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser and the schedule of a recipe.

    Raises:
        TypeError, ValueError: it returns something else, or an optimiser of other parameters.
    """
    returned: Any = recipe(list(parameters), epochs, steps_per_epoch)  # whatever a user wrote
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(f"the recipe returned {_name(returned)}; {EXPECTED}")
    optimizer: Any = returned[0]
    schedule: Any = returned[1]
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"the recipe's optimiser is {_name(optimizer)}; {EXPECTED}")
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            "the recipe's schedule is a ReduceLROnPlateau, which needs a metric at every step; "
            "expected one whose step() takes none, LambdaLR say"
        )
    if not isinstance(schedule, LRScheduler):
        raise TypeError(f"the recipe's schedule is {_name(schedule)}; {EXPECTED}")
    if schedule.optimizer is not optimizer:
        raise ValueError("the recipe's schedule is of another optimiser than the one beside it")
    known = {id(parameter) for parameter in parameters}
    own = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if not own or not known.issuperset(own):
        raise ValueError(
            f"the recipe's optimiser has {len(own)} parameters, of which {len(set(own) & known)} "
            f"are among the {len(known)} that it was given; expected those, or some of them"
        )
    made: tuple[Optimizer, LRScheduler] = (optimizer, schedule)
    return made


def _name(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values"
    return "None" if value is None else f"a {type(value).__name__} alone"


@dataclass
class Learner:
    """Parameters with their optimiser and its schedule: of the fusion, or of its discriminator."""

    parameters: list[nn.Parameter]
    optimizer: "AcceleratedOptimizer"
    schedule: LRScheduler

    def replay(self, steps: int) -> list[dict[str, Any]]:
        """Move a new schedule along; what it has then changed in the optimiser's groups."""
        groups = self.optimizer.param_groups
        before = _settings_of(groups)
        with _without_warnings():
            for _ in range(steps):
                self.schedule.step()
        return [
            {k: v for k, v in group.items() if k in ("lr", "initial_lr") or v != old.get(k)}
            for group, old in zip(_settings_of(groups), before, strict=True)
        ]


def describe_learner(optimizer: Optimizer, schedule: LRScheduler, steps: int) -> dict[str, Any]:
    """What tells an optimiser and its schedule, both new, from others, as JSON.

    Args:
        steps: of the run; the first of them are tried out.

    Raises:
        ValueError: the schedule cannot be stepped, or put back where it was.
    """
    groups = {f"group {i}": _describe(group) for i, group in enumerate(optimizer.param_groups)}
    try:
        rates = _trace(optimizer, schedule, min(steps, TRACED))
        state = _describe(schedule.state_dict())
    except Exception as error:  # of a class that anybody wrote
        raise ValueError(
            f"the recipe's {type(schedule).__name__} cannot be stepped and put back: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {
        "optimizer": type(optimizer).__qualname__,
        **groups,
        "schedule": {"class": type(schedule).__qualname__, **state, "learning_rates": rates},
    }


def _describe(settings: dict[str, Any]) -> dict[str, Any]:
    """What is plain and short of a group or a state; of the rates, the one at the start."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Tensor | np.ndarray | np.generic):
            value = value.tolist()
        several = isinstance(value, tuple | list)
        numbers = [_as_json(number) for number in (value if several else [value])]
        known = all(isinstance(number, int | float | str | None) for number in numbers)
        if known and len(numbers) <= 16 and key not in NOT_COMPARED and not key.startswith("_"):
            found[key] = numbers if several else numbers[0]
    if "initial_lr" in found:
        found["lr"] = found.pop("initial_lr")
    if "params" in settings:
        found["parameters"] = len(settings["params"])
    return found


def _as_json(number: Any) -> Any:
    """A float of Python's, or the name of one that JSON does not know."""
    if not isinstance(number, float):
        return number
    return float(number) if math.isfinite(number) else str(float(number))


def _trace(optimizer: Optimizer, schedule: LRScheduler, steps: int) -> str:
    """A digest of what a schedule does to the groups in its first steps; it is put back then."""
    state, before = copy.deepcopy(schedule.state_dict()), _settings_of(optimizer.param_groups)
    digest = hashlib.sha256()
    with _without_warnings():
        for _ in range(steps):
            for group in optimizer.param_groups:
                numbers = [group["lr"], group.get("momentum", 0), *group.get("betas", ())]
                digest.update(" ".join(f"{float(number):.6g}" for number in numbers).encode())
            schedule.step()
    schedule.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, before, strict=True):
        group.update(settings)
    return digest.hexdigest()


def _settings_of(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of everything in the groups but the parameters."""
    return [
        {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        for group in groups
    ]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():  # that no optimiser was stepped
        warnings.simplefilter("ignore")
        yield
