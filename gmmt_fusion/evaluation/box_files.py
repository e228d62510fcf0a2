"""Files with one box per line, in every notation that benchmarks and trackers use."""

from pathlib import Path

import numpy as np

from .text_files import read_lines

MOST = 1e100  # of a coordinate; squares of more are infinite
FORMATS = ("auto", "xywh", "xyxy", "corners")


def read_boxes(
    path: str | Path,
    format: str = "auto",
    *,
    nan: bool = False,
    codes: bool = True,
    confidence: bool = False,
    round_corners: bool = False,
) -> np.ndarray:
    """Boxes (N, 4) as x, y, w, h in pixels of a file with one box per line.

    Args:
        path: the numbers of a line are separated by commas, tabs or spaces.
        format: "xywh", "xyxy" (two opposite corners), "corners" (four points, eight numbers), or
            "auto": by the number of columns, four being xywh.
        nan: allow boxes of NaN.
        codes: with `nan`, allow one number on a line, too (VOT's codes), read as NaN.
        confidence: allow a fifth column, and return (N, 5) where there is one.
        round_corners: round boxes given as four points to whole pixels, halves away from zero.

    Raises:
        OSError: the file cannot be read. ValueError: a line is no box, named by its number.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
    widths = {"auto": {4, 8}, "corners": {8}}.get(format, {4}) | ({5} if confidence else set())
    rows: list[list[float] | None] = []
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        row = _read_numbers(line, place)
        if nan and ((len(row) == 1 and codes) or (len(row) > 1 and np.isnan(row[:4]).all())):
            rows.append(row if len(row) == 5 and confidence else None)
            continue
        first = next((len(other) for other in rows if other is not None), len(row))
        if len(row) not in widths or len(row) != first:
            expected = str(first) if len(row) in widths else " or ".join(map(str, sorted(widths)))
            raise ValueError(f"{place}: {len(row)} columns; expected {expected}")
        if not (np.abs(row[:4] if len(row) == 5 else row) < MOST).all():
            raise ValueError(f"{place}: {line.strip()!r} is no box; expected finite numbers")
        rows.append(row)
    width = next((len(row) for row in rows if row is not None), 4)
    absent = [np.nan] * 4 + [0.0] if width == 5 else [np.nan] * width
    table = np.array([absent if row is None else row for row in rows])
    if width == 8:
        return _enclose(table.reshape(-1, 4, 2), round_corners)
    if format == "xyxy":
        return np.concatenate([_enclose(table[:, :4].reshape(-1, 2, 2)), table[:, 4:]], axis=1)
    return table


def _read_numbers(line: str, place: str) -> list[float]:
    try:
        if "_" in line:  # Python reads 1_0 as 10
            raise ValueError
        return [float(value) for value in line.replace(",", " ").split()]
    except ValueError:
        text = line.strip() if len(line) < 100 else f"{line[:100].strip()}…"
        raise ValueError(f"{place}: {text!r} is not a row of numbers") from None


def holds_boxes(path: Path) -> bool:
    """Whether any line of a file is a row of four numbers or more, or it is no text at all."""
    try:
        lines = read_lines(path)
    except ValueError:  # damaged: for who reads it to say
        return True
    for _, line in lines:
        try:
            if len(_read_numbers(line, "")) > 3:
                return True
        except ValueError:
            continue
    return False


def _enclose(points: np.ndarray, whole: bool = False) -> np.ndarray:
    """The boxes (N, 4) as x, y, w, h around points (N, P, 2), in whole pixels on demand."""
    low, high = points.min(1), points.max(1)
    boxes = np.concatenate([low, high - low], axis=1)
    return np.trunc(boxes + np.copysign(0.5, boxes)) if whole else boxes
