"""A pass of the network on a GPU as one launch, a CUDA graph."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_GRAPHS = 8  # of a pass; each has its own memory


class CapturedPass:
    """`run(maps)` on a GPU, captured at the first maps of a shape and replayed for later ones.

    The kernels and their results are the same. What goes is their launching, one by one, which for
    a batch of one takes longer than their work: benchmarks/results/speed_cuda.md. Run as it is
    under autocast, and where the caller captures or compiles a graph of its own.

    Args:
        run: from maps (B, C, H, W) to a map, without drawing random numbers or waiting for the GPU.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.run = run
        self.graphs: dict[
            tuple[object, ...], tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]
        ] = {}
        self.lock = threading.Lock()

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        if (
            torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cuda")
            or torch.cuda.is_current_stream_capturing()
        ):
            return self.run(maps)
        device = maps[0].device
        stream = torch.cuda.current_stream(device).stream_id  # which orders the replays
        key = stream, tuple((x.shape, x.dtype) for x in maps)
        with self.lock, torch.cuda.device(device), torch.no_grad():
            if key not in self.graphs:
                while len(self.graphs) >= MOST_GRAPHS:
                    del self.graphs[next(iter(self.graphs))]
                self.graphs[key] = self._capture(maps)
            inputs, graph, output = self.graphs[key]
            torch._foreach_copy_(inputs, list(maps))
            graph.replay()
            return output.clone()

    def _capture(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]:
        with torch.inference_mode(False):
            inputs = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in maps]
            stream: Any = torch.cuda.Stream  # untyped
            ours, theirs = stream(), torch.cuda.current_stream()
            ours.wait_stream(theirs)
            with torch.cuda.stream(ours):
                for _ in range(2):  # what libraries set up at first must not be captured
                    self.run(inputs)
            theirs.wait_stream(ours)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self.run(inputs)
        return inputs, graph, output
