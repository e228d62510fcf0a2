"""Who imports whom around `evaluation`, and what that costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gmmt_fusion

ROOT = Path(gmmt_fusion.__file__).parent
HEAVY = ("torch", "diffusers", "einops", "matplotlib", "scipy", "cv2", "sklearn", "tqdm")


def find_imports(path):
    """The modules of this package that a file imports anywhere, also in functions or for types."""
    package = [ROOT.name, *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == ROOT.name)


def imports_of(folder):
    return {
        ".".join([ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]): set(
            find_imports(path)
        )
        for path in (ROOT / folder).rglob("*.py")
    }


def test_no_circle_in_evaluation():
    graph = imports_of("evaluation")
    while graph:
        leaves = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: imports for name, imports in graph.items() if name not in leaves}


def test_evaluation_and_training_know_nothing_of_each_other():
    for room, other in (("evaluation", "training"), ("training", "evaluation")):
        for name, imports in imports_of(room).items():
            assert not [i for i in imports if i.startswith(f"{ROOT.name}.{other}")], name


def test_only_what_is_on_top_stands_on_evaluation():
    above = tuple(f"{ROOT.name}.{room}" for room in ("evaluation", "cli", "hosts"))
    for name, imports in imports_of(".").items():
        if not name.startswith(above):
            assert not [i for i in imports if i.startswith(f"{ROOT.name}.evaluation")], name


@pytest.mark.parametrize("module", ["evaluation.metrics", "evaluation.layouts", "cli"])
def test_scoring_needs_numpy_only(module):
    """Of `cli`, what `evaluate` needs; the other commands import the rest when they run."""
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import gmmt_fusion.{module}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
