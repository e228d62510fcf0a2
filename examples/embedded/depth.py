"""The generated scenes as an RGB-D camera sees them: depths in millimetres, 16 bits, with holes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from gmmt_fusion.evaluation.frames import colour_map

from .scene import MARGIN, Actor, Scene, _grain
from .scenery import noise_map

RANGE = 0.6, 8.0  # metres, that the sensor measures
SHADOW = 4  # pixels beside an edge, which the projector lights and the camera does not see


class DepthScene(Scene):
    """The same target, company, motion and visible image; what spoils heat there spoils depth here.

    Thermal crossover: the target comes close to what is behind it. Noise: more of the sensor's own,
    which grows with the square of the distance. Washed out: sunlight, of which a part of the image
    is lost. Glass: a black or shining surface, which reflects nothing. The shutter stands still all
    the same.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        rng = np.random.default_rng([self.seed, 2026])
        time = np.arange(self.frames)
        self.distance = rng.uniform(1.6, 4.0) + 0.5 * self._wave(rng, time)  # of the target
        self.wall = float(self.distance.max()) + rng.uniform(0.5, 1.5)  # behind everything
        height, width = self.heat_world.shape
        slope = np.linspace(rng.uniform(0.5, 3.0), 0, height, dtype=np.float32)[:, None]
        relief = noise_map(rng, height, width, (3, 8, 20), 0.6)
        self.depth_world = (self.wall + slope + 0.6 * relief).astype(np.float32)
        # between target and wall, 0 to 1; or from the target towards the camera
        self.gaps = rng.uniform(0.15, 0.9, len(self.behind))
        self.leads = rng.uniform(0.08, 0.3, len(self.before))

    def render(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame t as visible image and colour map of the depth, uint8 (H, W, 3) each, RGB order."""
        rng = np.random.default_rng([self.seed, t])
        visible = self._spoil_visible(t, self.draw(t)[0], rng)
        return visible, np.ascontiguousarray(colour_map(self.depth(t, rng))[..., ::-1])

    def depth(self, t: int, rng: np.random.Generator) -> np.ndarray:
        """Depth of frame t in millimetres, uint16 (H, W); 0 where nothing was measured."""
        level = {name: float(curve[t]) for name, curve in self.troubles.items()}
        seen = self.frozen.get(t, t)
        size = (self.width, self.height)
        x, y = self.camera[seen] + np.array(size) / 2 + MARGIN - 0.5
        depth = cv2.getRectSubPix(self.depth_world, size, (float(x), float(y)))
        flat = 0.96 * min(level["crossover"], 1)
        target = self.distance[seen]
        target += flat * (self.wall - target)
        for actor, gap in zip(self.behind, self.gaps, strict=True):
            _put(actor, seen, depth, target + gap * (self.wall - target))
        _put(self.target, seen, depth, target)
        for actor, lead in zip(self.before, self.leads, strict=True):
            _put(actor, seen, depth, self.distance[seen] * (1 - lead))
        return self._measure(t, depth, level, rng)

    def _measure(
        self, t: int, depth: np.ndarray, level: dict[str, float], rng: np.random.Generator
    ) -> np.ndarray:
        beside = cv2.copyMakeBorder(depth, 0, 0, SHADOW, 0, cv2.BORDER_REPLICATE)[:, :-SHADOW]
        holes = (depth - beside > 0.15) | (depth < RANGE[0]) | (depth > RANGE[1])
        dx, dy = rng.integers(0, 64, 2)
        grain = _grain(self.height, self.width)[dy : dy + self.height, dx : dx + self.width]
        holes |= grain[..., 1] > 2.6 - 0.6 * level["noise"]  # single pixels
        depth = depth + (0.004 + 0.03 * level["noise"]) * depth**2 * grain[..., 0]
        if level["washed"] > 0:
            shift = (t + self.seed) % 160
            holes |= self.fog[:, shift : shift + self.width] < 0.45 * level["washed"]
        if level["glass"] > 0.3:
            (x, y), (w, h) = self.target.centres[t], self.target.sizes[t]
            w, h = np.array([w, h]) * self.pane_scale
            x, y = np.array([x, y]) + self.pane_offset * [w, h] * 0.35
            rows = slice(max(int(y - h / 2), 0), max(int(y + h / 2), 0))
            holes[rows, max(int(x - w / 2), 0) : max(int(x + w / 2), 0)] = True
        return np.where(holes, 0, np.clip(np.rint(1000 * depth), 1, 65535)).astype(np.uint16)


def _put(actor: Actor, t: int, depth: np.ndarray, distance: float) -> None:
    """Draw an actor at its distance, with a surface that its heat gives."""
    placed = actor.place(t, *depth.shape)
    if placed is not None:
        where, _, rest = placed
        covered = rest[..., 1] > 0.5
        depth[where][covered] = distance + 0.0004 * (rest[..., 0][covered] - 128)
