"""What siamban's own scripts get of the launcher, on stand-ins for its modules."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import stand_ins_siamban as stand_ins
import torch
from tiny_dataset import BOX, write_dataset
from torch import Tensor, nn

from gmmt_fusion.adapters import siamban as adapter
from gmmt_fusion.cli import main
from gmmt_fusion.hosts import opencv, siamban, siamban_data
from gmmt_fusion.hosts.job import Job
from gmmt_fusion.hosts.patches import Patches


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "siamban" / "siamban" / "models").mkdir(parents=True)
    return tmp_path / "siamban"


def prepare(checkout: Path, *arguments: str) -> int:
    return main(["siamban-data", "--checkout", str(checkout), *arguments])


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("a/{visible,infrared}/1.jpg", ("a/visible/1.jpg", "a/infrared/1.jpg")),
        ("a/{v/1.png,i/2.png}", ("a/v/1.png", "a/i/2.png")),
        ("a/visible/1.jpg", None),
        ("a/{b}/1.jpg", None),
        ("a/{b,c,d}/1.jpg", None),
    ],
)
def test_a_name_of_a_pair(name: str, pair: tuple[str, str] | None) -> None:
    assert siamban_data.split_pair(name) == pair


def test_imread_reads_pairs(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 6, 3)).astype(np.uint8)
    for name, image in zip("abc", images, strict=True):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[:7] if name == "c" else image)
    with Patches() as patches:
        opencv.adapt_opencv(cv2, patches)
        assert np.array_equal(
            cv2.imread(f"{tmp_path}/{{a,b}}.png"), np.dstack([images[0], images[1]])
        )
        assert np.array_equal(cv2.imread(str(tmp_path / "a.png")), images[0])
        assert cv2.imread(str(tmp_path / "missing.png")) is None
        with pytest.raises(FileNotFoundError, match=r"d\.png"):
            cv2.imread(f"{tmp_path}/{{a,d}}.png")
        with pytest.raises(ValueError, match=r"6×8 and 6×7 pixels; align"):
            cv2.imread(f"{tmp_path}/{{a,c}}.png")
        cv2.destroyAllWindows()


def test_a_crop_shows_the_box_in_the_middle_at_the_template_s_scale() -> None:
    image = np.full((240, 320, 3), 20, np.uint8)
    image[100:140, 200:280] = 220
    shown = siamban_data.crop(image, [200, 100, 80, 40])
    side = np.sqrt((80 + 60) * (40 + 60))
    rows, columns = (np.flatnonzero((shown[..., 0] > 120).any(axis=axis)) for axis in (1, 0))
    for found, length in ((rows, 40), (columns, 80)):
        assert len(found) == pytest.approx(length * 127 / side, abs=2)
        assert found.mean() == pytest.approx(255, abs=1.5)
    assert shown.shape == (511, 511, 3) and (shown[:, -1] == image.mean().round()).all()


@pytest.mark.parametrize("layout", ["lasher", "gtot", "rgbt234"])
def test_the_list_of_frames(checkout: Path, tmp_path: Path, layout: str) -> None:
    data = write_dataset(tmp_path / "data", layout)
    assert prepare(checkout, "--test", str(data), "--benchmark", layout) == 0
    folder = checkout / "testing_dataset" / f"OTB-{layout}"
    videos = json.loads((folder / f"OTB-{layout}.json").read_text())
    assert list(videos) == ["a", "b"]
    assert {"video_dir", "init_rect", "img_names", "gt_rect", "attr"} <= videos["a"].keys()
    assert videos["a"]["init_rect"] == BOX and videos["a"]["gt_rect"] == [BOX] * 4
    for name in videos["a"]["img_names"]:
        pair = siamban_data.split_pair(name)
        assert pair is not None and siamban_data.read_pair(*pair).shape == (25, 33, 6)
    assert [Path(name).name for name in videos["b"]["img_names"]][2:] == ["10.png}", "11.png}"]


def test_the_crops(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "data", names=("a", "b", "c"))
    (data / "b" / "init.txt").write_text("4,6,10,8\n0,0,0,0\n4,6,10,8\n4,6,10,8\n")
    (tmp_path / "names.txt").write_text("a\nb\n")
    names = ["--sequences", str(tmp_path / "names.txt")]
    assert prepare(checkout, "--train", str(data), *names) == 0
    assert "7 pairs of crops of 2 sequences" in capsys.readouterr().out
    folder = checkout / "training_dataset" / "lasher"
    annotations = json.loads((folder / "train.json").read_text())
    assert annotations["a"]["00"]["000003"] == [4, 6, 14, 14]
    assert list(annotations["b"]["00"]) == ["000000", "000002", "000003"]  # where the target is
    for kind in ("visible", "infrared"):
        for video, tracks in annotations.items():
            for frame in tracks["00"]:  # as BANDataset asks for it
                image = cv2.imread(str(folder / kind / video / f"{frame}.00.x.jpg"))
                assert image.shape == (511, 511, 3)


def test_configs_of_the_stages(checkout: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    data = str(write_dataset(tmp_path / "data"))
    assert prepare(checkout, "--test", data) == 0
    folder = checkout / "experiments"
    stages = {
        name: yaml.safe_load((folder / f"siamban_r50_l3_{name}" / "config.yaml").read_text())
        for name in ("rgb", "tir", "rgbt", "gmmt")
    }
    for name, config in stages.items():  # the paper's, supplement, Table 2
        train, rates = config["TRAIN"], config["TRAIN"]["LR"]["KWARGS"]
        warm_up = train["LR_WARMUP"]
        epochs = (100, 20) if name == "gmmt" else (20, 5)
        assert (train["EPOCH"], warm_up["EPOCH"]) == epochs
        assert (warm_up["KWARGS"]["start_lr"], rates["start_lr"], rates["end_lr"]) == (
            0.001,
            0.005,
            0.00005,
        )
        assert config["DATASET"]["VIDEOS_PER_EPOCH"] % train["BATCH_SIZE"]  # saves its last epoch
        two = name in ("rgbt", "gmmt")
        assert ("two_stream" in config["BACKBONE"]["TYPE"]) is two
        assert (siamban_data.split_pair(config["DATASET"]["RGBT"]["ROOT"]) is not None) is two
    assert stages["gmmt"]["TRAIN"]["BATCH_SIZE"] == 8
    assert siamban_data.split_pair(stages["rgbt"]["TRAIN"]["PRETRAINED"]) is not None
    mine = folder / "siamban_r50_l3_rgb" / "config.yaml"
    mine.write_text("mine")
    assert prepare(checkout, "--test", data) == 0 and mine.read_text() == "mine"


def test_what_cannot_be_laid_out(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "da,ta")
    for arguments, message in (
        ((tmp_path, "--test", str(data)), "has no siamban/models; expected a checkout"),
        ((checkout, "--test", str(tmp_path / "nowhere")), "is not a folder"),
        ((checkout, "--test", str(data)), ""),  # the folder that they share may have a comma
    ):
        assert prepare(*arguments) == (2 if message else 0)
        assert message in capsys.readouterr().err
    (data / "a" / "visible" / "8.png").rename(data / "a" / "visible" / "{8}.png")
    assert prepare(checkout, "--test", str(data)) == 2
    assert "has a brace or a comma in its name" in capsys.readouterr().err


@pytest.fixture
def step_in() -> Any:
    """Hands modules to what the launcher calls when they were imported."""
    with Patches() as patches:
        job = Job(root="/", log="/dev/null", settings={"TRAIN.EPOCH": "3"})
        yield lambda module: siamban.step_in(job, patches, module)


def module_of(name: str, **names: Any) -> ModuleType:
    """A module that defines these names."""
    module = ModuleType(name)
    for value in names.values():
        if callable(value):
            value.__module__ = name
    vars(module).update(names)
    return module


def test_two_streams_by_name(step_in: Any) -> None:
    backbones = module_of("siamban.models.backbone", BACKBONES={"tiny": stand_ins.Backbone})
    necks = module_of("siamban.models.neck", NECKS={"AdjustLayer": stand_ins.AdjustLayer})
    heads = module_of("siamban.models.head", BANS={"DepthwiseBAN": stand_ins.DepthwiseBAN})
    for module in (backbones, necks, heads):
        step_in(module)
    model = stand_ins.ModelBuilder()
    model.backbone = backbones.BACKBONES["two_stream_tiny"](used_layers=[3])
    model.neck = necks.NECKS["TwoStreamAdjustLayer"](inputs=10, frozen=True)
    model.head = heads.BANS["OneLevelBAN"]()
    rgb, tir = stand_ins.single(), stand_ins.single(seed=1)
    adapter.load_streams(model, rgb.state_dict(), tir.state_dict())
    expected = stand_ins.run(adapter.two_stream(rgb, tir))
    assert torch.equal(stand_ins.run(model.eval()), expected)
    assert not any(p.requires_grad for p in (*model.neck.rgb.parameters(),))
    before = {name: value.clone() for name, value in model.neck.rgb.state_dict().items()}
    model.train()(stand_ins.batch(model))["total_loss"].backward()
    after = model.neck.rgb.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(p.grad is not None for p in model.neck.fusion.parameters())
    assert model.neck.fusion.training and not model.neck.tir.training


def test_weights_of_another_structure_are_refused() -> None:
    rgb, model = stand_ins.single(), stand_ins.build()
    with pytest.raises(ValueError, match="is of one modality, and the weights are of two"):
        adapter.load_streams(rgb, rgb.state_dict(), rgb.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        adapter.load_streams(model, rgb.state_dict(), model.state_dict())


def test_what_scripts_of_siamban_need(step_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Augmentation:
        def _color_aug(self, image: np.ndarray) -> np.ndarray:
            return image - np.ones(3)

        def _gray_aug(self, image: np.ndarray) -> np.ndarray:
            return np.repeat(image.mean(2, keepdims=True), 3, 2)

    def select_iou_loss(pred_loc: Tensor, label_loc: Tensor, label_cls: Tensor) -> Tensor:
        assert (label_cls == 1).any()
        return pred_loc.sum()

    def dist_init() -> tuple[int, int]:
        return 1, 2

    for module in (
        augmentation := module_of("siamban.a", Augmentation=Augmentation),
        losses := module_of("siamban.b", select_iou_loss=select_iou_loss),
        distributed := module_of("siamban.c", dist_init=dist_init, inited=False),
    ):
        step_in(module)
    image = np.dstack([np.zeros((2, 2, 3)), np.ones((2, 2, 3))])
    assert np.array_equal(augmentation.Augmentation()._color_aug(image), image - 1)
    assert np.array_equal(augmentation.Augmentation()._gray_aug(image), image)
    assert augmentation.Augmentation()._color_aug(image[..., :3]).shape == (2, 2, 3)
    boxes = torch.ones(1, 4, 1, 1, requires_grad=True)
    loss = losses.select_iou_loss(boxes, boxes, torch.zeros(1, 1, 1))
    loss.backward()
    assert loss == 0 and boxes.grad is not None
    assert losses.select_iou_loss(boxes, boxes, torch.ones(1, 1, 1)) == 4
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.dist_init() == (0, 1) and distributed.inited
    monkeypatch.setenv("RANK", "1")
    assert distributed.dist_init() == (1, 2)


def test_a_pair_of_checkpoints(step_in: Any, tmp_path: Path) -> None:
    def load_pretrain(model: nn.Module, pretrained_path: str) -> str:
        return pretrained_path

    module = module_of("siamban.utils.model_load", load_pretrain=load_pretrain)
    step_in(module)
    rgb, tir, model = stand_ins.single(), stand_ins.single(seed=1), stand_ins.build()
    for name, single in (("rgb", rgb), ("tir", tir)):
        torch.save({"epoch": 20, "state_dict": single.state_dict()}, tmp_path / f"{name}.pth")
    assert module.load_pretrain(model, f"{tmp_path}/{{rgb,tir}}.pth") is model
    assert torch.equal(stand_ins.run(model), stand_ins.run(adapter.two_stream(rgb, tir)))
    assert module.load_pretrain(model, "one.pth") == "one.pth"


def test_settings(step_in: Any) -> None:
    class Config(dict):
        def merge_from_file(self, filename: str) -> None:
            self["TRAIN"] = {"EPOCH": 20}

    config = Config(TRAIN={"EPOCH": 1})
    step_in(module_of("siamban.core.config", cfg=config))
    config.merge_from_file("config.yaml")
    assert config == {"TRAIN": {"EPOCH": 3}}
