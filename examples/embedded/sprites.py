"""Sprites of the objects in generated sequences.

Colours are RGB in 0..255, heat is the thermal intensity in 0..255, alpha is in 0..1; everything is
float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .scenery import Canvas, muted, noise_map

SPRITE = 80  # longer side of a sprite at its finest level, pixels


ASPECTS = {
    "person": 0.42,
    "cyclist": 0.8,
    "car": 2.0,
    "van": 1.5,
    "dog": 1.45,
    "boat": 1.7,
    "drone": 1.9,
    "ball": 1.0,
}


PHASES = {"person": 4, "cyclist": 2, "dog": 2}  # poses of the kinds that move their legs


@dataclass
class Look:
    """What tells one object of a kind from another: colours (3,), heats, seeds of its patterns."""

    body: np.ndarray
    second: np.ndarray
    heat: float
    hot: float
    pattern: int
    heat_pattern: int
    strength: float = field(default=0.5)

    @classmethod
    def random(cls, rng: np.random.Generator, surrounding: float) -> Look:
        # Most objects differ from the surrounding heat; a few hardly do.
        sign = 1.0 if rng.random() < 0.75 else -1.0
        heat = np.clip(surrounding + sign * rng.uniform(14, 64), 15, 215)
        body, second = muted(rng, 20, 240), muted(rng, 20, 220)
        pattern, heat_pattern = (int(p) for p in rng.integers(0, 2**31, 2))
        hot = float(np.clip(heat + rng.uniform(10, 50), 20, 245))
        return cls(
            body, second, float(heat), hot, pattern, heat_pattern, float(rng.uniform(0.3, 0.8))
        )


def sprite(kind: str, look: Look, phase: int = 0) -> np.ndarray:
    """One pose of an object, (h, w, 5): premultiplied RGB, premultiplied heat, alpha."""
    aspect = ASPECTS[kind]
    scale = 2  # drawn at twice the size, then averaged: smooth edges
    h = round(scale * (SPRITE if aspect <= 1 else SPRITE / aspect))
    w = round(scale * (SPRITE * aspect if aspect <= 1 else SPRITE))
    canvas, mask = Canvas(h, w, look.body, look.heat), Canvas(h, w, (0, 0, 0), 0)

    def part(shape: str, *geometry, colour=look.body, heat=look.heat) -> None:
        x, y, a, b = (g * s for g, s in zip(geometry, (w, h, w, h), strict=True))
        getattr(canvas, shape)(x, y, a, b, colour, heat)
        getattr(mask, shape)(x, y, a, b, (0, 0, 0), 1.0)

    dark = np.array((28, 28, 32), np.float32)
    _BODIES[kind](part, look, dark, phase)
    rng, heat_rng = np.random.default_rng(look.pattern), np.random.default_rng(look.heat_pattern)
    blotch = noise_map(rng, h, w, (3, 6, 12), 0.8) - 0.5
    warmth = noise_map(heat_rng, h, w, (3, 5, 9), 0.7) - 0.5
    stripes = np.sin(np.arange(h, dtype=np.float32) / h * rng.uniform(8, 30) + rng.uniform(0, 6))[
        :, None
    ]
    rgb = canvas.rgb * (1 + look.strength * (1.2 * blotch + 0.25 * stripes))[..., None]
    heat = canvas.heat + 45 * look.strength * warmth
    stacked = (
        np.dstack([np.clip(rgb, 4, 252), np.clip(heat, 4, 252), np.ones_like(heat)])
        * mask.heat[..., None]
    )
    return shrink(stacked, w // scale, h // scale)


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A sprite (h, w, 5) averaged down to (height, width, 5).

    In two parts, as OpenCV resizes four channels at most.
    """
    parts = (np.ascontiguousarray(image[..., :3]), np.ascontiguousarray(image[..., 3:]))
    return np.dstack(
        [cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA) for part in parts]
    )


def _person(part, look, dark, phase):
    swing = (0.0, 0.16, 0.0, -0.16)[phase % 4]
    for side in (-1, 1):
        part(
            "rectangle",
            0.36 + side * (0.13 + swing),
            0.55,
            0.24,
            0.40,
            colour=look.second,
            heat=look.heat - 8,
        )
        part(
            "rectangle",
            0.36 + side * (0.15 + swing),
            0.94,
            0.28,
            0.06,
            colour=dark,
            heat=look.heat - 22,
        )
        part(
            "rectangle",
            0.40 + side * 0.34 - swing * side * 0.3,
            0.22,
            0.18,
            0.32,
            heat=look.heat - 4,
        )
    part("rectangle", 0.18, 0.19, 0.64, 0.40)
    part("ellipse", 0.5, 0.1, 0.24, 0.1, colour=(196, 152, 124), heat=look.hot)


def _cyclist(part, look, dark, phase):
    for x in (0.22, 0.78):
        part("ellipse", x, 0.80, 0.21, 0.2, colour=dark, heat=look.heat - 26)
        part("ellipse", x, 0.80, 0.12, 0.12, colour=(120, 120, 120), heat=look.heat - 36)
    part("rectangle", 0.24, 0.66, 0.52, 0.06, colour=look.second, heat=look.heat - 12)
    part(
        "rectangle",
        0.42 + 0.06 * (phase % 2),
        0.50,
        0.14,
        0.36,
        colour=look.second,
        heat=look.heat - 4,
    )
    part("rectangle", 0.34, 0.2, 0.3, 0.38)
    part("rectangle", 0.58, 0.28, 0.22, 0.1)
    part("ellipse", 0.5, 0.1, 0.13, 0.1, colour=(196, 152, 124), heat=look.hot)


def _car(part, look, dark, phase):
    part("ellipse", 0.5, 0.42, 0.34, 0.4)
    part("rectangle", 0.02, 0.38, 0.96, 0.44)
    part("ellipse", 0.42, 0.36, 0.15, 0.22, colour=(58, 70, 84), heat=look.heat - 34)
    part("ellipse", 0.64, 0.36, 0.13, 0.22, colour=(58, 70, 84), heat=look.heat - 34)
    part("rectangle", 0.78, 0.44, 0.2, 0.22, heat=look.hot)
    part("rectangle", 0.0, 0.62, 1.0, 0.1, colour=look.second, heat=look.heat + 6)
    for x in (0.22, 0.78):
        part("ellipse", x, 0.82, 0.1, 0.18, colour=dark, heat=look.hot - 8)


def _van(part, look, dark, phase):
    part("rectangle", 0.0, 0.02, 0.68, 0.8)
    part("rectangle", 0.66, 0.2, 0.33, 0.62, colour=look.second)
    part("rectangle", 0.76, 0.26, 0.2, 0.22, colour=(58, 70, 84), heat=look.heat - 32)
    part("rectangle", 0.08, 0.2, 0.5, 0.2, colour=look.second, heat=look.heat + 8)
    part("rectangle", 0.72, 0.56, 0.26, 0.2, heat=look.hot)
    for x in (0.2, 0.8):
        part("ellipse", x, 0.84, 0.1, 0.16, colour=dark, heat=look.hot - 10)


def _dog(part, look, dark, phase):
    shift = 0.05 * (phase % 2)
    for x in (0.2 - shift, 0.32 + shift, 0.62 - shift, 0.74 + shift):
        part("rectangle", x, 0.55, 0.09, 0.45, colour=look.second, heat=look.heat - 6)
    part("ellipse", 0.48, 0.48, 0.34, 0.24)
    part("ellipse", 0.84, 0.26, 0.16, 0.22, heat=look.hot)
    part("rectangle", 0.0, 0.26, 0.18, 0.12, colour=look.second)
    part("rectangle", 0.76, 0.0, 0.09, 0.22, colour=look.second)


def _boat(part, look, dark, phase):
    part("rectangle", 0.0, 0.58, 1.0, 0.2)
    part("rectangle", 0.1, 0.72, 0.8, 0.28, colour=look.second, heat=look.heat - 16)
    part("rectangle", 0.28, 0.26, 0.42, 0.34, colour=(214, 214, 208), heat=look.heat + 8)
    part("rectangle", 0.34, 0.32, 0.3, 0.14, colour=(58, 70, 84), heat=look.heat - 20)
    part("rectangle", 0.46, 0.0, 0.06, 0.28, colour=dark)
    part("ellipse", 0.1, 0.62, 0.09, 0.16, colour=dark, heat=look.hot)


def _drone(part, look, dark, phase):
    part("rectangle", 0.1, 0.32, 0.8, 0.12, colour=dark, heat=look.heat - 10)
    for x in (0.15, 0.85):
        part("ellipse", x, 0.2, 0.15, 0.12, colour=look.second, heat=look.hot)
        part("rectangle", x - 0.03, 0.2, 0.06, 0.7, colour=dark, heat=look.hot - 6)
    part("ellipse", 0.5, 0.52, 0.25, 0.36)
    part("ellipse", 0.5, 0.82, 0.1, 0.18, colour=look.second, heat=look.hot)


def _ball(part, look, dark, phase):
    part("ellipse", 0.5, 0.5, 0.49, 0.49)
    part("ellipse", 0.4, 0.42, 0.26, 0.24, colour=look.second, heat=look.hot)
    part("ellipse", 0.66, 0.7, 0.14, 0.14, colour=look.second, heat=look.heat - 16)


_BODIES = {
    "person": _person, "cyclist": _cyclist, "car": _car, "van": _van,
    "dog": _dog, "boat": _boat, "drone": _drone, "ball": _ball,
}  # fmt: skip
