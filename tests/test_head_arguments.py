"""A head may take more than the map, by position or by name: over all hosts of the table."""

from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

from gmmt_fusion import attach

EXTRA = 17.0


def widen(head: nn.Module, by_name: bool) -> None:
    """The host calls its head with one argument more, which the head's forward takes."""
    own = type(head)

    def forward(self: Any, *args: Any, gt_score_map: Any = None, **kwargs: Any) -> Any:
        if not by_name:
            *args, gt_score_map = args
        assert gt_score_map == EXTRA
        self.calls = getattr(self, "calls", 0) + 1
        return own.forward(self, *args, **kwargs)

    head.__class__ = type(own.__name__, (own,), {"forward": forward})

    def add(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if by_name:
            return args, {**kwargs, "gt_score_map": EXTRA}
        return (*args, EXTRA), kwargs

    head.register_forward_pre_hook(add, with_kwargs=True)


def name_the_map(head: nn.Module) -> None:
    """The host gives its head the map by name."""
    own = type(head)

    def forward(self: Any, *args: Any, feature: Tensor | None = None, **kwargs: Any) -> Any:
        return own.forward(self, *args, *([] if feature is None else [feature]), **kwargs)

    head.__class__ = type(own.__name__, (own,), {"forward": forward})

    def rename(_: nn.Module, args: Any, kwargs: Any) -> Any:
        alone = bool(args) and all(x is None for x in args[1:])
        return ((), {**kwargs, "feature": args[0]}) if alone else (args, kwargs)

    head.register_forward_pre_hook(rename, with_kwargs=True)


# SeqTrackv2's is not called at test time, but by its own inference; SumAdapter is a user's own, for
# one host
CALLED = [case for case in CASES if case.name not in ("seqtrack", "sum")]


@pytest.mark.parametrize("by_name", [False, True], ids=["by position", "by name"])
@pytest.mark.parametrize("case", CALLED, ids=lambda case: case.name)
def test_more_arguments_reach_the_new_head(case: Case, by_name: bool) -> None:
    plain = case.build()
    attach(plain, case.make_fusion(), case.adapter())
    expected = case.run(plain)
    network, adapter = case.build(), case.adapter()
    name = attach(case.build(), case.make_fusion(), adapter).plugin.head_name
    widen(network.get_submodule(name), by_name)
    handle = attach(network, case.make_fusion(), adapter)
    assert torch.equal(case.run(network), expected)
    assert handle.head.calls > 0 and not hasattr(handle.host_head, "calls")
    case.train(network.train())
    handle.generative_loss.backward()


@pytest.mark.parametrize("case", CALLED, ids=lambda case: case.name)
def test_the_map_may_come_by_name(case: Case) -> None:
    plain = case.build()
    attach(plain, case.make_fusion(), case.adapter())
    expected = case.run(plain)
    network, adapter = case.build(), case.adapter()
    name = attach(case.build(), case.make_fusion(), adapter).plugin.head_name
    name_the_map(network.get_submodule(name))
    attach(network, case.make_fusion(), adapter)
    assert torch.equal(case.run(network), expected)
