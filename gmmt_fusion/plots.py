"""Pictures of tracking results and features (extra `plot`); every function writes one file, atomically.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; the truth is always dashed white on black.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from .metrics import Scores

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curves(scores: Mapping[str, "Scores"], path: Any) -> Path:
    """The curves of one protocol, one panel each, a line per tracker with its headline number."""
    keys = list(next(iter(scores.values())).curves)
    figure, axes = _figure(1, len(keys), 4.6, 3.8)
    for axis, key in zip(axes[0], keys, strict=True):
        for (tracker, score), colour in zip(scores.items(), _cycle(len(scores)), strict=True):
            curve = score.curves[key]
            axis.plot(curve.thresholds, curve.values, color=colour, label=f"{tracker} {score.numbers[key]:.1f}")
        axis.set(xlabel=curve.label, ylabel=f"{key} (%)", ylim=(0, 100))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return _save(figure, path)


def tracked_frames(visible: Sequence[np.ndarray], infrared: Sequence[np.ndarray], boxes: Mapping[str, np.ndarray],
                   path: Any, frames: Sequence[int] = (), truth: np.ndarray | None = None, title: str = "") -> Path:
    """Frames of a sequence with several trackers' boxes: visible above, infrared below, one column a frame.

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
            for (_, track), colour in zip(boxes.items(), _cycle(len(boxes)), strict=True):
                _box(axis, track[index], color=colour, linewidth=1.8)
            if truth is not None:
                _box(axis, truth[index], color="black", linewidth=1.6)
                _box(axis, truth[index], color="white", linewidth=1.0, linestyle="--")
        axes[0, column].set_title(f"frame {index + 1}", fontsize=9)
    handles = [figure.axes[0].plot([], [], color=colour, label=name)[0]
               for name, colour in zip(boxes, _cycle(len(boxes)), strict=True)]
    if truth is not None:
        handles.append(figure.axes[0].plot([], [], color="black", linestyle="--", label="truth")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def feature_maps(pictures: Mapping[str, np.ndarray], maps: Mapping[str, "Tensor"], path: Any, title: str = "") -> Path:
    """Search patches, and beside them the energy of feature maps: the channels' root mean square at each position.

    Args:
        pictures: (H, W, 3) or (H, W) with their captions; `maps`: (C, h, w) with theirs, each scaled to itself.
    """
    figure, axes = _figure(1, len(pictures) + len(maps), 2.1, 2.2)
    for axis, (name, picture) in zip(axes[0], pictures.items(), strict=False):
        axis.imshow(picture, cmap="gray")
        axis.set_title(name, fontsize=9)
    for axis, (name, channels) in zip(axes[0, len(pictures):], maps.items(), strict=True):
        channels = channels.detach().float().cpu()
        deviation = channels - channels.mean((-1, -2), keepdim=True)
        energy = deviation.square().mean(0).sqrt().numpy()
        # the range is the inner part's: zero padding lights up a convolution's borders
        inner = energy[tuple(slice(side // 8, side - side // 8) for side in energy.shape)]
        axis.imshow(energy, cmap="viridis", interpolation="bicubic", vmin=inner.min(), vmax=inner.max())
        axis.set_title(name, fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _figure(rows: int, columns: int, width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps global state
    except ImportError as error:
        raise ImportError("pictures need matplotlib; pip install 'gmmt-fusion[plot]'") from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _box(axis: "Axes", box: Sequence[float], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    x, y, w, h = (float(v) for v in box)
    axis.add_patch(Rectangle((x, y), w, h, fill=False, **style))


def _save(figure: Any, path: Any) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format=path.suffix[1:] or "png"))
    return path
