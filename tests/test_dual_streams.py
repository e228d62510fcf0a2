"""What the adapters of BAT and SDSTrack take from their hosts, and how they refuse others."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from einops import rearrange
from stand_ins import CHANNELS, CenterPredictor, ViPTrack
from stand_ins_dual import BATrack, SDSTrack
from test_law import anatomy, assert_same_anatomy
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import Adapter, BATAdapter, SDSTrackAdapter

HOSTS = [case for case in CASES if any(name in case.name for name in ("bat", "xtrack", "sdstrack"))]
each_host = pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.name)
each_mode = pytest.mark.parametrize("mode", ["run", "train"])


def is_sdstrack(case: Case) -> bool:
    return "sdstrack" in case.name


def forward(case: Case, network: nn.Module, mode: str) -> Any:
    """A frame, or a training forward; a host that draws masks draws the same every time."""
    torch.manual_seed(3)
    with torch.no_grad():
        return getattr(case, mode)(network)


def head_inputs(case: Case, network: nn.Module, mode: str) -> list[Tensor]:
    """What the head of a host gets, (B, C, H, W), one a path."""
    calls: list[Tensor] = []
    hook = network.box_head.register_forward_pre_hook(
        lambda module, args: calls.append(args[0].clone())
    )
    forward(case, network, mode)
    hook.remove()
    return calls


def fuse_as_host(case: Case, network: nn.Module, features: list[Tensor]) -> Tensor:
    """BAT's sum, or SDSTrack's norm of the mean, of maps (B, C, H, W)."""
    if not is_sdstrack(case):
        return sum(features, torch.zeros(()))
    tokens = [rearrange(f, "b c h w -> b (h w) c") for f in features]
    mean = network.backbone.norm(sum(tokens) / 2)
    return rearrange(mean, "b (h w) c -> b c h w", h=features[0].shape[-2])


@each_host
@each_mode
def test_features_and_target_are_the_hosts(case: Case, mode: str) -> None:
    host, network = case.build(), case.build()
    expected = head_inputs(case, host, mode)
    assert len(expected) == (2 if is_sdstrack(case) and mode == "train" else 1)
    with attach(network, case.make_fusion()).recorded() as pairs:
        forward(case, network, mode)
    assert len(pairs) == len(expected)
    for (features, fused), head_input in zip(pairs, expected, strict=True):
        assert torch.equal(fused, head_input) and [f.shape for f in features] == 2 * [fused.shape]
        assert not torch.equal(*features)
        with torch.no_grad():
            assert torch.equal(fuse_as_host(case, host, features), fused)
    if len(pairs) == 2:
        assert not torch.equal(pairs[0][0][0], pairs[1][0][0])  # clean and masked


@each_host
def test_eliminated_candidates_are_zero_in_their_places(case: Case) -> None:
    host, network = case.build(), case.build()
    kept: list[Tensor] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        index = out[2]["fine_rgb"] if isinstance(out[2], dict) else out[2]
        kept.append(index)

    host.backbone.blocks[-1].register_forward_hook(note)
    forward(case, host, "run")
    with attach(network, case.make_fusion()).recorded() as pairs:
        forward(case, network, "run")
    rgb = pairs[0][0][0].flatten(2)
    places = torch.zeros(len(rgb), rgb.shape[-1], dtype=torch.bool)
    places.scatter_(1, kept[-1], torch.ones_like(places))
    assert places.all() == ("without" in case.name)
    assert torch.equal(rgb.abs().sum(1) > 0, places)


@each_host
def test_the_head_sees_the_generated_map_only(case: Case) -> None:
    """Whatever the images: where the fusion gives one map, the host gives one output."""
    network, other = case.build(), case.build()
    for host in (network, other):
        handle = attach(host, case.make_fusion())
        fused = torch.rand(2, case.fusion["channels"], 1, 1, generator=torch.Generator())
        handle.fusion.forward = lambda *maps, fused=fused: fused.expand_as(maps[0])
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.mul_(1.5)
    assert torch.equal(forward(case, network, "run"), forward(case, other, "run"))


@pytest.mark.parametrize("case", [c for c in HOSTS if is_sdstrack(c)], ids=lambda case: case.name)
def test_each_path_gets_its_own_loss_and_map(case: Case) -> None:
    network = case.build()
    handle = attach(network, case.make_fusion())
    clean, masked = case.train(network.train())
    assert len(handle.fused_maps) == 2
    assert torch.equal(clean["generative_loss"] + masked["generative_loss"], handle.generative_loss)
    assert clean["generative_loss"] != masked["generative_loss"]
    handle.generative_loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in handle.fusion.network.parameters())


class OSTrack(ViPTrack):
    """One stream: no prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.prompt_blocks = self.backbone.prompt_norms = nn.Sequential()


def without_head() -> nn.Module:
    network = BATrack()
    del network.box_head
    return network


def without_blocks() -> nn.Module:
    network = SDSTrack()
    network.backbone.blocks = nn.Sequential()
    return network


REFUSED: list[tuple[Callable[[], nn.Module], Adapter, str]] = [
    (OSTrack, BATAdapter(), "takes x, global_index_t, global_index_s; expected two streams"),
    (OSTrack, SDSTrackAdapter(), "expected 'path' and 'sub_mode' among them"),
    (SDSTrack, BATAdapter(), "takes x, global_index_template, global_index_search; expected two"),
    (BATrack, SDSTrackAdapter(), "takes x, xi, global_index_template, .*expected 'path'"),
    (without_head, BATAdapter(), r"no submodule 'box_head' \(it has backbone\)"),
    (without_blocks, SDSTrackAdapter(), r"no submodule 'backbone.blocks.0' \(.* has none\)"),
    (lambda: nn.ModuleDict({"box_head": CenterPredictor()}), BATAdapter(), "'backbone.blocks'"),
]


@pytest.mark.parametrize(("build", "adapter", "message"), REFUSED)
def test_other_hosts_are_refused(
    build: Callable[[], nn.Module], adapter: Adapter, message: str
) -> None:
    network = build()
    before = anatomy(network)
    fusion = GenerativeFusion(CHANNELS, network_config={"width": 16, "heads": 2})
    with pytest.raises(ValueError, match=message):
        attach(network, fusion, adapter)
    assert_same_anatomy(anatomy(network), before)


@each_host
def test_recognised_by_structure(case: Case) -> None:
    network = case.build()
    network.__class__ = type("Fork", (type(network),), {})
    assert attach(network, case.make_fusion()).network is network
    with pytest.raises(ValueError, match=rf"fuses maps of {case.fusion['channels']} channels"):
        attach(case.build(), case.make_fusion(channels=24))


@each_host
def test_a_head_that_is_called_alone_says_what_it_lacks(case: Case) -> None:
    network = case.build()
    fused = head_inputs(case, copy.deepcopy(network), "run")[0]
    attach(network, case.make_fusion())
    with pytest.raises(ValueError, match=r"the head was called (after 0 calls of|before the last)"):
        network.box_head(fused)
