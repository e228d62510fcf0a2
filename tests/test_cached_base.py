"""The tracker alone, scored on cached features: its own map and head, or a plain refusal."""

import math
from pathlib import Path

import pytest
import torch
from caches import CONCAT, QUIET, make_cache
from cases import CASES, Case
from torch import nn
from torch.utils.data import DataLoader
from training_data import Loss, attached, labels

from gmmt_fusion import Attachment
from gmmt_fusion.training import Degradation, fine_tune


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.fusions == 1 and not case.apart],
    ids=lambda case: case.name,
)
def test_the_tracker_alone_is_scored_from_a_cache(case: Case, tmp_path: Path) -> None:
    handle, loss, batch = attached(case), Loss(case), next(iter(labels()))
    for parameter in handle.head.parameters():  # another head than the tracker's
        nn.init.normal_(parameter)
    cache = make_cache(case, tmp_path / "clean", handle)
    cached = next(iter(DataLoader(cache, 2)))
    state = handle.fusion.generator.get_state()
    with torch.no_grad(), handle.disabled():
        expected = loss(handle.network, batch)
        torch.testing.assert_close(loss(cache.network(handle), cached), expected)
        features = [cached[f"feature_{i}"] for i in range(handle.fusion.modalities)]
        assert handle.fuse(features, cached["fused"]) is cached["fused"]
    assert torch.equal(handle.fusion.generator.get_state(), state)


def test_a_validation_on_degraded_features_has_no_base(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    handle.degradation = Degradation(1.0)
    cache = make_cache(CONCAT, tmp_path / "cache", handle)
    loss, loader = Loss(CONCAT), DataLoader(cache, 2)

    def validate(handle: Attachment) -> float:
        return -float(sum(loss(cache.network(handle), batch) for batch in loader))

    with pytest.warns(UserWarning, match="the tracker alone cannot be scored"):
        last = fine_tune(
            handle, loader, loss, tmp_path / "run", epochs=1, validate=validate, **QUIET
        )
    assert math.isnan(last["base"]) and math.isfinite(last["best"])
