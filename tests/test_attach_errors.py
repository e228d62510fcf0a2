"""Every mistake in attaching: named in one sentence, and the host as it was."""

from typing import Any

import pytest
import torch
from anatomy import anatomy, assert_same_anatomy
from cases import CASES, images, seeded
from tiny_hosts import ConcatTracker
from torch import nn

from gmmt_fusion import Attachment, attach
from gmmt_fusion.adapters import Adapter, ModuleAdapter

CONCAT = CASES[0]


def test_data_parallel_is_refused() -> None:
    network = CONCAT.build()
    with pytest.raises(
        ValueError, match=r"wrapped in DataParallel; .* use DistributedDataParallel"
    ):
        attach(nn.DataParallel(network), CONCAT.make_fusion(), CONCAT.adapter())
    attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    replica = network._replicate_for_data_parallel()  # what DataParallel runs on two devices
    with pytest.raises(
        ValueError, match=r"wrapped in DataParallel; .* use DistributedDataParallel"
    ):
        CONCAT.run(replica)


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Identity()


def closed() -> nn.Module:
    network = CONCAT.build()
    network.fuse.forward = lambda maps: maps[:, :8]
    return network


def aliased() -> nn.Module:
    network = CONCAT.build()
    network.alias = network.box_head
    return network


@pytest.mark.parametrize(
    ("build", "fusion", "adapter", "error", "message"),
    [
        (
            CONCAT.build,
            CONCAT.make_fusion,
            lambda: ModuleAdapter("fusion", "box_head"),
            ValueError,
            r"no submodule 'fusion' \(it has rgb, tir, fuse, box_head",
        ),
        (
            CONCAT.build,
            CONCAT.make_fusion,
            lambda: ModuleAdapter("fuse", "heads.3"),
            ValueError,
            "no submodule 'heads.3'",
        ),
        (
            CONCAT.build,
            CONCAT.make_fusion,
            lambda: ModuleAdapter,
            TypeError,
            "expected 'auto' or an Adapter",
        ),
        (CONCAT.build, CONCAT.make_fusion, lambda: "tbsi", TypeError, "adapter='tbsi'"),
        (
            CONCAT.build,
            CONCAT.make_fusion,
            lambda: "auto",
            ValueError,
            "no fusion point was found; looked for",
        ),
        (NoHead, CONCAT.make_fusion, CONCAT.adapter, ValueError, "no submodule 'box_head'"),
        (
            closed,
            CONCAT.make_fusion,
            CONCAT.adapter,
            ValueError,
            "forward of its own on the instance",
        ),
        (
            CONCAT.build,
            CONCAT.make_fusion,
            lambda: ModuleAdapter("box_head.0", "box_head"),
            ValueError,
            "lies inside the head 'box_head'",
        ),
        (
            aliased,
            CONCAT.make_fusion,
            lambda: ModuleAdapter("alias", "box_head"),
            ValueError,
            "'box_head', 'alias' are one module",
        ),
        (
            lambda: nn.Sequential(CONCAT.build()),
            CONCAT.make_fusion,
            lambda: ModuleAdapter("0.fuse", "0.box_head"),
            ValueError,
            "Sequential cannot hold the plugin",
        ),
        (
            lambda: nn.DataParallel(CONCAT.build()),
            CONCAT.make_fusion,
            CONCAT.adapter,
            ValueError,
            "wrapped in DataParallel",
        ),
        (CONCAT.build, lambda: "no/such/folder", CONCAT.adapter, OSError, "missing"),
    ],
    ids=[
        "no fusion",
        "no head",
        "class",
        "name",
        "unknown host",
        "other host",
        "closure",
        "inside the head",
        "one module",
        "sequential",
        "wrapped",
        "no folder",
    ],
)
def test_bad_attaching_leaves_the_host_as_it_was(
    build: Any, fusion: Any, adapter: Any, error: Any, message: str
) -> None:
    network = build()
    before = anatomy(network)
    with pytest.raises(error, match=message):
        attach(network, fusion(), adapter())
    assert_same_anatomy(anatomy(network), before)


def test_nothing_to_attach_to() -> None:
    with pytest.raises(ValueError, match=r"is no nn\.Module and holds none"):
        attach(object(), CONCAT.make_fusion())
    with pytest.raises(ValueError, match="nothing is attached"):
        Attachment.of(CONCAT.build())


def test_wrong_channels_are_named_and_detach_restores() -> None:
    network = CONCAT.build()
    expected = CONCAT.run(network)
    handle = attach(network, CONCAT.make_fusion(channels=4), CONCAT.adapter())
    with pytest.raises(
        ValueError, match=r"features\[0\] has shape \(2, 8, 8, 8\); expected \(B, 4, H, W\)"
    ):
        CONCAT.run(network)
    handle.detach()
    assert torch.equal(CONCAT.run(network), expected)

    class Wide(
        type(CONCAT.adapter())
    ):  # an adapter that knows its host's channels refuses before any forward
        def channels(self, network: nn.Module) -> int:
            return 16

    with pytest.raises(
        ValueError, match="channels=8; this ConcatTracker fuses maps of 16 channels"
    ):
        attach(network, CONCAT.make_fusion(), Wide("fuse", "box_head"))


def test_a_head_of_another_host_is_refused(tmp_path: Any) -> None:
    attach(
        CASES[1].build(), CASES[1].make_fusion(modalities=2), CASES[1].adapter()
    ).save_pretrained(tmp_path)
    network = CONCAT.build()
    with pytest.raises(OSError, match="head saved with the fusion does not fit BoxHead"):
        attach(network, tmp_path, CONCAT.adapter())
    assert not hasattr(network, "gmmt_fusion")


def test_loading_host_weights_after_attaching_is_explained() -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    with pytest.raises(ValueError, match=r"before attach\(\), or detach\(\) first"):
        network.load_state_dict(CONCAT.build().state_dict())
    network.load_state_dict(network.state_dict())
    handle.detach()
    network.load_state_dict(CONCAT.build().state_dict())


@pytest.mark.parametrize(
    "batches",
    [[], [[torch.rand(1, 6, 4, 4), torch.rand(1, 6, 8, 8) * torch.nan]], [object()]],
    ids=["none", "nan", "wrong type"],
)
def test_failed_calibration_leaves_the_host_as_it_was(batches: Any) -> None:
    network = CONCAT.build()
    before = anatomy(network)
    with pytest.raises((ValueError, TypeError)):
        attach(network, CONCAT.make_fusion(), CONCAT.adapter(), calibrate=batches)
    assert_same_anatomy(anatomy(network), before)


def test_a_size_that_never_comes_is_an_error_in_training() -> None:
    network = CONCAT.build()
    handle = attach(network, CONCAT.make_fusion(), ModuleAdapter("fuse", "box_head", size=31))
    CONCAT.train(network.train())  # may be a stage of a forward
    with pytest.raises(ValueError, match="no fused map was generated"):
        _ = handle.generative_loss


def test_maps_that_are_no_maps_are_named() -> None:
    class Extra(ConcatTracker):
        def forward(self, template: Any, search: Any) -> Any:
            return self.fuse(1, 2, 3)

    network = seeded(Extra)()
    attach(network, CONCAT.make_fusion(), CONCAT.adapter())
    with pytest.raises(ValueError, match=r"called with 3 arguments.*expected 2 maps"):
        CONCAT.run(network)


def test_adapter_base_class_needs_points() -> None:
    with pytest.raises(TypeError, match="points"):
        Adapter()  # type: ignore[abstract]


def test_a_failed_attaching_leaves_the_fusion_as_it_was() -> None:
    fusion = CONCAT.make_fusion()
    with pytest.raises(ValueError, match="no batches"):
        attach(CONCAT.build(), fusion, CONCAT.adapter(), calibrate=[])
    assert fusion.head is None


def test_calibration_that_meets_no_map_says_so() -> None:
    network = CONCAT.build()
    with pytest.raises(ValueError, match="ran 1 batches, and none of its maps"):
        attach(
            network,
            CONCAT.make_fusion(),
            ModuleAdapter("fuse", "box_head", size=31),
            calibrate=[images()],
        )
    assert not hasattr(network, "gmmt_fusion")
