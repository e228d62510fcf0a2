"""Features computed once: the same training without the host, from no other host's cache."""

import json
import shutil
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import CONCAT, QUIET, Images, make_cache, make_image_cache
from cases import CASES, Case
from tiny_hosts import BoxHead, ConcatTracker
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from training_data import Loss, assert_same, attached, labels, weights

from gmmt_fusion import Attachment, attach
from gmmt_fusion.adapters import ModuleAdapter
from gmmt_fusion.training import CachedFeatures, fine_tune, paper_optimizer

each_host = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.fusions == 1 and not case.apart],
    ids=lambda case: case.name,
)


@pytest.mark.parametrize("case", [c for c in CASES if c.apart], ids=lambda case: case.name)
def test_a_host_that_computes_between_fusion_and_head(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"comes between them|can be shuffled"):
        make_cache(case, tmp_path / "cache", attached(case))
    assert not list(tmp_path.glob("cache/*.safetensors"))


@each_host
def test_training_from_the_cache_is_training_through_the_host(case: Case, tmp_path: Path) -> None:
    through, from_cache = attached(case), attached(case)
    calls: list[int] = []
    options: dict[str, Any] = {"epochs": 2, "recipe": paper_optimizer, **QUIET}
    before = weights(through)
    fine_tune(through, labels(), Loss(case), tmp_path / "through", **options)
    cache = make_cache(case, tmp_path / "cache", from_cache, shard_size=4)
    from_cache.network.register_forward_pre_hook(lambda *_: calls.append(1))
    fine_tune(from_cache, DataLoader(cache, 2), Loss(case), tmp_path / "from cache", **options)
    after = weights(through)
    torch.testing.assert_close(
        after, weights(from_cache), rtol=1e-4, atol=1e-5
    )  # sums of other memory formats
    assert any(
        (after[name] - before[name]).abs().max() > 1e-3
        for name in before
        if before[name].is_floating_point()
    )
    assert not calls  # the host was not needed
    assert len(cache) == 8 and len(list((tmp_path / "cache").glob("shard-*"))) == 2


def test_a_host_of_two_fusions_is_refused_by_name(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.fusions == 2)
    with pytest.raises(ValueError, match=r"fused 2 maps and called the head 2 times; .* one each"):
        make_cache(case, tmp_path, attached(case))


def test_passes_differ_and_do_not_depend_on_workers(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    one, other = (
        make_image_cache(tmp_path / "one", passes=2),
        make_image_cache(tmp_path / "other", passes=2, workers=2),
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert len(one) == 12 and [int(one[i]["label"]) for i in range(12)] == 2 * list(range(6))
    assert not torch.equal(
        one[0]["fused"], one[6]["fused"]
    )  # another augmentation of the same sample
    for i in range(12):
        assert_same(one[i], other[i])
    one.verify()


def test_dtype_on_disk(tmp_path: Path) -> None:
    full, half = (
        make_image_cache(tmp_path / "full"),
        make_image_cache(tmp_path / "half", dtype="float16"),
    )
    assert half[0]["fused"].dtype == torch.float16 and half[0]["label"].dtype == torch.int64
    torch.testing.assert_close(half[3]["fused"].float(), full[3]["fused"], rtol=1e-3, atol=1e-3)
    assert half.bytes_per_sample < 0.7 * full.bytes_per_sample
    network = half.network(attach(CONCAT.build(), CONCAT.make_fusion(), CONCAT.adapter())).train()
    assert (
        network(next(iter(DataLoader(half, 2)))).dtype == torch.float32
    )  # the head gets what the host gave it


def test_an_interrupted_cache_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    expected = make_image_cache(tmp_path / "whole", passes=2)
    seen: list[int] = []
    plain = Images.__getitem__

    def until(limit: int) -> Any:
        def get(self: Images, index: int) -> dict[str, Tensor]:
            seen.append(index)
            if len(seen) > limit:
                raise KeyboardInterrupt
            return plain(self, index)

        return get

    monkeypatch.setattr(Images, "__getitem__", until(9))
    with pytest.raises(KeyboardInterrupt):
        make_image_cache(tmp_path / "parts", passes=2)
    with pytest.raises(ValueError, match=r"4 of 6 batches.*call cache_features again"):
        CachedFeatures(tmp_path / "parts")
    seen.clear()
    monkeypatch.setattr(Images, "__getitem__", until(100))
    parts = make_image_cache(tmp_path / "parts", passes=2)
    assert seen == [2, 3, 4, 5]  # what is there was not loaded again
    for i in range(12):
        assert_same(expected[i], parts[i])


def test_several_levels(tmp_path: Path) -> None:
    """A head that gets the fused map in parts, as SiamBAN's, beside a map of its own."""

    class Levels(ConcatTracker):
        def __init__(self) -> None:
            super().__init__()
            self.box_head = LevelsHead()

        def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
            maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)
            own = template.mean((-1, -2))
            return {
                "scores": self.box_head(
                    [own, own + 1], list(self.fuse(maps).split(4, dim=1)), gain=2
                )
            }

    class LevelsHead(BoxHead):
        def forward(self, own: list[Tensor], levels: list[Tensor], gain: int) -> Tensor:
            return gain * super().forward(torch.cat(levels[::-1], dim=1)) + own[1].mean()

    torch.manual_seed(0)
    network = Levels().eval()
    cache = make_image_cache(tmp_path, network)
    assert set(cache[0]) == {"feature_0", "feature_1", "fused", "head_0", "head_1", "label"}
    batch = next(iter(DataLoader(cache, 2)))
    handle = Attachment.of(network)
    network.train()
    with torch.no_grad():
        handle.fusion.manual_seed(0)
        out = cache.network(handle)(batch)
        handle.fusion.manual_seed(0)
        fused = handle.fusion.loss([batch["feature_0"], batch["feature_1"]], batch["fused"]).fused
        own, levels = [batch["head_0"], batch["head_1"]], list(fused.split(4, dim=1))
        torch.testing.assert_close(out, handle.head(own, levels, gain=2))


def spoil(folder: Path, how: str) -> None:
    shard, manifest = folder / "shard-00001.safetensors", folder / "manifest.json"
    if how == "cut off":
        shard.write_bytes(shard.read_bytes()[:-7])
    elif how == "missing":
        shard.unlink()
    elif how == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        pytest.param("cut off", r"shard-00001.* has \d+ bytes; expected \d+", id="cut off"),
        pytest.param("missing", "shard-00001.* is missing", id="missing"),
        pytest.param("manifest", "not the manifest of a cache", id="manifest"),
        pytest.param("folder", r"manifest\.json is missing", id="folder"),
    ],
)
def test_a_damaged_cache_is_refused(tmp_path: Path, how: str, message: str) -> None:
    make_image_cache(tmp_path / "cache")
    spoil(tmp_path / "cache", how)
    with pytest.raises(OSError, match=message):
        CachedFeatures(tmp_path / "cache")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    cache = make_image_cache(tmp_path)
    shard = tmp_path / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(OSError, match="has changed since it was written"):
        cache.verify()


def other_weights(case: Case) -> Any:
    handle = attached(case)
    next(p for name, p in handle.network.named_parameters() if "gmmt" not in name).data.add_(1)
    return handle


OTHERS: dict[str, tuple[Callable[[], Attachment], str]] = {
    "weights": (lambda: other_weights(CONCAT), r"host_weights is \w+ there and \w+ here"),
    "class": (lambda: attached(CASES[3]), "host is 'ConcatTracker' there and 'SumTracker' here"),
    "size": (
        lambda: attach(
            CONCAT.build(), CONCAT.make_fusion(), ModuleAdapter("fuse", "box_head", size=8)
        ),
        r"size is None there and \[8, 8\] here",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_cache_of_another_host_is_refused(name: str, tmp_path: Path) -> None:
    other, message = OTHERS[name]
    cache, handle = make_cache(CONCAT, tmp_path / "cache"), other()
    before = weights(handle)
    for loader in (DataLoader(cache, 2), DataLoader(Subset(cache, [0, 1]), 2)):
        with pytest.raises(ValueError, match=message):
            fine_tune(handle, loader, Loss(CONCAT), tmp_path / "run", epochs=1, **QUIET)
    with pytest.raises(ValueError, match=f"holds another cache: .*{message}"):
        make_cache(CONCAT, tmp_path / "cache", handle)
    assert_same(before, weights(handle))


def test_a_cache_serves_another_method(tmp_path: Path) -> None:
    cache = make_cache(CONCAT, tmp_path / "cache")
    for method in ("cgan", "raw"):
        fine_tune(
            attached(CONCAT, method=method),
            DataLoader(cache, 2),
            Loss(CONCAT),
            tmp_path / method,
            epochs=1,
            **QUIET,
        )


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "int8"}, "dtype='int8'"),
    "passes": ({"passes": 0}, "passes=0"),
    "no samples": ({"loader": labels(0)}, "loader is empty"),
    "target with a map's name": (
        {"targets": lambda batch: {"fused": batch["label"]}},
        "target 'fused' .*another name",
    ),
    "target that is no tensor": (
        {"targets": lambda batch: {"label": 3}},
        r"target 'label' is 3; .*\(2, …\)",
    ),
    "target of all samples": (
        {"targets": lambda batch: {"label": batch["label"].mean()}},
        r"target 'label' is \(\); .*\(2, …\)",
    ),
    "nothing fused": ({"forward": lambda network, batch: None}, "fused 0 maps"),
    "another seed": ({"seed": 1}, "another cache: seed is 0 there and 1 here"),
    "another loader": (
        {"loader": labels(16, 4), "again": True},
        "another cache: samples is 8 there and 16 here; batch_size is 2",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str, tmp_path: Path) -> None:
    options, message = dict(BAD_ARGUMENTS[name][0]), BAD_ARGUMENTS[name][1]
    if "seed" in options or options.pop("again", False):
        make_cache(CONCAT, tmp_path)
    with pytest.raises(ValueError, match=message):
        make_cache(CONCAT, tmp_path, **options)


def test_an_older_format_is_refused(tmp_path: Path) -> None:
    cache = make_cache(CONCAT, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ValueError, match="holds another cache: format is 1 there"):
        make_cache(CONCAT, tmp_path)
    with pytest.raises(ValueError, match="format is 1 there"):
        CachedFeatures(cache.folder).network(attached(CONCAT))


def test_a_head_behind_something_else_is_refused(tmp_path: Path) -> None:
    class Scaled(ConcatTracker):
        def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
            maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)
            return {"scores": self.box_head(2 * self.fuse(maps))}

    with pytest.raises(ValueError, match="no argument of the head is the fused map"):
        make_image_cache(tmp_path, Scaled().eval())


def test_detached_is_refused(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    handle.detach()
    with pytest.raises(ValueError, match="the attachment is detached"):
        make_cache(CONCAT, tmp_path, handle)


def test_the_manifest_says_what_it_is(tmp_path: Path) -> None:
    handle = attached(CONCAT)
    handle.network.eval()
    make_cache(CONCAT, tmp_path, handle)
    assert not handle.network.training and not handle.fusion.training
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (
        manifest["source"]["host"] == "ConcatTracker" and len(manifest["shards"][0]["sha256"]) == 64
    )


class Call(nn.Module):
    """A head that is called with arguments of any structure beside the fused map."""

    def forward(self, fused: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return fused.mean((1, 2, 3))


class Caller(ConcatTracker):
    """Calls its head with what `make_arguments` makes of a tensor (B, 6)."""

    def __init__(self, make_arguments: Callable[[Tensor], tuple[list[Any], dict[str, Any]]]):
        super().__init__()
        self.box_head, self.make_arguments = Call(), make_arguments

    def forward(self, template: Tensor, search: Tensor) -> dict[str, Tensor]:
        maps = torch.cat([self.rgb(search[:, :3]), self.tir(search[:, 3:])], dim=1)
        args, kwargs = self.make_arguments(template.mean((-1, -2)))
        return {"scores": self.box_head(self.fuse(maps), *args, **kwargs)}


Pair = namedtuple("Pair", "one other")


def nest(own: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of every kind that a cache holds."""
    inside = OrderedDict(levels=(own, [own + 1, None]), names={1: "one", "two": (True, 0.5)})
    return [inside, -3], {"tokens": own + 2, "nothing": [], "flag": False}


def test_the_head_is_called_with_the_same_structure(tmp_path: Path) -> None:
    network = Caller(nest)
    cache, seen = make_image_cache(tmp_path, network.eval()), []
    handle = Attachment.of(network)
    handle.head.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[1:], kwargs)), with_kwargs=True
    )
    batch = next(iter(DataLoader(cache, 2)))
    network.train()
    cache.network(handle)(batch)
    ((args, kwargs),) = seen
    expected_args, expected_kwargs = nest(batch["head_0"])
    assert_same_tree(list(args), expected_args)
    assert_same_tree(kwargs, expected_kwargs)


def assert_same_tree(one: Any, other: Any) -> None:
    """The same containers with keys in the same order, and equal values of the same types."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_tree(one[key], other[key])
    elif isinstance(one, list | tuple):
        for x, y in zip(one, other, strict=True):
            assert_same_tree(x, y)
    else:
        assert one == other


UNCACHEABLE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "object": (lambda own: object(), "gets a object; a cache holds tensors"),
    "array": (lambda own: own.numpy(), "gets a ndarray; a cache holds tensors"),
    "object in a dict": (lambda own: {"here": [nn.Identity()]}, "gets a Identity"),
    "named tuple": (lambda own: Pair(own, own), "Pair.*a cache holds tensors"),
    "keys that are no JSON": (lambda own: {(1, 2): own}, "cannot be stored.*a cache holds"),
    "number of the whole batch": (lambda own: own.mean(), r"shape \(\); .*\(2, …\)"),
    "tensor of the whole batch": (lambda own: own[:1], r"shape \(1, 6\); .*\(2, …\)"),
}


@pytest.mark.parametrize("name", UNCACHEABLE)
def test_what_cannot_be_cached_is_refused(name: str, tmp_path: Path) -> None:
    make_argument, message = UNCACHEABLE[name]
    network = Caller(lambda own: ([make_argument(own)], {}))
    with pytest.raises(ValueError, match=message):
        make_image_cache(tmp_path, network.eval())
    assert not list(tmp_path.glob("*"))
