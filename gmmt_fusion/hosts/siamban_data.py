"""RGB-T data where siamban looks for its own: crops to train on, lists of frames to track, configs.

Nothing of the checkout is edited. A name with braces, `{visible,infrared}/1.jpg`, is a pair of
files, which siamban reads as one image of six channels when `gmmt_fusion run` started it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..evaluation.frames import Images
from ..evaluation.images import import_opencv, read_image
from ..evaluation.layouts import get_layout
from ..evaluation.sequences import TrackingSequence, open_sequences
from ..files import write_atomically
from .siamban_configs import CONFIGS

EXEMPLAR, CROP = 127, 511
"""Side of the template, and of a training crop at the same scale, in pixels."""
FOLDERS = ("visible", "infrared")
_PAIR = re.compile(r"(.*)\{([^{},]+),([^{},]+)\}(.*)")


def split_pair(name: str) -> tuple[str, str] | None:
    """The two names of a pair, `a{b,c}d` for `abd` and `acd`; None for a name of one file."""
    found = _PAIR.fullmatch(name)
    if found is None:
        return None
    start, first, second, end = found.groups()
    return start + first + end, start + second + end


def read_pair(first: str, second: str) -> np.ndarray:
    """Two images as one (H, W, 6) uint8, each BGR.

    Raises:
        OSError, ValueError: an image is missing or damaged, or they have not one size.
    """
    images = [read_image(Path(path)) for path in (first, second)]
    if images[0].shape != images[1].shape:
        sizes = " and ".join(f"{image.shape[1]}×{image.shape[0]}" for image in images)
        raise ValueError(f"{first} and {second} have {sizes} pixels; align them to one size first")
    return np.concatenate(images, axis=2)


def check_checkout(folder: Path) -> Path:
    """The folder, if it is a checkout of siamban; else FileNotFoundError."""
    if not (folder / "siamban" / "models").is_dir():
        raise FileNotFoundError(
            f"{folder} has no siamban/models; expected a checkout of hqucv/siamban"
        )
    return folder


def write_configs(checkout: Path, benchmark: str) -> list[Path]:
    """A config for each of the paper's stages, in the checkout's `experiments`; those made now.

    A config that is there already is left as it is.
    """
    made = []
    for name, text in CONFIGS.items():
        path = checkout / "experiments" / name / "config.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, text.replace("BENCHMARK", benchmark).encode())
            made.append(path)
    return made


def write_test_set(
    checkout: Path, data: Path, layout: str, names: Iterable[str] | None = None
) -> tuple[str, int]:
    """The list of frames of a benchmark's sequences as tools/test.py and tools/eval.py read OTB's.

    The images stay where they are.

    Args:
        data: folder of a benchmark's sequences.
        layout: a name in `LAYOUTS`.
        names: the sequences, by default all.

    Returns:
        The name of the test set, for `--dataset`, and its number of sequences.
    """
    sequences = open_sequences(data, _check_layout(layout), names)
    videos = {
        sequence.name: {
            "video_dir": sequence.name,
            "init_rect": sequence.box.tolist(),
            "img_names": _pair_names(sequence),
            "gt_rect": _truth(sequence).tolist(),
            "attr": [],
        }
        for sequence in sequences
    }
    name = f"OTB-{layout}"  # its factory takes a name with OTB for a list of that form
    folder = checkout / "testing_dataset" / name
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", json.dumps(videos).encode())
    return name, len(videos)


def write_training_set(
    checkout: Path, data: Path, layout: str, names: Iterable[str] | None = None
) -> tuple[int, int]:
    """Crops of both modalities around the target, and the annotations that BANDataset reads.

    Frames without the target are left out. Crops that are there already are not made again.

    Args: as for `write_test_set`.

    Returns:
        The number of sequences and of pairs of crops.
    """
    sequences = open_sequences(data, _check_layout(layout), names)
    folder = checkout / "training_dataset" / layout
    from tqdm import tqdm

    with ThreadPoolExecutor() as threads:  # OpenCV works outside of Python's lock
        done = threads.map(lambda sequence: _write_crops(folder, sequence), sequences)
        boxes = list(tqdm(done, "crops", len(sequences), unit="sequence"))
    annotations = {
        sequence.name: {"00": frames}
        for sequence, frames in zip(sequences, boxes, strict=True)
        if frames
    }
    if not annotations:
        raise ValueError(f"{data} has no frame with the target; expected boxes with positive sizes")
    _write(folder / "train.json", json.dumps(annotations).encode())
    return len(annotations), sum(map(len, boxes))


def _check_layout(name: str) -> str:
    if get_layout(name).depth:
        raise ValueError(
            f"benchmark {name!r} has depths, and the paper's Siamese tracker is of RGB and thermal "
            "images; expected gtot, lasher, rgbt234, vot-rgbt or vtuav"
        )
    return name


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda to: to.write_bytes(content))


def _truth(sequence: TrackingSequence) -> np.ndarray:
    """Boxes (N, 4) for all N frames, NaN where there is none."""
    truth = np.full((len(sequence), 4), np.nan)
    known = sequence.truth
    assert known is not None  # of a benchmark
    truth[: len(known)] = known[: len(truth)]
    return truth


def _pair_names(sequence: TrackingSequence) -> list[str]:
    return [_join(*pair) for pair in zip(*_paths(sequence), strict=True)]


def _paths(sequence: TrackingSequence) -> list[list[Path]]:
    """The files of both modalities.

    Raises:
        ValueError: a frame has no file of one: siamban's own scripts read both.
    """
    found = []
    for stream in (sequence.visible, sequence.auxiliary):
        assert isinstance(stream, Images)
        paths = [path for path in stream.paths if path is not None]
        if len(paths) < len(stream.paths):
            raise ValueError(
                f"{sequence.name}: {len(stream.paths) - len(paths)} of {len(stream.paths)} frames "
                "have no file of one modality, and siamban reads both; leave the sequence out, or "
                "track it with `gmmt-fusion track`"
            )
        found.append(paths)
    return found


def _join(first: Path, second: Path) -> str:
    """The name of a pair of files under one folder."""
    top = next(parent for parent in first.parents if second.is_relative_to(parent))
    ends = [path.relative_to(top).as_posix() for path in (first, second)]
    name = f"{top.as_posix()}/{{{ends[0]},{ends[1]}}}"
    if split_pair(name) != (first.as_posix(), second.as_posix()):
        raise ValueError(f"{first} or {second} has a brace or a comma in its name; rename it")
    return name


def _write_crops(folder: Path, sequence: TrackingSequence) -> dict[str, list[float]]:
    """{number of the frame: x1, y1, x2, y2} of the frames with the target, once their crops lie in
    `folder`.
    """
    cv2, frames = import_opencv(), {}
    streams = _paths(sequence)
    for index, box in enumerate(_truth(sequence)):
        if not (np.isfinite(box).all() and min(box[2:]) > 0):
            continue
        number = f"{index:06d}"
        frames[number] = [*box[:2].tolist(), *(box[:2] + box[2:]).tolist()]
        for paths, name in zip(streams, FOLDERS, strict=True):
            path = folder / name / sequence.name / f"{number}.00.x.jpg"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shown = crop(read_image(paths[index]), box)
                _write(path, cv2.imencode(".jpg", shown)[1].tobytes())
    return frames


def crop(image: np.ndarray, box: Sequence[float] | np.ndarray) -> np.ndarray:
    """(511, 511, 3): the surroundings of a box x, y, w, h, in the middle, at the template's scale.

    The template is SiamFC's square of side √((w + p)(h + p)), p = (w + h) / 2, shown with 127
    pixels. What lies outside of the image has its mean colour.
    """
    x, y, w, h = map(float, box)
    padding = (w + h) / 2
    scale = EXEMPLAR / math.sqrt((w + padding) * (h + padding))
    middle = (CROP - 1) / 2
    moved = [middle - scale * (x + w / 2), middle - scale * (y + h / 2)]
    matrix = np.array([[scale, 0, moved[0]], [0, scale, moved[1]]])
    cv2 = import_opencv()
    shown: np.ndarray = cv2.warpAffine(
        image,
        matrix,
        (CROP, CROP),
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=image.mean(axis=(0, 1)).tolist(),
    )
    return shown
