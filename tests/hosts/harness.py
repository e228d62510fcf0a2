"""Hosts of the OSTrack family from real checkouts, unedited; the variable REAL_HOST says which.

One host for each process: all call their package `lib`, and keep their configuration in a global.
"""

import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import host_runs
import tbsi
import vipt
from hosts.dual_hosts import BAT, SDSTRACK, small_bat, small_sdstrack
from torch import nn

from gmmt_fusion.hosts import checkouts

NAMES: dict[str, tuple[Any, str, str]] = {  # the example or what is like one, folder, experiment
    "vipt": (vipt, "ViPT", "deep_rgbt"),
    "tbsi": (tbsi, "TBSI", "vitb_256_tbsi_32x4_4e4_lasher_15ep_in1k"),
    "bat": (BAT, "BAT", "rgbt"),
    "sdstrack": (SDSTRACK, "SDSTrack", "cvpr2024_rgbt"),
}
SMALL = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 3,
    "drop_path_rate": 0.1,
}
SIZES = {"search_size": (256, 256), "template_size": (128, 128), "new_patch_size": 16}
ELIMINATING = {"ce_loc": [1, 2], "ce_keep_ratio": [0.7, 0.7]}


def checkout(name: str) -> Path | None:
    """The folder of a host, or None where `HOSTS` names no folder that has it."""
    folder = Path(os.environ["HOSTS"], NAMES[name][1]) if "HOSTS" in os.environ else None
    return folder if folder and (folder / "lib").is_dir() else None


@cache
def host() -> tuple[Any, Any]:
    """What builds the host's parts, and the host's configuration."""
    module, _, yaml = NAMES[os.environ["REAL_HOST"]]
    folder = checkout(os.environ["REAL_HOST"])
    assert folder is not None
    return module, module.configuration(checkouts.prepare(folder), yaml)


def full_network() -> nn.Module:
    """As the host builds it, always with the same weights."""
    module, cfg = host()
    return host_runs.randomise(module.build_network(cfg))


def small_network(eliminate: bool = True, prompt_type: str = "vipt_deep") -> nn.Module:
    """The host's classes, put together as it does, of a width at which many forwards cost little.

    eliminate: whether blocks eliminate candidates, TBSI's apart. prompt_type: of ViPT, vipt_deep or
    vipt_shaw.
    """
    module, cfg = host()
    from lib.models.layers.head import CenterPredictor

    head = CenterPredictor(inplanes=SMALL["embed_dim"], channel=32, feat_sz=16, stride=16)
    options: dict[str, Any] = {**SMALL, **SIZES, **(ELIMINATING if eliminate else {})}
    if module is BAT:
        return host_runs.randomise(small_bat(options, head))
    if module is SDSTRACK:
        return host_runs.randomise(small_sdstrack(options, head))
    if module is vipt:
        from lib.models.vipt.ostrack_prompt import ViPTrack
        from lib.models.vipt.vit_ce_prompt import VisionTransformerCE
        from lib.models.vipt.vit_prompt import VisionTransformerP

        kind = VisionTransformerCE if eliminate else VisionTransformerP
        backbone = kind(**options, prompt_type=prompt_type)
        return host_runs.randomise(ViPTrack(backbone, head, head_type="CENTER"))
    from lib.models.tbsi_track.tbsi_track import TBSITrack
    from lib.models.tbsi_track.vit_tbsi_care import VisionTransformerTBSI

    backbone = VisionTransformerTBSI(**SMALL, tbsi_loc=[1, 2], tbsi_drop_path=[0.1, 0.1])
    backbone.finetune_track(cfg)
    return host_runs.randomise(TBSITrack(backbone, head, head_type="CENTER"))


def law_cases() -> list[dict[str, Any]]:
    """Arguments of `cases.ostrack`: rows of the table over which the law of patching is tested."""
    name = os.environ["REAL_HOST"]
    common = {"search": 256, "channels": SMALL["embed_dim"], "size": 16}
    if name == "tbsi":
        fused_in = "tbsi_fuse_search.0"
        row = {"name": "real tbsi", "build": small_network, "fused_in": fused_in, "lists": True}
        return [{**common, **row}]
    return [
        {
            **common,
            "name": f"real {name}" + ("" if eliminate else " without elimination"),
            "build": partial(small_network, eliminate),
            "fused_in": "backbone.blocks.3.attn" if name == "vipt" else "",
            "fullgraph": False,
            "paths": name == "sdstrack",
        }
        for eliminate in (True, False)
    ]
