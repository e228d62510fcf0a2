"""Putting a fusion into a host tracker, and taking it out without a trace.

The class of a module at a point is swapped for a subclass of the same name; all state lives in one `Plugin` module,
a child of the host's network. Hooks would still pay for the host's fusion, and closures would not survive a deepcopy.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from . import checkpoint
from .fusion import GenerativeFusion

PREFIX = "gmmt_fusion"
"""The one name under which the plugin's parameters appear in the host's `state_dict` and `named_parameters`."""


class Plugin(nn.Module):
    """All that attaching adds to a host: the fusion with its new head, and how the host was before."""

    def __init__(self, fusion: GenerativeFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.enabled = True
        self.recorded: list[tuple[list[Tensor], Tensor]] | None = None
        self.memory: dict[str, Any] = {}
        self.generative_loss: Tensor | None = None
        self.last_maps: tuple[list[Tensor], Tensor] | None = None  # for the discriminator's turn
        self.in_forward = False
        self.host_training: dict[str, bool] = {}
        self.host_requires_grad: dict[str, bool] = {}

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.fusion.head)

    @property
    def generating(self) -> bool:
        """Whether the host's own fused map is neither a training target nor recorded in this call."""
        return self.enabled and not self.training and self.recorded is None

    def fuse(self, features: Sequence[Tensor], fused: Tensor | Callable[[], Tensor]) -> Tensor:
        """The map that the head gets in place of the host's `fused` (B, C, H, W), contiguous, in a dtype it accepts."""
        self.memory.clear()
        if self.generating:
            return self._for_head(self.fusion(*features), fused if isinstance(fused, Tensor) else None)
        with torch.no_grad():
            target = fused if isinstance(fused, Tensor) else fused()
        if self.recorded is not None:
            self.recorded.append(([f.detach().clone() for f in features], target.detach().clone()))
            return target
        maps = [f.detach() for f in features], target.detach()
        output = self.fusion.loss(*maps)
        self.last_maps = maps if hasattr(self.fusion, "discriminator") else None
        earlier = self.generative_loss if self.in_forward else None  # of another level in the same forward
        self.generative_loss = output.loss if earlier is None else earlier + output.loss
        return self._for_head(output.fused, target)

    def _for_head(self, result: Tensor, target: Tensor | None) -> Tensor:
        parameter = None if torch.is_autocast_enabled(result.device.type) else _first_parameter(self.head)
        like = target if parameter is None else parameter
        result = result if like is None else result.to(like.dtype)
        return result.contiguous()  # hosts use .view, which a channels-last map does not survive

    def __getstate__(self) -> dict[str, Any]:
        # what belongs to one forward is not copied: a loss with a graph cannot be
        return {**self.__dict__, "memory": {}, "generative_loss": None, "last_maps": None, "recorded": None,
                "in_forward": False}

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
        self.host_requires_grad = {name: p.requires_grad for name, p in self.host_parameters(network)}

    def freeze(self, network: nn.Module) -> None:
        """Host submodules to eval mode, host parameters without gradient; the root keeps its flag, which hosts read."""
        for name, module in self.host_modules(network):
            if name:
                module.training = False
        for _, parameter in self.host_parameters(network):
            parameter.requires_grad_(False)
        if self.training:  # hosts that filter names switch off whatever they do not know, also after the DDP wrap
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


class _Patched(_Module):
    """What every swapped class shares: it copies and pickles as its original and the kind of patch."""

    _gmmt_plugin: Plugin

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__.copy()
        return _empty, type(self).__bases__, state


class _Point(_Patched):
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


class _Root(_Patched):
    """The host's network: hands out the generative loss and keeps the host frozen."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plugin = self._gmmt_plugin
        if not plugin.enabled:
            return super().forward(*args, **kwargs)
        if plugin.training and not torch.compiler.is_compiling():
            plugin.freeze(self)  # trainers call .train() and requires_grad_ on parts of the host
        plugin.memory.clear()
        plugin.generative_loss, plugin.in_forward = None, True
        try:
            out = super().forward(*args, **kwargs)
        finally:
            plugin.in_forward = False
        if plugin.training and plugin.recorded is None:
            if plugin.generative_loss is None:
                raise ValueError("no fused map was generated in this forward: the fusion was not called, or only with "
                                 "maps of another size than the adapter's")
            if isinstance(out, dict):
                out["generative_loss"] = plugin.generative_loss
        return out

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        plugin = self._gmmt_plugin
        plugin.host_training = {name: mode for name, _ in plugin.host_modules(self)}
        if plugin.enabled:
            plugin.freeze(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not any(name.startswith(f"{PREFIX}.") for name in state_dict):
            raise ValueError(f"this checkpoint has no {PREFIX!r} keys: it is the host's alone, and a fusion is "
                             "attached; load the host's weights before attach(), or detach() first (the new head "
                             "starts as a copy of the host's)")
        return super().load_state_dict(state_dict, *args, **kwargs)


@cache
def _swapped(kind: type, original: type) -> type:
    # the name stays: hosts store and compare type(net).__name__
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (kind, original), names)


def _empty(kind: type, original: type) -> Any:
    cls = _swapped(kind, original)
    return cls.__new__(cls)  # type: ignore[call-overload]


class Attachment:
    """A fusion in a host's network, as `attach` returns it; `Attachment.of` finds that of a copied or loaded host."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._plugin: Plugin = getattr(network, PREFIX)

    @classmethod
    def of(cls, tracker: Any) -> "Attachment":
        """The attachment of a tracker that has one already.

        Raises:
            ValueError: nothing is attached.
        """
        for network in _networks(tracker):
            if isinstance(network, _Root):
                return cls(network)
        raise ValueError(f"nothing is attached to this {type(tracker).__name__}; call attach(tracker, fusion)")

    @property
    def fusion(self) -> GenerativeFusion:
        return self._plugin.fusion

    @property
    def head(self) -> nn.Module:
        """The new head, which starts as a copy of the host's."""
        return self._plugin.head

    @property
    def attached(self) -> bool:
        return getattr(self.network, PREFIX, None) is self._plugin

    @property
    def generative_loss(self) -> Tensor | None:
        """Loss_gen of the last forward in training, with gradient."""
        return self._plugin.generative_loss

    def discriminator_loss(self) -> Tensor:
        """Loss_D of a CGAN on the maps of the last forward in training; ask for it after the generator's backward.

        Raises:
            ValueError: no forward in training yet, or the method is not "cgan".
        """
        if self._plugin.last_maps is None:
            raise ValueError("there is nothing to discriminate: no forward in training with a fusion of method='cgan'")
        return self.fusion.discriminator_loss(*self._plugin.last_maps)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What fine-tuning trains: the fusion, without a CGAN's discriminator, and the new head."""
        yield from self.fusion.generator_parameters()

    def print_trainable_parameters(self) -> None:
        trainable = sum(p.numel() for p in self.parameters())
        everything = sum(p.numel() for p in self.network.parameters())
        print(f"trainable params: {trainable:,} || all params: {everything:,} || "
              f"trainable%: {100 * trainable / everything:.2f}")

    def host_state_dict(self) -> dict[str, Any]:
        """The host's own `state_dict`, which loads strictly into an unpatched host."""
        return {k: v for k, v in self.network.state_dict().items() if not k.startswith(f"{PREFIX}.")}

    def save_pretrained(self, folder: Any) -> None:
        """Write fusion and new head, and nothing of the host, as `GenerativeFusion.save_pretrained` does."""
        self.fusion.save_pretrained(folder)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The host as it was, for a while; what was before comes back, also after an exception."""
        before, plugin = self._plugin.enabled, self._plugin
        plugin.enabled = False
        if before:
            plugin.thaw(self.network)
        try:
            yield
        finally:
            plugin.enabled = before
            if before and self.attached:
                plugin.freeze(self.network)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[tuple[list[Tensor], Tensor]]]:
        """Let the host fuse as before and collect (features, fused) of every map that would have been generated."""
        before, self._plugin.recorded = self._plugin.recorded, []
        try:
            yield self._plugin.recorded
        finally:
            self._plugin.recorded = before

    def calibrate(self, batches: Iterable[Any]) -> float:
        """`GenerativeFusion.calibrate` on what the host computes for a few batches of its own inputs.

        Args:
            batches: each as for `run_host`.

        Returns:
            The share of the variance of `fused` left unexplained.
        """
        with self.recorded() as pairs, torch.no_grad():
            for batch in batches:
                run_host(self.network, batch)
        return self.fusion.calibrate(pairs)

    def detach(self) -> None:
        """Take everything out again; the fusion and the new head stay usable. Detaching twice does nothing."""
        if not self.attached:
            return
        network, plugin = self.network, self._plugin
        plugin.thaw(network)
        for module in list(network.modules()):
            if isinstance(module, _Patched):
                module.__class__ = type(module).__bases__[1]
                for name in [name for name in vars(module) if name.startswith("_gmmt_")]:
                    del module.__dict__[name]
        del network._modules[PREFIX]


def run_host(network: nn.Module, batch: Any) -> Any:
    """network(**batch) for a dict, network(*batch) for a tuple or list, batch() for a function, else network(batch)."""
    if isinstance(batch, Mapping):
        return network(**batch)
    if isinstance(batch, list | tuple):
        return network(*batch)
    return batch() if callable(batch) else network(batch)


def attach(tracker: Any, fusion: GenerativeFusion | Any, adapter: Any = "auto",
           calibrate: Iterable[Any] | None = None) -> Attachment:
    """Replace the fusion of a pretrained tracker by a generative one.

    The host's weights must be loaded already: the new head starts as a copy of the host's. The host is frozen while
    the fusion is attached.

    Args:
        tracker: the network (an nn.Module), or the object that holds it.
        fusion: a GenerativeFusion, a folder, or a hub id.
        adapter: "auto" recognises the hosts of `gmmt_fusion.adapters`; else an Adapter, such as a ModuleAdapter.
        calibrate: batches of the host's inputs for `Attachment.calibrate`; omit for a fusion that was fine-tuned.

    Raises:
        ValueError, OSError: no host was recognised, or the fusion does not fit; the tracker is as it was.
    """
    network, adapter = _recognise(tracker, adapter)
    for module in network.modules():
        if isinstance(module, _Patched):
            raise ValueError("a fusion is attached to this tracker already; detach() it first")
    if isinstance(network, nn.Sequential | nn.ModuleList | nn.ModuleDict) or hasattr(network, PREFIX):
        raise ValueError(f"{type(network).__name__} cannot hold the plugin as {PREFIX!r}; wrap it in a module of its "
                         "own")
    if not isinstance(fusion, GenerativeFusion):
        fusion = GenerativeFusion.from_pretrained(fusion)
    channels = adapter.channels(network)
    if channels not in (None, fusion.channels):
        raise ValueError(f"the fusion was built with channels={fusion.channels}; this {type(network).__name__} fuses "
                         f"maps of {channels} channels")
    own_head = network.get_submodule(adapter.head)
    points = {adapter.head: _plain_head, **adapter.points(network)}
    for name in points:
        module = network.get_submodule(name)
        if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name!r} ({type(module).__name__}) has a forward of its own on the instance, or is "
                             "scripted; attach to the plain module")
    head = copy.deepcopy(own_head).requires_grad_(True)
    tuned = fusion.head_state if fusion.head is None else fusion.head.state_dict()
    if tuned is not None:
        checkpoint.load_state(head, tuned, "the head saved with the fusion")
    fusion.head, fusion.head_state = head, None
    like = _first_parameter(head)
    if like is not None:
        fusion.to(like.device, like.dtype)

    plugin = Plugin(fusion)
    plugin.remember(network)
    network.add_module(PREFIX, plugin)
    attachment = Attachment(network)
    try:
        _patch(network, _Root, _gmmt_plugin=plugin)
        for name, method in points.items():
            _patch(network.get_submodule(name), _Point, _gmmt_plugin=plugin, _gmmt_method=method,
                   _gmmt_is_head=name == adapter.head)
        plugin.freeze(network)
        plugin.train(network.training)
        if calibrate is not None:
            attachment.calibrate(calibrate)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def _first_parameter(module: nn.Module) -> nn.Parameter | None:
    """The first floating-point parameter, whose device and dtype stand for the module's; None where there is none."""
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def _plain_head(plugin: Plugin, host: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return host(*args, **kwargs)


def _patch(module: nn.Module, kind: type, **state: Any) -> None:
    for name, value in state.items():
        object.__setattr__(module, name, value)  # not as a child: the plugin is registered once, at the root
    module.__class__ = _swapped(kind, type(module))  # type: ignore[arg-type]


def _networks(tracker: Any) -> Iterator[nn.Module]:
    """The modules that may be the host: the tracker itself, what wrappers hold, else what its attributes hold."""
    while isinstance(tracker, nn.Module) and hasattr(tracker, "_orig_mod"):  # torch.compile
        tracker = tracker._orig_mod
    if isinstance(tracker, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(f"the tracker is wrapped in {type(tracker).__name__}; attach to its network before wrapping")
    if isinstance(tracker, nn.Module):
        yield tracker
        yield from tracker.children()
    else:
        for value in vars(tracker).values() if hasattr(tracker, "__dict__") else ():
            if isinstance(value, nn.Module):
                yield from _networks(value)


def _recognise(tracker: Any, adapter: Any) -> tuple[nn.Module, Any]:
    from gmmt_fusion.adapters import ADAPTERS, Adapter

    networks = list(_networks(tracker))
    if not networks:
        raise ValueError(f"{type(tracker).__name__} is no nn.Module and holds none; attach to the tracker's network")
    if isinstance(adapter, type) or not (adapter == "auto" or isinstance(adapter, Adapter)):
        raise TypeError(f"adapter={adapter!r}; expected 'auto' or an Adapter, such as ModuleAdapter(fusion=…, head=…)")
    candidates = [cls() for cls in ADAPTERS] if adapter == "auto" else [adapter]
    tried = []
    for network in networks:
        for candidate in candidates:
            reason = candidate.missing(network)
            if reason is None:
                return network, candidate
            if network is networks[0]:
                tried.append(f"  {type(candidate).__name__} on {type(network).__name__}: {reason}")
    raise ValueError("no fusion point was found; looked for\n" + "\n".join(tried)
                     + "\nAttach with adapter=ModuleAdapter(fusion='…', head='…'), or an Adapter of your own")
