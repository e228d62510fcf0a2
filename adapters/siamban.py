"""SiamBAN (Chen et al., CVPR 2020): the paper's Siamese RGB-T baseline made of it, and the adapter
for that.
"""

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import Adapter, missing_submodule
from gmmt_fusion.attaching.patching import ForwardPass, Method

Maps = Tensor | list[Tensor]
"""What the host passes around: a map (B, C, H, W), or a list of them, one a level."""


class TwoStreamBackbone(nn.Module):
    """A backbone for each modality: crops (B, 6, H, W), RGB first, to the pair of what the two
    backbones return.
    """

    def __init__(self, rgb: nn.Module, tir: nn.Module) -> None:
        super().__init__()
        self.rgb, self.tir = rgb, tir

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # build_opt_lr asks for getattr(model.backbone, "layer2"): both streams' layers, as one
            # module
            streams = self.__dict__.get("_modules", {})
            layers = [stream._modules.get(name) for stream in streams.values()]
            if not layers or None in layers:
                raise
            return nn.ModuleList(layers)

    def forward(self, images: Tensor) -> tuple[Maps, Maps]:
        if images.shape[1] != 6:
            raise ValueError(
                f"the two-stream SiamBAN got crops of shape {tuple(images.shape)}; expected (B, 6, "
                "H, W): "
                "give it frames H×W×6, such as numpy.dstack([rgb, tir]) of two 3-channel images"
            )
        rgb, tir = images.split(3, dim=1)
        return self.rgb(rgb), self.tir(tir)


class ConvolutionalFusion(nn.Module):
    """The paper's fusion block, one a level: concatenation, 3×3 convolution, BatchNorm.

    rgb, tir (B, C, H, W), or lists of one a level, → fused, of the same form. There is no ReLU, as
    the necks end in none and the head learned on signed maps.

    Args:
        norms: for each level the BatchNorm that the two necks end in. The block starts as the mean
            of the modalities, and its own BatchNorm with their mean and scale, so that it stays
            next to that mean in training mode.
    """

    def __init__(self, norms: Sequence[tuple[nn.BatchNorm2d, nn.BatchNorm2d]]) -> None:
        super().__init__()
        self.channels = [rgb.num_features for rgb, _ in norms]
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
            for c in self.channels
        )
        with torch.no_grad():
            for (convolution, norm), channels, (rgb, tir) in zip(
                self.levels, self.channels, norms, strict=True
            ):
                convolution.weight.zero_()
                convolution.weight[..., 1, 1] = torch.eye(channels).repeat(1, 2) / 2
                norm.bias.copy_((rgb.bias + tir.bias) / 2)
                norm.weight.copy_(((rgb.weight.square() + tir.weight.square()) / 2).sqrt())
                norm.running_mean.copy_(norm.bias)
                norm.running_var.copy_((norm.weight.square() - norm.eps).clamp(min=0))

    def forward(self, rgb: Maps, tir: Maps) -> Maps:
        if isinstance(rgb, Tensor):
            return self.levels[0](torch.cat([rgb, tir], dim=1))
        return [
            block(torch.cat(pair, dim=1))
            for block, *pair in zip(self.levels, rgb, tir, strict=True)
        ]


class TwoStreamNeck(nn.Module):
    """A neck for each modality, and the fusion of what they return."""

    def __init__(self, rgb: nn.Module, tir: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.rgb, self.tir, self.fusion = rgb, tir, fusion

    def forward(self, features: tuple[Maps, Maps]) -> Maps:
        rgb, tir = features
        return self.fusion(self.rgb(rgb), self.tir(tir))


class OneLevelHead(nn.Module):
    """DepthwiseBAN with the exponential on the distances, which upstream applies in MultiBAN only.

    Without it a distance to a box side may be negative, and the tracker's boxes NaN. Put it in
    place before the one-level model is trained or loaded: `model.head = OneLevelHead(model.head)`.
    It adds one parameter, `loc_scale`.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        missing = missing_submodule(head, "cls", "loc")
        if missing:
            raise ValueError(f"{type(head).__name__} has {missing}; expected a DepthwiseBAN")
        self.cls, self.loc = head.cls, head.loc
        self.loc_scale = nn.Parameter(next(head.parameters()).new_ones(1))
        self.training = head.training

    def forward(self, z_f: Tensor, x_f: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls(z_f, x_f), torch.exp(self.loc(z_f, x_f) * self.loc_scale)


def two_stream(model: nn.Module, tir_model: nn.Module | None = None) -> nn.Module:
    """Turn a SiamBAN of one modality into the paper's RGB-T baseline, in place.

    The backbone and the neck become two, and `neck.fusion` fuses what the necks return. `template`,
    `track`, `forward` and the host's tracker then work unchanged on frames H×W×6. The fusion starts
    as the mean of the modalities, so that the model tracks before stage 1.2 trains `neck.fusion`
    and the head. One level and three levels are supported.

    Args:
        model: a ModelBuilder, with its weights loaded, trained on RGB; its head stays.
        tir_model: one trained on thermal images, of which backbone and neck are copied; default:
            `model`.

    Returns:
        `model`.

    Raises:
        ValueError: a model has another structure, or a head whose distances may be negative.
    """
    sources = [model, model if tir_model is None else tir_model]
    layers = [
        _adjust_layers(source, name)
        for source, name in zip(sources, ("model", "tir_model"), strict=True)
    ]
    norms = [[layer.downsample[-1] for layer in level] for level in layers]
    if [norm.num_features for norm in norms[0]] != [norm.num_features for norm in norms[1]]:
        widths = [[norm.num_features for norm in level] for level in norms]
        raise ValueError(
            f"tir_model's neck gives {widths[1]} channels a level; expected {widths[0]} as model's"
        )
    _check_head(model.head, len(layers[0]))
    rgb, tir = (
        model,
        nn.ModuleDict(
            {part: copy.deepcopy(getattr(sources[1], part)) for part in ("backbone", "neck")}
        ),
    )
    for backbone in (rgb.backbone, tir.backbone):
        _without_lambdas(backbone)
    fusion = ConvolutionalFusion(list(zip(*norms, strict=True)))
    fusion.to(next(rgb.neck.parameters())).train(rgb.neck.training)
    for name, module in (
        ("backbone", TwoStreamBackbone(rgb.backbone, tir.backbone)),
        ("neck", TwoStreamNeck(rgb.neck, tir.neck, fusion)),
    ):
        module.training = model.training
        setattr(model, name, module)
    vars(model).pop("zf", None)  # the template of one modality
    return model


class SiamBANAdapter(Adapter):
    """For the model that `two_stream` made: the search region's map is generated, the template's
    fused by the host.

    C is 256 as published. Three levels are one fused map of 3·C channels, with the levels
    concatenated: they show the same positions, and one pass of the network costs less than three.
    """

    head = "head"
    modalities = 2

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {"neck": self.neck, "neck.fusion": self.fuse}

    def missing(self, network: nn.Module) -> str | None:
        phrase = missing_submodule(network, "backbone", "neck", "head")
        if phrase is None and not isinstance(network.get_submodule("neck"), TwoStreamNeck):
            phrase = f"'neck' ({type(network.get_submodule('neck')).__name__}) is of one modality"
            if type(network).__name__ == "ModelBuilder":
                phrase += "; call gmmt_fusion.adapters.siamban.two_stream(model) first"
        return phrase

    def channels(self, network: nn.Module) -> int | None:
        return sum(getattr(network.get_submodule("neck.fusion"), "channels", ())) or None

    def neck(
        self, current: ForwardPass, forward: Callable[..., Maps], features: tuple[Maps, Maps]
    ) -> Maps:
        current.memory["size"] = _size(features[0])
        return forward(features)

    def fuse(
        self, current: ForwardPass, forward: Callable[..., Maps], rgb: Maps, tir: Maps
    ) -> Maps:
        if _size(rgb) != current.memory.pop("size", _size(rgb)):
            return forward(
                rgb, tir
            )  # the neck has cropped the map: this is what it does to a template
        if isinstance(rgb, Tensor):
            return current.fuse([rgb, tir], lambda: forward(rgb, tir))
        sizes = {tuple(level.shape[-2:]) for level in rgb}
        if len(sizes) > 1:
            raise ValueError(
                f"the neck's levels have sizes {sorted(sizes)}; expected one size, as SiamBAN's "
                "dilated "
                "backbones give"
            )
        fused = current.fuse(
            [torch.cat(list(levels), dim=1) for levels in (rgb, tir)],
            lambda: torch.cat(forward(rgb, tir), dim=1),
        )
        return [
            level.contiguous() for level in fused.split([level.shape[1] for level in rgb], dim=1)
        ]


def _size(maps: Maps) -> torch.Size:
    return (maps if isinstance(maps, Tensor) else maps[0]).shape[-2:]


def _adjust_layers(model: nn.Module, name: str) -> list[nn.Module]:
    """The neck's AdjustLayer of every level."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name} is a {type(model).__name__}; expected the network, a ModelBuilder "
            "(tracker.model)"
        )
    reason = missing_submodule(model, "backbone", "neck", "head")
    if reason is None and isinstance(model.neck, TwoStreamNeck):
        reason = "two streams already"
    if reason is None:
        layers = [
            module for module in model.neck.modules() if type(module).__name__ == "AdjustLayer"
        ]
        if layers and all(isinstance(layer.downsample[-1], nn.BatchNorm2d) for layer in layers):
            return layers
        reason = f"a neck of class {type(model.neck).__name__}"
    raise ValueError(
        f"{name} ({type(model).__name__}) has {reason}; expected a SiamBAN of one modality: "
        "backbone, "
        "head, and a neck of class AdjustLayer or AdjustAllLayer"
    )


def _check_head(head: nn.Module, levels: int) -> None:
    kind = type(head).__name__
    if kind in ("DepthwiseBAN", "UPChannelBAN"):
        raise ValueError(
            f"the head {kind} gives distances that may be negative, and with them NaN boxes; set "
            "model.head = siamban.OneLevelHead(model.head), for a DepthwiseBAN, before it is "
            "trained or "
            "loaded"
        )
    if kind == "MultiBAN" and levels == 1:
        raise ValueError(
            "the head MultiBAN does not work with one level; set model.head = "
            "siamban.OneLevelHead(model.head.box2) before it is trained or loaded"
        )


def _without_lambdas(backbone: nn.Module) -> None:
    """Upstream's stand-ins for unused layers, `lambda x: x`, cannot be pickled; the same as modules
    can.
    """
    probe = object()
    for name, value in list(vars(backbone).items()):
        if (
            isinstance(value, types.LambdaType)
            and name.startswith("layer")
            and value(probe) is probe
        ):
            setattr(backbone, name, nn.Identity().train(backbone.training))
