"""A host's training script with the README's lines; `test_ostrack_real.py` runs this file."""

import copy
import functools
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hosts.harness import NAMES, SMALL, checkout, host, small_network
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from gmmt_fusion import Attachment
from gmmt_fusion.hosts.stand_ins import install_stand_ins

HOST = os.environ["REAL_HOST"]
BUILD, SCRIPT = {"vipt": ("build_viptrack", "vipt"), "tbsi": ("build_tbsi_track", "tbsi_track")}[
    HOST
]
OPTIMIZER = "    optimizer, lr_scheduler = get_optimizer_scheduler(net, cfg)\n"
LINES = {  # after the line of lib/train/train_script.py
    "import importlib\n": "from gmmt_fusion import GenerativeFusion, attach, train_in_host\n",
    "    net.cuda()\n": (
        '    handle = attach(net, GenerativeFusion.preset("small", channels=768))\n'
    ),
    OPTIMIZER: "    optimizer, lr_scheduler = train_in_host(handle, cfg.TRAIN.EPOCH, actor)\n",
}
LOGGED: list[tuple[str, int, float]] = []


class Writer:
    """tensorboard's."""

    def __init__(self, folder: str) -> None:
        self.loader = Path(folder).name

    def add_scalar(self, name: str, value: float, step: int) -> None:
        LOGGED.append((f"{self.loader} {name}", step, value))

    def add_text(self, *args: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Pairs(Dataset):
    """What the host's sampler gives for a pair of frames, two batches of them."""

    samples_per_epoch = 4

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __getitem__(self, index: int) -> Any:
        from lib.utils import TensorDict

        def pair(channels: int) -> Any:
            return TensorDict(
                {
                    "template_images": torch.randn(1, channels, 128, 128, generator=generator),
                    "search_images": torch.randn(1, channels, 256, 256, generator=generator),
                    "template_anno": torch.tensor([[0.25, 0.25, 0.5, 0.5]]),
                    "search_anno": torch.tensor([[0.4, 0.35, 0.2, 0.3]]),
                }
            )

        generator = torch.Generator().manual_seed(10 * self.seed + index)
        return pair(6) if HOST == "vipt" else TensorDict({"visible": pair(3), "infrared": pair(3)})


def script(folder: Path, epochs: int, options: str, rank: int) -> tuple[Any, Any]:
    """The host's `run` on fake pairs and a small network, and its settings."""
    host()
    install_stand_ins("pandas")  # of its data sets
    from lib.train.admin import tensorboard
    from lib.train.admin.settings import Settings
    from lib.train.data import LTRLoader
    from lib.train.trainers import ltr_trainer

    tensorboard.SummaryWriter = Writer
    if not torch.cuda.is_available():  # TBSI's trainer mixes precisions, on GPUs
        ltr_trainer.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
        ltr_trainer.GradScaler = functools.partial(torch.amp.GradScaler, "cpu")
    path = checkout(HOST) / "lib" / "train" / "train_script.py"
    text = (
        path.read_text()
        .replace('"cuda:0"', '"cpu"')
        .replace('"cuda:%d" % settings.local_rank', '"cpu"')
    )
    for before, line in LINES.items():
        assert text.count(before) == 1
        text = text.replace(
            before, before + line.replace("channels=768", f"channels={SMALL['embed_dim']}{options}")
        )
    names: dict[str, Any] = {"__name__": "lib.train.train_script", "__package__": "lib.train"}
    exec(compile(text, str(path), "exec"), names)
    names[BUILD] = lambda cfg: small_network().train()
    names["DDP"] = lambda net, device_ids, **options: nn.parallel.DistributedDataParallel(
        net, **options
    )
    names["build_dataloaders"] = lambda cfg, settings: tuple(
        LTRLoader(
            name, Pairs(seed), training=name == "train", batch_size=2, stack_dim=1, drop_last=True
        )
        for name, seed in (("train", max(rank, 0)), ("val", 5))
    )

    settings = Settings.__new__(Settings)  # its __init__ asks for a file of absolute paths
    settings.use_gpu, settings.use_wandb, settings.local_rank = False, 0, rank
    settings.num_template = settings.num_search = 1  # as the host's build_dataloaders
    settings.env = SimpleNamespace(
        workspace_dir=str(folder), tensorboard_dir=str(folder / "tensorboard")
    )
    settings.save_dir, settings.script_name, settings.config_name = str(folder), SCRIPT, "small"
    settings.project_path, settings.cfg_file = f"train/{SCRIPT}/small", str(folder / "small.yaml")
    config = yaml.safe_load(
        (checkout(HOST) / "experiments" / SCRIPT / f"{NAMES[HOST][2]}.yaml").read_text()
    )
    config["TRAIN"].update(EPOCH=epochs, BATCH_SIZE=2, PRINT_INTERVAL=1, VAL_EPOCH_INTERVAL=1)
    if HOST == "vipt":
        config["TRAIN"].update(SAVE_EPOCH_INTERVAL=1)
    Path(settings.cfg_file).write_text(yaml.safe_dump(config))
    return names, settings


def train(folder: Path, epochs: int, options: str = "", rank: int = -1) -> Any:
    """The trainer as the host's script leaves it."""
    names, settings = script(folder, epochs, options, rank)
    made, trainer = [], names["LTRTrainer"]

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(trainer(*args, **kwargs))
        made[0].start = copy.deepcopy(plugin(made[0]))
        return made[0]

    names["LTRTrainer"] = make
    torch.manual_seed(max(rank, 0))
    try:
        names["run"](settings)
    finally:
        torch.set_grad_enabled(True)  # the trainer leaves them off after a validation
    return made[0]


def plugin(trainer: Any) -> dict[str, Tensor]:
    net = getattr(trainer.actor.net, "module", trainer.actor.net)
    return {
        name: value for name, value in net.state_dict().items() if name.startswith("gmmt_fusion.")
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("options", ["", ", method='cgan'"], ids=["diffusion", "cgan"])
def test_train_and_resume(tmp_path: Path, capsys: Any, options: str) -> None:
    LOGGED.clear()
    trainer = train(tmp_path, 2, options)
    out = capsys.readouterr().out
    assert "Training crashed" not in out, out  # fail_safe swallows the error
    network, handle = trainer.actor.net, Attachment.of(trainer.actor.net)
    fresh = small_network().state_dict()
    assert same(dict(handle.host_state_dict()), dict(fresh))  # weights and BatchNorms' statistics
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert list(map(id, trained)) == list(map(id, handle.parameters()))
    assert all(
        p.grad is None
        for name, p in network.named_parameters()
        if not name.startswith("gmmt_fusion.")
    )
    saved = (
        tmp_path
        / "checkpoints"
        / "train"
        / SCRIPT
        / "small"
        / f"{type(network).__name__}_ep0002.pth.tar"
    )
    start, end = {**fresh, **trainer.start}, torch.load(saved, weights_only=False)["net"]
    assert start.keys() == end.keys()
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert all(name.startswith("gmmt_fusion.fusion.") for name in changed)
    assert {name.split(".")[2] for name in changed} >= {"head", "network"} | (
        {"discriminator"} if options else set()
    )
    parameters = dict(network.named_parameters())
    out += (
        f"{HOST}{options}: {len(changed & parameters.keys())} of "
        f"{len(list(handle.fusion.parameters()))} of the "
        f"plugin's parameters changed, {len(changed - parameters.keys())} statistics of its head; "
        f"0 of the host's {len(fresh)} tensors; not changed: "
        f"{sorted(n for n in parameters if n.startswith('gmmt_fusion.') and n not in changed)}\n"
    )
    logged = {(name, step): value for name, step, value in LOGGED}
    for step in (1, 2):
        of = {
            name: logged[f"train Loss/{name}", step]
            for name in ("total", "giou", "l1", "location", "generative")
        }
        track = 2 * of["giou"] + 5 * of["l1"] + of["location"]
        assert of["total"] == pytest.approx(track + 5 * of["generative"], rel=1e-2)
        assert ("val Loss/generative", step) not in logged and logged["val Loss/total", step] > 0

    # `checkouts.prepare` lets the host load what its trainer has saved
    resumed = train(tmp_path, 2, options)  # nothing is left to do: as it was saved
    assert resumed.epoch == 2 and same(plugin(resumed), plugin(trainer))
    assert same(resumed.optimizer.state_dict(), trainer.optimizer.state_dict())
    longer = train(tmp_path, 3, options)
    assert longer.epoch == longer.lr_scheduler.last_epoch == 3 and not same(
        plugin(longer), plugin(trainer)
    )
    assert same(dict(Attachment.of(longer.actor.net).host_state_dict()), dict(fresh))
    out += capsys.readouterr().out
    assert "Training crashed" not in out
    sys.stdout.write(
        "".join(line + "\n" for line in out.splitlines() if line.startswith(("[", "vipt", "tbsi")))
    )


def _process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    trainer = train(folder, 1, ", method='cgan'", rank)
    assert isinstance(trainer.actor.net, nn.parallel.DistributedDataParallel) and trainer.epoch == 1
    head = plugin(trainer)
    assert (
        trainer.optimizer.state_dict()["state"]
        and trainer.optimizer.state_dict()["discriminator"]["state"]
    )
    for name, value in head.items():
        if "running_" in name:
            continue  # of each process's own pairs; DDP takes the first's at the next forward
        values = [torch.empty_like(value) for _ in range(2)]
        distributed.all_gather(values, value)
        assert torch.equal(*values), name
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes would share a GPU")
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    torch.multiprocessing.spawn(_process, args=(port, tmp_path), nprocs=2)
