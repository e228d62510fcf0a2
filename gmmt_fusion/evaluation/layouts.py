"""What lies where in a benchmark's folders: one table, and what reads ground truth by it.

A layout says what a data set ships, and by which of the `protocols` it is scored; the protocol
says how. Needs numpy only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .box_files import holds_boxes, read_boxes
from .protocols import PROTOCOLS, mark_empty
from .text_files import check_folder, list_folder, read_lines


@dataclass(frozen=True)
class Layout:
    """What a benchmark keeps in which files, and the protocol that it is scored by.

    Attributes:
        protocol: a name in `PROTOCOLS`.
        images: the folders of the visible and the auxiliary images, inside a sequence's.
        truth: for each modality annotated by itself, the file names that may hold its boxes.
        truth_format: of these files, as for `read_boxes`.
        flat_truth: whether the ground truth may also be `<sequence>.txt`, all in one folder.
        depth: whether the auxiliary images are depths in millimetres; else they are thermal.
        round_corners: whether the official kit rounds results that are given as corners.
        guessed: whether a folder with these `images` is read so when no layout is named.
        presence: the file of a sequence with a line for each frame, 0 where the target is absent;
            what comes before the first frame with the target is then left out.
        annotated: the ground truth has a line for every so many frames, from the first on.
    """

    protocol: str
    images: tuple[str, str]
    truth: tuple[tuple[str, ...], ...]
    truth_format: str = "xywh"
    flat_truth: bool = False
    depth: bool = False
    round_corners: bool = False
    guessed: bool = False
    presence: str | None = None
    annotated: int = 1

    @property
    def long_term(self) -> bool:
        """Whether results have confidences, which is for the protocol to say."""
        return PROTOCOLS[self.protocol].long_term

    @property
    def absence(self) -> bool:
        """Whether the ground truth may be NaN, where the target is absent; by the protocol."""
        return PROTOCOLS[self.protocol].absence

    @property
    def repairs(self) -> bool:
        """Whether results may have boxes of NaN, which the kit repairs; by the protocol."""
        return PROTOCOLS[self.protocol].repairs

    def spread_truth(self, truth: np.ndarray, frames: int) -> np.ndarray:
        """The ground truth (N, 4) of so many frames, NaN where it is not annotated."""
        if self.annotated == 1 or len(truth) >= frames:  # or only the annotated frames are there
            return truth
        spread = np.full(((len(truth) - 1) * self.annotated + 1, 4), np.nan)
        spread[:: self.annotated] = truth
        return spread

    def pick_annotated(self, boxes: np.ndarray, truth: int) -> np.ndarray:
        """Of a result with a row for every frame those of the annotated ones, `truth` in number."""
        return boxes[:: self.annotated] if len(boxes) > truth else boxes

    def describe_truth(self) -> str:
        """Where ground truth is expected, for messages."""
        places = " and ".join(f"<sequence>/{' or '.join(names)}" for names in self.truth)
        return places + (" (or <sequence>.txt)" if self.flat_truth else "")


_RGBD_TRUTH = (("groundtruth.txt", "groundtruth_rect.txt"),)
LAYOUTS = {
    "gtot": Layout(
        "gtot",
        images=("v", "i"),
        truth=(("groundTruth_v.txt",), ("groundTruth_i.txt",)),
        truth_format="xyxy",
        round_corners=True,
        guessed=True,
    ),
    "rgbt234": Layout(
        "rgbt234",
        images=("visible", "infrared"),
        truth=(("visible.txt",), ("infrared.txt",)),
        round_corners=True,
    ),
    "lasher": Layout(
        "lasher",
        images=("visible", "infrared"),
        truth=(("init.txt", "visible.txt"),),
        flat_truth=True,
        guessed=True,  # and not rgbt234, whose files this layout finds, too
    ),
    "rgbd1k": Layout("vot-lt", images=("color", "depth"), truth=_RGBD_TRUTH, depth=True),
    "depthtrack": Layout("vot-lt", images=("color", "depth"), truth=_RGBD_TRUTH, depth=True),
    "vot-lt": Layout(
        "vot-lt", images=("color", "depth"), truth=_RGBD_TRUTH, depth=True, guessed=True
    ),
    # its own measure needs the restarts that the VOT toolkit makes; its sequences are RGBT234's
    "vot-rgbt": Layout(
        "rgbt234",
        images=("color", "ir"),
        truth=(("groundtruth.txt",),),
        truth_format="auto",
        round_corners=True,
        guessed=True,
    ),
    "vtuav": Layout(
        "rgbt234",
        images=("rgb", "ir"),
        truth=(("rgb.txt",), ("ir.txt",)),
        guessed=True,
        annotated=10,
    ),
    "visevent": Layout(
        "visevent",
        images=("vis_imgs", "event_imgs"),
        truth=(("groundtruth.txt",),),
        guessed=True,
        presence="absent_label.txt",
    ),
}


def get_layout(name: str) -> Layout:
    """The layout of that name; ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def guess_layout(folder: Path) -> str:
    """The layout of a sequence's folder, by the names of its folders of images.

    Raises:
        FileNotFoundError: it has no folder of visible images of any.
    """
    guesses = {name: layout.images for name, layout in LAYOUTS.items() if layout.guessed}
    there = {
        name: sum((folder / kind).is_dir() for kind in images)
        for name, images in guesses.items()
        if (folder / images[0]).is_dir()
    }
    if not there:
        expected = dict.fromkeys(visible for visible, _ in guesses.values())
        raise FileNotFoundError(f"{folder} has none of the folders {', '.join(expected)}")
    return max(there, key=there.__getitem__)


def find_sequences(folder: str | Path, layout: str) -> list[str]:
    """The names of the sequences in a benchmark's folder, sorted.

    Raises:
        OSError: it is no folder, or has none.
    """
    folder, images = check_folder(folder), get_layout(layout).images
    names = [path.name for path in list_folder(folder) if (path / images[0]).is_dir()]
    if not names:
        expected = " and ".join(f"<sequence>/{name}" for name in images)
        raise FileNotFoundError(f"{folder} has no {layout} sequences; expected folders {expected}")
    return names


def read_truth(
    folder: str | Path, layout: str, sequences: Iterable[str] | None = None
) -> dict[str, tuple[np.ndarray, ...]]:
    """{sequence: boxes (N, 4) as x, y, w, h in pixels, of each annotated modality}.

    NaN where the target is absent; where a layout has flags of its presence, from the first frame
    with the target on.

    Args:
        folder: holds the ground truth as the benchmark ships it.
        layout: a name in `LAYOUTS`.
        sequences: the names to read, by default all that the folder has. Lists of sequences and
            other texts beside files of boxes are none, which a warning says.

    Raises:
        OSError: a file is missing. ValueError: a file is no list of boxes, or there is none.
    """
    folder, known = check_folder(folder), get_layout(layout)
    names = _find_truth(folder, known) if sequences is None else list(sequences)
    truth = {}
    for name in names:
        paths = _truth_files(folder, known, name)
        if len(paths) < len(known.truth):
            raise FileNotFoundError(
                f"{folder} lacks ground truth of sequence {name!r}; "
                f"expected {known.describe_truth()}"
            )
        start = read_start(folder, layout, name)
        truth[name] = tuple(
            _mark_absent(folder, known, name, _read_boxes_of_truth(path, known))[start:]
            for path in paths
        )
    if not truth:
        raise ValueError(
            f"{folder} has no {layout} ground truth; expected {known.describe_truth()}"
        )
    return truth


def read_start(folder: str | Path, layout: str, sequence: str) -> int:
    """The index of the first frame with the target, by the flags of its presence; else 0."""
    present = _read_presence(Path(folder), get_layout(layout), sequence)
    return 0 if present is None or not present.any() else int(present.argmax())


def read_image_sizes(folder: str | Path, sequences: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{sequence: (width, height) in pixels}, where VOT's file `<sequence>/sequence` gives them."""
    sizes = {}
    for name in sequences:
        path = Path(folder) / name / "sequence"
        if path.is_file():
            pairs = dict(line.split("=", 1) for _, line in read_lines(path) if "=" in line)
            given = [pairs.get(side, "").strip() for side in ("width", "height")]
            if not all(side.isdecimal() for side in given if side):
                raise ValueError(
                    f"{path}: width and height are {given}; expected whole numbers of pixels"
                )
            if all(given):
                sizes[name] = (int(given[0]), int(given[1]))
    return sizes


def _find_truth(folder: Path, layout: Layout) -> list[str]:
    """The names of all sequences whose ground truth a folder has, sorted."""
    names = set()
    for path in list_folder(folder):
        name = path.name if path.is_dir() else path.stem
        files = _truth_files(folder, layout, name)
        if files == [path] and not holds_boxes(path):  # one of many that lie side by side
            warnings.warn(f"{path} has no line that is a box, and is left out", stacklevel=3)
        elif files:
            names.add(name)
    return sorted(names)


def _read_boxes_of_truth(path: Path, layout: Layout) -> np.ndarray:
    return read_boxes(path, layout.truth_format, nan=layout.absence, codes=layout.long_term)


def _mark_absent(folder: Path, layout: Layout, name: str, boxes: np.ndarray) -> np.ndarray:
    """NaN for boxes of frames without the target, in the words that the benchmark has for them."""
    present = _read_presence(folder, layout, name)
    if present is not None:
        if len(present) != len(boxes):
            raise ValueError(
                f"{folder / name / str(layout.presence)} has {len(present)} lines for {len(boxes)} "
                "boxes"
            )
        return np.where(present[:, None], boxes, np.nan)
    return mark_empty(boxes) if layout.long_term else boxes


def _read_presence(folder: Path, layout: Layout, name: str) -> np.ndarray | None:
    """Flags (N,), True where the target is there; None where the sequence has none."""
    path = folder / name / layout.presence if layout.presence else None
    if path is None or not path.is_file():
        return None
    flags = [(number, line.strip().rstrip(",")) for number, line in read_lines(path)]
    for number, flag in flags:
        if flag not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: {flag!r} is no flag; expected 0 or 1")
    return np.array([flag == "1" for _, flag in flags])


def _truth_files(folder: Path, layout: Layout, name: str) -> list[Path]:
    """The files of a sequence's ground truth that are there, at most one per modality."""
    candidates = [[folder / name / file for file in files] for files in layout.truth]
    found = [
        path
        for paths in candidates
        if (path := next((path for path in paths if path.is_file()), None))
    ]
    flat = folder / f"{name}.txt"
    return [flat] if layout.flat_truth and not found and flat.is_file() else found
