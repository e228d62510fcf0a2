"""What generated sequences are drawn of: paired visible and thermal backgrounds, and sprites.

Colours are RGB in 0..255, heat is the thermal intensity in 0..255, alpha is in 0..1; everything is
float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

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


def noise_map(
    rng: np.random.Generator, height: int, width: int, octaves=(4, 9, 20, 45), roughness=0.6
) -> np.ndarray:
    """Multi-octave noise (height, width), normalised to 0..1."""
    total = np.zeros((height, width), np.float32)
    weight = 1.0
    for cells in octaves:
        rows = max(2, round(cells * height / width))
        total += weight * cv2.resize(
            rng.random((rows, cells), dtype=np.float32),
            (width, height),
            interpolation=cv2.INTER_LINEAR,
        )
        weight *= roughness
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low + 1e-6)


class Canvas:
    """A visible picture (H, W, 3) and a thermal one (H, W) that are drawn on together."""

    def __init__(self, height: int, width: int, colour, heat: float):
        self.rgb = np.empty((height, width, 3), np.float32)
        self.rgb[:] = np.asarray(colour, np.float32)
        self.heat = np.full((height, width), float(heat), np.float32)

    @property
    def size(self) -> tuple[int, int]:
        return self.heat.shape[1], self.heat.shape[0]

    def polygon(self, points, colour, heat: float) -> None:
        points = np.round(np.asarray(points)).astype(np.int32)
        cv2.fillPoly(self.rgb, [points], _rgb(colour), cv2.LINE_AA)
        cv2.fillPoly(self.heat, [points], float(heat), cv2.LINE_AA)

    def rectangle(self, x, y, w, h, colour, heat: float) -> None:
        corners = (round(x), round(y)), (round(x + w), round(y + h))
        cv2.rectangle(self.rgb, *corners, _rgb(colour), -1)
        cv2.rectangle(self.heat, *corners, float(heat), -1)

    def ellipse(self, x, y, rx, ry, colour, heat: float, angle: float = 0.0) -> None:
        arguments = (round(x), round(y)), (max(1, round(rx)), max(1, round(ry))), angle, 0, 360
        cv2.ellipse(self.rgb, *arguments, _rgb(colour), -1, cv2.LINE_AA)
        cv2.ellipse(self.heat, *arguments, float(heat), -1, cv2.LINE_AA)

    def line(self, points, colour, heat: float, thickness: int) -> None:
        points = [np.round(np.asarray(points)).astype(np.int32)]
        cv2.polylines(self.rgb, points, False, _rgb(colour), thickness, cv2.LINE_AA)
        cv2.polylines(self.heat, points, False, float(heat), thickness, cv2.LINE_AA)


def _rgb(colour) -> tuple[float, float, float]:
    return tuple(float(c) for c in colour)


def tint(rng: np.random.Generator, colour, amount: float = 18.0) -> np.ndarray:
    """A colour (3,) near the given one."""
    return np.clip(
        np.asarray(colour, np.float32) + rng.normal(0, amount, 3).astype(np.float32), 5, 250
    )


def muted(rng: np.random.Generator, low: float, high: float, saturation: float = 0.6) -> np.ndarray:
    """A random colour (3,) that is partly grey, as most painted and woven things are."""
    colour = rng.uniform(low, high, 3)
    return (saturation * colour + (1 - saturation) * colour.mean()).astype(np.float32)


def _trees(canvas: Canvas, rng, count: int, region, heat: float) -> None:
    """Clusters of blobs inside region (x, y, w, h), pixels."""
    x0, y0, w, h = region
    for _ in range(count):
        x, y = x0 + rng.random() * w, y0 + rng.random() * h
        green = tint(rng, (58, 92, 48), 12)
        radius = rng.uniform(10, 26)
        warmth = heat + rng.normal(0, 6)
        for _ in range(7):
            dx, dy = rng.normal(0, radius * 0.45, 2)
            shade = rng.uniform(0.7, 1.3)
            rx, ry = radius * rng.uniform(0.3, 0.6, 2)
            canvas.ellipse(x + dx, y + dy, rx, ry, green * shade, warmth + rng.normal(0, 5))


def _building(canvas: Canvas, rng, x, y, w, h) -> None:
    wall = tint(
        rng, [(150, 130, 112), (120, 120, 128), (165, 150, 130), (110, 84, 72)][rng.integers(4)], 10
    )
    heat = rng.uniform(80, 140)
    canvas.rectangle(x, y, w, h, wall, heat)
    canvas.rectangle(x, y, w, max(3, 0.06 * h), wall * 0.6, heat - 25)
    step, lit = rng.integers(16, 28), rng.uniform(-30, 60)
    for row in np.arange(y + 10, y + h - 12, step):
        for column in np.arange(x + 7, x + w - 9, step):
            shine = rng.uniform(0.5, 1.3)
            canvas.rectangle(
                column,
                row,
                step * 0.45,
                step * 0.5,
                np.array((70, 84, 100)) * shine,
                heat + lit * shine,
            )


def _road(canvas: Canvas, rng) -> None:
    width, height = canvas.size
    skyline = rng.uniform(0.16, 0.3) * height
    x = -10.0
    while x < width:
        w = rng.uniform(60, 140)
        if rng.random() < 0.7:
            _building(canvas, rng, x, skyline - rng.uniform(30, 70), w, skyline)
        x += w + rng.uniform(0, 40)
    _trees(canvas, rng, 10, (0, skyline * 0.8, width, 40), rng.uniform(60, 95))
    middle, slope, wide = (
        rng.uniform(0.5, 0.75) * height,
        rng.uniform(-0.12, 0.12),
        rng.uniform(0.28, 0.45) * height,
    )
    xs = np.linspace(-20, width + 20, 12)
    ys = (
        middle
        + slope * (xs - width / 2)
        + 14 * np.sin(xs / width * rng.uniform(2, 5) + rng.uniform(0, 6))
    )
    asphalt, warmth = tint(rng, (92, 92, 96), 5), rng.uniform(95, 140)
    canvas.line(np.stack([xs, ys], 1), asphalt * 1.25, warmth - 12, int(wide) + 22)
    canvas.line(np.stack([xs, ys], 1), asphalt, warmth, int(wide))
    for i in range(0, 60, 2):  # lane marks
        t = np.array([i, i + 1]) / 60 * (width + 40) - 20
        canvas.line(np.stack([t, np.interp(t, xs, ys)], 1), (205, 205, 195), warmth - 8, 3)
    if rng.random() < 0.6:  # a zebra crossing
        x = rng.uniform(0.3, 0.7) * width
        for row in np.arange(-wide * 0.42, wide * 0.42, 13):
            canvas.rectangle(x, np.interp(x, xs, ys) + row, 34, 6, (200, 200, 196), warmth - 9)


def _plaza(canvas: Canvas, rng) -> None:
    width, height = canvas.size
    step = int(rng.integers(22, 44))
    stone, warmth = tint(rng, (156, 148, 138), 6), float(canvas.heat[0, 0])
    for row in range(0, height, step):
        for column in range(-step * (row // step % 2) // 2, width, step):
            shade = rng.uniform(0.9, 1.08)
            canvas.rectangle(
                column + 1, row + 1, step - 3, step - 3, stone * shade, warmth + 40 * (shade - 1)
            )
    for _ in range(6):
        x, y = rng.random() * width, rng.random() * height
        w, h = rng.uniform(24, 80), rng.uniform(14, 44)
        if rng.random() < 0.5:  # flower beds, then benches
            canvas.ellipse(x, y, w * 0.6, h * 0.7, tint(rng, (70, 100, 52)), warmth - 30)
            for _ in range(14):
                dx, dy = rng.normal(0, 0.25, 2)
                canvas.ellipse(
                    x + dx * w, y + dy * h, 3, 3, tint(rng, (190, 90, 110), 45), warmth - 24
                )
        else:
            canvas.rectangle(
                x, y, w * 0.7, 9, tint(rng, (120, 84, 52)), warmth + rng.uniform(-20, 20)
            )
            canvas.rectangle(
                x, y + 11, w * 0.7, 5, tint(rng, (96, 66, 42)), warmth + rng.uniform(-20, 20)
            )
    _building(
        canvas, rng, rng.uniform(0, 0.6) * width, -20, rng.uniform(100, 220), rng.uniform(60, 120)
    )


def _park(canvas: Canvas, rng) -> None:
    width, height = canvas.size
    xs = np.linspace(-20, width + 20, 14)
    for _ in range(int(rng.integers(1, 3))):
        bend = np.sin(xs / rng.uniform(50, 120) + rng.uniform(0, 6))
        ys = rng.uniform(0.3, 0.8) * height + rng.uniform(15, 60) * bend
        canvas.line(
            np.stack([xs, ys], 1),
            tint(rng, (164, 146, 116)),
            rng.uniform(110, 150),
            int(rng.integers(14, 38)),
        )
    _trees(canvas, rng, int(rng.integers(12, 26)), (0, 0, width, height), rng.uniform(55, 100))
    for _ in range(12):
        x, y, r = rng.random() * width, rng.random() * height, rng.uniform(3, 11)
        grey = rng.uniform(90, 160)
        canvas.ellipse(x, y, r, r * 0.7, (grey, grey, grey * 0.95), rng.uniform(70, 165))


def _harbour(canvas: Canvas, rng) -> None:
    width, height = canvas.size
    for _ in range(160):  # waves
        x, y, length = rng.random() * width, rng.random() * height, rng.uniform(8, 34)
        shade = rng.uniform(0.8, 1.35)
        canvas.line(
            [(x, y), (x + length, y + rng.normal(0, 1.5))],
            np.array((70, 98, 118)) * shade,
            62 + 30 * shade,
            1,
        )
    for _ in range(int(rng.integers(2, 4))):  # piers
        x, w = rng.random() * width, rng.uniform(26, 60)
        top = rng.random() < 0.5
        y, h = (
            (-5, rng.uniform(0.2, 0.45) * height)
            if top
            else (height * rng.uniform(0.6, 0.85), height)
        )
        wood, warmth = tint(rng, (126, 104, 82)), rng.uniform(110, 160)
        canvas.rectangle(x, y, w, h, wood, warmth)
        for row in np.arange(max(y, 0), min(y + h, height), 8):
            canvas.rectangle(x, row, w, 1, wood * 0.7, warmth - 15)
    for _ in range(10):
        x, y = rng.random() * width, rng.random() * height
        canvas.ellipse(x, y, 5, 5, tint(rng, (200, 90, 50), 30), rng.uniform(80, 170))


PLACES = {"road": _road, "plaza": _plaza, "park": _park, "harbour": _harbour}
GROUND = {
    "road": (96, 108, 74),
    "plaza": (140, 134, 126),
    "park": (92, 116, 66),
    "harbour": (66, 92, 112),
}


def background(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """A textured place: visible (height, width, 3), heat (height, width), and its name."""
    place = list(PLACES)[rng.integers(len(PLACES))]
    canvas = Canvas(height, width, tint(rng, GROUND[place], 6), rng.uniform(75, 125))
    PLACES[place](canvas, rng)
    texture = noise_map(rng, height, width, (6, 16, 50, 120, 220), 0.75) - 0.5
    light = (
        noise_map(rng, height, width, (3, 6, 12), 0.5) - 0.5
    )  # shadows of clouds and trees: visible only
    warmth = noise_map(rng, height, width, (4, 10, 40, 110), 0.6) - 0.5
    gain = 1 + rng.uniform(0.4, 0.9) * texture + rng.uniform(0.2, 0.7) * light
    visible = canvas.rgb * gain[..., None] * rng.uniform(0.8, 1.15)
    heat = (
        cv2.GaussianBlur(canvas.heat, (0, 0), 0.8)
        + rng.uniform(25, 55) * warmth
        + rng.uniform(0, 25) * texture
    )
    return np.clip(visible, 0, 255), np.clip(heat, 8, 235), place


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


def shrink(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A sprite (h, w, 5) averaged down to (height, width, 5).

    In two parts, as OpenCV resizes four channels at most.
    """
    parts = (np.ascontiguousarray(picture[..., :3]), np.ascontiguousarray(picture[..., 3:]))
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
