"""A real host at full size, its tracker and its actor; `test_ostrack_real.py` runs this file."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import host_runs
import numpy as np
import pytest
import torch
from embedded.sequences import RGBTSequence, generate_sequence
from hosts.harness import full_network, host, small_network
from test_law import anatomy, assert_same_anatomy
from torch import nn

from gmmt_fusion import Attachment, GenerativeFusion, attach

HOST = os.environ["REAL_HOST"]
NETWORK = {"vipt": "ViPTrack", "tbsi": "TBSITrack", "bat": "BATrack", "sdstrack": "SDSTrack"}[HOST]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sequence() -> RGBTSequence:
    return generate_sequence(3, frames=6)


@pytest.fixture(scope="module")
def tracker() -> Any:
    """The host's own test-time tracker, which loaded its weights strictly."""
    module, cfg = host()
    return module.build_tracker(cfg)


def small_fusion() -> GenerativeFusion:
    """As after some fine-tuning: its last layer is not at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        fusion = GenerativeFusion.preset("small", channels=768)
        nn.init.normal_(fusion.network.last_layer.weight, std=0.1)
    return fusion


def track(tracker: Any, sequence: RGBTSequence) -> np.ndarray:
    return host_runs.track(
        tracker, host_runs.six_channels(sequence), sequence.boxes_visible[0].tolist()
    )[0]


def test_tracker(tracker: Any, sequence: RGBTSequence, tmp_path: Path) -> None:
    network = tracker.network
    before, expected = anatomy(network), track(tracker, sequence)
    handle = attach(tracker, small_fusion())
    with torch.no_grad():  # a fine-tuned head
        handle.head.conv5_size.bias.add_(0.3)
    changed = track(tracker, sequence)
    assert np.isfinite(changed).all() and np.abs(changed[1:] - expected[1:]).max() > 1
    assert np.array_equal(track(tracker, sequence), changed)  # the same frames give the same boxes
    with handle.disabled():
        assert np.array_equal(track(tracker, sequence), expected)
    handle.save_pretrained(tmp_path / "fusion")
    handle.detach()
    assert np.array_equal(track(tracker, sequence), expected)
    assert_same_anatomy(anatomy(network), before)

    assert (
        sum(f.stat().st_size for f in (tmp_path / "fusion").iterdir()) < 70e6
    )  # nothing of the host's
    fresh_network = full_network().to(next(network.parameters()).device)
    tracker.network = fresh_network
    try:
        handle = attach(tracker, tmp_path / "fusion")
        assert handle.network is fresh_network and np.array_equal(track(tracker, sequence), changed)
        handle.detach()
    finally:
        tracker.network = network


def test_actor(tracker: Any, sequence: RGBTSequence) -> None:
    """The host's own training step, as its trainer calls it, with the plugin's gradients only."""
    module, cfg = host()
    network = tracker.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    handle = attach(network, small_fusion())
    actor = module.build_actor(cfg, network, 2)
    pairs = host_runs.crop_pairs(sequence, cfg, 2, torch.Generator().manual_seed(0))
    data = module.training_batch(pairs, tracker)
    handle.calibrate([lambda: actor.forward_pass(data)])
    actor.train(True)  # what LTRTrainer does
    if hasattr(actor, "fix_bns"):
        actor.fix_bns()
    loss, status = actor(data)
    total = loss + 5 * handle.generative_loss
    total.backward()
    assert torch.isfinite(total) and status.keys() >= (
        {"Loss/total_f", "Loss/total_m"} if HOST == "sdstrack" else {"Loss/total", "IoU"}
    )
    assert len(handle.fused_maps) == (2 if HOST == "sdstrack" else 1)
    gradients = {
        name
        for name, p in network.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert all(name.startswith("gmmt_fusion.") for name in gradients)
    assert any(".head." in name for name in gradients) and any(
        ".network." in name for name in gradients
    )
    assert all(
        p.grad is None
        for name, p in network.named_parameters()
        if not name.startswith("gmmt_fusion.")
    )
    assert all(torch.equal(before[name], x) for name, x in handle.host_state_dict().items())

    actor.train(False)  # validation
    with torch.no_grad():
        out = actor.forward_pass(data)
    parts = out if isinstance(out, list) else [out]
    assert not any("generative_loss" in part for part in parts)
    assert type(network).__name__ == NETWORK
    handle.detach()
    network.eval()


def test_dtypes(tracker: Any, sequence: RGBTSequence) -> None:
    """Under bfloat16 autocast, as the host's trainer with AMP, and with a plugin of that dtype."""
    short = dataclasses.replace(
        sequence, visible=sequence.visible[:2], infrared=sequence.infrared[:2]
    )
    handle = attach(tracker, small_fusion())
    expected = track(tracker, short)
    handle.fusion.to(torch.bfloat16)
    device = next(tracker.network.parameters()).device.type
    limit = 3 if device == "cpu" else 20  # a GPU rounds in another order, and a box may jump
    assert np.abs(track(tracker, short) - expected).max() < limit
    with torch.autocast(device, torch.bfloat16):
        assert np.isfinite(track(tracker, short)).all()
    handle.detach()
    with pytest.raises(ValueError, match="nothing is attached"):
        Attachment.of(tracker)


@pytest.mark.skipif(HOST != "vipt", reason="of ViPT only")
def test_vipt_shaw_is_refused() -> None:
    network = small_network(prompt_type="vipt_shaw")
    before = anatomy(network)
    with pytest.raises(
        ValueError, match=r"prompt_blocks has length 1, backbone\.blocks 4; expected as many"
    ):
        attach(network, GenerativeFusion(48))
    assert_same_anatomy(anatomy(network), before)
