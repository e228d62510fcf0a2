"""An unknown host, run on one frame again and again: as it is, and with modalities noised."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attachment import run_host
from .families import find_family
from .recognition import networks_of
from .recording import Call, Key, Recorder, leaves
from .records import keep_random_state

SIZE, BOX = (240, 320), [100.0, 90.0, 50.0, 40.0]
Result = dict[tuple[Any, ...], Tensor]
"""The numbers that a host returned, by their path in it."""


def texture(modalities: int = 2) -> np.ndarray:
    """A frame (H, W, 3·m) uint8 of smooth noise with the patch of another texture at `BOX`."""
    generator = np.random.default_rng(0)
    height, width = SIZE
    coarse = generator.integers(0, 120, (height // 8, width // 8, 3 * modalities))
    frame = coarse.repeat(8, axis=0).repeat(8, axis=1)
    x, y, w, h = map(int, BOX)
    patch = generator.integers(120, 250, (h // 4, w // 5, 3 * modalities))
    frame[y : y + h, x : x + w] = patch.repeat(4, axis=0).repeat(5, axis=1)
    return (frame + generator.integers(0, 6, frame.shape)).astype(np.uint8)


class Probe:
    """A copy of a tracker, or of a network, and the frame that it is run on.

    The parameters are the host's own, all else is copied: what happens here leaves no trace there.

    Args:
        tracker: the object that is driven as its family is, or a network.
        inputs: of a tracker, the frame (H, W, 3·m); of a network, what `run_host` takes.
        box: of a tracker, the target's, x, y, w, h in pixels.

    Attributes:
        tracker, network: the copies.
        modalities: m, of the images that go in.

    Raises:
        ValueError: it cannot be driven or copied, or holds no network.
    """

    def __init__(self, tracker: object, inputs: Any, box: Sequence[float]) -> None:
        driven = isinstance(inputs, np.ndarray)
        networks = [m for m in networks_of(tracker)]
        if not networks:
            raise ValueError(
                f"{type(tracker).__name__} is no nn.Module and holds none as an attribute; give "
                "the network, and example inputs: find_fusion(network, inputs)"
            )
        if driven:
            find_family(tracker)
        self.tracker = _copy(tracker, networks)
        self.inputs, self.box, self.driven = inputs, [float(x) for x in box], driven
        self.modalities = inputs.shape[-1] // 3 if driven else len(search_images(inputs))
        self.network = next(networks_of(self.tracker))
        if driven:
            self.network = self._busiest(_held(self.tracker))

    def run(
        self, noise: Sequence[int] = (), recorder: Recorder | None = None, strength: float = 1.0
    ) -> Result:
        """One frame, with the search images of some modalities replaced by noise.

        A tracker is started on the frame as it is. strength: the fraction of noise in them.
        """
        recorder = recorder or Recorder(nn.Module())
        with (
            recorder.on(),
            seeded(self.network),
            torch.no_grad(),
            warnings.catch_warnings(),  # a host's, of boxes that are no numbers say
        ):
            warnings.simplefilter("ignore")
            if not self.driven:
                recorder.phase = 1
                inputs = noised(self.inputs, noise, strength)
                return _numbers(run_host(self.network, inputs))
            family, frame = find_family(self.tracker), self.inputs.copy()
            getattr(self.tracker, family.start)(frame.copy(), family.pack(list(self.box)))
            recorder.phase = 1
            generator = np.random.default_rng(1)
            for m in noise:
                part = frame[..., 3 * m : 3 * m + 3]
                grain = generator.integers(0, 256, part.shape)
                part[:] = (1 - strength) * part + strength * grain
            out = self.tracker.track(frame)
            box = {family.box_key: out[family.box_key]} if isinstance(out, Mapping) else out
            return _numbers(box)

    def recorder(self, **options: Any) -> Recorder:
        """Of the network's calls; a tracker that is its own network is not called in its place."""
        own = self.network is self.tracker and self.driven
        skip = (find_family(self.tracker).start, "track") if own else ()
        return Recorder(self.network, skip=skip, **options)

    def record(
        self,
        noise: Sequence[int] = (),
        strength: float = 1.0,
        **options: Any,  # of Recorder
    ) -> tuple[list[Call], Result]:
        """The calls of a run, and what it returned."""
        recorder = self.recorder(**options)
        result = self.run(noise, recorder, strength)
        return recorder.calls, result

    def keep(self, keys: Collection[Key]) -> dict[Key, Any]:
        """The whole outputs of calls, in a run without noise."""
        recorder = self.recorder(keep=lambda call: call.key in keys)
        self.run((), recorder)
        return recorder.kept

    @property
    def everything(self) -> range:
        return range(self.modalities)

    def _busiest(self, held: list[nn.Module]) -> nn.Module:
        """The network in which most is called."""
        if len(held) == 1:
            return held[0]
        recorders = [Recorder(network) for network in held]
        with contextlib.ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(recorder.on())
            self.run()
        counts = [len(recorder.calls) for recorder in recorders]
        return held[counts.index(max(counts))]


def search_images(inputs: Any) -> list[list[tuple[int, slice]]]:
    """Of each modality, which channels of which tensors among the inputs are its search images.

    They are the largest images: one tensor (B, 3·m, H, W) each, or one of 3 channels, or 1, a
    modality. A tensor of four channels is RGB and a depth.
    """
    tensors = [x for _, x in leaves(inputs)]
    images = {
        i: x
        for i, x in enumerate(tensors)
        if x.is_floating_point() and x.ndim == 4 and (x.shape[1] in (1, 4) or x.shape[1] % 3 == 0)
    }
    largest = max((x.shape[-2:].numel() for x in images.values()), default=0)
    images = {i: x for i, x in images.items() if x.shape[-2:].numel() == largest}
    if not images:
        raise ValueError(
            "the inputs hold no images (B, 3·m, H, W) of floating point; expected those of one "
            "forward of the network, as a tuple or a dict"
        )
    widest = max(x.shape[1] for x in images.values())
    if widest > 3:  # one tensor of all modalities, maybe several such
        starts = range(0, widest, 3)
        return [
            [(i, slice(s, s + 3)) for i, x in images.items() if x.shape[1] == widest]
            for s in starts
        ]
    return [[(i, slice(None))] for i in images]


def noised(inputs: Any, noise: Sequence[int], strength: float = 1.0) -> Any:
    """The inputs with noise in place of the search images of some modalities."""
    tensors = [x.clone() for _, x in leaves(inputs)]
    generator = torch.Generator().manual_seed(1)
    images = search_images(inputs)
    for m in noise:
        for i, channels in images[m]:
            part = tensors[i][:, channels]
            grain = torch.randn(part.shape, generator=generator).to(part)
            scale = part.std() if part.numel() > 1 else part.new_tensor(0.0)
            grain = part.mean() + grain * (scale if scale > 0 else 1.0)
            part.copy_((1 - strength) * part + strength * grain)
    remaining = iter(tensors)

    def rebuild(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(remaining)
        if isinstance(value, Mapping):
            return {name: rebuild(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            items = [rebuild(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    return rebuild(inputs)


def _copy(tracker: object, networks: list[nn.Module]) -> Any:
    """A copy that shares its parameters.

    Raises:
        ValueError: it holds what cannot be copied.
    """
    shared: dict[int, Any] = {id(p): p for network in networks for p in network.parameters()}
    for network in networks:
        for module in network.modules():  # as the template of a tracker that leaves gradients on
            for _, x in leaves(dict(vars(module))):
                if not x.is_leaf:
                    shared[id(x)] = x.detach().clone()
    try:
        return copy.deepcopy(tracker, shared)
    except Exception as error:  # whatever a tracker holds
        raise ValueError(
            f"{type(tracker).__name__} cannot be copied ({error}), and only a copy of it is "
            "experimented with; take out of it what cannot, or give its network and example "
            "inputs: find_fusion(network, inputs)"
        ) from error


def _held(tracker: object) -> list[nn.Module]:
    """The networks that a tracker is or holds, none of which is a part of another."""
    networks = list(networks_of(tracker))
    parts = {m for network in networks for m in network.modules() if m is not network}
    return [network for network in networks if network not in parts]


@contextlib.contextmanager
def seeded(network: nn.Module) -> Iterator[None]:
    """The same random numbers in every run, and afterwards all generators as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (hosts draw from it)
    try:
        with keep_random_state(network):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> Result:  # whatever a host returns
    if isinstance(value, Tensor):
        return {path: value.detach().clone()} if value.is_floating_point() else {}
    if isinstance(value, float | int | np.ndarray | np.generic):
        return {path: torch.as_tensor(value, dtype=torch.float64)}
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {}
    return {p: x for name, item in items for p, x in _numbers(item, (*path, name)).items()}
