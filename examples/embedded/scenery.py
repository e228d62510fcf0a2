"""Paired visible and thermal backgrounds of generated sequences, and what is drawn with.

Colours are RGB in 0..255, heat is the thermal intensity in 0..255, alpha is in 0..1; everything is
float32.
"""

from __future__ import annotations

import cv2
import numpy as np


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
    """A visible image (H, W, 3) and a thermal one (H, W) that are drawn on together."""

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
