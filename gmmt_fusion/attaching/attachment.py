"""`Attachment`: the handle of a fusion in a host's network, which takes it out without a trace."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..model import fast_path
from ..model.fusion import GenerativeFusion
from .patching import Point, Root, unpatch
from .plugin import PREFIX, Plugin
from .recognition import networks_of
from .records import Fused, Mode, Override, Recorded

PLAIN = (str, int, float, list, tuple, type(None))
Inputs: TypeAlias = Any  # of one forward of a host, as its users have them: see `run_host`


class Attachment:
    """A fusion in a host's network, as `attach` returns it: the handle of everything.

    A training loop, a tracker or a figure touches this, the `fusion`, and the `network` as its host
    would; never what lies behind. `Attachment.of` finds that of a copied or loaded host.

    Attributes:
        network: the host's network.
        plugin: the module that holds all that was added to it, under one prefix; its state is this
            room's.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.plugin: Plugin = getattr(network, PREFIX)

    @classmethod
    def of(cls, tracker: object) -> "Attachment":
        """The attachment of a tracker that has one already.

        Raises:
            ValueError: nothing is attached.
        """
        for network in networks_of(tracker):
            if isinstance(network, Root):
                return cls(network)
        raise ValueError(
            f"nothing is attached to this {type(tracker).__name__}; call attach(tracker, fusion)"
        )

    def __repr__(self) -> str:
        config, count = self.fusion.config, sum(p.numel() for p in self.parameters())
        state = ("enabled" if self.enabled else "disabled") if self.attached else "detached"
        return (
            f"<Attachment of {type(self.network).__name__}: {config.method}, {config.network}, "
            f"{config.channels} channels, {count:,} parameters, {state}>"
        )

    @property
    def fusion(self) -> GenerativeFusion:
        return self.plugin.fusion

    @property
    def head(self) -> nn.Module:
        """The new head, which starts as a copy of the host's, with its BatchNorm's statistics."""
        return self.plugin.head

    @property
    def host_head(self) -> nn.Module:
        """The host's own head, which stays where it is."""
        return self.network.get_submodule(self.plugin.head_name)

    @property
    def attached(self) -> bool:
        return getattr(self.network, PREFIX, None) is self.plugin

    @property
    def enabled(self) -> bool:
        """Whether the host's next forward is not the host's own: attached, and not disabled."""
        return self.attached and self.plugin.next_mode is not Mode.HOST

    @property
    def generative_loss(self) -> Tensor | None:
        """Loss_gen of this thread's last forward in training, with gradient; None before any.

        Raises:
            ValueError: nothing was fused in that forward.
        """
        calls = self.plugin.last_calls()
        if calls is None:
            return None
        return calls[0].loss if len(calls) == 1 else torch.stack([c.loss for c in calls]).sum()

    @property
    def fused_maps(self) -> list[tuple[list[Tensor], Tensor]]:
        """(features, fused) of what this thread's last forward in training fused.

        m maps (B, C, H, W) and the host's own fused map (B, C, H, W), without gradient.
        """
        return [(call.features, call.fused) for call in self.plugin.last_calls() or []]

    def discriminator_loss(self) -> Tensor:
        """Loss_D of a CGAN on `fused_maps`; ask for it after the generator's backward.

        Raises:
            ValueError: no forward in training yet, or the method is not "cgan".
        """
        if self.fusion.discriminator is None or not (pairs := self.fused_maps):
            raise ValueError(
                "there is nothing to discriminate: no forward in training with a fusion of "
                "method='cgan'"
            )
        losses = [self.fusion.discriminator_loss(*pair) for pair in pairs]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    @property
    def degradation(self) -> Callable[[Any, int, torch.Generator], Any] | None:  # host's inputs
        """What degrades the host's inputs in training, while the target is of the clean ones.

        May be set. A `gmmt_fusion.training.Degradation`, or a function (inputs, modalities,
        generator) -> inputs, which must be importable if the host is to be pickled. None, the
        default, is the paper's training.
        """
        return self.plugin.degradation

    @degradation.setter
    def degradation(self, degradation: Callable[[Any, int, torch.Generator], Any] | None) -> None:
        if degradation is not None and not callable(degradation):
            raise TypeError(
                f"degradation={degradation!r}; expected a Degradation, a function or None"
            )
        self.plugin.degradation = degradation

    @property
    def total_loss_weight(self) -> float | None:
        """λ, where the host's forward returns its "total_loss", to which λ · Loss_gen is added.

        None, the default, leaves the sum to the loop. May be set.
        """
        return self.plugin.total_loss_weight

    @total_loss_weight.setter
    def total_loss_weight(self, weight: float | None) -> None:
        self.plugin.total_loss_weight = weight

    def fuse(self, features: Sequence[Tensor], fused: Fused) -> Tensor:
        """What the head gets for m maps (B, C, H, W) that no host computes just now, as of a cache.

        They are not copied: leave them as they are until the next forward. Arguments and errors as
        those of `ForwardPass.fuse`.
        """
        return self.plugin.fuse_alone(features, fused)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What fine-tuning trains: the fusion, without a CGAN's discriminator, and the new head."""
        yield from self.fusion.trainable_parameters()

    def print_trainable_parameters(self) -> None:
        trainable = sum(p.numel() for p in self.parameters())
        own = {id(p): p for module in (self.network, self.fusion) for p in module.parameters()}
        total = sum(p.numel() for p in own.values())
        print(
            f"trainable params: {trainable:,} || all params: {total:,} || "
            f"trainable%: {100 * trainable / total:.2f}"
        )

    def check_gradients(self) -> None:
        """To be called after a backward: does the new head learn?

        Raises:
            ValueError: it got no gradient, as the host does not use it where the adapter says.
        """
        parameters = [p for p in self.head.parameters() if p.requires_grad]
        if parameters and all(p.grad is None for p in parameters):
            raise ValueError(
                f"the new head in place of {self.plugin.head_name!r} got no gradient: the host "
                "computes its loss without it. Name the module that predicts the box as the "
                "adapter's head"
            )

    def host_state_dict(self) -> dict[str, Any]:  # a host's extra states are anything
        """The host's own `state_dict`, which loads strictly into an unpatched host."""
        state = self.network.state_dict()
        for name in [name for name in state if name.startswith(f"{PREFIX}.")]:
            del state[name]
        about = getattr(state, "_metadata", {})  # versions, by which modules migrate
        for name in [n for n in about if n == PREFIX or n.startswith(f"{PREFIX}.")]:
            del about[name]
        return state

    def describe(self) -> dict[str, Any]:  # as JSON
        """Host class, adapter with its options, channels and modalities: what the maps are of."""
        points = {}
        for name, module in self.network.named_modules():
            if isinstance(module, Point):
                method = getattr(module._gmmt_method, "func", module._gmmt_method)
                adapter = getattr(method, "__self__", None)
                options = vars(adapter) if adapter is not None else {}
                options = {key: x for key, x in options.items() if isinstance(x, PLAIN)}
                points[name] = {"adapter": type(adapter).__name__, "options": options}
        return {
            "host": type(self.network).__name__,
            "adapter": points,
            "channels": self.fusion.channels,
            "out_channels": self.fusion.out_channels,
            "modalities": self.fusion.modalities,
        }

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Write fusion and new head with a model card, for `attach` to load.

        Of the host there is nothing but its class and the adapter's options, in words.

        Args:
            license: of the weights, by its name on the hub, "apache-2.0" say.
        """
        self._note_host()
        self.fusion.save_pretrained(folder, license=license)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, and return its address.

        Arguments as those of `GenerativeFusion.push_to_hub`; who loads it calls
        `attach(tracker, repo_id)`.
        """
        self._note_host()
        return self.fusion.push_to_hub(repo_id, license=license, **options)

    def _note_host(self) -> None:
        self.fusion.about = {**self.fusion.about, "host": self.describe()}

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The host as it was, for a while; what was before comes back, also after an exception."""
        with self._override(Mode.HOST, []):
            yield

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[Recorded]]:
        """Let the host fuse as before and collect every map that would have been generated.

        In training with a `degradation` the features are of the degraded inputs, and `fused` is of
        the clean.
        """
        recording: list[Recorded] = []
        with self._override(Mode.RECORD, recording):
            yield recording

    @contextlib.contextmanager
    def _override(self, mode: Mode, recording: list[Recorded]) -> Iterator[None]:
        override = Override(mode, recording)
        try:
            try:
                if self.attached:
                    self.plugin.add_override(override)
                yield
            finally:
                self._end(override)
        finally:  # again, should Ctrl-C have come just above
            self._end(override)

    def _end(self, override: Override) -> None:
        if self.attached:
            self.plugin.remove_override(override)
        else:
            self.plugin.overrides = []

    def calibrate(self, batches: Iterable[Inputs]) -> float:
        """`GenerativeFusion.calibrate` on what the host computes for a few batches of its inputs.

        Args:
            batches: each as for `run_host`.

        Returns:
            The fraction of the variance of `fused` left unexplained.

        Raises:
            TypeError, ValueError: no batches, or none whose maps would be generated.
        """
        if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping | Tensor):
            raise TypeError(
                f"calibrate got a {type(batches).__name__}; expected batches of the host's inputs, "
                "such as [(template, search)]"
            )
        degradation = self.degradation
        try:
            self.degradation = None  # the start is the host's own fusion
            with self.recorded() as recording, torch.no_grad():
                ran = [run_host(self.network, batch) is not None for batch in batches]
        finally:
            self.degradation = degradation
        if not ran:
            raise ValueError("calibrate got no batches; expected the host's inputs, a few batches")
        if not recording:
            raise ValueError(
                f"the host ran {len(ran)} batches, and none of its maps is one that would be "
                "generated: look at the adapter's size, and whether the attachment is detached"
            )
        return self.fusion.calibrate(recording)

    def optimize(
        self,
        enabled: bool = True,
        *,
        dtype: torch.dtype | None = None,
        compile: str | None = None,
    ) -> None:
        """For inference: make the fusion faster, to the same result; `enabled=False` undoes it.

        With one step, what the fixed noise and the time add is computed once, and on a GPU a pass
        is one CUDA graph; at batch 1 on a CPU, large convolutions are matrix products. Weights that
        change are followed, but for writes through `.data`, replaced parameters, and a host that is
        compiled as a whole: call this again. `.train()` drops what was made, and nothing of it is
        saved.

        Args:
            dtype: of the fusion's network and residual path, default their own; torch.bfloat16
                where the processor computes in it.
            compile: a mode of torch.compile; on a CPU it hardly pays. With one step on a GPU the
                CUDA graph is of what it makes, whatever the mode; there is none under autocast.

        Raises:
            ValueError: `fixed_noise` is False, or a dtype or mode that does not exist.
        """
        fast_path.optimize(self.fusion, enabled, dtype=dtype, compile=compile)

    def detach(self) -> None:
        """Take everything out again; the fusion and the new head stay usable.

        Detaching twice does nothing.
        """
        if self.attached:
            try:
                self._take_out()
            finally:  # again, should Ctrl-C have come in between
                self._take_out()

    def _take_out(self) -> None:
        self.plugin.thaw()
        for module in list(self.network.modules()):
            unpatch(module)
        self.network._modules.pop(PREFIX, None)


def optimize_on_gpu(handle: Attachment) -> None:
    """`optimize` where there is a GPU: there a frame waits for the launches of its kernels."""
    if torch.cuda.is_available() and handle.fusion.fixed_noise:
        handle.optimize()


def run_host(network: nn.Module, batch: Inputs) -> Any:  # whatever it returns
    """network(**batch) for a dict, network(*batch) for a tuple or list, batch() for a function.

    Anything else is the one argument. A host whose forward takes one dict, as SiamBAN's, wants
    (batch,).
    """
    if isinstance(batch, Mapping):
        return network(**batch)
    if isinstance(batch, list | tuple):
        return network(*batch)
    return batch() if callable(batch) else network(batch)
