"""Upstream's own tools/train.py with the README's lines: HOSTS=folder that holds `siamban`."""

import copy
import functools
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from siamban_host import CHECKOUT, batch, configure, needs_siamban
from torch import Tensor, nn

from gmmt_fusion import Attachment
from gmmt_fusion.hosts.patches import Patches
from gmmt_fusion.hosts.safe_loading import load_own_checkpoints
from gmmt_fusion.hosts.stand_ins import StandInModule

pytestmark = needs_siamban

LINES = {  # after the statement of tools/train.py
    r"from siamban.core.config import cfg\n": (
        "from gmmt_fusion import Attachment, GenerativeFusion, attach, train_in_host\n"
    ),
    r"    model = ModelBuilder\(\).*\n": (
        '    attach(model, GenerativeFusion.preset("small-unet", channels=256, size=31))\n'
    ),
    r"(?s)    optimizer = torch\.optim\.SGD\(.*?\)\n": (
        "    optimizer, _ = train_in_host(Attachment.of(model), cfg.TRAIN.EPOCH)\n"
    ),
}


class Crops(torch.utils.data.Dataset):
    """What BANDataset gives: two epochs of two steps, and a step for the second's checkpoint."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index % 2] for name, value in _batch().items()}


_batch = functools.cache(batch)


def run_tools_train(
    model: nn.Module, folder: Path, options: str = "", scalars: Any = None, **settings: Any
) -> Any:
    """What tools/train.py with the README's lines trained, of a two-stream model, from what."""
    cfg, path = configure(1), CHECKOUT / "tools" / "train.py"
    cfg.BACKBONE.PRETRAINED, cfg.BACKBONE.TRAIN_LAYERS, cfg.BACKBONE.TRAIN_EPOCH = (
        "",
        ["layer2", "layer3"],
        1,
    )
    cfg.TRAIN.LR_WARMUP.EPOCH = 1
    for name, value in {
        "EPOCH": 2,
        "BATCH_SIZE": 2,
        "PRINT_FREQ": 1,
        "LOG_DIR": str(folder),
        "START_EPOCH": 0,
        "SNAPSHOT_DIR": str(folder),
        "RESUME": "",
        **settings,
    }.items():
        setattr(cfg.TRAIN, name, value)
    text = path.read_text()
    for before, line in LINES.items():
        text, count = re.subn(
            before, lambda found, line=line: found[0] + line.replace("31)", f"31{options})"), text
        )
        assert count == 1, before
    names: dict[str, Any] = {"__name__": "train", "__file__": str(path)}
    arguments, sys.argv = (
        sys.argv,
        ["train.py", "--cfg", str(CHECKOUT / "experiments/siamban_r50_l234/config.yaml")],
    )
    try:
        exec(compile(text, str(path), "exec"), names)
    finally:
        sys.argv = arguments
    loop, made = names["train"], {}

    def train(loader: Any, wrapped: Any, optimizer: Any, *rest: Any) -> None:
        made.update(
            model=wrapped.module,
            start=copy.deepcopy(wrapped.module.state_dict()),
            optimizer=copy.deepcopy(optimizer.state_dict()),
            trained=optimizer.param_groups[0]["params"],
        )
        loop(loader, wrapped, optimizer, *rest)

    from siamban.utils import distributed

    distributed.inited, distributed.rank, distributed.world_size = True, 0, 1
    names.update(
        train=train,
        dist_init=lambda: (0, 1),
        build_data_loader=lambda: torch.utils.data.DataLoader(Crops(), 2),
        ModelBuilder=lambda: copy.deepcopy(model),
        SummaryWriter=lambda folder: types.SimpleNamespace(
            add_scalar=lambda name, value, step: scalars.setdefault(name, []).append(float(value))
        ),
    )
    merge, cfg_type = cfg.merge_from_file, type(cfg)
    cfg_type.merge_from_file = lambda self, file: None  # it is configured already
    try:
        names["main"]()
    finally:
        cfg_type.merge_from_file = merge.__func__
    return types.SimpleNamespace(**made)


@pytest.mark.parametrize("options", ["", ", method='cgan'"], ids=["diffusion", "cgan"])
def test_tools_train(
    pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    for name in ("colorama", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, StandInModule(name))
    for module in (nn.Module, torch.UntypedStorage):
        monkeypatch.setattr(module, "cuda", lambda self, *args: self)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    host, scalars = pairs(1), {}
    before = copy.deepcopy(host.state_dict())
    run = run_tools_train(host, tmp_path, options, scalars)
    handle = Attachment.of(run.model)
    print(
        {name: [round(x, 3) for x in values] for name, values in scalars.items() if "loss" in name}
    )
    for total, cls, loc, generative in zip(
        *(scalars[f"{name}_loss"] for name in ("total", "cls", "loc", "generative")), strict=True
    ):
        assert total == pytest.approx(cls + loc + 5 * generative, rel=1e-4)
    assert list(map(id, run.trained)) == list(map(id, handle.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in handle.host_state_dict().items())
    changed = {
        name
        for name, value in run.model.state_dict().items()
        if not torch.equal(value, run.start[name])
    }
    assert all(name.startswith("gmmt_fusion.fusion.") for name in changed)
    assert {name.split(".")[2] for name in changed} >= {"head", "network"} | (
        {"discriminator"} if options else set()
    )
    parameters = dict(run.model.named_parameters())
    print(
        f"siamban{options}: {len(changed & parameters.keys())} of "
        f"{len(list(handle.fusion.parameters()))} of the "
        f"plugin's parameters changed, {len(changed - parameters.keys())} statistics of its head; "
        "0 of the host's "
        f"{len(before)} tensors; without gradient: "
        f"{[n for n, p in parameters.items() if p.requires_grad and p.grad is None]}"
    )

    with Patches() as patches:  # of the launcher
        load_own_checkpoints(torch, patches)
        saved = torch.load(tmp_path / "checkpoint_e1.pth")
        resume = {"RESUME": str(tmp_path / "checkpoint_e1.pth"), "START_EPOCH": 1}
        resumed = run_tools_train(host, tmp_path, options, {}, **resume)
    assert all(
        torch.equal(value, resumed.start[name]) for name, value in saved["state_dict"].items()
    )
    assert saved["optimizer"].keys() == resumed.optimizer.keys()
    for part in ("", "discriminator") if options else ("",):
        one, other = (
            (state[part] if part else state)["state"]
            for state in (saved["optimizer"], resumed.optimizer)
        )
        assert one.keys() == other.keys() and one
        assert all(
            torch.equal(one[key]["momentum_buffer"], other[key]["momentum_buffer"]) for key in one
        )
    assert not torch.equal(resumed.model.state_dict()[min(changed)], resumed.start[min(changed)])
