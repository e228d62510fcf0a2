"""A generated RGB-T scene: who moves where, and what goes wrong in which modality and when."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .scenery import Canvas, background, muted, noise_map
from .sprites import ASPECTS, PHASES, Look, shrink, sprite

MARGIN = 96  # how far the camera may travel, pixels
VISIBLE_TROUBLES = ("dark", "glare", "flicker", "smoke")
INFRARED_TROUBLES = ("crossover", "noise", "washed", "glass")
ATTRIBUTE_OF = {"dark": "LI", "glare": "HI", "flicker": "AIV", "crossover": "TC", "glass": "HO"}


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """Unit normal noise (height + 64, width + 64, 3) for frames to cut from: drawing it is slow."""
    return np.random.default_rng(7).standard_normal((height + 64, width + 64, 3), dtype=np.float32)


class Actor:
    """An object: its poses, its centres (frames, 2) and its sizes w, h (frames, 2), in pixels."""

    def __init__(
        self, poses: list[np.ndarray], centres: np.ndarray, sizes: np.ndarray, stride: int = 3
    ):
        self.pyramids = [[pose] for pose in poses]
        for levels in self.pyramids:
            while max(levels[-1].shape[:2]) > 24:
                h, w = levels[-1].shape[:2]
                levels.append(shrink(levels[-1], max(2, w // 2), max(2, h // 2)))
        self.centres, self.sizes, self.stride = centres, sizes, stride

    def draw(self, t: int, rgb: np.ndarray, heat: np.ndarray, warmth: float = 1.0) -> None:
        """Blend pose t into rgb (H, W, 3) and heat (H, W); warmth 0 leaves the heat as it is."""
        if (placed := self.place(t, *heat.shape)) is None:
            return
        where, colour, rest = placed
        alpha = rest[..., 1]
        patch = rgb[where]
        patch *= 1 - alpha[..., None]
        patch += colour
        patch = heat[where]
        patch *= 1 - warmth * alpha
        patch += warmth * rest[..., 0]

    def place(
        self, t: int, height: int, width: int
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """Where pose t lies in an image, its colour (h, w, 3), and its heat and cover (h, w, 2)."""
        (x, y), (w, h) = self.centres[t], self.sizes[t]
        left, top = int(np.floor(x - w / 2)), int(np.floor(y - h / 2))
        right, bottom = int(np.ceil(x + w / 2)) + 1, int(np.ceil(y + h / 2)) + 1
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if right - left < 2 or bottom - top < 2:
            return None
        levels = self.pyramids[(t // self.stride) % len(self.pyramids)]
        # The coarsest level that is still as fine as the drawn size: no aliasing.
        image = next((level for level in reversed(levels) if level.shape[0] >= h), levels[0])
        sx, sy = w / image.shape[1], h / image.shape[0]
        matrix = np.array(
            [[sx, 0, x - w / 2 - left + 0.5 * sx - 0.5], [0, sy, y - h / 2 - top + 0.5 * sy - 0.5]]
        )
        size = (right - left, bottom - top)
        colour = cv2.warpAffine(image[..., :3], matrix, size)
        rest = cv2.warpAffine(image[..., 3:], matrix, size)
        return (slice(top, bottom), slice(left, right)), colour, rest


def poses_of(kind: str, look: Look) -> list[np.ndarray]:
    """All poses, cut to what any of them covers, so that the box is tight."""
    images = [sprite(kind, look, phase) for phase in range(PHASES.get(kind, 1))]
    covered = np.max([p[..., 4] for p in images], axis=0) > 0.3
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    return [
        np.ascontiguousarray(p[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        for p in images
    ]


class Scene:
    """Everything about one sequence, decided by its seed; `render(t)` draws any frame on its own.

    degraded: False leaves out what goes wrong in a modality, and nothing else.
    """

    def __init__(
        self, seed: int, frames: int, size: tuple[int, int], severity: float, degraded: bool = True
    ):
        self.seed, self.frames, self.severity = seed, frames, severity
        self.width, self.height = size
        rng = np.random.default_rng([seed, 2024])
        visible, heat, self.place = background(
            rng, self.height + 2 * MARGIN, self.width + 2 * MARGIN
        )
        self.visible_world, self.heat_world = (
            np.rint(visible).astype(np.uint8),
            np.rint(heat).astype(np.uint8),
        )
        self.attributes: set[str] = set()
        self._plan_target(rng, float(heat.mean()))
        self._plan_company(rng, float(heat.mean()))
        self._plan_occluders(rng)
        self._plan_troubles(rng)
        if not degraded:
            self.troubles, self.frozen = (
                {name: 0 * curve for name, curve in self.troubles.items()},
                {},
            )
        self.fog = noise_map(rng, self.height, self.width + 160, (4, 8, 16), 0.6)
        self.stripes = rng.standard_normal((1, self.width), dtype=np.float32)
        self.sigmas = rng.uniform(1.5, 4), rng.uniform(2.5, 6)  # of the sensors' own noise

    def _wave(self, rng, time: np.ndarray, periods=(60, 170)) -> np.ndarray:
        """A smooth way (frames,) within -1..1."""
        slow, fast = rng.uniform(*periods), rng.uniform(*periods) * 0.55
        return 0.7 * np.sin(2 * np.pi * (time / slow + rng.random())) + 0.3 * np.sin(
            2 * np.pi * (time / fast + rng.random())
        )

    def _plan_target(self, rng, surrounding: float) -> None:
        kinds = [k for k in ASPECTS if k != "boat" or self.place == "harbour"]
        self.kind = kinds[rng.integers(len(kinds))]
        self.look = Look.random(rng, surrounding)
        poses = poses_of(self.kind, self.look)
        rate = np.ones(self.frames)
        for _ in range(rng.poisson(1.0 * self.severity)):  # bursts of fast motion
            start = int(rng.integers(4, max(5, self.frames)))
            rate[start : start + int(rng.integers(2, 5))] = rng.uniform(2.5, 5.5)
        time = np.cumsum(rate)
        aspect = poses[0].shape[1] / poses[0].shape[0]
        mean_side = rng.uniform(18, 44) * min(self.width, self.height) / 256
        growth = np.exp(
            rng.uniform(0.02, 0.35) * self._wave(rng, np.arange(self.frames), (50, 200))
        )
        turn = 1 - rng.uniform(0, 0.25) * (0.5 + 0.5 * self._wave(rng, np.arange(self.frames))) * (
            aspect > 1.2
        )
        sides = np.minimum(mean_side * growth, 0.3 * min(self.width, self.height))
        sizes = np.stack([sides * np.sqrt(aspect) * turn, sides / np.sqrt(aspect)], 1)
        room = np.array([self.width, self.height]) / 2 - sizes.max(0) / 2 - 3
        reach = rng.uniform(0.3, 1.0, 2) * room
        ways = np.stack([self._wave(rng, time), self._wave(rng, time)], 1)
        centre = np.array([self.width, self.height]) / 2 + rng.uniform(-1, 1, 2) * (room - reach)
        centres = centre + reach * ways
        self.target = Actor(poses, centres, sizes)
        travel = rng.uniform(0.1, 1.0) * (MARGIN - 3)
        self.camera = travel * np.stack(
            [self._wave(rng, time, (80, 220)), 0.4 * self._wave(rng, time, (80, 220))], 1
        )
        self.boxes = np.concatenate([centres - sizes / 2, sizes], 1)
        steps = (
            np.linalg.norm(np.diff(self.boxes[:, :2], axis=0), axis=1)
            if self.frames > 1
            else np.zeros(1)
        )
        areas = sizes.prod(1)
        marks = {
            "FM": steps.max() > 12,
            "SV": areas.max() > 1.6 * areas.min(),
            "CM": travel > 0.6 * MARGIN,
            "LR": areas.min() < 400,
            "DEF": self.kind in PHASES,
            "ARC": turn.min() < 0.82,
        }
        self.attributes |= {name for name, holds in marks.items() if holds}
        blur = np.zeros(self.frames)
        blur[1:] = np.linalg.norm(np.diff(self.camera, axis=0), axis=1)
        self.blur = np.where(rate > 1, np.minimum(2 * blur, 11), 0)
        if (self.blur > 3).any():
            self.attributes.add("MB")

    def _pass_by(self, rng, time: float, speed: tuple[float, float], offset: float) -> np.ndarray:
        """Centres (frames, 2) that pass near the target's at that time, steadily relative to it."""
        angle = rng.uniform(0, 2 * np.pi)
        heading = np.array([np.cos(angle), 0.5 * np.sin(angle)])
        across = np.array([-heading[1], heading[0]]) / np.linalg.norm(heading)
        away = (np.arange(self.frames) - time)[:, None] * heading * rng.uniform(*speed)
        return self.target.centres + away + across * offset * rng.choice([-1, 1])

    def _plan_company(self, rng, surrounding: float) -> None:
        self.behind, self.before = [], []
        side = float(np.sqrt(self.target.sizes.prod(1).mean()))
        kinds = list(ASPECTS)
        for _ in range(int(rng.integers(3, 8))):  # standing in the world
            kind = self.kind if rng.random() < 0.35 else kinds[rng.integers(len(kinds))]
            world = rng.random(2) * [self.width + MARGIN, self.height + MARGIN] - MARGIN / 2
            poses = poses_of(kind, Look.random(rng, surrounding))[:1]
            aspect = np.sqrt(poses[0].shape[1] / poses[0].shape[0])
            size = side * rng.uniform(0.8, 1.3) * np.array([aspect, 1 / aspect])
            self.behind.append(Actor(poses, world - self.camera, np.tile(size, (self.frames, 1))))
        count = int(rng.integers(0, 5)) + int(rng.random() < self.severity - 1)
        for _ in range(count):  # look-alikes that pass close to the target
            twin, other = rng.integers(3), Look.random(rng, surrounding)
            look = Look(**vars(self.look))
            if twin == 0:  # alike in the visible image only
                look.heat, look.hot, look.heat_pattern = other.heat, other.hot, other.heat_pattern
            elif twin == 1:  # alike in heat only
                look.body, look.second, look.pattern = other.body, other.second, other.pattern
            else:
                look.body = np.clip(look.body + rng.normal(0, 28, 3), 5, 250).astype(np.float32)
                look.heat, look.hot = look.heat + rng.normal(0, 14), look.hot + rng.normal(0, 14)
                look.pattern, look.heat_pattern = other.pattern, other.heat_pattern
            centres = self._pass_by(
                rng, rng.uniform(8, max(9, self.frames)), (0.8, 3.5), side * rng.uniform(0.4, 1.5)
            )
            actor = Actor(
                poses_of(self.kind, look), centres, self.target.sizes * rng.uniform(0.9, 1.12)
            )
            (self.behind if rng.random() < 0.75 else self.before).append(actor)
        if count:
            self.attributes.add("SA")
        if count > 1 or self.place == "park":
            self.attributes.add("BC")

    def _plan_occluders(self, rng) -> None:
        largest = self.target.sizes.max(0)
        partial = int(rng.random() < 0.4 * self.severity) + int(rng.random() < 0.2 * self.severity)
        total = int(rng.random() < 0.3 * self.severity)
        for number in range(partial + total):
            whole = number >= partial
            if self.frames < 16:
                break
            size = largest * (
                rng.uniform(1.35, 1.6, 2) if whole else [rng.uniform(0.4, 0.7), rng.uniform(1.2, 3)]
            )
            time = rng.uniform(12, self.frames - 3)
            # A total occlusion hides everything for about (w_occluder - w) / speed frames.
            speed = (
                (size[0] - largest[0]) / rng.uniform(3, 3 + 4 * self.severity)
                if whole
                else rng.uniform(1.5, 3)
            )
            centres = self.target.centres.copy()
            centres[:, 0] += (np.arange(self.frames) - time) * max(speed, 0.8) * rng.choice([-1, 1])
            paint, warmth = muted(rng, 40, 190, 0.35), rng.uniform(40, 190)
            panel = Canvas(64, 48, paint, warmth)
            for row in range(0, 64, int(rng.integers(8, 24))):
                panel.rectangle(
                    0, row, 48, 1, paint * rng.uniform(0.6, 1.3), warmth * rng.uniform(0.75, 1.2)
                )
            texture = 0.7 + 0.6 * noise_map(rng, 64, 48, (3, 9, 20), 0.8)
            image = np.dstack(
                [panel.rgb * texture[..., None], panel.heat * texture, np.ones_like(texture)]
            )
            image = np.clip(image, 0, 250).astype(np.float32)
            self.before.append(Actor([image], centres, np.tile(size, (self.frames, 1))))
            self.attributes.add("TO" if whole else "PO")
        if not self.attributes & {"TO", "PO"}:
            self.attributes.add("NO")

    def _plan_troubles(self, rng) -> None:
        """Strength 0..1.5 of every trouble in every frame; mostly in one modality at a time."""
        self.troubles = {
            name: np.zeros(self.frames, np.float32) for name in VISIBLE_TROUBLES + INFRARED_TROUBLES
        }
        regime = rng.choice(
            ["visible", "infrared", "flip", "alternate", "mild"], p=[0.2, 0.2, 0.32, 0.24, 0.04]
        )
        first, n = int(rng.integers(2)), self.frames
        segments = []  # (modality, start, end)
        start = 0 if rng.random() < 0.35 else int(rng.integers(5, 15))
        if regime in ("visible", "infrared", "mild"):
            segments.append(
                (0 if regime == "visible" else 1 if regime == "infrared" else first, start, n)
            )
        else:
            parts = 2 if regime == "flip" else int(rng.integers(3, 5))
            cuts = (
                np.linspace(start, n, parts + 1)
                + np.r_[0, rng.uniform(-0.12, 0.12, parts - 1) * n / parts, 0]
            )
            overlap = (1 + 3 * (self.severity - 1)) * n / 60  # for a moment both suffer
            segments += [
                ((first + i) % 2, int(cuts[i] - overlap * (i > 0)), int(cuts[i + 1] + overlap))
                for i in range(parts)
            ]
        for modality, begin, end in segments:
            names = INFRARED_TROUBLES if modality else VISIBLE_TROUBLES
            name = names[rng.integers(len(names))]
            strength = self.severity * (
                rng.uniform(0.2, 0.4) if regime == "mild" else rng.uniform(0.75, 1.05)
            )
            self._trouble(rng, name, begin, end, strength)
        for names in (VISIBLE_TROUBLES, INFRARED_TROUBLES):  # and a little of something in both
            self._trouble(
                rng, names[rng.integers(len(names))], 0, n, rng.uniform(0, 0.42) * self.severity
            )
        if (
            rng.random() < 0.15 * self.severity and n > 24
        ):  # the thermal camera's shutter: its image stands still
            begin = int(rng.integers(10, n - 6))
            self.frozen = {t: begin for t in range(begin, begin + int(rng.integers(3, 7)))}
            self.attributes.add("FL")
        else:
            self.frozen = {}
        self.glare_offset = rng.normal(0, 40, 2)
        self.glare_width = rng.uniform(50, 110)
        self.pane_scale, self.pane_offset = rng.uniform(2.2, 4.5, 2), rng.uniform(-0.8, 0.8, 2)
        self.pane_heat = rng.uniform(60, 160)

    def _trouble(self, rng, name: str, begin: int, end: int, strength: float) -> None:
        t = np.arange(self.frames)
        ramp = 1.0 if name == "flicker" else rng.uniform(2, 7)
        rise = 1.0 if begin <= 0 else np.clip((t - begin) / ramp, 0, 1)
        fall = 1.0 if end >= self.frames else np.clip((end - t) / ramp, 0, 1)
        curve = strength * rise * fall
        if name == "flicker":  # lights that go off and on abruptly
            lit = np.repeat(rng.random(self.frames // 3 + 1) < 0.25, 3)[: self.frames]
            curve = np.where(lit, -0.5 * curve, curve)
        if strength > 0.45 and name in ATTRIBUTE_OF:
            self.attributes.add(ATTRIBUTE_OF[name])
        self.troubles[name] = np.clip(self.troubles[name] + curve, -1, 1.5).astype(np.float32)

    def draw(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """The undisturbed frame t: visible (H, W, 3) and heat (H, W), float32."""
        size = (self.width, self.height)
        x, y = self.camera[t] + np.array(size) / 2 + MARGIN - 0.5
        rgb = cv2.getRectSubPix(self.visible_world, size, (float(x), float(y))).astype(np.float32)
        heat = cv2.getRectSubPix(self.heat_world, size, (float(x), float(y))).astype(np.float32)
        # Thermal crossover: living things and machines take the temperature of the ground.
        warmth = 1 - min(float(self.troubles["crossover"][t]), 1) * 0.96
        for actor in self.behind:
            actor.draw(t, rgb, heat, warmth)
        self.target.draw(t, rgb, heat, warmth)
        for actor in self.before:
            actor.draw(t, rgb, heat)
        return rgb, heat

    def render(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame t as visible and infrared images, uint8 (H, W, 3) each, RGB order."""
        rng = np.random.default_rng([self.seed, t])
        rgb, heat = self.draw(t)
        if self.frozen.get(t, t) != t:
            heat = self.draw(self.frozen[t])[1]
        return self._spoil_visible(t, rgb, rng), self._spoil_infrared(t, heat, rng)

    def _spoil_visible(self, t: int, rgb: np.ndarray, rng) -> np.ndarray:
        level = {name: float(self.troubles[name][t]) for name in VISIBLE_TROUBLES}
        if self.blur[t] > 3:
            kernel = np.zeros((11, 11), np.float32)
            reach = np.diff(self.camera[t - 1 : t + 1], axis=0)[0]
            reach = reach / (np.linalg.norm(reach) + 1e-6) * self.blur[t] / 2
            cv2.line(
                kernel,
                tuple(np.rint(5 - reach).astype(int)),
                tuple(np.rint(5 + reach).astype(int)),
                1,
            )
            rgb = cv2.filter2D(rgb, -1, kernel / kernel.sum())
        if level["smoke"] > 0:
            shift = (2 * t + self.seed) % 160
            fog = self.fog[:, shift : shift + self.width]
            alpha = np.clip(level["smoke"] * (0.62 + 0.55 * fog), 0, 0.97)[..., None]
            rgb = rgb * (1 - alpha) + 188 * alpha
        if level["glare"] > 0:
            x, y = self.target.centres[t] + self.glare_offset
            ys = np.exp(-(((np.arange(self.height) - y) / self.glare_width) ** 2) / 2)
            xs = np.exp(-(((np.arange(self.width) - x) / self.glare_width) ** 2) / 2)
            glow = (460 * level["glare"] * np.outer(ys, xs) + 60 * level["glare"]).astype(
                np.float32
            )
            rgb = rgb * (1 - 0.35 * min(level["glare"], 1)) + glow[..., None]
        dark = max(level["dark"], level["flicker"])
        gain = 1 - 0.94 * min(dark, 1.0) ** 0.45 if dark > 0 else 1 - 0.8 * level["flicker"]
        sigma = self.sigmas[0] + 4.0 * max(dark, 0) * self.severity
        return self._expose(rgb * gain, sigma, rng)

    def _spoil_infrared(self, t: int, heat: np.ndarray, rng) -> np.ndarray:
        level = {name: float(self.troubles[name][t]) for name in INFRARED_TROUBLES}
        if level["glass"] > 0:  # glass hides what is behind it from a thermal camera
            (x, y), (w, h) = self.target.centres[t], self.target.sizes[t]
            w, h = np.array([w, h]) * self.pane_scale
            x, y = np.array([x, y]) + self.pane_offset * [w, h] * 0.35
            left, top = max(int(x - w / 2), 0), max(int(y - h / 2), 0)
            pane = heat[top : max(int(y + h / 2), 0), left : max(int(x + w / 2), 0)]
            alpha = min(level["glass"] * 1.05, 0.98)
            pane *= 1 - alpha
            pane += alpha * self.pane_heat
        if level["washed"] > 0:
            keep = max(1 - 0.97 * level["washed"], 0.04)
            heat = cv2.GaussianBlur(heat, (0, 0), 0.6 + 1.8 * level["washed"])
            heat = heat * keep + (1 - keep) * 128
        if level["noise"] > 0:
            heat = heat * (1 - 0.45 * min(level["noise"], 1)) + 18 * level["noise"] * self.stripes
        sigma = self.sigmas[1] + 42 * level["noise"] + 3 * level["washed"]
        return cv2.cvtColor(self._expose(heat, sigma, rng), cv2.COLOR_GRAY2RGB)

    def _expose(self, image: np.ndarray, sigma: float, rng) -> np.ndarray:
        """Add noise of sigma grey levels and round to uint8."""
        dx, dy = rng.integers(0, 64, 2)
        grain = _grain(self.height, self.width)[dy : dy + self.height, dx : dx + self.width]
        if image.ndim == 2:
            grain = grain[..., int(rng.integers(3))]
        noisy = cv2.scaleAdd(np.ascontiguousarray(grain), float(sigma), image.astype(np.float32))
        return cv2.convertScaleAbs(np.maximum(noisy, 0))
