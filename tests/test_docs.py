"""What README and docs show is what runs, and the site builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, names_in, read_blocks, run_page

import gmmt_fusion
import gmmt_fusion.adapters
import gmmt_fusion.training
from gmmt_fusion.model.config import PRESETS

NARROW = {  # the presets are shown as they are, and cost too much for a test
    "uvit": {"width": 16, "heads": 2},
    "unet": {"widths": (8, 16, 24), "depth": 1},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name, preset in PRESETS.items():
        narrow = {**preset, "network_config": NARROW[preset["network"]]}
        monkeypatch.setitem(PRESETS, name, narrow)
    loaded = set(sys.modules)
    try:
        run_page(page)
    finally:
        for name in set(sys.modules) - loaded:  # a page's own files: the next page has others
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


@pytest.mark.parametrize(
    "module", [gmmt_fusion, gmmt_fusion.adapters, gmmt_fusion.training], ids=lambda m: m.__name__
)
def test_every_public_name_has_an_example(module: object) -> None:
    shown = names_in([block for page in PAGES for block in read_blocks(page)])
    assert sorted(set(module.__all__) - shown) == []


def test_the_errors_that_are_explained_exist() -> None:
    folders = (ROOT / "gmmt_fusion", ROOT / "adapters")
    sources = " ".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r'^\*\*"(.+?)"\*\*', page, re.M)
    parts = [part.strip() for text in quoted for part in text.split("…")]
    assert len(parts) > 4 and [part for part in parts if part not in joined] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='needs the extra docs: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text(encoding="utf-8"))
        asked = [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)]
        assert asked == [], f"{page.name} asks another server"
