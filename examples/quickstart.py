"""A pretrained RGB-T tracker, its fusion replaced in two lines and fine-tuned: before and after.

    python examples/quickstart.py                 # generated sequences: minutes on two cores
    python examples/quickstart.py --pretrained    # without the training: seconds
    python examples/quickstart.py --data DIR      # your own sequences, in LasHeR's or GTOT's layout

The tracker comes with this repository; the fine-tuning pairs are generated, from other seeds than
the test sequences. Writes into --out: table.md, results.json, the fine-tuned `fusion/`, result
files, and images. Interrupted, and started again, it goes on with the training.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from embedded.sequences import (
    TEST_SEEDS,
    TRAIN_SEEDS,
    RGBTSequence,
    generate_sequence,
    read_sequences,
)
from embedded.siamese import SEARCH_MAP, SiameseTracker, load_tracker
from embedded.tracking import Tracker, run
from embedded.training import PairDataset, Scenes, Twins
from torch.utils.data import DataLoader
from tqdm import tqdm

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.evaluation import plots
from gmmt_fusion.evaluation.attributes import explain
from gmmt_fusion.evaluation.metrics import Scores, evaluate
from gmmt_fusion.files import write_atomically
from gmmt_fusion.training import fine_tune
from gmmt_fusion.training.checkpoints import list_checkpoints
from gmmt_fusion.training.degradation import KINDS

BASE, GMMT = "base", "+GMMT"
SAVE_EVERY = 10  # steps
# what `python examples/quickstart.py --out runs/shipped` leaves in runs/shipped/fusion
SHIPPED = Path(__file__).parent / "embedded" / "fusion"


def main(options: argparse.Namespace) -> int:
    torch.manual_seed(options.seed)
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    print(announce(options), file=sys.stderr)
    sequences = load_sequences(options)
    tracker = load_tracker()
    handle = attach_fusion(tracker, options)
    boxes, rates = track_all({BASE: load_tracker(), GMMT: tracker}, sequences)

    scores = {name: score(found, sequences) for name, found in boxes.items()}
    table = markdown(scores, rates, handle)
    print(f"\n{table}\n")
    write(options, scores, boxes, table, rates)
    draw_results(options.out, sequences, boxes, scores, handle)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**30 if sys.platform == "darwin" else 2**20
    )
    print(f"{time.monotonic() - started:.0f} s, peak memory {peak:.1f} GB; look into {options.out}")
    print(tell_what_is_next(options))
    return 0


def announce(options: argparse.Namespace) -> str:
    """What is going to happen, and for how long."""
    tested = str(options.data) if options.data else f"{options.sequences} generated sequences"
    if options.pretrained:
        return f"Tracks {tested} without and with the fusion in {SHIPPED}."
    folder, steps = training_folder(options), options.steps
    training = f"Fine-tunes a generative fusion for {steps} steps (checkpoints in {folder})"
    if (folder / "final").is_dir():
        training = (
            f"Takes the fusion fine-tuned before, {folder / 'final'} (delete it to train anew)"
        )
    elif saved := list_checkpoints(folder / "checkpoints"):
        done = int(saved[-1].name.removeprefix("step-"))
        training = f"Goes on with the fine-tuning after step {done} of {steps}"
    minutes = 1 + steps / 75 + (0 if options.data else options.sequences / 20)
    threads = torch.get_num_threads()
    return (
        f"{training}, and tracks {tested} without and with it: about {minutes:.0f} minutes on two "
        f"free cores. {threads} thread{'s' * (threads > 1)}: other numbers of threads round "
        "otherwise, and tracking and training then end at other scores: by a point of SR on 24 "
        "videos."
    )


def attach_fusion(tracker: SiameseTracker, options: argparse.Namespace) -> Attachment:
    """Replace the tracker's fusion by a fine-tuned one: trained now, before, or by us."""
    adapter = ModuleAdapter(fusion="fusion", head="head", size=SEARCH_MAP)
    final = training_folder(options) / "final"
    if options.pretrained or final.is_dir():
        handle = attach(tracker, SHIPPED if options.pretrained else final, adapter)
    else:
        handle = fine_tune_fusion(tracker, adapter, options)
    if not options.pretrained:
        handle.fusion.about.setdefault("training", {})["command"] = command_of(options)
        handle.save_pretrained(options.out / "fusion", license="apache-2.0")
    return handle


def command_of(options: argparse.Namespace) -> str:
    """What trains this fusion."""
    names = ("method", "network", "steps", "seed")
    given = " ".join(f"--{name} {getattr(options, name)}" for name in names)
    return f"python examples/quickstart.py {given}"


def fine_tune_fusion(
    tracker: SiameseTracker, adapter: ModuleAdapter, options: argparse.Namespace
) -> Attachment:
    print("rendering the fine-tuning pairs …", file=sys.stderr)
    pairs = DataLoader(
        Twins(TRAIN_SEEDS, sequences=100, length=16 * options.steps, seed=options.seed), 16
    )
    calibration = DataLoader(
        PairDataset(TRAIN_SEEDS, sequences=20, length=128, seed=options.seed + 1), 16
    )
    preset = {"uvit": "small", "unet": "small-unet"}[options.network]
    fusion = GenerativeFusion.preset(
        preset, 64, SEARCH_MAP, method=options.method, residual="conv3x3"
    )
    handle = attach(tracker, fusion, adapter, calibrate=[(batch,) for batch in calibration])
    handle.print_trainable_parameters()
    # the features of degraded scenes, the fused map of their clean twins
    handle.degradation = Scenes(0.3, KINDS)
    fine_tune(
        handle,
        pairs,
        lambda network, batch: network(batch)["total_loss"],
        training_folder(options),
        epochs=1,
        seed=options.seed,
        save_every=SAVE_EVERY,
    )
    return handle


def tell_what_is_next(options: argparse.Namespace) -> str:
    fusion = SHIPPED if options.pretrained else options.out / "fusion"
    return (
        f"next: gmmt-fusion info {fusion}    what this fusion is\n"
        "      gmmt-fusion find --tracker MODULE:FUNCTION    where one fits into your tracker\n"
        "      docs/    wrap and fine-tune your own"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    parser.add_argument("--method", choices=("diffusion", "cgan", "raw"), default="diffusion")
    parser.add_argument("--network", choices=("uvit", "unet"), default="uvit")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of sequences to test on")
    parser.add_argument(
        "--sequences", type=int, help="generated test sequences (default: 24; --pretrained: 4)"
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="of fine-tuning (default: %(default)s)"
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="take the fusion that is shipped; no training"
    )
    options = parser.parse_args()
    if options.sequences is None:
        options.sequences = 4 if options.pretrained else 24
    if options.sequences < 1 or options.steps < 1:
        parser.error(
            f"--sequences {options.sequences} --steps {options.steps}: expected at least 1 of each"
        )
    return options


def training_folder(options: argparse.Namespace) -> Path:
    """Where the fine-tuning of these options is, which alone goes on there when interrupted."""
    return (
        options.out
        / f"training-{options.method}-{options.network}-{options.steps}-seed{options.seed}"
    )


def load_sequences(options: argparse.Namespace) -> list[RGBTSequence]:
    if options.data:
        sequences = read_sequences(options.data)
        for sequence in tqdm(sequences, desc="read test sequences", unit="sequence"):
            for _ in zip(sequence.visible, sequence.infrared, strict=True):
                pass  # a damaged image is found before the training
        return sequences
    seeds = TEST_SEEDS[: options.sequences]
    return [
        generate_sequence(seed)
        for seed in tqdm(seeds, desc="generate test sequences", unit="sequence")
    ]


def track_all(
    trackers: dict[str, SiameseTracker], sequences: list[RGBTSequence]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """By tracker: boxes (N, 4) of every sequence, and frames a second.

    They track each sequence by turns, as a machine's speed changes meanwhile.
    """
    boxes: dict[str, dict[str, np.ndarray]] = {name: {} for name in trackers}
    seconds, frames = dict.fromkeys(trackers, 0.0), sum(map(len, sequences))
    order = list(trackers.items())
    with tqdm(total=len(trackers) * frames, desc="track", unit="frame") as bar:
        for sequence in sequences:
            for name, tracker in order:
                begun = time.perf_counter()
                boxes[name][sequence.name] = run(tracker, sequence, lambda *_: bar.update())
                seconds[name] += time.perf_counter() - begun
            order.reverse()  # none always reads the images first
    return boxes, {name: frames / spent for name, spent in seconds.items()}


def score(boxes: dict[str, np.ndarray], sequences: list[RGBTSequence]) -> Scores:
    attributes: dict[str, list[str]] = {}
    for sequence in sequences:
        for attribute in sequence.attributes:
            attributes.setdefault(attribute, []).append(sequence.name)
    return evaluate(
        boxes,
        {sequence.name: sequence.boxes_visible for sequence in sequences},
        "lasher",
        attributes=attributes,
    )


def markdown(scores: dict[str, Scores], rates: dict[str, float], handle: Attachment) -> str:
    trainable = {BASE: "", GMMT: f"{sum(p.numel() for p in handle.parameters()):,}"}
    lines = [
        "| tracker | PR | NPR | SR | frames/s | trainable parameters |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s.PR:.1f} | {s.NPR:.1f} | {s.SR:.1f} | {rates[name]:.0f} | {trainable[name]} "
        "|"
        for name, s in scores.items()
    ]
    return "\n".join(lines)


def write(
    options: argparse.Namespace,
    scores: dict[str, Scores],
    boxes: dict[str, dict[str, np.ndarray]],
    table: str,
    rates: dict[str, float],
) -> None:
    report = {
        "seed": options.seed,
        "method": options.method,
        "network": options.network,
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "pretrained": options.pretrained,
        "data": str(options.data or f"{options.sequences} generated sequences"),
        "frames_per_second": rates,
        "scores": {name: s.to_dict() for name, s in scores.items()},
    }
    write_atomically(
        options.out / "results.json",
        lambda path: path.write_text(json.dumps(report, indent=1) + "\n"),
    )
    write_atomically(options.out / "table.md", lambda path: path.write_text(table + "\n"))
    for name, found in boxes.items():
        folder = options.out / "boxes" / name.strip("+")
        folder.mkdir(parents=True, exist_ok=True)
        for sequence, track in found.items():
            write_atomically(
                folder / f"{sequence}.txt",
                lambda path, track=track: np.savetxt(path, track, fmt="%.2f", delimiter=","),
            )


def draw_results(
    out: Path,
    sequences: list[RGBTSequence],
    boxes: dict[str, dict[str, np.ndarray]],
    scores: dict[str, Scores],
    handle: Attachment,
) -> None:
    """Draw curves, and frames and maps of the sequences that changed most, to better and worse."""
    plots.draw_curves(scores, out / "curves.png")
    gain = {
        s.name: scores[GMMT].sequences[s.name]["SR"] - scores[BASE].sequences[s.name]["SR"]
        for s in sequences
    }
    ranked = sorted(sequences, key=lambda s: gain[s.name], reverse=True)
    for rank, sequence in (("best", ranked[0]), ("worst", ranked[-1])):
        meanings = "; ".join(map(explain, sequence.attributes))
        title = f"{sequence.name}, {GMMT} against {BASE}: SR {gain[sequence.name]:+.1f}\n{meanings}"
        plots.draw_tracked_frames(
            sequence.visible,
            sequence.infrared,
            {name: b[sequence.name] for name, b in boxes.items()},
            out / f"frames_{rank}.png",
            truth=sequence.boxes_visible,
            title=title,
        )
        draw_maps(handle, sequence, out / f"features_{rank}.png", title)


def draw_maps(handle: Attachment, sequence: RGBTSequence, path: Path, title: str) -> None:
    """Draw one search patch around the true place, and the maps of its modalities and fusions."""
    middle = len(sequence) // 2
    tracker = Tracker(handle.network)
    with torch.inference_mode(), handle.recorded() as maps:
        tracker.init(sequence.visible[0], sequence.infrared[0], sequence.boxes_visible[0])
        x, y, w, h = sequence.boxes_visible[middle - 1]
        tracker.centre, tracker.size = np.array([x + w / 2, y + h / 2]), np.array([w, h])
        patch = tracker.patch(sequence.visible[middle], sequence.infrared[middle])
        handle.network.track(patch)
    (rgb, tir), fused = maps[0][:2]
    visible, infrared = rearrange(patch.byte().cpu(), "1 (m c) h w -> m h w c", m=2).numpy()
    generated = handle.fusion(rgb, tir)
    plots.draw_feature_maps(
        {"visible": visible, "infrared": infrared},
        [
            {"f_rgb": rgb[0], "f_tir": tir[0]},
            {
                "fused (host)": fused[0],
                "fused* (generated)": generated[0],
                "their difference": (generated - fused)[0],
            },
        ],
        path,
        title,
    )


def tell_what_is_left(folder: Path) -> str:
    """What the same command does after an interruption."""
    saved = list_checkpoints(folder / "checkpoints")
    if not saved:
        return "the fine-tuning had saved nothing yet, and the same command starts again"
    step = int(saved[-1].name.removeprefix("step-"))
    return f"the same command goes on with the fine-tuning after step {step}"


if __name__ == "__main__":
    chosen = parse()
    try:
        sys.exit(main(chosen))
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {tell_what_is_left(training_folder(chosen))}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
