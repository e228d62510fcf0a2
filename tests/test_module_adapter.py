"""`ModuleAdapter` in whatever form a host's fusion takes and returns maps and tokens."""

from typing import Any

import pytest
import torch
from cases import TINY
from einops import rearrange
from tiny_hosts import CHANNELS
from torch import Tensor, nn

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter

SIDE, TEMPLATE = 8, 16  # of the search region's map, and the template's tokens before its 64


class Fusion(nn.Module):
    """The mean of the modalities, however they are `given`, and what `returned` says of it."""

    def __init__(self, given: str, returned: str, modalities: int) -> None:
        super().__init__()
        self.given, self.returned, self.modalities = given, returned, modalities
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        flat = [*args, *kwargs.values()]
        streams = flat[0] if isinstance(flat[0], list | tuple) else flat[: self.modalities]
        if self.given in ("channels", "tokens"):
            axis = {"channels": -1 if flat[0].ndim == 3 else 1, "tokens": 1}[self.given]
            streams = flat[0].chunk(self.modalities, dim=axis)
        fused = self.gain * torch.stack(list(streams)).mean(0)
        if self.returned == "search":
            return fused[:, -(SIDE**2) :]
        return {"tuple": (fused, 3), "list": [None, fused], "dict": {"x": fused, "n": 1}}.get(
            self.returned, fused
        )


class Tracker(nn.Module):
    """m streams of tokens (B, N, C), (N, B, C) or maps, the fusion, and a head on a map."""

    def __init__(
        self,
        given: str = "two",
        returned: str = "plain",
        *,
        modalities: int = 2,
        kind: str = "tokens",
        template: bool = True,
    ) -> None:
        super().__init__()
        self.given, self.kind, self.template = given, kind, template
        self.embed = nn.ModuleList(nn.Conv2d(3, CHANNELS, 1) for _ in range(modalities))
        self.fuse = Fusion(given, returned, modalities)
        self.box_head = nn.Conv2d(CHANNELS, 2, 1)

    def stream(self, embed: nn.Module, template: Tensor, search: Tensor) -> Tensor:
        if self.kind == "maps":
            return embed(search)
        parts = [embed(x) for x in ([template] if self.template else []) + [search]]
        tokens = torch.cat([rearrange(x, "b c h w -> b (h w) c") for x in parts], dim=1)
        return tokens if self.kind == "tokens" else tokens.transpose(0, 1)

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Any]:
        images = zip(self.embed, template.split(3, 1), search.split(3, 1), strict=True)
        streams = [self.stream(*one) for one in images]
        if self.given == "list":
            out = self.fuse(streams, 0.5)
        elif self.given == "keywords":
            out = self.fuse(**{f"x{i}": s for i, s in enumerate(streams)}, mask=None)
        elif self.given in ("channels", "tokens"):
            channels = 1 if self.kind == "maps" else 2
            out = self.fuse(torch.cat(streams, channels if self.given == "channels" else 1))
        else:
            out = self.fuse(*streams, streams[0][:, :1])  # a mask of another shape
        fused = out[0] if isinstance(out, tuple) else out[1] if isinstance(out, list) else out
        fused = fused["x"] if isinstance(fused, dict) else fused
        maps = fused
        if self.kind != "maps":
            tokens = fused if self.kind == "tokens" else fused.transpose(0, 1)
            maps = rearrange(tokens[:, -(SIDE**2) :], "b (h w) c -> b c h w", h=SIDE)
        return {"scores": self.box_head(maps), "fused": fused, "out": out}


def images(modalities: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    template = torch.rand(2, 3 * modalities, 4, 4, generator=generator)
    return template, torch.rand(2, 3 * modalities, SIDE, SIDE, generator=generator)


def build(*args: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Tracker(*args, **options).eval()


def make_fusion(**options: Any) -> GenerativeFusion:
    torch.manual_seed(7)
    fusion = GenerativeFusion(**{**TINY, **options})
    nn.init.normal_(fusion.network.last_layer.weight, std=0.1)
    return fusion


OUTPUTS = {"plain": None, "search": None, "tuple": 0, "list": 1, "dict": "x"}
FORMS = [
    *(("tokens", given, returned, 2) for given in ("two", "list") for returned in OUTPUTS),
    *(("tokens", given, "plain", 2) for given in ("keywords", "channels", "tokens")),
    *(("token first", given, "plain", 2) for given in ("two", "channels")),
    *(("tokens", given, "plain", 3) for given in ("two", "channels", "tokens", "keywords")),
    *(("maps", "two", returned, 2) for returned in ("plain", "tuple", "list", "dict")),
    *(("maps", given, "plain", 3) for given in ("two", "list", "keywords", "channels")),
]


@pytest.mark.parametrize("template", [True, False], ids=["template", "search only"])
@pytest.mark.parametrize(("kind", "given", "returned", "modalities"), FORMS)
def test_every_form_is_served(
    kind: str, given: str, returned: str, modalities: int, template: bool
) -> None:
    network = build(given, returned, modalities=modalities, kind=kind, template=template)
    inputs = images(modalities)
    host = network(*inputs)
    start = TEMPLATE if template and kind != "maps" else 0
    adapter = ModuleAdapter(
        "fuse",
        "box_head",
        size=SIDE,
        tokens=None if kind == "maps" else (start, start + SIDE**2),
        batch_first=kind != "token first",
        output=OUTPUTS[returned],
    )
    handle = attach(network, make_fusion(modalities=modalities), adapter)
    out = network(*inputs)
    assert type(out["out"]) is type(host["out"]) and out["fused"].shape == host["fused"].shape
    assert not torch.allclose(out["scores"], host["scores"], atol=1e-4)
    if start and returned != "search":  # the template's tokens stay the host's
        rest = slice(start) if kind == "token first" else (slice(None), slice(start))
        assert torch.equal(out["fused"][rest], host["fused"][rest])
    network.train()(*inputs)["generative_loss"].backward()
    ((features, fused),) = handle.fused_maps
    assert torch.allclose(torch.stack(features).mean(0), fused, atol=1e-6)
    assert fused.shape == (2, CHANNELS, SIDE, SIDE)
    assert any(p.grad is not None and p.grad.any() for p in handle.fusion.network.parameters())
    handle.detach()
    assert torch.equal(network.eval()(*inputs)["scores"], host["scores"])


def test_a_slice_says_the_same() -> None:
    network = build()
    expected = []
    for tokens in ((TEMPLATE, 80), slice(TEMPLATE, None), slice(-64, None), [16, 80]):
        adapter = ModuleAdapter("fuse", "box_head", size=(SIDE, SIDE), tokens=tokens)
        handle = attach(network, make_fusion(), adapter)
        expected.append(network(*images())["scores"])
        handle.detach()
    assert all(torch.equal(one, expected[0]) for one in expected)


def test_a_template_alone_is_fused_by_the_host() -> None:
    network = build(template=False)
    adapter = ModuleAdapter("fuse", "box_head", size=SIDE, tokens=slice(-64, None))
    attach(network, make_fusion(), adapter)
    template = rearrange(images()[0][:, :3], "b c h w -> b (h w) c").repeat(1, 1, 3)[..., :CHANNELS]
    assert torch.equal(network.fuse(template, template), template)


@pytest.mark.parametrize("given", ["two", "list", "channels", "tokens"])
@pytest.mark.parametrize("template", [True, False])
def test_maps_expected_and_tokens_met(given: str, template: bool) -> None:
    network = build(given, template=template)
    attach(network, make_fusion(), ModuleAdapter("fuse", "box_head"))
    numbers = r"tokens=\(16, 80\), size=8" if template else r"tokens=\(0, 64\), size=8"
    with pytest.raises(ValueError, match=rf"called with .* try ModuleAdapter\(…, {numbers}\)"):
        network(*images())


@pytest.mark.parametrize(
    ("options", "adapter", "message"),
    [
        ({"kind": "maps"}, {"size": 8, "tokens": (0, 64)}, r"expected 2 tokens \(B, N, C\)"),
        ({"returned": "tuple"}, {"size": 8, "tokens": (16, 80)}, "tuple of Tensor.*output="),
        ({"returned": "dict", "kind": "maps"}, {}, "returned dict; give the adapter output="),
        ({"modalities": 3}, {"size": 8, "tokens": (16, 80)}, r"called with 4 arguments.*expected"),
    ],
)
def test_what_does_not_fit_is_named(
    options: dict[str, Any], adapter: dict[str, Any], message: str
) -> None:
    network = build(**options)
    handle = attach(network, make_fusion(), ModuleAdapter("fuse", "box_head", **adapter))
    with pytest.raises(ValueError, match=message):
        network.train()(*images(options.get("modalities", 2)))
    handle.detach()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (0, 64)}, "without a size"),
        ({"tokens": slice(0, 64, 2), "size": 8}, "without steps"),
        ({"tokens": (0, 64, 1), "size": 8}, "without steps"),
        ({"size": (8, 8, 8)}, "3 sides"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleAdapter("fuse", "box_head", **options)


def test_tokens_of_another_number_are_told_in_training() -> None:
    network = build()
    handle = attach(network, make_fusion(), ModuleAdapter("fuse", "box_head", 8, tokens=(0, 63)))
    network.train()(*images())
    with pytest.raises(ValueError, match="no fused map was generated"):
        _ = handle.generative_loss
    with pytest.warns(UserWarning, match="no map was generated before it"):
        network.eval()(*images())
    assert Attachment.of(network).describe()["adapter"]["fuse"]["options"]["tokens"] == (0, 63)


class Siamese(nn.Module):
    """Fuses a template's maps and a search region's by one module, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse, self.box_head = Fusion("two", "plain", 2), nn.Conv2d(CHANNELS, 2, 1)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        kernel = self.fuse(template, template).mean((2, 3), keepdim=True)
        return self.box_head(kernel * self.fuse(search, search + 1))


@pytest.mark.parametrize("size", [None, SIDE])
def test_a_template_that_is_generated_too_is_told_once(size: int | None, recwarn: Any) -> None:
    network, maps = Siamese().eval(), [torch.rand(1, CHANNELS, side, side) for side in (4, SIDE)]
    attach(
        network,
        GenerativeFusion(**TINY),
        ModuleAdapter("fuse", "box_head", size),
    )
    for _ in range(3):
        network(*maps)
    told = [str(w.message) for w in recwarn if "'fuse' gets maps of 4×4 and 8×8" in str(w.message)]
    assert len(told) == (1 if size is None else 0)
