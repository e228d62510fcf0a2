"""A user's loader made repeatable: a batch depends on a seed, the epoch and its place in it, and on nothing else.

Neither workers nor processes nor an interruption change what is loaded.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's random numbers on the CPU from these seeds for a while, then as they were."""
    # the legacy generator is the one that users' augmentations draw from
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class _Repeatable(Dataset):
    """A dataset indexed by (epoch, place in the epoch, index), the augmentation drawn from the first two."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int, Any]) -> Any:
        epoch, place, index = key
        with seeded(self.seed, epoch, place):
            return self.dataset[index]


class RepeatableLoader:
    """One process's share of a loader's batches; whatever its sampler, augmentation, collation and workers are.

    Batch i of the epoch goes to process i mod `processes`; where they do not come out even, the first batches are
    taken again.

    Raises:
        TypeError, ValueError: no DataLoader over a dataset with indexes, none of its batches, or already shared out.
    """

    def __init__(self, loader: Any, seed: int, process: int = 0, processes: int = 1) -> None:
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_sampler:
            raise TypeError(f"loader is a {type(loader).__name__}; expected a torch DataLoader with a batch size, over a "
                            "dataset with __getitem__ and __len__: an epoch is resumed in its middle")
        if isinstance(loader.sampler, DistributedSampler):
            raise ValueError("the loader has a DistributedSampler; build it without, its batches are shared out here")
        self.batches = len(loader.batch_sampler)
        if self.batches == 0:
            raise ValueError(f"the loader is empty: {len(loader.dataset)} samples, batch_size={loader.batch_size}, "
                             f"drop_last={loader.drop_last}")
        self._loader, self._seed, self._process, self._processes = loader, seed, process, processes
        self._epoch, self._first = 0, 0
        same = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
                "prefetch_factor", "persistent_workers")
        # a generator of its own: workers' seeds would be drawn from the global one
        self._repeatable: DataLoader = DataLoader(_Repeatable(loader.dataset, seed), batch_sampler=self._keys(),
                                                  generator=torch.Generator(),
                                                  **{name: getattr(loader, name) for name in same})

    def __len__(self) -> int:
        """Batches of an epoch for one process."""
        return -(-self.batches // self._processes)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """This process's batches of an epoch, from the one with number `first` on."""
        self._epoch, self._first = epoch, first
        return iter(self._repeatable)

    def _keys(self) -> "_Keys":
        return _Keys(self)

    def keys(self) -> Iterator[list[tuple[int, int, Any]]]:
        with seeded(self._seed, self._epoch):
            if isinstance(generator := self._loader.generator, torch.Generator):
                generator.manual_seed(torch.default_generator.initial_seed())
            batches = [list(batch) for batch in self._loader.batch_sampler]
        places = iter(range(sum(map(len, batches))))
        keyed = [[(self._epoch, next(places), index) for index in batch] for batch in batches]
        mine = [keyed[i % len(keyed)] for i in range(self._process, len(self) * self._processes, self._processes)]
        yield from mine[self._first:]


class _Keys:
    """The batch sampler of a RepeatableLoader: asked anew for every epoch."""

    def __init__(self, loader: RepeatableLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int, Any]]]:
        return self.loader.keys()
