"""RGB-T sequences: generated ones, and folders in the layouts of LasHeR (also RGBT234) and GTOT.

Boxes are (x, y, w, h) from the top left, float, pixels; frames are uint8 (H, W, 3) in RGB order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from gmmt_fusion.evaluation.frames import Images
from gmmt_fusion.evaluation.sequences import open_sequence

from .scene import Scene

TRAIN_SEEDS = range(0, 100_000)
VALIDATION_SEEDS = range(100_000, 110_000)
TEST_SEEDS = range(110_000, 120_000)


class Frames:
    """A list-like of frames that are made or read when asked for."""

    def __init__(self, length: int, read: Callable[[int], np.ndarray]):
        self.length, self.read = length, read

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(self.length)
            return [self[i] for i in range(start, stop, step)]
        if not -self.length <= index < self.length:
            raise IndexError(f"frame {index} of {self.length}")
        return self.read(int(index) % self.length)

    def __iter__(self):
        return (self[i] for i in range(self.length))


@dataclass
class RGBTSequence:
    """One RGB-T sequence; `visible` and `infrared` are lists of frames, or read lazily."""

    name: str
    visible: list[np.ndarray] | Frames
    infrared: list[np.ndarray] | Frames
    boxes_visible: np.ndarray  # (N, 4), NaN where the target is absent
    attributes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.visible)


def generate_sequence(
    seed: int,
    frames: int = 60,
    size: tuple[int, int] = (320, 256),
    severity: float = 1.0,
    degraded: bool = True,
) -> RGBTSequence:
    """A sequence decided by its arguments alone.

    size: (width, height) in pixels. severity: above 1 is worse than in training.
    degraded: False is the same scene, the same motion and company, with two good modalities.
    """
    if frames < 1 or min(size) < 128 or severity < 0:
        raise ValueError(
            f"frames={frames}, size={size}, severity={severity}; expected frames >= 1, sides of at "
            "least 128 pixels and severity >= 0"
        )
    scene = Scene(seed, frames, size, severity, degraded)
    visible, infrared = zip(*(scene.render(t) for t in range(frames)), strict=True)
    name = f"generated_{seed:06d}" + ("" if severity == 1 else f"_severity_{severity:g}")
    name += "" if degraded else "_undegraded"
    return RGBTSequence(
        name,
        list(visible),
        list(infrared),
        scene.boxes.astype(np.float64),
        sorted(scene.attributes),
    )


def write_sequence(sequence: RGBTSequence, folder: str | Path) -> Path:
    """Write a folder in LasHeR's layout, and return it.

    visible/000001.jpg, infrared/000001.jpg, visible.txt, infrared.txt, attributes.json.
    """
    folder = Path(folder)
    for kind in ("visible", "infrared"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(getattr(sequence, kind), 1):
            path = folder / kind / f"{number:06d}.jpg"
            if not cv2.imwrite(
                str(path), np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95]
            ):
                raise OSError(f"{path}: cannot be written")
        np.savetxt(folder / f"{kind}.txt", sequence.boxes_visible, fmt="%.2f", delimiter=",")
    (folder / "attributes.json").write_text(
        json.dumps({"attributes": list(sequence.attributes)}) + "\n"
    )
    return folder


def read_sequence(folder: str | Path) -> RGBTSequence:
    """Read one folder in LasHeR's or GTOT's layout; frames are decoded when asked for.

    Raises OSError for what is missing or unreadable and ValueError for bad contents, naming the
    file and line.
    """
    found = open_sequence(folder)
    assert (
        found.truth is not None
        and isinstance(found.visible, Images)
        and isinstance(found.auxiliary, Images)
    )
    streams = (found.visible, found.auxiliary)  # aligned, and so equally long
    counts = [*(len(part.found) for part in streams), len(found.truth)]
    # real recordings often lack the last frame of one modality; more than that is a damaged
    # sequence
    if max(counts) - min(counts) > 1 or any(None in part.paths for part in streams):
        frames = f"{counts[0]} visible and {counts[1]} infrared frames, {counts[2]} boxes"
        raise ValueError(f"{folder}: {frames}; expected equal numbers")
    length = min(len(found), len(found.truth))
    visible, infrared = (
        Frames(length, lambda i, part=part: part[min(i, len(part) - 1)]) for part in streams
    )
    return RGBTSequence(
        found.name, visible, infrared, found.truth[:length], _attributes(Path(folder))
    )


def read_sequences(root: str | Path) -> list[RGBTSequence]:
    """All sequences in the folders under root, by name; raises OSError if there are none."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    folders = sorted(f for f in root.iterdir() if (f / "visible").is_dir() or (f / "v").is_dir())
    if not folders:
        raise FileNotFoundError(
            f"{root}: no sequences in it; expected folders that hold 'visible' or 'v'"
        )
    return [read_sequence(folder) for folder in folders]


def _attributes(folder: Path) -> list[str]:
    path = folder / "attributes.json"
    if not path.is_file():
        return []
    try:
        return [str(name) for name in json.loads(path.read_text())["attributes"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected {{"attributes": [...]}}, {error}') from None
