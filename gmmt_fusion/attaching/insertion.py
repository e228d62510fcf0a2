"""What `attach` does to a network, once network and adapter are known."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model import checkpoint
from ..model.fusion import GenerativeFusion
from .adapter import Adapter
from .attachment import Attachment, Inputs
from .patching import Head, Method, Patched, Point, Root, patch
from .plugin import PREFIX, ForwardPass, Plugin
from .records import first_parameter


def insert(
    network: nn.Module,
    fusion: GenerativeFusion,
    adapter: Adapter,
    calibrate: Iterable[Inputs] | None = None,
) -> Attachment:
    """Put a fusion into a network where an adapter says; see `attach`.

    Raises:
        ValueError, OSError: something does not fit; network and fusion are as they were.
    """
    _check_network(network)
    _check_fusion(network, fusion, adapter)
    own_head = network.get_submodule(adapter.head)
    points: dict[str, Method] = {adapter.head: _call_head, **adapter.points(network)}
    _check_points(network, adapter.head, points)
    before = fusion.head, fusion.head_state
    head = _copy_head(adapter.head, own_head)
    tuned = fusion.head_state if fusion.head is None else fusion.head.state_dict()
    if tuned is not None:
        checkpoint.load_state(head, tuned, "the head saved with the fusion")
    attachment: Attachment | None = None
    try:
        fusion.head, fusion.head_state = head if fusion.head is None else fusion.head, None
        like = first_parameter(nn.ModuleList([own_head, network]))  # a head may have none
        if like is not None:
            fusion.to(like.device, like.dtype)
        network.add_module(PREFIX, Plugin(network, fusion, adapter.head))
        attachment = Attachment(network)
        patch(network, Root, _gmmt_plugin=attachment.plugin)
        for name, method in points.items():
            state = {"_gmmt_plugin": attachment.plugin, "_gmmt_method": method}
            module = network.get_submodule(name)
            patch(module, Head if name == adapter.head else Point, **state)
        attachment.plugin.freeze()
        attachment.plugin.train(network.training)
        if calibrate is not None:
            attachment.calibrate(calibrate)
        return attachment
    except BaseException:
        try:
            _undo(network, attachment)
        finally:
            fusion.head, fusion.head_state = before
        raise


def _undo(network: nn.Module, attachment: Attachment | None) -> None:
    if attachment is not None:
        attachment.detach()
    network._modules.pop(PREFIX, None)


def _check_network(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, Patched):
            raise ValueError("a fusion is attached to this tracker already; detach() it first")
    containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
    if isinstance(network, containers) or hasattr(network, PREFIX):
        raise ValueError(
            f"{type(network).__name__} cannot hold the plugin as {PREFIX!r}; wrap it in a module "
            "of its own"
        )


def _check_fusion(network: nn.Module, fusion: GenerativeFusion, adapter: Adapter) -> None:
    kind = type(network).__name__
    channels, fused = adapter.channels(network), adapter.out_channels(network)
    if channels not in (None, fusion.channels):
        raise ValueError(
            f"the fusion was built with channels={fusion.channels}; this {kind} fuses maps of "
            f"{channels} channels"
        )
    if fused not in (None, fusion.out_channels):
        raise ValueError(
            f"the fusion gives maps of {fusion.out_channels} channels; the head of this {kind} "
            f"takes {fused}: build it with out_channels={fused}"
        )
    if adapter.modalities not in (None, fusion.modalities):
        raise ValueError(
            f"the fusion was built with modalities={fusion.modalities}; {type(network).__name__} "
            f"has {adapter.modalities}"
        )


def _check_points(network: nn.Module, head: str, points: Mapping[str, Method]) -> None:
    modules = {name: network.get_submodule(name) for name in points}
    if len(set(modules.values())) < len(points):
        raise ValueError(
            f"two of {', '.join(map(repr, points))} are one module of {type(network).__name__}; "
            "expected a fusion and a head of their own"
        )
    for name, module in {"the network": network, **modules}.items():
        if name.startswith(f"{head}."):
            raise ValueError(
                f"{name!r} lies inside the head {head!r}, whose copy takes its place; name a head "
                "that comes after the fusion"
            )
        if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) has a forward of its own on the instance, as "
                "wrappers and accelerate's prepare set it, or is scripted; attach to the plain "
                "module, and wrap it then"
            )


def _copy_head(name: str, head: nn.Module) -> nn.Module:
    """A new head. Hooks on the host's head run there, and not on the copy again, but for those
    that make weights.

    Raises:
        ValueError: it holds something that cannot be copied.
    """
    computed = {  # weights that weight_norm, spectral_norm or pruning make in every forward
        id(value): value.detach().clone()
        for module in head.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(head, computed)
    except Exception as error:  # whatever the host keeps in its head
        raise ValueError(
            f"the head {name!r} ({type(head).__name__}) cannot be copied ({error}), and the new "
            "head starts as a copy of it; take out of it what cannot"
        ) from error
    for entry, value in copied.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the head {name!r} has {entry!r} in its state_dict, a {type(value).__name__}; a "
                "fusion is saved with its head, and holds tensors only"
            )
    for hooks in (
        copied._forward_hooks,
        copied._forward_pre_hooks,
        copied._backward_hooks,
        copied._backward_pre_hooks,
    ):
        for key in [k for k, hook in hooks.items() if not _makes_weights(hook)]:
            del hooks[key]
    return copied.requires_grad_(True)


def _makes_weights(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.nn.utils")


def _call_head(current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)  # of any host
