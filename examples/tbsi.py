"""TBSI with a generative fusion: fine-tune it, and track with it, in an unedited checkout.

    git clone https://github.com/RyanHTR/TBSI
    python examples/tbsi.py --checkout TBSI --checkpoint TBSITrack_ep0015.pth.tar \\
        --steps 1000 --save runs/tbsi
    python examples/tbsi.py --checkout TBSI --checkpoint TBSITrack_ep0015.pth.tar \\
        --fusion runs/tbsi --sequence GTOT/car

In TBSI's own code the change is two lines: `from gmmt_fusion import attach`, and, after
`tracker = self.create_tracker(params)` of lib/test/evaluation/tracker.py, `attach(tracker,
"runs/tbsi")`. Without a checkpoint the weights are random, and without a sequence it is a generated
one: enough to see that all runs, not to see it track.
"""

from types import SimpleNamespace

import host_runs
import torch
from embedded.sequences import RGBTSequence
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion, attach, load_host_checkpoint
from gmmt_fusion.hosts import checkouts


def configuration(checkout: str, name: str) -> object:
    """The host's configuration, with what `experiments/tbsi_track/<name>.yaml` sets."""
    from lib.config.tbsi_track.config import cfg, update_config_from_file

    update_config_from_file(f"{checkout}/experiments/tbsi_track/{name}.yaml")
    return cfg


def build_network(cfg: object) -> nn.Module:
    from lib.models.tbsi_track import build_tbsi_track

    return build_tbsi_track(cfg, training=False)


def build_tracker(cfg: object, checkpoint: object = None) -> object:
    """The host's own tracker, from a checkpoint of its trainer, or of random weights.

    Attach afterwards.
    """
    from lib.test.tracker.tbsi_track import TBSITrack

    weights = (
        load_host_checkpoint(checkpoint)["net"]
        if checkpoint
        else host_runs.randomise(build_network(cfg)).state_dict()
    )
    with checkouts.checkpoint_of(weights) as file:
        return TBSITrack(checkouts.tracker_parameters(cfg, file), dataset_name="lasher")


def build_actor(cfg: object, network: nn.Module, batch: int) -> object:
    """The host's own training step: forward_pass(data) and compute_losses(out, data["visible"])."""
    from lib.train.actors import TBSITrackActor
    from lib.utils.box_ops import giou_loss
    from lib.utils.focal_loss import FocalLoss

    return TBSITrackActor(
        network,
        objective={"giou": giou_loss, "l1": nn.functional.l1_loss, "focal": FocalLoss()},
        loss_weight={"giou": cfg.TRAIN.GIOU_WEIGHT, "l1": cfg.TRAIN.L1_WEIGHT, "focal": 1.0},
        settings=SimpleNamespace(batchsize=batch, num_template=1, num_search=1),
        cfg=cfg,
    )


def training_batch(pairs: dict[str, Tensor], tracker: object) -> dict:
    """What the host's loader hands to its actor, by modality.

    Images (1, B, 3, H, W) and boxes (1, B, 4).
    """
    device = next(tracker.network.parameters()).device
    modalities = {"visible": slice(0, 3), "infrared": slice(3, 6)}
    return {
        "epoch": tracker.cfg.TRAIN.EPOCH,
        **{
            modality: {
                name: (x[:, :, channels] if x.ndim == 5 else x).to(device)
                for name, x in pairs.items()
            }
            for modality, channels in modalities.items()
        },
    }


def fine_tune(
    tracker: object, fusion: GenerativeFusion, sequence: RGBTSequence, steps: int, batch: int
) -> None:
    """Stage 2 of the paper, Loss_track + 5 · Loss_gen, for the fusion and its new head only."""
    cfg, generator = tracker.cfg, torch.Generator().manual_seed(0)
    actor = build_actor(cfg, tracker.network, batch)

    def forward() -> tuple[dict, dict]:
        data = training_batch(host_runs.crop_pairs(sequence, cfg, batch, generator), tracker)
        return data, actor.forward_pass(data)

    attachment = attach(tracker, fusion)
    attachment.calibrate(
        lambda: forward() for _ in range(max(2, 32 // batch))
    )  # start next to the host
    attachment.print_trainable_parameters()
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    tracker.network.train()
    for step in range(steps):
        data, out = forward()
        loss_track, _ = actor.compute_losses(out, data["visible"])
        optimizer.zero_grad()
        (loss_track + 5 * out["generative_loss"]).backward()
        nn.utils.clip_grad_norm_(attachment.parameters(), 1.0)
        optimizer.step()
        print(
            f"step {step + 1}: Loss_track {loss_track.item():.3f}, Loss_gen "
            f"{out['generative_loss'].item():.3f}"
        )
    tracker.network.eval()
    attachment.detach()


def main() -> None:
    options = host_runs.arguments(__doc__, "vitb_256_tbsi_32x4_4e4_lasher_15ep_in1k")
    checkouts.prepare(options.checkout)
    cfg = configuration(options.checkout, options.config)
    tracker = build_tracker(cfg, options.checkpoint)
    fusion = (
        GenerativeFusion.from_pretrained(options.fusion)
        if options.fusion
        else GenerativeFusion.preset("small", channels=768)
    )
    if options.steps:
        fine_tune(tracker, fusion, options.sequence, options.steps, options.batch)

    attachment = attach(tracker, fusion)
    if options.save:
        attachment.save_pretrained(options.save)
    host_runs.compare(tracker, attachment, options.sequence, options.frames)


if __name__ == "__main__":
    main()
