"""Real checkouts of ViPT and TBSI under `HOSTS`: each in a process of its own, as both call their
package `lib`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosts.harness import NAMES, checkout

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "files",
    ["test_law.py", "test_ostrack.py", "hosts/checks_ostrack.py", "hosts/checks_training.py"],
)
@pytest.mark.parametrize("name", NAMES)
def test_real_host(name: str, files: str) -> None:
    if checkout(name) is None:
        pytest.skip(f"HOSTS names no folder with a checkout of {NAMES[name][1]}")
    arguments = ["-p", "no:cacheprovider", "-W", "ignore", "-rs", "--durations=3"]
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
