"""A GenerativeFusion at inference, without what is the same in every frame."""

import copy
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_maps
from .networks import UNet

if TYPE_CHECKING:
    from .fusion import GenerativeFusion

COMPILE_MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MOST_SIZES = 4  # copies kept; with a dtype or on a GPU each has weights of its own


class Optimized:
    """What `forward` calls after `GenerativeFusion.optimize`: copies of the fusion, one for each
    size of the maps.

    On the CPU in float32 they share its weights, but for the few that are folded. They are made
    again when weights or settings have changed, and dropped by `.train()`; they are neither copied
    nor pickled.
    """

    def __init__(
        self, fusion: "GenerativeFusion", dtype: torch.dtype | None, mode: str | None
    ) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"dtype={dtype!r}; expected a floating-point dtype, such as torch.bfloat16"
            )
        check_choice("compile", mode, COMPILE_MODES)
        self.dtype, self.mode = dtype, mode
        self.runs: dict[tuple[int, ...], Callable[[Sequence[Tensor]], Tensor]] = {}
        self.tensors: list[Tensor] = []
        self.stamp: list[Any] = []
        self.refresh(fusion, fusion.size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "runs": {}, "tensors": [], "stamp": []}

    def __call__(self, fusion: "GenerativeFusion", features: Sequence[Tensor]) -> Tensor:
        check_maps(features, None, fusion.modalities, fusion.channels)
        size = tuple(features[0].shape[-2:])
        if (
            not torch.compiler.is_compiling()
        ):  # a graph of the whole host keeps what was made before it
            self.refresh(fusion, size)
        result = self.runs.get(size, fusion.sample)(features)
        # the next replay of a CUDA graph overwrites its output, which a host may keep
        return result if self.mode is None else result.clone()

    def refresh(self, fusion: "GenerativeFusion", size: tuple[int, ...]) -> None:
        """Make the copy for maps of this size, unless there is one and all is as it was.

        Raises:
            ValueError: new noise in every frame, which cannot be folded.
        """
        if self.stamp != self._stamp(fusion):
            self.runs = {}
        if size in self.runs:
            return
        if fusion.method.noise_maps and not fusion.fixed_noise:
            raise ValueError(
                "an optimised fusion has its noise folded into the network, and fixed_noise=False "
                "draws "
                "new noise in every frame; set fusion.fixed_noise = True, or call optimize(False)"
            )
        device = fusion.fused_std.device.type
        # a frame under autocast must not round what later ones get
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            folded = fold(fusion, size, self.dtype or fusion.fused_std.dtype)
        while len(self.runs) >= MOST_SIZES:
            del self.runs[next(iter(self.runs))]
        self.runs[size] = (
            folded.sample if self.mode is None else torch.compile(folded.sample, mode=self.mode)
        )
        self.tensors = [
            t for t in chain(fusion.parameters(), fusion.buffers()) if not t.is_inference()
        ]
        self.stamp = self._stamp(fusion)

    def _stamp(self, fusion: "GenerativeFusion") -> list[Any]:
        """What differs once weights were written, moved or cast; a walk over the modules in every
        frame costs more.
        """
        return [
            fusion.steps,
            fusion.fixed_noise,
            *((t.data_ptr(), t._version) for t in self.tensors),
        ]


def fold(
    fusion: "GenerativeFusion", size: tuple[int, ...], dtype: torch.dtype
) -> "GenerativeFusion":
    """A copy for inference on maps of `size`, whose network and residual path compute in
    `dtype`.
    """
    parts = {id(t): t for t in chain(fusion.parameters(), fusion.buffers())}
    others = (
        fusion.head,
        fusion.head_state,
        fusion.optimized,
        getattr(fusion, "discriminator", None),
    )
    unused = {id(part): None for part in others}
    folded = copy.deepcopy(fusion, {**parts, **unused}).eval()
    network, method = folded.network, folded.method
    zeros = torch.zeros(
        1, fusion.modalities * fusion.channels, *size, device=fusion.fused_std.device
    )
    folded.noise = folded._noise(1, zeros[:, : fusion.channels], None)
    if method.is_one_pass(fusion.steps):
        if method.noise_maps:
            maps = torch.cat([folded.noise, zeros], dim=1)
            constant = network.first(maps.to(fusion.fused_std.dtype))
            first = network.get_submodule(network.first_layer)
            network.set_submodule(network.first_layer, FirstLayer(first, fusion.channels, constant))
        if isinstance(network, UNet):
            network.freeze_time(method.first_timestep)
    if fusion.fused_std.device.type == "cpu" and dtype == fusion.fused_std.dtype == torch.float32:
        for module in network.modules():
            if type(module) is nn.Conv2d and ProductConv2d.can_replace(module):
                module.__class__ = ProductConv2d
        return folded
    for part in (network, folded.residual):
        if part is not None:
            for module in part.modules():  # not in place: the weights are the fusion's own
                module._parameters = {
                    n: None if p is None else nn.Parameter(p.to(dtype, copy=True), False)
                    for n, p in module._parameters.items()
                }
            part.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded


class FirstLayer(nn.Module):
    """A network's first layer without the first of its input maps: what the fixed noise adds is a
    constant.
    """

    constant: Tensor

    def __init__(self, layer: Any, channels: int, constant: Tensor) -> None:
        super().__init__()
        self.channels = channels
        self.layer = copy.copy(layer)
        self.layer._parameters = {
            "weight": nn.Parameter(layer.weight[:, channels:].clone(), False),
            "bias": None,
        }
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        features = (
            x[..., self.channels :] if isinstance(self.layer, nn.Linear) else x[:, self.channels :]
        )
        return self.layer(features) + self.constant


class ProductConv2d(nn.Conv2d):
    """A convolution that is one matrix product at batch 1, where its map has fewer positions than
    channels.

    oneDNN reorders the weights in every call, which for such a map takes as long as the convolution
    itself; here the map is laid out instead. `paper-unet` takes half the time so
    (benchmarks/speed.py).
    """

    @staticmethod
    def can_replace(module: nn.Conv2d) -> bool:
        """Whether it is a plain convolution, neither grouped nor dilated, padded with zeros by a
        given width.
        """
        return (module.groups, module.dilation, module.padding_mode) == (
            1,
            (1, 1),
            "zeros",
        ) and isinstance(module.padding, tuple)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or self.out_channels < x.shape[-2] * x.shape[-1]:
            return super().forward(x)
        height = (x.shape[-2] + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[
            0
        ] + 1
        columns = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # type: ignore[arg-type]
        maps = torch.matmul(self.weight.flatten(1), columns)
        return (maps if self.bias is None else maps + self.bias[:, None]).unflatten(
            -1, (height, -1)
        )
