"""A check in two gloo processes on this machine."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


def run_in_two_processes(check: Callable[..., None], *arguments: Any) -> None:
    """Call `check(rank, *arguments)` in each; an assertion that fails in one of them fails here.

    `check` is at module level. They meet at a file, as a free port may be taken before it is used.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_start, args=(f"{folder}/store", check, arguments), nprocs=2)


def of_both(tensor: Tensor) -> list[Tensor]:
    """A tensor's value in both processes."""
    values = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(values, tensor)
    return values


def _start(rank: int, path: str, check: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(  # what accelerate reads
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    store = distributed.FileStore(path, 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    check(rank, *arguments)
    # gloo aborts a process whose peer has left while it is in a collective still
    store.set(f"done {rank}", "")
    store.wait(["done 0", "done 1"])
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # torch's threads may outlive it, and abort the interpreter's own way out now and then
    os._exit(0)
