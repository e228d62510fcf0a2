"""RGB-T sequences: generated ones, and folders in the layouts of LasHeR (also RGBT234) and GTOT.

Boxes are (x, y, w, h) from the top left, float, pixels; frames are uint8 (H, W, 3) in RGB order.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .scene import Scene

TRAIN_SEEDS = range(0, 100_000)
VALIDATION_SEEDS = range(100_000, 110_000)
TEST_SEEDS = range(110_000, 120_000)

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}
LAYOUTS = {  # folder of the visible frames: (the infrared ones, truth of both, whether boxes are corners)
    "visible": ("infrared", "visible.txt", "infrared.txt", False),
    "v": ("i", "groundTruth_v.txt", "groundTruth_i.txt", True),
}


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
class Sequence:
    """One RGB-T sequence; `visible` and `infrared` are lists of frames, or read lazily."""

    name: str
    visible: list[np.ndarray] | Frames
    infrared: list[np.ndarray] | Frames
    boxes_visible: np.ndarray  # (N, 4)
    boxes_infrared: np.ndarray  # (N, 4)
    attributes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.visible)


def generate_sequence(
    seed: int, frames: int = 60, size: tuple[int, int] = (320, 256), severity: float = 1.0, degraded: bool = True
) -> Sequence:
    """A sequence decided by its arguments alone; size is (width, height), severity > 1 is worse than training.

    degraded: False is the same scene, the same motion and company, with two good modalities.
    """
    if frames < 1 or min(size) < 128 or severity < 0:
        raise ValueError(
            f"frames={frames}, size={size}, severity={severity}; expected frames >= 1, sides of at least 128 pixels "
            "and severity >= 0"
        )
    scene = Scene(seed, frames, size, severity, degraded)
    visible, infrared = zip(*(scene.render(t) for t in range(frames)), strict=True)
    name = f"generated_{seed:06d}" + ("" if severity == 1 else f"_severity_{severity:g}")
    name += "" if degraded else "_undegraded"
    boxes = scene.boxes.astype(np.float64)
    return Sequence(name, list(visible), list(infrared), boxes, boxes.copy(), sorted(scene.attributes))


def write_sequence(sequence: Sequence, folder: str | Path) -> Path:
    """Write in LasHeR's layout: visible/000001.jpg, infrared/000001.jpg, visible.txt, infrared.txt, attributes.json."""
    folder = Path(folder)
    for kind in ("visible", "infrared"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(getattr(sequence, kind), 1):
            path = folder / kind / f"{number:06d}.jpg"
            if not cv2.imwrite(str(path), np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95]):
                raise OSError(f"{path}: cannot be written")
        np.savetxt(folder / f"{kind}.txt", getattr(sequence, f"boxes_{kind}"), fmt="%.2f", delimiter=",")
    (folder / "attributes.json").write_text(json.dumps({"attributes": list(sequence.attributes)}) + "\n")
    return folder


def read_sequence(folder: str | Path) -> Sequence:
    """Read one folder in LasHeR's or GTOT's layout; frames are decoded when asked for.

    Raises OSError for what is missing or unreadable and ValueError for bad contents, naming the file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    layout = next((name for name in LAYOUTS if (folder / name).is_dir()), None)
    if layout is None:
        raise FileNotFoundError(f"{folder}: no folder 'visible' (LasHeR's layout) or 'v' (GTOT's) in it")
    infrared_name, *truths, corners = LAYOUTS[layout]
    pictures = [_pictures(folder / name) for name in (layout, infrared_name)]
    boxes = [read_boxes(_truth(folder, name), corners and (folder / name).is_file()) for name in truths]
    counts = [len(part) for part in (*pictures, *boxes)]
    length = min(counts)
    if length < max(counts):
        message = (
            f"{folder}: {counts[0]} visible frames, {counts[1]} infrared frames, {counts[2]} boxes in {truths[0]}, "
            f"{counts[3]} in {truths[1]}"
        )
        # Real recordings often lose their last frame in one modality; more than that is a damaged sequence.
        if max(counts) - length > 1:
            raise ValueError(f"{message}; expected equal numbers")
        warnings.warn(f"{message}; cut to the first {length}", stacklevel=2)
    readers = [Frames(length, lambda i, paths=paths: _picture(paths[i])) for paths in pictures]
    return Sequence(folder.name, *readers, boxes[0][:length], boxes[1][:length], _attributes(folder))


def read_sequences(root: str | Path) -> list[Sequence]:
    """All sequences in the folders under root, by name; raises OSError if there are none."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and any((f / name).is_dir() for name in LAYOUTS))
    if not folders:
        raise FileNotFoundError(f"{root}: no sequences in it; expected folders that hold 'visible' or 'v'")
    return [read_sequence(folder) for folder in folders]


def read_boxes(path: Path, corners: bool = False) -> np.ndarray:
    """Boxes (N, 4) from lines of x, y, w, h; or of x1 y1 x2 y2, any two opposite corners, where corners is true."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        words = re.split(r"[,\s]+", line.strip().strip(","))
        try:
            row = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not a row of numbers") from None
        if len(row) < 4:
            raise ValueError(f"{path}, line {number}: {len(row)} columns; expected 4")
        if not np.isfinite(row).all():
            raise ValueError(f"{path}, line {number}: {line.strip()!r} holds a value that is not finite")
        rows.append(row[:4])
    if not rows:
        raise ValueError(f"{path}: no boxes in it")
    boxes = np.array(rows, np.float64)
    if corners:
        first, second = boxes[:, :2], boxes[:, 2:]
        boxes = np.concatenate([np.minimum(first, second), np.abs(second - first)], 1)
    return boxes


def _truth(folder: Path, name: str) -> Path:
    """The file of the boxes; init.txt (x, y, w, h for both modalities) stands in where it alone is there."""
    path = folder / name
    return folder / "init.txt" if not path.is_file() and (folder / "init.txt").is_file() else path


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES]
    if not paths:
        raise FileNotFoundError(f"{folder}: no pictures in it; expected {', '.join(sorted(PICTURES))}")
    # By number, not by letter: not all data sets pad their numbers.
    return sorted(paths, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))


def _picture(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise OSError(f"{path}: not a picture that can be read")
    return np.ascontiguousarray(picture[..., ::-1])


def _attributes(folder: Path) -> list[str]:
    path = folder / "attributes.json"
    if not path.is_file():
        return []
    try:
        return [str(name) for name in json.loads(path.read_text())["attributes"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected {{"attributes": [...]}}, {error}') from None
