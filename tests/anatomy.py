"""What a host consists of, to see that a detached one has nothing left of the plugin."""

from typing import Any

import torch
from torch import Tensor, nn


def anatomy(network: nn.Module) -> dict[str, Any]:
    """What a host consists of: classes, attributes, hooks, modes, flags and values."""
    modules = {
        name: (
            type(m),
            {k: v for k, v in vars(m).items() if not isinstance(v, dict | Tensor)},
            dir(m),
            [len(v) for k, v in vars(m).items() if k.endswith("_hooks")],
        )
        for name, m in network.named_modules()
    }
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    return {
        "order": [name for name, _ in network.named_modules(remove_duplicate=False)],
        "modules": modules,
        "flags": flags,
        "state": {k: v.clone() for k, v in network.state_dict().items()},
    }


def assert_same_anatomy(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("order", "modules", "flags"):
        assert one[part] == other[part]
    assert one["state"].keys() == other["state"].keys()
    assert all(torch.equal(one["state"][k], other["state"][k]) for k in one["state"])
