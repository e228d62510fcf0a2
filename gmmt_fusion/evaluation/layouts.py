"""Reading what benchmarks ship and trackers write: ground truth, result and attribute files.

Every error names the file, and the line where there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMATS = ("auto", "xywh", "xyxy", "corners")
GTOT_ATTRIBUTES = ("OCC", "LSV", "FM", "LI", "HI", "TC", "SO", "DEF")
_SEQUENCES, _ORDER = "SequencesName.txt", "Attributes_order.txt"


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark keeps its ground truth and its pictures.

    `truth` lists, for each modality, the file names that may hold it inside a sequence's folder;
    `flat` allows `<sequence>.txt` in one folder. `pictures`: the folders of the visible and the
    auxiliary frames, inside a sequence's. `round_corners`: the official kit rounds results given as
    corners.
    """

    truth: tuple[tuple[str, ...], ...]
    pictures: tuple[str, str] = ("visible", "infrared")
    truth_format: str = "xywh"
    flat: bool = False
    round_corners: bool = False
    long_term: bool = False


_LONG_TERM = Benchmark(
    (("groundtruth.txt", "groundtruth_rect.txt"),), ("color", "depth"), long_term=True
)
BENCHMARKS = {
    "gtot": Benchmark(
        (("groundTruth_v.txt",), ("groundTruth_i.txt",)), ("v", "i"), "xyxy", round_corners=True
    ),
    "rgbt234": Benchmark((("visible.txt",), ("infrared.txt",)), round_corners=True),
    "lasher": Benchmark((("init.txt", "visible.txt"),), flat=True),
    "rgbd1k": _LONG_TERM,
    "depthtrack": _LONG_TERM,
    "vot-lt": _LONG_TERM,
}


def read_truth(
    folder: str | Path, benchmark: str, sequences: Sequence[str] | None = None
) -> dict[str, tuple[np.ndarray, ...]]:
    """{sequence: one (N, 4) array of x, y, w, h per modality} of a ground truth folder, all of it
    or `sequences`.
    """
    folder, layout = _folder(folder), BENCHMARKS[benchmark]

    def files(name: str) -> list[Path]:
        found = [
            next((p for n in names if (p := folder / name / n).is_file()), None)
            for names in layout.truth
        ]
        flat = folder / f"{name}.txt"
        return (
            [flat]
            if layout.flat and not any(found) and flat.is_file()
            else [path for path in found if path]
        )

    expected = " and ".join(f"<sequence>/{' or '.join(names)}" for names in layout.truth)
    expected += " (or <sequence>.txt)" if layout.flat else ""
    entries = (path.name if path.is_dir() else path.stem for path in folder.iterdir())
    names = (
        list(sequences)
        if sequences is not None
        else sorted(name for name in set(entries) if files(name))
    )
    if not names:
        raise ValueError(f"{folder} has no {benchmark} ground truth; expected {expected}")
    truth, nan = {}, layout.long_term or benchmark == "lasher"
    for name in names:
        paths = files(name)
        if len(paths) < len(layout.truth):
            raise FileNotFoundError(
                f"{folder} lacks ground truth of sequence {name!r}; expected {expected}"
            )
        truth[name] = tuple(read_boxes(path, layout.truth_format, nan=nan) for path in paths)
    return truth


def read_results(
    folder: str | Path, benchmark: str, sequences: Sequence[str], format: str = "auto"
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """({sequence: (N, 4) boxes x, y, w, h}, {sequence: (N,) confidences, where there are any}) of
    one tracker.

    The files are `<sequence>.txt`, all with the same prefix or none; for the long-term benchmarks
    also the VOT toolkit's `<sequence>/<sequence>_001.txt` or `.bin` with `…_confidence.value`, or a
    fifth column of confidences.
    """
    folder, layout = _folder(folder), BENCHMARKS[benchmark]
    paths = {
        name: path for name in sequences if layout.long_term and (path := _vot_file(folder, name))
    }
    paths.update(_prefixed_files(folder, [name for name in sequences if name not in paths]))
    missing = [name for name in sequences if name not in paths]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks the results of {len(missing)} of {len(sequences)} sequences, the "
            f"first is {missing[0]!r}"
        )
    boxes, confidences = {}, {}
    for name in sequences:
        path = paths[name]
        if path.suffix == ".bin":
            boxes[name] = _read_vot_binary(path)
        elif layout.long_term:
            rows = read_boxes(path, format, nan=True, confidence=True)
            boxes[name] = rows[:, :4]
            if rows.shape[1] == 5:
                confidences[name] = rows[:, 4]
        else:
            boxes[name] = read_boxes(path, format, round_corners=layout.round_corners)
        values = path.with_name(f"{path.stem}_confidence.value")
        if layout.long_term and values.is_file():
            confidences[name] = _read_values(values)
            if len(confidences[name]) != len(boxes[name]):
                raise ValueError(
                    f"{values} has {len(confidences[name])} lines; expected {len(boxes[name])} as "
                    f"{path.name}"
                )
    return boxes, confidences


def read_boxes(
    path: str | Path,
    format: str = "auto",
    *,
    nan: bool = False,
    confidence: bool = False,
    round_corners: bool = False,
) -> np.ndarray:
    """(N, 4) boxes x, y, w, h of a file with one box per line, its numbers separated by commas,
    tabs or spaces.

    `format`: "xywh", "xyxy" (two opposite corners), "corners" (four points, eight numbers), or
    "auto": by the number of columns, four being xywh. `nan` allows boxes of NaN, or one number on a
    line (VOT's codes), both read as NaN; `confidence` allows a fifth column and returns (N, 5)
    then; `round_corners` rounds boxes given as four points to whole pixels, halves away from zero.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
    widths = {"auto": {4, 8}, "corners": {8}}.get(format, {4}) | ({5} if confidence else set())
    wanted = " or ".join(map(str, sorted(widths)))
    rows: list[list[float] | None] = []
    for number, line in _lines(path):
        try:
            row = [float(value) for value in line.replace(",", " ").split()]
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is not a row of numbers"
            ) from None
        if nan and (len(row) == 1 or (row and np.isnan(row[:4]).all())):
            rows.append(row if len(row) == 5 and confidence else None)
            continue
        first = next((len(other) for other in rows if other is not None), len(row))
        if len(row) not in widths or len(row) != first:
            wanted = str(first) if len(row) in widths else wanted
            raise ValueError(f"{path}, line {number}: {len(row)} columns; expected {wanted}")
        if not np.isfinite(row[:4] if len(row) == 5 else row).all():
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r} is no box; expected finite numbers"
            )
        rows.append(row)
    width = next((len(row) for row in rows if row is not None), 4)
    absent = [np.nan] * 4 + [0.0] if width == 5 else [np.nan] * width
    table = np.array([absent if row is None else row for row in rows])
    if width == 8:
        points = table.reshape(-1, 4, 2)
        low, high = points.min(1), points.max(1)
        boxes = np.concatenate([low, high - low], axis=1)
        return np.trunc(boxes + np.copysign(0.5, boxes)) if round_corners else boxes
    if format == "xyxy":
        one, other = table[:, :2], table[:, 2:4]
        table = np.concatenate([np.minimum(one, other), np.abs(other - one), table[:, 4:]], axis=1)
    return table


def tracker_names(folders: Sequence[Path]) -> dict[str, Path]:
    """{name: folder}: the folders' own names, or their whole paths where two names are alike."""
    names = [folder.resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder
        for name, folder in zip(names, folders, strict=True)
    }


def read_names(path: str | Path) -> list[str]:
    """Sequence names, one per line; empty lines are left out."""
    return [line.strip() for _, line in _lines(path) if line.strip()]


def read_attributes(path: str | Path) -> dict[str, set[str]]:
    """{attribute: its sequences}, from any of the layouts in use, with 1 where a sequence has the
    attribute, else 0.

    LasHeR: a folder of `<sequence>.txt`, one flag per attribute, named in `Attributes_order.txt`
    inside or beside it. RGBT234: a folder of `<attribute>.txt`, one flag per sequence, named in its
    `SequencesName.txt`. GTOT: one file with a sequence's name and its flags on each line.
    """
    path = Path(path)
    if path.is_file():
        rows = [
            (words[0], words[1:], f"{path}, line {n}")
            for n, line in _lines(path)
            if (words := line.split())
        ]
        return _by_attribute(GTOT_ATTRIBUTES, rows)
    files = [
        file
        for file in sorted(_folder(path).glob("*.txt"))
        if file.name not in (_SEQUENCES, _ORDER)
    ]
    rows = [
        (file.stem, " ".join(read_names(file)).replace(",", " ").split(), str(file))
        for file in files
    ]
    if (path / _SEQUENCES).is_file():
        by_sequence = _by_attribute(read_names(path / _SEQUENCES), rows)
        return {
            name: {sequence for sequence in by_sequence if name in by_sequence[sequence]}
            for name, _, _ in rows
        }
    order = next(
        (file for file in (path / _ORDER, path.resolve().parent / _ORDER) if file.is_file()), None
    )
    if order is None:
        raise FileNotFoundError(
            f"{path} has neither {_SEQUENCES} in it nor {_ORDER} in or beside it"
        )
    return _by_attribute(" ".join(read_names(order)).replace(",", " ").split(), rows)


def _by_attribute(
    heads: Sequence[str], rows: Sequence[tuple[str, list[str], str]]
) -> dict[str, set[str]]:
    """{head: names of the rows flagged under it} of rows (name, flags, where they stand)."""
    for _, flags, place in rows:
        if len(flags) != len(heads) or not {*flags} <= {"0", "1"}:
            raise ValueError(f"{place}: {len(flags)} flags; expected {len(heads)}, each 0 or 1")
    return {
        head: {name for name, flags, _ in rows if flags[i] == "1"} for i, head in enumerate(heads)
    }


def read_image_sizes(folder: str | Path, sequences: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{sequence: (width, height)} from VOT's `<sequence>/sequence` files, of the sequences that
    have them.
    """
    sizes = {}
    for name in sequences:
        path = Path(folder) / name / "sequence"
        if path.is_file():
            pairs = dict(line.split("=", 1) for _, line in _lines(path) if "=" in line)
            given = [pairs.get(side, "").strip() for side in ("width", "height")]
            if not all(side.isdecimal() for side in given if side):
                raise ValueError(
                    f"{path}: width and height are {given}; expected whole numbers of pixels"
                )
            if all(given):
                sizes[name] = (int(given[0]), int(given[1]))
    return sizes


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    return path


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """Numbered lines without the empty ones at the end."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    lines = list(enumerate(text.rstrip().splitlines(), 1))
    if not lines:
        raise ValueError(f"{path} is empty")
    return lines


def _prefixed_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files `<prefix><name>.txt` with the one prefix that serves most names."""
    files = {path.name for path in folder.glob("*.txt")}
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


def _vot_file(folder: Path, name: str) -> Path | None:
    stems = (f"{name}/{name}_001", f"{name}/{name}", f"{name}_001")
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".txt"))
    return next((path for path in paths if path.is_file()), None)


def _read_values(path: Path) -> np.ndarray:
    """Confidences (N,), one per line; an empty line, as VOT writes for the first frame, is 0."""
    values = []
    for number, line in _lines(path):
        try:
            values.append(float(line.strip() or 0))
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()!r} is not a number") from None
    return np.array(values)


def _read_vot_binary(path: Path) -> np.ndarray:
    """(N, 4) boxes of a VOT toolkit .bin file: per frame a type byte, then a code (read as NaN) or
    x, y, w, h.
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
    return np.array(boxes)
