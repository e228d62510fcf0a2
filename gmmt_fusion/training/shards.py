"""A cache's folder: shards of safetensors, and the manifest that knows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import file_digest, read_json, read_sealed, seal, write_atomically, write_tensors

MANIFEST = "manifest.json"
FORMAT = 3  # of the manifest
Manifest = dict[str, Any]  # JSON: what the cache is of, and under "shards" its files


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, of which every shard is there in full length; None where there is none.

    Raises:
        OSError: it is no manifest, or a shard is missing or of another length.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest: Manifest = read_json(path)
        if manifest.get("format") == FORMAT:  # others have no checksum, and are not read
            manifest = read_sealed(path)
        shards = [(folder / shard["file"], shard["bytes"]) for shard in manifest["shards"]]
    except (OSError, KeyError, TypeError) as error:
        raise OSError(
            f"{path} is not the manifest of a cache ({error}); delete the folder"
        ) from error
    for shard, size in shards:
        if not shard.is_file() or shard.stat().st_size != size:
            found = f"has {shard.stat().st_size} bytes" if shard.is_file() else "is missing"
            raise OSError(
                f"{shard} {found}; expected {size} bytes. Delete the folder and call "
                "cache_features again"
            )
    return manifest


def count_batches(manifest: Manifest) -> int:
    """How many batches the shards hold."""
    return sum(int(shard["batches"]) for shard in manifest["shards"])


def write_shard(folder: Path, manifest: Manifest, rows: Sequence[Mapping[str, Tensor]]) -> None:
    """Write batches as a shard, and then the manifest that knows it.

    A crash between the two costs the shard, not the cache.

    Args:
        rows: tensors (B, …) by name, of one batch each, on the CPU.
    """
    path = folder / f"shard-{len(manifest['shards']):05d}.safetensors"
    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    write_tensors(path, tensors)
    manifest["shards"].append(
        {
            "file": path.name,
            "samples": len(tensors["fused"]),
            "batches": len(rows),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
    )
    text = seal(manifest, indent=1)
    write_atomically(
        folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8")
    )


def map_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard by name, mapped from disk: nothing is read before it is used.

    Raises:
        OSError: it is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(
            f"{path} is not safetensors ({error}); delete the folder, call cache_features again"
        ) from error
