"""Lines of the law that test_law.py leaves to tiny hosts, on real ones of a small width."""

import inspect

import pytest
import torch
from cases import CASES, Case
from test_law import anatomy, assert_same_anatomy, attached, dicts
from threads import run_in_threads
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gmmt_fusion import attach

each_host = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_host
def test_threads_get_what_each_gets_alone(case: Case) -> None:
    network, _ = attached(case)
    alone = [case.run(network, seed) for seed in range(3)]
    right: list[int] = []

    def work(seed: int) -> None:
        if all(torch.equal(case.run(network, seed), alone[seed]) for _ in range(3)):
            right.append(seed)

    run_in_threads(work, 3)
    assert sorted(right) == [0, 1, 2]
    assert not torch.equal(alone[0], alone[1])


def gradients(case: Case, part: str | None) -> list[Tensor | None]:
    """Of a training forward; `part` is computed again in the backward: a method, or the forward."""
    network, handle = attached(case)
    if part is not None:
        own = getattr(network, part)
        setattr(network, part, lambda *a, **k: checkpoint(own, *a, use_reentrant=False, **k))
    torch.manual_seed(3)  # for a host that draws masks
    parts = dicts(case.train(network.train()))
    loss = sum((p["generative_loss"] + p["scores"].square().mean() for p in parts), torch.zeros(()))
    loss.backward()
    return [p.grad for p in handle.parameters()]


@each_host
def test_checkpointing_gives_the_same_gradient(case: Case) -> None:
    plain, again = gradients(case, None), gradients(case, "forward_head")
    assert any(g is not None and g.abs().sum() > 0 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)


@each_host
def test_signatures_are_the_hosts(case: Case) -> None:
    host = case.build()
    network, handle = attached(case)
    modules = zip(host.named_modules(), handle.plugin.host_modules(), strict=True)
    for (name, own), (_, module) in modules:
        assert inspect.signature(module.forward) == inspect.signature(own.forward), name
    assert inspect.signature(type(network).forward) == inspect.signature(type(host).forward)


@each_host
def test_the_head_that_the_host_holds_answers_as_the_new_one(case: Case) -> None:
    """`cal_bbox` on the windowed map, which the host's tracker calls beside the forward."""
    network, handle = attached(case)
    maps = case.train(network.eval())
    part = maps[0] if isinstance(maps, list) else maps
    boxes = network.box_head.cal_bbox(part["score_map"], part["size_map"], part["offset_map"])
    assert torch.equal(boxes, part["pred_boxes"].view(-1, 4))
    assert network.box_head.feat_sz == handle.head.feat_sz == 16


@each_host
def test_an_interrupted_attach_leaves_the_host_as_it_was(case: Case) -> None:
    network = case.build()
    before, expected = anatomy(network), case.run(network)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attach(network, case.make_fusion(), case.adapter(), calibrate=[interrupt])
    assert_same_anatomy(anatomy(network), before)
    handle = attach(network, case.make_fusion(), case.adapter())
    with pytest.raises(KeyboardInterrupt), handle.disabled():
        raise KeyboardInterrupt
    assert not torch.equal(case.run(network), expected)
    handle.detach()
    assert torch.equal(case.run(network), expected)
