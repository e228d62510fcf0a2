"""The figures of a fusion in a user's tracker: what it generates beside what the host fuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..attaching.attachment import Attachment
from ..checks import check_whole_number
from ..model.fusion import GenerativeFusion
from ..model.methods import Diffusion
from . import plots
from .frames import Images
from .layouts import get_layout
from .maps import Example, collect_maps
from .result_files import name_trackers, read_results
from .sequences import TrackingSequence
from .similarity import structural_similarity

PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}


def check_packages() -> None:
    """Raise ImportError unless everything that figures need is installed."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise ImportError(f"figures need {package}; pip install 'gmmt-fusion[plot,track]'")


def draw_figures(
    tracker: Any,  # a user's object, see `trackers`
    sequences: Sequence[TrackingSequence],
    layout: str,
    out: Path,
    *,
    results: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    frames: int = 500,
    steps: int = 10,
    seed: int = 0,
) -> Iterator[str]:
    """Run a tracker with its own fusion, generate the maps of the same frames, and draw both.

    Args:
        tracker: with a fusion attached.
        sequences: of that layout, to run it over.
        layout: a name in `LAYOUTS`, for titles and captions.
        out: folder of the figures.
        results: {tracker: {sequence: boxes (N, 4)}} to draw into frames; see `read_tracked`.
        frames: points of the t-SNE, spread over all frames.
        steps: sampling steps to draw, of diffusion.
        seed: of t-SNE, and of noise that is not fixed.

    Yields:
        The path of every figure once it is written, or why there is none.

    Raises:
        ValueError: nothing is attached to the tracker, or no map would be generated.
    """
    from tqdm import tqdm

    try:
        fusion = Attachment.of(tracker).fusion.manual_seed(seed)
    except ValueError as error:
        raise ValueError(f"{error}, or give --fusion") from None
    scheduler = fusion.method.scheduler if isinstance(fusion.method, Diffusion) else None
    if scheduler is not None:
        check_whole_number("--steps", steps, 1, scheduler.config.num_train_timesteps)
    with tqdm(total=sum(map(len, sequences)), desc="track", unit="frame") as bar:
        maps = collect_maps(tracker, sequences, frames, bar.update)
    kinds = {"fused (host)": maps.fused, "fused* (generated)": maps.generated}
    examples = maps.examples
    title = f"{layout}, {len(sequences)} sequence{'s' * (len(sequences) > 1)}"
    yield str(plots.draw_tsne(kinds, out / "tsne.png", title, seed, maps.sequences))
    if scheduler is not None:
        yield str(_draw_steps(fusion, scheduler, steps, examples, out / "sampling_steps.png"))
    else:
        method = fusion.config.method
        yield f"no sampling_steps.png: a fusion of method={method!r} takes no steps"
    auxiliary = ("depth", "f_depth") if get_layout(layout).depth else ("infrared", "f_tir")
    for name, example in examples.items():
        yield str(_draw_example(example, auxiliary, out / f"features_{name}.png", name))
    for sequence in sequences if results else ():
        path = out / f"tracked_frames_{sequence.name}.png"
        boxes = {name: found[sequence.name] for name, found in (results or {}).items()}
        yield str(_draw_tracked(sequence, boxes, path, ("visible", auxiliary[0])))


def read_tracked(
    folders: Sequence[Path], layout: str, sequences: Sequence[TrackingSequence]
) -> dict[str, dict[str, np.ndarray]]:
    """{tracker: {sequence: boxes (N, 4)}} of folders of result files; see `name_trackers`.

    Raises:
        OSError: a file is missing. ValueError: a file has boxes of other frames.
    """
    results = {}
    for name, folder in name_trackers(folders).items():
        results[name], _ = read_results(folder, layout, [sequence.name for sequence in sequences])
        for sequence in sequences:
            count = len(results[name][sequence.name])
            if abs(count - len(sequence)) > 1:  # some sets lack an image at the end
                raise ValueError(
                    f"{folder}: {count} boxes of {sequence.name}, which has {len(sequence)} frames"
                )
    return results


def _draw_steps(
    fusion: GenerativeFusion,
    scheduler: Any,  # one of diffusers', which this room does not import
    steps: int,
    examples: Mapping[str, Example],
    path: Path,
) -> Path:
    taken = dict(list(examples.items())[:8])  # the shown one, and a few for the curve
    features = [
        torch.stack(maps)
        for maps in zip(*(example.features for example in taken.values()), strict=True)
    ]
    _, estimates = fusion.sample(features, steps=steps, return_intermediates=True)
    own = type(scheduler).from_config(scheduler.config)  # and the fusion's stays as it is
    own.set_timesteps(steps)
    name, example = next(iter(taken.items()))
    return plots.draw_sampling_steps(
        torch.stack([example.fused for example in taken.values()]),
        estimates,
        own.timesteps.tolist(),
        path,
        f"{name}, frame {example.frame + 1}: s = {steps}",
    )


def _draw_example(example: Example, auxiliary: tuple[str, str], path: Path, name: str) -> Path:
    """Patches and maps of one frame; `auxiliary` names the second modality's image and features."""
    images, features = ("visible", auxiliary[0]), ("f_rgb", auxiliary[1])
    similarity = structural_similarity(example.fused, example.generated)
    return plots.draw_feature_maps(
        dict(zip(images, example.patches, strict=False)),
        [
            dict(zip(features, example.features, strict=False)),
            {"fused (host)": example.fused, f"fused*, SSIM {similarity:.3f}": example.generated},
        ],
        path,
        f"{name}, frame {example.frame + 1}",
    )


def _draw_tracked(
    sequence: TrackingSequence,
    boxes: Mapping[str, np.ndarray],
    path: Path,
    rows: Sequence[str],
) -> Path:
    visible, auxiliary = sequence.visible, sequence.auxiliary
    assert isinstance(visible, Images) and isinstance(auxiliary, Images)  # as a layout's are
    last = min(len(visible), len(auxiliary), *map(len, boxes.values())) - 1
    truth = sequence.truth
    if truth is not None and len(truth) <= last:  # some ship one box only
        truth = None
    both = zip(visible.paths[: last + 1], auxiliary.paths, strict=False)
    there = [i for i, paths in enumerate(both) if None not in paths]
    spread = [there[round(i)] for i in np.linspace(0, len(there) - 1, 5)]
    return plots.draw_tracked_frames(
        visible, auxiliary, boxes, path, spread, truth, sequence.name, rows
    )
