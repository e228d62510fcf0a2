"""The code blocks of a page, and running them in their order.

What a reader does not need to see stands in HTML comments before a block:

- `<!-- setup` and Python, `-->`: runs where the comment stands, in the page's namespace;
- `<!-- run -->`: the next block's commands of this package are run and not only parsed;
- `<!-- needs: HOSTS/ViPT -->`: the next block is for a checkout, in the folder of that variable;
- `<!-- patches: ViPT/tools/train.py -->`: the next block is a diff of that file, whose lines are
  compared where HOSTS has it.

Python runs in one namespace a page, in an empty folder; with `title="name.py"` after the language
the block becomes that file there. Of a diff its new side runs, in the same namespace.
"""

import ast
import configparser
import os
import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from gmmt_fusion.cli import main, make_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
QUIET = {"text", "bibtex", "json", "yaml", "ini"}
"""Languages of what is shown and not run."""
TOOLS = {
    ".",
    ".ci/run",
    "cd",
    "eval",
    "export",
    "git",
    "ls",
    "mkdir",
    "mkdocs",
    "mypy",
    "printf",
    "mv",
    "ln",
    "cp",
    "sed",
}
TOOLS |= {"pre-commit", "ruff", "sbatch", "srun", "tensorboard"}
"""Commands that are shown and not run."""


@dataclass(frozen=True)
class Block:
    """A fence, or the Python of a setup comment; `line` counts from 1 in its page."""

    page: Path
    line: int
    language: str
    code: str
    title: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    shown: bool = True

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def checkout(self) -> Path | None:
        """The host's folder that this block needs, where it is there."""
        variable, _, name = self.notes.get("needs", "").partition("/")
        folder = Path(os.environ.get(variable, ""), name) if variable else None
        return folder if folder and os.environ.get(variable) and folder.is_dir() else None


def read_blocks(page: Path) -> list[Block]:
    """All of a page's fences and setups, in their order."""
    text = page.read_text(encoding="utf-8")
    hidden = re.search(r"^(?: {4,}|\t)```", text, re.M)
    assert not hidden, f"{page}: an indented fence, which would not be run"
    blocks, notes = [], {}
    for token in MarkdownIt().parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            for comment in re.findall(r"<!--(.*?)-->", token.content, re.S):
                kind, _, rest = comment.strip().partition("\n")
                if kind == "setup":
                    code = textwrap.dedent(rest)
                    blocks.append(Block(page, line + 1, "python", code, shown=False))
                else:
                    name, _, value = kind.partition(":")
                    notes[name.strip()] = value.strip()
        elif token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            blocks.append(
                Block(page, line + 1, language, token.content, title[1] if title else "", notes)
            )
            notes = {}
    return blocks


def run_page(page: Path) -> None:
    """Run a page's blocks in the current folder."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in read_blocks(page):
        if block.language in ("python", "diff"):
            run_python(block, namespace)
        elif block.language == "bash":
            for words in commands(block.code):
                check_command(block, words)
        else:
            assert block.language in QUIET, f"{block.place}: a block of {block.language!r}"


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    code = block.code
    if block.language == "diff":
        check_patched(block)
        code = new_side(code)
    if block.title:
        Path(block.title).write_text(code)
        return
    # so that an error's traceback names the page's line
    compiled = compile("\n" * (block.line - 1) + code, str(block.page), "exec")
    if "needs" not in block.notes:
        exec(compiled, namespace)


def new_side(diff: str) -> str:
    """The lines of a diff that are there afterwards, each at the left margin."""
    lines = [line[1:] for line in diff.splitlines() if not line.startswith(("-", "@@"))]
    return "\n".join(line.strip() for line in lines)


def check_patched(block: Block) -> None:
    """The lines that a diff does not add are in the files that it is for."""
    for name in filter(None, block.notes.get("patches", "").split(", ")):
        path = Path(os.environ.get("HOSTS", ""), name)
        if "HOSTS" in os.environ and path.is_file():
            there = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
            wanted = {line[1:].strip() for line in block.code.splitlines() if line[0] in " -"}
            assert wanted <= there, f"{block.place}: {path} lacks {sorted(wanted - there)}"


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a bash block, as words, without loops and what sets variables before them."""
    code = re.sub(r"^for .*?^done$", "", code, flags=re.DOTALL | re.MULTILINE)
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;()"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def check_command(block: Block, words: list[str]) -> None:
    """Run or parse a command of this package, and see that all others can be meant."""
    match words:
        case ["python", "-m", "gmmt_fusion", *rest] | ["gmmt-fusion", *rest]:
            run_own(block, rest)
        case [python, "-m", module, *_] if re.fullmatch(r"python[\d.]*", python):
            assert find_spec(module), f"{block.place}: there is no module {module!r}"
        case ["python", script, *rest] if script.endswith(".py"):
            check_script(block, script, rest)
        case ["pip", "install", *rest]:
            check_install(block, rest)
        case ["accelerate", "launch", *rest]:
            from accelerate.commands.launch import launch_command_parser

            options = launch_command_parser().parse_args(rest)
            check_script(block, options.training_script, options.training_script_args)
        case ["torchrun", *rest]:
            from torch.distributed.run import get_args_parser

            options = get_args_parser().parse_args(rest)
            check_script(block, options.training_script, options.training_script_args)
        case [tool, *_] if not tool.startswith("--"):  # which go on with a command shown above
            assert tool in TOOLS, f"{block.place}: what is {shlex.join(words)}?"


def run_own(block: Block, arguments: list[str]) -> None:
    try:
        if "run" in block.notes:
            assert main(arguments) == 0, f"{block.place}: {shlex.join(arguments)}"
        else:
            make_parser().parse_args(arguments)
    except SystemExit as done:  # of --help and --version, or of what cannot be parsed
        assert not done.code, f"{block.place}: {shlex.join(arguments)}"


def check_script(block: Block, script: str, arguments: list[str]) -> None:
    """A script is of the page, of this repository or of the host, and knows its options."""
    if "needs" in block.notes and block.checkout is None:
        return
    folders = [Path(), ROOT, *([block.checkout] if block.checkout else [])]
    found = next((folder / script for folder in folders if (folder / script).is_file()), None)
    assert found, f"{block.place}: there is no {script}; say `<!-- needs: HOSTS/… -->` of a host's"
    source = found.read_text(encoding="utf-8")
    for name in (word.split("=")[0] for word in arguments if word.startswith("--")):
        assert name in source, f"{block.place}: {script} has no {name}"
    if "run" in block.notes:
        runpy.run_path(str(found), run_name="__main__")


def check_install(block: Block, arguments: list[str]) -> None:
    """Extras of this package are those of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = setup["options.extras_require"]
    for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        for extra in extras.split(","):
            assert extra in known, f"{block.place}: there is no extra {extra!r}"


def names_in(blocks: list[Block]) -> set[str]:
    """Every name that the Python which these blocks show imports or uses."""
    names: set[str] = set()
    for block in blocks:
        if block.shown and block.language in ("python", "diff"):
            code = new_side(block.code) if block.language == "diff" else block.code
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Name):
                    names.add(node.id)
                elif isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, ast.ImportFrom):
                    names |= {alias.name for alias in node.names}
    return names
