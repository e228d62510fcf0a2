"""State by lifetime: what belongs to one forward of one thread, and what an interruption undoes."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from test_law import anatomy, assert_same_anatomy
from tiny_hosts import CHANNELS, BoxHead, ConcatTracker, stream
from torch import Tensor, nn

from gmmt_fusion import attach, train_in_host
from gmmt_fusion.adapters import Adapter, ModuleAdapter
from gmmt_fusion.attaching.plugin import ForwardPass

CONCAT = CASES[0]
each_host = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def frames(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    template = torch.rand(2, 6, 4, 4, generator=generator)
    return template, torch.rand(2, 6, 8, 8, generator=generator)


# --- threads


def run_in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run work(0), work(1), … at once, switching often; what was raised."""
    raised: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return raised


THREADED = [case for case in CASES if case.name in ("concat", "maps", "sum", "siamese")]


@pytest.mark.parametrize("case", THREADED, ids=lambda case: case.name)
def test_threads_get_what_each_gets_alone(case: Case) -> None:
    network = case.build()
    attach(network, case.make_fusion(), case.adapter())

    def run(index: int) -> Tensor:
        out = network(*frames(index))
        return out["scores"] if isinstance(out, dict) else out[0]

    alone = [run(index) for index in range(4)]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(40):
            if not torch.equal(run(index), alone[index]):
                wrong.append(index)

    assert run_in_threads(4, work) == [] and not wrong


@pytest.mark.parametrize(
    "case", [c for c in CASES if c not in THREADED], ids=lambda case: case.name
)
def test_threads_share_hosts_of_more_state(case: Case) -> None:
    """The same frame in every thread: hosts that keep a template have one for all threads."""
    network = case.build()
    attach(network, case.make_fusion(), case.adapter())
    alone = case.run(network)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(8):
            if not torch.equal(case.run(network), alone):
                wrong.append(index)

    assert run_in_threads(4, work) == [] and not wrong


def test_each_thread_has_its_own_loss() -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    network.train()
    targets: dict[int, Tensor] = {}
    barrier = threading.Barrier(3)

    def work(index: int) -> None:
        network(*frames(index))
        barrier.wait()  # all have run before any asks
        assert handle.generative_loss is not None
        ((_, targets[index]),) = handle.fused_maps

    assert run_in_threads(3, work) == []
    assert handle.generative_loss is None  # this thread has not trained
    with handle.recorded() as recorded:
        for index in range(3):
            network(*frames(index))
    for index, (_, fused) in enumerate(recorded):
        assert torch.equal(targets[index], fused)


# --- stages


class StagedTracker(nn.Module):
    """One forward a step in two calls, as SUTrack: encoder, then decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.tir = stream(), stream()
        self.fuse, self.box_head = nn.Conv2d(2 * CHANNELS, CHANNELS, 1), BoxHead()

    def forward(self, x: Any, mode: str) -> Any:
        if mode == "encoder":
            return [self.rgb(x[:, :3]), self.tir(x[:, 3:])]
        return {"scores": self.box_head(self.fuse(torch.cat(x, dim=1)))}


class StagedAdapter(Adapter):
    """Modality maps from the first stage, the fused map at the head of the second."""

    head = "box_head"

    def points(self, network: nn.Module) -> dict[str, Any]:
        return {"rgb": self.keep, "tir": self.keep, self.head: self.generate}

    def keep(self, current: ForwardPass, forward: Any, image: Tensor) -> Tensor:
        current.memory.setdefault("maps", []).append(forward(image))
        return current.memory["maps"][-1]

    def generate(self, current: ForwardPass, forward: Any, fused: Tensor) -> Tensor:
        maps = current.memory["maps"]
        assert current.network.rgb is not None and len(maps) == current.modalities
        return forward(current.fuse(maps, fused))


class StagedActor:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, search: Tensor) -> Any:
        maps = self.net(search, mode="encoder")
        return self.compute_losses(self.net(maps, mode="decoder"))

    def compute_losses(self, out: Any) -> Any:
        loss = out["scores"].square().mean()
        return loss, {"Loss/total": loss.item()}


@pytest.mark.parametrize(
    "adapter",
    [lambda: ModuleAdapter("fuse", "box_head"), StagedAdapter],
    ids=["module", "maps of another stage"],
)
def test_a_forward_in_stages_tracks_and_trains(adapter: Any) -> None:
    network = StagedTracker().eval()
    handle = attach(network, CONCAT.make_fusion(), adapter())
    search = frames(0)[1]
    with torch.no_grad():
        results = [
            network(network(search, mode="encoder"), mode="decoder")["scores"] for _ in range(3)
        ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    actor = StagedActor(network)
    optimizer, _ = train_in_host(handle, 2, actor)
    network.train()
    for _ in range(2):
        loss, status = actor(search)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert status["Loss/total"] == pytest.approx(loss.item()) and "Loss/generative" in status
    assert all(p.grad is not None for p in handle.fusion.network.last_layer.parameters())


def test_a_loss_that_no_stage_gives_is_missed_where_it_is_asked_for() -> None:
    network = StagedTracker()
    handle = attach(network, CONCAT.make_fusion(), StagedAdapter())
    assert handle.generative_loss is None
    network.train()(frames(0)[1], mode="encoder")
    with pytest.raises(ValueError, match="no fused map was generated in this forward"):
        _ = handle.generative_loss
    actor = StagedActor(network)
    train_in_host(handle, 2, actor)
    with pytest.raises(ValueError, match="no fused map was generated in this forward"):
        actor.compute_losses({"scores": torch.zeros(1, requires_grad=True)})


# --- several fusions in one forward


class TwoPathsTracker(nn.Module):
    """Two fusions and two head calls of one forward, one dict a path, as SDSTrack trains."""

    def __init__(self, kind: type = list) -> None:
        super().__init__()
        self.kind = kind
        self.rgb, self.tir = stream(), stream()
        self.fuse, self.box_head = nn.Conv2d(2 * CHANNELS, CHANNELS, 1), BoxHead()

    def forward(self, template: Tensor, search: Tensor) -> Any:
        maps = [self.rgb(search[:, :3]), self.tir(search[:, 3:])]
        paths = [maps, [0.5 * x for x in maps]]
        fused = [self.fuse(torch.cat(path, dim=1)) for path in paths]
        return self.kind({"scores": self.box_head(x)} for x in fused)


class TwoPathsAdapter(Adapter):
    """Both fused maps are made of what was kept before either."""

    head = "box_head"

    def points(self, network: nn.Module) -> dict[str, Any]:
        return {"fuse": self.keep, self.head: self.generate}

    def keep(self, current: ForwardPass, forward: Any, maps: Tensor) -> Tensor:
        current.memory.setdefault("maps", []).append(maps)
        return forward(maps)

    def generate(self, current: ForwardPass, forward: Any, fused: Tensor) -> Tensor:
        number = current.memory["calls"] = current.memory.get("calls", -1) + 1
        maps = current.memory["maps"][number]
        return forward(current.fuse(maps.chunk(2, dim=1), fused))


@pytest.mark.parametrize("kind", [list, tuple], ids=["list", "tuple"])
@pytest.mark.parametrize("method", ["diffusion", "cgan"])
def test_two_fusions_in_one_forward(kind: type, method: str) -> None:
    network = TwoPathsTracker(kind).eval()
    handle = attach(network, CONCAT.make_fusion(method=method), TwoPathsAdapter())
    template, search = frames(0)
    with handle.recorded() as recorded:
        network(template, search)
    assert len(recorded) == 2 and not torch.equal(recorded[0][1], recorded[1][1])
    first, second = (path["scores"] for path in network(template, search))
    for scores, (features, _) in zip((first, second), recorded, strict=True):
        torch.testing.assert_close(scores, handle.head(handle.fusion(*features)))
    out = network.train()(template, search)
    assert isinstance(out, kind) and all(set(path) == {"scores", "generative_loss"} for path in out)
    total = sum(path["generative_loss"] for path in out)
    torch.testing.assert_close(total, handle.generative_loss)
    assert [torch.equal(a, b) for (_, a), (_, b) in zip(handle.fused_maps, recorded, strict=True)]
    if method == "cgan":
        assert handle.discriminator_loss().requires_grad


class Fickle(ConcatTracker):
    """Fuses once for a dark image and twice for others."""

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)
        for _ in range(1 if search.mean() < 0.1 else 2):
            fused = self.fuse(maps)
        return {"scores": self.box_head(fused)}


def darken(inputs: Any, modalities: int, generator: torch.Generator) -> Any:
    (template, search), options = inputs
    return (template, 0 * search), options


def brighten(inputs: Any, modalities: int, generator: torch.Generator) -> Any:
    (template, search), options = inputs
    return (template, search + 1), options


@pytest.mark.parametrize(
    ("degrade", "dark", "message"),
    [(darken, False, "gave 2 fused maps and the degraded ones 1"),
     (brighten, True, "gave 1 fused maps and the degraded ones 2")],
    ids=["left over", "short"],
)  # fmt: skip
def test_targets_that_do_not_come_out_even(degrade: Any, dark: bool, message: str) -> None:
    network = Fickle()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    handle.degradation = degrade
    template, search = frames(0)
    network.train()
    with pytest.raises(ValueError, match=message):
        network(template, 0 * search if dark else search)
    handle.degradation = None
    assert torch.isfinite(network(template, search)["generative_loss"])  # nothing is left of it


# --- wrappers


def test_a_forward_on_the_instance_of_the_network_is_refused() -> None:
    network = CONCAT.build()
    network.forward = torch.autocast("cpu", enabled=False)(network.forward)
    before = anatomy(network)
    with pytest.raises(ValueError, match=r"'the network'.*forward of its own on the instance"):
        attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    assert_same_anatomy(anatomy(network), before)


def test_a_forward_wrapped_after_attaching_is_stepped_into() -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    network.forward = torch.autocast("cpu", enabled=False)(network.forward)
    assert "generative_loss" in CONCAT.train(network.train())
    assert handle.generative_loss is not None


# --- signatures


@each_host
def test_the_signatures_that_a_host_shows_are_its_own(case: Case) -> None:
    import inspect

    plain, network = case.build(), case.build()
    handle = attach(network, case.make_fusion(), case.adapter())
    for (name, own), module in zip(
        plain.named_modules(), handle.plugin.host_modules(), strict=True
    ):
        assert inspect.signature(module[1].forward) == inspect.signature(own.forward), name


# --- modes


def test_modes_of_several_threads_end_in_any_order() -> None:
    network = CONCAT.build()
    expected = CONCAT.run(network)
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    changed = CONCAT.run(network)
    first, second = handle.disabled(), handle.disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(CONCAT.run(network), expected)
    second.__exit__(None, None, None)
    assert torch.equal(CONCAT.run(network), changed)


def test_a_forward_keeps_the_mode_that_it_began_in() -> None:
    network = CONCAT.build()
    expected = CONCAT.run(network)
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    changed = CONCAT.run(network)
    contexts: list[Any] = []

    def switch(*_: Any) -> None:
        if contexts:
            work = contexts.pop().__exit__, (None, None, None)
        else:
            contexts.append(handle.disabled())
            work = contexts[0].__enter__, ()
        thread = threading.Thread(target=work[0], args=work[1])
        thread.start()
        thread.join()

    hook = network.rgb.register_forward_hook(switch)
    assert torch.equal(CONCAT.run(network), changed)
    assert torch.equal(CONCAT.run(network), expected)
    hook.remove()
    assert torch.equal(CONCAT.run(network), changed)


def test_a_degradation_of_a_forward_in_stages_is_refused() -> None:
    network = StagedTracker()
    handle = attach(network, CONCAT.make_fusion(), StagedAdapter())
    handle.degradation = lambda inputs, modalities, generator: inputs
    network.train()
    maps = network(frames(0)[1], mode="encoder")
    with pytest.raises(ValueError, match="called in stages, and a degradation needs all of it"):
        network(maps, mode="decoder")


def test_a_hosts_loss_is_its_own_while_disabled_and_detached() -> None:
    network = StagedTracker()
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "box_head"))
    actor = StagedActor(network)
    train_in_host(handle, 2, actor)
    network.train()
    assert "Loss/generative" in actor(frames(0)[1])[1]
    with handle.disabled():
        assert "Loss/generative" not in actor(frames(0)[1])[1]
    handle.detach()
    assert "Loss/generative" not in actor(frames(0)[1])[1]
