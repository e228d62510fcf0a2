"""Drawings of tracking results and features (extra `plot`); each is one file, whole or not there.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the truth is always dashed
white on black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..files import write_atomically
from .metrics import PROTOCOLS, Scores
from .text_files import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


class Frames(Protocol):
    """Images (H, W, 3) or (H, W), uint8 RGB: a list, or anything that reads them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_curves(scores: Mapping[str, Scores], path: str | Path) -> Path:
    """Draw the curves of one protocol, a panel each, a line per tracker with its headline number.

    Of a long-term protocol precision over recall, with F and a dot where it is largest: the
    confidences of different trackers share no scale.
    """
    any_score = next(iter(scores.values()))
    long_term = PROTOCOLS[any_score.protocol].long_term
    panels = ["precision"] if long_term else list(any_score.curves)
    figure, axes = _make_axes(1, len(panels), 4.6, 3.8)
    for axis, key in zip(axes[0], panels, strict=True):
        for (tracker, score), colour in zip(scores.items(), _colours(len(scores)), strict=True):
            curve, numbers = score.curves[key], score.numbers
            over = score.curves["recall"].values if long_term else curve.thresholds
            headline = f"F {numbers['F']:.1f}" if long_term else f"{numbers[key]:.1f}"
            axis.plot(over, curve.values, color=colour, label=f"{printable(tracker)} {headline}")
            if long_term:
                axis.plot(numbers["recall"], numbers["precision"], "o", color=colour)
        axis.set(
            xlabel="recall (%)" if long_term else curve.label, ylabel=f"{key} (%)", ylim=(0, 100)
        )
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return _save(figure, path)


def draw_tracked_frames(
    visible: Frames,
    auxiliary: Frames,
    boxes: Mapping[str, np.ndarray],
    path: str | Path,
    frames: Sequence[int] = (),
    truth: np.ndarray | None = None,
    title: str = "",
) -> Path:
    """Draw several trackers' boxes into frames: a column each, visible above, auxiliary below.

    Args:
        visible, auxiliary: images (H, W, 3) or (H, W), uint8 RGB.
        boxes: for each tracker (N, 4) as x, y, w, h in pixels from the top left.
        frames: indices to show, default five spread evenly.
        truth: (N, 4), as the boxes.
    """
    chosen = list(frames) or [round(i) for i in np.linspace(0, len(visible) - 1, 5)]
    figure, axes = _make_axes(2, len(chosen), 2.8, 2.3)
    for column, index in enumerate(chosen):
        for axis, image in zip(axes[:, column], (visible[index], auxiliary[index]), strict=True):
            axis.imshow(image, cmap="gray")
            axis.set_axis_off()
            for rank, (track, colour) in enumerate(
                zip(boxes.values(), _colours(len(boxes)), strict=True), 1
            ):
                # wider than the truth, and the earlier ones wider still, so that equal boxes show
                # as rims
                _draw_box(
                    axis, track[index], color=colour, linewidth=2.6 + 1.2 * (len(boxes) - rank)
                )
            if truth is not None:
                _draw_box(axis, truth[index], color="black", linewidth=1.6)
                _draw_box(axis, truth[index], color="white", linewidth=1.0, linestyle="--")
        axes[0, column].set_title(f"frame {index + 1}", fontsize=9)
    handles = [
        figure.axes[0].plot([], [], color=colour, label=printable(name))[0]
        for name, colour in zip(boxes, _colours(len(boxes)), strict=True)
    ]
    if truth is not None:
        handles.append(figure.axes[0].plot([], [], color="black", linestyle="--", label="truth")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(printable(title), fontsize=10)
    return _save(figure, path)


def draw_feature_maps(
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, Tensor],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw search patches, and beside them the energy of feature maps.

    Energy is the channels' deviation from their means, root mean square over channels at each
    position.

    Args:
        images: (H, W, 3) or (H, W) with their captions.
        maps: (C, h, w) with theirs, each scaled to itself.
    """
    figure, axes = _make_axes(1, len(images) + len(maps), 2.1, 2.2)
    for axis, (name, image) in zip(axes[0], images.items(), strict=False):
        axis.imshow(image, cmap="gray")
        axis.set_title(name, fontsize=9)
    for axis, (name, channels) in zip(axes[0, len(images) :], maps.items(), strict=True):
        _draw_energy(axis, channels)
        axis.set_title(name, fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    figure.suptitle(printable(title), fontsize=10)
    return _save(figure, path)


def draw_tsne(maps: Mapping[str, Tensor], path: str | Path, title: str = "", seed: int = 0) -> Path:
    """Draw the t-SNE of several kinds of maps, a point a map: the paper's Fig. 4 (a, b).

    Whole maps, flattened, go through PCA to at most 50 components and t-SNE with the usual
    perplexity of 30, less where there are fewer than 90 points. Distances between far points mean
    nothing; kinds that mix share a space.

    Args:
        maps: (N, …) of each kind, as `{"fused": …, "fused*": …}`.
        seed: of PCA and t-SNE.

    Raises:
        ValueError: fewer than 10 maps, maps that are not finite, or of different shapes.
    """
    arrays = {name: _to_numpy(kind).reshape(len(kind), -1) for name, kind in maps.items()}
    if len({array.shape[1] for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name!r} {tuple(kind.shape[1:])}" for name, kind in maps.items())
        raise ValueError(f"t-SNE needs maps of one shape; got {shapes}")
    points = np.concatenate(list(arrays.values()))
    if len(points) < 10:
        raise ValueError(f"t-SNE got {len(points)} maps; expected at least 10: take more frames")
    if not np.isfinite(points).all():
        raise ValueError(
            "t-SNE got maps with NaN or infinity; look at the host's inputs and weights"
        )
    plane, perplexity = _embed(points, seed)
    figure, axes = _make_axes(1, 1, 5.2, 5.2)
    axis = axes[0, 0]
    start = 0
    for index, ((name, array), colour) in enumerate(
        zip(arrays.items(), _colours(len(arrays)), strict=True)
    ):
        x, y = plane[start : start + len(array)].T
        start += len(array)
        # hollow, as what is generated well lies on what it was generated after
        axis.scatter(
            x,
            y,
            marker=("o", "*", "^", "s")[index % 4],
            s=(55, 30)[index % 2],
            facecolors="none",
            edgecolors=colour,
            linewidths=0.9,
            label=f"{name}: {len(array)}",
        )
    axis.set(
        xticks=[],
        yticks=[],
        xlabel="t-SNE 1",
        ylabel="t-SNE 2",
        aspect="equal",
        adjustable="datalim",
    )
    axis.set_title(f"{title}\n(perplexity {perplexity:.3g}, seed {seed})".strip(), fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(arrays), frameon=False)
    return _save(figure, path)


def draw_sampling_steps(
    fused: Tensor,
    estimates: Sequence[Tensor],
    timesteps: Sequence[float],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw the estimate of x_0 at each sampling step, with its SSIM: the paper's Fig. 5.

    Above, the energy of at most eight of the estimates of the first item, the last included, and of
    its fused map, each scaled to itself; below, `structural_similarity` at every step, the mean
    over the batch and its range.

    Args:
        fused: the host's, (B, C, H, W).
        estimates: (B, C, H, W) of each step, as `GenerativeFusion.sample` returns them with
            `return_intermediates`.
        timesteps: t of each step.
    """
    from .similarity import structural_similarity  # needs torch, which the other plots do not

    if not estimates or len(estimates) != len(timesteps):
        raise ValueError(
            f"got {len(estimates)} estimates and {len(timesteps)} timesteps; expected as "
            "many, at least 1"
        )
    scores = np.array(
        [[structural_similarity(*pair) for pair in zip(fused, x, strict=True)] for x in estimates]
    )
    shown = sorted({round(i) for i in np.linspace(0, len(estimates) - 1, 8)})
    several = len(estimates) > 1  # one step makes no curve
    figure = _make_figure(1.5 * len(shown) + 1.5, 4.3 if several else 2.3)
    parts = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
    panels = [(estimates[i][0], f"t = {timesteps[i]:g}\nSSIM {scores[i, 0]:.4f}") for i in shown]
    for axis, (channels, caption) in zip(
        parts[0].subplots(1, len(shown) + 1), [*panels, (fused[0], "fused\n(host)")], strict=True
    ):
        _draw_energy(axis, channels)
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(caption, fontsize=9)
    if several:
        axis = parts[1].subplots()
        axis.plot(
            timesteps,
            scores.mean(1),
            color=COLOURS[0],
            marker="o",
            markersize=4,
            label=f"mean of {len(fused)} maps",
        )
        # down to 0.9 at least, for what is near 1 is to look so
        axis.set(
            xlabel="time step t", ylabel="SSIM to fused", ylim=(min(0.9, scores.min() - 0.02), 1.01)
        )
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        if len(fused) > 1:
            axis.fill_between(
                timesteps,
                scores.min(1),
                scores.max(1),
                color=COLOURS[0],
                alpha=0.2,
                linewidth=0,
                label="their range",
            )
            axis.legend(frameon=False)
    figure.suptitle(printable(title), fontsize=10)
    return _save(figure, path)


def _embed(points: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Points (N, D) in the plane (N, 2) by PCA and t-SNE, and the perplexity that was taken."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn; pip install 'gmmt-fusion[plot]'") from error
    perplexity = min(30.0, len(points) / 3)
    points = PCA(min(50, *points.shape), random_state=seed).fit_transform(points)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return embedding.fit_transform(points), perplexity


def _to_numpy(maps: Tensor) -> np.ndarray:
    return np.asarray(maps.detach().float().cpu())


def _draw_energy(axis: Axes, channels: Tensor) -> None:
    """Draw the root mean square over channels, each from its own mean, of a map (C, h, w)."""
    array = _to_numpy(channels)
    energy = np.sqrt(np.square(array - array.mean((1, 2), keepdims=True)).mean(0))
    # the range is the inner part's: zero padding lights up a convolution's borders
    inner = energy[tuple(slice(side // 8, side - side // 8) for side in energy.shape)]
    axis.imshow(energy, cmap="viridis", interpolation="bicubic", vmin=inner.min(), vmax=inner.max())


def _make_axes(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes (rows, columns) of a width and height in inches each."""
    figure = _make_figure(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _make_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps global state
    except ImportError as error:
        raise ImportError("plots need matplotlib; pip install 'gmmt-fusion[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _draw_box(axis: Axes, box: np.ndarray, **style: Any) -> None:  # matplotlib's
    from matplotlib.patches import Rectangle

    x, y, w, h = (float(v) for v in box)
    axis.add_patch(Rectangle((x, y), w, h, fill=False, **style))


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=130, format=path.suffix[1:] or "png")
    )
    return path
