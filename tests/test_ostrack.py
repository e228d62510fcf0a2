"""What the adapters of ViPT and TBSI take from their hosts, and how they refuse others."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anatomy import anatomy, assert_same_anatomy
from cases import CASES, Case
from stand_ins import CHANNELS, Block, CenterPredictor, PromptedTransformer, TBSITrack, ViPTrack
from torch import Tensor, nn

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import Adapter, TBSIAdapter, ViPTAdapter

HOSTS = [case for case in CASES if any(name in case.name for name in ("vipt", "tbsi"))]
each_host = pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.name)
each_vipt = pytest.mark.parametrize(
    "case", [case for case in HOSTS if "vipt" in case.name], ids=lambda case: case.name
)


def seen_by_host(case: Case) -> tuple[Tensor, Tensor]:
    """By hooks on an untouched host: the maps (B, 2·C, H, W) of its last fusion, its result."""
    network, calls = case.build(), []
    blocks = getattr(network.backbone, "prompt_blocks", None)
    fusion = network.tbsi_fuse_search if blocks is None else blocks[-1]
    fusion.register_forward_hook(lambda module, args, out: calls.append(args[0].clone()))
    network.box_head.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    with torch.no_grad():
        case.run(network)
    assert len(calls) == (2 if blocks is None else 3)  # ViPT's is called for the template first
    return calls[-2], calls[-1]


@each_host
def test_conditions_and_target_are_the_hosts(case: Case) -> None:
    maps, fused = seen_by_host(case)
    network = case.build()
    with attach(network, case.make_fusion()).recorded() as pairs:
        case.run(network)
    ((features, target),) = pairs
    assert torch.equal(torch.cat(features, dim=1), maps) and torch.equal(target, fused)
    assert features[0].shape == fused.shape and not torch.equal(*features)


@each_host
@pytest.mark.parametrize("steps", [1, 2])
def test_the_output_is_what_the_paper_says(case: Case, steps: int) -> None:
    """P = H(Sam(Σ F(input))) by hand.

    DDIM, η = 0, from x_T over t = 999, 499 on the cosine schedule; U gives x_0.
    """
    maps, _ = seen_by_host(case)
    network = case.build()
    fusion = case.make_fusion(steps=steps, residual=None)
    attach(network, fusion)
    time = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    squared = (time * torch.pi / 2).cos().square()
    alphas_cumprod = (1 - (1 - squared[1:] / squared[:-1]).clamp(max=0.999)).cumprod(0).float()

    with torch.no_grad():
        x = fusion.noise.expand(len(maps), -1, -1, -1)
        for t, following in ((999, 499), (499, None))[:steps]:
            x_0 = fusion.network(torch.cat([x, maps], dim=1), torch.full((len(x),), t))
            if following is not None:
                epsilon = (x - alphas_cumprod[t].sqrt() * x_0) / (1 - alphas_cumprod[t]).sqrt()
                x = (
                    alphas_cumprod[following].sqrt() * x_0
                    + (1 - alphas_cumprod[following]).sqrt() * epsilon
                )
        score_map, _, size_map, _ = case.build().box_head(x_0, None)
    expected = torch.cat([score_map.flatten(1), size_map.flatten(1)], dim=1)
    torch.testing.assert_close(case.run(network), expected, rtol=0, atol=1e-5)


class WithoutSkipping(ViPTAdapter):
    def points(self, network: nn.Module) -> dict[str, Callable[..., Any]]:
        return {
            name: method
            for name, method in super().points(network).items()
            if ".blocks." not in name
        }


@each_vipt
def test_skipping_the_last_block_changes_no_bit(case: Case) -> None:
    networks = case.build(), case.build()
    for network, adapter in zip(networks, (ViPTAdapter(), WithoutSkipping()), strict=True):
        attach(network, case.make_fusion(), adapter)
    assert torch.equal(*(case.run(network) for network in networks))


@each_vipt
def test_a_last_block_that_eliminates_is_kept(case: Case) -> None:
    network = case.build()
    network.backbone.blocks[-1].keep_ratio_search = 0.7
    assert not any(".blocks." in name for name in ViPTAdapter().points(network))
    attach(network, case.make_fusion())
    case.run(network)


def test_template_and_search_of_one_size() -> None:
    """The search region's maps are told by their size, or as those that came last."""
    adapter, plugin, host = (
        ViPTAdapter(),
        SimpleNamespace(memory={}, fuse=lambda maps, fused: maps[0]),
        lambda x: x,
    )
    template, search = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    for maps in (template, search):
        adapter.tap(plugin, host, maps)
    assert adapter.fuse(plugin, host, torch.zeros(1, 2, 8, 8)).eq(1).all()
    adapter.tap(plugin, host, torch.zeros(1, 4, 16, 16))
    assert adapter.fuse(plugin, host, torch.zeros(1, 2, 8, 8)).eq(1).all()
    with pytest.raises(
        ValueError, match=r"a map of \(9, 9\); the last prompt block ran on \(8, 8\), \(16, 16\)"
    ):
        adapter.fuse(plugin, host, torch.zeros(1, 2, 9, 9))


@each_host
@pytest.mark.parametrize("named", ["fork", "tracker"])
def test_recognised_by_structure(case: Case, named: str) -> None:
    network = case.build()
    if named == "fork":
        network.__class__ = type("Fork", (type(network),), {})
        assert attach(network, case.make_fusion()).network is network
    else:  # TBSITrack names the network and the tracker
        tracker = type(
            type(network).__name__, (), {"__init__": lambda self: setattr(self, "network", network)}
        )()
        assert attach(tracker, case.make_fusion()).network is network
    assert Attachment.of(network).attached


@each_host
def test_a_frame_as_the_tracker_calls_it(case: Case) -> None:
    """As hosts use it: `forward` and not the call, `cal_bbox` of the head that stands in the host.

    One search at batch 1, strided.
    """
    network = case.build()
    attach(network, case.make_fusion())
    arguments: dict[str, Any] = {}
    network.register_forward_pre_hook(
        lambda module, args, kwargs: arguments.update(kwargs), with_kwargs=True
    )
    case.run(network)

    def strided(x: Any) -> Any:
        return (
            [strided(y) for y in x]
            if isinstance(x, list)
            else x[:1].to(memory_format=torch.channels_last)
        )

    out = network.forward(
        **{name: strided(x) for name, x in arguments.items() if name in ("template", "search")}
    )
    boxes = network.box_head.cal_bbox(out["score_map"], out["size_map"], out["offset_map"])
    assert torch.equal(boxes, out["pred_boxes"].view(-1, 4)) and "generative_loss" not in out


def shaw() -> nn.Module:
    return ViPTrack(prompts=1)


def without_fusion() -> nn.Module:
    network = TBSITrack()
    del network.tbsi_fuse_search
    return network


def without_prompts() -> nn.Module:
    network = ViPTrack()
    network.backbone.prompt_blocks = nn.Sequential()
    return network


def without_head() -> nn.Module:
    return nn.ModuleDict({"backbone": PromptedTransformer()})


def without_blocks() -> nn.Module:
    return nn.ModuleDict({"box_head": CenterPredictor(), "backbone": Block()})


BAD_HOSTS: list[tuple[Callable[[], nn.Module], str]] = [
    (
        shaw,
        "backbone.prompt_blocks has length 1, backbone.blocks 3",
    ),
    (without_prompts, "backbone.prompt_blocks has length 0, backbone.blocks 3"),
    (
        without_fusion,
        "TBSITrack: no submodule 'tbsi_fuse_search'",
    ),
    (without_head, "no submodule 'box_head'"),
    (without_blocks, "no submodule 'backbone.blocks'"),
]


@pytest.mark.parametrize(
    ("build", "message"), BAD_HOSTS, ids=[build.__name__ for build, _ in BAD_HOSTS]
)
@pytest.mark.parametrize(
    "adapter", ["auto", ViPTAdapter(), TBSIAdapter()], ids=["auto", "vipt", "tbsi"]
)
def test_hosts_without_a_fusion_point(
    build: Callable[[], nn.Module], message: str, adapter: Adapter | str
) -> None:
    network = build()
    before = anatomy(network)
    with pytest.raises(
        ValueError, match=message if adapter == "auto" else "no fusion point was found"
    ):
        attach(
            network, GenerativeFusion(CHANNELS, network_config={"width": 16, "heads": 2}), adapter
        )
    assert_same_anatomy(anatomy(network), before)


@each_host
def test_fusions_that_do_not_fit(case: Case) -> None:
    network = case.build()
    before = anatomy(network)
    channels = case.fusion["channels"]
    with pytest.raises(
        ValueError, match=rf"channels=24; this {type(network).__name__} fuses maps of {channels}"
    ):
        attach(network, case.make_fusion(channels=24))
    with pytest.raises(ValueError, match=rf"modalities=3; {type(network).__name__} has 2"):
        attach(network, case.make_fusion(modalities=3))
    assert_same_anatomy(anatomy(network), before)
    handle = attach(network, case.make_fusion())
    expected = case.run(network)
    with pytest.raises(ValueError, match="attached to this tracker already; detach"):
        attach(network, case.make_fusion())
    with pytest.raises(ValueError, match=r"load the host's weights before attach\(\)"):
        network.load_state_dict(case.build().state_dict(), strict=True)
    assert torch.equal(case.run(network), expected)
    handle.detach()
    assert_same_anatomy(anatomy(network), before)
