"""Attached trackers and fusions through torch.export, and to ONNX as onnxruntime computes them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from embedded.siamese import SEARCH_MAP, load_tracker
from torch import Tensor, nn
from trees import leaves

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.model.fast_path import optimize

Exported = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class Frame(nn.Module):
    """A tracker's `template` and `track` as one forward: what to export of a Siamese tracker."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        self.network.template(template)
        return self.network.track(search)


def fusion(optimized: bool, **options: Any) -> Exported:
    torch.manual_seed(0)
    module = GenerativeFusion(8, size=8, **options).eval()
    nn.init.normal_(module.network.last_layer.weight, std=0.1)
    optimize(module, optimized)
    return module, (torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)), {}


def uvit(optimized: bool) -> Exported:
    return fusion(optimized, network_config={"width": 16, "heads": 2})


def unet(optimized: bool) -> Exported:
    return fusion(optimized, network="unet", network_config={"widths": (8,), "depth": 1})


def embedded(optimized: bool) -> Exported:
    torch.manual_seed(0)
    network = load_tracker()
    module = GenerativeFusion.preset("small", 64, SEARCH_MAP)
    nn.init.normal_(module.network.last_layer.weight, std=0.02)
    attach(network, module, ModuleAdapter("fusion", "head", size=SEARCH_MAP)).optimize(optimized)
    return (
        Frame(network).eval(),
        (255 * torch.rand(1, 6, 95, 95), 255 * torch.rand(1, 6, 191, 191)),
        {},
    )


def tbsi(optimized: bool) -> Exported:
    case = next(case for case in CASES if case.name == "tbsi")
    network = case.build()
    attach(network, case.make_fusion(), case.adapter()).optimize(optimized)
    calls: list[Any] = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    case.run(network)
    hook.remove()
    return network, (), {name: calls[0][name] for name in ("template", "search")}


def outputs(out: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(out) if isinstance(leaf, Tensor)]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    assert len(results) == len(expected) > 0
    for result, x in zip(results, expected, strict=True):
        assert (result - x).abs().max() <= 1e-4 * x.abs().max()


def wants_torch_2_7(*arguments: Any) -> Any:
    """For what torch 2.6 fails on by itself: a slice of a ModuleList, some shapes in ONNX."""
    old = torch.__version__ < "2.7"
    return pytest.param(*arguments, marks=pytest.mark.skipif(old, reason="wants torch 2.7"))


@pytest.mark.filterwarnings(
    "ignore:The tensor attribute self.network.zf was assigned"
)  # the template's, by the host
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize(
    "build",
    [uvit, wants_torch_2_7(unet), embedded, tbsi],
)
def test_torch_export(build: Any, optimized: bool) -> None:
    module, args, kwargs = build(optimized)
    with torch.no_grad():
        expected = outputs(module(*args, **kwargs))
        program = torch.export.export(module, args, kwargs, strict=False)
        assert_same(outputs(program.module()(*args, **kwargs)), expected)
        assert_same(outputs(module(*args, **kwargs)), expected)  # exporting left nothing behind


@pytest.mark.parametrize(
    ("build", "optimized"), [(uvit, False), (unet, True), wants_torch_2_7(embedded, True)]
)
def test_onnx(build: Any, optimized: bool, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(
            name, reason=f"{name} is not installed; pip install 'gmmt-fusion[export]'"
        )
    import onnxruntime

    module, args, kwargs = build(optimized)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = outputs(module(*args, **kwargs))
        torch.onnx.export(
            module, args, tmp_path / "tracker.onnx", kwargs=kwargs, dynamo=True, verbose=False
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "tracker.onnx", providers=["CPUExecutionProvider"]
    )
    inputs = (x.numpy() for x in leaves((args, kwargs)))
    results = session.run(
        None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}
    )
    assert_same([torch.from_numpy(x) for x in results], expected)
