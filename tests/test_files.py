"""A folder has one owner, a file is whole or not there, and nothing of a killed writer stays."""

import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gmmt_fusion.files import own_folder, write_atomically, write_folder_atomically, write_tensors

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, ready: Any, workers: int = 0) -> None:
    with own_folder(folder, "trains", "parts"):
        for _ in range(workers):
            FORK.Process(target=time.sleep, args=(5,)).start()

        def stall(path: Path) -> None:
            path.write_text("half")
            ready.set()
            time.sleep(60)

        write_atomically(folder / "file", stall)


def start_holding(folder: Path, workers: int = 0) -> Any:
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(folder, ready, workers))
    process.start()
    assert ready.wait(30)
    return process


def test_a_folder_has_one_owner_until_it_dies(tmp_path: Path) -> None:
    owner = start_holding(tmp_path / "run", workers=1)
    told = pytest.raises(OSError, match=r"another process trains in .*run; .*another folder")
    with told, own_folder(tmp_path / "run", "trains"):
        pass
    assert [path.name for path in (tmp_path / "run").glob(".file*")] != []  # not ours to clean
    owner.kill()
    owner.join()
    with own_folder(tmp_path / "run", "trains"):  # whatever its workers do
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with own_folder(tmp_path / "run", "trains"):
        pass


def test_threads_of_one_process_are_two_writers(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second() -> None:
        try:
            with own_folder(tmp_path, "trains"):
                pass
        except OSError as error:
            found.append(error)

    with own_folder(tmp_path, "trains"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another process trains" in str(found[0])


def test_only_what_the_library_named_is_removed(tmp_path: Path) -> None:
    kept = [".step-00000010", "step-1.bak", ".file.1234", ".file.gmmt-12", "file.gmmt-" + 16 * "0"]
    for name in kept:
        (tmp_path / "part" / name).mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "part", tmp_path / "other"):
        (folder / f".file.gmmt-{16 * 'a'}").mkdir(parents=True)
    with own_folder(tmp_path, "trains", "part", "missing"):
        pass
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == sorted(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "other", "part"]
    assert len(list((tmp_path / "other").iterdir())) == 1


def test_a_folder_that_cannot_be_owned(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(OSError, match=str(folder)), own_folder(folder, "trains"):
            pass


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Readers see what one of them has written, whole."""
    texts = [str(i) * 1000 for i in range(4)]

    def write(text: str) -> None:
        for _ in range(30):
            write_atomically(tmp_path / "file", lambda path: path.write_text(text))

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


TENSORS = {"x": torch.zeros(10_000)}


def write_parts(folder: Path) -> None:
    write_tensors(folder / "tensors", TENSORS)


WRITERS: dict[str, Any] = {
    "text": lambda path: write_atomically(path, lambda to: to.write_text("x" * 40_000)),
    "tensors": lambda path: write_tensors(path, TENSORS),
    "folder": lambda path: write_folder_atomically(path, lambda to: (write_parts(to), None)[1]),
}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("name", WRITERS)
def test_permissions_are_those_of_ordinary_files(name: str, mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        WRITERS[name](tmp_path / "written")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_path(name: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for it; what was there before stays."""
    path = tmp_path / "written"
    if name != "folder":
        path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"'{path}'") as caught:
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno is not None
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"] * (name != "folder")
