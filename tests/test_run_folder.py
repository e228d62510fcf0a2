"""The folders of a run and of a cache: one owner, damage that is told, strays left alone."""

import contextlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from caches import make_cache
from cases import CASES
from torch.utils.data import DataLoader
from training_runs import read_log, train
from two_processes import run_in_two_processes

from gmmt_fusion import Attachment
from gmmt_fusion.files import own_folder
from gmmt_fusion.training import CachedFeatures
from gmmt_fusion.training.checkpoints import list_checkpoints, read_checkpoint

CONCAT = CASES[0]


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other content": lambda path: path.write_bytes(b'{"hello": [1, 2]}\n' * 9),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "missing": lambda path: path.unlink(),
    **{f"bit at {x}": (lambda path, x=x: flip(path, x)) for x in (0, 0.2, 0.5, 0.99, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told(damage: str, tmp_path: Path) -> None:
    train(tmp_path, save_every=2)
    older, last = list_checkpoints(tmp_path / "checkpoints")
    for name in ("state.json", "optimizer.pt", "model.safetensors", "config.json"):
        before = (last / name).read_bytes()
        DAMAGES[damage](last / name)
        with pytest.raises(OSError) as caught:
            train(tmp_path, epochs=2)
        assert str(last / name) in str(caught.value), caught.value
        assert f"{older} is whole: delete {last}" in str(caught.value)
        (last / name).write_bytes(before)
    if damage != "missing":
        log = (tmp_path / "log.jsonl").read_bytes()
        DAMAGES[damage](tmp_path / "log.jsonl")
        with pytest.raises(OSError, match=r"log\.jsonl has changed"):
            train(tmp_path, epochs=2)
        (tmp_path / "log.jsonl").write_bytes(log)
    train(tmp_path, epochs=2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_told(damage: str, tmp_path: Path) -> None:
    make_cache(CONCAT, tmp_path / "cache", shard_size=4)
    for name in ("manifest.json", "shard-00001.safetensors"):
        path = tmp_path / "cache" / name
        before = path.read_bytes()
        DAMAGES[damage](path)
        with pytest.raises(OSError, match=re.escape(str(path))):
            train(tmp_path / "run", loader=DataLoader(CachedFeatures(tmp_path / "cache"), 2))
        path.write_bytes(before)


def test_strays_do_no_harm(tmp_path: Path) -> None:
    train(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    strays = ["step-00000010.bak", "step-foo", "step-1", ".step-00000009", "step-000000099"]
    for name in strays:
        (checkpoints / name).mkdir()
    (checkpoints / "step-99999999").write_text("a user's file")
    (checkpoints / f".step-00000003.gmmt-{16 * '0'}").mkdir()  # of a killed process
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / f".model.safetensors.gmmt-{16 * 'f'}").touch()
    train(tmp_path, epochs=4, keep=1)
    found = sorted(path.name for path in checkpoints.iterdir())
    assert found == sorted([*strays, "step-00000016", "step-99999999"])
    assert not list((tmp_path / "best").iterdir())


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    began, end = threading.Event(), threading.Event()

    def wait(attachment: Attachment) -> float:
        began.set()
        assert end.wait(60)
        return 1.0

    first = threading.Thread(target=train, args=(tmp_path,), kwargs={"validate": wait})
    first.start()
    try:
        assert began.wait(60)
        with pytest.raises(OSError, match=f"another process trains in {tmp_path}"):
            train(tmp_path)
    finally:
        end.set()
        first.join()
    train(tmp_path, epochs=2)
    assert not list(tmp_path.glob(".*"))


def start_second_run(rank: int, folder: str) -> None:
    with pytest.raises(OSError, match="another process trains"):
        train(Path(folder))


def test_all_processes_of_a_second_run_are_told(tmp_path: Path) -> None:
    """And none waits for the one that looked."""
    with own_folder(tmp_path, "trains"):
        run_in_two_processes(start_second_run, str(tmp_path))


def test_two_writers_of_one_cache(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second(batch: Any) -> Any:
        if not found:
            try:
                make_cache(CONCAT, tmp_path)
            except OSError as error:
                found.append(error)
        return {"label": batch["label"]}

    cache = make_cache(CONCAT, tmp_path, targets=second)
    assert f"another process caches features in {tmp_path}" in str(found[0])
    cache.verify()


def test_a_run_stays_in_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def move(attachment: Attachment) -> float:
        os.chdir(tmp_path / "elsewhere")
        return 1.0

    train(Path("run"), epochs=2, validate=move)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "run" / "final").is_dir() and len(read_log(tmp_path / "run")) == 12


def test_logs_are_json(tmp_path: Path) -> None:
    values = iter([float(text) for text in ("nan", "nan", "nan", "inf", "-inf")])
    train(tmp_path, epochs=3, validate=lambda attachment: next(values))

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    json.loads((last / "state.json").read_text(), parse_constant=refuse)
    assert read_checkpoint(last).about["best"] == "inf"
    train(tmp_path, epochs=3)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    import resource

    train(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=str(tmp_path)):
            train(tmp_path, epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    with contextlib.chdir(tmp_path) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        train(tmp_path, epochs=2)


def test_permissions_are_those_of_ordinary_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train(tmp_path / "run", loader=DataLoader(make_cache(CONCAT, tmp_path / "cache"), 2))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert set(modes.values()) == {0o640, 0o750} and modes["model.safetensors"] == 0o640, modes
