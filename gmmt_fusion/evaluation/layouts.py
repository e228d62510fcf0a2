"""What lies where in a benchmark's folders: one table, and what reads ground truth by it.

A layout says what a data set ships, and by which of the `protocols` it is scored; the protocol
says how. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .box_files import read_boxes
from .protocols import PROTOCOLS
from .text_files import check_folder, read_lines


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
    """

    protocol: str
    images: tuple[str, str]
    truth: tuple[tuple[str, ...], ...]
    truth_format: str = "xywh"
    flat_truth: bool = False
    depth: bool = False
    round_corners: bool = False
    guessed: bool = False

    @property
    def long_term(self) -> bool:
        """Whether results have confidences, which is for the protocol to say."""
        return PROTOCOLS[self.protocol].long_term

    @property
    def absence(self) -> bool:
        """Whether the ground truth may be NaN, where the target is absent; by the protocol."""
        return PROTOCOLS[self.protocol].absence

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
}


def get_layout(name: str) -> Layout:
    """The layout of that name; ValueError for a name that is not in the table."""
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def guess_layout(folder: Path) -> str:
    """The layout of a sequence's folder, by the name of its visible images' folder.

    Raises:
        FileNotFoundError: it has none of those folders.
    """
    guesses = {layout.images[0]: name for name, layout in LAYOUTS.items() if layout.guessed}
    for visible, name in guesses.items():
        if (folder / visible).is_dir():
            return name
    raise FileNotFoundError(f"{folder} has none of the folders {', '.join(guesses)}")


def find_sequences(folder: str | Path, layout: str) -> list[str]:
    """The names of the sequences in a benchmark's folder, sorted.

    Raises:
        OSError: it is no folder, or has none.
    """
    folder, images = check_folder(folder), get_layout(layout).images
    names = sorted(path.name for path in folder.iterdir() if (path / images[0]).is_dir())
    if not names:
        expected = " and ".join(f"<sequence>/{name}" for name in images)
        raise FileNotFoundError(f"{folder} has no {layout} sequences; expected folders {expected}")
    return names


def read_truth(
    folder: str | Path, layout: str, sequences: Iterable[str] | None = None
) -> dict[str, tuple[np.ndarray, ...]]:
    """{sequence: boxes (N, 4) as x, y, w, h in pixels, of each annotated modality}.

    Args:
        folder: holds the ground truth as the benchmark ships it.
        layout: a name in `LAYOUTS`.
        sequences: the names to read, by default all that the folder has.

    Raises:
        OSError: a file is missing. ValueError: a file is no list of boxes, or there is none.
    """
    folder, known = check_folder(folder), get_layout(layout)
    if sequences is None:
        entries = {path.name if path.is_dir() else path.stem for path in folder.iterdir()}
        sequences = sorted(name for name in entries if _truth_files(folder, known, name))
    truth = {}
    for name in sequences:
        paths = _truth_files(folder, known, name)
        if len(paths) < len(known.truth):
            raise FileNotFoundError(
                f"{folder} lacks ground truth of sequence {name!r}; "
                f"expected {known.describe_truth()}"
            )
        truth[name] = tuple(
            read_boxes(path, known.truth_format, nan=known.absence) for path in paths
        )
    if not truth:
        raise ValueError(
            f"{folder} has no {layout} ground truth; expected {known.describe_truth()}"
        )
    return truth


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
