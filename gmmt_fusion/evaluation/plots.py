"""Pictures of tracking results and features (extra `plot`); every function writes one file,
atomically.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the truth is always dashed
white on black.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from .metrics import Scores

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curves(scores: Mapping[str, "Scores"], path: Any) -> Path:
    """The curves of one protocol, one panel each, a line per tracker with its headline number.

    Of a long-term protocol precision over recall, with F and a dot where it is largest: the
    confidences of different trackers share no scale.
    """
    keys = list(next(iter(scores.values())).curves)
    long_term = "recall" in keys
    panels = ["precision"] if long_term else keys
    figure, axes = _figure(1, len(panels), 4.6, 3.8)
    for axis, key in zip(axes[0], panels, strict=True):
        for (tracker, score), colour in zip(scores.items(), _cycle(len(scores)), strict=True):
            curve, numbers = score.curves[key], score.numbers
            over = score.curves["recall"].values if long_term else curve.thresholds
            headline = f"F {numbers['F']:.1f}" if long_term else f"{numbers[key]:.1f}"
            axis.plot(over, curve.values, color=colour, label=f"{tracker} {headline}")
            if long_term:
                axis.plot(numbers["recall"], numbers["precision"], "o", color=colour)
        axis.set(
            xlabel="recall (%)" if long_term else curve.label, ylabel=f"{key} (%)", ylim=(0, 100)
        )
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return _save(figure, path)


def tracked_frames(
    visible: Sequence[np.ndarray],
    infrared: Sequence[np.ndarray],
    boxes: Mapping[str, np.ndarray],
    path: Any,
    frames: Sequence[int] = (),
    truth: np.ndarray | None = None,
    title: str = "",
) -> Path:
    """Frames of a sequence with several trackers' boxes: visible above, infrared below, one column
    a frame.

    Args:
        visible, infrared: pictures (H, W, 3) or (H, W), uint8 RGB.
        boxes: for each tracker (N, 4) as x, y, w, h in pixels from the top left; `truth`: the same.
        frames: indices to show, default five spread evenly.
    """
    chosen = list(frames) or [round(i) for i in np.linspace(0, len(visible) - 1, 5)]
    figure, axes = _figure(2, len(chosen), 2.8, 2.3)
    for column, index in enumerate(chosen):
        for axis, picture in zip(axes[:, column], (visible[index], infrared[index]), strict=True):
            axis.imshow(picture, cmap="gray")
            axis.set_axis_off()
            for rank, (track, colour) in enumerate(
                zip(boxes.values(), _cycle(len(boxes)), strict=True), 1
            ):
                # wider than the truth, and the earlier ones wider still, so that equal boxes show
                # as rims
                _box(axis, track[index], color=colour, linewidth=2.6 + 1.2 * (len(boxes) - rank))
            if truth is not None:
                _box(axis, truth[index], color="black", linewidth=1.6)
                _box(axis, truth[index], color="white", linewidth=1.0, linestyle="--")
        axes[0, column].set_title(f"frame {index + 1}", fontsize=9)
    handles = [
        figure.axes[0].plot([], [], color=colour, label=name)[0]
        for name, colour in zip(boxes, _cycle(len(boxes)), strict=True)
    ]
    if truth is not None:
        handles.append(figure.axes[0].plot([], [], color="black", linestyle="--", label="truth")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def feature_maps(
    pictures: Mapping[str, np.ndarray], maps: Mapping[str, "Tensor"], path: Any, title: str = ""
) -> Path:
    """Search patches, and beside them the energy of feature maps: the channels' deviation from
    their means, root mean square over channels at each position.

    Args:
        pictures: (H, W, 3) or (H, W) with their captions; `maps`: (C, h, w) with theirs, each
            scaled to itself.
    """
    figure, axes = _figure(1, len(pictures) + len(maps), 2.1, 2.2)
    for axis, (name, picture) in zip(axes[0], pictures.items(), strict=False):
        axis.imshow(picture, cmap="gray")
        axis.set_title(name, fontsize=9)
    for axis, (name, channels) in zip(axes[0, len(pictures) :], maps.items(), strict=True):
        _show_energy(axis, channels)
        axis.set_title(name, fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def tsne(maps: Mapping[str, "Tensor"], path: Any, title: str = "", seed: int = 0) -> Path:
    """t-SNE of several kinds of maps in one plane, a point a map: the paper's Fig. 4 (a, b).

    Whole maps, flattened, go through PCA to at most 50 components and t-SNE with the usual
    perplexity of 30, less where there are fewer than 90 points. Distances between far points mean
    nothing; kinds that mix share a space.

    Args:
        maps: (N, …) of each kind, as `{"fused": …, "fused*": …}`.
        seed: of PCA and t-SNE.

    Raises:
        ValueError: fewer than 10 maps, maps that are not finite, or of different shapes.
    """
    arrays = {name: _array(kind).reshape(len(kind), -1) for name, kind in maps.items()}
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
    figure, axes = _figure(1, 1, 5.2, 5.2)
    axis = axes[0, 0]
    start = 0
    for index, ((name, array), colour) in enumerate(
        zip(arrays.items(), _cycle(len(arrays)), strict=True)
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


def structural_similarity(fused: "Tensor", generated: "Tensor") -> float:
    """SSIM (Wang et al. 2004) of two maps (C, H, W), averaged over channels and positions; 1 for
    equal maps.

    Of every channel, not of one picture made of them: a head sees the channels, and maps of the
    same energy may differ in all of them. A channel's range is that of `fused`; channels that are
    constant there do not count. Window (7×7, less on smaller maps), constants and sample
    covariances are scikit-image's defaults.

    Raises:
        ValueError: maps of different shapes, smaller than 3×3, or without a channel that varies.
    """
    from torch.nn.functional import avg_pool2d

    if fused.shape != generated.shape or fused.ndim != 3 or min(fused.shape[1:]) < 3:
        raise ValueError(
            f"SSIM got maps of {tuple(fused.shape)} and {tuple(generated.shape)}; expected one "
            "shape "
            "(C, H, W) of at least 3×3 positions"
        )
    x, y = (maps.detach().cpu().double() for maps in (fused, generated))
    least, most = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    varying = (most > least).flatten()
    if not varying.any():
        raise ValueError(
            "SSIM got a fused map without a channel that varies; look at the host's inputs and "
            "weights"
        )
    x, y = (((maps - least) / (most - least))[varying] for maps in (x, y))
    side = min(7, *x.shape[1:])
    side -= 1 - side % 2
    mean_x, mean_y, xx, yy, xy = (
        avg_pool2d(v, side, stride=1) for v in (x, y, x * x, y * y, x * y)
    )
    sample = side**2 / (side**2 - 1)
    variances, covariance = (
        sample * (xx - mean_x**2 + yy - mean_y**2),
        sample * (xy - mean_x * mean_y),
    )
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return float((luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)).mean())


def sampling_steps(
    fused: "Tensor",
    estimates: Sequence["Tensor"],
    timesteps: Sequence[float],
    path: Any,
    title: str = "",
) -> Path:
    """The estimate of x_0 at each sampling step with its SSIM to the host's fused map: the paper's
    Fig. 5.

    Above, the energy of at most eight of the estimates of the first item, the last included, and of
    its fused map, each scaled to itself; below, `structural_similarity` at every step, the mean
    over the batch and its range.

    Args:
        fused: (B, C, H, W); `estimates`: the same for each step, as `GenerativeFusion.sample`
            returns them with `return_intermediates`; `timesteps`: t of each.
    """
    if not estimates or len(estimates) != len(timesteps):
        raise ValueError(
            f"got {len(estimates)} estimates and {len(timesteps)} timesteps; expected as many, at "
            "least 1"
        )
    scores = np.array(
        [[structural_similarity(*pair) for pair in zip(fused, x, strict=True)] for x in estimates]
    )
    shown = sorted({round(i) for i in np.linspace(0, len(estimates) - 1, 8)})
    several = len(estimates) > 1  # one step makes no curve
    figure = _blank(1.5 * len(shown) + 1.5, 4.3 if several else 2.3)
    parts = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
    panels = [(estimates[i][0], f"t = {timesteps[i]:g}\nSSIM {scores[i, 0]:.4f}") for i in shown]
    for axis, (channels, caption) in zip(
        parts[0].subplots(1, len(shown) + 1), [*panels, (fused[0], "fused\n(host)")], strict=True
    ):
        _show_energy(axis, channels)
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
    figure.suptitle(title, fontsize=10)
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
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        points
    ), perplexity


def _array(maps: "Tensor") -> np.ndarray:
    return maps.detach().float().cpu().numpy()


def _show_energy(axis: "Axes", channels: "Tensor") -> None:
    """Draw the root mean square over channels, each from its own mean, of a map (C, h, w)."""
    array = _array(channels)
    energy = np.sqrt(np.square(array - array.mean((1, 2), keepdims=True)).mean(0))
    # the range is the inner part's: zero padding lights up a convolution's borders
    inner = energy[tuple(slice(side // 8, side - side // 8) for side in energy.shape)]
    axis.imshow(energy, cmap="viridis", interpolation="bicubic", vmin=inner.min(), vmax=inner.max())


def _figure(rows: int, columns: int, width: float, height: float) -> Any:
    figure = _blank(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _blank(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps global state
    except ImportError as error:
        raise ImportError("pictures need matplotlib; pip install 'gmmt-fusion[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _box(axis: "Axes", box: Sequence[float], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    x, y, w, h = (float(v) for v in box)
    axis.add_patch(Rectangle((x, y), w, h, fill=False, **style))


def _save(figure: Any, path: Any) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=130, format=path.suffix[1:] or "png")
    )
    return path
