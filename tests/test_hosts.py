"""The room for hosts: stand-ins for packages, and checkouts of trackers."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gmmt_fusion.hosts import checkouts, stand_ins


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is changed in the whole process is undone."""
    with contextlib.suppress(ImportError):  # which cannot be imported into other modules
        importlib.import_module("pandas")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    yield
    checkouts.PATCHES.close()


def test_stand_ins_can_be_imported_and_only_for_what_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("package_of_2022.deep")
    stand_ins.install_stand_ins("package_of_2022", "einops")
    module = importlib.import_module("package_of_2022.deep.down")
    assert issubclass(module.Writer.inner, object)
    for use in (module.Writer, module.Writer.inner, type("Own", (module.Writer,), {})):
        with pytest.raises(ImportError, match=r"uses package_of_2022.*install package_of_2022"):
            use(1, name=2)
    with pytest.raises(AttributeError):
        _ = module.__unknown__
    assert importlib.import_module("einops").rearrange is not None
    assert not isinstance(importlib.import_module("einops.layers"), stand_ins.StandInModule)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("another_package")


def test_stand_ins_are_installed_once() -> None:
    stand_ins.install_stand_ins()
    finders = len(sys.meta_path)
    stand_ins.install_stand_ins()
    assert len(sys.meta_path) == finders
    stand_ins.install_stand_ins("package_of_2022")
    assert len(sys.meta_path) == finders + 1


def test_what_trackers_use_of_the_packages() -> None:
    stand_ins.install_stand_ins()
    assert importlib.import_module("torch._six").int_classes is int
    boxes = torch.tensor([[1.0, 1.0, 4.0, 3.0]])
    if importlib.util.find_spec("torchvision") is None:
        assert importlib.import_module("torchvision.ops.boxes").box_area(boxes).tolist() == [6.0]


def test_a_checkout_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no lib/models; expected a checkout of ViPT"):
        checkouts.prepare(tmp_path)
    (tmp_path / "lib" / "models").mkdir(parents=True)
    (tmp_path / "tracker_of_2022.py").write_text("import visdom, vot\nname = 'ours'\n")
    assert checkouts.prepare(tmp_path) == tmp_path.resolve()
    assert importlib.import_module("tracker_of_2022").name == "ours"
    if not torch.cuda.is_available():
        tensor, module = torch.zeros(1), nn.Linear(1, 1)
        assert tensor.cuda() is tensor and module.cuda(0) is module


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_a_checkpoint_as_the_trackers_load_it(suffix: str) -> None:
    weights = nn.Linear(2, 2).state_dict()
    test = SimpleNamespace(TEMPLATE_FACTOR=2, TEMPLATE_SIZE=128, SEARCH_FACTOR=4, SEARCH_SIZE=256)
    with checkouts.checkpoint_of(weights, suffix) as path:
        parameters = checkouts.tracker_parameters(SimpleNamespace(TEST=test), path)
        loaded = torch.load(parameters.checkpoint + suffix)["net"]
    assert loaded.keys() == weights.keys() and not Path(f"{path}{suffix}").exists()
    assert (parameters.search_size, parameters.template_factor) == (256, 2)
