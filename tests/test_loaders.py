"""Loaders of all kinds: whoever wants to know the epoch is told, caches are found anywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from caches import make_cache
from cases import CASES
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset
from training_data import Labels, Loss, attached, labels
from training_runs import train

CONCAT = CASES[0]


class Told:
    """A sampler or dataset that shuffles by its own epoch."""

    def __init__(self, inner: Any = None) -> None:
        self.sampler, self.epoch, self.told = inner, 0, []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        return iter(range(8)) if self.sampler is None else iter(self.sampler)


class ToldData(Told):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": torch.tensor(index / 10), "epoch": self.epoch}


def batch_sampler(inner: Any) -> DataLoader[Any]:
    return DataLoader(Labels(), batch_sampler=BatchSampler(inner, 2, False))


WANT_EPOCHS: dict[str, Any] = {
    "sampler": lambda told: DataLoader(Labels(), 2, sampler=told),
    "of the batch sampler": batch_sampler,
    "two deep": lambda told: batch_sampler(Told(told)),
    "dataset": lambda told: DataLoader(ToldData(), 2),
}


@pytest.mark.parametrize("name", ["sampler", "of the batch sampler", "two deep"])
def test_samplers_are_told_the_epoch(name: str, tmp_path: Path) -> None:
    told = Told(RandomSampler(Labels()))
    train(tmp_path, loader=WANT_EPOCHS[name](told), epochs=2)
    train(tmp_path, loader=WANT_EPOCHS[name](told), epochs=3)
    assert told.told == [0, 1, 2]


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "persistent_workers": True}], ids=str)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Subset(x, range(8)), lambda x: x + x])
def test_datasets_are_told_the_epoch(wrap: Any, workers: Any, tmp_path: Path) -> None:
    class Data(torch.utils.data.Dataset[Any], ToldData):  # type: ignore[misc]
        __getitem__ = ToldData.__getitem__

    seen = []

    def loss(network: nn.Module, batch: Any) -> Any:
        seen.append(set(batch["epoch"].tolist()))
        return Loss(CONCAT)(network, batch)

    loader = DataLoader(wrap(Data()), 2, **workers)
    train(tmp_path, loader=loader, epochs=3, tracking_loss=loss)
    assert seen == sorted(seen, key=list) and seen[0] == {0} and seen[-1] == {2}


def test_several_caches(tmp_path: Path) -> None:
    one, other = (make_cache(CONCAT, tmp_path / name, loader=labels(8)) for name in "ab")
    calls: list[int] = []
    handle = attached(CONCAT)
    handle.network.register_forward_pre_hook(lambda *_: calls.append(1))
    both = Subset(one + Subset(other, range(4)), range(10))
    train(tmp_path / "run", handle, DataLoader(both, 2))
    assert not calls  # the host was not needed
    half = make_cache(CONCAT, tmp_path / "half", dtype="float16")
    for dataset, message in ((one + half, "dtype is None there"), (one + Labels(), "beside them")):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "other", loader=DataLoader(dataset, 2))
    with pytest.raises(ValueError, match=r"another training: .*(dataset|cache)"):
        train(tmp_path / "run", loader=DataLoader(Subset(one + one, range(10)), 2), epochs=2)
