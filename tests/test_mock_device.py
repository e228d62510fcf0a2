"""tests/device on a made-up device: PyTorch keeps one for good, so they run in another process."""

import os
import subprocess
import sys
from pathlib import Path

import mock_device
import pytest


@pytest.mark.skipif(not mock_device.AVAILABLE, reason="this PyTorch has no backends in Python")
def test_everything_runs_on_a_device() -> None:
    folder = Path(__file__).parent / "device"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "GMMT_FUSION_DEVICE": "mock", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
