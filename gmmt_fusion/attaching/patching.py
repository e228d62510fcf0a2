"""Swapped classes: what stands in a host while a fusion is attached.

The class of a module at a point is swapped for a subclass of the same name; all state lives in one
`Plugin` module, a child of the host's network. Hooks would still pay for the host's fusion, and
closures would not survive a deepcopy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..model.fusion import GenerativeFusion

PREFIX = "gmmt_fusion"
"""The one name under which the plugin's parameters appear in the host's `state_dict` and
`named_parameters`.
"""

NO_REPLICAS = (
    "it copies the network in every forward, and all copies would share one fusion on one device; "
    "use "
    "DistributedDataParallel (torchrun, accelerate launch), on a network that a fusion is attached "
    "to"
)


class Plugin(nn.Module):
    """All that attaching adds to a host: the fusion with its new head, and how the host was
    before.
    """

    def __init__(self, fusion: GenerativeFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.enabled = True
        self.recorded: list[tuple[list[Tensor], Tensor]] | None = None
        self.replaced: Tensor | None = (
            None  # while recording: the host's own map, of degraded inputs where they are
        )
        self.memory: dict[str, Any] = {}
        self.generative_loss: Tensor | None = None
        self.last_maps: tuple[list[Tensor], Tensor] | None = None  # for the discriminator's turn
        self.total_weight: float | None = None  # λ, where the host returns its "total_loss"
        self.degradation: Callable[[Any, int, torch.Generator], Any] | None = None
        self.clean: list[
            Tensor
        ] = []  # the fused maps of the clean inputs, while the degraded ones are run
        self.in_forward = False
        self.host_training: dict[str, bool] = {}
        self.host_requires_grad: dict[str, bool] = {}

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.fusion.head)

    @property
    def generating(self) -> bool:
        """Whether the host's own fused map is neither a training target nor recorded in this
        call.
        """
        return self.enabled and not self.training and self.recorded is None

    def fuse(self, features: Sequence[Tensor], fused: Tensor | Callable[[], Tensor]) -> Tensor:
        """The map that the head gets in place of the host's `fused` (B, C, H, W), contiguous, in a
        dtype it accepts.
        """
        self.memory.clear()
        if self.generating:
            return self._for_head(
                self.fusion(*features), fused if isinstance(fused, Tensor) else None
            )
        features = [
            f.detach().clone() for f in features
        ]  # a host may work in place, in its fusion or later
        if self.clean:
            target = self.clean.pop(0)
        else:
            with torch.no_grad():
                target = fused if isinstance(fused, Tensor) else fused()
        maps = features, target.detach().clone()
        if self.recorded is not None:
            self.recorded.append(maps)
            self.replaced = fused if isinstance(fused, Tensor) else target
            return target
        output = self.fusion.loss(*maps)
        self.last_maps = maps if hasattr(self.fusion, "discriminator") else None
        earlier = (
            self.generative_loss if self.in_forward else None
        )  # of another level in the same forward
        self.generative_loss = output.loss if earlier is None else earlier + output.loss
        return self._for_head(output.fused, target)

    def _for_head(self, result: Tensor, target: Tensor | None) -> Tensor:
        parameter = (
            None if torch.is_autocast_enabled(result.device.type) else first_parameter(self.head)
        )
        like = target if parameter is None else parameter
        result = result if like is None else result.to(like.dtype)
        return result.contiguous()  # hosts use .view, which a channels-last map does not survive

    def __getstate__(self) -> dict[str, Any]:
        # what belongs to one forward is not copied: a loss with a graph cannot be
        # and a copy made in `disabled()`, which nothing would end, is enabled
        return {
            **self.__dict__,
            "enabled": True,
            "memory": {},
            "generative_loss": None,
            "last_maps": None,
            "recorded": None,
            "replaced": None,
            "in_forward": False,
            "clean": [],
        }

    def host_modules(self, network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, module in network.named_modules():
            if name != PREFIX and not name.startswith(f"{PREFIX}."):
                yield name, module

    def host_parameters(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in network.named_parameters():
            if not name.startswith(f"{PREFIX}."):
                yield name, parameter

    def remember(self, network: nn.Module) -> None:
        self.host_training = {name: module.training for name, module in self.host_modules(network)}
        self.host_requires_grad = {
            name: p.requires_grad for name, p in self.host_parameters(network)
        }

    def train(self, mode: bool = True) -> "Plugin":
        """As any module's; but the new head's BatchNorm keeps the statistics that it was copied
        with.

        They are of the host's whole training, and those of its batches would depend on their size;
        the results are the same (benchmarks/README.md).
        """
        super().train(mode)
        for module in self.head.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def freeze(self, network: nn.Module) -> None:
        """Host submodules to eval mode, host parameters without gradient; the root keeps its flag,
        which hosts read.
        """
        for name, module in self.host_modules(network):
            if name:
                module.training = False
        for _, parameter in self.host_parameters(network):
            parameter.requires_grad_(False)
        if (
            self.training
        ):  # hosts that filter names switch off whatever they do not know, also after the DDP wrap
            self.requires_grad_(True)

    def thaw(self, network: nn.Module) -> None:
        for name, module in self.host_modules(network):
            module.training = self.host_training.get(name, module.training)
        for name, parameter in self.host_parameters(network):
            parameter.requires_grad_(self.host_requires_grad.get(name, parameter.requires_grad))


if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object  # mixed into a host's class, which is the nn.Module


class Patched(_Module):
    """What every swapped class shares: it copies and pickles as its original and the kind of
    patch.
    """

    _gmmt_plugin: Plugin

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__.copy()
        return _empty, type(self).__bases__, state


class Point(Patched):
    """A module whose forward the adapter steps in for."""

    _gmmt_method: Callable[..., Any]
    _gmmt_is_head: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plugin, original = self._gmmt_plugin, super().forward
        if not plugin.enabled:
            return original(*args, **kwargs)
        host = plugin.head if self._gmmt_is_head and plugin.recorded is None else original
        # hosts that forget torch.no_grad at inference would build a graph through the network
        with torch.set_grad_enabled(torch.is_grad_enabled() and plugin.training):
            return self._gmmt_method(plugin, host, *args, **kwargs)


class Root(Patched):
    """The host's network: hands out the generative loss and keeps the host frozen."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plugin = self._gmmt_plugin
        if getattr(self, "_is_replica", False):
            raise ValueError(f"the network is wrapped in DataParallel; {NO_REPLICAS}")
        plugin.memory.clear()
        if not (plugin.enabled and plugin.training):
            return super().forward(*args, **kwargs)
        if not torch.compiler.is_compiling():
            plugin.freeze(self)  # trainers call .train() and requires_grad_ on parts of the host
        plugin.generative_loss, plugin.in_forward = None, True
        try:
            if plugin.degradation is not None:
                args, kwargs = self._gmmt_degraded(plugin.degradation, args, kwargs)
            out = super().forward(*args, **kwargs)
        finally:
            plugin.in_forward = False
            plugin.clean = []
        if plugin.recorded is None:
            if plugin.generative_loss is None:
                raise ValueError(
                    "no fused map was generated in this forward: the fusion was not called, or "
                    "only with "
                    "maps of another size than the adapter's"
                )
            if isinstance(out, dict):
                out["generative_loss"] = plugin.generative_loss
            if plugin.total_weight is not None:
                if not isinstance(out, dict) or "total_loss" not in out:
                    raise ValueError(
                        "the network returns no 'total_loss' that λ · Loss_gen could be added to; "
                        "give "
                        "train_in_host the actor that sums the host's losses"
                    )
                out["total_loss"] = out["total_loss"] + plugin.total_weight * plugin.generative_loss
        return out

    def _gmmt_degraded(self, degradation: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the host on its clean inputs, keep its fused maps as targets, and return the degraded
        inputs.
        """
        plugin = self._gmmt_plugin
        inputs = degradation((args, kwargs), plugin.fusion.modalities, plugin.fusion.generator)
        recorded, plugin.recorded = plugin.recorded, []
        try:
            with torch.no_grad():
                super().forward(*args, **kwargs)
            clean = [fused for _, fused in plugin.recorded]
        finally:
            plugin.recorded, plugin.replaced = recorded, None
            plugin.memory.clear()
        plugin.clean = clean
        return inputs

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        plugin = self._gmmt_plugin
        # not `mode`: hosts keep some modules in eval mode
        plugin.host_training = {name: module.training for name, module in plugin.host_modules(self)}
        if plugin.enabled:
            plugin.freeze(self)
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._gmmt_plugin.freeze(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not any(name.startswith(f"{PREFIX}.") for name in state_dict):
            raise ValueError(
                f"this checkpoint has no {PREFIX!r} keys: it is the host's alone, and a fusion is "
                "attached; load the host's weights before attach(), or detach() first (the new "
                "head "
                "starts as a copy of the host's)"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)


@cache
def _swapped(kind: type, original: type) -> type:
    # the name stays: hosts store and compare type(net).__name__
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (kind, original), names)


def _empty(kind: type, original: type) -> Any:
    cls = _swapped(kind, original)
    return cls.__new__(cls)  # type: ignore[call-overload]


def patch(module: nn.Module, kind: type, **state: Any) -> None:
    for name, value in state.items():
        object.__setattr__(
            module, name, value
        )  # not as a child: the plugin is registered once, at the root
    module.__class__ = _swapped(kind, type(module))  # type: ignore[arg-type]


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """The first floating-point parameter, whose device and dtype stand for the module's; None where
    there is none.
    """
    return next((p for p in module.parameters() if p.is_floating_point()), None)
