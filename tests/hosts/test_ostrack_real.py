"""Real checkouts under `HOSTS`, each in a process of its own, as all call their package `lib`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosts.harness import NAMES, checkout

TESTS = Path(__file__).parents[1]


COMMON = ["test_law.py", "hosts/checks_law.py", "hosts/checks_ostrack.py"]
SINGLE = [*COMMON, "test_ostrack.py", "hosts/checks_training.py"]
DUAL = [*COMMON, "test_dual_streams.py"]
FILES = {
    "vipt": SINGLE,
    "tbsi": SINGLE,
    "bat": [*DUAL, "hosts/checks_wrapping.py"],
    "sdstrack": DUAL,
}


@pytest.mark.parametrize(
    ("name", "files"), [(name, files) for name in NAMES for files in FILES[name]]
)
def test_real_host(name: str, files: str) -> None:
    if checkout(name) is None:
        pytest.skip(f"HOSTS names no folder with a checkout of {NAMES[name][1]}")
    arguments = ["-o", "addopts=", "-p", "no:cacheprovider", "-W", "ignore", "-rs"]
    run = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *arguments, str(TESTS / files)],
        text=True,
        check=False,
        cwd=TESTS.parent,
        env={**os.environ, "REAL_HOST": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout[-8000:]
