"""Checkpoints of a run on disk: each is whole, says what it belongs to, and is read back at once.

A checkpoint is a folder of a saved fusion, `optimizer.pt` with all other states, and `state.json`,
which is written last and holds the checksums of the others and its own.
"""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import file_digest, read_sealed, seal, write_folder_atomically
from ..model import checkpoint
from ..model.config import FusionConfig
from .states import State, pack, unpack

STATE, OPTIMIZER = "state.json", "optimizer.pt"
FILES = (checkpoint.CONFIG, checkpoint.WEIGHTS, OPTIMIZER)
NAME = re.compile("step-[0-9]{8}")


class Checkpoint(NamedTuple):
    """config and weights: of the fusion. about: JSON. parts: the states of everything else."""

    config: FusionConfig
    weights: dict[str, Tensor]
    about: dict[str, Any]
    parts: dict[str, State]


def list_checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, the oldest first; whatever else is there is not ours."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if NAME.fullmatch(path.name) and path.is_dir())


def write_checkpoint(
    path: Path, save_fusion: Callable[[Path], None], about: Mapping[str, Any], parts: State
) -> None:
    """Write a checkpoint, and read it back before it gets its name.

    Raises:
        OSError: of the disk, or it cannot be read back. ValueError: as `pack`.
    """
    packed = {name: pack(part, name) for name, part in parts.items()}

    def write(folder: Path) -> None:
        save_fusion(folder)
        # in memory first: torch has an error of its own for a full disk
        torch.save(packed, buffer := io.BytesIO())
        (folder / OPTIMIZER).write_bytes(buffer.getbuffer())
        digests = {name: file_digest(folder / name) for name in FILES}
        (folder / STATE).write_text(seal({**about, "files": digests}), encoding="utf-8")
        read_checkpoint(folder)

    write_folder_atomically(path, write)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """What `write_checkpoint` was given, the parts' tensors on a device.

    Raises:
        OSError: a file is missing, or is not as it was written.
    """
    about = read_sealed(path / STATE)
    for name, digest in about.pop("files").items():
        if file_digest(path / name) != digest:
            raise OSError(f"{path / name} has changed since it was written (sha256 differs)")
    config, weights = checkpoint.load(path)
    try:
        parts = unpack(torch.load(path / OPTIMIZER, weights_only=True, map_location=device))
    except Exception as error:  # torch, pickle and zipfile raise whatever they like
        raise OSError(f"{path / OPTIMIZER} cannot be read back ({error})") from error
    return Checkpoint(config, weights, about, parts)


def read_last(folder: Path, device: torch.device) -> tuple[Path, Checkpoint]:
    """The last checkpoint in a folder that has one.

    Raises:
        OSError: it is damaged; says which older one is whole.
    """
    *older, last = list_checkpoints(folder)
    try:
        return last, read_checkpoint(last, device)
    except OSError as error:
        whole = next(filter(_is_whole, reversed(older)), None)
        advice = (
            f"{whole} is whole: delete {last}, and the run goes on from there"
            if whole
            else "none before it is whole; give another folder"
        )
        raise OSError(f"the last checkpoint is damaged: {error}. {advice}") from error


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except OSError:
        return False
    return True
