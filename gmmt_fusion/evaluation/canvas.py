"""What drawings share: figures, Okabe and Ito's colours, boxes that stay apart, and saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASH = 4.0  # lengths of a line's width


def make_axes(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes (rows, columns) of a width and height in inches each."""
    figure = make_figure(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def make_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps global state
    except ImportError as error:
        raise ImportError("plots need matplotlib; pip install 'gmmt-fusion[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def draw_boxes(axis: Axes, boxes: Mapping[str, np.ndarray], truth: np.ndarray | None) -> None:
    """Draw the boxes (4,) of trackers, a colour each, over the truth in black and white.

    Lines are thin where the target is small; boxes that coincide share the line, in dashes.
    """
    found, scale = list(boxes.values()), _points_per_pixel(axis)
    shown = [box for box in [*found, truth] if box is not None and np.isfinite(box).all()]
    sides = [min(box[2:]) * scale for box in shown]
    width = float(np.clip(min(sides, default=0) / 16, 0.8, 1.4))
    if truth is not None:
        _draw_box(axis, truth, color="black", linewidth=3 * width)
        _draw_box(axis, truth, color="white", linewidth=2 * width)
    for index, (box, colour) in enumerate(zip(found, colours(len(found)), strict=True)):
        together = [i for i, x in enumerate(found) if _distance(x, box) * scale <= 1.5 * width]
        style: Any = "-"
        if len(together) > 1:
            place, count = together.index(index), len(together)
            style = ((count - place) % count * DASH, (DASH, (count - 1) * DASH))
        _draw_box(axis, box, color=colour, linewidth=width, linestyle=style)


def _distance(box: np.ndarray, other: np.ndarray) -> float:
    """The largest between two boxes' sides, in pixels."""
    start, size = (np.subtract(box[part], other[part]) for part in (slice(2), slice(2, 4)))
    gaps = np.abs([start, start + size])
    return float(gaps.max()) if np.isfinite(gaps).all() else np.inf


def _points_per_pixel(axis: Axes) -> float:
    """The points, 1/72 inch, of an image's pixel, up to what the layout takes for titles."""
    figure: Any = axis.get_figure()
    inches = figure.get_size_inches()[0] * axis.get_position().width
    return float(72 * inches / max(abs(np.subtract(*axis.get_xlim())), 1))


def _draw_box(axis: Axes, box: np.ndarray, **style: Any) -> None:  # matplotlib's
    from matplotlib.patches import Rectangle

    x, y, w, h = (float(v) for v in box)
    axis.add_patch(Rectangle((x, y), w, h, fill=False, capstyle="butt", **style))


def label_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    """Name the rows of images at their left, and take ticks and frames away."""
    for row, name in zip(axes, names, strict=False):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=9)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure into a file, which is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=130, format=path.suffix[1:] or "png")
    )
    return path
