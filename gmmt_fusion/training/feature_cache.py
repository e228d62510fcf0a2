"""The frozen host's maps, computed once and read from disk.

Host and feature extractor do not change while the fusion learns, so that their outputs need not be
computed again.
"""

import bisect
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..attaching.attachment import Attachment, run_host
from ..attaching.records import Mode
from ..checks import check_choice, check_whole_number
from ..files import differences, file_digest, json_digest, own_folder
from ..version import __version__
from .datasets import describe_loader, is_leaf, walk
from .head_inputs import HeadInputs, record_forward
from .identity import describe_degradation, describe_source
from .repeatable import Batch, RepeatableLoader
from .settings import check_attached, check_callables
from .shards import FORMAT, MANIFEST, Manifest, count_batches, map_shard, read_manifest, write_shard

DTYPES = {
    None: None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class CachedFeatures(Dataset[dict[str, Tensor]]):
    """The samples of a folder that `cache_features` filled, for a DataLoader that `fine_tune` gets.

    An item is a dict of tensors: feature_0 … feature_{m-1} and fused (C, H, W), the head's other
    inputs head_0 …, and the targets under their own names. It is mapped from disk, not read: copy
    before writing into it.

    Raises:
        OSError: a file is missing, cut off or of something else.
        ValueError: the cache is not complete.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise OSError(
                f"{self.folder / MANIFEST} is missing; expected a folder written by cache_features"
            )
        self.manifest = manifest
        if (done := count_batches(manifest)) < manifest["batches"]:
            raise ValueError(
                f"{self.folder} is not complete ({done} of {manifest['batches']} batches); call "
                "cache_features again with the same arguments, and it goes on"
            )
        self._ends: list[int] = list(
            itertools.accumulate(shard["samples"] for shard in manifest["shards"])
        )
        self._open: dict[int, dict[str, Tensor]] = {}
        self.verified = False

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        if number not in self._open:
            self._open[number] = map_shard(self.folder / self.manifest["shards"][number]["file"])
        row = index - (self._ends[number - 1] if number else 0)
        return {name: tensor[row] for name, tensor in self._open[number].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # every worker maps the shards itself

    @property
    def digest(self) -> str:
        """Of everything in it, as the manifest knows it."""
        return json_digest({"shards": self.manifest["shards"], **self.contents})

    @property
    def contents(self) -> dict[str, Any]:  # JSON
        """What caches in one loader have in common: their source, and the maps of a sample."""
        keys = ("source", "degradation", "dtype", "dtypes", "head_inputs")
        return {key: self.manifest[key] for key in keys}

    @property
    def bytes_per_sample(self) -> float:
        """On disk, targets included."""
        return float(sum(shard["bytes"] for shard in self.manifest["shards"]) / len(self))

    def verify(self) -> None:
        """Read everything and compare checksums; opening a cache compares sizes only, and
        `fine_tune` does this before it trains.

        Raises:
            OSError: a shard is not what was written.
        """
        for shard in self.manifest["shards"]:
            if file_digest(self.folder / shard["file"]) != shard["sha256"]:
                raise OSError(
                    f"{self.folder / shard['file']} has changed since it was written (sha256 "
                    "differs); delete the folder and call cache_features again"
                )
        self.verified = True

    def network(self, attachment: Attachment) -> "CachedNetwork":
        """What trains in the host's place.

        Raises:
            ValueError: the cache is of another format, host, adapter or fusion, or lacks the
                attachment's degradation.
        """
        there = {"format": self.manifest.get("format"), **self.manifest["source"]}
        if found := differences(there, {"format": FORMAT, **describe_source(attachment)}):
            raise ValueError(
                f"{self.folder} is the cache of another host: {found}; call cache_features with "
                "this one and another folder"
            )
        degraded, here = self.manifest.get("degradation"), describe_degradation(attachment)
        if here is not None and degraded != here:
            raise ValueError(
                f"{self.folder} was written with degradation {degraded}, and the attachment has "
                f"{here}; set it before cache_features, with another folder"
            )
        return CachedNetwork(attachment, self.manifest)


class HostMapMissing(ValueError):
    """A cache of degraded features has no map of the host's own for them."""


class CachedNetwork(nn.Module):
    """The fusion and its new head alone; where the attachment is disabled, the host's head.

    Called with a batch of `CachedFeatures`, it returns what the head returns.

    Raises:
        HostMapMissing: the attachment is disabled, and the cache's fused maps are those of the
            clean inputs.
    """

    def __init__(self, attachment: Attachment, manifest: Manifest) -> None:
        super().__init__()
        self.attachment = attachment
        self.gmmt_fusion = (
            attachment.plugin
        )  # so that parameters keep the names that they have in the host
        self.dtypes: dict[str, torch.dtype] = {
            name: getattr(torch, dtype) for name, dtype in manifest["dtypes"].items()
        }
        self.head_inputs = HeadInputs.from_json(manifest["head_inputs"])
        self.degraded = manifest.get("degradation") is not None

    def forward(self, batch: Mapping[str, Tensor]) -> Any:  # whatever the host's head returns
        attachment = self.attachment
        is_host = attachment.plugin.mode is Mode.HOST
        if is_host and self.degraded:
            raise HostMapMissing(
                "the cache has degraded features and the tracker's own fused maps of the clean "
                "ones: the tracker alone cannot be scored on it; cache the validation without a "
                "degradation, or degrade its images"
            )
        device = attachment.fusion.fused_std.device
        maps = {name: batch[name].to(device, dtype) for name, dtype in self.dtypes.items()}
        features = [maps[f"feature_{i}"] for i in range(attachment.fusion.modalities)]
        fused = attachment.fuse(features, maps["fused"])
        args, kwargs = self.head_inputs.rebuild(fused, maps)
        head = attachment.host_head if is_host else attachment.head
        return head(*args, **kwargs)


def cache_features(
    attachment: Attachment,
    loader: DataLoader[Any],
    folder: str | os.PathLike[str],
    *,
    targets: Callable[[Batch], Mapping[str, Tensor]] | None = None,
    forward: Callable[[nn.Module, Batch], object] = run_host,
    passes: int = 1,
    dtype: str | None = None,
    shard_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> CachedFeatures:
    """Run the frozen host over a loader and write what training needs of it.

    That is the maps and the head's other inputs. With an `Attachment.degradation` the features are
    those of the degraded inputs, and the fused maps those of the clean. Interrupted, and called
    again with the same arguments, it goes on after the last whole shard.

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
        OSError: another process writes there, the cache is damaged, or the disk full.
    """
    check_attached(attachment, "cache")
    check_callables(forward=forward, targets=targets)
    check_whole_number("passes", passes)
    check_whole_number("shard_size", shard_size)
    check_choice("dtype", dtype, tuple(DTYPES))
    batches = RepeatableLoader(loader, seed)
    folder, total = Path(folder).absolute(), passes * len(batches)
    settings = {
        "format": FORMAT,
        "batches": total,
        "passes": passes,
        "dtype": dtype,
        "seed": seed,
        "shard_size": shard_size,
        "source": describe_source(attachment),
        "degradation": describe_degradation(attachment),
        **describe_loader(loader),
    }
    if count_batches(_start_manifest(folder, settings)) < total:
        with own_folder(folder, "caches features"):
            _fill(folder, settings, attachment, batches, forward, targets, progress)
    return CachedFeatures(folder)


def _fill(
    folder: Path,
    settings: dict[str, Any],
    attachment: Attachment,
    batches: RepeatableLoader,
    forward: Callable[[nn.Module, Batch], object],
    targets: Callable[[Batch], Mapping[str, Tensor]] | None,
    progress: bool,
) -> None:
    """Write the shards that are missing."""
    from accelerate.utils import send_to_device, tqdm

    manifest = _start_manifest(folder, settings)
    done, total, size = count_batches(manifest), settings["batches"], settings["shard_size"]
    dtype = DTYPES[settings["dtype"]]
    device = next(attachment.network.parameters()).device
    rows: list[dict[str, Tensor]] = []
    with (
        _run_as_in_training(attachment),
        torch.no_grad(),
        tqdm(total=total, initial=done, desc="cache", disable=not progress) as bar,
    ):
        for number, batch in enumerate(_load_from(batches, done, settings["passes"]), done):
            batch = send_to_device(batch, device)
            seed = settings["seed"] * total + number
            attachment.fusion.manual_seed(seed)  # a degradation draws from it
            run = functools.partial(forward, attachment.network, batch)
            tensors, head_inputs = record_forward(attachment, run)
            _agree(manifest, "head_inputs", head_inputs.to_json(), number)
            _agree(manifest, "dtypes", _name_dtypes(tensors), number)
            stored = {
                name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()
            }
            rows.append(_add_targets(stored, targets(batch) if targets else {}))
            bar.update()
            if number + 1 == total or sum(len(row["fused"]) for row in rows) >= size:
                write_shard(folder, manifest, rows)
                rows = []


def find_caches(dataset: object) -> list[CachedFeatures]:
    """The caches that a dataset is made of; none where it is of the host's inputs.

    Raises:
        ValueError: only a part of it is.
    """
    inside = list(walk(dataset))
    caches = [one for one in inside if isinstance(one, CachedFeatures)]
    if caches and (others := [one for one in inside if one not in caches and is_leaf(one)]):
        raise ValueError(
            f"the loader's dataset has {len(caches)} caches and beside them a "
            f"{type(others[0]).__name__}; expected caches only, or the host's inputs only"
        )
    return caches


def network_of_caches(caches: Sequence[CachedFeatures], attachment: Attachment) -> CachedNetwork:
    """What trains in the host's place, from caches of one kind.

    Raises:
        ValueError: one is of something else than the attachment or than the others.
    """
    first, *others = caches
    network = first.network(attachment)
    for other in others:
        other.network(attachment)
        if found := differences(first.contents, other.contents):
            raise ValueError(
                f"{other.folder} does not go with {first.folder} in one loader: {found}; call "
                "cache_features with the same arguments for both"
            )
    return network


def describe_caches(caches: Sequence[CachedFeatures]) -> str | None:
    """A digest of everything in them, in their order; None for none."""
    return json_digest([cache.digest for cache in caches]) if caches else None


def verify_caches(caches: Sequence[CachedFeatures]) -> None:
    """Compare the checksums of all shards, once for an open cache; OSError as `verify`."""
    for cache in caches:
        if not cache.verified:
            cache.verify()


def _start_manifest(folder: Path, settings: dict[str, Any]) -> Manifest:
    """The folder's manifest, or a new one; ValueError where it is of a cache of other settings."""
    manifest = read_manifest(folder) or {**settings, "shards": []}
    if found := differences({key: manifest.get(key) for key in settings}, settings):
        raise ValueError(
            f"{folder} holds another cache: {found}; give another folder, or delete this one"
        )
    manifest["version"] = __version__
    return manifest


@contextlib.contextmanager
def _run_as_in_training(attachment: Attachment) -> Iterator[None]:
    """The host in training mode inside the `with`, for hosts do other things at inference.

    What is frozen stays in eval mode. Mode and random numbers come back as they were.
    """
    network, generator = attachment.network, attachment.fusion.generator
    training, random_state = network.training, generator.get_state()
    network.train()
    try:
        yield
    finally:
        network.train(training)
        generator.set_state(random_state)


def _load_from(batches: RepeatableLoader, first: int, passes: int) -> Iterator[Batch]:
    """The batches of all passes, one pass after the other, from the one with number `first` on."""
    done, start = divmod(first, len(batches))
    for number in range(done, passes):
        yield from batches.load_epoch(number, start if number == done else 0)


def _agree(manifest: Manifest, key: str, value: dict[str, Any], number: int) -> None:
    """Raise ValueError unless batch `number` is as those before it in what `key` names."""
    if differences(manifest.setdefault(key, value), value):
        raise ValueError(
            f"batch {number} has other {key} than those before: {value}; expected {manifest[key]}"
        )


def _name_dtypes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(x.dtype).removeprefix("torch.") for name, x in tensors.items()}


def _add_targets(row: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Row and targets, on the CPU.

    Raises:
        ValueError: a target is no tensor (B, …), or has the name of a map.
    """
    batch = len(row["fused"])
    for name, target in targets.items():
        if name in row:
            raise ValueError(
                f"target {name!r} has the name of a map; expected another name than {sorted(row)}"
            )
        if not isinstance(target, Tensor) or target.shape[:1] != (batch,):
            found = tuple(target.shape) if isinstance(target, Tensor) else repr(target)
            raise ValueError(f"target {name!r} is {found}; expected a tensor ({batch}, …)")
    return {name: x.detach().cpu().contiguous() for name, x in {**row, **targets}.items()}
