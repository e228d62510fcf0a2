"""The command `python -m gmmt_fusion figures`: what a fusion generates in a user's tracker, as
pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from . import layouts as benchmarks
from . import plots

PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}


@dataclass
class Example:
    """One frame of a sequence: the search patches (H, W, 3), and maps (C, h, w)."""

    frame: int
    patches: list[np.ndarray]
    features: list[Any]
    fused: Any
    generated: Any


def add_command(commands: Any) -> None:
    """Add `figures` to argparse's subparsers."""
    command = commands.add_parser(
        "figures",
        help="draw what a fusion generates in a tracker: t-SNE, feature maps, sampling steps, boxes",
        description="Runs the tracker with its own fusion, generates the map of the same frames, and draws both.",
    )
    command.set_defaults(run=_figures)
    command.add_argument(
        "--tracker",
        required=True,
        metavar="SPEC",
        help="module:function or file.py:function that returns the tracker, as for `track`",
    )
    command.add_argument(
        "--fusion", metavar="DIR", help="folder or hub id; omit where the function attaches its own"
    )
    command.add_argument("--benchmark", required=True, choices=benchmarks.BENCHMARKS)
    command.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="the benchmark's sequences"
    )
    command.add_argument(
        "--sequences",
        type=Path,
        metavar="FILE",
        help="names of the sequences to take, one per line",
    )
    command.add_argument(
        "--frames",
        type=int,
        default=500,
        metavar="N",
        help="points of the t-SNE, spread over all frames (default: %(default)s)",
    )
    command.add_argument(
        "--steps",
        type=int,
        default=10,
        metavar="N",
        help="sampling steps to draw, of diffusion (default: %(default)s)",
    )
    command.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of result files, one per tracker: draws their boxes into frames",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of t-SNE and of noise that is not fixed"
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the pictures"
    )


def collect(
    tracker: Any,
    sequences: Sequence[Any],
    frames: int = 500,
    progress: Callable[[], object] | None = None,
) -> tuple[Any, Any, dict[str, Example]]:
    """Run the tracker with its own fusion, and generate the map of some of its frames.

    Args:
        tracker: with a fusion attached; `sequences`: of `tracking.open_sequences`.
        frames: how many maps to take, evenly spread over all frames but the first ones.
        progress: called after every frame.

    Returns:
        The host's fused maps and the generated ones, (N, C, H, W) each on the CPU; and the frame in
        the middle of those taken of each sequence, by its name. Where several maps are fused in one
        frame, the last one.

    Raises:
        ValueError: nothing is attached, or no map would be generated.
    """
    import torch

    from ..attaching.attachment import Attachment
    from .tracking import run

    handle = Attachment.of(tracker)
    places = [(sequence, frame) for sequence in sequences for frame in range(len(sequence))]
    searched = [index for index, (_, frame) in enumerate(places) if frame > 0]
    chosen = {
        searched[i]
        for i in np.linspace(0, len(searched) - 1, min(frames, len(searched))).round().astype(int)
    }
    of_sequence: dict[str, list[int]] = {}
    for index in sorted(chosen):
        of_sequence.setdefault(places[index][0].name, []).append(index)
    shown = {indices[len(indices) // 2] for indices in of_sequence.values()}
    pysot = not hasattr(tracker, "initialize")  # and gets BGR: see `run`
    numbers = itertools.count()
    fused: list[Any] = []
    generated: list[Any] = []
    examples: dict[str, Example] = {}

    def keep() -> None:
        index = next(numbers)
        if index in chosen and pairs:
            features, host = pairs[-1]
            made = handle.fusion(*features)
            fused.append(host[0].cpu())
            generated.append(made[0].cpu())
            if index in shown:
                sequence, frame = places[index]
                patches = _patches(seen, (pysot, pysot or sequence.auxiliary.depth))
                examples[sequence.name] = Example(
                    frame, patches, [f[0] for f in features], host[0], made[0]
                )
        pairs.clear()
        seen.clear()
        if progress is not None:
            progress()

    with handle.recorded() as pairs, _first_convolutions(handle) as seen:
        for sequence in sequences:
            run(tracker, sequence, keep)
    if not fused:
        raise ValueError(
            f"the tracker ran {len(places)} frames, and none of its maps is one that would be "
            "generated: "
            "look at the adapter's size, and whether the tracker calls the network with the fusion"
        )
    return torch.stack(fused), torch.stack(generated), examples


@contextlib.contextmanager
def _first_convolutions(handle: Any) -> Iterator[list[Any]]:
    """Collect the pictures, (B, 3, H, W) or (B, 3·m, H, W), that the host's first convolutions
    see.
    """
    from torch import nn

    seen: list[Any] = []
    channels = 3, 3 * handle.fusion.modalities
    own = set(handle.fusion.modules())
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in handle.network.modules()
        if isinstance(module, nn.Conv2d) and module.in_channels in channels and module not in own
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _patches(seen: Sequence[Any], bgr: Sequence[bool]) -> list[np.ndarray]:
    """The search patches (H, W, 3), visible and auxiliary, among what the first convolutions saw;
    [] if they saw none.

    Each channel is stretched to its range, as hosts differ in their normalisation. The search
    patches are the largest, templates being smaller, and trackers take the visible one first.
    """
    pictures = [
        p
        for x in seen
        for p in rearrange(x[0].detach().float().cpu(), "(m c) h w -> m h w c", c=3).numpy()
    ]
    largest = max((picture.size for picture in pictures), default=0)
    patches: list[np.ndarray] = []
    for picture in pictures:
        if picture.size == largest and not any(np.array_equal(picture, other) for other in patches):
            patches.append(picture)
    stretched = [
        (patch - patch.min((0, 1))) / np.maximum(np.ptp(patch, (0, 1)), 1e-6) for patch in patches
    ]
    return [
        patch[..., ::-1] if flip else patch for patch, flip in zip(stretched, bgr, strict=False)
    ]


def _figures(options: argparse.Namespace) -> None:
    from ..attaching.attachment import Attachment
    from ..checks import check_whole_number
    from ..model.methods import Diffusion
    from . import tracking

    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise ImportError(f"figures need {package}; pip install 'gmmt-fusion[plot,track]'")
    check_whole_number("--frames", options.frames, 5)
    names = benchmarks.read_names(options.sequences) if options.sequences else None
    sequences = tracking.open_sequences(options.data, options.benchmark, names)
    results = _read_results(options.results, options.benchmark, sequences)
    tracker = tracking.load_tracker(options.tracker, options.fusion)
    try:
        fusion = Attachment.of(tracker).fusion.manual_seed(options.seed)
    except ValueError as error:
        raise ValueError(f"{error}, or give --fusion") from None
    if isinstance(fusion.method, Diffusion):
        check_whole_number(
            "--steps", options.steps, 1, fusion.method.scheduler.config.num_train_timesteps
        )

    from tqdm import tqdm

    with tqdm(total=sum(map(len, sequences)), desc="track", unit="frame") as bar:
        fused, generated, examples = collect(tracker, sequences, options.frames, bar.update)
    title = f"{options.benchmark}, {len(sequences)} sequence{'s' * (len(sequences) > 1)}"
    print(
        plots.tsne(
            {"fused (host)": fused, "fused* (generated)": generated},
            options.out / "tsne.png",
            title,
            options.seed,
        )
    )
    if isinstance(fusion.method, Diffusion):
        print(_sampling_steps(fusion, options.steps, examples, options.out / "sampling_steps.png"))
    else:
        print(
            f"no sampling_steps.png: a fusion of method={fusion.config['method']!r} takes no steps"
        )
    for name, example in examples.items():
        print(_feature_maps(example, options.benchmark, options.out / f"features_{name}.png", name))
    for sequence in sequences if results else ():
        print(
            _tracked_frames(sequence, results, options.out / f"tracked_frames_{sequence.name}.png")
        )


def _sampling_steps(fusion: Any, steps: int, examples: dict[str, Example], path: Path) -> Path:
    import torch

    taken = dict(list(examples.items())[:8])  # the shown one, and a few for the curve
    features = [
        torch.stack(maps)
        for maps in zip(*(example.features for example in taken.values()), strict=True)
    ]
    _, estimates = fusion.sample(features, steps=steps, return_intermediates=True)
    scheduler = type(fusion.method.scheduler).from_config(fusion.method.scheduler.config)
    scheduler.set_timesteps(steps)
    name, example = next(iter(taken.items()))
    return plots.sampling_steps(
        torch.stack([example.fused for example in taken.values()]),
        estimates,
        scheduler.timesteps.tolist(),
        path,
        f"{name}, frame {example.frame + 1}: s = {steps}",
    )


def _feature_maps(example: Example, benchmark: str, path: Path, name: str) -> Path:
    pictures = (
        ("visible", "depth")
        if benchmarks.BENCHMARKS[benchmark].long_term
        else ("visible", "infrared")
    )
    features = [f"f_{kind}" for kind in ("rgb", "depth" if pictures[1] == "depth" else "tir")]
    similarity = plots.structural_similarity(example.fused, example.generated)
    return plots.feature_maps(
        dict(zip(pictures, example.patches, strict=False)),
        {
            **dict(zip(features, example.features, strict=False)),
            "fused (host)": example.fused,
            f"fused*, SSIM {similarity:.4f}": example.generated,
        },
        path,
        f"{name}, frame {example.frame + 1}",
    )


def _tracked_frames(sequence: Any, results: dict[str, dict[str, np.ndarray]], path: Path) -> Path:
    boxes = {name: found[sequence.name] for name, found in results.items()}
    last = min(map(len, [sequence.visible, sequence.auxiliary, *boxes.values()])) - 1
    truth = (
        None if sequence.truth is None or len(sequence.truth) <= last else sequence.truth
    )  # some ship one box only
    return plots.tracked_frames(
        sequence.visible,
        sequence.auxiliary,
        boxes,
        path,
        [round(i) for i in np.linspace(0, last, 5)],
        truth,
        sequence.name,
    )


def _read_results(
    folders: Sequence[Path], benchmark: str, sequences: Sequence[Any]
) -> dict[str, dict[str, np.ndarray]]:
    """{tracker: {sequence: boxes (N, 4)}}, each tracker called as its folder, or by the path where
    two are alike.
    """
    results = {}
    for name, folder in benchmarks.tracker_names(folders).items():
        results[name], _ = benchmarks.read_results(
            folder, benchmark, [sequence.name for sequence in sequences]
        )
        for sequence in sequences:
            count = len(results[name][sequence.name])
            if abs(count - len(sequence)) > 1:  # some sets lack a picture at the end
                raise ValueError(
                    f"{folder}: {count} boxes of {sequence.name}, which has {len(sequence)} frames"
                )
    return results
