"""The Siamese RGB-T baseline made of a real checkout of siamban, unmodified."""

import copy
import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from siamban_host import (
    CHECKOUT,
    batch,
    boxes,
    build,
    configure,
    frames,
    needs_siamban,
    optimiser,
    plugin,
    settled,
)
from threads import run_in_threads
from torch import Tensor, nn
from two_processes import of_both, run_in_two_processes

from gmmt_fusion import Attachment, attach, load_host_checkpoint
from gmmt_fusion.adapters import siamban

pytestmark = needs_siamban
each_variant = pytest.mark.parametrize("levels", [1, 3])


def anatomy(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            type(module),
            {key: value for key, value in vars(module).items() if not isinstance(value, dict)},
            [len(value) for key, value in vars(module).items() if key.endswith("_hooks")],
            list(module._modules),
            [p.requires_grad for p in module._parameters.values() if p is not None],
        )
        for name, module in model.named_modules()
    ]


@each_variant
def test_two_streams_track_as_one_where_both_see_the_same(singles: Any, levels: int) -> None:
    single, video = singles(levels), [np.dstack([frame[..., :3]] * 2) for frame in frames()]
    model = siamban.two_stream(singles(levels))
    expected = boxes(single, [frame[..., :3].copy() for frame in video])
    np.testing.assert_allclose(boxes(model, video), expected, atol=0.01)
    pair = batch()
    with torch.no_grad():
        rgb, tir = model.backbone(pair["search"])
        alone = (
            single.backbone(pair["search"][:, :3].contiguous()),
            single.backbone(pair["search"][:, 3:].contiguous()),
        )
    for ours, theirs in zip((rgb, tir), alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(
        ValueError, match=r"crops of shape \(1, 3, 127, 127\); expected \(B, 6, H, W\)"
    ):
        boxes(model, [frame[..., :3].copy() for frame in video])


@each_variant
def test_two_streams_copy_pickle_and_load_strictly(singles: Any, pairs: Any, levels: int) -> None:
    model = pairs(levels)
    expected = boxes(model, frames())
    fresh = siamban.two_stream(singles(levels, 2))
    fresh.load_state_dict(model.state_dict(), strict=True)
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(boxes(twin, frames()), expected)


@each_variant
def test_stages_1_train_with_upstreams_optimiser(singles: Any, levels: int) -> None:
    single = singles(levels).train()  # stage 1.1
    start = copy.deepcopy(single.state_dict())
    optimizer, _ = optimiser_for(levels, single)
    assert step(single, optimizer, batch(channels=3)) >= {"total_loss", "cls_loss", "loc_loss"}
    assert {
        name.split(".")[0]
        for name, value in single.state_dict().items()
        if not torch.equal(value, start[name])
    } == {"backbone", "neck", "head"}

    model = siamban.two_stream(single, singles(levels, 1)).train()  # stage 1.2
    for frozen in (model.backbone, model.neck.rgb, model.neck.tir):
        frozen.requires_grad_(False).eval()
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), lr=0.005, momentum=0.9
    )
    step(model, optimizer, batch())
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, start[name])
    }
    assert {
        name.split(".")[0] if name.startswith("head") else ".".join(name.split(".")[:2])
        for name in changed
    } == {"head", "neck.fusion"}


def optimiser_for(levels: int, model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    configure(levels).BACKBONE.TRAIN_LAYERS = ["layer2", "layer3", "layer4"][: levels + 1]
    return optimiser(model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: dict[str, Tensor]) -> set[str]:
    outputs = model(data)
    loss = outputs["total_loss"] + 3 * outputs.get("generative_loss", 0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    assert torch.isfinite(loss)
    return set(outputs)


@each_variant
def test_build_opt_lr_finds_both_streams(singles: Any, levels: int) -> None:
    model = siamban.two_stream(singles(levels))
    optimizer, _ = optimiser_for(levels, model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        frozen = name.startswith("backbone") and name.split(".")[2] not in (
            "layer2",
            "layer3",
            "layer4",
        )
        assert (id(parameter) in trained) is not frozen, name


@each_variant
def test_attached_disabled_detached(singles: Any, pairs: Any, levels: int) -> None:
    model, video = pairs(levels), frames(3)
    expected = boxes(model, video)
    before, fusion, random_state = anatomy(model), plugin(levels), torch.get_rng_state()
    handle = attach(model, fusion)
    changed = boxes(model, video)
    assert np.abs(changed - expected).max() > 0.1
    assert np.array_equal(boxes(model, video[:2]), changed[:1])  # the same frames, the same boxes
    with handle.disabled():
        assert np.array_equal(boxes(model, video[:2]), expected[:1])
    assert torch.equal(torch.get_rng_state(), random_state)
    fresh = siamban.two_stream(singles(levels))
    fresh.load_state_dict(handle.host_state_dict(), strict=True)
    assert np.array_equal(boxes(fresh, video[:2]), expected[:1])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(boxes(twin, video[:2]), changed[:1])
        Attachment.of(twin).detach()
        assert np.array_equal(boxes(twin, video[:2]), expected[:1])
    assert type(model).__name__ == "ModelBuilder"
    handle.detach()
    assert np.array_equal(boxes(model, video), expected)
    assert anatomy(model) == before


def test_the_rest_of_the_law(pairs: Any) -> None:
    host, model = pairs(1), pairs(1)
    handle = attach(model, plugin(1))
    with pytest.raises(ValueError, match="attached to this tracker already; detach"):
        attach(model, plugin(1))
    for (name, own), (_, module) in zip(
        host.named_modules(), handle.plugin.host_modules(), strict=True
    ):
        assert inspect.signature(module.forward) == inspect.signature(own.forward), name

    pair = batch()
    searches = [pair["search"] * brightness for brightness in (1.0, 0.8, 0.6)]
    with torch.no_grad():  # a model keeps one template, for all threads
        model.template(pair["template"])
        alone = [model.track(search)["cls"] for search in searches]
    with torch.inference_mode():
        assert torch.equal(model.track(searches[0])["cls"], alone[0])
    right: list[int] = []

    def work(index: int) -> None:
        if all(torch.equal(model.track(searches[index])["cls"], alone[index]) for _ in range(3)):
            right.append(index)

    run_in_threads(work, 3)
    assert sorted(right) == [0, 1, 2] and not torch.equal(alone[0], alone[1])

    with pytest.raises(KeyboardInterrupt), handle.disabled():
        raise KeyboardInterrupt
    with torch.no_grad():
        assert torch.equal(model.track(searches[0])["cls"], alone[0])
        model.zf = model.zf[:1]  # one sample: a minute where the CPU has no bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(model.track(searches[0][:1])["cls"]).all()
    model.double()
    assert {parameter.dtype for parameter in handle.parameters()} == {torch.float64}


@each_variant
def test_only_the_search_region_is_generated(singles: Any, levels: int) -> None:
    model = siamban.two_stream(singles(levels))
    calls: list[torch.Size] = []
    handle = attach(model, plugin(levels))
    model.neck.fusion.levels[0].register_forward_hook(
        lambda module, args, output: calls.append(output.shape[-2:])
    )
    boxes(model, frames())
    assert calls == [(7, 7)]
    with torch.no_grad():
        model.template(batch()["template"][:1])
        calls.clear()
        model.track(255 * torch.rand(1, 6, 287, 287))  # another search region: 35×35 maps
    assert not calls
    with torch.no_grad():
        model.train()(batch())
    assert calls == [(7, 7), (31, 31)]
    with handle.recorded() as recorded:
        boxes(model.eval(), frames())
    assert [fused.shape for _, fused in recorded] == [(1, 256 * levels, 31, 31)]


@each_variant
def test_fine_tuning_trains_the_plugin_alone(pairs: Any, levels: int, tmp_path: Path) -> None:
    model, video = pairs(levels), frames()
    handle = attach(model, plugin(levels, perturbed=False), calibrate=[(batch(),)])
    host = {name: value.clone() for name, value in handle.host_state_dict().items()}
    start = boxes(model, video)
    optimiser_for(levels, model.train())  # sets requires_grad and .train() on parts of the host
    optimizer = torch.optim.SGD(handle.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    for _ in range(2):
        assert step(model, optimizer, batch()) == {
            "total_loss",
            "cls_loss",
            "loc_loss",
            "generative_loss",
        }
    assert all(torch.equal(value, host[name]) for name, value in handle.host_state_dict().items())
    assert all(
        p.grad is None for n, p in model.named_parameters() if not n.startswith("gmmt_fusion.")
    )
    tuned = boxes(model, video)
    assert not np.array_equal(tuned, start)
    handle.save_pretrained(tmp_path)
    handle.detach()
    handle = attach(model, tmp_path)
    assert np.array_equal(boxes(model, video), tuned)


@each_variant
def test_compiled(pairs: Any, levels: int) -> None:
    model = pairs(levels)
    handle = attach(model, plugin(levels))
    pair = batch()
    torch._dynamo.reset()
    with torch.no_grad():
        model.template(pair["template"])
        expected, compiled = (
            model.track(pair["search"]),
            torch.compile(model.track, backend="eager", fullgraph=True),
        )
        torch.testing.assert_close(compiled(pair["search"]), expected)
        with handle.disabled():
            torch.testing.assert_close(compiled(pair["search"]), model.track(pair["search"]))
        handle.detach()
        torch.testing.assert_close(compiled(pair["search"]), model.track(pair["search"]))


def _process(rank: int) -> None:
    sys.path.insert(0, str(CHECKOUT))
    Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    configure(1)
    model = settled(siamban.two_stream(build(1, 0)))
    handle = attach(model, plugin(1))
    handle.fusion.manual_seed(rank)
    parallel = nn.parallel.DistributedDataParallel(model.train(), find_unused_parameters=True)
    out = parallel(batch())
    (out["total_loss"] + 5 * out["generative_loss"]).backward()
    trained = {id(p) for p in handle.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)
    for parameter in handle.parameters():
        assert torch.equal(*of_both(parameter.grad))


def test_distributed_data_parallel() -> None:
    run_in_two_processes(_process)


def test_upstreams_raw_head_is_refused(singles: Any) -> None:
    from siamban.models.head import DepthwiseBAN

    model = singles(1)
    model.head = DepthwiseBAN()
    with pytest.raises(ValueError, match="OneLevelHead"):
        siamban.two_stream(model)
    with pytest.raises(
        ValueError, match=r"'neck' \(AdjustLayer\) is of one modality; call .*two_stream"
    ):
        attach(singles(1), plugin(1))


def test_a_checkpoint_of_upstreams_trainer(singles: Any, tmp_path: Path) -> None:
    model = siamban.two_stream(singles(1))
    optimizer, scheduler = optimiser_for(1, model)
    scheduler.step(1)
    torch.save(
        {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()},
        tmp_path / "e1.pth",
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "e1.pth")  # numpy's scalars
    checkpoint = load_host_checkpoint(tmp_path / "e1.pth")
    siamban.two_stream(singles(1, 1)).load_state_dict(checkpoint["state_dict"], strict=True)
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(scheduler.get_cur_lr())
