"""What the examples of real trackers share: frames, batches, random weights, the command line."""

import argparse
import time
from typing import Any

import numpy as np
import torch
from embedded.sequences import RGBTSequence, generate_sequence, read_sequence
from torch import Tensor, nn

from gmmt_fusion import Attachment


def randomise(network: nn.Module) -> nn.Module:
    """The network with random weights under which its boxes move: always the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                scale = 0.02 if "embed" in name else parameter[0].numel() ** -0.5
                parameter.normal_(0, scale, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.05, generator=generator)
                module.running_var.uniform_(1, 1.1, generator=generator)
        network.box_head.conv5_size.weight.mul_(0.2)  # boxes of about a quarter of the crop
        network.box_head.conv5_size.bias.fill_(-1.1)
    return network.eval()


def track(tracker: Any, frames: list[np.ndarray], box: list[float]) -> tuple[np.ndarray, float]:
    """Boxes in frames (H, W, 6) from the box in the first, and the seconds that a frame takes.

    The boxes are (N, 4), as x, y, w, h in pixels.
    """
    tracker.initialize(frames[0], {"init_bbox": list(box)})
    started = time.perf_counter()
    boxes = [box, *(tracker.track(frame)["target_bbox"] for frame in frames[1:])]
    return np.array(boxes, dtype=np.float64), (time.perf_counter() - started) / max(
        len(frames) - 1, 1
    )


def six_channels(sequence: RGBTSequence) -> list[np.ndarray]:
    """Frames (H, W, 6), RGB first, as the hosts' trackers take them."""
    return [
        np.concatenate(pair, axis=2)
        for pair in zip(sequence.visible, sequence.infrared, strict=True)
    ]


def crop_pairs(
    sequence: RGBTSequence, cfg: Any, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """A batch of pairs as the host's data loader makes them, without its augmentation.

    Returns:
        template_images (1, B, 6, 128, 128), search_images (1, B, 6, 256, 256), and template_anno,
        search_anno (1, B, 4) as x, y, w, h in fractions of the crop.
    """
    from lib.train.data.processing_utils import sample_target, transform_image_to_crop

    # TBSI's configuration holds six numbers, ViPT's those of RGB, which it uses twice
    mean, std = (
        torch.tensor(list(x) * (6 // len(x))).view(6, 1, 1) for x in (cfg.DATA.MEAN, cfg.DATA.STD)
    )
    rows: dict[str, list[Tensor]] = {
        f"{part}_{what}": [] for part in ("template", "search") for what in ("images", "anno")
    }
    frames, boxes = six_channels(sequence), torch.from_numpy(sequence.boxes_visible).float()
    for _ in range(batch):
        for part, settings in (("template", cfg.DATA.TEMPLATE), ("search", cfg.DATA.SEARCH)):
            index = int(torch.randint(len(frames), (), generator=generator))
            box, side = boxes[index], settings.SIZE
            shift = (
                (torch.rand(2, generator=generator) - 0.5)
                * box[2:].prod().sqrt()
                * settings.CENTER_JITTER
                / 2
            )
            centre = box + torch.cat([shift, torch.zeros(2)])
            crop, factor, _ = sample_target(frames[index], centre, settings.FACTOR, side)
            image = torch.from_numpy(crop.astype(np.float32)).permute(2, 0, 1) / 255
            rows[f"{part}_images"].append((image - mean) / std)
            rows[f"{part}_anno"].append(
                transform_image_to_crop(box, centre, factor, torch.tensor([side, side]), True)
            )
    return {name: torch.stack(values)[None] for name, values in rows.items()}


def arguments(description: str, config: str) -> argparse.Namespace:
    """The command line of the examples; `sequence` becomes a RGBTSequence, or a generated one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", required=True, help="folder of the host's repository")
    parser.add_argument(
        "--config", default=config, help="name of the host's yaml file (default: %(default)s)"
    )
    parser.add_argument("--checkpoint", help="the host's weights; random ones if omitted")
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
        "--steps", type=int, default=0, help="fine-tune for so many steps before tracking"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="pairs of a step (default: %(default)s)"
    )
    parser.add_argument("--save", help="folder to save the fusion and its head in")
    options = parser.parse_args()
    options.sequence = (
        read_sequence(options.sequence)
        if options.sequence
        else generate_sequence(0, options.frames)
    )
    return options


def compare(tracker: Any, attachment: Attachment, sequence: RGBTSequence, length: int) -> None:
    """Track with the generated fused maps, and with the host's own."""
    frames, box = six_channels(sequence)[:length], sequence.boxes_visible[0].tolist()
    boxes, seconds = track(tracker, frames, box)
    print(f"generative fusion: {seconds:.2f} s a frame, last box {boxes[-1].round(1).tolist()}")
    with attachment.disabled():
        boxes, seconds = track(tracker, frames, box)
    print(f"the host's fusion: {seconds:.2f} s a frame, last box {boxes[-1].round(1).tolist()}")
