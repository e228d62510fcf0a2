"""Files that are whole or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or
    the new one.
    """
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}"
    )  # mkstemp's file would be for this user only
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a hidden folder beside `path`, which must be new, then rename it."""
    temporary = path.with_name(f".{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder_atomically(path: Path) -> None:
    """Rename a folder before it is emptied: half of it never has its name."""
    os.replace(path, doomed := path.with_name(f".{path.name}"))
    shutil.rmtree(doomed)
