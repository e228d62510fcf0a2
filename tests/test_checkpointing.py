"""A fusion inside of activation checkpointing learns what it learns without."""

import pytest
import torch
from cases import CASES
from tiny_hosts import CHANNELS, stream
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmmt_fusion import attach
from gmmt_fusion.adapters import ModuleAdapter

CONCAT = CASES[0]


def search() -> Tensor:
    return torch.rand(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.fusion = nn.Conv2d(16, 16, 1), nn.Conv2d(16, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(self.mix(x))


class CheckpointedTracker(nn.Module):
    """Two fusions, each in a part that is computed again in the backward."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.rgb, self.tir = stream(), stream()
        self.neck, self.head = Neck(), nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, search: Tensor) -> Tensor:
        maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)

        def branch(x: Tensor) -> Tensor:
            if self.reentrant is None:
                return self.neck(x)
            return checkpoint(self.neck, x, use_reentrant=self.reentrant)

        return self.head(branch(maps)) + self.head(branch(0.5 * maps))


def gradients(reentrant: bool | None, method: str) -> tuple[Tensor, list[Tensor | None]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CheckpointedTracker(reentrant)
    handle = attach(
        network, CONCAT.make_fusion(method=method), ModuleAdapter("neck.fusion", "head")
    )
    out = network.train()(search())
    loss = out.square().mean() + 5 * handle.generative_loss
    loss.backward()
    return loss.detach(), [p.grad for p in handle.parameters()]


@pytest.mark.parametrize("method", ["diffusion", "cgan", "raw"])
def test_checkpointing_gives_the_same_gradient(method: str) -> None:
    expected, plain = gradients(None, method)
    loss, again = gradients(False, method)
    assert torch.equal(loss, expected)
    assert any(g is not None and g.abs().sum() > 0 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_gradients_off_around_the_fusion_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gradients off inside a training forward.*use_reentrant"):
        gradients(True, "raw")
