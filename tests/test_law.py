"""The law of patching: attach changes nothing that was not asked for, detach leaves no trace."""

import copy
import pickle
from typing import Any

import pytest
import torch
from anatomy import anatomy, assert_same_anatomy
from cases import CASES, Case, scores_in
from torch import Tensor, nn
from trees import leaves
from two_processes import of_both, run_in_two_processes

from gmmt_fusion import Attachment, attach

each_host = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def attached(case: Case, **options: Any) -> tuple[nn.Module, Attachment]:
    network = case.build()
    return network, attach(network, case.make_fusion(**options), case.adapter())


def dicts(out: Any) -> list[dict[str, Any]]:
    """Those in which a host returns "generative_loss"."""
    parts = [out] if isinstance(out, dict) else out
    return [part for part in parts if isinstance(part, dict)]


@each_host
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_detach_leaves_no_trace(case: Case, mode: bool) -> None:
    network = case.build().train(mode)
    next(network.parameters()).requires_grad_(False)
    before = anatomy(network)
    handle = attach(network, case.make_fusion(), case.adapter())
    out = case.train(network.train())
    if dicts(out):
        sum(part["generative_loss"] for part in dicts(out)).backward()
    case.run(network.eval())
    network.train(mode)
    handle.detach()
    handle.detach()
    network.__dict__.pop("zf", None)  # the host's own
    assert_same_anatomy(anatomy(network), before)
    assert not handle.attached


@each_host
def test_disabled_and_detached_are_bit_identical(case: Case) -> None:
    expected = case.run(case.build())
    network, handle = attached(case)
    changed = case.run(network)
    assert not torch.allclose(changed, expected, atol=1e-4)
    with handle.disabled():
        assert torch.equal(case.run(network), expected)
        with handle.disabled():
            assert torch.equal(case.run(network), expected)
        assert torch.equal(case.run(network), expected)
    assert torch.equal(case.run(network), changed)
    with pytest.raises(RuntimeError, match="boom"), handle.disabled():
        raise RuntimeError("boom")
    assert torch.equal(case.run(network), changed)
    handle.detach()
    assert torch.equal(case.run(network), expected)
    handle = attach(
        network, handle.fusion, case.adapter()
    )  # the fusion and its head are as they were
    assert torch.equal(case.run(network), changed)


@each_host
def test_names(case: Case) -> None:
    host = case.build()
    network, handle = attached(case)
    keys = list(network.state_dict())
    assert [k for k in keys if not k.startswith("gmmt_fusion.")] == list(host.state_dict())
    assert any(k.startswith("gmmt_fusion.") for k in keys)
    case.build().load_state_dict(handle.host_state_dict(), strict=True)
    assert (
        type(network).__name__ == type(host).__name__
        and type(network).__qualname__ == type(host).__qualname__
    )
    assert isinstance(network, type(host))


@each_host
def test_to_train_and_parameters_reach_the_plugin(case: Case) -> None:
    network, handle = attached(case)
    assert set(handle.parameters()) <= set(network.parameters())
    network.train()
    assert handle.fusion.training and handle.head.training
    network.eval()
    assert not handle.fusion.training and not handle.head.training
    expected = case.run(network)
    network.double()
    assert {p.dtype for p in handle.parameters()} == {torch.float64}
    torch.testing.assert_close(case.run(network), expected.double(), rtol=1e-4, atol=1e-5)
    network.half()
    assert {p.dtype for p in handle.parameters()} == {torch.float16}
    assert torch.isfinite(case.run(network)).all()


@each_host
@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_independent(case: Case, clone: Any) -> None:
    network, handle = attached(case)
    case.train(network.train())  # leaves a loss with a graph
    expected = case.run(network.eval())
    twin = clone(network)
    assert torch.equal(case.run(twin), expected)
    twin_handle = Attachment.of(twin)
    with torch.no_grad():
        for parameter in twin_handle.parameters():
            parameter.zero_()
    assert not torch.equal(case.run(twin), expected)
    twin_handle.detach()
    assert torch.equal(case.run(twin), case.run(case.build()))
    assert handle.attached and torch.equal(case.run(network), expected)


@each_host
def test_attaching_twice_is_refused(case: Case) -> None:
    network, _ = attached(case)
    expected = case.run(network)
    with pytest.raises(ValueError, match="attached to this tracker already; detach"):
        attach(network, case.make_fusion(), case.adapter())
    assert torch.equal(case.run(network), expected)


@each_host
def test_the_host_stays_frozen_while_the_plugin_learns(case: Case) -> None:
    network, handle = attached(case)
    before = {k: v.clone() for k, v in handle.host_state_dict().items()}
    plugin_before = [p.detach().clone() for p in handle.parameters()]
    network.train()
    for name, child in network.named_children():  # what hosts' trainers do
        if name != "gmmt_fusion":
            child.train()
            child.requires_grad_(True)
    optimizer = torch.optim.SGD(handle.parameters(), lr=0.1)
    for _ in range(2):
        out = case.train(network)
        loss = handle.generative_loss + scores_in(out).square().mean()
        if parts := dicts(out):
            assert torch.equal(sum(p["generative_loss"] for p in parts), handle.generative_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in handle.host_state_dict().items())
    assert all(
        p.grad is None for n, p in network.named_parameters() if not n.startswith("gmmt_fusion.")
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(plugin_before, handle.parameters(), strict=True)
    )
    with handle.recorded() as first:
        case.train(network)
    with handle.recorded() as second:
        case.train(network)
    assert torch.equal(first[0][1], second[0][1])  # no dropout in the teacher


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.fused_in], ids=lambda case: case.name
)
def test_inference_skips_the_hosts_fusion(case: Case) -> None:
    network, handle = attached(case)
    calls = []
    network.get_submodule(case.fused_in).register_forward_hook(lambda *_: calls.append(1))
    case.run(network)
    assert not calls
    with handle.disabled():
        case.run(network)
    assert calls


@each_host
def test_training_keeps_no_activation_of_the_host(case: Case) -> None:
    network, _ = attached(case)
    first: list[str] = []  # whose output has a graph

    def note(name: str) -> Any:
        return lambda module, args, output: (
            first.append(name)
            if any(leaf.requires_grad for leaf in leaves(output) if isinstance(leaf, Tensor))
            else None
        )

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    case.train(network.train())
    assert first and first[0].startswith("gmmt_fusion."), first[:1]


@each_host
def test_autocast_and_inference_mode(case: Case) -> None:
    network, handle = attached(case)
    expected = case.run(network)
    assert not expected.requires_grad  # though the host forgot torch.no_grad
    with torch.inference_mode():
        assert torch.equal(case.run(network), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(case.run(network).float(), expected, rtol=0.1, atol=0.15)
        out = case.train(network.train())
        handle.generative_loss.backward()
        assert torch.isfinite(scores_in(out)).all()


# one host of each adapter, as compiling takes seconds
COMPILED = {
    "concat",
    "sum",
    "taps",
    "vipt",
    "tbsi",
    "bat",
    "sdstrack",
    "caformer",
    "sutrack",
    "seqtrack",
}


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name.removeprefix("real ") in COMPILED],
    ids=lambda case: case.name,
)
def test_compile(case: Case) -> None:
    network, handle = attached(case)
    expected = case.run(network)
    with handle.disabled():
        host = case.run(network)
    network, handle = attached(case)
    torch.compiler.reset()
    network.compile(backend="eager", fullgraph=case.fullgraph)
    for _ in range(1 + case.staged):  # a later stage may find the one before it done, or not
        torch.testing.assert_close(case.run(network), expected)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(case.run(network), expected)
    if case is CASES[0]:
        with handle.disabled():  # what changes after the first compile is seen
            torch.testing.assert_close(case.run(network), host)
        handle.detach()
        torch.testing.assert_close(case.run(network), host)


def test_a_compiled_host_trains() -> None:
    network, handle = attached(CASES[0])
    torch.compiler.reset()
    network.compile(backend="eager")
    for _ in range(2):
        CASES[0].train(network.train())
        assert handle.generative_loss.requires_grad
    network.eval()
    CASES[0].run(network)


@each_host
def test_random_state_is_not_touched(case: Case) -> None:
    host, network = case.build(), case.build()
    fusion = case.make_fusion()
    torch.manual_seed(3)
    case.run(host)
    case.train(host)  # in evaluation mode, as an attached one: there are hosts that draw masks
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    attach(network, fusion, case.adapter())
    case.run(network)
    case.train(network.train())
    assert torch.equal(torch.get_rng_state(), expected)


def _distributed(rank: int) -> None:
    for case in CASES:
        network, handle = attached(case)
        network.train()
        handle.fusion.manual_seed(rank)
        parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
        out = case.train(parallel)
        if parts := dicts(out):  # what DDP itself returned: its gradients are the shared ones
            loss = sum(part["generative_loss"] for part in parts)
            loss = loss + parts[0].get("total_loss", scores_in(out)).square().mean()
        else:
            loss = handle.generative_loss + scores_in(out).square().mean()
        loss.backward()
        for name, parameter in network.named_parameters():
            if not name.startswith("gmmt_fusion."):
                assert parameter.grad is None, name
            elif parameter.grad is not None:
                assert torch.equal(*of_both(parameter.grad)), f"{case.name}: {name}"
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in handle.parameters()), (
            case.name
        )


def test_distributed_data_parallel() -> None:
    run_in_two_processes(_distributed)
