"""Fine-tuning: what is trained, what is written, and that a run survives whatever happens to it."""

import dataclasses
import inspect
import multiprocessing
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from training_data import Loss, assert_same, attached, labels, weights
from training_runs import ACCIDENTS, CONCAT, QUIET, mean_loss, read_log, run_alone, run_long
from two_processes import run_in_two_processes

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.training import FineTuningSettings, fine_tune, network_alone, paper_optimizer

MAPS = CASES[1]


@pytest.mark.parametrize(
    ("case", "method"),
    [*((case, "diffusion") for case in CASES), (CASES[0], "cgan")],
    ids=lambda value: getattr(value, "name", value),
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


@pytest.mark.parametrize("filtered", [False, True], ids=["all on", "switched off by name"])
def test_a_hosts_own_loop(filtered: bool) -> None:
    """Whatever a host has switched off by name, the fusion, its head and a CGAN's D are trained."""
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
            mean_loss(MAPS),
            tmp_path / str(batch_size),
            accumulation=accumulation,
            **options,
            **QUIET,
        )
        results.append(weights(handle))
    torch.testing.assert_close(*results)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, weights(run_long(folder))


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_run_goes_on_to_the_same_bits(accident: str, undisturbed: Any, tmp_path: Path) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises((KeyboardInterrupt, OSError, ZeroDivisionError)),
    ):
        run_long(tmp_path, **(ACCIDENTS[accident](patch) or {}))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')  # cut off
    after = weights(run_long(tmp_path))
    assert_same(undisturbed[1], after)
    assert read_log(tmp_path) == read_log(undisturbed[0])
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]
    for one in ("best", "final"):
        assert_same(
            GenerativeFusion.from_pretrained(undisturbed[0] / one).state_dict(),
            GenerativeFusion.from_pretrained(tmp_path / one).state_dict(),
        )


def test_kill_9(undisturbed: Any, tmp_path: Path) -> None:
    process = multiprocessing.get_context(
        "spawn" if torch.cuda.is_available() else "fork"  # a forked process cannot use a GPU
    ).Process(target=run_alone, args=(tmp_path,))
    process.start()
    while len(list((tmp_path / "checkpoints").glob("step-*"))) < 2:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "final").exists()
    after = weights(run_long(tmp_path))
    log, whole = read_log(tmp_path), read_log(undisturbed[0])
    if torch.cuda.is_available():  # whose kernels another process may choose otherwise
        torch.testing.assert_close(after, undisturbed[1], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(log, whole, rtol=1e-2, atol=1e-3)
    else:
        assert_same(undisturbed[1], after)
        assert log == whole


def test_a_finished_run_goes_on_with_more_epochs(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    first = fine_tune(handle, labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET)
    trained = weights(handle)
    again = attached(CONCAT)
    assert fine_tune(again, labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET) == first
    assert_same(trained, weights(again))
    assert fine_tune(again, labels(), Loss(CONCAT), tmp_path, epochs=2, **QUIET)["step"] == 8


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
    message = r"step 7 .*loss .*boxes .*generative_loss .*step-00000004"
    with pytest.raises(FloatingPointError, match=message):
        fine_tune(handle, labels(), Sick(CONCAT), tmp_path, epochs=2, **QUIET)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert all(torch.isfinite(value).all() for value in weights(handle).values())
    assert read_log(tmp_path)[-1]["step"] == 6 and not (tmp_path / "final").exists()


def detached() -> Attachment:
    handle = attached(CONCAT)
    handle.detach()
    return handle


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "detached": ({"attachment": detached}, "detached"),
    "no samples": ({"loader": labels(0)}, "loader is empty"),
    "no whole batch": ({"loader": labels(1, 2, drop_last=True)}, "empty.*drop_last=True"),
    "no loader": ({"loader": [1, 2]}, "loader is a list.*DataLoader"),
    "weight below 0": ({"generative_weight": -1}, "generative_weight=-1.*at least 0"),
    "weight NaN": ({"generative_weight": float("nan")}, "generative_weight=nan"),
    "weight in words": ({"generative_weight": "5"}, "generative_weight=5"),
    "epochs": ({"epochs": 0}, "epochs=0"),
    "keep": ({"keep": 0}, "keep=0"),
    "accumulation": ({"accumulation": 0}, "accumulation=0"),
    "save_every": ({"save_every": 0}, "save_every=0"),
    "ema_decay": ({"ema_decay": 1.5}, r"ema_decay=1\.5"),
    "max_gradient_norm": ({"max_gradient_norm": -1.0}, r"max_gradient_norm=-1\.0"),
    "mixed_precision": ({"mixed_precision": "half"}, "mixed_precision='half'.*'bf16'"),
    "seed below 0": ({"seed": -1}, "seed=-1"),
    "seed no number": ({"seed": None}, "seed=None"),
    "recipe": ({"recipe": "adamw"}, "recipe='adamw'.*adamw_optimizer"),
    "unknown": ({"optimizer": paper_optimizer}, "optimizer"),
    "network not called": (
        {"tracking_loss": lambda network, batch: torch.zeros(())},
        "not called the network",
    ),
    "terms counted twice": (
        {"tracking_loss": lambda network, batch: CONCAT.train(network)},
        "generative_loss",
    ),
    "loss of many numbers": (
        {"tracking_loss": lambda network, batch: CONCAT.train(network)["scores"]},
        "one number",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, tmp_path: Path) -> None:
    given, message = BAD_ARGUMENTS[name]
    options = {"loader": labels(), "tracking_loss": Loss(CONCAT), "epochs": 1, **given}
    handle = options.pop("attachment", lambda: attached(CONCAT))()
    before = weights(handle)
    with pytest.raises((ValueError, TypeError), match=message):
        fine_tune(handle, folder=tmp_path, **options, **QUIET)
    trained = {
        name for name, value in weights(handle).items() if not torch.equal(before[name], value)
    }
    assert not {name for name in trained if "running" not in name and "num_batches" not in name}


def test_the_settings_are_shown_and_cannot_be_changed() -> None:
    shown = inspect.signature(fine_tune).parameters
    for setting in dataclasses.fields(FineTuningSettings):
        assert shown[setting.name].default == setting.default
    with pytest.raises(dataclasses.FrozenInstanceError):
        FineTuningSettings().epochs = 1  # type: ignore[misc]
    assert FineTuningSettings(epochs=3) == FineTuningSettings(epochs=3)


OTHER_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "method": ({}, {"method": "raw"}, "another fusion.*method is 'diffusion' there and 'raw' here"),
    "network": (
        {},
        {"network_config": {"width": 32, "heads": 2}},
        "another fusion.*width is 16 there and 32 here",
    ),
    "seed": ({"seed": 1}, {}, "another training.*seed is 0 there and 1 here"),
    "accumulation": ({"accumulation": 2}, {}, "another training.*accumulation is 1 there"),
    "moving average": ({"ema_decay": 0.9}, {}, "ema_decay"),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    options, fusion, message = OTHER_RUNS[name]
    fine_tune(attached(CONCAT), labels(), Loss(CONCAT), tmp_path, epochs=1, **QUIET)
    handle = attached(CONCAT, **fusion)
    with pytest.raises(ValueError, match=message):
        fine_tune(handle, labels(), Loss(CONCAT), tmp_path, epochs=2, **options, **QUIET)


def recipe_of_numpy(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
    """A recipe in NumPy's numbers."""
    optimizer = torch.optim.SGD(parameters, lr=np.float64(1e-3))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 100))


def recipe_of_tensors(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=torch.tensor(1e-3))
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


@pytest.mark.parametrize("recipe", [recipe_of_numpy, recipe_of_tensors], ids=["NumPy", "tensors"])
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


def train_in_one_of_two(rank: int, folder: str) -> None:
    options: dict[str, Any] = {
        "epochs": 1,
        "recipe": paper_optimizer,
        "max_gradient_norm": None,
        **QUIET,
    }
    for method in ("raw", "cgan"):
        handle = attached(MAPS, method=method)
        last = fine_tune(handle, labels(8, 2), mean_loss(MAPS), f"{folder}/{method}", **options)
        torch.save({"loss": last["loss"], **weights(handle)}, f"{folder}/{method}-{rank}.pt")


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes would share a GPU")
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    run_in_two_processes(train_in_one_of_two, str(tmp_path))
    for method in ("raw", "cgan"):
        one, other = (torch.load(tmp_path / f"{method}-{rank}.pt") for rank in range(2))
        names = [name for name, _ in attached(MAPS, method=method).fusion.named_parameters()]
        assert_same({name: one[name] for name in names}, {name: other[name] for name in names})
    alone = attached(MAPS, method="raw")
    last = fine_tune(
        alone,
        labels(8, 4),
        mean_loss(MAPS),
        tmp_path / "alone",
        epochs=1,
        recipe=paper_optimizer,
        max_gradient_norm=None,
        **QUIET,
    )
    expected = torch.load(tmp_path / "raw-0.pt")
    assert last["step"] == 2 and last["loss"] == pytest.approx(expected.pop("loss"))
    torch.testing.assert_close(weights(alone), expected)


def test_the_network_alone_is_trained(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    before = weights(handle)
    recipe = network_alone(handle)
    fine_tune(handle, labels(), Loss(CONCAT), tmp_path, epochs=1, recipe=recipe, **QUIET)
    after = weights(handle)
    names = {name for name, _ in handle.fusion.named_parameters()}
    changed = {name.split(".")[0] for name in names if not torch.equal(before[name], after[name])}
    assert changed == {"network"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes of errors came with Python 3.11")
def test_an_interruption_says_where_the_run_goes_on(tmp_path: Path) -> None:
    class Interrupted(Loss):
        calls = 0

        def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().__call__(network, batch)

    with pytest.raises(KeyboardInterrupt) as caught:
        fine_tune(attached(CONCAT), labels(), Interrupted(CONCAT), tmp_path, epochs=2, **QUIET)
    assert (
        "goes on from" in caught.value.__notes__[0] and "step-00000004" in caught.value.__notes__[0]
    )
