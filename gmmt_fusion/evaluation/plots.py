"""Drawings of tracking results and features (extra `plot`); each is one file, whole or not there.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the truth is always white on
black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .canvas import COLOURS, colours, draw_boxes, label_rows, make_axes, make_figure, save
from .metrics import PROTOCOLS, Scores
from .text_files import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


class Frames(Protocol):
    """Images (H, W, 3) or (H, W), uint8 RGB: a list, or anything that reads them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


MEASURES = {"P": "precision", "N": "normalised precision", "S": "success"}
MARKERS = ("o", "*", "^", "s")
MOST_GROUPS, MOST_STEPS = 12, 10  # that a legend can name; that fit beside one another


def draw_curves(scores: Mapping[str, Scores], path: str | Path, title: str = "") -> Path:
    """Draw the curves of one protocol, a panel each, a line per tracker with its headline number.

    Of a long-term protocol precision over recall, with F and a dot where it is largest: the
    confidences of different trackers share no scale.
    """
    any_score = next(iter(scores.values()))
    long_term = PROTOCOLS[any_score.protocol].long_term
    panels = ["precision"] if long_term else list(any_score.curves)
    figure, axes = make_axes(1, len(panels), 4.6, 3.8)
    for axis, key in zip(axes[0], panels, strict=True):
        for (tracker, score), colour in zip(scores.items(), colours(len(scores)), strict=True):
            curve, numbers = score.curves[key], score.numbers
            over = score.curves["recall"].values if long_term else curve.thresholds
            headline = f"F {numbers['F']:.1f}" if long_term else f"{key} {numbers[key]:.1f}"
            axis.plot(over, curve.values, color=colour, label=f"{printable(tracker)} {headline}")
            if long_term:
                axis.plot(numbers["recall"], numbers["precision"], "o", color=colour)
        axis.set(
            xlabel="recall (%)" if long_term else curve.label,
            ylabel=f"{key if long_term else MEASURES[key.removeprefix('M')[0]]} (%)",
            ylim=(0, 100),
        )
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(printable(title), fontsize=10)
    return save(figure, path)


def draw_tracked_frames(
    visible: Frames,
    auxiliary: Frames,
    boxes: Mapping[str, np.ndarray],
    path: str | Path,
    frames: Sequence[int] = (),
    truth: np.ndarray | None = None,
    title: str = "",
    rows: Sequence[str] = ("visible", "infrared"),
) -> Path:
    """Draw several trackers' boxes into frames: a column each, visible above, auxiliary below.

    Lines are thin where the target is small, and dashed in turn where boxes coincide.

    Args:
        visible, auxiliary: images (H, W, 3) or (H, W), uint8 RGB.
        boxes: for each tracker (N, 4) as x, y, w, h in pixels from the top left.
        frames: indices to show, default five spread evenly.
        truth: (N, 4), as the boxes.
        rows: the names of the modalities.
    """
    chosen = list(frames) or [round(i) for i in np.linspace(0, len(visible) - 1, 5)]
    figure, axes = make_axes(2, len(chosen), 2.8, 2.3)
    for column, index in enumerate(chosen):
        for axis, image in zip(axes[:, column], (visible[index], auxiliary[index]), strict=True):
            axis.imshow(image, cmap="gray")
            found = {name: track[index] for name, track in boxes.items()}
            draw_boxes(axis, found, None if truth is None else truth[index])
        axes[0, column].set_title(f"frame {index + 1}", fontsize=9)
    label_rows(axes, rows)
    handles = [
        figure.axes[0].plot([], [], color=colour, label=printable(name))[0]
        for name, colour in zip(boxes, colours(len(boxes)), strict=True)
    ]
    if truth is not None:
        from matplotlib.lines import Line2D
        from matplotlib.patheffects import withStroke

        outline = withStroke(linewidth=3.5, foreground="black")
        handles.append(Line2D([], [], color="white", label="truth", path_effects=[outline]))
    columns = min(len(handles), 2 * len(chosen))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(printable(title), fontsize=10)
    return save(figure, path)


def draw_feature_maps(
    images: Mapping[str, np.ndarray],
    maps: Sequence[Mapping[str, Tensor]],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw search patches, and beside them the energy of feature maps.

    Energy is the channels' deviation from their means, root mean square over channels at each
    position.

    Args:
        images: (H, W, 3) or (H, W) with their captions.
        maps: groups of maps (C, h, w) with theirs; those of a group are to be compared, and have
            one scale, with a colour bar.
    """
    groups = [dict(group) for group in maps]
    figure, axes = make_axes(1, len(images) + sum(map(len, groups)), 2.2, 2.5)
    for axis, (name, image) in zip(axes[0], images.items(), strict=False):
        axis.imshow(image, cmap="gray")
        axis.set_title(name, fontsize=9)
    first = len(images)
    for group in groups:
        panels = list(axes[0, first : first + len(group)])
        first += len(group)
        _draw_energies(panels, list(group.values()))
        for axis, name in zip(panels, group, strict=True):
            axis.set_title(name, fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    figure.suptitle(printable(title), fontsize=10)
    return save(figure, path)


def draw_tsne(
    maps: Mapping[str, Tensor],
    path: str | Path,
    title: str = "",
    seed: int = 0,
    sequences: Sequence[str] = (),
) -> Path:
    """Draw the t-SNE of several kinds of maps, a point a map: the paper's Fig. 4 (a, b).

    Whole maps, flattened, go through PCA to at most 50 components and t-SNE with the usual
    perplexity of 30, less where there are fewer than 90 points. Distances between far points mean
    nothing; kinds that mix share a space.

    Args:
        maps: (N, …) of each kind, as `{"fused": …, "fused*": …}`.
        seed: of PCA and t-SNE.
        sequences: the name of each map's, the same for every kind. Up to twelve have a colour and a
            number at their middle; else the colours are those of the kinds.

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
    figure, axes = make_axes(1, 1, 5.6, 5.6)
    axis = axes[0, 0]
    names = list(dict.fromkeys(sequences)) if len(set(sequences)) <= MOST_GROUPS else []
    places = {name: np.array([name == other for other in sequences]) for name in names}
    kinds = np.split(plane, np.cumsum([len(array) for array in arrays.values()])[:-1])
    for index, (name, points) in enumerate(zip(arrays, kinds, strict=True)):
        # hollow, as what is generated well lies on what it was generated after
        style: dict[str, Any] = {"facecolors": "none", "linewidths": 0.9}
        style |= {"marker": MARKERS[index % 4], "s": (55, 30)[index % 2]}
        if not places:
            colour = COLOURS[index % len(COLOURS)]
            axis.scatter(*points.T, edgecolors=colour, label=f"{name}: {len(points)}", **style)
            continue
        axis.scatter([], [], edgecolors="black", label=f"{name}: {len(points)}", **style)
        for which, colour in zip(places.values(), colours(len(places)), strict=True):
            axis.scatter(*points[which].T, edgecolors=colour, **style)
    for number, (name, colour) in enumerate(zip(places, colours(len(places)), strict=True), 1):
        middle = np.median(np.concatenate([points[places[name]] for points in kinds]), 0)
        box = {"facecolor": "white", "edgecolor": colour, "alpha": 0.85, "pad": 1.5}
        axis.annotate(str(number), middle, ha="center", va="center", fontsize=9, bbox=box)
        axis.plot([], [], "s", color=colour, label=f"{number}  {printable(name)}")
    axis.set(
        xticks=[],
        yticks=[],
        xlabel="t-SNE 1",
        ylabel="t-SNE 2",
        aspect="equal",
        adjustable="datalim",
    )
    axis.set_title(f"{title}\n(perplexity {perplexity:.3g}, seed {seed})".strip(), fontsize=9)
    longest = max(map(len, [*arrays, *places])) + 12  # with marker and count
    columns = max(1, min(3 if places else len(arrays), 78 // longest))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return save(figure, path)


def draw_sampling_steps(
    fused: Tensor,
    estimates: Sequence[Tensor],
    timesteps: Sequence[float],
    path: str | Path,
    title: str = "",
) -> Path:
    """Draw the estimate of x_0 at each sampling step, with its SSIM: the paper's Fig. 5.

    Above, the energy of the estimates of the first item and of its fused map, to one scale: of all
    steps, or of ten of them, the last included, which the figure then says; below,
    `structural_similarity` at every step, the mean over the batch and its range.

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
    shown = sorted({round(i) for i in np.linspace(0, len(estimates) - 1, MOST_STEPS)})
    several = len(estimates) > 1  # one step makes no curve
    figure = make_figure(1.5 * len(shown) + 2.5, 4.6 if several else 2.5)
    parts = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
    panels = [(estimates[i][0], f"t = {timesteps[i]:g}\nSSIM {scores[i, 0]:.4f}") for i in shown]
    axes = list(parts[0].subplots(1, len(shown) + 1))
    _draw_energies(axes, [channels for channels, _ in panels] + [fused[0]])
    captions = [*(caption for _, caption in panels), "fused\n(host)"]
    for axis, caption in zip(axes, captions, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(caption, fontsize=8)
    if len(shown) < len(estimates):
        title = f"{title}; {len(shown)} of {len(estimates)} steps are shown, the curve has all"
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
    return save(figure, path)


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


def _energy(channels: Tensor) -> np.ndarray:
    """The root mean square over channels (h, w), each from its own mean, of a map (C, h, w)."""
    array = _to_numpy(channels)
    return np.asarray(np.sqrt(np.square(array - array.mean((1, 2), keepdims=True)).mean(0)))


def _draw_energies(axes: Sequence[Axes], maps: Sequence[Tensor]) -> None:
    """Draw the energies of maps (C, h, w) to one scale, with a colour bar beside the last."""
    energies = [_energy(channels) for channels in maps]
    # the range is the inner parts': zero padding lights up a convolution's borders
    inner = [e[tuple(slice(side // 8, side - side // 8) for side in e.shape)] for e in energies]
    least, most = min(part.min() for part in inner), max(part.max() for part in inner)
    for axis, energy in zip(axes, energies, strict=True):
        image = axis.imshow(energy, cmap="viridis", interpolation="bicubic", vmin=least, vmax=most)
    figure: Any = axes[0].get_figure()
    bar = figure.colorbar(image, ax=list(axes), shrink=0.7, pad=0.02, extend="both")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("energy, rms over channels", fontsize=7)
