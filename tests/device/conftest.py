"""Which device: GMMT_FUSION_DEVICE, else the machine's own, if there is one."""

import os
from collections import Counter
from collections.abc import Iterator

import mock_device
import pytest
import torch

DEVICE = os.environ.get("GMMT_FUSION_DEVICE", "cuda" if torch.cuda.is_available() else "")
if DEVICE == "mock":
    mock_device.start()


@pytest.fixture
def device() -> torch.device:
    if not DEVICE:
        pytest.skip("no GPU here; GMMT_FUSION_DEVICE=mock runs these tests on one that is made up")
    torch.backends.cudnn.allow_tf32 = False  # as exact as the CPU, with which it is compared
    return torch.device(DEVICE)


@pytest.fixture
def waits(device: torch.device) -> Iterator[Counter[str]]:
    """What the device was waited for; a made-up one counts it."""
    if device.type != "mock":
        pytest.skip("only GMMT_FUSION_DEVICE=mock counts synchronisations")
    mock_device.synchronisations.clear()
    yield mock_device.synchronisations
    mock_device.synchronisations.clear()
