"""`train_in_host` in loops such as hosts have, on tiny hosts; the real ones are in tests/hosts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, images
from torch import Tensor, nn
from training_data import assert_same, attached, weights
from two_processes import of_both, run_in_two_processes

from gmmt_fusion import Attachment, train_in_host
from gmmt_fusion.training import paper_optimizer

CONCAT, SIAMESE = CASES[0], CASES[2]


class Actor:
    """As those of the OSTrack family; what its trainer does with it is in `step`."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, data: Any) -> Any:
        return self.compute_losses(self.net(*data), data)

    def compute_losses(self, out: dict[str, Tensor], data: Any, return_status: bool = True) -> Any:
        loss = out["scores"].square().mean()
        return (
            (loss, {"Loss/total": loss.item(), "Loss/own": loss.item()}) if return_status else loss
        )


def step(actor: Actor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    actor.net.train()
    loss, status = actor(images())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(actor.net.parameters(), 1.0)
    optimizer.step()
    return status


def filtered(network: nn.Module, word: str) -> None:
    """What hosts do once their optimiser is built."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(word in name)


@pytest.mark.parametrize("method", ["diffusion", "cgan"])
@pytest.mark.parametrize("word", ["prompt", "rgb"])
def test_the_plugin_learns_whatever_the_host_switches_off(method: str, word: str) -> None:
    handle = attached(CONCAT, method=method)
    actor, fusion = Actor(handle.network), handle.fusion
    before, host = weights(handle), copy.deepcopy(handle.host_state_dict())
    optimizer, schedule = train_in_host(handle, 10, actor)
    filtered(handle.network, word)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert list(map(id, trained)) == list(map(id, handle.parameters()))
    for _ in range(2):
        status = step(actor, optimizer)
        assert status["Loss/total"] == pytest.approx(
            status["Loss/own"] + 5 * status["Loss/generative"]
        )
        schedule.step()
    after = weights(handle)
    unchanged = [
        name for name, _ in fusion.named_parameters() if torch.equal(before[name], after[name])
    ]
    assert not unchanged
    assert_same(dict(handle.host_state_dict()), dict(host))
    assert all(
        p.grad is None
        for n, p in handle.network.named_parameters()
        if not n.startswith("gmmt_fusion.")
    )


def test_validation_and_loss_alone() -> None:
    handle = attached(CONCAT)
    actor = Actor(handle.network)
    train_in_host(handle, 10, actor, generative_weight=3)
    train_in_host(handle, 10, actor, generative_weight=2)  # again: Loss_gen still counts once
    handle.network.train()
    out = handle.network(*images())
    loss = actor.compute_losses(out, None, return_status=False)
    assert loss.item() == pytest.approx(
        (out["scores"].square().mean() + 2 * handle.generative_loss).item()
    )
    handle.network.eval()
    with torch.no_grad():
        assert actor(images())[1].keys() == {"Loss/total", "Loss/own"}


def test_a_network_that_returns_its_losses() -> None:
    handle = attached(SIAMESE)
    train_in_host(handle, 10, generative_weight=4)
    out = handle.network.train()(*images())
    own = out["scores"].square().mean()
    assert out["total_loss"].item() == pytest.approx((own + 4 * out["generative_loss"]).item())
    assert handle.network.eval()(*images()).keys() == {"scores", "total_loss"}
    with handle.disabled():
        assert handle.network.train()(*images()).keys() == {"scores", "total_loss"}
    handle = attached(CONCAT)
    train_in_host(handle, 10)
    with pytest.raises(ValueError, match=r"no 'total_loss' .*actor"):
        handle.network.train()(*images())


def test_the_discriminators_turn_after_every_step() -> None:
    handle, by_hand = (attached(CONCAT, method="cgan") for _ in range(2))
    actor = Actor(handle.network)
    optimizer, schedule = train_in_host(handle, 3, actor)
    theirs = Actor(by_hand.network)
    built = [
        paper_optimizer(p, 3)
        for p in (by_hand.parameters(), by_hand.fusion.discriminator.parameters())
    ]
    for _ in range(2):
        step(actor, optimizer)
        assert not any(
            p.grad.any() for p in handle.fusion.discriminator.parameters()
        )  # not in the host's clipping
        schedule.step()

        out = theirs.net.train()(*images())
        (out["scores"].square().mean() + 5 * out["generative_loss"]).backward()
        nn.utils.clip_grad_norm_(theirs.net.parameters(), 1.0)
        built[0][0].step()
        theirs.net.zero_grad()
        by_hand.discriminator_loss().backward()
        built[1][0].step()
        theirs.net.zero_grad()
        for _, other in built:
            other.step()
    for name, value in weights(
        by_hand
    ).items():  # the norm that is clipped is summed in another order
        torch.testing.assert_close(weights(handle)[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", ["diffusion", "cgan"])
def test_resumed_from_the_hosts_checkpoint(tmp_path: Path, method: str) -> None:
    def start() -> tuple[Attachment, Actor, Any, Any]:
        handle = attached(CONCAT, method=method)
        actor = Actor(handle.network)
        return handle, actor, *train_in_host(handle, 4, actor)

    def train(
        handle: Attachment, actor: Actor, optimizer: Any, schedule: Any, epochs: range
    ) -> None:
        for epoch in epochs:
            handle.fusion.manual_seed(epoch)
            step(actor, optimizer)
            schedule.step()

    handle, actor, optimizer, schedule = start()
    train(handle, actor, optimizer, schedule, range(2))
    torch.save(
        {"net": handle.network.state_dict(), "optimizer": optimizer.state_dict()},
        tmp_path / "ep2.pth",
    )
    train(handle, actor, optimizer, schedule, range(2, 4))
    expected = weights(handle)

    handle, actor, optimizer, schedule = start()
    saved = torch.load(tmp_path / "ep2.pth")
    handle.network.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.last_epoch = 2  # all that LTRTrainer does to it
    train(handle, actor, optimizer, schedule, range(2, 4))
    assert_same(weights(handle), expected)
    if method == "cgan":
        with pytest.raises(ValueError, match="has no 'discriminator'"):
            optimizer.load_state_dict(
                {"state": {}, "param_groups": saved["optimizer"]["param_groups"]}
            )


def test_bad_input() -> None:
    handle = attached(CONCAT)
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"generative_weight=.* expected λ of at least 0"):
            train_in_host(handle, 10, Actor(handle.network), generative_weight=weight)
    with pytest.raises(TypeError, match="recipe='adamw'"):
        train_in_host(handle, 10, Actor(handle.network), recipe="adamw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear without compute_losses"):
        train_in_host(handle, 10, nn.Linear(1, 1))
    with pytest.raises(ValueError, match="epochs=0"):
        train_in_host(handle, 0, Actor(handle.network))
    actor = Actor(handle.network.eval())
    train_in_host(handle, 10, actor)
    with pytest.raises(ValueError, match=r"eval mode .*network\.train\(\)"):
        actor(images())
    handle.detach()
    with pytest.raises(ValueError, match="the attachment is detached"):
        train_in_host(handle, 10, Actor(handle.network))


def _process(rank: int) -> None:
    handle = attached(CONCAT, method="cgan")
    actor = Actor(nn.parallel.DistributedDataParallel(handle.network, find_unused_parameters=True))
    optimizer, _ = train_in_host(handle, 10, actor)
    filtered(actor.net, "prompt")
    before = weights(handle)
    for _ in range(2):
        step(actor, optimizer)
    for name, parameter in handle.fusion.named_parameters():
        assert torch.equal(*of_both(parameter.detach())) and not torch.equal(
            parameter, before[name]
        ), name
    losses = of_both(handle.generative_loss.detach())
    assert losses[0] != losses[1]  # the same images, other noise


def test_distributed_data_parallel() -> None:
    run_in_two_processes(_process)
