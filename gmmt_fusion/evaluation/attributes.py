"""Which sequences have which attribute (occlusion, low light, …), as three benchmarks ship it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .text_files import check_folder, list_folder, read_lines, read_names

TABLE_ATTRIBUTES = ("OCC", "LSV", "FM", "LI", "HI", "TC", "SO", "DEF")  # GTOT's table names none
MEANINGS = {  # of LasHeR's, RGBT234's and GTOT's codes
    "NO": "no occlusion",
    "PO": "partial occlusion",
    "TO": "total occlusion",
    "HO": "hyaline or heavy occlusion",
    "OCC": "occlusion",
    "OV": "out of view",
    "LI": "low illumination",
    "HI": "high illumination",
    "AIV": "abrupt illumination variation",
    "LR": "low resolution",
    "SO": "small object",
    "DEF": "deformation",
    "BC": "background clutter",
    "SA": "similar appearance",
    "TC": "thermal crossover",
    "MB": "motion blur",
    "CM": "camera moving",
    "FL": "frame lost",
    "FM": "fast motion",
    "SV": "scale variation",
    "LSV": "large scale variation",
    "ARC": "aspect ratio change",
}
SEQUENCES, ORDER = "SequencesName.txt", "Attributes_order.txt"


def explain(code: str) -> str:
    """A code with what it means, "LI, low illumination"; alone where that is not known."""
    return f"{code}, {MEANINGS[code]}" if code in MEANINGS else code


def read_attributes(path: str | Path) -> dict[str, set[str]]:
    """{attribute: its sequences}; in the files 1 stands where a sequence has the attribute, else 0.

    LasHeR: a folder of `<sequence>.txt`, one flag per attribute, named in `Attributes_order.txt`
    inside or beside it. RGBT234: a folder of `<attribute>.txt`, one flag per sequence, named in its
    `SequencesName.txt`. GTOT: one file with a sequence's name and its flags on each line.

    Raises:
        OSError: a file is missing. ValueError: flags that are no flags, or not as many as names.
    """
    path = Path(path)
    if path.is_file():
        rows = [
            (words[0], words[1:], f"{path}, line {number}")
            for number, line in read_lines(path)
            if (words := line.split())
        ]
        return _group(TABLE_ATTRIBUTES, rows)
    files = list_folder(check_folder(path), ".txt")
    rows = [
        (file.stem, _read_words(file), str(file))
        for file in files
        if file.name not in (SEQUENCES, ORDER)
    ]
    if (path / SEQUENCES).is_file():
        by_sequence = _group(read_names(path / SEQUENCES), rows)
        return {
            attribute: {name for name, attributes in by_sequence.items() if attribute in attributes}
            for attribute, _, _ in rows
        }
    for order in (path / ORDER, path.resolve().parent / ORDER):
        if order.is_file():
            return _group(_read_words(order), rows)
    raise FileNotFoundError(f"{path} has neither {SEQUENCES} in it nor {ORDER} in or beside it")


def _read_words(path: Path) -> list[str]:
    return " ".join(read_names(path)).replace(",", " ").split()


def _group(heads: Sequence[str], rows: Sequence[tuple[str, list[str], str]]) -> dict[str, set[str]]:
    """{head: names of the rows flagged under it} of rows (name, flags, where they stand)."""
    for _, flags, place in rows:
        if len(flags) != len(heads) or not {*flags} <= {"0", "1"}:
            raise ValueError(f"{place}: {len(flags)} flags; expected {len(heads)}, each 0 or 1")
    return {
        head: {name for name, flags, _ in rows if flags[i] == "1"} for i, head in enumerate(heads)
    }
