"""Batches depend on their place alone, whatever draws random numbers on the way."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler
from training_data import Labels, labels

from gmmt_fusion.training.repeatable import RepeatableLoader


def jittered(samples: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([sample["label"] + 100 * torch.rand(()) for sample in samples])


def own_generator(sampler: Any, *arguments: Any, **options: Any) -> Any:
    return sampler(*arguments, generator=torch.Generator(), **options)


LOADERS = {
    "global": lambda **options: labels(shuffle=True, **options),
    "loader's": lambda **options: labels(shuffle=True, generator=torch.Generator(), **options),
    "sampler's": lambda **options: labels(
        sampler=own_generator(RandomSampler, Labels()), **options
    ),
    "weighted": lambda **options: labels(
        sampler=own_generator(WeightedRandomSampler, torch.ones(8), 8), **options
    ),
    "batch sampler's": lambda **options: DataLoader(
        Labels(),
        batch_sampler=BatchSampler(own_generator(RandomSampler, Labels()), 2, False),
        **options,
    ),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("build", LOADERS.values(), ids=LOADERS)
def test_a_batch_does_not_depend_on_what_was_loaded_before(build: Any, workers: int) -> None:
    def loader() -> RepeatableLoader:
        return RepeatableLoader(build(collate_fn=jittered, num_workers=workers), seed=3)

    whole = loader()
    epochs = [torch.stack(list(whole.load_epoch(epoch))) for epoch in range(2)]
    assert not torch.equal(*epochs)
    resumed = torch.stack(list(loader().load_epoch(1, first=1)))
    assert torch.equal(resumed, epochs[1][1:])
