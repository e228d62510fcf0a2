"""For MkDocs: the package as it is installed, with `adapters/` in it, to read the API from."""

import shutil
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]


@event_priority(50)  # before mkdocstrings looks for the folder
def on_config(config: Any) -> Any:  # of MkDocs
    package = ROOT / "build/api/gmmt_fusion"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "gmmt_fusion", package)
    shutil.copytree(ROOT / "adapters", package / "adapters")
    return config
