"""How adapters read what a host is made of."""

import inspect

from torch import nn

BLOCKS = "backbone.blocks"
"""Where the hosts made of OSTrack keep their transformer's blocks."""


def children(network: nn.Module, name: str) -> list[nn.Module]:
    """The modules in the container `name`, in their order."""
    return list(network.get_submodule(name).children())


def first_convolution(module: nn.Module) -> nn.Conv2d | None:
    """The first convolution inside a module, whose widths tell those of the maps."""
    return next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)


def signature(module: nn.Module) -> dict[str, bool]:
    """The names that a module's forward takes, each with whether it is required."""
    parameters = inspect.signature(module.forward).parameters
    return {name: p.default is p.empty for name, p in parameters.items()}
