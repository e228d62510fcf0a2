"""For MkDocs: what the site takes from outside of docs/."""

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PICTURES = ("examples/pictures", "benchmarks/results", "benchmarks/results/figures")


@event_priority(50)  # before mkdocstrings looks for the folder
def on_config(config: Any) -> Any:
    """The package as it is installed, adapters/ in it, to read the API from."""
    package = ROOT / "build/api/gmmt_fusion"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "gmmt_fusion", package)
    shutil.copytree(ROOT / "adapters", package / "adapters")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Pictures of the repository, under their own paths."""
    for folder in PICTURES:
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix in (".png", ".jpg", ".svg"):
                name = f"{folder}/{path.name}"
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/, which work where the repository is read: those of images
    become the site's, and the others, which a site lacks, their paths.
    """
    inside = "../" * page.file.src_uri.count("/")
    out = re.escape(f"../{inside}")

    def show(link: re.Match[str]) -> str:
        text, path = link.groups()
        return text if path in text else f"{text} (`{path}`)"

    markdown = re.sub(rf"(!\[[^\]]*\]\(){out}", rf"\1{inside}", markdown)
    return re.sub(rf"(?<!!)\[([^\]]*)\]\({out}([^)#]*)[^)]*\)", show, markdown)
