"""Hard-coded GPUs, on a machine without one: everything stays on the CPU."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .patches import Patches


def ignore_gpu(torch: ModuleType, patches: Patches) -> None:
    """Let `.cuda()`, `.to("cuda:0")`, `torch.cuda.set_device(0)` and NCCL mean the CPU.

    Where there is a GPU nothing changes.
    """
    if torch.cuda.is_available():
        return
    for kind in (torch.Tensor, torch.nn.Module):
        patches.set(kind, "cuda", _stay)
        patches.set(kind, "to", _to_cpu(torch, kind.to))
    for name in ("set_device", "synchronize"):
        patches.set(torch.cuda, name, _idle(getattr(torch.cuda, name)))
    patches.set(torch.cuda, "current_device", lambda: 0)
    patches.set(torch, "load", _loading_to_cpu(torch, torch.load))
    if torch.distributed.is_available():
        own = torch.distributed.init_process_group
        patches.set(torch.distributed, "init_process_group", _with_gloo(own))
        parallel = torch.nn.parallel.DistributedDataParallel
        patches.set(parallel, "__init__", _without_devices(parallel.__init__))


def _stay(self: Any, *args: Any, **kwargs: Any) -> Any:  # as Tensor.cuda and nn.Module.cuda
    return self


def _idle(own: Any) -> Any:
    @functools.wraps(own)
    def idle(*args: Any, **kwargs: Any) -> None:  # one of its own for each, by which dynamo tells
        pass

    return idle


def _is_gpu(torch: ModuleType, device: Any) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


def _to_cpu(torch: ModuleType, own: Any) -> Any:
    @functools.wraps(own)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple("cpu" if _is_gpu(torch, x) else x for x in args)
        kwargs = {name: "cpu" if _is_gpu(torch, x) else x for name, x in kwargs.items()}
        return own(self, *args, **kwargs)

    return to


def _loading_to_cpu(torch: ModuleType, own: Any) -> Any:
    @functools.wraps(own)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None or _is_gpu(torch, map_location) or callable(map_location):
            map_location = "cpu"
        return own(f, map_location, *args, **kwargs)

    return load


def _with_gloo(own: Any) -> Any:
    @functools.wraps(own)
    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        return own("gloo" if backend == "nccl" else backend, *args, **kwargs)

    return init_process_group


def _without_devices(own: Any) -> Any:
    @functools.wraps(own)
    def __init__(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        args = args[2:] and (None, None, *args[2:])  # without device_ids and output_device
        kept = {k: v for k, v in kwargs.items() if k not in ("device_ids", "output_device")}
        own(self, module, *args, **kept)

    return __init__
