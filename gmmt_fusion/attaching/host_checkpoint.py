"""Reading the checkpoints of host trackers, which `torch.load` refuses since 2.6, without running
any of their code.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .inert_pickle import InertUnpickler, NotLoaded, Storage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch before 1.6, as siamban's published weights


def load_host_checkpoint(
    path: str | Path, map_location: str | torch.device = "cpu"
) -> dict[str, Any]:  # what the host saved
    """A host's checkpoint (`.pth`, `.pth.tar`), without the host's repository on the import path.

    Tensors, numbers, strings and containers are loaded as they are; an object of any other class
    becomes an inert `NotLoaded`, dicts' subclasses that configs are made of an OrderedDict. Nothing
    that the file names is imported or called. Time and memory are linear in the file's size.

    The weights are under "net" in checkpoints of the OSTrack family (ViPT, TBSI; beside
    "optimizer", "stats", "settings", "epoch", …), under "state_dict" in siamban's (beside
    "optimizer" and "epoch"); some have the weights themselves at the top, some names with a leading
    "module.".

    Args:
        path: the file.
        map_location: the device that tensors go to.

    Returns:
        The dict that the host saved.

    Raises:
        OSError: the file is missing, damaged, or no checkpoint that can be read safely.
    """
    path, device = Path(path), torch.device(map_location)
    if not path.is_file():
        raise OSError(f"{path} is missing; expected a host's checkpoint, a .pth or .pth.tar file")
    try:
        with path.open("rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            checkpoint = read(file, path.stat().st_size, device)
    except Exception as error:  # a damaged file raises nearly anything
        first = next(iter(str(error).splitlines()), "")
        raise OSError(
            f"{path} is damaged, or no checkpoint of torch.save that can be read without running "
            f"code: {type(error).__name__}: {first:.200}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise OSError(
            f"{path} holds a {type(checkpoint).__name__}; expected a dict, as hosts' trainers save"
        )
    return checkpoint


def _read_zip(file: BinaryIO, length: int, device: torch.device) -> Any:  # what was saved
    """Torch's format: a zip of one pickle and of the storages; their checksums are compared."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
        if not stored or sum(member.file_size for member in members.values()) > length:
            raise ValueError("its parts are larger than the file")
        main = next((name for name in members if name.endswith("data.pkl")), None)
        if main is None:
            raise ValueError("there is no data.pkl in it")
        folder = main.removesuffix("data.pkl")
        order = (
            archive.read(members[f"{folder}byteorder"]) if f"{folder}byteorder" in members else b""
        )
        if order not in (b"", b"little"):
            raise ValueError(f"its byte order is {order!r}; expected little")
        storages: dict[str, Storage] = {}

        def load_storage(identity: Any) -> Storage:  # of the file
            kind, dtype, key, _, numbers = identity
            if kind != "storage" or not isinstance(dtype, torch.dtype):
                raise ValueError(f"a storage is a {kind}")
            if str(key) not in storages:
                data = bytearray(archive.read(members[f"{folder}data/{key}"]))
                if len(data) < int(numbers) * dtype.itemsize:
                    raise ValueError(f"storage {key} is shorter than it says")
                storages[str(key)] = _make_storage(data, dtype, device)
            found = storages[str(key)]
            return Storage(found.untyped, dtype)

        return InertUnpickler(io.BytesIO(archive.read(members[main])), load_storage).load()


def _read_legacy(file: BinaryIO, length: int, device: torch.device) -> Any:  # what was saved
    """The format of torch before 1.6: five pickles, then the storages one after another."""
    data = io.BytesIO(file.read())
    storages: dict[str, tuple[Storage, int]] = {}
    room = length

    def load_storage(identity: Any) -> Storage:  # of the file
        nonlocal room
        if identity[0] == "module":
            return identity[1]  # type: ignore[no-any-return]  # a class; its source does not matter
        kind, dtype, key, _, numbers, view = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise ValueError(f"a storage is a {kind}, or a part of another")
        if str(key) not in storages:
            room -= int(numbers) * dtype.itemsize
            if int(numbers) < 0 or room < 0:
                raise ValueError("its storages are larger than the file")
            space = torch.empty(int(numbers), dtype=dtype).untyped_storage()
            storages[str(key)] = Storage(space, dtype), int(numbers)
        storage, declared = storages[str(key)]
        if storage.dtype is not dtype or declared != int(numbers):
            raise ValueError(f"storage {key} is of two kinds")
        return storage

    magic, _, about, checkpoint, keys = (
        InertUnpickler(data, load_storage).load() for _ in range(5)
    )
    if magic != LEGACY_MAGIC or not about.get("little_endian", True):
        raise ValueError("it is not of torch.save, or of a machine of another byte order")
    for key in keys:
        storage, numbers = storages[str(key)]
        (found,) = struct.unpack("<q", data.read(8))
        content = data.read(numbers * storage.dtype.itemsize)
        if found != numbers or len(content) != storage.untyped.nbytes():
            raise ValueError("it ends in its storages")
        storage.untyped.copy_(_make_storage(bytearray(content), storage.dtype, None).untyped)
    if len(keys) != len(storages):
        raise ValueError(f"it has {len(keys)} storages of {len(storages)}")
    return checkpoint if device.type == "cpu" else _move(checkpoint, device)


def _make_storage(data: bytearray, dtype: torch.dtype, device: torch.device | None) -> Storage:
    numbers = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0)
    return Storage((numbers if device is None else numbers.to(device)).untyped_storage(), dtype)


def _move(value: Any, device: torch.device) -> Any:  # a part of what was saved
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


__all__ = ["NotLoaded", "load_host_checkpoint"]
