"""The frozen host's maps, computed once and read from disk: safetensors shards and a manifest.

Host and feature extractor do not change while the fusion learns, so that their outputs need not be
computed again.
"""

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..attaching.attachment import Attachment, run_host
from ..attaching.patching import Plugin, Point
from ..checks import check_choice, check_whole_number
from ..files import write_atomically
from ..version import __version__
from .repeatable import RepeatableLoader

MANIFEST = "manifest.json"
DTYPES = {
    None: None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class CachedFeatures(Dataset):
    """The samples of a folder that `cache_features` filled, for a DataLoader that `fine_tune` gets.

    An item is a dict of tensors: feature_0 … feature_{m-1} and fused (C, H, W), the head's other
    inputs head_0 …, and the targets under their own names. It is mapped from disk, not read: copy
    before writing into it.

    Raises:
        OSError: a file is missing, cut off or of something else. ValueError: the cache is not
        complete.
    """

    def __init__(self, folder: Any) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        if manifest is None:
            raise OSError(
                f"{self.folder / MANIFEST} is missing; expected a folder written by cache_features"
            )
        self.manifest: dict[str, Any] = manifest
        if _batches(manifest) < manifest["batches"]:
            raise ValueError(
                f"{self.folder} is not complete ({_batches(manifest)} of {manifest['batches']} "
                "batches); "
                "call cache_features again with the same arguments, and it goes on"
            )
        self._ends = list(
            itertools.accumulate(shard["samples"] for shard in self.manifest["shards"])
        )
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        if number not in self._open:
            self._open[number] = _map_shard(self.folder / self.manifest["shards"][number]["file"])
        row = index - (self._ends[number - 1] if number else 0)
        return {name: tensor[row] for name, tensor in self._open[number].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # every worker maps the shards itself

    @property
    def bytes_per_sample(self) -> float:
        return sum(shard["bytes"] for shard in self.manifest["shards"]) / len(self)

    def verify(self) -> None:
        """Read everything and compare checksums; opening a cache compares sizes only.

        Raises:
            OSError: a shard is not what was written.
        """
        for shard in self.manifest["shards"]:
            if _sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise OSError(
                    f"{self.folder / shard['file']} has changed since it was written (sha256 "
                    "differs); "
                    "delete the folder and call cache_features again"
                )

    def network(self, attachment: Attachment) -> "CachedNetwork":
        """What trains in the host's place.

        Raises:
            ValueError: the cache is of another host, adapter or fusion, or lacks the attachment's
            degradation.
        """
        differences = _differences(self.manifest["source"], _source(attachment))
        if differences:
            raise ValueError(
                f"{self.folder} is the cache of another host: {differences}; call cache_features "
                "with "
                "this one and another folder"
            )
        if attachment.degradation is not None and self.manifest.get("degradation") != _degradation(
            attachment
        ):
            raise ValueError(
                f"{self.folder} was written with degradation {self.manifest.get('degradation')}, "
                "and the "
                f"attachment has {_degradation(attachment)}; set it before cache_features, with "
                "another "
                "folder"
            )
        return CachedNetwork(attachment._plugin, self.manifest)


class CachedNetwork(nn.Module):
    """The fusion and its new head alone. Called with a batch of CachedFeatures, it returns what the
    head returns.
    """

    def __init__(self, plugin: Plugin, manifest: Mapping[str, Any]) -> None:
        super().__init__()
        self.gmmt_fusion = (
            plugin  # so that the parameters keep the names that they have in the host
        )
        self.dtypes = {name: getattr(torch, dtype) for name, dtype in manifest["dtypes"].items()}
        self.head_inputs = manifest["head_inputs"]

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        plugin = self.gmmt_fusion
        maps = {name: batch[name].to(dtype) for name, dtype in self.dtypes.items()}
        plugin.generative_loss = None
        fused = plugin.fuse(
            [maps[f"feature_{i}"] for i in range(plugin.fusion.modalities)], maps["fused"]
        )
        inputs = _rebuild(self.head_inputs, fused, maps)
        return plugin.head(*inputs["args"], **inputs["kwargs"])


def cache_features(
    attachment: Attachment,
    loader: Any,
    folder: Any,
    *,
    targets: Callable[[Any], Mapping[str, Tensor]] | None = None,
    forward: Callable[[nn.Module, Any], Any] = run_host,
    passes: int = 1,
    dtype: str | None = None,
    shard_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> CachedFeatures:
    """Run the frozen host over a loader and write what training needs of it, the maps and the
    head's other inputs.

    With an `Attachment.degradation` the maps are those of the degraded inputs, and the fused ones
    of the clean.

    Interrupted, and called again with the same arguments, it goes on after the last whole shard.

    Args:
        loader: a torch DataLoader; its augmentations are drawn from `seed`. It need not shuffle:
            training does.
        folder: of the cache, made where it is missing.
        targets: of a batch, for the tracking loss: a dict of tensors (B, …).
        forward: one training forward of the host on a batch; default `run_host`.
        passes: over the loader, each with other augmentations; an epoch over the cache is as long
            as all of them.
        dtype: of the maps on disk, "float16" for half the size; default the host's. They are read
            back in the host's.
        shard_size: samples of a file, at least; a file is whole batches.

    Raises:
        ValueError: the attachment is detached, the loader empty, the folder of another cache, or
            the host's head is not called once with the fused map.
    """
    from accelerate.utils import send_to_device, tqdm

    if not attachment.attached:
        raise ValueError("the attachment is detached; attach the fusion again, and cache with that")
    check_whole_number("passes", passes)
    check_whole_number("shard_size", shard_size)
    check_choice("dtype", dtype, tuple(DTYPES))
    batches = RepeatableLoader(loader, seed)
    folder, total = Path(folder), passes * len(batches)
    settings = {
        "format": 1,
        "batches": total,
        "passes": passes,
        "dtype": dtype,
        "seed": seed,
        "shard_size": shard_size,
        "source": _source(attachment),
        "degradation": _degradation(attachment),
    }
    manifest = _read_manifest(folder) or {**settings, "shards": []}
    differences = _differences({key: manifest.get(key) for key in settings}, settings)
    if differences:
        raise ValueError(
            f"{folder} holds another cache: {differences}; give another folder, or delete this one"
        )
    manifest["version"] = __version__
    folder.mkdir(parents=True, exist_ok=True)

    network, training = attachment.network, attachment.network.training
    device = next(network.parameters()).device
    done = _batches(manifest)
    rows: list[dict[str, Tensor]] = []
    random_state = attachment.fusion.generator.get_state()
    network.train()  # hosts do other things at inference; what is frozen stays in eval mode
    try:
        with (
            torch.no_grad(),
            tqdm(total=total, initial=done, desc="cache", disable=not progress) as bar,
        ):
            for number in range(done // len(batches), passes):
                for batch in batches.epoch(number, done - number * len(batches)):
                    batch = send_to_device(batch, device)
                    attachment.fusion.manual_seed(
                        seed * total + done
                    )  # a degradation draws from it
                    row, head_inputs = _record(
                        attachment, functools.partial(forward, network, batch)
                    )
                    dtypes = {
                        name: str(tensor.dtype).removeprefix("torch.")
                        for name, tensor in row.items()
                    }
                    for key, value in (("head_inputs", head_inputs), ("dtypes", dtypes)):
                        if _differences({key: manifest.setdefault(key, value)}, {key: value}):
                            raise ValueError(
                                f"batch {done} has other {key} than those before: {value}; "
                                "expected "
                                f"{manifest[key]}"
                            )
                    row = {
                        name: x.to(DTYPES[dtype]) if x.is_floating_point() else x
                        for name, x in row.items()
                    }
                    rows.append(_with_targets(row, targets(batch) if targets else {}))
                    done += 1
                    bar.update()
                    if done == total or sum(len(row["fused"]) for row in rows) >= shard_size:
                        _write_shard(folder, manifest, rows)
                        rows = []
    finally:
        network.train(training)
        attachment.fusion.generator.set_state(random_state)
    return CachedFeatures(folder)


def _record(attachment: Attachment, run: Callable[[], Any]) -> tuple[dict[str, Tensor], Any]:
    """The maps and head inputs of one forward by name, and how to call the head with them."""
    head, calls = (
        next(m for m in attachment.network.modules() if isinstance(m, Point) and m._gmmt_is_head),
        [],
    )
    with attachment.recorded() as pairs:

        def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
            if attachment._plugin.recorded is pairs:  # and not the clean pass before a degraded one
                calls.append((args, kwargs))

        hook = head.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            run()
            replaced = attachment._plugin.replaced
        finally:
            hook.remove()
    if len(pairs) != 1 or len(calls) != 1:
        raise ValueError(
            f"a forward fused {len(pairs)} maps and called the head {len(calls)} times; a cache "
            "needs one "
            "each (forward=… says what a training forward is)"
        )
    (features, fused), (args, kwargs) = pairs[0], calls[0]
    for given in (
        fused,
        cast(Tensor, replaced),
    ):  # an adapter at the head swaps what the head was given
        tensors = {**{f"feature_{i}": f for i, f in enumerate(features)}, "fused": fused}
        used: list[Any] = []
        head_inputs = _describe({"args": list(args), "kwargs": kwargs}, given, tensors, used)
        if used:
            break
    else:
        raise ValueError(
            "no argument of the head is the fused map or a part of its channels: something of the "
            "host "
            "comes between them, and the head alone cannot be trained; take it into the adapter's "
            "head"
        )
    return tensors, head_inputs


def _describe(value: Any, fused: Tensor, tensors: dict[str, Tensor], used: list[Any]) -> Any:
    """A head's argument as JSON. Tensors that are not of the fused map go into `tensors`."""
    if isinstance(value, Tensor):
        # several levels arrive as parts of the fused map
        channels = value.shape[1] if value.ndim == 4 else 0
        starts = range(0, fused.shape[1], channels) if channels else ()
        places = [
            [start, channels]
            for start in starts
            if torch.equal(value, fused[:, start : start + channels])
        ]
        if places:
            used.append(next((place for place in places if place not in used), places[0]))
            return {"fused": used[-1]}
        if value.ndim == 0 or len(value) != len(fused):
            raise ValueError(
                f"the head gets a tensor of shape {tuple(value.shape)}; expected one entry a "
                "sample, "
                f"({len(fused)}, …), so that samples can be shuffled"
            )
        name = f"head_{len([name for name in tensors if name.startswith('head_')])}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_describe(v, fused, tensors, used) for v in value]}
    if isinstance(value, Mapping):
        return {"dict": {key: _describe(v, fused, tensors, used) for key, v in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(
        f"the head gets a {type(value).__name__}; a cache holds tensors, numbers, strings, and "
        "lists and "
        "dicts of them"
    )


def _rebuild(described: Any, fused: Tensor, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_describe`, with another fused map."""
    ((kind, value),) = described.items()
    if kind == "fused":
        start, channels = value
        return fused[:, start : start + channels].contiguous()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _rebuild(v, fused, tensors) for key, v in value.items()}
    if kind in ("list", "tuple"):
        rebuilt = [_rebuild(v, fused, tensors) for v in value]
        return tuple(rebuilt) if kind == "tuple" else rebuilt
    return value


def _with_targets(row: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, target in targets.items():
        if (
            name in row
            or not isinstance(target, Tensor)
            or target.ndim == 0
            or len(target) != len(row["fused"])
        ):
            expected = (
                f"another name than {sorted(row)}"
                if name in row
                else f"a tensor ({len(row['fused'])}, …)"
            )
            raise ValueError(
                f"target {name!r} is "
                f"{tuple(target.shape) if isinstance(target, Tensor) else target!r}; "
                f"expected {expected}"
            )
    return {name: tensor.detach().cpu().contiguous() for name, tensor in {**row, **targets}.items()}


def _write_shard(folder: Path, manifest: dict[str, Any], rows: list[dict[str, Tensor]]) -> None:
    """A shard, and then the manifest that knows it: a crash between the two costs the shard, not
    the cache.
    """
    from safetensors.torch import save_file

    path = folder / f"shard-{len(manifest['shards']):05d}.safetensors"
    tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    manifest["shards"].append(
        {
            "file": path.name,
            "samples": len(tensors["fused"]),
            "batches": len(rows),
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    )
    text = json.dumps(manifest, indent=1)
    write_atomically(
        folder / MANIFEST, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8")
    )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, of which every shard is there in full length; None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards = [(folder / shard["file"], shard["bytes"]) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
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


def _batches(manifest: Mapping[str, Any]) -> int:
    return sum(shard["batches"] for shard in manifest["shards"])


def _map_shard(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # a memory map: nothing is read before it is used
    except SafetensorError as error:
        raise OSError(
            f"{path} is not safetensors ({error}); delete the folder, call cache_features again"
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _source(attachment: Attachment) -> dict[str, Any]:
    """What the maps depend on: host and adapter. Of the fusion only its shape, so that methods
    share a cache.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(attachment.host_state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    points = {}
    for name, module in attachment.network.named_modules():
        if isinstance(module, Point):
            adapter = getattr(module._gmmt_method, "__self__", None)
            options = (
                {}
                if adapter is None
                else {
                    key: value
                    for key, value in vars(adapter).items()
                    if isinstance(value, str | int | float | list | tuple | None)
                }
            )
            points[name] = {"adapter": type(adapter).__name__, "options": options}
    source = {
        "host": type(attachment.network).__name__,
        "host_weights": digest.hexdigest(),
        "adapter": points,
        "channels": attachment.fusion.channels,
        "modalities": attachment.fusion.modalities,
    }
    return json.loads(json.dumps(source))  # as it is read back: tuples are lists


def _degradation(attachment: Attachment) -> str | None:
    """What tells a degradation from another: its repr, or the name of a function."""
    degradation = attachment.degradation
    name = f"{getattr(degradation, '__module__', '')}.{getattr(degradation, '__qualname__', '')}"
    return (
        None
        if degradation is None
        else name
        if hasattr(degradation, "__qualname__")
        else repr(degradation)
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> str:
    """What differs as "name there, here here", in words; "" where nothing does."""
    found = []
    for key in [*there, *(key for key in here if key not in there)]:
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [text for text in [_differences(one, other, f"{prefix}{key}.")] if text]
        elif one != other:
            short = [str(v)[:12] if key == "host_weights" else repr(v) for v in (one, other)]
            found.append(f"{prefix}{key} is {short[0]} there and {short[1]} here")
    return "; ".join(found)
