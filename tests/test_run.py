"""`python -m gmmt_fusion run` over a tiny repository of OSTrack's shape."""

import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES
from fake_checkout import AUTHORS, write_checkout

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.cli import main
from gmmt_fusion.hosts.command import find_root
from gmmt_fusion.hosts.fusing import watch_networks
from gmmt_fusion.hosts.job import Job
from gmmt_fusion.hosts.patches import Patches

cv2 = pytest.importorskip("cv2")
WRAPPED = CASES[0]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, with frames, weights and a fusion beside it; the current folder."""
    folder = write_checkout(tmp_path / "Tiny")
    data = tmp_path / "LasHeR" / "testingset"
    data.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        cv2.imwrite(str(data / f"{number:06d}.jpg"), image)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    forget_host()
    network = importlib.import_module("lib.models.tiny").build()
    (folder / "models").mkdir()
    torch.save({"net": network.state_dict()}, folder / "models" / "tiny.pth")
    handle = attach(network, GenerativeFusion.preset("small", 8, 8))
    handle.save_pretrained(tmp_path / "fusion")
    forget_host()
    return folder


def forget_host() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lib"]:
        del sys.modules[name]


def files(folder: Path) -> set[str]:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def train(*more: str, script: str = "lib/train/run_training.py") -> list[str]:
    options = ["--train", "../trained", "--weights", "models/tiny.pth"]
    folders = ["--set", "lasher_dir=../LasHeR/testingset"]
    arguments = ["../host"] if "tracking" in script else ["--save_dir", "../host"]
    return ["run", *options, *folders, *more, script, *arguments]


HERE = f"{AUTHORS}/LasHeR=../LasHeR"


def test_a_test_script_gets_the_fusion(checkout: Path, tmp_path: Path, capfd: Any) -> None:
    before = files(checkout)
    load, cuda, path = torch.load, torch.Tensor.cuda, [*sys.path]
    script = ["--path", HERE, "workspace/test.py"]
    assert main(["run", "--fusion", "../fusion", *script]) == 0
    out = capfd.readouterr().out
    assert "one TinyTrack True (1, 4)" in out
    assert out.count("gmmt_fusion:") == 1 and "TinyTrack by TBSIAdapter" in out
    assert main(["run", *script]) == 0
    assert "one TinyTrack False (1, 4)" in capfd.readouterr().out
    assert (torch.load, torch.Tensor.cuda, sys.path) == (load, cuda, path)
    assert files(checkout) == before and "GMMT_FUSION_JOB" not in os.environ


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gmmt_fusion", *arguments],
        text=True,
        capture_output=True,
        check=False,
    )


def test_processes_that_spawn_starts(checkout: Path) -> None:
    done = command("run", "--fusion", "../fusion", "--path", HERE, "workspace/test.py", "parallel")
    assert done.returncode == 0, done.stderr
    assert "one TinyTrack True (1, 4)" in done.stdout and done.stdout.count("gmmt_fusion:") == 1


def test_processes_that_a_command_starts(checkout: Path, tmp_path: Path) -> None:
    done = command(*train("--calibrate", "1", script="tracking/train.py"))
    assert done.returncode == 0, done.stderr
    assert "attached a new fusion" in done.stdout and "saved the fusion of epoch 2" in done.stdout
    assert "calibrated on 1 batches" in done.stdout
    assert files(tmp_path / "trained") >= {"config.json", "model.safetensors", "run.json"}
    failing = command(*train("--set", "TRAIN.BATCH_SIZE=0", script="tracking/train.py"))
    assert failing.returncode != 0
    assert "batch_size" in failing.stderr and "has failed" in failing.stderr


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes would share a GPU")
def test_two_processes_of_a_launch(checkout: Path, tmp_path: Path) -> None:
    """torch.distributed.launch on a machine without a GPU: its ranks' fusions are one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--calibrate", "1", "--set", "TRAIN.EPOCH=1"]
    done = command(*train(*options, script="tracking/train.py"), port)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("attached a new fusion") == 1  # said by the first
    assert "saved the fusion of epoch 1" in done.stdout
    assert (tmp_path / "trained" / "config.json").is_file()


def test_train_and_resume(checkout: Path, tmp_path: Path, capfd: Any) -> None:
    before = files(checkout)
    assert main(train("--method", "cgan", "--generative-weight", "2", "--recipe", "adamw")) == 0
    out = capfd.readouterr().out
    assert "epoch 2 ['Loss/generative', 'Loss/total'] 4" in out, out
    first = GenerativeFusion.from_pretrained(tmp_path / "trained")
    assert first.config.method == "cgan" and first.config.size == (8, 8)
    options = ["--method", "cgan", "--generative-weight", "2"]
    assert main(train(*options)) != 0
    assert "--recipe was adamw, is paper" in capfd.readouterr().err
    saved = tmp_path / "host" / "TinyTrack_ep0002.pth.tar"
    saved.unlink()  # as if it had been killed
    assert main(train(*options, "--recipe", "adamw")) == 0
    out = capfd.readouterr().out
    assert "epoch 1" not in out
    assert "epoch 2 ['Loss/generative', 'Loss/total'] 4" in out  # its averages go on
    second = GenerativeFusion.from_pretrained(tmp_path / "trained")
    changed = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert any(changed) and files(checkout) == before
    # its checkpoint is the host's, too
    os.replace(saved, checkout / "models" / "tiny.pth")
    run = ["run", "--fusion", "../trained", "--path", HERE, "workspace/test.py"]
    assert main(run) == 0 and "cgan" in capfd.readouterr().out


def test_another_fusion_is_not_written_over(checkout: Path, capfd: Any) -> None:
    arguments = train("--set", "TRAIN.EPOCH=1")
    assert main(arguments) == 0
    assert main([*arguments[:-1], "../elsewhere"]) != 0
    assert "trained holds a fusion already" in capfd.readouterr().err


def test_blocks_steps_and_presets(checkout: Path, tmp_path: Path) -> None:
    assert main(train("--blocks", "2", "--steps", "3", "--set", "TRAIN.EPOCH=1")) == 0
    config = GenerativeFusion.from_pretrained(tmp_path / "trained").config
    assert config.network_config["depth"] == 2 and config.steps == 3


REFUSED = {
    "weights": (["--weights", "models/none.pth"], r"models/none.pth is missing"),
    "not its own": (["--weights", "other.pth"], r"other.pth are not those of this TinyTrack"),
    "folder": (["--set", "lasher_dir=../nowhere"], r"drew 50 samples in vain.*nowhere"),
    "setting": (["--set", "TRAIN.EPOCHS=3"], r"TRAIN.EPOCHS: .* no such entry"),
    "name": (["--set", "lasher_dri=x"], r""),
    "blocks": (["--preset", "small-unet", "--blocks", "4"], r"multiple of 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_not_swallowed(checkout: Path, capfd: Any, name: str) -> None:
    options, message = REFUSED[name]
    torch.save({"net": torch.nn.Linear(2, 2).state_dict()}, "other.pth")
    code = main(train(*options))
    captured = capfd.readouterr()
    if name != "name":  # a folder that nobody asked for
        assert code != 0 and "Finished training!" not in captured.out
    lines = captured.err.replace("\n", " ")
    assert re.search(message, lines), captured.err


def test_a_training_needs_pretrained_weights(checkout: Path, capfd: Any) -> None:
    arguments = train()
    at = arguments.index("--weights")
    assert main([*arguments[:at], *arguments[at + 2 :]]) != 0
    assert "give its checkpoint: --weights FILE" in capfd.readouterr().err


def test_a_script_that_is_not_recognised(checkout: Path, capfd: Any) -> None:
    Path("nothing.py").write_text("print('ran')\n")
    assert main(["run", "nothing.py"]) == 0
    assert main(["run", "--fusion", "../fusion", "nothing.py"]) != 0
    captured = capfd.readouterr()
    assert captured.out.count("ran") == 2 and "no fusion was attached" in captured.err
    Path("other.py").write_text(
        "from torch import nn\nnet = nn.Linear(1, 1)\nnet.load_state_dict(net.state_dict())\n"
    )
    assert main(["run", "--fusion", "../fusion", "other.py"]) != 0
    assert "TBSIAdapter on Linear: no submodule" in capfd.readouterr().err
    Path("loop.py").write_text(
        "import torch\nnet = torch.nn.Linear(1, 1)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\noptimizer.step()\nprint('on')\n"
    )
    assert main(["run", "--train", "../trained", "loop.py"]) != 0
    captured = capfd.readouterr()
    assert "no fusion is attached" in captured.err and "on\n" not in captured.out


def test_an_error_that_the_script_prints_and_forgets(checkout: Path, capfd: Any) -> None:
    assert main(["run", "tracking/evaluate.py"]) != 0
    captured = capfd.readouterr()
    assert "Done" in captured.out and "car: RuntimeError: no such box" in captured.err


def test_exit_codes_and_bad_options(checkout: Path, capfd: Any) -> None:
    Path("exits.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    assert [main(["run", "exits.py", code]) for code in ("0", "7")] == [0, 7]
    assert main(["run", "none.py"]) == 2
    assert main(["run", "--weights", "x", "exits.py", "0"]) == 2
    assert main(["run", "--set", "TRAIN.EPOCH=1", "exits.py", "0"]) == 2
    err = capfd.readouterr().err
    for text in (
        "none.py is missing",
        "--weights goes with --train",
        "asked for --set TRAIN.EPOCH",
    ):
        assert text in err


@pytest.mark.parametrize(
    ("marks", "current"),
    [
        ([".git"], "."),
        ([".git", "tools/README.md"], ".."),
        ([".git", "../README.md"], ".."),
        ([".git"], "../elsewhere"),
        (["README.md"], "../elsewhere"),
        (["README.md", "tools/README.md"], "."),
        (["README.md"], ".."),
        (["README.md"], "tools"),
        (["README.md", "../.git"], "."),
        ([], "."),
    ],
)
def test_the_repository_that_a_script_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: list[str], current: str
) -> None:
    checkout = tmp_path / "Host"
    script = checkout / "tools" / "test.py"
    for path in (script, tmp_path / "elsewhere" / "x", *(checkout / mark for mark in marks)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(checkout / current)
    assert find_root(os.path.relpath(script)) == str(checkout)


def test_from_the_folder_above(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    (checkout / "README.md").touch()
    monkeypatch.chdir("..")
    options = ["--fusion", "fusion", "--path", f"{AUTHORS}/LasHeR=LasHeR"]
    assert main(["run", *options, f"{checkout.name}/workspace/test.py"]) == 0
    assert "one TinyTrack True (1, 4)" in capfd.readouterr().out


@pytest.mark.parametrize("before", [[], ["--"]])
def test_arguments_are_the_scripts_own(checkout: Path, capfd: Any, before: list[str]) -> None:
    Path("says.py").write_text("import sys\nprint(sys.argv)\n")
    own = ["--", "a", "--set", "--", "-h"]
    assert main(["run", *before, "says.py", *own]) == 0
    assert str(["says.py", *own]) in capfd.readouterr().out


def test_processes_and_threads_that_fail_in_silence(checkout: Path, capfd: Any) -> None:
    script = checkout / "fails.py"
    for start in ("multiprocessing.get_context('fork').Process", "threading.Thread"):
        script.write_text(
            "import multiprocessing, threading\n"
            "def fail(): raise ValueError('lost')\n"
            f"worker = {start}(target=fail)\n"
            "worker.start(); worker.join()\n"
        )
        assert main(["run", str(script)]) == 2
        assert "error: " in capfd.readouterr().err


def test_a_command_that_only_asks_may_fail(checkout: Path) -> None:
    script = checkout / "asks.py"
    script.write_text(
        "import os\nassert os.system('test -d nowhere')\nassert os.path.isabs(__file__)\n"
    )
    assert main(["run", str(script)]) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fusion", "../fuson"], "--fusion '../fuson' holds no config.json"),
        (["--fusion", "lib"], "holds no config.json"),
        (["--fusion", "../fusion", "--preset", "small"], "--preset goes with --train"),
        (["--train", "models/tiny.pth"], "is no folder"),
        (["--train", ""], "is no folder"),
        (["--train", "../new", "--weights", "none.pth"], "--weights none.pth is missing"),
    ],
)
def test_options_are_checked_first(
    checkout: Path, capfd: Any, options: list[str], expected: str
) -> None:
    script = checkout / "says.py"
    script.write_text("print('started')")
    assert main(["run", *options, str(script)]) == 2
    out, error = capfd.readouterr()
    assert expected in error and "started" not in out


@pytest.mark.parametrize(
    "options", ["--steps 0", "--calibrate -1", "--generative-weight nan", "--blocks 1.5"]
)
def test_numbers_of_the_options(checkout: Path, capfd: Any, options: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "--train", "../new", *options.split(), "script.py"])
    assert stop.value.code == 2 and "expected a" in capfd.readouterr().err


def test_a_checkpoint_calls_nothing_that_the_host_has_imported(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "lib" / "tools.py").write_text("from subprocess import Popen\n")

    class Evil:
        def __reduce__(self) -> Any:
            tools = importlib.import_module("lib.tools")
            return tools.Popen, (["touch", str(tmp_path / "called")],)

    evil, script = Evil(), checkout / "loads.py"
    torch.save({"net": evil}, checkout / "evil.pth")
    script.write_text(
        "import torch, lib.tools\ntry:\n    torch.load('evil.pth')\nexcept Exception: pass\n"
    )
    main(["run", str(script)])
    assert not (tmp_path / "called").exists()


def test_a_wrapped_tracker_gets_its_fusion_as_it_loads_its_weights(tmp_path: Path) -> None:
    network = WRAPPED.build()
    attach(network, WRAPPED.make_fusion(), WRAPPED.adapter()).save_pretrained(tmp_path / "fusion")
    expected, host, state = WRAPPED.run(network), WRAPPED.build(), WRAPPED.build().state_dict()
    with Patches() as patches:
        job = Job(str(tmp_path), str(tmp_path / "log"), fusion=str(tmp_path / "fusion"))
        watch_networks(job, patches)
        host.load_state_dict(state)
        assert Attachment.of(host).attached
    torch.testing.assert_close(WRAPPED.run(host), expected)  # optimised, where there is a GPU
