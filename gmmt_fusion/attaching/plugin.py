"""The state of attaching, by how long it lives. Internal: from outside use `Attachment`.

- `Plugin`: as long as the attachment. The one module under the host's network.
- `ForwardPass`: one forward of the host, in one thread.
- `Mode`: what a forward does, exactly one of four.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import check_finite
from ..model.fusion import GenerativeFusion
from .records import (
    Fused,
    FusionCall,
    Mode,
    Override,
    Recorded,
    first_parameter,
    in_backward,
    keep_random_state,
    thread_passes,
    without_gradient,
)

PREFIX = "gmmt_fusion"
"""The one name under which the plugin's parameters appear in the host's `state_dict`."""


class Plugin(nn.Module):
    """All that attaching adds to a host: the fusion with its new head, and how the host was before.

    Attributes:
        network: the host's, whose child this is; not registered as a module.
        head_name: of the host's head in it.
        overrides: modes that hold for a while in place of GENERATE and LEARN, the last one first.
        degradation: what degrades the inputs of a training forward; see `Attachment.degradation`.
        total_loss_weight: λ, where the host returns its "total_loss".
        frozen: whether the host was frozen last, and not thawed.
        has_fused: whether a map was generated yet; warned: whether its lack was told.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, fusion: GenerativeFusion, head_name: str) -> None:
        super().__init__()
        object.__setattr__(self, "network", network)
        self.fusion, self.head_name = fusion, head_name
        self.overrides: list[Override] = []
        self.degradation: Callable[[Any, int, torch.Generator], Any] | None = None  # host's inputs
        self.total_loss_weight: float | None = None
        self.frozen, self.has_fused, self.warned = False, False, False
        self.host_training = {name: module.training for name, module in self.host_modules()}
        self.host_requires_grad = {name: p.requires_grad for name, p in self.host_parameters()}
        self.threads = thread_passes()
        self.learned: ForwardPass | None = None  # of any thread, for backwards that have their own

    def __getstate__(self) -> dict[str, Any]:
        # what belongs to one forward is not copied: a loss with a graph cannot be
        # and a copy made in `disabled()`, which nothing would end, is enabled
        own: dict[str, Any] = {"overrides": [], "learned": None, "threads": None}
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "threads": thread_passes()})  # type: ignore[no-untyped-call]

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self.fusion.head)

    @property
    def current(self) -> "ForwardPass | None":
        """The pass that this thread is in; None outside of all patched modules."""
        current: ForwardPass | None = getattr(self.threads, "current", None)
        return None if current is None or current.depth == 0 else current

    @property
    def mode(self) -> Mode:
        """Of the pass that this thread is in, else of the next."""
        current = self.current
        return self.next_mode if current is None else current.mode

    @property
    def next_mode(self) -> Mode:
        if self.overrides:
            return self.overrides[-1].mode
        return Mode.LEARN if self.training else Mode.GENERATE

    @property
    def uses_new_head(self) -> bool:
        """Whether the host's head is not the one in use."""
        mode = self.mode
        return mode is Mode.GENERATE or mode is Mode.LEARN

    def enter(self) -> "ForwardPass":
        """The pass that this thread is in, or a new one, for a call of a patched module.

        A pass begins with the outermost such call, usually the network's forward, and ends with it.
        Where nothing was fused in it, the next call belongs to it too: hosts that are called in
        stages have the modality maps in one and the fused map in another, or the head in a third.
        """
        current: ForwardPass | None = getattr(self.threads, "current", None)
        if current is None or current.depth == 0:
            mode = self.next_mode
            if mode is Mode.LEARN and in_backward():
                current = self.replayed()
            elif current is None or current.mode is not mode:
                recording = self.overrides[-1].recording if self.overrides else []
                current = self.threads.current = ForwardPass(self, mode, recording)
                if mode is Mode.LEARN:
                    current.follow(getattr(self.threads, "learned", None))
                    self.threads.learned = self.learned = current
        current.depth += 1
        return current

    def leave(self, current: "ForwardPass | None", whole: bool) -> None:
        """The end of such a call; `whole` is False after an exception, which may end the pass."""
        if current is not None:
            current.depth -= 1
        if current is None or (current.depth == 0 and (current.fused or not whole)):
            self.threads.current = None

    def fuse_alone(self, features: Sequence[Tensor], fused: Fused) -> Tensor:
        """`ForwardPass.fuse` in a pass of its own, for maps that no host computes just now."""
        current, whole = None, False
        try:
            current = self.enter()
            result = current.fuse(features, fused, copy=self.fusion.discriminator is not None)
            whole = True
        finally:
            self.leave(current, whole)
        return result

    def replayed(self) -> "ForwardPass":
        """The pass that activation checkpointing computes again, maybe in autograd's thread."""
        learned: ForwardPass | None = getattr(self.threads, "learned", None) or self.learned
        if learned is None:
            raise ValueError("a backward calls the fusion, and no training forward came before it")
        return learned

    def last_calls(self) -> list[FusionCall] | None:
        """What this thread's last training forward fused; None before any.

        Raises:
            ValueError: it fused nothing.
        """
        learned: ForwardPass | None = getattr(self.threads, "learned", None)
        if learned is not None and not learned.calls:
            raise ValueError(
                "no fused map was generated in this forward: the fusion was not called, or only "
                "with maps of another size than the adapter's"
            )
        return None if learned is None else learned.calls

    def host_modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.network.named_modules():
            if name != PREFIX and not name.startswith(f"{PREFIX}."):
                yield name, module

    def host_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.network.named_parameters():
            if not name.startswith(f"{PREFIX}."):
                yield name, parameter

    def train(self, mode: bool = True) -> "Plugin":
        """As any module's; but the new head's BatchNorm keeps the statistics it was copied with.

        They are of the host's whole training; the results are the same (benchmarks/README.md).
        """
        super().train(mode)
        for module in self.head.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def freeze(self) -> None:
        """Host submodules to eval mode, host parameters without gradient.

        The root keeps its flag, which hosts read.
        """
        for name, module in self.host_modules():
            if name:
                module.training = False
        for _, parameter in self.host_parameters():
            parameter.requires_grad_(False)
        if self.training:
            # hosts that filter names switch off whatever they do not know, also after the DDP wrap
            self.requires_grad_(True)
        self.frozen = True

    def thaw(self) -> None:
        """The host's modes and flags as they were."""
        self.frozen = False
        for name, module in self.host_modules():
            module.training = self.host_training.get(name, module.training)
        for name, parameter in self.host_parameters():
            parameter.requires_grad_(self.host_requires_grad.get(name, parameter.requires_grad))

    def add_override(self, override: Override) -> None:
        """Another mode from the next forward on, and the host frozen or thawed for it."""
        self.overrides.append(override)
        self.settle()

    def remove_override(self, override: Override) -> None:
        """The end of such a mode, whichever else began after it; once is enough."""
        self.overrides = [other for other in self.overrides if other is not override]
        self.threads.current = None  # of a forward that Ctrl-C has ended, maybe
        self.settle()

    def settle(self) -> None:
        """Freeze or thaw the host as the next forward wants it."""
        (self.thaw if self.next_mode is Mode.HOST else self.freeze)()


class ForwardPass:
    """One forward of the host: what an adapter's methods get, and what they may ask.

    Attributes:
        network: the host's network.
        memory: what one method of the adapter keeps for another, until the pass ends.
        mode: of this pass, whatever happens to the attachment meanwhile.
        depth: calls of patched modules that it is in.
        used_head: whether the head has seen what was fused.
    """

    def __init__(self, plugin: Plugin, mode: Mode, recording: list[Recorded]) -> None:
        self.plugin, self.mode, self.recording = plugin, mode, recording
        self.memory: dict[Any, Any] = {}  # an adapter's own keys and values
        self.calls: list[FusionCall] = []
        self.fused, self.used_head = False, False
        self.depth = 0
        self.gradients = torch.is_grad_enabled()
        self.stages = 0  # forwards of the network that belong to it
        self.targets: list[Tensor] | None = None  # of the clean inputs, while the degraded ones run
        self.clean = 0

    def follow(self, earlier: "ForwardPass | None") -> None:
        """Take over what an earlier stage has fused and no head has seen, unless this one fuses."""
        if earlier is not None and not earlier.used_head:
            self.calls = earlier.calls

    @property
    def network(self) -> nn.Module:
        return self.plugin.network

    @property
    def modalities(self) -> int:
        """m, how many maps the fusion takes."""
        return self.plugin.fusion.modalities

    @property
    def channels(self) -> int:
        """C of each of them."""
        return self.plugin.fusion.channels

    @property
    def generating(self) -> bool:
        """Whether the host's own fused map is not needed in this pass."""
        return self.mode is Mode.GENERATE

    def fuse(self, features: Sequence[Tensor], fused: Fused, *, copy: bool = True) -> Tensor:
        """What takes the place of the host's fused map.

        Args:
            features: m maps (B, C, H, W).
            fused: the host's own (B, C, H, W), or a function that computes it.
            copy: False where nobody writes to the maps before the next forward, as a host may.

        Returns:
            (B, C, H, W), contiguous, in a dtype that the head accepts.

        Raises:
            ValueError: gradients are off around the fusion in a training forward, or a degraded
                forward fuses other maps than the clean one.
        """
        if not self.fused:
            self.fused, self.used_head, self.calls = True, False, []
        fusion = self.plugin.fusion
        if self.mode is Mode.HOST:
            return fused() if callable(fused) else fused
        if self.mode is Mode.GENERATE:
            generated = fusion(*features)
            self._check_generated(features, generated)
            return self._for_head(generated, None if callable(fused) else fused)
        features = [without_gradient(f, copy) for f in features]
        if self.mode is Mode.LEARN and in_backward():
            return self._fuse_again(features)
        target = self._target(fused)
        if self.mode is Mode.RECORD:
            host = target if callable(fused) else fused
            self.recording.append(Recorded(features, target.detach().clone(), host))
            return target
        if self.gradients and not torch.is_grad_enabled():
            raise ValueError(
                "the fusion is called with gradients off inside a training forward, as activation "
                "checkpointing with use_reentrant=True does, and would stay untrained; use "
                "use_reentrant=False, or keep the fusion out of torch.no_grad()"
            )
        random_state, target = fusion.generator.get_state(), without_gradient(target, copy)
        output = fusion.loss(features, target)
        self.calls.append(FusionCall(features, target, output.loss, random_state))
        return self._for_head(output.fused, target)

    def _check_generated(self, features: Sequence[Tensor], generated: Tensor) -> None:
        """Raise ValueError for NaN or infinity; on a GPU in the first frame only, as it waits."""
        if torch.compiler.is_compiling():
            self.plugin.has_fused = True  # and not read, as the graph would be of this frame alone
            return
        if first := not self.plugin.has_fused:
            self.plugin.has_fused = True
        if not (first or generated.device.type == "cpu"):
            return
        if not math.isfinite(float(generated.sum(dtype=torch.float32))):
            check_finite(features, generated)

    def with_loss(self, out: Any) -> Any:  # whatever the host returns
        """The host's output with "generative_loss" in its dicts, and in their "total_loss"."""
        if self.targets:
            raise self._uneven(self.clean - len(self.targets))
        parts = out if isinstance(out, list | tuple) else [out]
        outputs = [part for part in parts if isinstance(part, dict)]
        weight, summed = self.plugin.total_loss_weight, [o for o in outputs if "total_loss" in o]
        if weight is not None and summed and not self.calls:
            self.plugin.last_calls()  # says why
        if weight is not None and self.calls and not summed:
            raise ValueError(
                "the network returns no 'total_loss' that λ · Loss_gen could be added to; give "
                "train_in_host the actor that sums the host's losses"
            )
        if not self.calls:
            return out  # a stage before the fusion, or after it
        outputs = outputs if weight is None else summed
        losses = [call.loss for call in self.calls]
        if len(losses) != len(outputs):
            losses = [torch.stack(losses).sum() / max(len(outputs), 1)] * len(outputs)
        for part, loss in zip(outputs, losses, strict=True):
            part["generative_loss"] = loss
            if weight is not None:
                part["total_loss"] = part["total_loss"] + weight * loss
        return out

    def degrade(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # host's inputs
        """Run the host on its clean inputs, keep its fused maps, and return the degraded inputs."""
        plugin, degradation = self.plugin, self.plugin.degradation
        self.stages += 1
        if degradation is None:
            return args, kwargs
        if self.stages > 1:
            raise ValueError(
                "the host's forward is called in stages, and a degradation needs all of it in one "
                "call; set Attachment.degradation = None, and degrade the data"
            )
        inputs = degradation((args, kwargs), self.modalities, plugin.fusion.generator)
        clean = ForwardPass(plugin, Mode.RECORD, [])
        clean.depth = 1
        plugin.threads.current = clean
        try:
            # a host that draws masks in its forward draws the same for the degraded inputs
            with torch.no_grad(), keep_random_state(self.network):
                forward(*args, **kwargs)
        finally:
            plugin.threads.current = self
        self.targets = [fused for _, fused in clean.recording]
        self.clean = len(self.targets)
        return inputs

    def _target(self, fused: Fused) -> Tensor:
        if self.targets is not None:
            if not self.targets:
                raise self._uneven(self.clean + 1)
            return self.targets.pop(0)
        with torch.no_grad():
            return fused() if callable(fused) else fused

    def _uneven(self, degraded: int) -> ValueError:
        return ValueError(
            f"the clean inputs gave {self.clean} fused maps and the degraded ones {degraded}; "
            "expected as many, so that each has its target"
        )

    def _fuse_again(self, features: list[Tensor]) -> Tensor:
        """The same prediction, from the same noise, for activation checkpointing."""
        one = len(self.calls) == 1
        call = self.calls[0] if one else min(self.calls, key=lambda c: c.distance(features))
        generator = torch.Generator()
        generator.set_state(call.random_state)
        output = self.plugin.fusion.loss(call.features, call.fused, generator)
        return self._for_head(output.fused, call.fused)

    def _for_head(self, result: Tensor, target: Tensor | None) -> Tensor:
        autocast = torch.is_autocast_enabled(result.device.type)
        parameter = None if autocast else first_parameter(self.plugin.head)
        like = target if parameter is None else parameter
        if like is not None and like.dtype != result.dtype:
            result = result.to(like.dtype)
        return result.contiguous()  # hosts use .view, which a channels-last map does not survive
