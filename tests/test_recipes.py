"""The recipes' optimisers, and the learning rates of their schedules."""

import numpy as np
import pytest
import torch
from torch import nn

from gmmt_fusion.training import Recipe, adamw_optimizer, paper_optimizer


def read_rates(recipe: Recipe, epochs: int, steps_per_epoch: int = 1) -> list[float]:
    """The learning rate of every step."""
    optimizer, schedule = recipe([nn.Parameter(torch.zeros(1))], epochs, steps_per_epoch)
    seen = []
    for _ in range(epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_papers_recipe() -> None:
    optimizer, _ = paper_optimizer(iter([nn.Parameter(torch.zeros(1))]), 100)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD) and (
        group["momentum"],
        group["weight_decay"],
    ) == (0.9, 1e-4)
    seen = np.array(read_rates(paper_optimizer, 100))
    np.testing.assert_allclose(seen[[0, 19, 20, 99]], [0.001, 0.005, 0.005, 0.00005])
    np.testing.assert_allclose(np.diff(seen[:20]), np.diff(seen[:20])[0])  # linear
    np.testing.assert_allclose(seen[22:] / seen[21:-1], seen[22] / seen[21])  # log-linear
    for epochs, steps in ((1, 1), (2, 1), (7, 1), (3, 11)):
        few = read_rates(paper_optimizer, epochs, steps)
        assert all(0 < rate <= 0.005 for rate in few) and (
            epochs * steps == 1 or few[-1] == pytest.approx(0.00005)
        )


def test_adamw_warms_up_and_goes_to_zero() -> None:
    seen = read_rates(adamw_optimizer, 10, 10)
    assert seen[0] < seen[4] == max(seen) == pytest.approx(4e-4, rel=0.02) and seen[-1] < 1e-6
