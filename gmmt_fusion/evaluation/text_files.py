"""Text files and folders that others wrote; every error names the file, and the line."""

from collections.abc import Sequence
from pathlib import Path, PurePath


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines with their numbers, from 1, without the empty ones at the end.

    Raises:
        OSError: the file cannot be read. ValueError: it is empty or no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    lines = list(enumerate(text.rstrip().splitlines(), 1))
    if not lines:
        raise ValueError(f"{path} is empty")
    return lines


def read_names(path: str | Path) -> list[str]:
    """Names of sequences, one per line; empty lines are left out."""
    return [line.strip() for _, line in read_lines(path) if line.strip()]


def check_folder(path: str | Path) -> Path:
    """The path, if it is a folder; else NotADirectoryError."""
    path = Path(path)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    return path


def list_folder(path: Path, suffix: str = "") -> list[Path]:
    """What lies in a folder and ends in `suffix`, sorted, without what file managers leave there:

    hidden files, `._name` of resource forks among them, and `__MACOSX`.
    """
    entries = (
        entry
        for entry in path.iterdir()
        if entry.name.endswith(suffix) and not entry.name.startswith((".", "__MACOSX"))
    )
    return sorted(entries, key=lambda entry: entry.name)


def check_names(sequences: Sequence[str]) -> None:
    """Refuse sequences of one name in different folders: there is one result file for each name."""
    seen: dict[str, str] = {}
    for sequence in sequences:
        other = seen.setdefault(PurePath(sequence).name, sequence)
        if other != sequence:
            raise ValueError(
                f"{other} and {sequence} have the same name; take them one after the other, with a "
                "folder of results each"
            )


def printable(text: str, encoding: str = "utf-8") -> str:
    """The text, and of names that cannot be shown so the bytes, as in a Python string."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
