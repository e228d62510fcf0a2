"""Models of a real checkout of siamban."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from siamban_host import CHECKOUT, build, configure, settled
from torch import Tensor, nn

from gmmt_fusion.adapters import siamban


@pytest.fixture(scope="module")
def siamban_host() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT))
        # hard-coded in ModelBuilder.forward and its losses
        patch.setattr(Tensor, "cuda", lambda self, *args, **kwargs: self)
        yield


@pytest.fixture(scope="module")
def singles(siamban_host: None) -> Callable[[int, int], nn.Module]:
    """Fresh copies of upstream's ModelBuilder, by levels and seed, with that variant's config."""
    made: dict[tuple[int, int], nn.Module] = {}

    def single(levels: int, seed: int = 0) -> nn.Module:
        configure(levels)
        if (levels, seed) not in made:
            made[levels, seed] = build(levels, seed)
        return copy.deepcopy(made[levels, seed])

    return single


@pytest.fixture(scope="module")
def pairs(singles: Any) -> Callable[[int], nn.Module]:
    """Fresh copies of a two-stream model of two different ones, by levels."""
    made: dict[int, nn.Module] = {}

    def pair(levels: int) -> nn.Module:
        configure(levels)
        if levels not in made:
            made[levels] = settled(siamban.two_stream(singles(levels), singles(levels, 1)))
        return copy.deepcopy(made[levels])

    return pair
