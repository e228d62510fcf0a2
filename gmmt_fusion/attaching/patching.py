"""Swapped classes: what stands in a host while a fusion is attached.

The class of a module at a point is swapped for a subclass of the same name; all state lives in one
`Plugin` module, a child of the host's network. Hooks would still pay for the host's fusion, and
closures would not survive a deepcopy.
"""

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .plugin import PREFIX, ForwardPass, Plugin
from .records import Mode, in_backward

NO_REPLICAS = (
    "it copies the network in every forward, and all copies would share one fusion on one device; "
    "use DistributedDataParallel (torchrun, accelerate launch), on a network that a fusion is "
    "attached to"
)
CONTAINER = ("__getitem__", "__iter__", "__len__")  # methods of heads that are one
Method = Callable[..., Any]
"""(current pass, the module's forward, *its arguments) to what the module returns: any host's."""

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object  # mixed into a host's class, which is the nn.Module


class Patched(_Module):
    """What every swapped class shares: it copies and pickles as its original and the kind."""

    _gmmt_plugin: Plugin

    def __init_subclass__(cls, **options: Any) -> None:
        """Not the host's, which may register every class that is made of it."""

    def __reduce_ex__(self, protocol: Any) -> Any:  # as object's
        own = getattr(self, "__getstate__", None)
        state = self.__dict__.copy() if own is None else own()
        return _empty, type(self).__bases__, state


class Point(Patched):
    """A module whose forward the adapter steps in for."""

    _gmmt_method: Method

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # as the host's
        plugin = self._gmmt_plugin
        if plugin.mode is Mode.HOST:
            return super().forward(*args, **kwargs)
        current, whole = None, False
        try:
            current = plugin.enter()
            forward = self._gmmt_forward(current)
            # hosts that forget torch.no_grad at inference would build a graph through the network
            with torch.set_grad_enabled(torch.is_grad_enabled() and plugin.training):
                out = self._gmmt_method(current, forward, *args, **kwargs)
            whole = True
        finally:
            plugin.leave(current, whole)
        return out

    def _gmmt_forward(self, current: ForwardPass) -> Callable[..., Any]:  # as the host's
        return super().forward


class Head(Point):
    """The host's head. Whatever the host asks of it while a map is generated, the new head does.

    That are its forward, its other methods, and inside of the network's methods its parameters and
    submodules, as some hosts use parts of their head one by one.
    """

    def _gmmt_forward(self, current: ForwardPass) -> Callable[..., Any]:  # as the host's
        if current.mode is Mode.RECORD:
            return super()._gmmt_forward(current)
        current.used_head = True
        return self._gmmt_plugin.head

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # as the host's
        out = super().forward(*args, **kwargs)
        _warn_if_nothing_fused(self._gmmt_plugin, "called")
        return out

    def __getattr__(self, name: str) -> Any:  # a parameter or a submodule
        plugin = self.__dict__.get("_gmmt_plugin")
        if plugin is not None and plugin.uses_new_head and _computes(plugin):
            _note_use(plugin)
            return getattr(plugin.head, name)
        return super().__getattr__(name)


def _warn_if_nothing_fused(plugin: Plugin, used: str) -> None:
    """The first frame's head got the host's own map, if it is the head that the adapter names."""
    if plugin.mode is Mode.GENERATE and not (plugin.has_fused or plugin.warned):
        plugin.warned = True
        warnings.warn(
            f"the host's head {plugin.head_name!r} was {used}, and no map was generated before it: "
            "the fusion was not called, or only with maps of another size than the adapter's. Look "
            "at the names and the size given to the adapter",
            stacklevel=3,
        )


def _note_use(plugin: Plugin) -> None:
    if plugin.current is not None:
        plugin.current.used_head = True


def _computes(plugin: Plugin) -> bool:
    """Whether a forward of the host is under way, or is computed again for a backward."""
    return plugin.current is not None or in_backward()


class Root(Patched):
    """The host's network: begins and ends a pass, and keeps the host frozen."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # as the host's
        plugin = self._gmmt_plugin
        if getattr(self, "_is_replica", False):
            raise ValueError(f"the network is wrapped in DataParallel; {NO_REPLICAS}")
        current, whole = None, False
        try:
            current = plugin.enter()
            if current.mode is Mode.HOST:
                out = super().forward(*args, **kwargs)
            else:
                # trainers call .train() and requires_grad_ on parts of the host
                if not plugin.frozen or (plugin.training and not torch.compiler.is_compiling()):
                    plugin.freeze()
                if plugin.training:
                    args, kwargs = current.degrade(super().forward, args, kwargs)
                out = super().forward(*args, **kwargs)
                if current.mode is Mode.LEARN:
                    out = current.with_loss(out)
            whole = True
        finally:
            plugin.leave(current, whole)
        return out

    def train(self, mode: bool = True) -> Any:  # the network itself
        plugin = self._gmmt_plugin
        plugin.frozen = False
        super().train(mode)
        # not `mode`: hosts keep some modules in eval mode
        plugin.host_training = {name: module.training for name, module in plugin.host_modules()}
        plugin.settle()
        return self

    def __setstate__(self, state: Any) -> None:  # as nn.Module's
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "network" in vars(self._gmmt_plugin):
            self._gmmt_plugin.freeze()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # as nn.Module's
        if not any(name.startswith(f"{PREFIX}.") for name in state_dict):
            raise ValueError(
                f"this checkpoint has no {PREFIX!r} keys: it is the host's alone, and a fusion is "
                "attached; load the host's weights before attach(), or detach() first (the new "
                "head starts as a copy of the host's)"
            )
        return super().load_state_dict(state_dict, strict, assign)


def patch(module: nn.Module, kind: type[Patched], **state: Any) -> None:  # any of its own
    """Swap the class of a module, with state that is not registered as a child."""
    for name, value in state.items():
        object.__setattr__(module, name, value)
    module.__class__ = _swapped(kind, type(module))


def unpatch(module: nn.Module) -> None:
    """The module's own class again, also where an earlier call was interrupted."""
    if isinstance(module, Patched):
        module.__class__ = type(module).__bases__[1]
    for name in [name for name in vars(module) if name.startswith("_gmmt_")]:
        del module.__dict__[name]


def _swapped(kind: type[Any], original: type[Any]) -> type[Any]:
    """The subclass of a host's class for a kind of patch; made once, and gone with its last use."""
    known: type[Any]
    for known in original.__subclasses__():
        if known.__bases__ == (kind, original):
            return known

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:  # tools read the host's signature
        if getattr(self, "_gmmt_plugin", None) is None:  # a bound method, kept from before detach
            return original.forward(self, *args, **kwargs)
        return kind.forward(self, *args, **kwargs)

    # the name stays: hosts store and compare type(net).__name__
    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    names["forward"] = forward
    if kind is not Point:
        make = _redirect if kind is Head else _enclose
        names.update({name: make(name, method) for name, method in own_methods(original).items()})
    return type(original.__name__, (kind, original), names)


def own_methods(original: type[Any]) -> dict[str, Callable[..., Any]]:
    """The methods that a class adds to nn.Module's: public ones, and those of containers."""
    own: dict[str, Any] = {}
    for cls in reversed(original.__mro__):
        if cls not in nn.Module.__mro__:
            own.update(vars(cls))
    return {
        name: method
        for name, method in own.items()
        if isinstance(method, types.FunctionType)
        and (name in CONTAINER or not name.startswith("_"))
        and not hasattr(nn.Module, name)
        and not inspect.isgeneratorfunction(method)
        and not inspect.iscoroutinefunction(method)
    }


def _redirect(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the head, which the new head has too."""

    @functools.wraps(method)
    def redirected(self: Any, *args: Any, **kwargs: Any) -> Any:
        plugin = getattr(self, "_gmmt_plugin", None)  # None in a bound method kept after detach
        if (
            plugin is not None
            and plugin.uses_new_head
            and (name not in CONTAINER or _computes(plugin))
        ):
            _note_use(plugin)
            # as in Point.forward: a decoder that is called by a method builds no graph in a frame
            with torch.set_grad_enabled(torch.is_grad_enabled() and plugin.training):
                out = getattr(plugin.head, name)(*args, **kwargs)
            if plugin.current is not None:
                _warn_if_nothing_fused(plugin, f"asked for {name}()")
            return out
        return method(self, *args, **kwargs)

    return redirected


def _enclose(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the network that is no forward, such as `track`, as a part of a pass."""

    @functools.wraps(method)
    def enclosed(self: Any, *args: Any, **kwargs: Any) -> Any:
        plugin, current, whole = getattr(self, "_gmmt_plugin", None), None, False
        if plugin is None:  # a bound method, kept from before detach
            return method(self, *args, **kwargs)
        try:
            current = plugin.enter()
            out = method(self, *args, **kwargs)
            whole = True
        finally:
            plugin.leave(current, whole)
        return out

    return enclosed


def _empty(kind: type[Any], original: type[Any]) -> Any:  # a module without its state, for pickle
    return object.__new__(_swapped(kind, original))
