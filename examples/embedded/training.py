"""Pairs of template and search crops from generated sequences, and the training of one stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from gmmt_fusion.files import write_atomically
from gmmt_fusion.training import Degradation

from .scene import Scene
from .siamese import SEARCH_SIZE, TEMPLATE_SIZE, SiameseTracker, make_labels
from .tracking import context_side, crop


class PairDataset(Dataset):
    """Training pairs; item `index` is the same whenever it is asked for.

    seeds: sequences to draw from, of which `sequences` are rendered in `frames` frames each and
    kept in memory, as `scene` shows them. An item: template (6, 95, 95) and search (6, 191, 191) as
    uint8, label_cls (19, 19), label_loc (4, 19, 19) in crop pixels, sequence, the number of the one
    that the search image is of. A part `negatives` of the pairs has a template of another sequence
    and no target.
    """

    def __init__(
        self,
        seeds: range,
        sequences: int = 120,
        frames: int = 10,
        length: int = 10_000,
        seed: int = 0,
        *,
        severity: float = 1.0,
        shift: float = 48.0,
        scale: float = 0.2,
        negatives: float = 0.08,
        degraded: bool = True,
        scene: type[Scene] = Scene,
    ):
        rng = np.random.default_rng([seed, 11])
        picked = rng.choice(len(seeds), min(sequences, len(seeds)), replace=False)
        self.length, self.seed = length, seed
        self.shift, self.scale, self.negatives = shift, scale, negatives
        self.sequences = [
            _render_some(scene, int(seeds[int(i)]), frames, severity, rng, degraded) for i in picked
        ]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"pair {index} of {self.length}")
        rng = np.random.default_rng([self.seed, 12, index])
        home = int(rng.integers(len(self.sequences)))
        negative = len(self.sequences) > 1 and rng.random() < self.negatives
        other = (
            (home + int(rng.integers(1, len(self.sequences)))) % len(self.sequences)
            if negative
            else home
        )
        template, z_box = self._frame(other, rng)
        search, x_box = self._frame(home, rng)
        flip = rng.random() < 0.5
        z, _ = self._crop(template, z_box, TEMPLATE_SIZE, 4.0, 0.05, flip, rng)
        x, corners = self._crop(search, x_box, SEARCH_SIZE, self.shift, self.scale, flip, rng)
        labels = make_labels(
            torch.zeros(1, 4) if negative else torch.tensor(corners[None], dtype=torch.float32)
        )
        z, x = torch.from_numpy(z), torch.from_numpy(x)
        return {
            "template": z,
            "search": x,
            "label_cls": labels[0][0],
            "label_loc": labels[1][0],
            "sequence": torch.tensor(home),
        }

    def _frame(self, sequence: int, rng) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        visible, infrared, boxes = self.sequences[sequence]
        t = int(rng.integers(len(boxes)))
        return (visible[t], infrared[t]), boxes[t]

    def _crop(
        self, frame, box, size: int, shift: float, scale: float, flip: bool, rng
    ) -> tuple[np.ndarray, np.ndarray]:
        """A jittered crop (6, size, size), and the box as corners from its centre, crop pixels."""
        x, y, w, h = box
        side = context_side(w, h) * size / TEMPLATE_SIZE * np.exp(rng.uniform(-scale, scale))
        zoom = size / side
        dx, dy = rng.uniform(-shift, shift, 2) / zoom
        centre = (x + w / 2 + dx, y + h / 2 + dy)
        image = np.empty((2, 3, size, size), np.uint8)
        for one, part in zip(image, frame, strict=True):
            cut = cv2.LUT(crop(part, centre, side, size), _exposure(rng))
            one[:] = cut if cut.ndim == 2 else rearrange(cut, "h w c -> c h w")
        image = rearrange(image, "m c h w -> (m c) h w")
        corners = np.array([-w / 2 - dx, -h / 2 - dy, w / 2 - dx, h / 2 - dy]) * zoom
        if flip:
            image = np.ascontiguousarray(image[..., ::-1])
            corners = np.array([-corners[2], corners[1], -corners[0], corners[3]])
        return image, corners


def _exposure(rng) -> np.ndarray:
    """A table (256,) of another contrast and brightness: a pair's frames may lie far apart."""
    return np.clip(np.arange(256) * rng.uniform(0.8, 1.2) + rng.uniform(-12, 12), 0, 255).astype(
        np.uint8
    )


def _render_some(
    scene: type[Scene],
    seed: int,
    frames: int,
    severity: float,
    rng,
    degraded: bool,
    total: int = 60,
    size=(320, 256),
):
    """Frames spread over a sequence: visible (H, W, 3), the other one too, or (H, W) where it is
    grey, and boxes (frames, 4)."""
    place = scene(seed, total, size, severity, degraded)
    edges = np.linspace(0, total, frames + 1)
    times = [min(total - 1, int(rng.uniform(a, b))) for a, b in pairwise(edges)]
    images = [place.render(t) for t in times]
    grey = scene is Scene  # an infrared image: one of its channels is enough to keep
    return (
        [v for v, _ in images],
        [np.ascontiguousarray(i[..., 0]) if grey else i for _, i in images],
        place.boxes[times],
    )


class Twins(Dataset):
    """Pairs with two good modalities, and under "degraded" what their scenes look like."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.clean, self.degraded = (
            PairDataset(*arguments, **options, degraded=kind) for kind in (False, True)
        )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.clean[index], "degraded": self.degraded[index]}


class Scenes(Degradation):
    """Of `Twins`: what the scenes look like, some of it degraded further."""

    def __call__(self, inputs: Any, modalities: int, generator: torch.Generator) -> Any:
        (batch,), options = inputs
        template, search = (batch["degraded"][name] for name in ("template", "search"))
        search = super().__call__(search, modalities, generator)
        return ({**batch, "template": template, "search": search},), options


def train_stage(
    network: SiameseTracker,
    trained: Iterable[nn.Module],
    dataset: PairDataset,
    checkpoint: Path,
    *,
    batch: int = 16,
    learning_rate: float = 2e-3,
    report: Callable[[str], None] = lambda line: None,
    every: int = 50,
) -> SiameseTracker:
    """Train the given parts on the whole dataset once, with one cycle of AdamW.

    All else stays frozen, in eval mode. The state goes to `checkpoint` now and then; an interrupted
    stage goes on from there with the same pairs.
    """
    network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    for part in (trained := list(trained)):
        part.train().requires_grad_(True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3)
    steps = len(dataset) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.15
    )
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    def save(step: int) -> None:
        parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(checkpoint, lambda path: torch.save(state, path))

    rest = Subset(dataset, range(first * batch, steps * batch))
    means: dict[str, float] = {}
    started = time.monotonic()
    for step, pairs in enumerate(DataLoader(rest, batch) if first < steps else [], first + 1):
        losses = network(pairs)
        optimizer.zero_grad()
        losses["total_loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            means[name] = 0.95 * means.get(name, value.item()) + 0.05 * value.item()
        if step % every == 0 or step == steps:
            left = (time.monotonic() - started) / (step - first) * (steps - step)
            text = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            report(f"step {step}/{steps}: {text}; {left / 60:.1f} min left")
        if step % (10 * every) == 0 or step == steps:
            save(step)
    return network.eval()
