"""Times and memory on one device, of functions that are interleaved."""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import (
    has_bfloat16,
)
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.model.config import PRESETS
from gmmt_fusion.model.fast_path import optimize

Row = dict[str, Any]
Functions = dict[str, Callable[[], Any]]
TINY = {"uvit": {"width": 32, "heads": 2}, "unet": {"widths": (32,), "depth": 1}}


def kilobytes(file: str, field: str) -> int:
    """A line of Linux's /proc."""
    line = next(x for x in Path("/proc", file).read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])


class Bench:
    """Times and memory on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.quick, self.seconds = options.quick, options.seconds
        torch.set_num_threads(options.threads)
        self.round_to_tf32(False)
        torch.manual_seed(0)

    def round_to_tf32(self, enabled: bool) -> None:
        """Whether a GPU rounds float32 to TF32 where it multiplies."""
        torch.set_float32_matmul_precision("high" if enabled else "highest")
        torch.backends.cudnn.allow_tf32 = enabled

    def once(self, function: Callable[[], Any]) -> float:
        self.synchronize()
        start = time.perf_counter()
        function()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def interleave(self, functions: Functions, least: int = 3) -> dict[str, list[float]]:
        """Seconds of every function in every round, after one that warms up.

        There are as many rounds as the time allows, but at least `least`; or one, where a round
        alone takes longer than twice the time.
        """
        for function in functions.values():
            self.once(function)
        round_time = sum([self.once(function) for function in functions.values()])
        times: dict[str, list[float]] = {name: [] for name in functions}
        order = list(functions.items())
        for _ in range(
            min(
                2000,
                max(1 if round_time > 2 * self.seconds else least, int(self.seconds / round_time)),
            )
        ):
            for name, function in order:
                times[name].append(self.once(function))
            order.reverse()  # none is always after the same one
        return times

    def peak(self, function: Callable[[], Any]) -> float:
        """The most memory during a call beyond what was held before it, MB."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed is used again, and not seen
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = kilobytes("self/status", "VmRSS")
        function()
        return (kilobytes("self/status", "VmHWM") - before) * 1024 / 1e6

    def matrix_product(self, dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
        """The square product with the highest rate, and its FLOP."""
        sizes = (
            (256, 512)
            if self.quick
            else (1024, 2048, 4096)
            if self.device.type == "cpu"
            else (4096, 8192)
        )
        best: tuple[float, Callable[[], Any], float] | None = None
        for size in sizes:
            a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))

            def product(a: Tensor = a, b: Tensor = b) -> Tensor:
                return a @ b

            rate = 2 * size**3 / min(self.once(product) for _ in range(3))
            if best is None or rate > best[0]:
                best = rate, product, 2.0 * size**3
        assert best is not None
        return best[1:]

    def copy(self) -> tuple[Callable[[], Any], float]:
        """A copy in memory, too large for any cache, and the bytes that it moves."""
        source = torch.ones(
            2 ** (20 if self.quick else 28 if self.device.type == "cuda" else 26),
            device=self.device,
        )
        target = torch.empty_like(source)
        return lambda: target.copy_(source), 2.0 * source.nbytes

    def fusion(
        self, preset: str, method: str = "diffusion", shape: tuple[int, int] | None = None
    ) -> GenerativeFusion:
        channels, size = shape or ((64, 8) if self.quick else (768, 16))
        tiny = {"network_config": TINY[PRESETS[preset]["network"]]} if self.quick else {}
        fusion = (
            GenerativeFusion.preset(preset, channels, size, method=method, **tiny)
            .to(self.device)
            .eval()
        )
        for parameter in fusion.network.last_layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return fusion

    def maps(self, batch: int, number: int = 2) -> list[Tensor]:
        """Feature maps of the size that TBSI and ViPT have."""
        shape = (batch, *((64, 8, 8) if self.quick else (768, 16, 16)))
        return [torch.randn(shape, device=self.device) for _ in range(number)]

    def images(self, *sides: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.rand(1, 6, side, side, device=self.device).to(dtype) for side in sides]

    def paths(self, fusion: GenerativeFusion, compiled: bool = False) -> Functions:
        """By name, what switches the fusion to an inference path."""
        whole = fusion.fused_std.dtype == torch.float32
        ways: dict[str, Row] = {"plain": {"enabled": False}, "optimised": {}}
        if whole and has_bfloat16(self.device):
            ways["bfloat16"] = {"dtype": torch.bfloat16}
        if whole and self.device.type == "cuda":
            ways["float16"] = {"dtype": torch.float16}
        if compiled and self.device.type == "cuda":
            torch.compiler.reset()  # of what was compiled for another batch
            ways["bfloat16, compiled"] = {"dtype": torch.bfloat16, "compile": "reduce-overhead"}
        paths = {}
        for name, arguments in ways.items():
            optimize(fusion, **arguments)
            paths[name] = lambda made=fusion.fast_path: setattr(fusion, "fast_path", made)
        return paths


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def summary(times: dict[str, list[float]], against: str) -> dict[str, Any]:
    """Milliseconds, and ratios to one of them."""
    return {
        name: {
            "fastest_ms": 1e3 * min(t),
            "median_ms": 1e3 * statistics.median(t),
            "rounds": len(t),
            "fastest_ratio": min(t) / min(times[against]),
            "median_ratio": statistics.median(
                a / b for a, b in zip(t, times[against], strict=True)
            ),
        }
        for name, t in times.items()
    }
