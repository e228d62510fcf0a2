"""What makes a run repeatable: random states that are stored, batches that depend on their place.

Neither workers nor processes nor an interruption change what is loaded.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from .datasets import set_epoch, walk

Batch = Any  # whatever the user's loader yields
Key = tuple[int, int, Any]
"""(epoch, place of the sample in it, index into the user's dataset, of whatever type)."""

LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


def get_random_state(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Python's, NumPy's and PyTorch's random state and a generator's, as JSON."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (augmentations draw from it)
    tensors = {"torch": torch.get_rng_state(), "generator": generator.get_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        **{name: tensor.tolist() for name, tensor in tensors.items()},
    }


def set_random_state(
    state: Mapping[str, Any], device: torch.device, generator: torch.Generator
) -> None:
    """Set what `get_random_state` has read; a device's only where it is a GPU again."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_as_bytes(state["torch"]))
    generator.set_state(_as_bytes(state["generator"]))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(_as_bytes(state["cuda"]), device)


def _as_bytes(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.uint8, device="cpu")


@contextlib.contextmanager
def draw_from(*seeds: int) -> Iterator[None]:
    """Draw Python's, NumPy's and PyTorch's random numbers from these seeds inside the `with`.

    Those of the CPU only; afterwards they go on as if nothing had been drawn.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    _seed(*seeds)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _seed(*seeds: int) -> None:
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


class _Repeatable(Dataset[tuple[int, int, Any]]):
    """A dataset indexed by `Key`, whose augmentation depends on epoch and place alone.

    Its items are (epoch, place, sample), for `_Collation`.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, -1

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset, and those inside it that want to know."""
        if epoch != self.epoch:
            self.epoch = epoch
            set_epoch([self.dataset], epoch)

    def __getitems__(self, keys: list[Key]) -> list[tuple[int, int, Any]]:
        """A batch of samples, as loaders ask for them; random states are kept once for all."""
        samples = []
        with draw_from(self.seed):
            for epoch, place, index in keys:
                self.set_epoch(epoch)  # again in workers that stay from one epoch to the next
                _seed(self.seed, epoch, place)
                samples.append((epoch, place, self.dataset[index]))
        return samples


class _Collation:
    """A collate_fn whose random numbers, too, depend on the batch alone."""

    def __init__(self, collate: Callable[[list[Any]], Batch], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def __call__(self, items: list[tuple[int, int, Any]]) -> Batch:
        with draw_from(self.seed, *items[0][:2], 1):
            return self.collate([sample for _, _, sample in items])


class RepeatableLoader:
    """One process's part of a loader's batches, whatever its sampler, augmentation and workers.

    Batch i of an epoch goes to process i mod `processes`; where they do not come out even, the
    first batches are taken again.

    Raises:
        TypeError: no DataLoader with a batch size, over a dataset with indexes. ValueError: it is
            empty, or has a DistributedSampler.
    """

    def __init__(
        self, loader: DataLoader[Any], seed: int, process: int = 0, processes: int = 1
    ) -> None:
        sampler: Any = getattr(loader, "batch_sampler", None)  # torch's types say it is never None
        if (
            not isinstance(loader, DataLoader)
            or isinstance(loader.dataset, IterableDataset)
            or sampler is None
        ):
            raise TypeError(
                f"loader is a {type(loader).__name__}; expected a torch DataLoader with a batch "
                "size, over a dataset with __getitem__, which can be resumed in the middle of an "
                "epoch"
            )
        samplers = list(walk(sampler, loader.sampler))
        if any(isinstance(one, DistributedSampler) for one in samplers):
            raise ValueError(
                "the loader has a DistributedSampler; build it without: its batches are dealt out "
                "to the processes here"
            )
        self.batches = len(sampler)  # of an epoch, for all processes together
        if self.batches == 0:
            raise ValueError(
                f"the loader is empty: batch_size={loader.batch_size}, "
                f"drop_last={loader.drop_last}; expected one batch at least"
            )
        self._sampler, self._samplers, self._seed = sampler, samplers, seed
        self._generators = [
            generator
            for owner in (loader, *samplers)
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator)
        ]
        self._process, self._processes, self._epoch, self._first = process, processes, 0, 0
        self._dataset = _Repeatable(loader.dataset, seed)
        # a generator of its own, as the workers' seeds would be drawn from the global one
        self._loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=self,
            generator=torch.Generator(),
            collate_fn=_Collation(loader.collate_fn, seed),
            **{name: getattr(loader, name) for name in LOADER_OPTIONS},
        )

    def __len__(self) -> int:
        """Batches of an epoch for one process."""
        return -(-self.batches // self._processes)

    def load_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, from the one with number `first` on."""
        self._epoch, self._first = epoch, first
        self._dataset.set_epoch(epoch)
        set_epoch(self._samplers, epoch)
        return iter(self._loader)

    def __iter__(self) -> Iterator[list[Key]]:
        """As the batch sampler of the loader inside: the keys of those batches."""
        with draw_from(self._seed, self._epoch):
            for generator in self._generators:
                generator.manual_seed(torch.default_generator.initial_seed())
            batches = [list(batch) for batch in self._sampler]
        places = iter(range(sum(map(len, batches))))
        keys = [[(self._epoch, next(places), index) for index in batch] for batch in batches]
        mine = [
            keys[i % len(keys)]
            for i in range(self._process, len(self) * self._processes, self._processes)
        ]
        return iter(mine[self._first :])
