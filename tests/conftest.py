"""Set before anything else is imported: this file is the first that pytest reads."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at import; without it a missing name is asked for

import pytest
import torch
from tiny_trackers import Follower

torch.set_num_threads(1)  # for networks as small as the tests', threads only wait for one another


@pytest.fixture
def forgetful_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command `track` adds to the import path, and what a Follower saw, ends here."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Follower, "images", [])
