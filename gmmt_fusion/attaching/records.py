"""What a forward of an attached host does, and what it leaves."""

import contextlib
import enum
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Fused = Tensor | Callable[[], Tensor]
"""The host's own fused map (B, C, H, W), or what computes it where it is needed."""


class Mode(enum.Enum):
    """What a forward of an attached host does."""

    HOST = "the host's own fusion and head, as if nothing were attached"
    GENERATE = "the map is generated, for the new head: inference"
    LEARN = "the map is predicted from the host's own, for the new head, and Loss_gen computed"
    RECORD = "the host's own fusion and head; what would have been generated is collected"


@dataclass(eq=False)
class Override:
    """A mode for a while, and the list that a RECORD fills."""

    mode: Mode
    recording: "list[Recorded]"


class Recorded(tuple[list[Tensor], Tensor]):
    """One map that would have been generated, as a pair (features, fused).

    features: m maps (B, C, H, W). fused: the target (B, C, H, W), of the clean inputs where they
    are degraded. Attribute host: the map (B, C, H, W) that the host's own fusion gave for these
    inputs, where it was computed, else `fused`.
    """

    host: Tensor

    def __new__(cls, features: list[Tensor], fused: Tensor, host: Tensor) -> "Recorded":
        pair = super().__new__(cls, (features, fused))
        pair.host = host
        return pair


@dataclass
class FusionCall:
    """One map that was predicted in training, and what it takes to predict it again."""

    features: list[Tensor]
    fused: Tensor
    loss: Tensor
    random_state: Tensor

    def distance(self, features: list[Tensor]) -> float:
        """Sum of squares between its features and others; infinity where their shapes differ."""
        if [f.shape for f in self.features] != [f.shape for f in features]:
            return math.inf
        pairs = zip(self.features, features, strict=True)
        return sum(float((one - other).square().sum()) for one, other in pairs)


def thread_passes() -> Any:
    """Of a thread: `current`, the pass that it is in, and `learned`, its last in training.

    Only the thread that attaches has them from the start: of a class that sets them in every thread
    torch.compile loses what a graph has written.
    """
    passes = threading.local()
    passes.current = passes.learned = None  # else the first frame differs from the next
    return passes


def without_gradient(x: Tensor, copy: bool) -> Tensor:
    """A map for training; a copy where a host may write to it, in its fusion or later."""
    return x.detach().clone() if copy else x.detach()


def in_backward() -> bool:
    """Whether autograd is running a backward, in which checkpointed parts are computed again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextlib.contextmanager
def keep_random_state(module: nn.Module) -> Iterator[None]:
    """PyTorch's random numbers on the CPU and on the module's GPU, afterwards as before."""
    like = first_parameter(module)
    gpus = [like.device] if like is not None and like.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        yield


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """The first floating-point parameter, which stands for the module's device and dtype."""
    # by hand, as it is asked for in every frame, and `parameters()` takes ten times as long
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None
