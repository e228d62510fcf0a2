"""A check in two gloo processes on this machine."""

import socket
from collections.abc import Callable

import torch
from torch import Tensor, distributed


def run_in_two_processes(check: Callable[[int], None]) -> None:
    """Call `check(rank)` in each; a failed assertion in one of them fails here. `check` is at
    module level.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_start, args=(port, check), nprocs=2)


def of_both(tensor: Tensor) -> list[Tensor]:
    """A tensor's value in both processes."""
    values = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(values, tensor)
    return values


def _start(rank: int, port: int, check: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    check(rank)
    distributed.barrier()
    distributed.destroy_process_group()
