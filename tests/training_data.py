"""Loaders and tracking losses for the hosts of `cases`, which bring their own two samples."""

from typing import Any

import torch
from cases import Case
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gmmt_fusion import Attachment, attach


class Labels(Dataset[dict[str, Tensor]]):
    """Numbers to learn; `noise` is an augmentation that draws from the global random numbers."""

    def __init__(self, length: int = 8, noise: float = 0.0) -> None:
        self.length, self.noise = length, noise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"label": torch.tensor(index / 10) + self.noise * torch.rand(())}


def labels(
    length: int = 8, batch_size: int = 2, noise: float = 0.0, **options: Any
) -> DataLoader[Any]:
    return DataLoader(Labels(length, noise), batch_size, **options)


def attached(case: Case, **options: Any) -> Attachment:
    return attach(case.build(), case.make_fusion(**options), case.adapter())


class Loss:
    """Loss_track, on whatever the host or, from a cache, its head returns."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        out = network(batch) if "fused" in batch else self.case.train(network)
        if isinstance(out, tuple | list):
            out = out[0]
        if isinstance(out, dict):
            out = out["score_map"] if "score_map" in out else out["scores"]
        return (out.flatten(1).mean(dim=1) - batch["label"].to(out.device)).square().mean()


def weights(attachment: Attachment) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in attachment.fusion.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    different = [name for name in one if not torch.equal(one[name].cpu(), other[name].cpu())]
    assert one.keys() == other.keys() and not different, different
