"""The pages of commands: all can be given, and the paper's experiments are as in the paper."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest

from gmmt_fusion.cli import make_parser
from gmmt_fusion.model.config import PRESETS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import paper  # noqa: E402

PAGE = ROOT / "docs" / "paper.md"
PAGES = [PAGE, *sorted((ROOT / "docs" / "hosts").glob("*.md"))]


def commands(page: Path) -> list[argparse.Namespace]:
    """What the launcher's parser makes of every command in a page's blocks."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL))
    text = re.sub(r"\$\([^()]*\)", "substituted", text)
    parsed = []
    for line in text.replace("\\\n", " ").splitlines():
        for start in re.split(r"[;()]|&&", line.split(" #")[0]):
            if "-m gmmt_fusion" in start:
                words = shlex.split(start, comments=True)
                parsed.append(make_parser().parse_args(words[words.index("gmmt_fusion") + 1 :]))
    return parsed


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_command_can_be_given(page: Path) -> None:
    assert commands(page)


def test_the_page_is_the_table_s() -> None:
    assert PAGE.read_text() == paper.page(), "python benchmarks/paper.py > docs/paper.md"


def trainings() -> dict[str, argparse.Namespace]:
    return {
        Path(command.train).name: command
        for command in commands(PAGE)
        if getattr(command, "train", None)
    }


def test_a_fusion_is_trained_once_and_before_it_is_used() -> None:
    trained = []
    for command in commands(PAGE):
        if getattr(command, "train", None):
            trained.append(command.train)
        elif getattr(command, "fusion", None):
            assert command.fusion in trained
    assert len(trained) == len(set(trained)) == len(trainings())


def test_stage_2_is_the_paper_s() -> None:
    """Supplement, Table 2; siamban's config has its batch, epochs and rates."""
    for name, command in trainings().items():
        host = name.split("-")[0]
        settings = dict(command.settings)
        assert command.recipe in (None, "paper") and command.weights
        assert command.preset in ("paper-unet", "paper-uvit")
        if host == "siamban":
            assert "siamban_r50_l3_gmmt" in PAGE.read_text()
            assert not {"TRAIN.EPOCH", "TRAIN.BATCH_SIZE"} & settings.keys()
            assert command.preset == "paper-unet"
        else:
            assert (settings["TRAIN.EPOCH"], settings["TRAIN.BATCH_SIZE"]) == ("100", "32")


def test_the_tables_vary_what_the_paper_s_do() -> None:
    made = trainings().values()
    siamese = [command for command in made if "siamban" in command.train]
    assert {command.method for command in siamese} == {"raw", "cgan", None}
    assert {command.generative_weight for command in siamese} == {1, 2, 3, None, 10, 100}
    blocks = {
        network: {
            command.blocks
            for command in made
            if "vipt-d" in command.train and command.preset == f"paper-{network}"
        }
        for network in ("uvit", "unet")
    }
    preset = PRESETS["paper-unet"]["network_config"]
    nine = preset["depth"] * len(preset.get("widths", (1, 2, 3)))
    assert blocks["uvit"] == set(range(1, 9))
    assert blocks["unet"] - {None} | {nine} == {3, 6, 9, 12}
    steps = {command.steps for command in commands(PAGE) if getattr(command, "fusion", None)
             and hasattr(command, "script")}  # fmt: skip
    assert steps == {None, 2, 5, 10}
