"""The house: who imports whom, how long files are, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gmmt_fusion
import gmmt_fusion.adapters

ROOT = Path(gmmt_fusion.__file__).parent
HEAVY = ("torch", "diffusers", "einops", "matplotlib", "scipy", "cv2", "sklearn", "tqdm")


def find_imports(path, inside):
    """The modules of this package that a file imports anywhere, also in functions or for types."""
    package = [ROOT.name, *inside.relative_to(ROOT).parts[:-1]]
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


def house():
    """{module: what it imports of this package}, of every file."""
    adapters = Path(gmmt_fusion.adapters.__file__).parent
    graph = {}
    for path in [*ROOT.rglob("*.py"), *adapters.glob("*.py")]:
        inside = path if path.is_relative_to(ROOT) else ROOT / "adapters" / path.name
        parts = [part for part in inside.relative_to(ROOT).with_suffix("").parts]
        name = ".".join([ROOT.name, *(part for part in parts if part != "__init__")])
        graph[name] = set(find_imports(path, inside)) - {name}
    return {name: imports & graph.keys() for name, imports in graph.items()}


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


FLOORS = [
    {"version", "checks", "files"},
    {"model"},
    {"attaching"},
    {"adapters"},
    {"training", "evaluation"},
    {"commands"},
    {"hosts"},
    {"cli"},
    {"__main__", ""},
]


def test_arrows_go_one_way():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for name, imports in house().items():
        for other in imports:
            here, there = room_of(name), room_of(other)
            assert here == there or floor[there] < floor[here], f"{name} imports {other}"


def test_no_circle():
    graph = house()
    for name, imports in graph.items():  # importing a module runs its package's first
        graph[name] = {other for other in imports if other != f"{ROOT.name}.{room_of(name)}"}
    while graph:
        leaves = [name for name, imports in graph.items() if not imports & graph.keys()]
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: imports for name, imports in graph.items() if name not in leaves}


@pytest.mark.parametrize("folder", ["gmmt_fusion", "adapters", "tests", "examples", "benchmarks"])
def test_no_file_is_long(folder):
    top = Path(__file__).parents[1]
    lengths = {path: len(path.read_text().splitlines()) for path in (top / folder).rglob("*.py")}
    assert not {str(path): length for path, length in lengths.items() if length > 400}


def test_attaching_imports_little():
    """What takes a tenth of a second or more is imported where it is needed."""
    code = (
        "import sys, torch; before = set(sys.modules); "
        "from gmmt_fusion import GenerativeFusion, attach; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "huggingface_hub",
        "diffusers",
        "safetensors",
        "accelerate",
        "transformers",
        "requests",
    }
    assert not heavy & set(done.stdout.split()), done.stdout


@pytest.mark.parametrize(
    "work",
    ["evaluation.metrics", "evaluation.layouts", "cli; gmmt_fusion.cli.make_parser()"],
)
def test_scoring_needs_numpy_only(work):
    """Of the commands, what their arguments and `evaluate` need; the rest is imported in `run`."""
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import gmmt_fusion.{work}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
