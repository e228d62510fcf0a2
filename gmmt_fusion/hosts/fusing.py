"""Attaching a fusion in a host's script: when its network has its weights."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..adapters.auto import ADAPTERS, attach, candidates
from ..attaching.adapter import Adapter
from ..attaching.attachment import Attachment, optimize_on_gpu
from ..attaching.host_checkpoint import load_host_checkpoint
from ..attaching.plugin import PREFIX
from ..attaching.recognition import recognise
from ..model.fusion import GenerativeFusion
from .building import new_fusion
from .job import Job
from .patches import Patches

_complete: WeakSet[nn.Module] = WeakSet()  # networks whose script has loaded all their weights
_saved: dict[str, list[Adapter]] = {}  # adapters, by the fusion that they are for
_attached: WeakSet[nn.Module] = WeakSet()  # networks that have a fusion by this module


def watch_networks(job: Job, patches: Patches) -> None:
    """Attach `job.fusion` after the weights of a recognised network are loaded; for training,
    before it is wrapped for several processes.
    """
    _complete.clear()
    _attached.clear()
    _saved.clear()
    patches.set(nn.Module, "load_state_dict", _attaching(job, nn.Module.load_state_dict))
    if job.train:
        parallel = nn.parallel.DistributedDataParallel
        patches.set(parallel, "__init__", _wrapping(job, parallel.__init__))
        patches.callback(register_optimizer_step_pre_hook(_ask).remove)


def _attaching(job: Job, own: Any) -> Any:
    loading: list[nn.Module] = []  # a module that overrides load_state_dict and calls it again

    @functools.wraps(own)
    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if loading or (job.train and attachment_of(self)) or not isinstance(state_dict, Mapping):
            return own(self, state_dict, *args, **kwargs)
        if attachment := attachment_of(self):
            attachment.detach()  # loaded once more: the last weights count
        loading.append(self)
        try:
            # a checkpoint of a training with a fusion is the host's too
            state: Any = OrderedDict(
                (k, v) for k, v in state_dict.items() if not k.startswith(f"{PREFIX}.")
            )
            if hasattr(state_dict, "_metadata"):
                state._metadata = state_dict._metadata
            result = own(self, state, *args, **kwargs)
        finally:
            loading.clear()
        if not result.missing_keys:
            _complete.add(self)
        if job.fusion is not None and is_tracker(job, self):
            handle = attach(self, job.fusion)
            if job.build.get("steps") is not None:
                handle.fusion.steps = job.build["steps"]
            optimize_on_gpu(handle)
            _report(job, handle, job.fusion)
        return result

    return load_state_dict


def adapters() -> list[Adapter]:
    """Those that recognise their trackers."""
    return [kind() for kind in ADAPTERS]


def _adapters_of(job: Job) -> list[Adapter]:
    """Those, and the one that the job's fusion was attached through."""
    if job.fusion is None:
        return adapters()
    if job.fusion not in _saved:
        _saved[job.fusion] = adapters()  # while it is loaded, which comes here again
        _saved[job.fusion] = candidates(GenerativeFusion.from_pretrained(job.fusion))
    return _saved[job.fusion]


def is_tracker(job: Job, network: nn.Module) -> bool:
    """Whether an adapter recognises it; what is not is noted, for the message in the end."""
    try:
        recognise(network, _adapters_of(job))
    except ValueError as error:
        job.note("unrecognised", str(error))
        return False
    return True


def attachment_of(network: object) -> Attachment | None:
    """The attachment of a network, also of one that is wrapped for several processes."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    try:
        return Attachment.of(network)
    except ValueError:
        return None


def attach_new(job: Job, tracker: nn.Module) -> Attachment:
    """Load `job.weights` into a network, and attach a new fusion to be trained.

    Raises:
        ValueError: no host was recognised, or the network does not have its own weights.
    """
    network, adapter = recognise(tracker, adapters())
    if job.weights is not None:
        load_weights(network, job.weights)
    elif network not in _complete:
        raise ValueError(
            f"the script has not loaded all weights of its {type(network).__name__}, and fine-"
            "tuning starts from a pretrained tracker; give its checkpoint: --weights FILE"
        )
    handle: Attachment = attach(network, new_fusion(network, adapter, **job.build), adapter)
    _report(job, handle, "a new fusion")
    return handle


def read_weights(path: str) -> dict[str, Any]:
    """The host's own weights in a checkpoint of it, read without running any code in it."""
    saved = load_host_checkpoint(path)
    state = next((saved[key] for key in ("net", "state_dict") if key in saved), saved)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(f"{PREFIX}.")}


def load_weights(network: nn.Module, path: str) -> None:
    """Load a host's checkpoint into its network, strictly.

    Raises:
        OSError, ValueError: it cannot be read, or does not fit.
    """
    try:
        network.load_state_dict(read_weights(path))
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"--weights {path} are not those of this {type(network).__name__}: "
            + " ".join(line.strip() for line in lines[1:3])[:400]
        ) from None


def _report(job: Job, handle: Attachment, fusion: str) -> None:
    adapters = {point["adapter"] for point in handle.describe()["adapter"].values()}
    what = ", ".join(sorted(adapters - {"NoneType"}))  # the head may need no method
    _attached.add(handle.network)
    trained = sum(parameter.numel() for parameter in handle.parameters())
    job.note("attached", what)
    job.say(
        f"attached {fusion} ({handle.fusion.config.method}, {handle.fusion.config.network}, "
        f"{trained:,} parameters with its head) to {type(handle.network).__name__} by {what}"
    )


def _wrapping(job: Job, own: Any) -> Any:
    @functools.wraps(own)
    def __init__(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        if attachment_of(module) is None and is_tracker(job, module):
            attach_new(job, module)
        own(self, module, *args, **kwargs)

    return __init__


def _ask(*_: Any) -> None:
    if not _attached:
        raise RuntimeError(
            "the script takes a step of its optimiser, and no fusion is attached: it has no "
            "trainer that is recognised; use attach and train_in_host in the script itself"
        )
