"""What a saved fusion tells of itself: the model card, the hub, and the command `info`."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from tiny_fusions import build, maps
from training_data import Loss, attached, labels
from training_runs import CONCAT, QUIET

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.cli import main
from gmmt_fusion.model.checkpoint import SavedFusion
from gmmt_fusion.training import fine_tune


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fine-tuning whose second epoch is the best, after the host and the start."""
    folder, values = tmp_path_factory.mktemp("run"), iter([0.0, 0.5, 1.0, 3.0, 2.0])
    options = {"epochs": 3, "validate": lambda _: next(values), "seed": 7, **QUIET}
    fine_tune(attached(CONCAT), labels(), Loss(CONCAT), folder, **options)
    return folder


def test_the_card_tells_what_it_is_and_how_to_load_it(run: Path) -> None:
    card = ModelCard.load(run / "best/README.md")
    assert (card.data.library_name, card.data.license) == ("gmmt-fusion", "unknown")
    assert {"object-tracking", "diffusion"} <= set(card.data.tags)
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["validation"] == 3
    code = card.text.split("```python")[1].split("```")[0]
    assert "attach(tracker" in code and "ModuleAdapter(fusion=" in code
    compile(code, "card", "exec")
    for words in ("ConcatTracker", "generative weight | 5", "seed | 7", "8 channels"):
        assert words in card.text, words


@pytest.mark.parametrize("name", ["best", "final"])
def test_scores_and_steps_are_of_these_weights(run: Path, name: str) -> None:
    about = SavedFusion(run / name).about
    assert about["scores"] == {"validation": 3, "best": 3}
    assert about["training"]["steps"] == 2 * about["training"]["batches"]
    assert about["host"]["host"] == "ConcatTracker"


def test_what_is_known_survives_loading_and_saving(run: Path, tmp_path: Path) -> None:
    loaded = GenerativeFusion.from_pretrained(run / "best")
    loaded.save_pretrained(tmp_path, license="apache-2.0")
    again = GenerativeFusion.from_pretrained(tmp_path)
    assert again.about == {**loaded.about, "license": "apache-2.0"}
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


def test_files_of_before_load(tmp_path: Path) -> None:
    """A weights' file that tells nothing of its making, and a folder without a card."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    fusion, path = build(), tmp_path / "model.safetensors"
    fusion.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != "about"}
    save_file(load_file(path), path, header)
    loaded = GenerativeFusion.from_pretrained(tmp_path)
    assert loaded.about == {}
    assert loaded.eval()(*maps()).equal(fusion(*maps()))


def test_a_readme_of_ones_own_stays(tmp_path: Path) -> None:
    for text, kept in (("# mine\n", True), (None, False)):
        if text is not None:
            (tmp_path / "README.md").write_text(text)
        else:
            (tmp_path / "README.md").unlink()
            build(channels=4).save_pretrained(tmp_path)
        build().save_pretrained(tmp_path)
        assert ((tmp_path / "README.md").read_text() == text) == kept
    assert "8 channels" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "about", [{"host": 3}, {"scores": {"SR": "high"}}, {"host": {"adapter": 1}}]
)
def test_odd_notes_do_no_harm(tmp_path: Path, about: dict[str, Any], capsys: Any) -> None:
    fusion = build()
    fusion.about = about
    fusion.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    fusion.about = {"scores": {"SR": object()}}
    with pytest.raises(TypeError, match="JSON"):
        fusion.save_pretrained(tmp_path)
    assert GenerativeFusion.from_pretrained(tmp_path).about == about


def test_push_to_hub_uploads_fusion_head_and_a_card_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            assert options == {"private": True, "exist_ok": True}
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> None:
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = attached(CONCAT).push_to_hub("me/gmmt", license="mit", token="secret", private=True)
    assert address == "https://huggingface.co/me/gmmt"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and 'attach(tracker, "me/gmmt", ' in card.text
    assert any(name.startswith("head.") for name in SavedFusion(tmp_path).shapes)


def test_info_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run / "best")]) == 0
    text = capsys.readouterr().out
    for words in (
        "method",
        "diffusion, s = 1",
        "ConcatTracker",
        "learning rate",
        "validation",
        "MB",
    ):
        assert words in text, words
    assert main(["info", str(run / "best"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["config"]["method"] == "diffusion" and content["scores"]["best"] == 3
    assert content["parameters"]["network"] > 0


def test_info_of_something_else_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
