"""Trackers of the real hosts for `--tracker` of `python -m gmmt_fusion track` and `figures`.

    HOST=ViPT python -m gmmt_fusion track --tracker examples/host_trackers.py:vipt_rgbd \\
        --benchmark rgbd1k --data RGBD1K/test --out results/base

HOST is the host's checkout, with its weights where it looks for them; WEIGHTS names another file.
"""

import os
from pathlib import Path
from typing import Any

import tbsi as tbsi_host
import vipt as vipt_host

from gmmt_fusion.hosts import checkouts
from gmmt_fusion.hosts.siamban import open_tracker

TBSI = "vitb_256_tbsi_32x1_1e4_lasher_15ep_sot"
SIAMBAN = "experiments/siamban_r50_l3_rgbt"


def vipt_rgbt() -> Any:
    return _ostrack(vipt_host, "deep_rgbt", "models/ViPT_deep_rgbt.pth")


def vipt_rgbd() -> Any:
    return _ostrack(vipt_host, "deep_rgbd", "models/ViPT_deep_rgbd.pth")


def tbsi() -> Any:
    weights = f"output/{TBSI}/checkpoints/train/tbsi_track/{TBSI}/TBSITrack_ep0015.pth.tar"
    return _ostrack(tbsi_host, TBSI, weights)


def siamban() -> Any:
    host = _host()
    return open_tracker(
        host, host / SIAMBAN / "config.yaml", _weights(f"{SIAMBAN}/snapshot/checkpoint_e20.pth")
    )


def _ostrack(host: Any, config: str, weights: str) -> Any:
    checkpoint = _weights(weights)
    cfg = host.configuration(str(checkouts.prepare(_host())), config)
    return host.build_tracker(cfg, checkpoint)


def _host() -> Path:
    if "HOST" not in os.environ:
        raise OSError("HOST is not set; expected the folder of the host's checkout")
    return Path(os.environ["HOST"]).resolve()


def _weights(place: str) -> Path:
    path = Path(os.environ.get("WEIGHTS", _host() / place))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the host's checkpoint, or set WEIGHTS"
        )
    return path
