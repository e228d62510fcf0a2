"""Files that are whole or not there, and in words what differs between two that must agree."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
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


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differences(there: Mapping[str, object], here: Mapping[str, object], prefix: str = "") -> str:
    """What differs between two sets of settings, as "key is X there and Y here"; "" if nothing.

    Mappings inside are compared key by key, under "key.inner"; a key that one side lacks counts as
    None there. Of a SHA-256 only the first 12 digits are shown.
    """
    found = []
    for key in [*there, *(key for key in here if key not in there)]:
        one, other = there.get(key), here.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [text for text in [differences(one, other, f"{prefix}{key}.")] if text]
        elif one != other:
            found.append(f"{prefix}{key} is {_shorten(one)} there and {_shorten(other)} here")
    return "; ".join(found)


def _shorten(value: object) -> str:
    digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return str(value)[:12] if digest else repr(value)
