"""Trackers to measure beside, what to measure a fusion against, and the machine."""

import datetime
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.files import write_atomically
from gmmt_fusion.hosts import checkouts
from gmmt_fusion.model.networks import Block

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

REAL_HOSTS: dict[str, tuple[str, Any]] = {
    "tbsi": ("TBSI", "vitb_256_tbsi_32x4_4e4_lasher_15ep_in1k"),
    "vipt": ("ViPT", "deep_rgbt"),
    "bat": ("BAT", "rgbt"),
    "sdstrack": ("SDSTrack", "cvpr2024_rgbt"),
    "siamban": ("siamban", 1),
    "siamban_three_levels": ("siamban", 3),
}
"""Folder and configuration, or levels, of the real trackers."""


class ViTB(nn.Module):
    """A two-stream tracker with the sizes of TBSI.

    ViT-B on 2 × 320 tokens, a 3×3 convolution that fuses, and a head: template (B, 6, 128, 128) and
    search (B, 6, 256, 256) to scores, offsets and sizes (B, 5, 16, 16).
    """

    def __init__(self, width: int = 768, depth: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 16, stride=16)
        self.position = nn.Parameter(0.02 * torch.randn(1, 320, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fuse: nn.Module = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = Towers(width)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        streams = []
        for modality in range(2):
            images = [x[:, 3 * modality : 3 * modality + 3] for x in (template, search)]
            tokens = torch.cat(
                [rearrange(self.embed(x), "b c h w -> b (h w) c") for x in images], dim=1
            )
            tokens = self.norm(self.blocks(tokens + self.position))
            streams.append(rearrange(tokens[:, 64:], "b (h w) c -> b c h w", h=16))
        return self.head(self.fuse(torch.cat(streams, dim=1)))


class Towers(nn.Module):
    """Three towers of convolutions: scores, offsets and sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 256, 128, 64, 32)
        self.towers = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Sequential(
                        nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)
                    )
                    for i, o in itertools.pairwise(widths)
                ),
                nn.Conv2d(32, outputs, 1),
            )
            for outputs in (1, 2, 2)
        )

    def forward(self, fused: Tensor) -> Tensor:
        return torch.cat([tower(fused) for tower in self.towers], dim=1)


class Host(NamedTuple):
    """A tracker to attach to, one frame of it, and the channels and side of its maps.

    point: the name of its fusion; None where the host is recognised.
    """

    tracker: Any
    run: Callable[[], Any]
    channels: int
    size: int
    point: str | None = None

    def attach(self, fusion: GenerativeFusion) -> Attachment:
        return attach(
            self.tracker,
            fusion,
            ModuleAdapter(self.point, "head", self.size) if self.point else "auto",
        )


class Empty(nn.Module):
    """Next to nothing but a fusion and a head: what attaching adds to a frame is not lost in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse: nn.Module = nn.Identity()
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(self.fuse(maps))


def build_host(bench: Any, name: str, dtype: torch.dtype) -> Host:
    """The host of a name: of our own making, or real, from a checkout in the folder HOSTS."""
    if name in REAL_HOSTS:
        return (
            build_siamban_host(bench, name)
            if name.startswith("siamban")
            else build_real_host(bench, name)
        )
    if name == "embedded":
        from embedded.siamese import SEARCH_MAP, SEARCH_SIZE, TEMPLATE_SIZE, load_tracker

        network: Any = load_tracker().to(bench.device, dtype)
        template, search = (255 * x for x in bench.images(TEMPLATE_SIZE, SEARCH_SIZE, dtype=dtype))
        network.template(template)
        return Host(network, lambda: network.track(search), 64, SEARCH_MAP, "fusion")
    if name == "empty":
        empty, maps = (
            Empty().eval().to(bench.device, dtype),
            torch.rand(1, 16, 4, 4, device=bench.device, dtype=dtype),
        )
        return Host(empty, lambda: empty(maps), 8, 4, "fuse")
    network = ViTB(64, 1) if bench.quick else ViTB()
    network = network.eval().to(bench.device, dtype)
    images = bench.images(128, 256, dtype=dtype)
    return Host(network, lambda: network(*images), network.norm.normalized_shape[0], 16, "fuse")


def build_real_host(bench: Any, name: str) -> Host:
    """An unedited host of OSTrack's family of random weights: its tracker's frame, crop and box."""
    import host_runs
    from embedded.sequences import generate_sequence

    folder, configuration = REAL_HOSTS[name]
    if name in ("bat", "sdstrack"):  # which have no example
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        example = getattr(importlib.import_module("hosts.dual_hosts"), name.upper())
    else:
        example = importlib.import_module(name)
    tracker = example.build_tracker(
        example.configuration(checkouts.prepare(Path(os.environ["HOSTS"], folder)), configuration)
    )
    tracker.network.to(bench.device)
    sequence = generate_sequence(3, frames=2)
    frames, box = host_runs.six_channels(sequence), sequence.boxes_visible[0].tolist()
    tracker.initialize(frames[0], {"init_bbox": box})

    def run() -> Any:
        tracker.state = box  # the same crop every time
        return tracker.track(frames[1])

    return Host(tracker, run, 768, 16)


@cache
def load_siamban_example(name: str) -> tuple[Any, Any]:
    """examples/siamban.py and its host's config, which can be made only once.

    The file has the name of its host's package, so it is loaded under another one.
    """
    path = Path(__file__).parents[1] / "examples" / "siamban.py"
    spec: Any = importlib.util.spec_from_file_location("siamban_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    folder, levels = REAL_HOSTS[name]
    return example, example.configure(Path(os.environ["HOSTS"], folder), levels)


def build_siamban_host(bench: Any, name: str) -> Host:
    """The whole frame of the two-stream baseline of an unedited siamban of random weights."""
    from embedded.sequences import generate_sequence

    example, cfg = load_siamban_example(name)
    from siamban.tracker.tracker_builder import build_tracker

    sequence = generate_sequence(3, frames=2)
    batch, streams = example.batches(cfg, sequence, 2), []
    for channels in (example.RGB, example.TIR):
        streams.append(example.build_model(cfg, None, None))
        example.settle(streams[-1], batch(channels))
    tracker = build_tracker(example.siamban.two_stream(*streams).to(bench.device))
    frames = example.frames(sequence)
    tracker.init(frames[0], sequence.boxes_visible[0])
    place = tracker.center_pos, tracker.size

    def run() -> Any:
        tracker.center_pos, tracker.size = place  # the same crop every time
        return tracker.track(frames[1])

    return Host(tracker, run, 256 * REAL_HOSTS[name][1], 31)


class Mean(nn.Module):
    """No fusion at all: the mean of the modality maps, which come as one concatenation."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.stack(maps.chunk(2, dim=1)).mean(0)


class MeanFusion(GenerativeFusion):
    """The same where a GenerativeFusion is expected."""

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack(features).mean(0)


class Kept(nn.Module):
    """The fusion put in by hand: nothing is frozen, and the host's graph is kept."""

    def __init__(self, own: nn.Module, fusion: GenerativeFusion) -> None:
        super().__init__()
        self.own, self.fusion = own, fusion

    def forward(self, maps: Tensor) -> Tensor:
        output = self.fusion.loss(maps.chunk(2, dim=1), self.own(maps).detach())
        self.generative_loss = output.loss
        return output.fused


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(field)), "")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, and does not merely convert."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else "bf16" in _cpuinfo("flags")


def machine(device: torch.device) -> dict[str, Any]:
    """What decides how fast things are, and does not change in a run."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
    }


def now() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def write_results(
    folder: Path, name: str, text: str, content: Any = None, digits: int | None = None
) -> None:
    """`name`.md, and of what it was made `name`.json, its numbers rounded for a small file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.md", lambda path: path.write_text(text))
    if content is None:
        return
    if digits is not None:
        content = json.loads(json.dumps(content), parse_float=lambda x: round(float(x), digits))
    short = json.dumps(content, indent=1) + "\n"
    write_atomically(folder / f"{name}.json", lambda path: path.write_text(short))


def tell_command(*about: str) -> str:
    """The command that runs, what else is said of it, and the machine, as a line of Markdown."""
    found = {**machine(torch.device("cpu")), **now()}
    parts = [f"{key} {found[key]}" for key in ("processor", "threads", "load", "torch")]
    return ", ".join([f"`python {' '.join(sys.argv)}`", *about, *parts])
