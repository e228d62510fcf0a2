"""The new head: a copy of any head, and in use however the host uses its own."""

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from test_law import anatomy, assert_same_anatomy
from tiny_hosts import CHANNELS, stream
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from gmmt_fusion import attach, train_in_host
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.training import fine_tune

CONCAT = CASES[0]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.score(maps)

    def infer(self, maps: Tensor) -> Tensor:
        return self.forward(maps)


def by_call(head: Any, maps: Tensor) -> Tensor:
    return head(maps)


def by_method(head: Any, maps: Tensor) -> Tensor:
    return head.infer(maps)


def by_part(head: Any, maps: Tensor) -> Tensor:
    return head.score(maps)


def by_weights(head: Any, maps: Tensor) -> Tensor:
    return F.conv2d(maps, head.score.weight, head.score.bias)


def by_forward(head: Any, maps: Tensor) -> Tensor:
    return head.forward(maps)


class Tracker(nn.Module):
    """A tracker that uses its head in one of several ways."""

    def __init__(self, use: Any, head: nn.Module | None = None) -> None:
        super().__init__()
        self.use = use
        self.rgb, self.tir = stream(), stream()
        self.fuse, self.head = nn.Conv2d(2 * CHANNELS, CHANNELS, 1), head or Head()

    def forward(self, search: Tensor) -> Tensor:
        maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)
        return self.use(self.head, self.fuse(maps))


class SummedTracker(Tracker):
    def forward(self, search: Tensor) -> dict[str, Tensor]:
        return {"total_loss": super().forward(search).square().mean()}


def search() -> Tensor:
    return torch.rand(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "use", [by_call, by_forward, by_method, by_part, by_weights], ids=lambda use: use.__name__
)
def test_a_host_uses_the_new_head_in_its_own_way(use: Any) -> None:
    network = Tracker(use).eval()
    before, expected = anatomy(network), network(search())
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    with torch.no_grad():
        handle.head.score.bias.fill_(100)
    assert (network(search()) > 50).all()
    own = network.head.score.bias  # outside of a forward the host's own parts are seen
    assert own.abs().max() < 1
    with handle.disabled():
        assert torch.equal(network(search()), expected)
    with handle.recorded():
        assert torch.equal(network(search()), expected)
    network.train()(search()).square().mean().backward()
    handle.check_gradients()
    assert handle.head.score.weight.grad is not None and own.grad is None
    network.eval()
    handle.detach()
    assert torch.equal(network(search()), expected)
    assert_same_anatomy(anatomy(network), before)


def test_a_head_that_the_loss_does_not_need_is_named() -> None:
    network = Tracker(lambda head, maps: maps)
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    network.train()(search()).square().mean().backward()
    with pytest.raises(ValueError, match="the new head in place of 'head' got no gradient"):
        handle.check_gradients()


COMPUTED = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
    "parametrised": parametrizations.weight_norm,
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_heads_whose_weights_are_computed(kind: str) -> None:
    head = Head()
    head.score = COMPUTED[kind](head.score)
    network = Tracker(by_call, head).train()
    network(search())  # it has been trained: its weights have a graph
    network.eval()
    expected = network(search())
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    with handle.disabled():
        assert torch.equal(network(search()), expected)
    with handle.recorded() as recorded:
        network(search())
    torch.testing.assert_close(handle.head(recorded[0][1]), expected)
    network.train()(search()).square().mean().backward()
    handle.check_gradients()


def test_a_head_that_cannot_be_copied_is_refused_by_name() -> None:
    network = Tracker(by_call)
    network.head.lock = threading.Lock()
    before = set(vars(network))
    with pytest.raises(ValueError, match=r"the head 'head' \(Head\) cannot be copied"):
        attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    assert set(vars(network)) == before and "gmmt_fusion" not in dict(network.named_children())


def test_a_training_of_a_head_that_is_not_used_stops_at_its_first_step(tmp_path: Any) -> None:
    network = Tracker(lambda head, maps: maps)
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    loader = DataLoader([search()[0]] * 2, batch_size=2)
    with pytest.raises(ValueError, match="the new head in place of 'head' got no gradient"):
        fine_tune(handle, loader, lambda net, x: net(x).square().mean(), tmp_path, progress=False)
    handle.detach()
    network = SummedTracker(lambda head, maps: maps)
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    optimizer, _ = train_in_host(handle, 1)
    network.train()(search())["total_loss"].backward()
    with pytest.raises(ValueError, match="the new head in place of 'head' got no gradient"):
        optimizer.step()


def by_item(head: Any, maps: Tensor) -> Tensor:
    return head[1](head[0](maps))


def by_loop(head: Any, maps: Tensor) -> Tensor:
    for layer in head:
        maps = layer(maps)
    return maps


def by_checkpointed_part(head: Any, maps: Tensor) -> Tensor:
    return checkpoint(lambda x: head[1](head[0](x)), maps, use_reentrant=False)


@pytest.mark.parametrize(
    "use", [by_item, by_loop, by_checkpointed_part], ids=lambda use: use.__name__
)
def test_heads_that_are_containers(use: Any) -> None:
    def gradients(use: Any) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Tracker(use, nn.Sequential(nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, 1, 1)))
        handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
        with torch.no_grad():
            handle.head[1].bias.fill_(100)
        assert (network.eval()(search()) > 50).all() and len(network.head) == 2
        network.train()(search()).square().mean().backward()
        return [p.grad for p in handle.head.parameters()]

    for one, other in zip(gradients(use), gradients(by_call), strict=True):
        torch.testing.assert_close(one, other)


class TrackedByMethod(Tracker):
    """Tracks by a method of its own, as siamban."""

    def track(self, search: Tensor) -> Tensor:
        return Tracker.forward(self, search)


def test_parts_of_the_head_in_other_methods_of_the_network() -> None:
    network = TrackedByMethod(by_part).eval()
    expected = network.track(search())
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    with torch.no_grad():
        handle.head.score.bias.fill_(100)
    assert (network.track(search()) > 50).all()
    with handle.disabled():
        assert torch.equal(network.track(search()), expected)


def test_a_part_of_an_attached_host_can_be_copied() -> None:
    network = Tracker(by_call).eval()
    attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    copied = copy.deepcopy(network.head)
    assert torch.equal(copied.score.weight, network.head.score.weight)


def test_methods_kept_from_before_detach_are_the_hosts() -> None:
    network = TrackedByMethod(by_method).eval()
    expected = network(search())
    maps = torch.rand(1, CHANNELS, 8, 8)
    score = network.head.infer(maps)
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "head"))
    with torch.no_grad():
        handle.head.score.bias.fill_(100)
    forward, track, infer = network.forward, network.track, network.head.infer
    handle.detach()
    assert torch.equal(forward(search()), expected) and torch.equal(track(search()), expected)
    assert torch.equal(infer(maps), score)
