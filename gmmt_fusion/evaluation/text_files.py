"""Text files that others wrote, read line by line; every error names the file and the line."""

from pathlib import Path


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
