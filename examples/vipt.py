"""ViPT with a generative fusion: fine-tune it, and track with it, in an unedited checkout.

    git clone https://github.com/jiawen-zhu/ViPT
    python examples/vipt.py --checkout ViPT --checkpoint ViPT_deep_rgbt.pth \\
        --steps 1000 --save runs/vipt
    python examples/vipt.py --checkout ViPT --checkpoint ViPT_deep_rgbt.pth \\
        --fusion runs/vipt --sequence LasHeR/car

In ViPT's own scripts the change is two lines: `from gmmt_fusion import attach`, and, after
`mmtrack = ViPTTrack(params)` of RGBT_workspace/test_rgbt_mgpus.py, `attach(mmtrack, "runs/vipt")`.
Without a checkpoint the weights are random, and without a sequence it is a generated one: enough to
see that all runs, not to see it track.
"""

from types import SimpleNamespace

import host_runs
import torch
from embedded.sequences import RGBTSequence
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion, attach, load_host_checkpoint
from gmmt_fusion.hosts import checkouts


def configuration(checkout: str, name: str) -> object:
    """The host's configuration, with what `experiments/vipt/<name>.yaml` sets."""
    from lib.config.vipt.config import cfg, update_config_from_file

    update_config_from_file(f"{checkout}/experiments/vipt/{name}.yaml")
    return cfg


def build_network(cfg: object) -> nn.Module:
    from lib.models.vipt import build_viptrack

    return build_viptrack(cfg, training=False)


def build_tracker(cfg: object, checkpoint: object = None) -> object:
    """The host's own tracker, from a checkpoint of its trainer, or of random weights.

    Attach afterwards.
    """
    from lib.test.tracker.vipt import ViPTTrack

    weights = (
        load_host_checkpoint(checkpoint)["net"]
        if checkpoint
        else host_runs.randomise(build_network(cfg)).state_dict()
    )
    with checkouts.checkpoint_of(weights) as file:
        return ViPTTrack(checkouts.tracker_parameters(cfg, file))


def build_actor(cfg: object, network: nn.Module, batch: int) -> object:
    """The host's own training step: forward_pass(data) and compute_losses(out, data)."""
    from lib.train.actors import ViPTActor
    from lib.utils.box_ops import giou_loss
    from lib.utils.focal_loss import FocalLoss

    return ViPTActor(
        network,
        objective={"giou": giou_loss, "l1": nn.functional.l1_loss, "focal": FocalLoss()},
        loss_weight={"giou": cfg.TRAIN.GIOU_WEIGHT, "l1": cfg.TRAIN.L1_WEIGHT, "focal": 1.0},
        settings=SimpleNamespace(batchsize=batch, num_template=1, num_search=1),
        cfg=cfg,
    )


def training_batch(pairs: dict[str, Tensor], tracker: object) -> dict:
    """What the host's loader hands to its actor, in its last epoch.

    Candidates are eliminated in that one as at inference.
    """
    device = next(tracker.network.parameters()).device
    return {**{name: x.to(device) for name, x in pairs.items()}, "epoch": tracker.cfg.TRAIN.EPOCH}


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
        loss_track, _ = actor.compute_losses(out, data)
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
    options = host_runs.arguments(__doc__, "deep_rgbt")
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
