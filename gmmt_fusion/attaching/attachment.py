"""Putting a fusion into a host tracker, and taking it out without a trace."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model import checkpoint
from ..model.fusion import GenerativeFusion
from .patching import NO_REPLICAS, PREFIX, Patched, Plugin, Point, Root, first_parameter, patch


class Attachment:
    """A fusion in a host's network, as `attach` returns it; `Attachment.of` finds that of a copied
    or loaded host.
    """

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
            if isinstance(network, Root):
                return cls(network)
        raise ValueError(
            f"nothing is attached to this {type(tracker).__name__}; call attach(tracker, fusion)"
        )

    @property
    def fusion(self) -> GenerativeFusion:
        return self._plugin.fusion

    @property
    def head(self) -> nn.Module:
        """The new head, which starts as a copy of the host's; its BatchNorm keeps the host's
        statistics.
        """
        return self._plugin.head

    @property
    def attached(self) -> bool:
        return getattr(self.network, PREFIX, None) is self._plugin

    @property
    def generative_loss(self) -> Tensor | None:
        """Loss_gen of the last forward in training, with gradient."""
        return self._plugin.generative_loss

    def discriminator_loss(self) -> Tensor:
        """Loss_D of a CGAN on the maps of the last forward in training; ask for it after the
        generator's backward.

        Raises:
            ValueError: no forward in training yet, or the method is not "cgan".
        """
        if self._plugin.last_maps is None:
            raise ValueError(
                "there is nothing to discriminate: no forward in training with a fusion of "
                "method='cgan'"
            )
        return self.fusion.discriminator_loss(*self._plugin.last_maps)

    @property
    def degradation(self) -> Any:
        """What degrades the host's inputs in training while the target stays that of the clean
        ones; may be set.

        A `gmmt_fusion.degradation.Degradation`, or a function (inputs, modalities, generator) ->
        inputs, which must be importable if the host is to be pickled. None, the default, is the
        paper's training.
        """
        return self._plugin.degradation

    @degradation.setter
    def degradation(self, degradation: Any) -> None:
        if degradation is not None and not callable(degradation):
            raise TypeError(
                f"degradation={degradation!r}; expected a Degradation, a function or None"
            )
        self._plugin.degradation = degradation

    def parameters(self) -> Iterator[nn.Parameter]:
        """What fine-tuning trains: the fusion, without a CGAN's discriminator, and the new head."""
        yield from self.fusion.generator_parameters()

    def print_trainable_parameters(self) -> None:
        trainable = sum(p.numel() for p in self.parameters())
        everything = sum(p.numel() for p in self.network.parameters())
        print(
            f"trainable params: {trainable:,} || all params: {everything:,} || "
            f"trainable%: {100 * trainable / everything:.2f}"
        )

    def host_state_dict(self) -> dict[str, Any]:
        """The host's own `state_dict`, which loads strictly into an unpatched host."""
        return {
            k: v for k, v in self.network.state_dict().items() if not k.startswith(f"{PREFIX}.")
        }

    def save_pretrained(self, folder: Any) -> None:
        """Write fusion and new head, and nothing of the host, as `GenerativeFusion.save_pretrained`
        does.
        """
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
        """Let the host fuse as before and collect (features, fused) of every map that would have
        been generated.

        In training with a `degradation` the features are of the degraded inputs, and `fused` is of
        the clean.
        """
        before, self._plugin.recorded = self._plugin.recorded, []
        try:
            yield self._plugin.recorded
        finally:
            self._plugin.recorded, self._plugin.replaced = before, None

    def calibrate(self, batches: Iterable[Any]) -> float:
        """`GenerativeFusion.calibrate` on what the host computes for a few batches of its own
        inputs.

        Args:
            batches: each as for `run_host`.

        Returns:
            The share of the variance of `fused` left unexplained.
        """
        degradation, self.degradation = self.degradation, None  # the start is the host's own fusion
        try:
            with self.recorded() as pairs, torch.no_grad():
                ran = [run_host(self.network, batch) is not None for batch in batches]
        finally:
            self.degradation = degradation
        if ran and not pairs:
            raise ValueError(
                f"the host ran {len(ran)} batches, and none of its maps is one that would be "
                "generated: "
                "look at the adapter's size, and whether the attachment is disabled or detached"
            )
        return self.fusion.calibrate(pairs)

    def optimize(
        self, enabled: bool = True, *, dtype: torch.dtype | None = None, compile: str | None = None
    ) -> None:
        """Make the fusion faster at inference, to the same result, or with `enabled=False` as it
        was.

        With one step, what the fixed noise and the time add is computed once; at batch 1 on a CPU,
        convolutions are matrix products. Weights that change are followed, but for writes through
        `.data`, replaced parameters, and a host that is compiled as a whole: call this again.
        `.train()` drops what was made, and nothing of it is saved.

        Args:
            dtype: of the fusion's network and residual path, default their own; torch.bfloat16
                where the processor computes in it.
            compile: a mode of torch.compile: "reduce-overhead" (CUDA graphs) on a GPU; on a CPU it
                hardly pays.

        Raises:
            ValueError: `fixed_noise` is False, or a dtype or mode that does not exist.
        """
        self.fusion.optimize(enabled, dtype=dtype, compile=compile)

    def detach(self) -> None:
        """Take everything out again; the fusion and the new head stay usable. Detaching twice does
        nothing.
        """
        if not self.attached:
            return
        network, plugin = self.network, self._plugin
        plugin.thaw(network)
        for module in list(network.modules()):
            if isinstance(module, Patched):
                module.__class__ = type(module).__bases__[1]
                for name in [name for name in vars(module) if name.startswith("_gmmt_")]:
                    del module.__dict__[name]
        del network._modules[PREFIX]


def run_host(network: nn.Module, batch: Any) -> Any:
    """network(**batch) for a dict, network(*batch) for a tuple or list, batch() for a function,
    else network(batch).

    A host whose forward takes one dict, as SiamBAN's, wants (batch,).
    """
    if isinstance(batch, Mapping):
        return network(**batch)
    if isinstance(batch, list | tuple):
        return network(*batch)
    return batch() if callable(batch) else network(batch)


def attach(
    tracker: Any,
    fusion: GenerativeFusion | Any,
    adapter: Any = "auto",
    calibrate: Iterable[Any] | None = None,
) -> Attachment:
    """Replace the fusion of a pretrained tracker by a generative one.

    The host's weights must be loaded already: the new head starts as a copy of the host's. The host
    is frozen while the fusion is attached.

    Args:
        tracker: the network (an nn.Module), or the object that holds it.
        fusion: a GenerativeFusion, a folder, or a hub id. One that was attached before, or loaded,
            brings its head along; attached to several trackers of one kind it shares its weights,
            head included, among them.
        adapter: "auto" recognises the hosts of `gmmt_fusion.adapters`; else an Adapter, such as a
            ModuleAdapter.
        calibrate: batches of the host's inputs for `Attachment.calibrate`; omit for a fusion that
            was fine-tuned.

    Raises:
        ValueError, OSError: no host was recognised, or the fusion does not fit; the tracker is as
        it was.
    """
    network, adapter = _recognise(tracker, adapter)
    for module in network.modules():
        if isinstance(module, Patched):
            raise ValueError("a fusion is attached to this tracker already; detach() it first")
    if isinstance(network, nn.Sequential | nn.ModuleList | nn.ModuleDict) or hasattr(
        network, PREFIX
    ):
        raise ValueError(
            f"{type(network).__name__} cannot hold the plugin as {PREFIX!r}; wrap it in a module "
            "of its "
            "own"
        )
    if not isinstance(fusion, GenerativeFusion):
        fusion = GenerativeFusion.from_pretrained(fusion)
    channels = adapter.channels(network)
    if channels not in (None, fusion.channels):
        raise ValueError(
            f"the fusion was built with channels={fusion.channels}; this {type(network).__name__} "
            "fuses "
            f"maps of {channels} channels"
        )
    if adapter.modalities not in (None, fusion.modalities):
        raise ValueError(
            f"the fusion was built with modalities={fusion.modalities}; {type(network).__name__} "
            "has "
            f"{adapter.modalities}"
        )
    own_head = network.get_submodule(adapter.head)
    points = {adapter.head: _plain_head, **adapter.points(network)}
    if len({network.get_submodule(name) for name in points}) < len(points):
        raise ValueError(
            f"two of {', '.join(map(repr, points))} are one module of {type(network).__name__}; "
            "expected "
            "a fusion and a head of their own"
        )
    for name in points:
        module = network.get_submodule(name)
        if name.startswith(f"{adapter.head}."):
            raise ValueError(
                f"{name!r} lies inside the head {adapter.head!r}, whose copy takes its place; name "
                "a head "
                "that comes after the fusion"
            )
        if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) has a forward of its own on the instance, or "
                "is "
                "scripted; attach to the plain module"
            )
    head = _copied(own_head)
    tuned = fusion.head_state if fusion.head is None else fusion.head.state_dict()
    if tuned is not None:
        checkpoint.load_state(head, tuned, "the head saved with the fusion")
    before = fusion.head, fusion.head_state
    fusion.head, fusion.head_state = head if fusion.head is None else fusion.head, None
    like = first_parameter(nn.ModuleList([own_head, network]))  # a head may have none
    if like is not None:
        fusion.to(like.device, like.dtype)

    plugin = Plugin(fusion)
    plugin.remember(network)
    network.add_module(PREFIX, plugin)
    attachment = Attachment(network)
    try:
        patch(network, Root, _gmmt_plugin=plugin)
        for name, method in points.items():
            patch(
                network.get_submodule(name),
                Point,
                _gmmt_plugin=plugin,
                _gmmt_method=method,
                _gmmt_is_head=name == adapter.head,
            )
        plugin.freeze(network)
        plugin.train(network.training)
        if calibrate is not None:
            attachment.calibrate(calibrate)
    except BaseException:
        attachment.detach()
        fusion.head, fusion.head_state = before
        raise
    return attachment


def _copied(head: nn.Module) -> nn.Module:
    """A new head. Hooks on the host's head run there, and not on the copy again, but for those that
    make weights.
    """
    head = copy.deepcopy(head).requires_grad_(True)
    for hooks in (
        head._forward_hooks,
        head._forward_pre_hooks,
        head._backward_hooks,
        head._backward_pre_hooks,
    ):
        for key in [
            k for k, hook in hooks.items() if not str(hook.__module__).startswith("torch.nn.utils")
        ]:
            del hooks[key]
    return head


def _plain_head(plugin: Plugin, host: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return host(*args, **kwargs)


def _networks(tracker: Any) -> Iterator[nn.Module]:
    """The modules that may be the host: the tracker itself, what wrappers hold, else what its
    attributes hold.
    """
    while isinstance(tracker, nn.Module) and hasattr(tracker, "_orig_mod"):  # torch.compile
        tracker = tracker._orig_mod
    if isinstance(tracker, nn.DataParallel):
        raise ValueError(f"the tracker is wrapped in DataParallel; {NO_REPLICAS}")
    if isinstance(tracker, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "the tracker is wrapped in DistributedDataParallel; attach to its network before "
            "wrapping"
        )
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
        raise ValueError(
            f"{type(tracker).__name__} is no nn.Module and holds none; attach to the tracker's "
            "network"
        )
    if isinstance(adapter, type) or not (adapter == "auto" or isinstance(adapter, Adapter)):
        raise TypeError(
            f"adapter={adapter!r}; expected 'auto' or an Adapter, such as ModuleAdapter(fusion=…, "
            "head=…)"
        )
    candidates = [cls() for cls in ADAPTERS] if adapter == "auto" else [adapter]
    tried = []
    for network in networks:
        for candidate in candidates:
            reason = candidate.missing(network)
            if reason is None:
                return network, candidate
            if network is networks[0]:
                tried.append(f"  {type(candidate).__name__} on {type(network).__name__}: {reason}")
    raise ValueError(
        "no fusion point was found; looked for\n"
        + "\n".join(tried)
        + "\nAttach with adapter=ModuleAdapter(fusion='…', head='…'), or an Adapter of your own"
    )
