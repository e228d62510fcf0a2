"""BAT and SDSTrack from real checkouts: what examples/vipt.py has for ViPT, for these two."""

import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import host_runs
from torch import Tensor, nn

from gmmt_fusion.hosts import checkouts


@dataclass(frozen=True)
class DualHost:
    """A host of the OSTrack family, by the names that it gives to its parts.

    package: of its models, its configuration, its tracker and its experiments. build: what makes
    its network. tracker, actor: classes. suffix: what its tracker appends to the name of a
    checkpoint.
    """

    package: str
    build: str
    tracker: str
    actor: str
    suffix: str = ""

    def configuration(self, checkout: object, name: str) -> Any:
        module = importlib.import_module(f"lib.config.{self.package}.config")
        module.update_config_from_file(f"{checkout}/experiments/{self.package}/{name}.yaml")
        return module.cfg

    def build_network(self, cfg: Any) -> nn.Module:
        module = importlib.import_module(f"lib.models.{self.package}")
        return getattr(module, self.build)(cfg, training=False)

    def build_tracker(self, cfg: Any) -> Any:
        """The host's own tracker, of random weights, which it has loaded strictly."""
        module = importlib.import_module(f"lib.test.tracker.{self.package}")
        weights = host_runs.randomise(self.build_network(cfg)).state_dict()
        with checkouts.checkpoint_of(weights, self.suffix) as file:
            return getattr(module, self.tracker)(checkouts.tracker_parameters(cfg, file))

    def build_actor(self, cfg: Any, network: nn.Module, batch: int) -> Any:
        """The host's own training step: forward_pass(data) and compute_losses(out, data)."""
        from lib.utils.box_ops import giou_loss
        from lib.utils.focal_loss import FocalLoss

        losses = {"giou": giou_loss, "l1": nn.functional.l1_loss, "focal": FocalLoss()}
        weights = {"giou": cfg.TRAIN.GIOU_WEIGHT, "l1": cfg.TRAIN.L1_WEIGHT, "focal": 1.0}
        return getattr(importlib.import_module("lib.train.actors"), self.actor)(
            network,
            objective={**losses, "mse": nn.MSELoss()},  # SDSTrack's, of its two paths
            loss_weight=weights,
            settings=SimpleNamespace(batchsize=batch, num_template=1, num_search=1),
            cfg=cfg,
        )

    def training_batch(self, pairs: dict[str, Tensor], tracker: Any) -> dict[str, Any]:
        """What the host's loader hands to its actor, in its last epoch."""
        device = next(tracker.network.parameters()).device
        return {**{k: x.to(device) for k, x in pairs.items()}, "epoch": tracker.cfg.TRAIN.EPOCH}


BAT = DualHost("bat", "build_batrack", "BATTrack", "BATActor")
SDSTRACK = DualHost("sdstrack", "build_sdstrack", "SDSTrack", "SDSTrackActor", ".tar")


def small_bat(backbone: dict[str, Any], head: nn.Module) -> nn.Module:
    """BAT's classes at another width; those of its adapters have the published one built in."""
    from lib.models.bat.ostrack_adapter import BATrack
    from lib.models.bat.vit_ce_adapter import VisionTransformerCE

    transformer, width = VisionTransformerCE(**backbone), backbone["embed_dim"]
    for block in transformer.blocks:
        for adapter in (block.adap_t, block.adap2_t):
            adapter.adapter_down = nn.Linear(width, adapter.dim)
            adapter.adapter_up = nn.Linear(adapter.dim, width)
    return BATrack(transformer, head, head_type="CENTER")


def small_sdstrack(backbone: dict[str, Any], head: nn.Module) -> nn.Module:
    """SDSTrack's classes at another width; its streams meet in blocks 3, 6, 9 and 11."""
    from lib.models.sdstrack.sdstrack import SDSTrack
    from lib.models.sdstrack.vit_ce import VisionTransformerCE

    return SDSTrack(VisionTransformerCE(**backbone), head, head_type="CENTER")
