"""Running trackers of the OSTrack family (ViPT, TBSI, BAT, SDSTrack, …) from an unedited checkout.

Use one process for each: all call their package `lib`, and keep their configuration in a global.
"""

import contextlib
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import no_gpu, shims
from .patches import Patches
from .stand_ins import install_stand_ins

PATCHES = Patches()
"""What this module has replaced in the process; `PATCHES.close()` puts it back."""


def prepare(checkout: str | Path) -> Path:
    """Make `import lib` find the tracker in the folder `checkout`, and return the folder.

    In the whole process packages that are missing get stand-ins, names that Python, numpy, pandas
    and PyTorch had in 2022 come back, and a GPU that is hard-coded means the CPU where there is
    none. For the tracker's own scripts there is `python -m gmmt_fusion run`.

    Raises:
        FileNotFoundError: there is no tracker of the OSTrack family.
    """
    checkout = Path(checkout).resolve()
    if not (checkout / "lib" / "models").is_dir():
        raise FileNotFoundError(
            f"{checkout} has no lib/models; expected a checkout of ViPT, TBSI or another of "
            "OSTrack's"
        )
    sys.path.insert(0, str(checkout))
    install_stand_ins()
    if not PATCHES.active:
        shims.install(PATCHES)
    return checkout


def ignore_cuda() -> None:
    """Let the GPU that trackers hard-code mean the CPU, where there is none: in the whole process.

    `.cuda()`, `.to("cuda:0")`, `torch.cuda.set_device(0)` and `torch.load` of what was on one.
    """
    if not PATCHES.active:
        no_gpu.ignore_gpu(torch, PATCHES)


def tracker_parameters(cfg: Any, checkpoint: str | Path) -> types.SimpleNamespace:
    """What `lib.test.parameter.<tracker>.parameters()` returns, without its absolute paths.

    Args:
        cfg: the host's own configuration, with its yaml file read.
        checkpoint: the file that its tracker will load.
    """
    return types.SimpleNamespace(
        cfg=cfg,
        checkpoint=str(checkpoint),
        debug=0,
        save_all_boxes=False,
        template_factor=cfg.TEST.TEMPLATE_FACTOR,
        template_size=cfg.TEST.TEMPLATE_SIZE,
        search_factor=cfg.TEST.SEARCH_FACTOR,
        search_size=cfg.TEST.SEARCH_SIZE,
    )


@contextlib.contextmanager
def checkpoint_of(weights: Mapping[str, Tensor], suffix: str = "") -> Iterator[Path]:
    """A temporary checkpoint of nothing but weights, as the hosts' trackers load it.

    They load a file, with `torch.load`, which refuses what their trainers save beside the weights
    since 2.6.

    Args:
        suffix: what the tracker appends to the name that it is given: SDSTrack's ".tar".
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pth")
        torch.save({"net": dict(weights)}, f"{path}{suffix}")
        yield path
