"""Caches of tiny hosts, of inputs that the host brings itself or of images."""

from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training_data import attached, labels

from gmmt_fusion import Attachment, attach
from gmmt_fusion.training import CachedFeatures, cache_features

CONCAT = CASES[0]
QUIET: dict[str, Any] = {"progress": False}


def make_cache(
    case: Case,
    folder: Path,
    attachment: Attachment | None = None,
    loader: Any = None,
    **options: Any,
) -> CachedFeatures:
    defaults = {
        "forward": lambda network, _: case.train(network),
        "targets": lambda batch: {"label": batch["label"]},
    }
    return cache_features(
        attachment or attached(case),
        labels() if loader is None else loader,
        folder,
        **{**QUIET, **defaults, **options},
    )


class Images(Dataset[dict[str, Tensor]]):
    """Template, search and label of a sample, the search with noise on it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        search = torch.full((6, 8, 8), index / 6) + 0.1 * torch.rand(6, 8, 8)
        return {"template": torch.zeros(6, 4, 4), "search": search, "label": torch.tensor(index)}


def make_image_cache(
    folder: Path, network: nn.Module | None = None, workers: int = 0, **options: Any
) -> CachedFeatures:
    handle = attach(network or CONCAT.build(), CONCAT.make_fusion(), CONCAT.adapter())
    return cache_features(
        handle,
        DataLoader(Images(), 2, num_workers=workers),
        folder,
        shard_size=2,
        forward=lambda network, batch: network(batch["template"], batch["search"]),
        targets=lambda batch: {"label": batch["label"]},
        **{**QUIET, **options},
    )
