"""Fine-tuning: what is trained, what is written, and that a run survives whatever happens to it."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from cases import CASES, Case
from torch import Tensor, nn
from training_data import Loss, assert_same, attached, labels, weights

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.training import adamw_optimizer, fine_tune, paper_optimizer

CONCAT, MAPS = CASES[0], CASES[1]
QUIET = {"progress": False}


def rates(optimizer: Any, epochs: int, steps_per_epoch: int = 1) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    built, scheduler = optimizer([parameter], epochs, steps_per_epoch)
    seen = []
    for _ in range(epochs * steps_per_epoch):
        seen.append(built.param_groups[0]["lr"])
        built.step()
        scheduler.step()
    return seen


def test_the_papers_recipe() -> None:
    optimizer, _ = paper_optimizer(iter([nn.Parameter(torch.zeros(1))]), 100)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD) and (
        group["momentum"],
        group["weight_decay"],
    ) == (0.9, 1e-4)
    seen = np.array(rates(paper_optimizer, 100))
    np.testing.assert_allclose(seen[[0, 19, 20, 99]], [0.001, 0.005, 0.005, 0.00005])
    np.testing.assert_allclose(np.diff(seen[:20]), np.diff(seen[:20])[0])  # linear
    np.testing.assert_allclose(seen[22:] / seen[21:-1], seen[22] / seen[21])  # log-linear
    for epochs, steps in ((1, 1), (2, 1), (7, 1), (3, 11)):
        few = rates(paper_optimizer, epochs, steps)
        assert all(0 < rate <= 0.005 for rate in few) and (
            epochs * steps == 1 or few[-1] == pytest.approx(0.00005)
        )


def test_adamw_warms_up_and_goes_to_zero() -> None:
    seen = rates(adamw_optimizer, 10, 10)
    assert seen[0] < seen[4] == max(seen) == pytest.approx(4e-4, rel=0.02) and seen[-1] < 1e-6


@pytest.mark.parametrize(
    ("case", "method"),
    [*((case, "diffusion") for case in CASES), (CASES[0], "cgan")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_only_the_plugin_learns(case: Case, method: str, tmp_path: Path) -> None:
    handle = attached(case, method=method)
    host = {name: value.clone() for name, value in handle.host_state_dict().items()}
    before, attributes = weights(handle), set(vars(handle.network))
    last = fine_tune(handle, labels(), Loss(case), tmp_path, epochs=1, ema_decay=0.5, **QUIET)
    assert_same(host, handle.host_state_dict())
    learned = {
        name.split(".")[0]
        for name, value in weights(handle).items()
        if not torch.equal(before[name], value)
    }
    assert learned >= {"network", "residual", "head"} and ("discriminator" in learned) == (
        method == "cgan"
    )
    assert set(vars(handle.network)) == attributes and not handle.network.training
    assert last["loss"] == pytest.approx(
        last["tracking_loss"] + 5 * last["generative_loss"], rel=1e-4
    )
    other = case.build()
    attach(other, tmp_path / "final", case.adapter())
    assert torch.equal(case.run(other), case.run(handle.network))


@pytest.mark.parametrize("filtered", [False, True])
def test_a_hosts_own_loop(filtered: bool) -> None:
    """Whatever a host has switched off by name, the fusion and its head are trained, and a CGAN's D
    in turn.
    """
    handle = attached(CONCAT, method="cgan")
    network = handle.network.train()
    if filtered:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("prompt" in name)
    optimizer, _ = paper_optimizer(handle.parameters(), epochs=10)
    second, _ = paper_optimizer(handle.fusion.discriminator.parameters(), epochs=10)
    before = weights(handle)
    out = CONCAT.train(network)
    (out["scores"].square().mean() + 5 * out["generative_loss"]).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in handle.fusion.discriminator.parameters())
    handle.discriminator_loss().backward()
    second.step()
    after = weights(handle)
    same = {n for n, _ in handle.fusion.named_parameters() if torch.equal(before[n], after[n])}
    assert all(parameter.grad is not None for parameter in handle.fusion.parameters()), same
    assert not any(
        p.requires_grad for n, p in network.named_parameters() if not n.startswith("gmmt_fusion.")
    )


def test_accumulation_gives_the_step_of_the_larger_batch(tmp_path: Path) -> None:
    results = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        handle = attached(MAPS, method="raw")
        options: dict[str, Any] = {
            "epochs": 1,
            "recipe": paper_optimizer,
            "max_gradient_norm": None,
        }
        fine_tune(
            handle,
            labels(8, batch_size),
            repeated(MAPS),
            tmp_path / str(batch_size),
            accumulation=accumulation,
            **options,
            **QUIET,
        )
        results.append(weights(handle))
    torch.testing.assert_close(*results)


def repeated(case: Case) -> Any:
    """A loss that is a mean over the labels of a batch, however many."""

    def loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = case.train(network)
        score = (out["scores"] if isinstance(out, dict) else out[0]).mean()
        return {
            "square": (score - batch["label"]).square().mean(),
            "linear": (score * batch["label"]).mean(),
        }

    return loss


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
        return super().__call__(network, batch) * (
            1 + random.random() + np.random.rand() + torch.rand(())
        )


LONG: dict[str, Any] = {
    "epochs": 2,
    "accumulation": 2,
    "save_every": 1,
    "ema_decay": 0.9,
    "seed": 3,
    **QUIET,
}


def long_run(folder: Path, loss: Any = None, **options: Any) -> Attachment:
    """Six steps with everything that has a state: shuffling, augmentation, CGAN, EMA, validation,
    random losses.
    """
    handle = attached(CONCAT, method="cgan")
    options.setdefault("validate", lambda attachment: float(CONCAT.run(attachment.network).mean()))
    fine_tune(
        handle,
        labels(12, noise=0.1, shuffle=True),
        loss or Restless(CONCAT),
        folder,
        **{**LONG, **options},
    )
    return handle


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, weights(long_run(folder))


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fails_once(monkeypatch: Any, target: Any, name: str, when: int, error: BaseException) -> None:
    real, calls = getattr(target, name), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == when:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, fail)


FULL = OSError(28, "No space left on device")
ACCIDENTS: dict[str, Any] = {
    "Ctrl-C in the first step": lambda patch: Restless(CONCAT, calls=0),
    "Ctrl-C in the middle of a step": lambda patch: Restless(CONCAT, calls=5),
    "full disk at the weights": lambda patch: fails_once(
        patch, GenerativeFusion, "save_pretrained", 3, FULL
    ),
    "full disk at the optimiser": lambda patch: fails_once(patch, torch, "save", 2, FULL),
    "Ctrl-C at a rename": lambda patch: fails_once(patch, os, "replace", 14, KeyboardInterrupt()),
    "Ctrl-C at the removal": lambda patch: fails_once(
        patch, shutil, "rmtree", 1, KeyboardInterrupt()
    ),
    "error in validation": lambda patch: {"validate": lambda attachment: 1 / 0},
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_run_goes_on_to_the_same_bits(accident: str, undisturbed: Any, tmp_path: Path) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises((KeyboardInterrupt, OSError, ZeroDivisionError)),
    ):
        outcome = ACCIDENTS[accident](patch)
        long_run(tmp_path, **(outcome if isinstance(outcome, dict) else {"loss": outcome}))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')  # cut off
    after = weights(long_run(tmp_path))
    assert_same(undisturbed[1], after)
    assert lines(tmp_path) == lines(undisturbed[0])
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]
    for one in ("best", "final"):
        assert_same(
            GenerativeFusion.from_pretrained(undisturbed[0] / one).state_dict(),
            GenerativeFusion.from_pretrained(tmp_path / one).state_dict(),
        )


def test_kill_9(undisturbed: Any, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=long_run, args=(tmp_path,))
    process.start()
    while len(list((tmp_path / "checkpoints").glob("step-*"))) < 2:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "final").exists()
    after = weights(long_run(tmp_path))
    assert_same(undisturbed[1], after)
    assert lines(tmp_path) == lines(undisturbed[0])


def test_a_finished_run_goes_on_with_more_epochs(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    first = fine_tune(handle, labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET)
    trained = weights(handle)
    again = attached(CONCAT)
    assert fine_tune(again, labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET) == first
    assert_same(trained, weights(again))
    assert fine_tune(again, labels(), Loss(CONCAT), tmp_path, epochs=2, **QUIET)["step"] == 8


def test_the_average_is_validated_and_left(tmp_path: Path) -> None:
    handle, seen = attached(CONCAT), []

    def validate(attachment: Attachment) -> float:
        assert not attachment.network.training and not torch.is_grad_enabled()
        seen.append(weights(attachment))
        return [0.3, 0.9, 0.1][len(seen) - 1]

    last = fine_tune(
        handle,
        labels(),
        Loss(CONCAT),
        tmp_path,
        epochs=3,
        ema_decay=0.9,
        validate=validate,
        **QUIET,
    )
    assert (last["validation"], last["best"]) == (pytest.approx(0.1), pytest.approx(0.9))
    names = {name for name, _ in handle.fusion.named_parameters()}
    assert_same(
        {n: v for n, v in seen[2].items() if n in names},
        {n: v for n, v in weights(handle).items() if n in names},
    )
    best = attach(CONCAT.build(), tmp_path / "best", CONCAT.adapter())
    assert_same(seen[1], weights(best))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(where: str, tmp_path: Path) -> None:
    class Sick(Loss):
        calls = 0

        def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Any:
            self.calls += 1
            loss = super().__call__(network, batch)
            if self.calls == 7:  # the gradient of the root of 0 is infinite
                loss = loss * float("nan") if where == "loss" else loss + (loss * 0).sqrt()
            return {"boxes": loss}

    handle = attached(CONCAT)
    message = (
        r"step 7 is not finite: loss \S+, boxes \S+, generative_loss [\d.e-]+.*; "
        r"the last good checkpoint is \S*step-00000004"
    )
    with pytest.raises(FloatingPointError, match=message):
        fine_tune(handle, labels(), Sick(CONCAT), tmp_path, epochs=2, **QUIET)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert all(torch.isfinite(value).all() for value in weights(handle).values())
    assert lines(tmp_path)[-1]["step"] == 6 and not (tmp_path / "final").exists()


def detached() -> Attachment:
    handle = attached(CONCAT)
    handle.detach()
    return handle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attachment": detached}, "the attachment is detached"),
        ({"loader": labels(0)}, "the loader is empty"),
        (
            {"loader": labels(1, 2, drop_last=True)},
            "the loader is empty: batch_size=2, drop_last=True",
        ),
        ({"loader": [1, 2]}, "loader is a list; expected a torch DataLoader"),
        (
            {"generative_weight": -1},
            "generative_weight=-1 is out of range; expected λ of at least 0",
        ),
        ({"generative_weight": float("nan")}, "generative_weight=nan is out of range"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"keep": 0}, "keep=0 is out of range"),
        ({"accumulation": 0}, "accumulation=0 is out of range"),
        ({"save_every": 0}, "save_every=0 is out of range"),
        ({"ema_decay": 1.5}, "ema_decay=1.5 is out of range"),
        ({"max_gradient_norm": -1.0}, "max_gradient_norm=-1.0 is out of range"),
        (
            {"tracking_loss": lambda network, batch: torch.zeros(())},
            "tracking_loss has not called the network",
        ),
        ({"tracking_loss": lambda network, batch: CONCAT.train(network)}, "among its terms"),
        (
            {"tracking_loss": lambda network, batch: CONCAT.train(network)["scores"]},
            "expected a tensor with one number",
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = {"loader": labels(), "tracking_loss": Loss(CONCAT), "epochs": 1, **options}
    handle = options.pop("attachment", lambda: attached(CONCAT))()
    before = weights(handle)
    with pytest.raises((ValueError, TypeError), match=message):
        fine_tune(handle, folder=tmp_path, **options, **QUIET)
    trained = {
        name for name, value in weights(handle).items() if not torch.equal(before[name], value)
    }
    assert not {name for name in trained if "running" not in name and "num_batches" not in name}


@pytest.mark.parametrize(
    ("options", "fusion", "message"),
    [
        ({}, {"method": "raw"}, "is of another fusion, with method='diffusion', not 'raw'"),
        (
            {},
            {"network_config": {"width": 32, "heads": 2}},
            "is of another fusion, with network_config",
        ),
        ({"seed": 1}, {}, "is of another training, with seed=0, not 1"),
        ({"ema_decay": 0.9}, {}, "expected ema, optimizer_0, scheduler_0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    options: Any, fusion: Any, message: str, tmp_path: Path
) -> None:
    fine_tune(attached(CONCAT), labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET)
    handle = attached(CONCAT, **fusion)
    with pytest.raises(ValueError, match=message):
        fine_tune(handle, labels(), Loss(CONCAT), tmp_path, epochs=2, **options, **QUIET)


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        fine_tune(attached(CONCAT), labels(), Loss(CONCAT), tmp_path, epochs=1, tensorboard=True)


def numpys(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
    """A recipe in NumPy's numbers."""
    optimizer = torch.optim.SGD(parameters, lr=np.float64(1e-3))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 100))


def tensors(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=torch.tensor(1e-3))
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


@pytest.mark.parametrize("recipe", [numpys, tensors])
def test_recipes_in_other_numbers_resume(recipe: Any, tmp_path: Path) -> None:
    for epochs in (1, 2):
        handle = attached(CONCAT, network_config={"width": np.int64(16), "heads": 2})
        last = fine_tune(
            handle, labels(), Loss(CONCAT), tmp_path, epochs=epochs, recipe=recipe, **QUIET
        )
    assert last["step"] == 8
    attach(CONCAT.build(), tmp_path / "final", CONCAT.adapter())


@pytest.mark.parametrize("case", [CONCAT, MAPS], ids=lambda case: case.name)
def test_mixed_precision(case: Case, tmp_path: Path) -> None:
    handle = attached(case, method="cgan")
    attributes = set(vars(handle.network))
    last = fine_tune(
        handle, labels(), Loss(case), tmp_path, epochs=1, mixed_precision="bf16", **QUIET
    )
    assert np.isfinite(last["loss"]) and {value.dtype for value in handle.parameters()} == {
        torch.float32
    }
    assert set(vars(handle.network)) == attributes
    dtypes = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        dtypes.append(torch.is_autocast_enabled("cpu"))
        return Loss(case)(network, batch)

    fine_tune(handle, labels(), loss, tmp_path / "full", epochs=1, **QUIET)  # of the same process
    assert not any(dtypes)
    case.run(handle.network)
    handle.detach()
    assert torch.equal(case.run(handle.network), case.run(case.build()))


def _process(rank: int, port: int, folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's, alone
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    options: dict[str, Any] = {
        "epochs": 1,
        "recipe": paper_optimizer,
        "max_gradient_norm": None,
        **QUIET,
    }
    for method in ("raw", "cgan"):
        handle = attached(MAPS, method=method)
        last = fine_tune(handle, labels(8, 2), repeated(MAPS), f"{folder}/{method}", **options)
        torch.save({"loss": last["loss"], **weights(handle)}, f"{folder}/{method}-{rank}.pt")


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _process, args=(port, str(tmp_path)), nprocs=2, start_method="fork"
    )
    for method in ("raw", "cgan"):
        one, other = (torch.load(tmp_path / f"{method}-{rank}.pt") for rank in range(2))
        names = [name for name, _ in attached(MAPS, method=method).fusion.named_parameters()]
        assert_same({name: one[name] for name in names}, {name: other[name] for name in names})
    alone = attached(MAPS, method="raw")
    last = fine_tune(
        alone,
        labels(8, 4),
        repeated(MAPS),
        tmp_path / "alone",
        epochs=1,
        recipe=paper_optimizer,
        max_gradient_norm=None,
        **QUIET,
    )
    expected = torch.load(tmp_path / "raw-0.pt")
    assert last["step"] == 2 and last["loss"] == pytest.approx(expected.pop("loss"))
    torch.testing.assert_close(weights(alone), expected)
