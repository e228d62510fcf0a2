"""The fast path of inference, off until `Attachment.optimize`: what is the same in every frame is
computed once. With one sampling step that includes the noise and the time.
"""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_maps
from .cuda_graphs import CapturedPass, rounds_to_tf32
from .fusion import Features, GenerativeFusion
from .networks import Block, UNet, UViT

COMPILE_MODES = (
    None,
    "default",
    "reduce-overhead",
    "max-autotune",
    "max-autotune-no-cudagraphs",
)
CAPTURED_MODES = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}
"""Without a CUDA graph of torch.compile's own, whose guards are checked in every frame."""
LEAST_WEIGHTS = 2**21  # of a convolution that is better a matrix product
MOST_SIZES = 4  # copies kept; with a dtype or on a GPU each has weights of its own


def optimize(
    fusion: GenerativeFusion,
    enabled: bool = True,
    *,
    dtype: torch.dtype | None = None,
    compile: str | None = None,
) -> None:
    """Make `fusion.forward` faster in eval mode, or as it was; see `Attachment.optimize`."""
    fusion.fast_path = FoldedFusion(fusion, dtype, compile) if enabled else None


class FoldedFusion:
    """The `FastPath` of a fusion: copies of it, one for each size of the maps.

    On the CPU in float32 they share its weights, but for the few that are folded. They are made
    again when weights or settings have changed, and dropped by `.train()`; they are neither copied
    nor pickled.
    """

    def __init__(
        self, fusion: GenerativeFusion, dtype: torch.dtype | None, mode: str | None
    ) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"dtype={dtype!r}; expected a floating-point dtype, such as torch.bfloat16"
            )
        check_choice("compile", mode, COMPILE_MODES)
        self.dtype, self.mode = dtype, mode
        self.forget()
        self.refresh(fusion, fusion.size)

    def forget(self) -> None:
        """Drop all copies; the next frame makes one anew."""
        self.runs: dict[tuple[int, ...], Callable[[Features], Tensor]] = {}
        self.tensors: list[Tensor] = []
        self.stamp: list[Any] = []  # numbers, compared as a whole
        self.made_for: Any = None  # device and dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "runs": {}, "tensors": [], "stamp": [], "made_for": None}

    def __call__(self, fusion: GenerativeFusion, features: Features) -> Tensor:
        check_maps(features, None, fusion.modalities, fusion.channels)
        size = tuple(features[0].shape[-2:])
        like = fusion.fused_std
        # a graph of the whole host keeps what was made before it
        if not torch.compiler.is_compiling():
            self.refresh(fusion, size)
        run = self.runs.get(size) if self.made_for == (like.device, like.dtype) else None
        result: Tensor = fusion.sample(features) if run is None else run(features)
        # the next replay of torch.compile's CUDA graph overwrites its output, which a host may keep
        return result if self.mode is None or isinstance(run, CapturedPass) else result.clone()

    def refresh(self, fusion: GenerativeFusion, size: tuple[int, ...]) -> None:
        """Make the copy for maps of this size, unless there is one and all is as it was.

        Raises:
            ValueError: new noise in every frame, which cannot be folded.
        """
        made_for = fusion.fused_std.device, fusion.fused_std.dtype
        if self.stamp != self._stamp(fusion) or self.made_for != made_for:
            self.runs = {}
        if size in self.runs:
            return
        if fusion.method.noise_maps and not fusion.fixed_noise:
            raise ValueError(
                "an optimised fusion has its noise folded into the network, and fixed_noise=False "
                "draws new noise in every frame; set fusion.fixed_noise = True, or call "
                "optimize(False)"
            )
        device = fusion.fused_std.device.type
        # a frame under autocast must not round what later ones get
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            folded = fold(fusion, size, self.dtype or fusion.fused_std.dtype)
        while len(self.runs) >= MOST_SIZES:
            del self.runs[next(iter(self.runs))]
        run: Any = folded.sample
        is_captured = device == "cuda" and folded.method.is_one_pass(folded.steps)
        if self.mode is not None:
            mode = CAPTURED_MODES.get(self.mode, self.mode) if is_captured else self.mode
            run = torch.compile(run, mode=mode)
        if is_captured:
            run = CapturedPass(run, fast_layout(self.dtype or fusion.fused_std.dtype))
        self.runs[size] = run
        tensors = chain(fusion.parameters(), fusion.buffers())
        self.tensors = [t for t in tensors if not t.is_inference()]
        self.stamp, self.made_for = self._stamp(fusion), made_for

    def _stamp(self, fusion: GenerativeFusion) -> list[Any]:
        """What differs once weights were written, moved or cast.

        A walk over the modules in every frame would cost more.
        """
        versions = ((t.data_ptr(), t._version) for t in self.tensors)
        return [fusion.steps, fusion.fixed_noise, *versions]


def fold(fusion: GenerativeFusion, size: tuple[int, ...], dtype: torch.dtype) -> GenerativeFusion:
    """A copy for maps of `size`, whose network and residual path compute in `dtype`."""
    like = fusion.fused_std
    folded = _copy(fusion)
    folded.noise = folded._starting_noise(size)
    if folded.method.is_one_pass(fusion.steps):
        _fold_constants(folded, size)
    if like.device.type == "cpu" and dtype == like.dtype == torch.float32:
        for module in folded.network.modules():
            if ProductConv2d.can_replace(module):
                module.__class__ = ProductConv2d
        return folded
    for part in (folded.network, folded.residual):
        if part is not None:
            _convert(part, dtype, like.device.type)
    return folded


def _copy(fusion: GenerativeFusion) -> GenerativeFusion:
    """The same modules over the same tensors, without head and discriminator."""
    shared = {id(t): t for t in chain(fusion.parameters(), fusion.buffers())}
    unused = fusion.head, fusion.head_state, fusion.fast_path, fusion.discriminator
    return copy.deepcopy(fusion, {**shared, **{id(part): None for part in unused}}).eval()


def _fold_constants(folded: GenerativeFusion, size: tuple[int, ...]) -> None:
    """What the fixed noise and the one timestep add, computed once."""
    network, method, like = folded.network, folded.method, folded.fused_std
    if method.noise_maps:
        zeros = like.new_zeros(1, folded.modalities * folded.channels, *size)
        constant = network.first(torch.cat([folded.noise.to(like.dtype), zeros], dim=1))
        first: Any = network.get_submodule(network.first_layer)
        ours = folded.out_channels
        of_noise = first.weight.shape[1] * ours // (ours + folded.modalities * folded.channels)
        network.set_submodule(network.first_layer, FirstLayer(first, of_noise, constant))
        folded.noise_folded = True
    if isinstance(network, UNet | UViT):  # RAW may have any network
        network.freeze_time(method.last_timestep)


def fast_layout(dtype: torch.dtype) -> torch.memory_format:
    """The memory format that cuDNN convolves without a copy: channels last, but in float32 that is
    not rounded to TF32.
    """
    whole = dtype == torch.float32 and not rounds_to_tf32()[1]
    return torch.contiguous_format if whole else torch.channels_last


def _convert(part: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Another dtype and memory format, but not in place: the weights are the fusion's own."""
    for module in part.modules():
        module._parameters = {
            name: None if p is None else nn.Parameter(p.to(dtype, copy=True), False)
            for name, p in module._parameters.items()
        }
    part.to(dtype=dtype)
    halves = device == "cuda" and dtype.itemsize == 2
    for module in part.modules():
        if isinstance(module, nn.Conv2d | FirstLayer | UViT):  # no network of a user's own
            module.to(memory_format=fast_layout(dtype))  # type: ignore[call-overload]
        # and no subclass, nor one of reparametrised layers
        if type(module) is Block and type(module.qkv) is type(module.proj) is nn.Linear and halves:
            module.pad_heads(8)


class FirstLayer(nn.Module):
    """A network's first layer without the map of noise: what fixed noise adds is a constant.

    Args:
        layer: the network's own.
        of_noise: how many of its input channels, the first, are of noise.
        constant: what it gives for the noise and features of zero.
    """

    constant: Tensor

    def __init__(self, layer: Any, of_noise: int, constant: Tensor) -> None:
        super().__init__()
        self.layer = copy.copy(layer)
        self.layer._parameters = {
            "weight": nn.Parameter(layer.weight[:, of_noise:].clone(), False),
            "bias": None,
        }
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.constant
        return result


class ProductConv2d(nn.Conv2d):
    """A large convolution that is one matrix product at batch 1, on maps of few positions.

    oneDNN reorders the weights in every call. Where they do not fit a core's cache that takes
    longer than the convolution itself, and here the map is laid out instead: `paper-unet` takes
    half the time so (benchmarks/speed.py). Where they do, laying out the map takes longer.
    """

    @staticmethod
    def can_replace(module: nn.Module) -> bool:
        """Whether it is a plain, large convolution, padded with zeros by a given width."""
        if type(module) is not nn.Conv2d or isinstance(module.padding, str):
            return False
        if module.weight.numel() < LEAST_WEIGHTS:
            return False
        return (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1 or self.out_channels < x.shape[-2] * x.shape[-1]:
            return super().forward(x)
        padding = int(self.padding[0]), int(self.padding[1])
        columns = F.unfold(x, self.kernel_size, padding=padding, stride=self.stride)
        maps = torch.matmul(self.weight.flatten(1), columns)
        maps = maps if self.bias is None else maps + self.bias[:, None]
        height = (x.shape[-2] + 2 * padding[0] - self.kernel_size[0]) // self.stride[0] + 1
        return maps.reshape(*maps.shape[:2], height, -1)
