"""The fast path: the same maps by less work, and nothing else that a user would notice."""

import copy
import dataclasses
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.model.fast_path import _convert, optimize
from gmmt_fusion.model.networks import Block

CHANNELS, SIZE = 8, (4, 6)
NETWORKS: dict[str, dict[str, Any]] = {
    "uvit": {"width": 16, "heads": 2, "final_conv": True},
    "unet": {"widths": (8, 16), "depth": 1},
}
METHODS: list[dict[str, Any]] = [{"method": "raw"}, {"method": "cgan"}] + [
    {"method": "diffusion", "steps": steps, "prediction_type": kind}
    for steps, kind in itertools.product((1, 3), ("sample", "v_prediction"))
]
METHODS += [
    {"method": "diffusion", "scheduler": {"_class_name": "DDPMScheduler"}, "steps": 3},
    {"method": "diffusion", "eta": 1.0, "steps": 3},
]


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products in place of the convolutions, which are meant for large ones."""
    monkeypatch.setattr("gmmt_fusion.model.fast_path.LEAST_WEIGHTS", 0)


each_host = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make(network: str = "uvit", **options: Any) -> GenerativeFusion:
    """A fusion as after fine-tuning: no layer at zero, normalisation far from 0 and 1."""
    torch.manual_seed(0)
    fusion = GenerativeFusion(
        CHANNELS, size=SIZE, network=network, network_config=NETWORKS[network], **options
    ).eval()
    nn.init.normal_(fusion.network.last_layer.weight, std=0.1)
    for mean, std in (
        (fusion.feature_mean, fusion.feature_std),
        (fusion.fused_mean, fusion.fused_std),
    ):
        mean.normal_(3, 2)
        std.uniform_(0.5, 2)
    return fusion


def maps(batch: int = 1, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, CHANNELS, *size, generator=generator) + 3 for _ in range(2)]


@pytest.mark.parametrize("residual", ["conv1x1", "conv3x3", "first", None])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_equal_to_the_plain_path(
    method: dict[str, Any], network: str, residual: str | None
) -> None:
    fusion = make(network, residual=residual, **method)
    reference = copy.deepcopy(fusion).double()
    optimize(fusion)
    for batch, size in ((1, SIZE), (2, SIZE), (1, (5, 7))):
        features = maps(batch, size)
        expected = reference(*(f.double() for f in features))
        result = fusion(*features)
        error = (result - expected).abs().max() / expected.abs().max()
        assert error < 1e-5 and result.dtype == torch.float32, (batch, size)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method["method"])
def test_frames_of_another_size_draw_their_noise_once(
    method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = make(**method)
    optimize(fusion)
    expected = fusion(*maps(size=(5, 7)))
    monkeypatch.setattr("gmmt_fusion.model.fusion.standard_normal", None)
    assert torch.equal(fusion(*maps(size=(5, 7))), expected)


def flops(fusion: GenerativeFusion) -> int:
    with FlopCounterMode(display=False) as counter:
        fusion(*maps())
    return counter.get_total_flops()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["diffusion", "cgan"])
def test_noise_and_time_cost_nothing(method: str, network: str) -> None:
    fusion = make(network, method=method)
    plain = flops(fusion)
    optimize(fusion)
    first = fusion.network.get_submodule(fusion.network.first_layer).weight
    saved = (
        2 * first[:, :CHANNELS].numel() * SIZE[0] * SIZE[1]
    )  # the noise's part of the first layer
    saved += sum(
        2 * p.numel() for name, p in fusion.named_parameters() if "time_emb" in name and p.ndim == 2
    )
    assert plain - flops(fusion) == saved


def assert_follows(fusion: GenerativeFusion, features: list[Tensor]) -> None:
    torch.testing.assert_close(fusion(*features), fusion.sample(features), rtol=1e-4, atol=1e-4)


def train_a_step(fusion: GenerativeFusion) -> None:
    fusion.train()
    optimizer = torch.optim.SGD(fusion.parameters(), 0.1)
    fusion.loss(maps(), maps()[0]).loss.backward()
    optimizer.step()
    fusion.eval()


def load(fusion: GenerativeFusion) -> None:
    torch.manual_seed(9)
    fusion.load_state_dict(
        {name: torch.rand_like(t) + 0.1 for name, t in fusion.state_dict().items()}
    )


CHANGES = {
    "training": train_a_step,
    "loading": load,
    "calibrating": lambda fusion: fusion.calibrate([(maps(16), maps(16)[0])]),
    "steps": lambda fusion: setattr(fusion, "steps", 2),
    "casting": lambda fusion: fusion.double(),
    "one weight": lambda fusion: nn.init.ones_(
        fusion.network.get_submodule(fusion.network.first_layer).weight
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("network", NETWORKS)
def test_follows_what_changes(network: str, change: str) -> None:
    fusion = make(network)
    optimize(fusion)
    before = fusion(*maps())
    CHANGES[change](fusion)
    assert not torch.allclose(fusion(*maps()), before) or change == "casting"
    assert_follows(fusion, maps())


def test_taken_back_to_the_bit() -> None:
    fusion = make()
    expected = fusion(*maps())
    state = {name: t.clone() for name, t in fusion.state_dict().items()}
    optimize(fusion)
    fusion(*maps())
    assert fusion.state_dict().keys() == state.keys() and len(list(fusion.modules())) == len(
        list(make().modules())
    )
    assert torch.equal(fusion.sample(maps()), expected)
    optimize(fusion, False)
    assert torch.equal(fusion(*maps()), expected)
    assert all(torch.equal(t, state[name]) for name, t in fusion.state_dict().items())


def test_new_noise_in_every_frame_is_refused() -> None:
    message = "fixed_noise=False draws new noise in every frame"
    fusion = make(fixed_noise=False)
    with pytest.raises(ValueError, match=message):
        optimize(fusion)
    fusion(*maps())  # as it was
    fusion = make()
    optimize(fusion)
    fusion.fixed_noise = False
    with pytest.raises(ValueError, match=message):
        fusion(*maps())
    optimize(make(method="raw", fixed_noise=False))  # draws none


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": "bf16"},
            "dtype='bf16'; expected a floating-point dtype",
        ),
        ({"dtype": torch.int8}, "dtype=torch.int8; expected a floating"),
        ({"compile": True}, "compile=True is unknown"),
    ],
    ids=["name of a dtype", "integers", "compile"],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    fusion = make()
    with pytest.raises(ValueError, match=message):
        optimize(fusion, **options)
    assert fusion.fast_path is None


@pytest.mark.parametrize("network", NETWORKS)
def test_dtype(network: str) -> None:
    fusion = make(network)
    expected = fusion(*maps(2))
    optimize(fusion, dtype=torch.bfloat16)
    result = fusion(*maps(2))
    assert result.dtype == torch.float32 and {p.dtype for p in fusion.parameters()} == {
        torch.float32
    }
    error = ((result - expected).square().mean() / expected.var()).sqrt()
    assert 1e-4 < error < 2e-2  # it is in bfloat16, and no worse than bfloat16 is
    nn.init.zeros_(fusion.network.last_layer.weight)
    torch.testing.assert_close(fusion(*maps(2)), fusion.sample(maps(2)), rtol=0.05, atol=0.05)


def test_what_a_gpu_computes_in_half_precision() -> None:
    """The conversion alone, on the CPU: heads of 5 channels are padded to 8."""
    block, tokens = Block(20, 4), torch.randn(2, 7, 20)
    converted, normed = copy.deepcopy(block), nn.utils.parametrizations.weight_norm
    _convert(converted, torch.bfloat16, "cuda")
    assert converted.proj.weight.shape == (20, 32) and block.proj.weight.shape == (20, 20)
    result = converted(tokens.bfloat16()).float()
    torch.testing.assert_close(result, block(tokens), rtol=0.05, atol=0.05)
    normed(block.qkv)
    _convert(block, torch.bfloat16, "cuda")  # left as it is
    assert block.qkv.weight.shape == (60, 20)


def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    modes, whole = [], torch.compile

    def compiled(function: Any, mode: str) -> Any:  # without the minutes of a real backend
        modes.append(mode)
        return whole(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compiled)
    fusion = make()
    optimize(fusion, compile="reduce-overhead")
    assert_follows(fusion, maps())
    assert modes == ["reduce-overhead"]
    load(fusion)
    assert_follows(fusion, maps())


def attached(case: Case) -> tuple[nn.Module, Attachment, Tensor]:
    """An optimised host, and its output before that."""
    network = case.build()
    handle = attach(network, case.make_fusion(), case.adapter())
    plain = case.run(network)
    handle.optimize()
    return network, handle, plain


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_host
def test_the_law_holds(case: Case) -> None:
    """Attached, disabled, copied, pickled, trained, detached: as without optimising."""
    case = dataclasses.replace(
        case, run=torch.no_grad()(case.run)
    )  # hosts keep maps, which do not copy with a graph
    host = case.run(case.build())
    network, handle, plain = attached(case)
    state = torch.get_rng_state()
    assert_same(case.run(network), plain)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert_same(case.run(network), plain)
    with handle.disabled():
        assert torch.equal(case.run(network), host)
    case.build().load_state_dict(handle.host_state_dict(), strict=True)

    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_same(case.run(other), plain)
        nn.init.zeros_(Attachment.of(other).fusion.network.last_layer.weight)
        assert not torch.allclose(case.run(other), plain, atol=1e-4)  # its own weights, folded anew
    assert_same(case.run(network), plain)

    case.train(network.train())
    handle.generative_loss.backward()
    torch.optim.SGD(handle.parameters(), 0.1).step()
    trained = case.run(network.eval())
    assert not torch.allclose(trained, plain, atol=1e-4)
    handle.optimize(False)
    assert_same(trained, case.run(network))
    handle.optimize()
    handle.detach()
    assert torch.equal(case.run(network), host)


def test_a_host_that_is_cast_before_it_is_compiled() -> None:
    """What was folded before is of other weights: the graph takes the plain path."""
    case = CASES[0]
    network, _, plain = attached(case)
    torch.compiler.reset()
    network.double().compile(backend="eager", fullgraph=case.fullgraph)
    torch.testing.assert_close(case.run(network), plain.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="wants torch 2.9")
def test_tf32_by_its_newer_name() -> None:
    code = """
import torch
from gmmt_fusion.model.cuda_graphs import rounds_to_tf32
assert rounds_to_tf32() == (False, True)
torch.backends.cudnn.conv.fp32_precision = "ieee"
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert rounds_to_tf32() == (True, False)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_in_a_host_compiled_as_a_whole() -> None:
    case = CASES[0]
    network, handle, plain = attached(case)
    torch.compiler.reset()
    network.compile(backend="eager", fullgraph=case.fullgraph)
    assert_same(case.run(network), plain)
    network.train().eval()  # drops what was folded: the graph takes the plain path
    assert_same(case.run(network), plain)
    nn.init.zeros_(handle.fusion.network.last_layer.weight)
    handle.optimize()
    changed = case.run(network)
    assert not torch.allclose(changed, plain, atol=1e-4)
    handle.optimize(False)
    assert_same(changed, case.run(network))


class Own(nn.Conv2d):
    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        return super().forward(maps)


class Standardised(nn.Module):
    """Its weights are seen as a matrix, which needs them as they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16, 3, 3))

    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        rows = self.weight.view(8, -1)
        rows = (rows - rows.mean(1, True)) / rows.std(1, keepdim=True)
        return nn.functional.conv2d(maps, rows.view(self.weight.shape), padding=1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("build", [lambda: Own(16, 8, 3, padding=1), Standardised])
def test_a_plain_fusion_of_another_network(
    build: Callable[[], nn.Module], dtype: torch.dtype | None
) -> None:
    fusion = make("uvit", method="raw")
    fusion.network = build()
    expected = fusion(*maps())
    optimize(fusion, dtype=dtype)
    found = fusion(*maps())
    assert (found - expected).norm() < (2e-2 if dtype == torch.bfloat16 else 1e-5) * expected.norm()


def test_diffusers_is_imported_only_where_it_is_needed() -> None:
    """diffusers takes seconds to import, and only schedulers and the UNet are taken from it."""
    code = """
import sys, gmmt_fusion
assert "gmmt_fusion.model.fusion" not in sys.modules and "torch" not in sys.modules
from gmmt_fusion import GenerativeFusion, attach
import gmmt_fusion.adapters, gmmt_fusion.model.fast_path
GenerativeFusion(8, method="raw")
GenerativeFusion(8, method="cgan")
assert "diffusers" not in sys.modules, "diffusers was imported"
GenerativeFusion(8, method="diffusion")
assert "diffusers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_frame_under_autocast_does_not_round_later_ones(network: str) -> None:
    fusion = make(network)
    expected = fusion(*maps())
    optimize(fusion)
    fusion.train().eval()  # drops what was made, so that it is made anew under autocast
    with torch.autocast("cpu", torch.bfloat16):
        fusion(*maps())
    torch.testing.assert_close(fusion(*maps()), expected, rtol=1e-5, atol=1e-5)
