"""Files that are whole or not there, folders with one owner, and what differs between two that must
agree, in words.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOCK = ".lock"  # of a folder; it stays when it is released, for who deletes a lock makes two
LEFT_OVER = re.compile(r"\..+\.gmmt-[0-9a-f]{16}")  # what `_name_temporary` gives, and nobody else


@contextlib.contextmanager
def own_folder(folder: Path, what: str, *parts: str) -> Iterator[None]:
    """Be the only one that writes into a folder inside the `with`; it is made where missing.

    What killed writers have left in it, and in the parts of it that are named, is removed. The
    kernel releases the lock when the process dies, whatever its workers do.

    Args:
        what: the owner does, for the error: "trains", "tracks".
        parts: subfolders that are written into as well, where they are there.

    Raises:
        OSError: another process owns the folder, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(
            f"another process {what} in {folder}; wait until it has ended, or give another folder"
        ) from None
    try:
        for part in ("", *parts):
            _remove_left_overs(folder / part)
        yield
    finally:
        lock.release()


def _remove_left_overs(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if LEFT_OVER.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or
    the new one. It gets the permissions of a file that `open` makes.

    Raises:
        OSError: of the disk, with the path; what was there before is there still.
    """
    temporary = _name_temporary(path)
    with _disk_errors(path):
        try:
            # some writers make files for this user only
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            write(temporary)
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_folder_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a hidden folder beside `path`, which must be new, then rename it.

    Raises:
        OSError: of the disk, with the path.
    """
    temporary = _name_temporary(path)
    with _disk_errors(path):
        try:
            temporary.mkdir()
            write(temporary)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_folder_atomically(path: Path) -> None:
    """Rename a folder before it is emptied: half of it never has its name."""
    os.replace(path, doomed := _name_temporary(path))
    shutil.rmtree(doomed)


def write_tensors(
    path: Path, tensors: "dict[str, Tensor]", about: dict[str, str] | None = None
) -> None:
    """`write_atomically` of a file of safetensors, with metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, about)
        except SafetensorError as error:  # of the disk, but no OSError
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error

    write_atomically(path, write)


def _name_temporary(path: Path) -> Path:
    """A name beside `path` that no other writer has."""
    return path.with_name(f".{path.name[:50]}.gmmt-{os.urandom(8).hex()}")


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Let an OSError name the file that was to be written: those of a full disk name none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename in (str(path), path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


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
