"""ViPT and TBSI from real checkouts, unedited; which one: the environment variable REAL_HOST,
"vipt" or "tbsi".

One host for each process: both call their package `lib`, and keep their configuration in a global.
"""

import os
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import host_compat
import tbsi
import vipt
from torch import nn

NAMES = {
    "vipt": (vipt, "ViPT", "deep_rgbt"),
    "tbsi": (tbsi, "TBSI", "vitb_256_tbsi_32x4_4e4_lasher_15ep_in1k"),
}
SMALL = {
    "img_size": 224,
    "patch_size": 16,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 3,
    "drop_path_rate": 0.1,
}


def checkout(name: str) -> Path | None:
    """The folder of a host, or None where `HOSTS` names no folder that has it."""
    folder = Path(os.environ["HOSTS"], NAMES[name][1]) if "HOSTS" in os.environ else None
    return folder if folder and (folder / "lib").is_dir() else None


@cache
def host() -> tuple[ModuleType, object]:
    """The host's example script and the host's configuration."""
    module, _, yaml = NAMES[os.environ["REAL_HOST"]]
    folder = host_compat.prepare(checkout(os.environ["REAL_HOST"]))
    return module, module.configuration(folder, yaml)


def full_network() -> nn.Module:
    """As the host builds it, always with the same weights."""
    module, cfg = host()
    return host_compat.randomise(module.build_network(cfg))


def small_network(eliminate: bool = True, prompt_type: str = "vipt_deep") -> nn.Module:
    """The host's classes, put together as it does, of a width at which many forwards cost little.

    eliminate, prompt_type: of ViPT, whether its blocks eliminate candidates, and vipt_deep or
    vipt_shaw.
    """
    module, cfg = host()
    from lib.models.layers.head import CenterPredictor

    head = CenterPredictor(inplanes=SMALL["embed_dim"], channel=32, feat_sz=16, stride=16)
    if module is vipt:
        from lib.models.vipt.ostrack_prompt import ViPTrack
        from lib.models.vipt.vit_ce_prompt import VisionTransformerCE
        from lib.models.vipt.vit_prompt import VisionTransformerP

        options = {
            **SMALL,
            "search_size": (256, 256),
            "template_size": (128, 128),
            "new_patch_size": 16,
        }
        backbone = (
            VisionTransformerCE(
                **options, ce_loc=[1, 2], ce_keep_ratio=[0.7, 0.7], prompt_type=prompt_type
            )
            if eliminate
            else VisionTransformerP(**options, prompt_type=prompt_type)
        )
        return host_compat.randomise(ViPTrack(backbone, head, head_type="CENTER"))
    from lib.models.tbsi_track.tbsi_track import TBSITrack
    from lib.models.tbsi_track.vit_tbsi_care import VisionTransformerTBSI

    backbone = VisionTransformerTBSI(**SMALL, tbsi_loc=[1, 2], tbsi_drop_path=[0.1, 0.1])
    backbone.finetune_track(cfg)
    return host_compat.randomise(TBSITrack(backbone, head, head_type="CENTER"))


def law_cases() -> list[dict[str, Any]]:
    """Arguments of `cases.ostrack`: the rows of the table over which the law of patching is
    tested.
    """
    common = {"search": 256, "channels": SMALL["embed_dim"], "size": 16}
    if os.environ["REAL_HOST"] == "tbsi":
        tbsi_row = {
            "name": "real tbsi",
            "build": small_network,
            "fused_in": "tbsi_fuse_search.0",
            "lists": True,
        }
        return [{**tbsi_row, **common}]
    return [
        {
            "name": name,
            "build": partial(small_network, eliminate),
            "fused_in": "backbone.blocks.3.attn",
            "fullgraph": False,
            **common,
        }
        for name, eliminate in (("real vipt", True), ("real vipt without elimination", False))
    ]
