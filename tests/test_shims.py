"""What stands in for packages and names of 2022: it does the work, or says what to install."""

import collections
import importlib
import importlib.util
import pickle
import subprocess
import sys
import types
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gmmt_fusion.hosts import host_modules, no_gpu, safe_loading, shims, stand_ins
from gmmt_fusion.hosts.missing import colorama, jpeg4py, tensorboard, torchvision
from gmmt_fusion.hosts.patches import Patches
from gmmt_fusion.hosts.watching import compile_with_paths


def test_jpegs_are_decoded(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.full((8, 10, 3), (200, 20, 20), dtype=np.uint8)  # RGB
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), image[..., ::-1])
    for source in (str(path), path, np.fromfile(path, dtype=np.uint8)):
        decoded = jpeg4py.JPEG(source).decode()
        assert decoded.shape == image.shape and abs(decoded.astype(int) - image).max() < 12
    with pytest.raises(OSError):
        jpeg4py.JPEG(str(tmp_path / "none.jpg")).decode()
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"is no image"):
        jpeg4py.JPEG(str(tmp_path / "bad.jpg")).decode()


def test_torchvision() -> None:
    image = torch.rand(3, 4, 5)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(torchvision.normalize(image, mean, std), expected)
    assert torchvision.normalize(image, mean, std, True) is image
    torch.testing.assert_close(image, expected)
    for bad, error in (
        (np.zeros(3), TypeError),
        (torch.zeros(3, 1, 1, dtype=torch.uint8), TypeError),
    ):
        with pytest.raises(error, match="normalize got"):
            torchvision.normalize(bad, mean, std)
    with pytest.raises(ValueError, match="no 0"):
        torchvision.normalize(image, mean, [0, 1, 1])
    assert (
        torchvision.ToTensor()(np.full((2, 3, 3), 255, np.uint8)).tolist() == [[[1.0] * 3] * 2] * 3
    )
    assert torchvision.box_area(torch.tensor([[1.0, 1.0, 4.0, 3.0]])).tolist() == [6.0]


def test_writers_and_colours(capfd: Any) -> None:
    with tensorboard.SummaryWriter("runs") as writer, tensorboard.SummaryWriter("runs") as other:
        writer.add_scalar("loss", 1.0, 1)
        other.add_text("a", "b")
        with pytest.raises(AttributeError, match="no 'add_scalr'"):
            writer.add_scalr("loss", 1.0, 1)
    assert capfd.readouterr().err.count("pip install tensorboard") == 1
    assert colorama.Fore.RED + colorama.Style.RESET_ALL == ""


def test_a_missing_package_never_spins() -> None:
    code = (
        "from gmmt_fusion.hosts import stand_ins\n"
        "stand_ins.install_stand_ins('package_of_2022')\n"
        "import package_of_2022 as p\n"
        "while True:\n    try:\n        p.draw.line(1)\n        break\n    except:\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    assert done.returncode == 2 and "install package_of_2022" in done.stderr


def test_names_come_back_and_go() -> None:
    fake = types.ModuleType("numpy")
    vars(fake).update(float64=np.float64, inf=np.inf, prod=np.prod, str_=np.str_, bool=np.bool_)
    with Patches() as patches:
        shims.restore_collections(collections, patches)
        shims.restore_numpy(fake, patches)
        assert isinstance({}, collections.Mapping) and isinstance([], collections.Sequence)
        assert fake.float is float and fake.float_ is np.float64 and fake.product is np.prod
        assert fake.Inf == np.inf and fake.bool is np.bool_ and not hasattr(fake, "in1d")
    assert not hasattr(collections, "Mapping") and not hasattr(fake, "float")


def test_pandas_squeezes() -> None:
    class Table:
        def squeeze(self, axis: str) -> str:
            return axis

    fake = types.ModuleType("pandas")
    fake.read_csv = lambda *args, **kwargs: Table()
    with Patches() as patches:
        shims.restore_pandas(fake, patches)
        assert fake.read_csv("a", header=None, squeeze=True) == "columns"
        assert isinstance(fake.read_csv("a"), Table)


def test_a_server_of_one_object() -> None:
    class Server:
        def __init__(self, formats: Any, metadata: Any = None) -> None:
            self.metadata, self.sent = metadata, []

        def wait(self) -> Any:
            return fake.server.Request("initialize", {}, [("box", {})], {})

        def status(self, objects: Any, properties: Any = None) -> None:
            self.sent.append(objects)

    fake = types.ModuleType("trax")
    fields = ["type", "image", "objects", "properties"]
    fake.server = types.SimpleNamespace(Request=collections.namedtuple("Request", fields))
    fake.Server = Server
    with Patches() as patches:
        shims.restore_trax(fake, patches)
        server = fake.Server(["rectangle"], customMetadata={"vot": "python"})
        assert server.metadata == {"vot": "python"} and server.wait().region == "box"
        server.status("other")
        server.status([("third", {})])
        assert server.sent == [[("other", {})], [("third", {})]]
    assert fake.Server is Server


def test_local_rank_in_both_spellings() -> None:
    with Patches() as patches:
        shims.restore_local_rank(ArgumentParser, patches)
        parser = ArgumentParser()
        parser.add_argument("--local_rank", type=int, default=-1)
        for words in (["--local-rank=1"], ["--local-rank", "1"], ["--local_rank=1"]):
            assert parser.parse_args(words).local_rank == 1
        parser = ArgumentParser()
        parser.add_argument("--local-rank", type=int)
        assert parser.parse_args(["--local-rank=1"]).local_rank == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_hard_coded_gpu_means_the_cpu(tmp_path: Path) -> None:
    to, load = torch.Tensor.to, torch.load
    with Patches() as patches:
        no_gpu.ignore_gpu(torch, patches)
        tensor, module = torch.zeros(1), nn.Linear(1, 1)
        assert tensor.cuda() is tensor and module.cuda(0) is module
        for device in ("cuda", "cuda:1", torch.device("cuda:0")):
            assert tensor.to(device).device.type == "cpu"
            assert module.to(device=device) is module
        assert tensor.to(torch.float64).dtype == torch.float64
        torch.cuda.set_device(0)
        torch.save({"a": tensor}, tmp_path / "a.pth")
        assert torch.load(tmp_path / "a.pth", map_location="cuda:0")["a"].device.type == "cpu"
    assert torch.Tensor.to is to and torch.load is load


class Meter:
    def __init__(self) -> None:
        self.history = [1.5]


def test_a_trainers_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("module_that_goes")
    exec("class Config:\n    pass\n", vars(other))
    monkeypatch.setitem(sys.modules, "module_that_goes", other)
    state = {
        "net": {"a": torch.ones(2)},
        "stats": {"train": Meter()},
        "best": np.float64(0.5),
        "settings": other.Config(),
    }
    torch.save(state, tmp_path / "a.pth")
    torch.save({"f": print}, tmp_path / "b.pth")
    monkeypatch.delitem(sys.modules, "module_that_goes")
    with Patches() as patches:
        safe_loading.load_own_checkpoints(torch, patches)
        loaded = torch.load(tmp_path / "a.pth", map_location="cpu")
        assert loaded["stats"]["train"].history == [1.5] and loaded["best"] == 0.5
        assert "not loaded" in repr(loaded["settings"])
        assert not callable(torch.load(tmp_path / "b.pth")["f"]) or (
            torch.load(tmp_path / "b.pth")["f"] is not print
        )
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "a.pth", weights_only=True)


def test_a_sampler_that_fails_always_stops() -> None:
    class Sampler:
        def __init__(self) -> None:
            self.processing = lambda frames: frames

        def sample_seq_from_dataset(self, dataset: Any, is_video: bool) -> int:
            while dataset.get_sequence_info(0) != 0:
                pass
            return 0

        def __getitem__(self, index: int) -> Any:
            while True:
                self.sample_seq_from_dataset(dataset, True)
                try:
                    return self.processing(dataset.get_frames(index))
                except:  # noqa: E722 - as hosts have it
                    pass

    calls = []

    def get_frames(index: int) -> int:
        calls.append(index)
        if index or len(calls) % 10:
            raise OSError("no such frame")
        return 7

    dataset = types.SimpleNamespace(get_frames=get_frames, get_sequence_info=lambda index: index)
    with Patches() as patches:
        host_modules.watch_sampler(Sampler, patches)
        sampler = Sampler()
        assert [sampler[0] for _ in range(12)] == [7] * 12  # failures now and then do not count
        with pytest.raises(RuntimeError, match=r"drew 50 samples in vain.*no such frame"):
            sampler[1]
        dataset.get_frames, dataset.get_sequence_info = get_frames, lambda index: 1
        with pytest.raises(RuntimeError, match=r"1000 sequences.*20 frames"):
            Sampler()[0]


def test_paths_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("a, b, c = '/data/LasHeR/test', '/database', f'/data/GTOT/{1}'\nd = '/data'\n")
    names: dict[str, Any] = {}
    exec(compile_with_paths(str(file), {"/data": "/mnt", "/data/LasHeR": "L"}), names)
    assert [names[x] for x in "abcd"] == ["L/test", "/database", "/mnt/GTOT/1", "/mnt"]


@pytest.mark.parametrize("name", stand_ins.PACKAGES)
def test_every_stand_in_can_be_imported(name: str) -> None:
    if name in sys.modules or importlib.util.find_spec(name.split(".")[0]) is not None:
        pytest.skip(f"{name} is installed, or its package is")
    with Patches() as patches:
        patches.set(sys, "meta_path", [*sys.meta_path])
        stand_ins.install_stand_ins()
        try:
            assert importlib.import_module(name) is not None
        finally:
            for module in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
                del sys.modules[module]
