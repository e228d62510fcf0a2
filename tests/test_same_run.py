"""A resumed run is the same run or says what differs, and a recipe is checked before it begins."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, Subset
from training_data import Labels, Loss, assert_same, attached, labels, weights
from training_runs import read_log, train

from gmmt_fusion import Attachment, attach, train_in_host
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.training import Degradation, paper_optimizer
from gmmt_fusion.training.checkpoints import list_checkpoints
from gmmt_fusion.training.states import pack, unpack

CONCAT = CASES[0]


def recipe(make_optimizer: Any = AdamW, make_schedule: Any = None, **options: Any) -> Any:
    def build(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
        optimizer = make_optimizer(parameters, **{"lr": 1e-3, **options})
        if make_schedule is None:
            return optimizer, LambdaLR(optimizer, lambda step: 1.0)
        return optimizer, make_schedule(optimizer, epochs * steps_per_epoch)

    return build


def other_host() -> Attachment:
    handle = attached(CONCAT)
    with torch.no_grad():
        for name, parameter in handle.network.named_parameters():
            if not name.startswith("gmmt_fusion."):
                parameter.mul_(2)
    return handle


def degraded(degradation: Any) -> Attachment:
    handle = attached(CONCAT)
    handle.degradation = degradation
    return handle


class Faint:
    """A degradation without a repr of its own."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, inputs: Any, modalities: int, generator: torch.Generator) -> Any:
        return inputs


def resized() -> Attachment:
    return attach(CONCAT.build(), CONCAT.make_fusion(), ModuleAdapter("fuse", "box_head", size=8))


CONSTANT = recipe()
OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"recipe": recipe(lr=1e-2)}, r"fusion.group 0.lr is 0.001 there and 0.01"),
    "NumPy's learning rate": ({"recipe": recipe(lr=np.float32(1e-2))}, "learning_rates"),
    "weight decay": ({"recipe": recipe(weight_decay=0.5)}, "weight_decay is 0.01 there and 0.5"),
    "betas": ({"recipe": recipe(betas=(0.5, 0.9))}, "betas"),
    "optimiser": ({"recipe": recipe(SGD)}, "fusion.optimizer is 'AdamW' there and 'SGD'"),
    "schedule": ({"recipe": recipe(make_schedule=lambda o, n: StepLR(o, 3))}, "StepLR"),
    "schedule's function": (
        {"recipe": recipe(make_schedule=lambda o, n: LambdaLR(o, lambda step: 0.9**step))},
        "learning_rates",
    ),
    "λ": ({"generative_weight": 4}, "generative_weight is 5.0 there and 4.0 here"),
    "clipping": ({"max_gradient_norm": None}, "max_gradient_norm is 1.0 there and None"),
    "average": ({"ema_decay": 0.9}, "ema_decay is None there and 0.9"),
    "precision": ({"mixed_precision": "bf16"}, "mixed_precision is 'no' there and 'bf16'"),
    "batch size": ({"loader": labels(16, 4)}, "batch_size is 2 there and 4 here"),
    "length": ({"loader": labels(7)}, "samples is 8 there and 7"),
    "order": ({"loader": labels(shuffle=True)}, "'SequentialSampler' there and 'RandomSampler'"),
    "part of the data": ({"loader": DataLoader(Subset(Labels(), range(8)), 2)}, "dataset is"),
    "host": ({"handle": other_host}, "host_weights is"),
    "adapter": ({"handle": resized}, r"size is None there and \[8, 8\]"),
    "degradation": ({"handle": lambda: degraded(Degradation(0.5))}, "degradation is None there"),
    "fewer epochs": ({"epochs": 1}, "epochs is 2 there and 1 here"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, epochs=2, recipe=CONSTANT)
    return folder


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_another_run_is_refused_before_anything_is_computed(name: str, trained: Path) -> None:
    given, message = OTHER_RUNS[name]
    options = {"epochs": 3, "recipe": CONSTANT, **given}
    handle = options.pop("handle", lambda: attached(CONCAT))()
    before, files = weights(handle), sorted(trained.rglob("*"))

    def never(network: nn.Module, batch: Any) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match=f"another training: .*{message}.*; give another folder"):
        train(trained, handle, **options, tracking_loss=never)
    assert_same(before, weights(handle))
    assert sorted(trained.rglob("*")) == files


def test_what_may_differ(trained: Path) -> None:
    options = {"recipe": CONSTANT, "loader": labels(num_workers=1), "keep": 1, "save_every": 1}
    train(trained, epochs=2, validate=lambda attachment: 1.0, **options)


def test_degradations_are_told_apart_in_any_process(tmp_path: Path) -> None:
    train(tmp_path, degraded(Faint(0.5)))
    train(tmp_path, degraded(Faint(0.5)), epochs=2)
    with pytest.raises(ValueError, match=r"degradation is .*0\.5.* there and .*0\.6"):
        train(tmp_path, degraded(Faint(0.6)), epochs=3)


class Logged(LRScheduler):
    """Keeps its rates as siamban's do."""

    def __init__(self, optimizer: Any, steps: int) -> None:
        self.rates = np.logspace(-2, -4, steps)
        self.recent, self.seen = deque([1.0], maxlen=3), {np.int64(3): np.float32(0.5)}
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.recent.append(self.last_epoch)
        rate = self.rates[min(self.last_epoch, len(self.rates) - 1)]
        return [float(rate)] * len(self.optimizer.param_groups)


SCHEDULES: dict[str, Any] = {
    "NumPy": Logged,
    "cosine": lambda o, n: CosineAnnealingLR(o, n),
    "one cycle": lambda o, n: OneCycleLR(o, 0.01, n),
    "one after the other": lambda o, n: SequentialLR(
        o, [ConstantLR(o, 0.5, n), StepLR(o, 2)], [n // 2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_on(name: str, tmp_path: Path) -> None:
    """Interrupted, to the same bits; with more epochs, at the rates of the longer schedule."""
    options = {"recipe": recipe(SGD, SCHEDULES[name], momentum=0.9), "save_every": 1}
    whole = weights(train(tmp_path / "whole", epochs=2, **options))
    calls: list[int] = []

    def stop(network: nn.Module, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return Loss(CONCAT)(network, batch)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", epochs=2, tracking_loss=stop, **options)
    assert_same(whole, weights(train(tmp_path / "parts", epochs=2, **options)))
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    train(tmp_path / "longer", epochs=1, **options)
    train(tmp_path / "longer", epochs=2, **options)
    rates = [[x["learning_rate"] for x in read_log(tmp_path / f)[4:]] for f in ("longer", "whole")]
    assert rates[0] == pytest.approx(rates[1])


@dataclass
class Curve:
    top: float = 1.0

    def __call__(self, step: int) -> float:
        return self.top


class Holder(LambdaLR):
    def __init__(self, optimizer: Any, steps: int) -> None:
        self.curve = [Curve()]
        super().__init__(optimizer, lambda step: 1.0)


class Remembering(SGD):
    """Puts an object into its state in the first step."""

    def step(self, closure: Any = None) -> Any:
        self.state[self.param_groups[0]["params"][0]]["curve"] = Curve()
        return super().step(closure)


@pytest.mark.parametrize(
    "made", [recipe(make_schedule=Holder), recipe(Remembering)], ids=["schedule", "optimiser"]
)
def test_states_that_cannot_be_read_back_are_refused_at_once(made: Any, tmp_path: Path) -> None:
    """An optimiser's after its first step, and not an epoch later."""
    with pytest.raises(ValueError, match=r"fusion_.*is a Curve, which a checkpoint could not give"):
        train(tmp_path, epochs=2, recipe=made)
    assert not (tmp_path / "log.jsonl").exists()
    assert not list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "state",
    [
        np.arange(6.0).reshape(2, 3),
        np.zeros((0, 2), np.uint16),
        np.array(3j),
        deque([1, 2], maxlen=2),
        {"a": (1, [None, True, "x"]), 2: {3, 4}, "t": torch.ones(2), "f": frozenset({1})},
        OrderedDict(a=Counter("aab")),
    ],
    ids=str,
)
def test_states_come_back(state: Any) -> None:
    import io

    torch.save(pack(state, "it"), file := io.BytesIO())
    file.seek(0)
    back = unpack(torch.load(file, weights_only=True))
    assert type(back) is type(state)
    if isinstance(state, np.ndarray):
        np.testing.assert_array_equal(back, state)
        assert back.dtype == state.dtype and back.shape == state.shape
    elif isinstance(state, dict) and "t" in state:
        assert str(back) == str(state)
    else:
        assert back == state


def plateau(optimizer: Any, steps: int) -> Any:
    return ReduceLROnPlateau(optimizer)


def strangers(parameters: Any, epochs: int, steps: int) -> Any:
    return recipe(SGD)([nn.Parameter(torch.zeros(3))], epochs, steps)


def two_optimizers(parameters: Any, epochs: int, steps: int) -> Any:
    return SGD(parameters, 0.1), ConstantLR(SGD(parameters, 0.1))


class Metric(ConstantLR):
    def step(self, metric: Any = None) -> None:  # type: ignore[override]
        if self.last_epoch >= 0 and metric is None:
            raise TypeError("no metric")
        super().step()


BAD_RECIPES: dict[str, tuple[Any, str]] = {
    "None": (lambda *_: None, "the recipe returned None; expected"),
    "optimiser alone": (lambda p, *_: AdamW(p), "the recipe returned a AdamW alone"),
    "three": (lambda *_: (1, 2, 3), "the recipe returned 3 values"),
    "swapped": (lambda *a: paper_optimizer(*a)[::-1], "optimiser is a LambdaLR alone"),
    "no schedule": (lambda p, *_: (AdamW(p), None), "schedule is None"),
    "plateau": (recipe(make_schedule=plateau), "ReduceLROnPlateau, which needs a metric"),
    "two optimisers": (two_optimizers, "schedule is of another optimiser"),
    "other parameters": (strangers, "1 parameters, of which 0"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_what_a_recipe_returns_is_checked_first(name: str, tmp_path: Path) -> None:
    made, message = BAD_RECIPES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        train(tmp_path / "run", recipe=made)
    assert not (tmp_path / "run").exists()
    handle = attached(CONCAT)
    before = dict(vars(handle.plugin))
    with pytest.raises((TypeError, ValueError), match=message):
        train_in_host(handle, 3, recipe=made)
    assert vars(handle.plugin) == before


def test_a_schedule_that_cannot_be_stepped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Metric cannot be stepped.*no metric"):
        train(tmp_path, recipe=recipe(make_schedule=lambda o, n: Metric(o)))


BAD_ARGUMENTS = {
    "tracking_loss": {"tracking_loss": 3},
    "validate": {"validate": 4},
    "attachment": {"handle": nn.Linear(1, 1)},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=name):
        train(tmp_path, **BAD_ARGUMENTS[name])
    with pytest.raises(TypeError, match="attachment is a int"):
        train_in_host(60, attached(CONCAT))  # type: ignore[arg-type]
