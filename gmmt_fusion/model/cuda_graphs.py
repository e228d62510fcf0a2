"""A pass of the network on a GPU as one launch, a CUDA graph."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_GRAPHS = 8  # of a pass; each has its own memory
_jit: Any = torch.jit  # untyped
_capturing = threading.Lock()  # what one thread captures, another one must not disturb


class CapturedPass:
    """`run(maps)` on a GPU, captured at the first maps of a shape and replayed for later ones.

    The kernels and their results are the same. What goes is their launching, one by one, which for
    a batch of one takes longer than their work: benchmarks/results/speed_cuda.md. Run as it is
    under autocast, for more shapes than `MOST_GRAPHS`, and where the caller captures, traces or
    compiles. While the first frame is captured, no other thread may wait for the GPU.

    Args:
        run: from maps (B, C, H, W) to a map, without drawing random numbers or waiting for the GPU.
        layout: in which `run` gets its maps; they are copied for it anyway.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Tensor]], Tensor],
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.run, self.layout = run, layout
        self.graphs: dict[
            tuple[object, ...], tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]
        ] = {}
        self.lock = threading.Lock()

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        if (
            torch.compiler.is_compiling()
            or _jit.is_tracing()
            or torch.is_autocast_enabled("cuda")
            or torch.cuda.is_current_stream_capturing()
        ):
            return self.run(maps)
        device = maps[0].device
        stream = torch.cuda.current_stream(device).stream_id  # which orders the replays
        key = (device, stream, _precision(), *((x.shape, x.dtype) for x in maps))
        with self.lock, torch.cuda.device(device), torch.no_grad():
            if key not in self.graphs:
                if len(self.graphs) == MOST_GRAPHS:
                    return self.run(maps)
                with _capturing:
                    self.graphs[key] = self._capture(maps, _streams(device, stream))
            inputs, graph, output = self.graphs[key]
            torch._foreach_copy_(inputs, list(maps))
            graph.replay()
            return output.clone()

    def _capture(
        self, maps: Sequence[Tensor], streams: tuple[Any, Any]
    ) -> tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]:
        warming, capturing = streams
        with torch.inference_mode(False):
            inputs = [torch.zeros_like(x, memory_format=self.layout) for x in maps]
            warming.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warming):
                for _ in range(2):  # what libraries set up at first must not be captured
                    self.run(inputs)
            torch.cuda.current_stream().wait_stream(warming)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=capturing, capture_error_mode="thread_local"):
                output = self.run(inputs)
        return inputs, graph, output


@functools.cache
def _streams(device: torch.device, stream: int) -> tuple[Any, Any]:
    """To warm up and to capture on, for replays on a stream: libraries keep memory for each."""
    new: Any = torch.cuda.Stream  # untyped
    return new(device), new(device)


def _precision() -> tuple[object, ...]:
    """What decides which kernels are captured, and may change between frames."""
    return rounds_to_tf32(), torch.are_deterministic_algorithms_enabled()


def rounds_to_tf32() -> tuple[bool, bool]:
    """Whether a GPU rounds float32 in matrix products, and in convolutions."""
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:  # said by the newer names, after which the older ones raise
        backends: Any = torch.backends
        parts = backends.cuda.matmul, backends.cudnn.conv
        product, convolution = (part.fp32_precision == "tf32" for part in parts)
        return product, convolution
