"""Tiny trackers that no adapter knows, each of which fuses in another way."""

import torch
from einops import rearrange
from torch import Tensor, nn

WIDTH, TEMPLATE, SEARCH = 8, 16, 32  # channels; sides of the images, of stride 4
LENGTH = (SEARCH // 4) ** 2


def embedding(channels: int = 3, width: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 4, 4)


def to_map(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b (h w) c -> b c h w", h=SEARCH // 4)


class Mixer(nn.Module):
    """Tokens in, tokens out, each of which sees all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + 0.2 * x.mean(1, keepdim=True)


class Corner(nn.Module):
    """A head under an unusual name, of a box and a score."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(width, WIDTH, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(WIDTH, 5, 1)

    def forward(self, x: Tensor, *unused: object) -> dict[str, Tensor]:
        out = self.out(self.tower(x))
        return {"boxes": out[:, :4].mean((-1, -2)), "scores": out[:, 4:]}


class TwoStreams(nn.Module):
    """A backbone for each modality; `fused` is what subclasses differ in."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.visible, self.thermal = embedding(), embedding()
        self.predictor = Corner(width)

    def streams(self, images: Tensor) -> list[Tensor]:
        return [self.visible(images[:, :3]), self.thermal(images[:, 3:])]

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        return self.predictor(self.fused(*self.streams(search)))


class Correlating(TwoStreams):
    """A list goes in; template and search are fused by one module, as in NanoTrack; the head
    correlates them.
    """

    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2 * WIDTH, WIDTH, 1)

        def forward(self, maps: list[Tensor]) -> Tensor:
            return self.conv(torch.cat(maps, dim=1))

    class Head(Corner):
        def forward(self, template: Tensor, x: Tensor) -> dict[str, Tensor]:
            return super().forward(x * template.mean((-1, -2), keepdim=True))

    def __init__(self) -> None:
        super().__init__()
        self.necks = nn.ModuleDict({"merge": self.Merge()})
        self.predictor = self.Head()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        merge = self.necks["merge"]
        return self.predictor(merge(self.streams(template)), merge(self.streams(search)))


class Gated(TwoStreams):
    """The fusion returns a gate beside the map, and is followed by another layer."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Conv2d(2 * WIDTH, WIDTH, 1)

        def forward(self, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            gate = self.gate(torch.cat([a, b], dim=1)).sigmoid()
            return gate.mean((-1, -2)), scale * (gate * a + (1 - gate) * b)

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.after = self.Gate(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return self.after(self.gate(a, b, 0.5)[1])


class OnlyEvaluated(Gated):
    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        assert not self.training
        return super().fused(a, b)


class FusedTwice(Gated):
    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return self.after(self.gate(a, b, 0.5)[1] + self.gate(a, b, 0.2)[1])


class Concatenated(TwoStreams):
    """The head takes both."""

    def __init__(self) -> None:
        super().__init__(2 * WIDTH)

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1)


class Weighted(TwoStreams):
    """A sum with weights that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.7, 0.4]))

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return self.weights[0] * a + self.weights[1] * b


class ThreeModalities(nn.Module):
    """Nine channels in, three maps fused."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3 * WIDTH, WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(embedding() for _ in range(3))
        self.three, self.predictor = self.Three(), Corner()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        pairs = zip(self.stems, search.split(3, dim=1), strict=True)
        return self.predictor(self.three(torch.cat([stem(x) for stem, x in pairs], dim=1)))


class TokenStreams(nn.Module):
    """Two streams of template and search tokens, through shared blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(embedding() for _ in range(2))
        self.layers, self.final = nn.ModuleList(Mixer() for _ in range(2)), nn.LayerNorm(WIDTH)
        self.predictor = Corner()

    def streams(self, template: Tensor, search: Tensor) -> list[Tensor]:
        tokens = []
        for m, stem in enumerate(self.stems):
            images = [x[:, 3 * m : 3 * m + 3] for x in (template, search)]
            x = torch.cat([rearrange(stem(i), "b c h w -> b (h w) c") for i in images], dim=1)
            for layer in self.layers:
                x = layer(x)
            tokens.append(x)
        return tokens

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        return self.predictor(to_map(self.fused(*self.streams(template, search))))


class TokenFusion(TokenStreams):
    """One module fuses the tokens, and those of the search region go on, as in STTrack."""

    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            x = self.mix(torch.cat([a, b], dim=-1))
            return x + 0.1 * a.mean(1, keepdim=True)

    def __init__(self) -> None:
        super().__init__()
        self.fuse, self.last = self.Fuse(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        tokens = self.fuse(*self.streams(template, search))[:, -LENGTH:]
        return self.predictor(self.last(to_map(tokens)))


class SearchFirst(TokenFusion):
    """The search region's tokens come first, and both streams on one axis."""

    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.mix(x).chunk(2, dim=1)
            return a + b.tanh()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        streams = [x.roll(LENGTH, dims=1) for x in self.streams(template, search)]
        tokens = self.fuse(torch.cat(streams, dim=1))[:, :LENGTH]
        return self.predictor(self.last(to_map(tokens)))


class SumBeforeNorm(TokenStreams):
    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return self.final((a + b) / 2)[:, -LENGTH:]


class SumAfterNorm(TokenStreams):
    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.final(a) + self.final(b))[:, -LENGTH:]


class Projected(TokenStreams):
    """The sum is projected to the channels of the head, and normed."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.last = nn.Linear(WIDTH, 6), nn.LayerNorm(6)
        self.predictor = Corner(6)

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last(self.project((self.final(a) + self.final(b))[:, -LENGTH:]))


class Pruned(TokenStreams):
    """Each stream keeps 40 of its 64 search tokens; their sum is scattered to the places."""

    class Prune(nn.Module):
        def scores(self, x: Tensor) -> Tensor:
            return x[:, -LENGTH:].norm(dim=-1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            places = self.scores(x).argsort(1, descending=True)[:, :40]
            kept = x[:, -LENGTH:].gather(1, places[..., None].expand(-1, -1, WIDTH))
            return torch.cat([x[:, :-LENGTH], kept], dim=1), places

    def __init__(self) -> None:
        super().__init__()
        self.prune = self.Prune()

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        total = 0
        for x in (a, b):
            kept, places = self.prune(x)
            kept = self.final(kept)[:, -40:]
            whole = kept.new_zeros(len(kept), LENGTH, WIDTH)
            total = total + whole.scatter(1, places[..., None].expand_as(kept), kept)
        return total


class PrunedAtTheEdge(Pruned):
    """The left edge of the map is never kept."""

    class Prune(Pruned.Prune):
        def scores(self, x: Tensor) -> Tensor:
            inside = torch.arange(LENGTH, device=x.device) % (SEARCH // 4) > 0
            return super().scores(x) * inside


class PrunedTogether(TokenStreams):
    """Both streams keep 20 tokens in the same places, and the head takes both, as in CAFormer.

    The places change with every image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.predictor = Corner(2 * WIDTH)

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        streams = [self.final(x)[:, -LENGTH:] for x in (a, b)]
        scores = (100 * torch.stack(streams)[..., 0].sum(0)).sin()
        dropped = scores.argsort(1)[:, 20:, None].expand(-1, -1, WIDTH)
        return torch.cat([x.scatter(1, dropped, 0.0) for x in streams], dim=2)


class Multiplied(TokenStreams):
    """Fuses in a function, by no sum; dropout, called for each stream, comes just before."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def fused(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.drop(a) * self.drop(b).tanh())[:, -LENGTH:]


class SingleStream(nn.Module):
    """Six channels into one embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = embedding(6), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.predictor = Corner()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        return self.predictor(self.layer(self.stem(search)).relu())


class Encoded(nn.Module):
    """One stream of tokens: a class token, those of the search region, those of the template."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = embedding(6), Mixer()
            self.token = nn.Parameter(torch.randn(1, 1, WIDTH))

        def forward(self, template: Tensor, search: Tensor) -> list[Tensor]:
            images = [rearrange(self.stem(x), "b c h w -> b (h w) c") for x in (search, template)]
            return [self.layer(torch.cat([self.token.expand(len(search), -1, -1), *images], dim=1))]

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = self.Encoder(), Corner()

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(template, search)[0]
        return self.predictor(to_map(tokens[:, 1 : LENGTH + 1]))


class OfOneModality(SingleStream):
    """Takes six channels, and looks at three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = embedding(3)

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        return super().forward(template, search[:, :3])


class Driven:
    """Drives a network as OSTrack's family; its state changes with every frame."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.boxes, self.count = network, [], 0

    def crop(self, image, side: int) -> Tensor:
        return torch.from_numpy(image[:side, :side].copy()).permute(2, 0, 1)[None] / 255

    def initialize(self, image, info) -> None:
        self.template, self.boxes = self.crop(image, TEMPLATE), [info["init_bbox"]]

    def track(self, image) -> dict:
        self.count += 1
        with torch.no_grad():
            out = self.network.forward(self.template, self.crop(image, SEARCH))
        self.boxes.append(out["boxes"][0].tolist())
        return {"target_bbox": self.boxes[-1], "best_score": out["scores"].max().item()}


class Staged(Driven):
    """Calls its network in stages, as `stages(network, template, search)` does."""

    def __init__(self, network: nn.Module, stages) -> None:
        super().__init__(network)
        self.stages = stages

    def track(self, image) -> dict:
        with torch.no_grad():
            out = self.stages(self.network, self.template, self.crop(image, SEARCH))
        return {"target_bbox": out}


class DrivenRGB(Driven):
    """Its network takes three channels."""

    def __init__(self) -> None:
        super().__init__(OfOneModality())

    def crop(self, image, side: int) -> Tensor:
        assert image.shape[-1] == 3, "expected RGB"
        return super().crop(image, side)
