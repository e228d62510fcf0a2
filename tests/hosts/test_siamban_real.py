"""The Siamese RGB-T baseline made of a real checkout of siamban, unmodified: HOSTS=folder that holds `siamban`."""

import ast
import copy
import functools
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import host_compat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_processes import of_both, run_in_two_processes

from gmmt_fusion import Attachment, GenerativeFusion, attach, load_host_checkpoint
from gmmt_fusion.adapters import siamban

CHECKOUT = Path(os.environ.get("HOSTS", "")) / "siamban"
pytestmark = pytest.mark.skipif("HOSTS" not in os.environ or not (CHECKOUT / "siamban").is_dir(),
                                reason="HOSTS names no folder with a checkout of siamban")
each_variant = pytest.mark.parametrize("levels", [1, 3])
BOX = [100.0, 90.0, 50.0, 40.0]


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT))
        if not torch.cuda.is_available():  # hard-coded in ModelBuilder.forward and its losses
            patch.setattr(Tensor, "cuda", lambda self, *args, **kwargs: self)
        yield


@pytest.fixture(scope="module")
def singles(host: None) -> Callable[[int, int], nn.Module]:
    """Fresh copies of upstream's ModelBuilder, by levels and seed, its config set to that variant."""
    made: dict[tuple[int, int], nn.Module] = {}

    def single(levels: int, seed: int = 0) -> nn.Module:
        configure(levels)
        if (levels, seed) not in made:
            made[levels, seed] = build(levels, seed)
        return copy.deepcopy(made[levels, seed])
    return single


@pytest.fixture(scope="module")
def pairs(singles: Any) -> Callable[[int], nn.Module]:
    """Fresh copies of a two-stream model of two different ones, by levels."""
    made: dict[int, nn.Module] = {}

    def pair(levels: int) -> nn.Module:
        configure(levels)
        if levels not in made:
            made[levels] = settled(siamban.two_stream(singles(levels), singles(levels, 1)))
        return copy.deepcopy(made[levels])
    return pair


def configure(levels: int) -> Any:
    from siamban.core.config import cfg
    from yacs.config import CfgNode

    for part in (cfg.BACKBONE, cfg.ADJUST, cfg.BAN):
        part.KWARGS = CfgNode(new_allowed=True)
    cfg.merge_from_file(str(CHECKOUT / "experiments" / "siamban_r50_l234" / "config.yaml"))
    cfg.CUDA = torch.cuda.is_available()
    if levels == 1:
        cfg.BACKBONE.KWARGS = CfgNode({"used_layers": [3]})
        cfg.ADJUST.TYPE, cfg.ADJUST.KWARGS = "AdjustLayer", CfgNode({"in_channels": 1024, "out_channels": 256})
        cfg.BAN.TYPE, cfg.BAN.KWARGS = "DepthwiseBAN", CfgNode({"cls_out_channels": 2})
    return cfg


def build(levels: int, seed: int) -> nn.Module:
    """Random weights, with distances of about those of a trained network."""
    from siamban.models.model_builder import ModelBuilder

    torch.manual_seed(seed)
    model = ModelBuilder()
    if levels == 1:
        model.head = siamban.OneLevelHead(model.head)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("loc.head.3.bias"):
                parameter.fill_(3.0)
    return settled(model, channels=3)


def settled(model: nn.Module, channels: int = 6) -> nn.Module:
    """With the BatchNorm statistics of the video's own crops, in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    video = torch.from_numpy(np.stack(frames(4))).permute(0, 3, 1, 2)[:, :channels].float().contiguous()
    template, search = (F.interpolate(video[..., 110 - side:110 + side, 125 - side:125 + side], (size, size))
                        for side, size in ((45, 127), (90, 255)))
    with torch.no_grad():
        model.train().template(template)
        model.track(search)
    for norm in norms:
        norm.momentum = 0.1
    del model.zf
    return model.eval()


def frames(count: int = 2) -> list[np.ndarray]:
    """H×W×6 uint8, a bright square that moves over noise."""
    random = np.random.default_rng(0)
    background = random.integers(0, 120, (240, 320, 6)).astype(np.uint8)
    video = []
    for index in range(count):
        frame = background.copy()
        x, y = 100 + 4 * index, 90 + 2 * index
        frame[y:y + 40, x:x + 50] = (220, 60, 40, 240, 240, 240)
        video.append(frame)
    return video


def batch(size: int = 2, channels: int = 6) -> dict[str, Tensor]:
    """What upstream's data loader gives."""
    from siamban.core.config import cfg
    from siamban.datasets.point_target import PointTarget
    from siamban.utils.bbox import Corner

    np.random.seed(0)  # noqa: NPY002
    generator = torch.Generator().manual_seed(0)
    labels = [PointTarget()(Corner(100, 95, 160, 150), cfg.TRAIN.OUTPUT_SIZE, False) for _ in range(size)]
    cls, loc = (torch.from_numpy(np.stack(values)) for values in zip(*labels, strict=True))
    crops = {name: 255 * torch.rand(size, channels, side, side, generator=generator)
             for name, side in (("template", 127), ("search", 255))}
    return {**crops, "label_cls": cls, "label_loc": loc}


def boxes(model: nn.Module, video: list[np.ndarray]) -> np.ndarray:
    """Upstream's own tracker on all frames but the first, gradients not disabled, as its test scripts run it."""
    from siamban.tracker.tracker_builder import build_tracker

    tracker = build_tracker(model)
    tracker.init(video[0], BOX)
    found = np.array([tracker.track(frame)["bbox"] for frame in video[1:]])
    assert np.isfinite(found).all()
    del model.zf  # with a graph where nothing is frozen: such a host cannot be copied
    return found


def optimiser(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """`build_opt_lr` of upstream's tools/train.py, which cannot be imported, being a script."""
    from siamban.core.config import cfg
    from siamban.utils.lr_scheduler import build_lr_scheduler

    tree = ast.parse((CHECKOUT / "tools" / "train.py").read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "build_opt_lr"]
    names = {"cfg": cfg, "nn": nn, "torch": torch, "build_lr_scheduler": build_lr_scheduler}
    exec(compile(tree, "train.py", "exec"), names)
    return names["build_opt_lr"](model, cfg.BACKBONE.TRAIN_EPOCH)


def plugin(levels: int, perturbed: bool = True) -> GenerativeFusion:
    fusion = GenerativeFusion.preset("small", 256 * levels, 31)
    if perturbed:
        nn.init.normal_(fusion.network.last_layer.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return fusion


def anatomy(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(name, type(module), {key: value for key, value in vars(module).items() if not isinstance(value, dict)},
             [len(value) for key, value in vars(module).items() if key.endswith("_hooks")], list(module._modules),
             [p.requires_grad for p in module._parameters.values() if p is not None])
            for name, module in model.named_modules()]


@each_variant
def test_two_streams_track_as_one_where_both_see_the_same(singles: Any, levels: int) -> None:
    single, video = singles(levels), [np.dstack([frame[..., :3]] * 2) for frame in frames()]
    model = siamban.two_stream(singles(levels))
    expected = boxes(single, [frame[..., :3].copy() for frame in video])
    np.testing.assert_allclose(boxes(model, video), expected, atol=0.01)
    pair = batch()
    with torch.no_grad():
        rgb, tir = model.backbone(pair["search"])
        alone = single.backbone(pair["search"][:, :3].contiguous()), single.backbone(pair["search"][:, 3:].contiguous())
    for ours, theirs in zip((rgb, tir), alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match=r"crops of shape \(1, 3, 127, 127\); expected \(B, 6, H, W\)"):
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
    assert {name.split(".")[0] for name, value in single.state_dict().items() if not torch.equal(value, start[name])} \
        == {"backbone", "neck", "head"}

    model = siamban.two_stream(single, singles(levels, 1)).train()  # stage 1.2
    for frozen in (model.backbone, model.neck.rgb, model.neck.tir):
        frozen.requires_grad_(False).eval()
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.005, momentum=0.9)
    step(model, optimizer, batch())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert {name.split(".")[0] if name.startswith("head") else ".".join(name.split(".")[:2]) for name in changed} \
        == {"head", "neck.fusion"}


def optimiser_for(levels: int, model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    configure(levels).BACKBONE.TRAIN_LAYERS = ["layer2", "layer3", "layer4"][:levels + 1]
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
        frozen = name.startswith("backbone") and name.split(".")[2] not in ("layer2", "layer3", "layer4")
        assert (id(parameter) in trained) is not frozen, name


@each_variant
def test_attached_disabled_detached(singles: Any, pairs: Any, levels: int) -> None:
    model, video = pairs(levels), frames(6)
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


@each_variant
def test_only_the_search_region_is_generated(singles: Any, levels: int) -> None:
    model = siamban.two_stream(singles(levels))
    calls: list[torch.Size] = []
    handle = attach(model, plugin(levels))
    model.neck.fusion.levels[0].register_forward_hook(lambda module, args, output: calls.append(output.shape[-2:]))
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
        assert step(model, optimizer, batch()) == {"total_loss", "cls_loss", "loc_loss", "generative_loss"}
    assert all(torch.equal(value, host[name]) for name, value in handle.host_state_dict().items())
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("gmmt_fusion."))
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
        expected, compiled = model.track(pair["search"]), torch.compile(model.track, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pair["search"]), expected)
        with handle.disabled():
            torch.testing.assert_close(compiled(pair["search"]), model.track(pair["search"]))
        handle.detach()
        torch.testing.assert_close(compiled(pair["search"]), model.track(pair["search"]))


def _process(rank: int) -> None:
    sys.path.insert(0, str(CHECKOUT))
    if not torch.cuda.is_available():
        Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    configure(1)
    model = siamban.two_stream(build(1, 0))
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
    with pytest.raises(ValueError, match=r"'neck' \(AdjustLayer\) is of one modality; call .*two_stream"):
        attach(singles(1), plugin(1))


def test_a_checkpoint_of_upstreams_trainer(singles: Any, tmp_path: Path) -> None:
    model = siamban.two_stream(singles(1))
    optimizer, scheduler = optimiser_for(1, model)
    scheduler.step(1)
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "e1.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "e1.pth")  # numpy's scalars
    checkpoint = load_host_checkpoint(tmp_path / "e1.pth")
    siamban.two_stream(singles(1, 1)).load_state_dict(checkpoint["state_dict"], strict=True)
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(scheduler.get_cur_lr())


LINES = {  # after the statement of tools/train.py
    r"from siamban.core.config import cfg\n":
        "from gmmt_fusion import Attachment, GenerativeFusion, attach, train_in_host\n",
    r"    model = ModelBuilder\(\).*\n":
        '    attach(model, GenerativeFusion.preset("small", channels=256, size=31))\n',
    r"(?s)    optimizer = torch\.optim\.SGD\(.*?\)\n":
        "    optimizer, _ = train_in_host(Attachment.of(model), cfg.TRAIN.EPOCH)\n",
}


class Crops(torch.utils.data.Dataset):
    """What upstream's BANDataset gives, for two epochs of two steps, and a step for the checkpoint of the second."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index % 2] for name, value in _batch().items()}


_batch = functools.cache(batch)


def run_tools_train(model: nn.Module, folder: Path, options: str = "", scalars: Any = None, **settings: Any) -> Any:
    """Upstream's tools/train.py with the README's lines, on a two-stream model; what it trained, and how it began."""
    cfg, path = configure(1), CHECKOUT / "tools" / "train.py"
    cfg.BACKBONE.PRETRAINED, cfg.BACKBONE.TRAIN_LAYERS, cfg.BACKBONE.TRAIN_EPOCH = "", ["layer2", "layer3"], 1
    cfg.TRAIN.LR_WARMUP.EPOCH = 1
    for name, value in {"EPOCH": 2, "BATCH_SIZE": 2, "PRINT_FREQ": 1, "LOG_DIR": str(folder), "START_EPOCH": 0,
                        "SNAPSHOT_DIR": str(folder), "RESUME": "", **settings}.items():
        setattr(cfg.TRAIN, name, value)
    text = path.read_text()
    for before, line in LINES.items():
        text, count = re.subn(before, lambda found, line=line: found[0] + line.replace("31)", f"31{options})"), text)
        assert count == 1, before
    names: dict[str, Any] = {"__name__": "train", "__file__": str(path)}
    arguments, sys.argv = sys.argv, ["train.py", "--cfg", str(CHECKOUT / "experiments/siamban_r50_l234/config.yaml")]
    try:
        exec(compile(text, str(path), "exec"), names)
    finally:
        sys.argv = arguments
    loop, made = names["train"], {}

    def train(loader: Any, wrapped: Any, optimizer: Any, *rest: Any) -> None:
        made.update(model=wrapped.module, start=copy.deepcopy(wrapped.module.state_dict()),
                    optimizer=copy.deepcopy(optimizer.state_dict()), trained=optimizer.param_groups[0]["params"])
        loop(loader, wrapped, optimizer, *rest)

    from siamban.utils import distributed

    distributed.inited, distributed.rank, distributed.world_size = True, 0, 1
    names.update(
        train=train, dist_init=lambda: (0, 1), build_data_loader=lambda: torch.utils.data.DataLoader(Crops(), 2),
        ModelBuilder=lambda: copy.deepcopy(model), SummaryWriter=lambda folder: types.SimpleNamespace(
            add_scalar=lambda name, value, step: scalars.setdefault(name, []).append(float(value))))
    merge, cfg_type = cfg.merge_from_file, type(cfg)
    cfg_type.merge_from_file = lambda self, file: None  # it is configured already
    try:
        names["main"]()
    finally:
        cfg_type.merge_from_file = merge.__func__
    return types.SimpleNamespace(**made)


@pytest.mark.parametrize("options", ["", ", method='cgan'"], ids=["diffusion", "cgan"])
def test_tools_train(pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    for name in ("colorama", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, host_compat.StandInModule(name))
    if not torch.cuda.is_available():
        for module in (nn.Module, torch.UntypedStorage):
            monkeypatch.setattr(module, "cuda", lambda self, *args: self)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    host, scalars = pairs(1), {}
    before = copy.deepcopy(host.state_dict())
    run = run_tools_train(host, tmp_path, options, scalars)
    handle = Attachment.of(run.model)
    print({name: [round(x, 3) for x in values] for name, values in scalars.items() if "loss" in name})
    for total, cls, loc, generative in zip(*(scalars[f"{name}_loss"] for name in ("total", "cls", "loc", "generative")),
                                           strict=True):
        assert total == pytest.approx(cls + loc + 5 * generative, rel=1e-4)
    assert list(map(id, run.trained)) == list(map(id, handle.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in handle.host_state_dict().items())
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, run.start[name])}
    assert all(name.startswith("gmmt_fusion.fusion.") for name in changed)
    assert {name.split(".")[2] for name in changed} >= {"head", "network"} | ({"discriminator"} if options else set())
    parameters = dict(run.model.named_parameters())
    print(f"siamban{options}: {len(changed & parameters.keys())} of {len(list(handle.fusion.parameters()))} of the "
          f"plugin's parameters changed, {len(changed - parameters.keys())} statistics of its head; 0 of the host's "
          f"{len(before)} tensors; without gradient: "
          f"{[n for n, p in parameters.items() if p.requires_grad and p.grad is None]}")

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    saved = torch.load(tmp_path / "checkpoint_e1.pth")
    resumed = run_tools_train(host, tmp_path, options, {}, RESUME=str(tmp_path / "checkpoint_e1.pth"), START_EPOCH=1)
    assert all(torch.equal(value, resumed.start[name]) for name, value in saved["state_dict"].items())
    assert saved["optimizer"].keys() == resumed.optimizer.keys()
    for part in ("", "discriminator") if options else ("",):
        one, other = ((state[part] if part else state)["state"] for state in (saved["optimizer"], resumed.optimizer))
        assert one.keys() == other.keys() and one
        assert all(torch.equal(one[key]["momentum_buffer"], other[key]["momentum_buffer"]) for key in one)
    assert not torch.equal(resumed.model.state_dict()[min(changed)], resumed.start[min(changed)])
