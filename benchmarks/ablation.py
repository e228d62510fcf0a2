"""The paper's ablations on the embedded tracker: what the generative fusion brings, against
controls, over seeds.

    python benchmarks/ablation.py table2             what is gained, against controls, by which
    method python benchmarks/ablation.py window             the tracker's own parameter, for base,
    head and DM python benchmarks/ablation.py
    weight|steps|blocks|weighting|prediction|training|noise|precision|degradation|\
        interpolation

Every row is a fine-tuning of equal budget on the same cached features, then the tracking loss and
success of held-out pairs of template and search picture, and tracking through held-out sequences,
in two settings: "same", degraded as in training, and "shifted", heavier. A seed is of the training
and of the first boxes, which all seeds but 0 move by a pixel or so, the same for every row. A run
that is finished is not run again: an interrupted command goes on, and tables share their runs.
Writes --out/ablation_TABLE.{md,json,png}. How many seeds, steps and sequences a table has by
default is in RECIPES, in ablation_arms.py.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_arms import BASE, RECIPES, TABLES, Arm
from ablation_tables import SETTINGS, against, comparison, markdown, plot, summary
from einops import rearrange
from measuring import machine, now
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.files import write_atomically
from gmmt_fusion.model.calibration import least_squares_convolution
from gmmt_fusion.training import CachedFeatures, Degradation, cache_features, fine_tune, recipes

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from embedded.sequences import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, generate_sequence
from embedded.siamese import SEARCH_MAP, classification_loss, iou_loss, load_tracker
from embedded.tracking import run_together
from embedded.training import PairDataset, Scenes, Twins

CHANNELS = 64
SPLITS = {"test": TEST_SEEDS, "validation": VALIDATION_SEEDS}
SEVERITY = dict(zip(SETTINGS, (1.0, 1.5), strict=True))
CALIBRATION = "features-of-calibration"
CALIBRATION_PAIRS, HELD_OUT_PAIRS = (20, 128), (200, 1024)  # of how many sequences, how many
TRAINING = ("steps", "batch", "pairs", "training_sequences", "bfloat16")


class Silent(nn.Module):
    """In place of the network: adds nothing to the residual path, which is the host's fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.last_layer = nn.Conv2d(1, 1, 1)  # in no use; every network has one

    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        return torch.zeros_like(maps[:, :CHANNELS])


class Convolutions(nn.Module):
    """A plain fusion: 3×3, 1×1, 3×3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * CHANNELS, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
        )
        self.last_layer = nn.Conv2d(
            width, CHANNELS, 3, padding=1
        )  # at zero after calibration, as every network's

    def forward(self, maps: Tensor, timesteps: Tensor) -> Tensor:
        return self.last_layer(self.layers(maps))


WIDTHS = {"convolution": 136, "wide convolution": 448}
"""Of the plain fusions: about the parameters of the UViT (0.25 M, 0.21 M), which are the FLOP of
the UNet, too; and those of the UNet (0.98 M, 0.97 M)."""


class Frozen(nn.Module):
    """A module whose parameters are out of training's reach."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.hidden = (module.requires_grad_(False),)
        self.weight = module.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


def built(arm: Arm, seed: int, features: CachedFeatures) -> Attachment:
    """The embedded tracker with the arm's fusion, calibrated, as training starts with it."""
    torch.manual_seed(seed)
    fusion = GenerativeFusion(
        CHANNELS, size=SEARCH_MAP, **{"residual": "conv3x3"} | arm.fusion
    ).manual_seed(seed)
    if arm.control:
        fusion.network = Convolutions(WIDTHS[arm.control]) if arm.control in WIDTHS else Silent()
    handle = attach(load_tracker(), fusion, ModuleAdapter("fusion", "head", size=SEARCH_MAP))
    batch = next(iter(DataLoader(features, min(128, len(features)))))
    features, fused = (
        [batch["feature_0"].float(), batch["feature_1"].float()],
        batch["fused"].float(),
    )
    if arm.calibrated:
        fusion.calibrate([(features, fused)])
    if arm.unnormalised is not None:  # the same residual path, on other numbers
        for name in ("feature", "fused"):
            getattr(fusion, f"{name}_mean").zero_()
            getattr(fusion, f"{name}_std").fill_(1 / arm.unnormalised)
        weight, bias, _ = least_squares_convolution(
            [(torch.cat(features, 1), fused)], fusion.residual.kernel_size[0]
        )
        fusion.residual.load_state_dict({"weight": weight, "bias": arm.unnormalised * bias})
    if isinstance(fusion.network, Silent):
        fusion.residual = Frozen(fusion.residual)
    return handle


def tracking_loss(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return losses_of(*network(batch), batch)


def losses_of(cls: Tensor, loc: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    labels = batch["label_cls"]
    return {
        "cls_loss": classification_loss(cls, labels),
        "loc_loss": iou_loss(loc, batch["label_loc"], labels == 1),
    }


def trained(arm: Arm, seed: int, options: argparse.Namespace) -> Attachment:
    """Fine-tuned, or read from the working folder."""
    features = CachedFeatures(features_folder(arm, options))
    handle = built(arm, seed, CachedFeatures(options.work / CALIBRATION))
    folder = options.work / training_key(arm, seed, options)

    head = {id(p) for p in handle.head.parameters()}

    def head_slower(parameters: list[nn.Parameter], epochs: int, steps_per_epoch: int) -> Any:
        """The head is trained already, and learns more slowly than the network, which is not."""
        new, old = (
            [p for p in parameters if (id(p) in head) is is_head] for is_head in (False, True)
        )
        groups = [
            {"params": new, "lr": 1e-3 if old else 4e-4},
            {"params": old},
        ]  # no head: the discriminator
        return recipes.adamw_optimizer(groups[arm.control == "head" :], epochs, steps_per_epoch)

    if arm.training.get("batch_statistics"):
        for module in handle.head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval = lambda module=module: (
                    module
                )  # which keeps the host's statistics in training

    recipe = getattr(recipes, arm.training["recipe"]) if "recipe" in arm.training else head_slower
    start = {name: tensor.clone() for name, tensor in handle.fusion.state_dict().items()}
    weights = folder / "weights.pt"
    if not weights.is_file():
        random, wanted = np.random.default_rng(seed), options.steps * options.batch
        passes = [random.permutation(len(features)) for _ in range(-(-wanted // len(features)))]
        chosen = np.concatenate(passes)[:wanted]
        loader = DataLoader(Subset(features, chosen.tolist()), options.batch, shuffle=True)
        torch.manual_seed(seed)
        fine_tune(
            handle,
            loader,
            tracking_loss,
            folder / "training",
            epochs=1,
            generative_weight=arm.weight,
            recipe=recipe,
            ema_decay=arm.training.get("ema_decay"),
            seed=seed,
            progress=False,
            mixed_precision="bf16" if options.bfloat16 else "no",
        )
        write_atomically(weights, lambda path: torch.save(handle.fusion.state_dict(), path))
    handle.fusion.load_state_dict(
        {
            name: torch.lerp(start[name], end, arm.interpolation)
            if end.is_floating_point()
            else end
            for name, end in torch.load(weights, weights_only=True).items()
        }
    )
    for name, value in arm.sampling.items():
        if name == "optimize":
            handle.optimize(dtype=getattr(torch, value))
        else:
            setattr(handle.fusion, name, value)
    handle.fusion.manual_seed(seed)
    handle.network.eval()
    return handle


def features_folder(arm: Arm, options: argparse.Namespace) -> Path:
    target = "twins" if arm.twins else "own"
    kind = "-".join(map(str, [arm.degradation["probability"], *arm.degradation.get("kinds", [])]))
    return (
        options.work / f"features-{target}-{kind}-{options.pairs}-of-{options.training_sequences}"
    )


def training_key(arm: Arm, seed: int, options: argparse.Namespace) -> str:
    """Names what was trained; arms that differ in how they sample or track share it."""
    what = [
        arm.fusion,
        arm.weight,
        arm.control,
        arm.degradation,
        arm.twins,
        arm.training,
        arm.calibrated,
        arm.unnormalised,
    ]
    return key({"arm": what, **{name: getattr(options, name) for name in TRAINING}}, seed)


def key(settings: dict[str, Any], seed: int) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{digest[:12]}-seed{seed}"


@cache
def sequences(split: str, setting: str, count: int, degraded: bool) -> list:
    """Sequences of a setting; no seed belongs to two of them."""
    start = list(SEVERITY).index(setting) * 5000
    return [
        generate_sequence(seed, severity=SEVERITY[setting], degraded=degraded)
        for seed in SPLITS[split][start : start + count]
    ]


def tracked(
    network: nn.Module,
    split: str,
    setting: str,
    count: int,
    degraded: bool,
    window: float,
    jitter: int,
) -> dict[str, dict[str, float]]:
    """PR, NPR and SR of every sequence, by LasHeR's protocol, percent.

    jitter: seeds shifts of the first boxes by a pixel or so, as one run of one tracker is a matter
    of luck, too; 0 is none.
    """
    chosen, boxes = sequences(split, setting, count, degraded), {}
    shifts = np.random.default_rng(jitter).normal(0, float(jitter > 0), (count, 2))
    for first in range(0, count, 16):
        boxes |= run_together(
            network, chosen[first : first + 16], shifts[first : first + 16], window=window
        )
    return evaluate(boxes, {s.name: s.boxes_visible for s in chosen}, "lasher").sequences


@torch.no_grad()
def held_out(
    handle: Attachment, split: str, setting: str, degraded: bool, work: Path
) -> dict[str, Any]:
    """The mean tracking loss of held-out pairs, and their success by sequence.

    The sequences of these pairs are not tracked. The box of a pair is that of the highest score.
    Pairs without a target count in the loss alone.
    """
    features = CachedFeatures(pairs_folder(split, setting, degraded, work))
    network, training = features.network(handle), handle.network.training
    handle.network.eval()
    losses, successes = [], defaultdict(list)
    for batch in DataLoader(features, 32):
        cls, loc = network(batch)
        losses.append(sum(float(term) for term in losses_of(cls, loc, batch).values()))
        best = rearrange(cls[:, 1] - cls[:, 0], "b h w -> b (h w)").argmax(1)
        found, truth = (
            rearrange(x.float(), "b c h w -> b (h w) c")[torch.arange(len(best)), best]
            for x in (loc, batch["label_loc"])
        )
        for i in (batch["label_cls"] == 1).any((1, 2)).nonzero()[:, 0]:
            successes[int(batch["sequence"][i])].append(
                float(success(overlaps(found[i], truth[i])))
            )
    handle.network.train(training)
    return {
        "loss": float(np.mean(losses)),
        "success": [float(np.mean(of)) for _, of in sorted(successes.items())],
    }


def success(overlap: Tensor) -> Tensor:
    """The share of the thresholds 0, 0.05, … 1 that each overlap (…) exceeds, percent."""
    return 100 * (overlap[..., None] > torch.arange(21) / 20).float().mean(-1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU (…) of boxes (…, 4), each the distances left, top, right, bottom from the same point."""

    def area(box: Tensor) -> Tensor:
        return (box[..., 0] + box[..., 2]).clamp(min=0) * (box[..., 1] + box[..., 3]).clamp(min=0)

    common = area(torch.minimum(one, other))
    return common / (area(one) + area(other) - common)


def measured(arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one run, from its file where there is one."""
    torch.set_num_threads(1)
    settings = {
        "arm": {k: v for k, v in vars(arm).items() if k != "label"},
        "split": options.split,
        "held_out_pairs": list(HELD_OUT_PAIRS),
        "sequences": options.sequences,
        **{name: getattr(options, name) for name in TRAINING},
    }
    path = options.work / "results" / f"{key(settings, seed)}.json"
    if path.is_file():
        return json.loads(path.read_text())
    started = time.monotonic()
    if arm.control == "base":  # what is attached holds the host's fusion and head
        handle, network = (
            built(arm, seed, CachedFeatures(options.work / CALIBRATION)),
            load_tracker(),
        )
        parameters = 0
    else:
        handle = trained(arm, seed, options)
        network = handle.network
        parameters = sum(
            p.numel() for p in (handle.head if arm.control == "head" else handle).parameters()
        )
    result = {
        "settings": settings,
        "seed": seed,
        "seconds_training": time.monotonic() - started,
        "parameters": parameters,
        "pairs": {
            setting: held_out(handle, options.split, setting, arm.degraded, options.work)
            for setting in SEVERITY
        },
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        result["sequences"] = {
            setting: tracked(
                network,
                options.split,
                setting,
                options.sequences,
                arm.degraded,
                arm.window,
                jitter=seed,
            )
            for setting in SEVERITY
        }
    result |= {"seconds": time.monotonic() - started, "threads": torch.get_num_threads(), **now()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(result)))
    return result


def measured_in_turn(
    arms: list[Arm], seed: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The arms of one training, in one process: two would train into one folder."""
    return [measured(arm, seed, options) for arm in arms]


def prepare(arms: list[Arm], options: argparse.Namespace) -> None:
    """Cache the features of the frozen tracker that all runs train on and are judged on."""
    for arm in arms:
        if arm.control != "base":
            write_features(
                features_folder(arm, options),
                TRAIN_SEEDS,
                options.training_sequences,
                options.pairs,
                (Scenes if arm.twins else Degradation)(**arm.degradation),
            )
    write_features(options.work / CALIBRATION, TRAIN_SEEDS, *CALIBRATION_PAIRS)
    pictures = {arm.degraded for arm in arms}
    for (number, (setting, severity)), degraded in itertools.product(
        enumerate(SEVERITY.items()), pictures
    ):
        start = 5000 * number + 2500  # the sequences before are tracked
        write_features(
            pairs_folder(options.split, setting, degraded, options.work),
            SPLITS[options.split][start : start + 2500],
            *HELD_OUT_PAIRS,
            severity=severity,
            degraded=degraded,
        )


def pairs_folder(split: str, setting: str, degraded: bool, work: Path) -> Path:
    pairs = "{1}-of-{0}".format(*HELD_OUT_PAIRS)
    return work / f"pairs-{split}-{setting}{'' if degraded else '-undegraded'}-{pairs}"


def write_features(
    folder: Path,
    seeds: range,
    sequences: int,
    pairs: int,
    degradation: Degradation | None = None,
    **scenes: Any,
) -> None:
    with contextlib.suppress(OSError, ValueError):
        CachedFeatures(folder)
        return  # complete: rendering the pairs again takes a minute
    kind = Twins if isinstance(degradation, Scenes) else PairDataset
    dataset = kind(seeds, sequences, length=pairs, seed=17, **scenes)
    fusion = GenerativeFusion(CHANNELS, size=SEARCH_MAP, residual="conv3x3")
    handle = attach(load_tracker(), fusion, ModuleAdapter("fusion", "head", size=SEARCH_MAP))
    handle.degradation = degradation
    cache_features(
        handle,
        DataLoader(dataset, 16),
        folder,
        targets=lambda batch: {
            name: batch[name] for name in ("label_cls", "label_loc", "sequence")
        },
        forward=lambda network, batch: network(batch),
        dtype="float16",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=2, help="fine-tunings a row")
    parser.add_argument("--steps", type=int, default=400, help="of fine-tuning")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9600, help="cached training pairs")
    parser.add_argument("--training-sequences", type=int, default=600, help="that they are of")
    parser.add_argument("--sequences", type=int, default=4, help="tracked in each setting")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train and track in "
        "mixed precision: up to twice as fast on a processor that has it (avx512_bf16 or amx_bf16)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="validation for what is tuned"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="of the runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.set_defaults(**RECIPES.get(parser.parse_args().table, {}))
    options = parser.parse_args()
    for name in ("seeds", "steps", "batch", "pairs", "training_sequences", "sequences"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")

    arms = [BASE, *TABLES[options.table]]
    prepare(arms, options)
    rows: dict[str, list[dict[str, Any]]] = {arm.label: [] for arm in arms}
    trainings: dict[tuple[int, str], list[Arm]] = {}
    for seed in range(options.seeds):
        for arm in arms:
            trainings.setdefault((seed, training_key(arm, seed, options)), []).append(arm)
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = {
            pool.submit(measured_in_turn, shared, seed, options): shared
            for (seed, _), shared in trainings.items()
        }
        try:
            for job in tqdm(
                as_completed(jobs), total=len(jobs), desc=options.table, unit="training"
            ):
                for arm, result in zip(jobs[job], job.result(), strict=True):
                    rows[arm.label].append(result)
        except BaseException:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # an error is told at once, and not after all other runs
            raise
    for results in rows.values():
        results.sort(key=lambda result: result["seed"])  # seeds are paired
    entries = summary(rows)
    report = {
        "command": " ".join(["python", *sys.argv]),
        **machine(torch.device("cpu")),
        **now(),
        "seconds": sum(result["seconds"] for results in rows.values() for result in results),
        "rows": entries,
        "runs": rows,
    }
    name, compared = f"ablation_{options.table}", ""
    if "DM, UNet" in rows:
        report["DM, UNet minus"] = against("DM, UNet", rows)
        compared = "\n" + comparison("DM, UNet", report["DM, UNet minus"])
    for result in itertools.chain(*rows.values()):
        for held in result["pairs"].values():
            del held["success"]  # many lines; the runs' own files keep them
    text = (
        f"{markdown(entries)}{compared}\n\n{options.seeds} seeds, {options.steps} steps of batch "
        f"{options.batch}; "
        f"in each setting {HELD_OUT_PAIRS[1]} pairs and {options.sequences} tracked sequences of "
        "60 frames, of the "
        f"{options.split} seeds; ± is the standard deviation over seeds, [ ] the 95 % bootstrap "
        "interval of the "
        "paired difference over seeds and sequences; pairs are counted by their sequences.\n\n"
        f"`{report['command']}`, {report['seconds'] / 60:.0f} minutes of one core, "
        f"{report['processor']}, "
        f"torch {report['torch']}, diffusers {report['diffusers']}, {report['date']}\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    report = json.loads(
        json.dumps(report), parse_float=lambda number: round(float(number), 4)
    )  # a small file
    write_atomically(
        options.out / f"{name}.json",
        lambda path: path.write_text(json.dumps(report, indent=1) + "\n"),
    )
    write_atomically(options.out / f"{name}.md", lambda path: path.write_text(text))
    plot(entries, options.out / f"{name}.png", f"{options.table}, {options.seeds} seeds")
    print(text)


if __name__ == "__main__":
    main()
