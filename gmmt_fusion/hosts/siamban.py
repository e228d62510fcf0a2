"""siamban's own scripts on RGB-T data: what its modules lack for two streams, added on import.

Nothing changes for a config of one stream. What trains a fusion is in `siamban_training`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from .host_modules import set_entry
from .job import Job
from .patches import Patches


def step_in(job: Job, patches: Patches, module: ModuleType) -> None:
    """Step into a module of siamban's that was just imported, by what it defines."""
    if module.__name__.partition(".")[0] != "siamban":  # others have an Augmentation, too
        return
    for name, change in CHANGES.items():
        value = vars(module).get(name)
        if isinstance(value, dict) or getattr(value, "__module__", None) == module.__name__:
            change(module, patches)
    if module.__name__.endswith("core.config") and hasattr(module, "cfg"):
        set_config(job, type(module.cfg), patches)
    kind = vars(module).get("ModelBuilder")
    if job.train and inspect.isclass(kind) and kind.__module__ == module.__name__:
        from .siamban_training import watch_training

        watch_training(job, module, patches)


def add_backbones(module: ModuleType, patches: Patches) -> None:
    """`two_stream_resnet50`, and so of every other backbone, as names for a config."""
    from ..adapters.siamban import TwoStreamBackbone

    _add(module, "BACKBONES", "two_stream_", TwoStreamBackbone, patches)


def add_necks(module: ModuleType, patches: Patches) -> None:
    """`TwoStreamAdjustLayer` and `TwoStreamAdjustAllLayer`; `frozen: True` is of both necks."""
    from ..adapters.siamban import TwoStreamNeck

    _add(module, "NECKS", "TwoStream", TwoStreamNeck, patches)


def add_heads(module: ModuleType, patches: Patches) -> None:
    """`OneLevelBAN`, which is DepthwiseBAN with the exponential that it lacks."""
    from ..adapters.siamban import OneLevelHead

    def build(**options: Any) -> OneLevelHead:
        return OneLevelHead(module.BANS["DepthwiseBAN"](**options))

    patches.set(module, "BANS", {**module.BANS, "OneLevelBAN": build})


def augment_halves(module: ModuleType, patches: Patches) -> None:
    """Let what changes three channels change each modality of six, one after the other."""
    for name in ("_color_aug", "_gray_aug"):
        own = getattr(module.Augmentation, name)
        patches.set(module.Augmentation, name, _of_halves(own))


def load_pairs(module: ModuleType, patches: Patches) -> None:
    """Let `load_pretrain` load two models of one modality into a two-stream one.

    Their checkpoints are one name, like `{rgb,tir}/snapshot/checkpoint_e20.pth`.
    """
    from .siamban_data import split_pair

    own = module.load_pretrain

    @functools.wraps(own)
    def load_pretrain(model: Any, pretrained_path: str) -> Any:  # as siamban's
        pair = split_pair(pretrained_path)
        if pair is None:
            return own(model, pretrained_path)
        from ..adapters.siamban import load_streams
        from .fusing import read_weights

        load_streams(model, *map(read_weights, pair))
        return model

    patches.set(module, "load_pretrain", load_pretrain)


def lose_nothing(module: ModuleType, patches: Patches) -> None:
    """Let the loss of boxes be 0 for a batch of negative pairs only, which siamban ends with.

    Of batches of 8 there are some in a training, with siamban's one negative pair in five.
    """
    own = module.select_iou_loss

    @functools.wraps(own)
    def select_iou_loss(pred_loc: Any, label_loc: Any, label_cls: Any) -> Any:  # tensors
        if not (label_cls == 1).any():
            return pred_loc.sum() * 0
        return own(pred_loc, label_loc, label_cls)

    patches.set(module, "select_iou_loss", select_iou_loss)


def run_alone(module: ModuleType, patches: Patches) -> None:
    """Let `dist_init` work without torchrun: one process, and no process group."""
    own = module.dist_init

    @functools.wraps(own)
    def dist_init() -> tuple[int, int]:
        if "RANK" in os.environ:
            result: tuple[int, int] = own()
            return result
        vars(module).update(rank=0, world_size=1, inited=True)
        return 0, 1

    patches.set(module, "dist_init", dist_init)


CHANGES: Mapping[str, Callable[[ModuleType, Patches], None]] = MappingProxyType(
    {
        "BACKBONES": add_backbones,
        "NECKS": add_necks,
        "BANS": add_heads,
        "Augmentation": augment_halves,
        "load_pretrain": load_pairs,
        "select_iou_loss": lose_nothing,
        "dist_init": run_alone,
    }
)
"""What a module defines, and what to change in it."""


def set_config(job: Job, kind: type, patches: Patches) -> None:
    """Let `--set TRAIN.EPOCH=1` hold after siamban has read its yaml file."""
    own: Callable[..., None] = kind.merge_from_file  # type: ignore[attr-defined]  # yacs's

    @functools.wraps(own)
    def merge_from_file(self: Any, filename: str) -> None:
        own(self, filename)
        for name, text in job.settings.items():
            set_entry(self, name, text)
            job.note("set", name)

    patches.set(kind, "merge_from_file", merge_from_file)


def make_region(fullname: str) -> importlib.abc.Loader | None:
    """What stands for `toolkit.utils.region` where the extension was not built."""
    return _Region() if fullname == "toolkit.utils.region" else None


class _Region(importlib.abc.Loader):
    """The part that tools/test.py needs for all test sets but VOT's."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def vot_float2str(template: str, value: float) -> str:
            return template % value

        def vot_overlap(*_: Any, **__: Any) -> float:
            raise ImportError(
                "VOT's overlap needs siamban's extension; in its checkout run: python setup.py "
                "build_ext --inplace"
            )

        vars(module).update(
            vot_float2str=vot_float2str, vot_overlap=vot_overlap, vot_overlap_traj=vot_overlap
        )


def open_tracker(checkout: str | Path, config: str | Path, snapshot: str | Path) -> Any:
    """siamban's tracker of a two-stream model, for `--tracker` of `track` and `figures`.

    The process is changed for good, as by `gmmt_fusion run`.

    Args:
        checkout: folder of siamban's repository.
        config: of the model, such as experiments/siamban_r50_l3_rgbt/config.yaml.
        snapshot: the checkpoint of its weights.

    Raises:
        OSError, ValueError: something of it is missing, or the weights do not fit.
    """
    import torch

    from . import shims, stand_ins
    from .fusing import load_weights
    from .siamban_data import check_checkout

    folder = check_checkout(Path(checkout).resolve())
    sys.path.insert(0, str(folder))
    patches, job = Patches(), Job(root=str(folder), log=os.devnull)
    stand_ins.install_stand_ins()
    shims.install(patches)
    for name in ("backbone", "neck", "head"):
        step_in(job, patches, importlib.import_module(f"siamban.models.{name}"))
    cfg = importlib.import_module("siamban.core.config").cfg
    cfg.merge_from_file(str(config))
    cfg.CUDA = torch.cuda.is_available()
    model = importlib.import_module("siamban.models.model_builder").ModelBuilder()
    load_weights(model, str(snapshot))
    model.to("cuda" if cfg.CUDA else "cpu")
    return importlib.import_module("siamban.tracker.tracker_builder").build_tracker(model)


def _add(module: ModuleType, name: str, prefix: str, kind: type, patches: Patches) -> None:
    """Add to what siamban can build by name the same in two streams."""
    own = vars(module)[name]
    twice = {prefix + key: functools.partial(_build_two, kind, make) for key, make in own.items()}
    patches.set(module, name, {**own, **twice})


def _build_two(kind: type, make: Callable[..., Any], frozen: Any = None, **options: Any) -> Any:
    more = {} if frozen is None else {"frozen": frozen}
    return kind(make(**options), make(**options), **more)


def _of_halves(own: Callable[[Any, np.ndarray], np.ndarray]) -> Any:
    @functools.wraps(own)
    def change(self: Any, image: np.ndarray) -> np.ndarray:
        if image.ndim == 3 and image.shape[2] == 6:
            return np.dstack([own(self, half) for half in (image[..., :3], image[..., 3:])])
        return own(self, image)

    return change
