"""SiamBAN (Chen et al., CVPR 2020): the paper's Siamese RGB-T baseline of it, and its adapter."""

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import Adapter, missing_submodule
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass

Maps = Tensor | list[Tensor]
"""What the host passes around: a map (B, C, H, W), or a list of them, one a level."""


class TwoStreamBackbone(nn.Module):
    """A backbone for each modality: crops (B, 6, H, W), RGB first, to the pair of their outputs."""

    def __init__(self, rgb: nn.Module, tir: nn.Module) -> None:
        super().__init__()
        self.rgb, self.tir = rgb, tir
        for stream in (rgb, tir):
            _without_lambdas(stream)

    def __getattr__(self, name: str) -> Any:  # as nn.Module's
        try:
            return super().__getattr__(name)
        except AttributeError:
            # build_opt_lr asks for getattr(model.backbone, "layer2"): both streams', as one module
            streams = self.__dict__.get("_modules", {})
            layers = [stream._modules.get(name) for stream in streams.values()]
            if not layers or None in layers:
                raise
            return nn.ModuleList(layers)

    def forward(self, images: Tensor) -> tuple[Maps, Maps]:
        if images.shape[1] != 6:
            raise ValueError(
                f"the two-stream SiamBAN got crops of shape {tuple(images.shape)}; expected "
                "(B, 6, H, W): give it frames H×W×6, such as numpy.dstack([rgb, tir]) of two "
                "3-channel images"
            )
        rgb, tir = images.chunk(2, dim=1)
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
        self.levels = nn.ModuleList(_mean_of(rgb, tir) for rgb, tir in norms)

    def forward(self, rgb: Maps, tir: Maps) -> Maps:
        levels = zip(self.levels, _levels(rgb), _levels(tir), strict=True)
        fused = [cast(Tensor, block(torch.cat(pair, dim=1))) for block, *pair in levels]
        return fused[0] if isinstance(rgb, Tensor) else fused


class TwoStreamNeck(nn.Module):
    """A neck for each modality, and the fusion of what they return.

    Args:
        fusion: by default a `ConvolutionalFusion`, by the BatchNorms that the two necks end in.
        frozen: the necks stay as they are, also in training mode, as in the paper's stage 1.2.
    """

    def __init__(
        self,
        rgb: nn.Module,
        tir: nn.Module,
        fusion: nn.Module | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.rgb, self.tir, self.frozen = rgb, tir, frozen
        self.fusion = ConvolutionalFusion(_norms_of(rgb, tir)) if fusion is None else fusion
        if frozen:
            rgb.requires_grad_(False)
            tir.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> "TwoStreamNeck":
        super().train(mode)
        if self.frozen:
            self.rgb.eval()
            self.tir.eval()
        return self

    def forward(self, features: tuple[Maps, Maps]) -> Maps:
        rgb, tir = features
        return cast(Maps, self.fusion(self.rgb(rgb), self.tir(tir)))


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
        self.cls, self.loc = head.get_submodule("cls"), head.get_submodule("loc")
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
    tir_model = model if tir_model is None else tir_model
    rgb_norms, tir_norms = _neck_norms(model, "model"), _neck_norms(tir_model, "tir_model")
    widths = [[norm.num_features for norm in norms] for norms in (rgb_norms, tir_norms)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"tir_model's neck gives {widths[1]} channels a level; expected {widths[0]} as model's"
        )
    _check_head(model.get_submodule("head"), len(rgb_norms))
    backbone, neck = model.get_submodule("backbone"), model.get_submodule("neck")
    tir_backbone = copy.deepcopy(tir_model.get_submodule("backbone"))
    tir_neck = copy.deepcopy(tir_model.get_submodule("neck"))
    fusion = ConvolutionalFusion(list(zip(rgb_norms, tir_norms, strict=True)))
    like = next(neck.parameters())
    fusion.to(like.device, like.dtype).train(neck.training)
    two_streams: dict[str, nn.Module] = {
        "backbone": TwoStreamBackbone(backbone, tir_backbone),
        "neck": TwoStreamNeck(neck, tir_neck, fusion),
    }
    for name, module in two_streams.items():
        module.training = model.training
        setattr(model, name, module)
    vars(model).pop("zf", None)  # the template of one modality
    return model


def load_streams(model: nn.Module, rgb: Mapping[str, Tensor], tir: Mapping[str, Tensor]) -> None:
    """Load the weights of two models of one modality into a two-stream model, as `two_stream` does.

    Its fusion starts as the mean of the modalities, its head as that of `rgb`.

    Args:
        rgb, tir: their `state_dict`s; each of backbone, neck and head.

    Raises:
        ValueError: the model has one stream. RuntimeError: weights of another structure, by name.
    """
    neck = model.get_submodule("neck")
    if not isinstance(neck, TwoStreamNeck):
        raise ValueError(
            f"'neck' ({type(neck).__name__}) is of one modality, and the weights are of two; "
            "expected a model that `two_stream` made"
        )
    for stream, weights in (("rgb", rgb), ("tir", tir)):
        for part in ("backbone", "neck"):
            model.get_submodule(f"{part}.{stream}").load_state_dict(_part(weights, part))
    model.get_submodule("head").load_state_dict(_part(rgb, "head"))
    fusion = ConvolutionalFusion(_norms_of(neck.rgb, neck.tir))
    neck.fusion.load_state_dict(fusion.state_dict())


class SiamBANAdapter(Adapter):
    """For the model that `two_stream` made: of the search region's map, which is generated.

    The template's is fused by the host. C is 256 as published. Three levels are one fused map of
    3·C channels, with the levels concatenated: they show the same positions, and one pass of the
    network costs less than three.
    """

    head = "head"
    modalities = 2
    size = 31  # of the search map, with siamban's search regions of 255 pixels

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
        channels: Sequence[int] = getattr(network.get_submodule("neck.fusion"), "channels", ())
        return sum(channels) or None

    def neck(
        self, current: ForwardPass, forward: Callable[..., Maps], features: tuple[Maps, Maps]
    ) -> Maps:
        current.memory["size"] = _size(features[0])
        return forward(features)

    def fuse(
        self, current: ForwardPass, forward: Callable[..., Maps], rgb: Maps, tir: Maps
    ) -> Maps:
        if _size(rgb) != current.memory.pop("size", _size(rgb)):
            return forward(rgb, tir)  # the neck has cropped the map, as it does a template's
        if isinstance(rgb, Tensor) and isinstance(tir, Tensor):
            return current.fuse([rgb, tir], lambda: cast(Tensor, forward(rgb, tir)))
        sizes = {tuple(level.shape[-2:]) for level in rgb}
        if len(sizes) > 1:
            raise ValueError(
                f"the neck's levels have sizes {sorted(sizes)}; expected one size, as SiamBAN's "
                "dilated backbones give"
            )
        fused = current.fuse(
            [torch.cat(_levels(maps), dim=1) for maps in (rgb, tir)],
            lambda: torch.cat(_levels(forward(rgb, tir)), dim=1),
        )
        levels = torch.split(fused, [level.shape[1] for level in rgb], dim=1)
        return [level.contiguous() for level in levels]


def _levels(maps: Maps) -> list[Tensor]:
    return [maps] if isinstance(maps, Tensor) else maps


def _size(maps: Maps) -> torch.Size:
    return _levels(maps)[0].shape[-2:]


def _mean_of(rgb: nn.BatchNorm2d, tir: nn.BatchNorm2d) -> nn.Sequential:
    """One level's block of `ConvolutionalFusion`, by what the modalities' necks end in."""
    channels = rgb.num_features
    convolution = nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(channels)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # it keeps them, being made so
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[..., 1, 1] = torch.eye(channels).repeat(1, 2) / 2
        norm.bias.copy_((rgb.bias + tir.bias) / 2)
        norm.weight.copy_(((rgb.weight.square() + tir.weight.square()) / 2).sqrt())
        mean.copy_(norm.bias)
        variance.copy_((norm.weight.square() - norm.eps).clamp(min=0))
    return nn.Sequential(convolution, norm)


def _last_norms(neck: nn.Module) -> list[nn.BatchNorm2d]:
    """What each AdjustLayer of a neck ends in; empty where one ends in something else."""
    layers = [m for m in neck.modules() if type(m).__name__ == "AdjustLayer"]
    last = [list(layer.get_submodule("downsample").children())[-1] for layer in layers]
    norms = [module for module in last if isinstance(module, nn.BatchNorm2d)]
    return norms if len(norms) == len(layers) else []


def _norms_of(rgb: nn.Module, tir: nn.Module) -> list[tuple[nn.BatchNorm2d, nn.BatchNorm2d]]:
    """For each level the BatchNorms that two necks end in."""
    return list(zip(_last_norms(rgb), _last_norms(tir), strict=True))


def _part(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one submodule, by their names inside it."""
    start = f"{name}."
    return {key[len(start) :]: value for key, value in weights.items() if key.startswith(start)}


def _neck_norms(model: nn.Module, name: str) -> list[nn.BatchNorm2d]:
    """The BatchNorm that a model's neck ends in, of every level."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{name} is a {type(model).__name__}; expected the network, a ModelBuilder "
            "(tracker.model)"
        )
    reason = missing_submodule(model, "backbone", "neck", "head")
    if reason is None:
        neck = model.get_submodule("neck")
        norms = _last_norms(neck)
        if norms and not isinstance(neck, TwoStreamNeck):
            return norms
        reason = (
            "two streams already"
            if isinstance(neck, TwoStreamNeck)
            else f"a neck of class {type(neck).__name__}"
        )
    raise ValueError(
        f"{name} ({type(model).__name__}) has {reason}; expected a SiamBAN of one modality: "
        "backbone, head, and a neck of class AdjustLayer or AdjustAllLayer"
    )


def _check_head(head: nn.Module, levels: int) -> None:
    kind = type(head).__name__
    if kind in ("DepthwiseBAN", "UPChannelBAN"):
        raise ValueError(
            f"the head {kind} gives distances that may be negative, and with them NaN boxes; set "
            "model.head = siamban.OneLevelHead(model.head), for a DepthwiseBAN, before it is "
            "trained or loaded"
        )
    if kind == "MultiBAN" and levels == 1:
        raise ValueError(
            "the head MultiBAN does not work with one level; set model.head = "
            "siamban.OneLevelHead(model.head.box2) before it is trained or loaded"
        )


def _without_lambdas(backbone: nn.Module) -> None:
    """Modules in place of upstream's `lambda x: x` for unused layers, which cannot be pickled."""
    probe = object()
    for name, value in list(vars(backbone).items()):
        if (
            isinstance(value, types.LambdaType)
            and name.startswith("layer")
            and value(probe) is probe
        ):
            setattr(backbone, name, nn.Identity().train(backbone.training))
