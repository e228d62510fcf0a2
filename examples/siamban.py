"""The paper's Siamese RGB-T tracker, of an unedited siamban: stages 1.1, 1.2 and 2, and tracking.

    git clone https://github.com/hqucv/siamban
    python examples/siamban.py --checkout siamban \\
        --backbone siamban/pretrained_models/resnet50.model \\
        --sequence LasHeR/car --steps 1000 --save runs/siamban
    python examples/siamban.py --checkout siamban --baseline runs/siamban/baseline.pth \\
        --fusion runs/siamban --sequence LasHeR/car

Models of one modality that are trained already go in with --rgb and --tir, checkpoints of siamban's
tools/train.py. Without any the weights are random, and without a sequence it is a generated one:
enough to see that all runs. In siamban's own tools/train.py, where the model is the baseline that
`two_stream` made, the change is an import, `attach` once its weights are loaded, and
`train_in_host` where build_opt_lr makes its optimiser; the README shows the lines.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded.sequences import RGBTSequence, generate_sequence, read_sequence
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion, attach, load_host_checkpoint
from gmmt_fusion.adapters import siamban
from gmmt_fusion.hosts.checkouts import ignore_cuda

RGB, TIR, BOTH = slice(0, 3), slice(3, 6), slice(0, 6)
Batches = Callable[[slice], dict[str, Tensor]]


def configure(checkout: Path, levels: int) -> Any:
    """siamban on the import path, and its config: the paper's one level (layer3), or three."""
    sys.path.insert(0, str(checkout.resolve()))  # before this folder: this file has its name
    from siamban.core.config import cfg
    from yacs.config import CfgNode

    cfg.CUDA = torch.cuda.is_available()
    ignore_cuda()  # hard-coded in ModelBuilder.forward and in its losses
    cfg.merge_from_file(str(checkout / "experiments" / "siamban_r50_l234" / "config.yaml"))
    if levels == 1:
        cfg.BACKBONE.KWARGS = CfgNode({"used_layers": [3]})
        cfg.ADJUST.TYPE, cfg.ADJUST.KWARGS = (
            "AdjustLayer",
            CfgNode({"in_channels": 1024, "out_channels": 256}),
        )
        cfg.BAN.TYPE, cfg.BAN.KWARGS = "DepthwiseBAN", CfgNode({"cls_out_channels": 2})
    return cfg


def build_model(cfg: Any, checkpoint: Path | None, backbone: Path | None) -> nn.Module:
    """siamban's model of one modality; a head of one level gets the exponential that it lacks."""
    from siamban.models.model_builder import ModelBuilder

    model = ModelBuilder()
    if cfg.BAN.TYPE == "DepthwiseBAN":
        model.head = siamban.OneLevelHead(model.head)
    if checkpoint:
        model.load_state_dict(weights(checkpoint))
    elif backbone:
        # not strictly: it has a classifier, and all four layers
        model.backbone.load_state_dict(weights(backbone), strict=False)
    return model.to("cuda" if cfg.CUDA else "cpu").eval()


def weights(path: Path) -> dict[str, Tensor]:
    checkpoint = load_host_checkpoint(path)
    return {
        name.removeprefix("module."): value
        for name, value in checkpoint.get("state_dict", checkpoint).items()
    }


def frames(sequence: RGBTSequence) -> list[np.ndarray]:
    """H×W×6, BGR and thermal, as siamban's own loader would give each."""
    return [
        np.dstack([rgb[..., ::-1], tir])
        for rgb, tir in zip(sequence.visible, sequence.infrared, strict=True)
    ]


def batches(cfg: Any, sequence: RGBTSequence, size: int) -> Batches:
    """Pairs with labels, as BANDataset gives them unaugmented, for some of the channels."""
    from siamban.datasets.point_target import PointTarget
    from siamban.tracker.base_tracker import SiameseTracker
    from siamban.utils.bbox import Corner

    video, random, crop = frames(sequence), np.random.default_rng(0), SiameseTracker().get_subwindow
    exemplar, instance = cfg.TRAIN.EXEMPLAR_SIZE, cfg.TRAIN.SEARCH_SIZE

    def batch(channels: slice) -> dict[str, Tensor]:
        rows = []
        for index, other in random.integers(len(video), size=(size, 2)):
            row = []
            for number, side, shift in (
                (index, exemplar, 0.0),
                (other, instance, cfg.DATASET.SEARCH.SHIFT),
            ):
                x, y, w, h = sequence.boxes_visible[number]
                frame = np.ascontiguousarray(video[number][..., channels])
                scale = exemplar / np.sqrt((w + (w + h) / 2) * (h + (w + h) / 2))
                centre = (
                    np.array([x + (w - 1) / 2, y + (h - 1) / 2])
                    + random.uniform(-shift, shift, 2) / scale
                )
                row.append(
                    crop(frame, centre, side, round(side / scale), frame.mean((0, 1))).contiguous()
                )
            low = (np.array([x, y]) - centre) * scale + instance / 2
            box = Corner(*low, *(low + np.array([w, h]) * scale))
            rows.append((*row, *map(torch.from_numpy, PointTarget()(box, cfg.TRAIN.OUTPUT_SIZE))))
        template, search, cls, loc = zip(*rows, strict=True)
        return {
            "template": torch.cat(template),
            "search": torch.cat(search),
            "label_cls": torch.stack(cls),
            "label_loc": torch.stack(loc),
        }

    return batch


def train(
    cfg: Any,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    batch: Callable[[], dict[str, Tensor]],
    steps: int,
    epochs: int,
    warm_up: int,
    frozen: Iterable[nn.Module] = (),
) -> None:
    """The loop of siamban's tools/train.py, at the paper's rates, 0.001 → 0.005 → 0.00005."""
    from siamban.utils.lr_scheduler import build_lr_scheduler

    model.train()
    for module in frozen:
        module.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(
        [p for p in parameters if p.requires_grad],
        lr=cfg.TRAIN.BASE_LR,
        momentum=cfg.TRAIN.MOMENTUM,
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
    )
    cfg.TRAIN.LR_WARMUP.EPOCH = warm_up
    rates = build_lr_scheduler(optimizer, epochs).lr_spaces
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[epochs * step // steps])
        outputs = model(batch())
        loss = outputs["total_loss"] + 5 * outputs.get("generative_loss", 0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg.TRAIN.GRAD_CLIP)
        optimizer.step()
        print(
            f"  step {step + 1}: "
            + ", ".join(f"{name} {value.item():.3f}" for name, value in outputs.items())
        )
    model.eval()


def train_baseline(
    cfg: Any, rgb: nn.Module, tir: nn.Module, batch: Batches, steps: int
) -> nn.Module:
    """Stage 1.1, backbone, neck and head of each modality, then 1.2, the fusion and one head."""
    for name, model, channels in (("RGB", rgb, RGB), ("thermal", tir, TIR)):
        print(f"stage 1.1, {name}")
        train(
            cfg, model, model.parameters(), lambda c=channels: batch(c), steps, epochs=20, warm_up=5
        )
    model = siamban.two_stream(rgb, tir)
    print("stage 1.2")
    train(
        cfg,
        model,
        model.parameters(),
        lambda: batch(BOTH),
        steps,
        epochs=20,
        warm_up=5,
        frozen=(model.backbone, model.neck.rgb, model.neck.tir),
    )
    return model


def settle(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Statistics for the BatchNorms of a model of random weights, whose boxes overflow without."""
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model(batch)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def track(tracker: Any, sequence: RGBTSequence, count: int) -> str:
    """siamban's own tracker, unchanged."""
    video = frames(sequence)[:count]
    tracker.init(video[0], sequence.boxes_visible[0])
    started = time.perf_counter()
    boxes = [tracker.track(frame)["bbox"] for frame in video[1:]]
    seconds = (time.perf_counter() - started) / len(boxes)
    return f"{seconds:.2f} s a frame, last box {np.round(boxes[-1], 1).tolist()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkout", type=Path, required=True, help="folder of siamban's repository"
    )
    parser.add_argument(
        "--levels", type=int, choices=(1, 3), default=1, help="1 as in the paper, 3 as upstream"
    )
    parser.add_argument("--backbone", type=Path, help="ImageNet weights to start stage 1.1 from")
    parser.add_argument("--rgb", type=Path, help="checkpoint of a model trained on RGB")
    parser.add_argument(
        "--tir",
        type=Path,
        help="checkpoint of a model trained on thermal images; as --rgb if omitted",
    )
    parser.add_argument(
        "--baseline", type=Path, help="weights of the two-stream model, instead of those"
    )
    parser.add_argument(
        "--fusion", help="folder or hub id of a fine-tuned fusion; a new small one if omitted"
    )
    parser.add_argument(
        "--sequence",
        help="folder of a sequence in the layout of LasHeR or GTOT; generated if omitted",
    )
    parser.add_argument(
        "--frames", type=int, default=10, help="frames to track (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="steps of each stage of training before tracking"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="pairs of a step (default: %(default)s)"
    )
    parser.add_argument(
        "--save", type=Path, help="folder to save the baseline, the fusion and its head in"
    )
    options = parser.parse_args()
    cfg = configure(options.checkout, options.levels)
    sequence = (
        read_sequence(options.sequence)
        if options.sequence
        else generate_sequence(0, options.frames)
    )
    batch = batches(cfg, sequence, options.batch)

    rgb = build_model(cfg, options.rgb, options.backbone)
    tir = build_model(cfg, options.tir or options.rgb, options.backbone)
    if not (options.rgb or options.backbone or options.baseline):
        settle(rgb, batch(RGB))
        settle(tir, batch(TIR))
    if options.baseline:
        model = siamban.two_stream(rgb, tir)
        model.load_state_dict(weights(options.baseline))
    elif options.steps:
        model = train_baseline(cfg, rgb, tir, batch, options.steps)
    else:
        model = siamban.two_stream(rgb, tir)

    from siamban.tracker.tracker_builder import build_tracker

    tracker = build_tracker(model)
    fusion = (
        GenerativeFusion.from_pretrained(options.fusion)
        if options.fusion
        else GenerativeFusion.preset("small-unet", channels=256 * options.levels, size=31)
    )
    attachment = attach(tracker, fusion)
    if not options.fusion:
        attachment.calibrate((batch(BOTH),) for _ in range(2))  # start next to the host
    if options.steps:
        print("stage 2")
        attachment.print_trainable_parameters()
        train(
            cfg,
            model,
            attachment.parameters(),
            lambda: batch(BOTH),
            options.steps,
            epochs=100,
            warm_up=20,
        )
    if options.save:
        attachment.save_pretrained(options.save)
        torch.save({"state_dict": attachment.host_state_dict()}, options.save / "baseline.pth")
    print("generative fusion:", track(tracker, sequence, options.frames))
    with attachment.disabled():
        print("the host's fusion:", track(tracker, sequence, options.frames))


if __name__ == "__main__":
    main()
