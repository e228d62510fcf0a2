"""A resumed run is the same run or says what differs; its folder has one owner; damage is told."""

import contextlib
import json
import os
import re
import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
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
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset
from training_data import Labels, Loss, assert_same, attached, labels, weights
from training_runs import QUIET, read_log

from gmmt_fusion import Attachment, attach, train_in_host
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.training import CachedFeatures, Degradation, fine_tune, paper_optimizer
from gmmt_fusion.training.checkpoints import list_checkpoints, read_checkpoint
from gmmt_fusion.training.states import pack, unpack

CONCAT = CASES[0]


def train(folder: Path, handle: Any = None, loader: Any = None, **options: Any) -> Attachment:
    handle = handle or attached(CONCAT)
    loss = options.pop("tracking_loss", Loss(CONCAT))
    fine_tune(handle, loader or labels(), loss, folder, **{"epochs": 1, **QUIET, **options})
    return handle


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


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other content": lambda path: path.write_bytes(b'{"hello": [1, 2]}\n' * 9),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "missing": lambda path: path.unlink(),
    **{f"bit at {x}": (lambda path, x=x: flip(path, x)) for x in (0, 0.2, 0.5, 0.99, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told(damage: str, tmp_path: Path) -> None:
    train(tmp_path, save_every=2)
    older, last = list_checkpoints(tmp_path / "checkpoints")
    for name in ("state.json", "optimizer.pt", "model.safetensors", "config.json"):
        before = (last / name).read_bytes()
        DAMAGES[damage](last / name)
        with pytest.raises(OSError) as caught:
            train(tmp_path, epochs=2)
        assert str(last / name) in str(caught.value), caught.value
        assert f"{older} is whole: delete {last}" in str(caught.value)
        (last / name).write_bytes(before)
    if damage != "missing":
        log = (tmp_path / "log.jsonl").read_bytes()
        DAMAGES[damage](tmp_path / "log.jsonl")
        with pytest.raises(OSError, match=r"log\.jsonl has changed"):
            train(tmp_path, epochs=2)
        (tmp_path / "log.jsonl").write_bytes(log)
    train(tmp_path, epochs=2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_told(damage: str, tmp_path: Path) -> None:
    make_cache(CONCAT, tmp_path / "cache", shard_size=4)
    for name in ("manifest.json", "shard-00001.safetensors"):
        path = tmp_path / "cache" / name
        before = path.read_bytes()
        DAMAGES[damage](path)
        with pytest.raises(OSError, match=re.escape(str(path))):
            train(tmp_path / "run", loader=DataLoader(CachedFeatures(tmp_path / "cache"), 2))
        path.write_bytes(before)


def test_strays_do_no_harm(tmp_path: Path) -> None:
    train(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    strays = ["step-00000010.bak", "step-foo", "step-1", ".step-00000009", "step-000000099"]
    for name in strays:
        (checkpoints / name).mkdir()
    (checkpoints / "step-99999999").write_text("a user's file")
    (checkpoints / f".step-00000003.gmmt-{16 * '0'}").mkdir()  # of a killed process
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / f".model.safetensors.gmmt-{16 * 'f'}").touch()
    train(tmp_path, epochs=4, keep=1)
    found = sorted(path.name for path in checkpoints.iterdir())
    assert found == sorted([*strays, "step-00000016", "step-99999999"])
    assert not list((tmp_path / "best").iterdir())


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    began, end = threading.Event(), threading.Event()

    def wait(attachment: Attachment) -> float:
        began.set()
        assert end.wait(60)
        return 1.0

    first = threading.Thread(target=train, args=(tmp_path,), kwargs={"validate": wait})
    first.start()
    try:
        assert began.wait(60)
        with pytest.raises(OSError, match=f"another process trains in {tmp_path}"):
            train(tmp_path)
    finally:
        end.set()
        first.join()
    train(tmp_path, epochs=2)
    assert not list(tmp_path.glob(".*"))


def test_two_writers_of_one_cache(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second(batch: Any) -> Any:
        if not found:
            try:
                make_cache(CONCAT, tmp_path)
            except OSError as error:
                found.append(error)
        return {"label": batch["label"]}

    cache = make_cache(CONCAT, tmp_path, targets=second)
    assert f"another process caches features in {tmp_path}" in str(found[0])
    cache.verify()


def test_a_run_stays_in_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def move(attachment: Attachment) -> float:
        os.chdir(tmp_path / "elsewhere")
        return 1.0

    train(Path("run"), epochs=2, validate=move)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "run" / "final").is_dir() and len(read_log(tmp_path / "run")) == 10


def test_logs_are_json(tmp_path: Path) -> None:
    values = iter([float("nan"), float("inf"), float("-inf")])
    train(tmp_path, epochs=3, validate=lambda attachment: next(values))

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    json.loads((last / "state.json").read_text(), parse_constant=refuse)
    assert read_checkpoint(last).about["best"] == "inf"
    train(tmp_path, epochs=3)


class Told:
    """A sampler or dataset that shuffles by its own epoch."""

    def __init__(self, inner: Any = None) -> None:
        self.sampler, self.epoch, self.told = inner, 0, []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        return iter(range(8)) if self.sampler is None else iter(self.sampler)


class ToldData(Told):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": torch.tensor(index / 10), "epoch": self.epoch}


def batch_sampler(inner: Any) -> DataLoader[Any]:
    return DataLoader(Labels(), batch_sampler=BatchSampler(inner, 2, False))


WANT_EPOCHS: dict[str, Any] = {
    "sampler": lambda told: DataLoader(Labels(), 2, sampler=told),
    "of the batch sampler": batch_sampler,
    "two deep": lambda told: batch_sampler(Told(told)),
    "dataset": lambda told: DataLoader(ToldData(), 2),
}


@pytest.mark.parametrize("name", ["sampler", "of the batch sampler", "two deep"])
def test_samplers_are_told_the_epoch(name: str, tmp_path: Path) -> None:
    told = Told(RandomSampler(Labels()))
    train(tmp_path, loader=WANT_EPOCHS[name](told), epochs=2)
    train(tmp_path, loader=WANT_EPOCHS[name](told), epochs=3)
    assert told.told == [0, 1, 2]


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}], ids=str)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Subset(x, range(8)), lambda x: x + x])
def test_datasets_are_told_the_epoch(wrap: Any, workers: Any, tmp_path: Path) -> None:
    class Data(torch.utils.data.Dataset[Any], ToldData):  # type: ignore[misc]
        __getitem__ = ToldData.__getitem__

    seen = []

    def loss(network: nn.Module, batch: Any) -> Any:
        seen.append(set(batch["epoch"].tolist()))
        return Loss(CONCAT)(network, batch)

    loader = DataLoader(wrap(Data()), 2, **workers)
    train(tmp_path, loader=loader, epochs=3, tracking_loss=loss)
    assert seen == sorted(seen, key=list) and seen[0] == {0} and seen[-1] == {2}


def test_several_caches(tmp_path: Path) -> None:
    one, other = (make_cache(CONCAT, tmp_path / name, loader=labels(8)) for name in "ab")
    calls: list[int] = []
    handle = attached(CONCAT)
    handle.network.register_forward_pre_hook(lambda *_: calls.append(1))
    both = Subset(one + Subset(other, range(4)), range(10))
    train(tmp_path / "run", handle, DataLoader(both, 2))
    assert not calls  # the host was not needed
    half = make_cache(CONCAT, tmp_path / "half", dtype="float16")
    for dataset, message in ((one + half, "dtype is None there"), (one + Labels(), "beside them")):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "other", loader=DataLoader(dataset, 2))
    with pytest.raises(ValueError, match=r"another training: .*(dataset|cache)"):
        train(tmp_path / "run", loader=DataLoader(Subset(one + one, range(10)), 2), epochs=2)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    import resource

    train(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=str(tmp_path)):
            train(tmp_path, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        train(tmp_path, epochs=2)
