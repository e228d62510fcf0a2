"""Hosts' checkpoints are read without their repository, and without running anything."""

import collections
import concurrent.futures
import contextlib
import os
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gmmt_fusion import load_host_checkpoint
from gmmt_fusion.attaching.inert_pickle import NotLoaded


@pytest.fixture
def host_classes(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `lib.train.admin` with classes as the OSTrack family saves; gone when asked."""
    module = types.ModuleType("lib_of_a_host")
    for name in ("Settings", "AverageMeter"):
        setattr(module, name, type(name, (), {"__module__": module.__name__, "__qualname__": name}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def save_as_ostrack(path: Path, host: types.ModuleType, **options: Any) -> dict[str, Any]:
    """What lib/train/trainers/base_trainer.py writes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    settings, meter = host.Settings(), host.AverageMeter()
    settings.env, settings.use_gpu = host.Settings(), True
    meter.history = [0.5]
    state = {
        "epoch": 60,
        "net_type": "ViPTrack",
        "net": network.state_dict(),
        "constructor": None,
        "optimizer": optimizer.state_dict(),
        "settings": settings,
        "stats": collections.OrderedDict(train=collections.OrderedDict({"Loss/total": meter})),
    }
    torch.save(state, path, **options)
    return state


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoint_of_the_ostrack_family(
    tmp_path: Path, host_classes: types.ModuleType, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ViPTrack_ep0060.pth.tar"
    saved = save_as_ostrack(path, host_classes, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, host_classes.__name__)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    before = set(torch.serialization.get_safe_globals())
    loaded = load_host_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert loaded.keys() == saved.keys() and loaded["epoch"] == 60 and loaded["constructor"] is None
    assert loaded["net"].keys() == saved["net"].keys()
    assert all(torch.equal(loaded["net"][key], saved["net"][key]) for key in saved["net"])
    assert loaded["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert isinstance(loaded["settings"], NotLoaded) and not vars(loaded["settings"])
    assert (
        repr(loaded["stats"]["train"]["Loss/total"]) == "<lib_of_a_host.AverageMeter, not loaded>"
    )
    assert host_classes.__name__ not in sys.modules


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_numbers_of_numpy_become_pythons(tmp_path: Path, legacy: bool) -> None:
    numbers = [
        np.float64(0.005),
        np.float32(0.5),
        np.int64(-3),
        np.uint8(200),
        np.bool_(True),
        np.float16(2),
    ]
    torch.save(
        {"epoch": 3, "optimizer": {"param_groups": [{"lr": n} for n in numbers]}, "state_dict": {}},
        tmp_path / "e.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    groups = load_host_checkpoint(tmp_path / "e.pth")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [n.item() for n in numbers]
    assert {type(group["lr"]) for group in groups} == {float, int, bool}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_arrays_and_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    easydict = types.ModuleType("easydict")
    easydict.EasyDict = type(
        "EasyDict", (dict,), {"__module__": "easydict", "__qualname__": "EasyDict"}
    )
    monkeypatch.setitem(sys.modules, "easydict", easydict)
    cfg = easydict.EasyDict(TRAIN=easydict.EasyDict(EPOCH=20))
    cfg.also_an_attribute = 1
    counts = collections.defaultdict(list)
    counts["a"].append(1)
    torch.save(
        {"cfg": cfg, "counts": counts, "mean": np.zeros(3), "path": Path("x")},
        tmp_path / "e.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    monkeypatch.delitem(sys.modules, "easydict")
    loaded = load_host_checkpoint(tmp_path / "e.pth")
    assert loaded["cfg"] == {"TRAIN": {"EPOCH": 20}} and loaded["counts"] == {"a": [1]}
    assert isinstance(loaded["mean"], NotLoaded) and isinstance(loaded["path"], NotLoaded)


class Attack:
    """Runs a function when a pickle of it is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Later:
    """Gives its state to a function when a pickle of it is loaded."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, (), {"__class__": Attack(os.system, "exit")}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "name", ["system", "eval", "open", "import", "popen", "torch", "numpy", "state"]
)
def test_nothing_is_run(tmp_path: Path, name: str, legacy: bool) -> None:
    import builtins
    import subprocess

    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()"
    attack = {
        "system": Attack(os.system, f"touch {mark}"),
        "eval": Attack(eval, code),
        "open": Attack(open, str(mark), "w"),
        "import": Attack(builtins.exec, code),
        "popen": Attack(subprocess.Popen, ["touch", str(mark)]),
        "torch": Attack(torch.save, {}, str(mark)),
        "numpy": Attack(np.save, str(mark), 0),
        "state": Later(),
    }[name]
    path = tmp_path / "attack.pth"
    torch.save({"net": {}, "evil": attack}, path, _use_new_zipfile_serialization=not legacy)
    try:
        assert not isinstance(load_host_checkpoint(path)["evil"], int)
    except OSError as error:
        assert "without running code" in str(error)
    assert os.listdir(tmp_path) == ["attack.pth"]


def test_files_that_are_no_checkpoint(tmp_path: Path, host_classes: types.ModuleType) -> None:
    with pytest.raises(OSError, match=r"none\.pth is missing"):
        load_host_checkpoint(tmp_path / "none.pth")
    with pytest.raises(OSError, match="is missing"):
        load_host_checkpoint(tmp_path)
    for legacy in (False, True):
        path = tmp_path / f"whole{legacy}.pth"
        save_as_ostrack(path, host_classes, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for share in (0.1, 0.5, 0.95):
            (tmp_path / "cut.pth").write_bytes(content[: int(share * len(content))])
            with pytest.raises(OSError, match=r"cut\.pth is damaged, or no checkpoint"):
                load_host_checkpoint(tmp_path / "cut.pth")
    for content in (
        b"",
        b"not a checkpoint",
        b"\x80\x04",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps([1, 2]),
    ):
        (tmp_path / "foreign.pth").write_bytes(content)
        with pytest.raises(OSError, match=r"foreign\.pth"):
            load_host_checkpoint(tmp_path / "foreign.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(OSError, match="holds a list; expected a dict"):
        load_host_checkpoint(tmp_path / "list.pth")
    torch.jit.script(nn.Conv2d(1, 1, 1)).save(tmp_path / "script.pth")
    with pytest.raises(OSError, match=r"script\.pth is damaged"):
        load_host_checkpoint(tmp_path / "script.pth")


def write_legacy(path: Path, checkpoint: bytes, keys: list[str] | None = None) -> None:
    """A file of torch before 1.6 around a pickle."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [*(pickle.dumps(part, 2) for part in head), checkpoint, pickle.dumps(keys or [], 2)]
    path.write_bytes(b"".join(parts))


def deep_key(wrap: bytes) -> bytes:
    return b"\x80\x02}" + wrap * 10**5 + b"K\x01s."


def storage_of(numbers: int, size: int) -> bytes:
    """{"a": a tensor of `size` numbers over a storage that says it has `numbers`}."""

    class Persistent(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            storage = ("storage", torch.FloatStorage, "0", "cpu", numbers, None)
            return storage if value == "the storage" else None

    class Built:
        def __reduce__(self) -> Any:
            arguments = "the storage", 0, (size,), (1,), False, collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, arguments

    import io

    file = io.BytesIO()
    Persistent(file, 2).dump({"a": Built()})
    return file.getvalue()


HUGE = {
    "nested tuple": (deep_key(b"\x85"), "nested tuple"),
    "tuple of two alike": (deep_key(b"2\x86"), "nested tuple|nothing|stack|pop"),
    "bytearray of a size": (
        b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x05\x00\x94\x35\x77\x00\x85Rs.",
        "bytes are made of a int",
    ),
    "bytearray8": (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"a.", ""),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
    "long string": (b"\x80\x02}X\xff\xff\xff\x7faK\x01s.", ""),
    "storage": (storage_of(10**12, 1), "larger than the file"),
    "tensor": (storage_of(0, 10**12), ""),
    "tensor of too few": (storage_of(1, 10**6), "does not fit its storage"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_takes_little_memory_and_time(tmp_path: Path, name: str) -> None:
    content, message = HUGE[name]
    path = tmp_path / "huge.pth"
    write_legacy(path, content, ["0"] if name.startswith("tensor") else [])
    with resource_limits():
        try:
            assert load_host_checkpoint(path) == {}  # of "memo", which is odd and harmless
        except OSError as error:
            assert str(path) in str(error) and re.search(message, str(error))


@contextlib.contextmanager
def resource_limits(room: int = 1 << 30) -> Iterator[None]:
    """Of the address space: what asks for more than `room` on top gets a MemoryError."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(1 << 20))
    with pytest.raises(OSError, match="larger than the file"):
        load_host_checkpoint(tmp_path / "bomb.pth")


def test_flipped_bits_are_noticed(tmp_path: Path, host_classes: types.ModuleType) -> None:
    saved = save_as_ostrack(tmp_path / "whole.pth", host_classes)["net"]
    content = (tmp_path / "whole.pth").read_bytes()
    generator = np.random.default_rng(0)
    noticed = 0
    for place in generator.integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(0, 8))
        (tmp_path / "flipped.pth").write_bytes(bytes(damaged))
        try:
            loaded = load_host_checkpoint(tmp_path / "flipped.pth")["net"]
        except OSError:
            noticed += 1
        else:  # in what no tensor depends on
            assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    assert noticed > 50


def test_views_share_their_storage(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"a": weight, "b": weight.T, "c": weight[1:, ::2], "empty": torch.empty(0, 3)}
    for legacy in (False, True):
        torch.save(state, tmp_path / "v.pth", _use_new_zipfile_serialization=not legacy)
        loaded = load_host_checkpoint(tmp_path / "v.pth")
        assert all(torch.equal(loaded[key], state[key]) for key in state)
        assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
        assert loaded["empty"].shape == (0, 3)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_several_threads_load(tmp_path: Path, host_classes: types.ModuleType, legacy: bool) -> None:
    path = tmp_path / "t.pth"
    save_as_ostrack(path, host_classes, _use_new_zipfile_serialization=not legacy)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_host_checkpoint(path), range(40)))
    weights = [checkpoint["net"]["0.weight"] for checkpoint in loaded]
    assert all(torch.equal(weight, weights[0]) for weight in weights)


class OwnList(list):
    pass


class OwnDict(dict):
    pass


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_containers_of_the_hosts_own_classes_are_inert(tmp_path: Path, legacy: bool) -> None:
    state = {"net": {"w": torch.ones(2)}, "l": OwnList([1, 2]), "d": OwnDict(a=1, b=[2])}
    torch.save(state, tmp_path / "o.pth", _use_new_zipfile_serialization=not legacy)
    loaded = load_host_checkpoint(tmp_path / "o.pth")
    assert torch.equal(loaded["net"]["w"], torch.ones(2))
    assert isinstance(loaded["l"], NotLoaded) and isinstance(loaded["d"], NotLoaded)


def test_unusual_tensors(tmp_path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 1j])
    state = {
        "conj": values.conj(),
        "negative": values.clone().conj().imag,
        "uint16": torch.tensor([1, 2, 3], dtype=torch.uint16),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "repeated": torch.zeros(1).expand(1200, 1200),
        "weights": torch.ones(2),
    }
    torch.save(state, tmp_path / "u.pth")
    loaded = load_host_checkpoint(tmp_path / "u.pth")
    for key in ("conj", "negative", "uint16", "weights"):
        assert torch.equal(loaded[key].resolve_conj(), state[key].resolve_conj()), key
    assert torch.equal(loaded["float8"].float(), torch.ones(3))
    assert isinstance(loaded["repeated"], NotLoaded)
