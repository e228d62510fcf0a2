"""The files that trackers write: a box per line, or what the VOT toolkit writes.

Every error names the file, and the line where there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from .box_files import read_boxes
from .layouts import Layout, get_layout
from .text_files import check_folder, check_names, list_folder, read_lines


def read_results(
    folder: str | Path, layout: str, sequences: Sequence[str], format: str = "auto"
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One tracker's boxes (N, 4) as x, y, w, h in pixels, and its confidences (N,), by sequence.

    The files are `<sequence>.txt`, all with the same prefix or none; of long-term benchmarks also
    the VOT toolkit's `<sequence>/<sequence>_001.txt` or `.bin` with `…_confidence.value`, or a
    fifth column of confidences. Sequences without confidences are not in the second dict.

    Args:
        folder: of one tracker.
        layout: a name in `LAYOUTS`.
        sequences: the names to read.
        format: of the boxes, as for `read_boxes`.

    Raises:
        OSError: a file is missing. ValueError: a file is no list of boxes or confidences.
    """
    folder, known = check_folder(folder), get_layout(layout)
    check_names(sequences)
    stems = {name: PurePath(name).name for name in sequences}  # of p/a, as `track` writes it
    paths = {
        name: path
        for name, stem in stems.items()
        if known.long_term and (path := _find_vot(folder, stem))
    }
    rest = [stem for name, stem in stems.items() if name not in paths]
    prefixed = _find_prefixed(folder, rest)
    paths.update({name: prefixed[stem] for name, stem in stems.items() if stem in prefixed})
    missing = [name for name in sequences if name not in paths]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks the results of {len(missing)} of {len(sequences)} sequences, the "
            f"first is {missing[0]!r}"
        )
    boxes, confidences = {}, {}
    for name in sequences:
        boxes[name], values = _read_result(paths[name], known, format)
        if values is not None:
            confidences[name] = values
    return boxes, confidences


def name_trackers(folders: Sequence[Path]) -> dict[str, Path]:
    """{name: folder}: the folders' own names, or their whole paths where two names are alike."""
    names = [folder.resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }


def _read_result(path: Path, layout: Layout, format: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes (N, 4) and, where there are any, confidences (N,)."""
    if not layout.long_term:
        rounded, absence = layout.round_corners, layout.repairs
        return read_boxes(path, format, round_corners=rounded, nan=absence, codes=False), None
    if path.suffix == ".bin":
        rows = _read_vot_boxes(path)
    else:
        rows = read_boxes(path, format, nan=True, confidence=True)
    boxes, column = rows[:, :4], rows[:, 4] if rows.shape[1] == 5 else None
    beside = path.with_name(f"{path.stem}_confidence.value")
    if not beside.is_file():
        return boxes, column
    confidences = _read_vot_confidences(beside)
    if len(confidences) != len(boxes):
        raise ValueError(
            f"{beside} has {len(confidences)} lines; expected {len(boxes)} as {path.name}"
        )
    return boxes, confidences


def _find_prefixed(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files `<prefix><name>.txt` with the one prefix that serves most names."""
    files = {path.name for path in list_folder(folder, ".txt") if path.is_file()}
    if names and not files:
        raise FileNotFoundError(f"{folder} has no result: no .txt file")
    counts = {"": sum(f"{name}.txt" in files for name in names)}
    for name in sorted(names, key=len)[-3:]:
        for file in files:
            if file.endswith(f"{name}.txt"):
                prefix = file.removesuffix(f"{name}.txt")
                counts[prefix] = sum(f"{prefix}{name}.txt" in files for name in names)
    prefix = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    return {
        name: folder / f"{prefix}{name}.txt" for name in names if f"{prefix}{name}.txt" in files
    }


def _find_vot(folder: Path, name: str) -> Path | None:
    stems = (f"{name}/{name}_001", f"{name}/{name}", f"{name}_001")
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".txt"))
    return next((path for path in paths if path.is_file()), None)


def _read_vot_confidences(path: Path) -> np.ndarray:
    """Confidences (N,), one per line; an empty line, as VOT writes for the first frame, is 0."""
    values = []
    for number, line in read_lines(path):
        try:
            values.append(float(line.strip() or 0))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not a number") from None
    return np.array(values)


def _read_vot_boxes(path: Path) -> np.ndarray:
    """Boxes (N, 4) of a VOT toolkit's .bin file.

    Per frame it holds a byte for the type, then a code (read as NaN) or x, y, w, h as float32.
    """
    data, offset = path.read_bytes(), 6
    boxes: list[tuple[float, ...]] = []
    try:
        _, length = struct.unpack_from("<hI", data)
        for _ in range(length):
            kind = data[offset]
            if kind > 1:
                raise ValueError(
                    f"{path}, frame {len(boxes)}: a region that is no rectangle; only boxes are "
                    "scored"
                )
            boxes.append(struct.unpack_from("<ffff", data, offset + 1) if kind else (np.nan,) * 4)
            offset += 17 if kind else 5
    except (struct.error, IndexError):
        raise ValueError(
            f"{path} ends in frame {len(boxes)}; expected a whole VOT toolkit file"
        ) from None
    if not boxes:
        raise ValueError(f"{path} has no frame")
    return np.array(boxes)
