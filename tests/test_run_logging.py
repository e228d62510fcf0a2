"""What a run logs beside its own log: to any of accelerate's trackers, with images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker, on_main_process
from training_data import Loss, attached, labels
from training_runs import CONCAT, QUIET

from gmmt_fusion.training import fine_tune

IMAGE = np.zeros((8, 6, 3), np.uint8)


class Notebook(GeneralTracker):
    """A tracker of a user's own."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.images: list[tuple[int, dict[str, Any]]] = []

    @property
    def tracker(self) -> "Notebook":
        return self

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.logged.append((step or 0, values))

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.images.append((step or 0, values))


def train(folder: Path, **options: Any) -> dict[str, float]:
    return fine_tune(attached(CONCAT), labels(), Loss(CONCAT), folder, **{**QUIET, **options})


def test_any_tracker_gets_settings_losses_and_images(tmp_path: Path) -> None:
    notebook, asked = Notebook(), []

    def draw(attachment: Any) -> dict[str, np.ndarray]:
        asked.append((attachment.network.training, attachment.fusion.training))
        return {"frame": IMAGE}

    values = iter([0.5, 1.0, 2.0, 3.0])  # of the host, the start and each epoch
    options = {"epochs": 2, "images": draw, "validate": lambda _: next(values)}
    train(tmp_path, log_with=notebook, **options)
    assert notebook.config["optimizer"] == "AdamW" and notebook.config["epochs"] == 2
    steps = [step for step, values in notebook.logged if "loss" in values]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) % 2 == 0
    found = [values["validation"] for _, values in notebook.logged if "validation" in values]
    assert found == [1, 2, 3]
    assert asked == [(False, False)] * 2
    assert [step for step, _ in notebook.images] == [len(steps) // 2, len(steps)]
    assert notebook.images[0][1]["frame"].shape == (1, *IMAGE.shape)


def test_images_do_not_change_a_run(tmp_path: Path) -> None:
    options = {"epochs": 1, "log_with": Notebook()}
    with_images = train(tmp_path / "a", images=lambda _: {"x": IMAGE}, **options)
    assert train(tmp_path / "b", epochs=1) == with_images


@pytest.mark.parametrize("image", [IMAGE[..., 0], IMAGE.astype(float)], ids=["grey", "floats"])
def test_what_is_no_image_is_named(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"'x'.*expected \(H, W, 3\), uint8"):
        train(tmp_path, epochs=1, log_with=[Notebook()], images=lambda _: {"x": image})


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    from accelerate.tracking import get_available_trackers

    known = ("wandb", "aim", "comet_ml", "mlflow", "dvclive", "clearml")
    name = next(name for name in known if name not in map(str, get_available_trackers()))
    with pytest.raises(ImportError, match=f"pip install {name}"):
        train(tmp_path, epochs=1, log_with=["tensorboard", name])
    with pytest.raises(ValueError, match="paper"):
        train(tmp_path, epochs=1, log_with="paper")


def test_tensorboard_gets_losses_and_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path, epochs=1, log_with="tensorboard", images=lambda _: {"frame": IMAGE})
    files = list((tmp_path / "gmmt-fusion").rglob("events.out.tfevents*"))
    content = b"".join(path.read_bytes() for path in files)
    assert b"generative_loss" in content and b"frame" in content and b"\x89PNG" in content
