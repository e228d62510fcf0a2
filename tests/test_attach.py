"""`attach` and `Attachment` as a user meets them: two lines, files, and every mistake."""

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, images, scores, seeded
from tiny_hosts import CHANNELS, ConcatTracker, SumTracker
from torch import nn

from gmmt_fusion import Attachment, GenerativeFusion, attach, load_host_checkpoint
from gmmt_fusion.adapters import auto

CONCAT = CASES[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("method", ["diffusion", "cgan", "raw"])
def test_save_and_attach_from_a_folder(tmp_path: Any, case: Case, method: str) -> None:
    """The two lines of the README; the fine-tuned head comes with the fusion."""
    network = case.build()
    handle = attach(network, case.make_fusion(method=method), case.adapter())
    with torch.no_grad():
        for parameter in handle.head.parameters():
            parameter.add_(0.1)
    expected = case.run(network)
    handle.save_pretrained(tmp_path / "run")
    for fusion in (
        tmp_path / "run",
        str(tmp_path / "run"),
        GenerativeFusion.from_pretrained(tmp_path / "run"),
    ):
        other = case.build()
        attach(other, fusion, case.adapter())
        assert torch.equal(case.run(other), expected)
    GenerativeFusion.from_pretrained(tmp_path / "run").save_pretrained(
        tmp_path / "again"
    )  # unattached, head kept
    other = case.build()
    attach(other, tmp_path / "again", case.adapter())
    assert torch.equal(case.run(other), expected)
    assert not any("rgb" in key for key in handle.fusion.state_dict())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_calibrated_attaching_starts_near_the_host(case: Case) -> None:
    host, far, near = case.build(), case.build(), case.build()
    expected = case.run(host)
    attach(far, GenerativeFusion(**case.fusion, residual="conv3x3"), case.adapter())
    frame = [lambda: case.run(near)]
    handle = attach(
        near, GenerativeFusion(**case.fusion, residual="conv3x3"), case.adapter(), calibrate=frame
    )
    distances = [(case.run(network) - expected).square().mean() for network in (near, far)]
    assert distances[0] <= 0.2 * distances[1] + 1e-3 * expected.square().mean()
    assert 0 <= handle.calibrate(frame) < 0.5


def test_calibration_batches_of_every_kind() -> None:
    template, search = images()
    unexplained = []
    for batch in ({"template": template, "search": search}, (template, search), [template, search]):
        network = CONCAT.build()
        handle = attach(network, GenerativeFusion(**CONCAT.fusion), CONCAT.adapter())
        unexplained.append(handle.calibrate([batch, batch]))
    assert len(set(unexplained)) == 1 and 0 < unexplained[0] < 1


def test_the_object_that_holds_the_network() -> None:
    class Tracker:
        def __init__(self) -> None:
            self.network = CONCAT.build()
            self.name = "a tracker"

    tracker = Tracker()
    handle = attach(tracker, CONCAT.make_fusion(), CONCAT.adapter())
    assert handle.network is tracker.network and Attachment.of(tracker).network is tracker.network


def test_trackers_share_one_fusion_and_head() -> None:
    """A tracker for validation, say: what is trained in one is used in the other."""
    one, other = CONCAT.build(), CONCAT.build()
    first = attach(one, CONCAT.make_fusion(), CONCAT.adapter())
    learned = list(first.parameters())
    second = attach(other, first.fusion, CONCAT.adapter())
    assert all(p is q for p, q in zip(learned, second.parameters(), strict=True))
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(0.1)
    assert torch.equal(CONCAT.run(one), CONCAT.run(other))
    second.detach()
    assert torch.equal(CONCAT.run(other), CONCAT.run(CONCAT.build()))


def test_hooks_on_the_head_run_once() -> None:
    network, counts = CONCAT.build(), {"before": 0, "after": 0}

    def before(module: nn.Module, args: Any) -> None:
        counts["before"] += 1

    def twice(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        counts["after"] += 1
        return 2 * out

    fusion = CONCAT.make_fusion()
    expected = 2 * CONCAT.run(attach(CONCAT.build(), fusion, CONCAT.adapter()).network)
    fusion.head = None
    network.box_head.register_forward_pre_hook(before)
    network.box_head.register_forward_hook(twice)
    attach(network, fusion, CONCAT.adapter())
    torch.testing.assert_close(CONCAT.run(network), expected)
    assert counts == {"before": 1, "after": 1}


def test_a_head_without_parameters_leaves_dtype_and_device_to_the_host() -> None:
    class Pooled(ConcatTracker):
        def __init__(self) -> None:
            super().__init__()
            self.box_head = nn.AvgPool2d(2)
            self.box_head.cal_bbox = torch.mean

    network = seeded(Pooled)().double()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    assert {p.dtype for p in handle.parameters()} == {torch.float64}
    assert CONCAT.run(network).dtype == torch.float64


def test_a_host_that_fuses_in_place() -> None:
    """Training and calibration see the features that inference sees."""

    class InPlace(nn.Conv2d):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return super().forward(maps.mul_(0.5))

    network = CONCAT.build()
    network.fuse = InPlace(2 * CHANNELS, CHANNELS, 1)
    handle = attach(network, CONCAT.make_fusion(method="raw"), CONCAT.adapter())
    seen: list[list[torch.Tensor]] = []
    handle.fusion.register_forward_pre_hook(
        lambda module, features: seen.append([f.clone() for f in features])
    )
    CONCAT.run(network)
    with handle.recorded() as pairs:
        CONCAT.run(network)
    network.train()
    original = handle.fusion.loss
    handle.fusion.loss = lambda features, fused: (
        seen.append([*features]) or original(features, fused)
    )
    CONCAT.train(network)
    for features in (pairs[0][0], seen[1]):
        assert all(torch.equal(f, g) for f, g in zip(seen[0], features, strict=True))


def test_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(method="cgan"), CONCAT.adapter())
    trainable = sum(p.numel() for p in handle.parameters())
    assert trainable == sum(
        p.numel()
        for module in (handle.fusion.network, handle.fusion.residual, handle.head)
        for p in module.parameters()
    )
    handle.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {trainable:,} || all params: ")
    assert handle.head is not network.box_head and network.box_head.feat_sz == 8


def test_mixed_dtypes_and_strides() -> None:
    """A half-precision stream beside a float one, channels-last: the head gets one, contiguous."""
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    _, search = images()
    maps = [
        network.rgb(search[:, :3]).bfloat16(),
        network.tir(search[:, 3:]).to(memory_format=torch.channels_last),
    ]
    fused = handle.plugin.fuse_alone(maps, lambda: pytest.fail("the host's fusion is not needed"))
    assert fused.dtype == torch.float32 and fused.is_contiguous()
    assert handle.head(fused).isfinite().all()


def test_a_checkpoint_of_the_hosts_own_trainer_loads_into_an_attached_network(
    tmp_path: Any,
) -> None:
    network = CONCAT.build()
    attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    expected = CONCAT.run(network)
    torch.save({"net": network.state_dict(), "epoch": 3}, tmp_path / "ep0003.pth.tar")
    other = attach(CONCAT.build(), GenerativeFusion(**CONCAT.fusion), CONCAT.adapter())
    other.network.load_state_dict(load_host_checkpoint(tmp_path / "ep0003.pth.tar")["net"])
    assert torch.equal(CONCAT.run(other.network), expected)


def test_a_copy_made_while_disabled_generates() -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    expected = CONCAT.run(network)
    with handle.disabled():
        twin = copy.deepcopy(network)
    assert torch.equal(CONCAT.run(twin), expected)
    assert not twin.rgb[0].weight.requires_grad


def test_modules_that_the_host_keeps_in_eval_mode_come_back_so() -> None:
    class Kept(ConcatTracker):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.rgb[1].training = False
            return self

    network = seeded(Kept)()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    network.train()
    handle.detach()
    assert network.rgb[0].training and not network.rgb[1].training


def test_same_seed_same_boxes_and_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = []
        for _ in range(2):
            network = seeded(SumTracker)()
            attach(network, CASES[3].make_fusion(), CASES[3].adapter())
            outputs.append(scores(network))
    assert torch.equal(*outputs)


NAMED = [case for case in CASES if type(case.adapter()) in auto.NAMED]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_a_saved_fusion_is_attached_where_it_was(case: Case, tmp_path: Path) -> None:
    network = case.build()
    attach(network, case.make_fusion(), case.adapter()).save_pretrained(tmp_path)
    again = case.build()
    attach(again, tmp_path)  # its adapter is in the folder
    assert torch.equal(case.run(again), case.run(network))
    with pytest.raises(ValueError, match="no fusion point was found"):
        attach(nn.Linear(1, 1), tmp_path)


def test_what_is_attached_is_shown() -> None:
    network = CASES[0].build()
    handle = attach(network, CASES[0].make_fusion(), CASES[0].adapter())
    assert re.search(
        r"Attachment of ConcatTracker: diffusion, uvit, 8 channels, [\d,]+ p.*, enabled",
        repr(handle),
    )
    handle.detach()
    assert "detached" in repr(handle)
