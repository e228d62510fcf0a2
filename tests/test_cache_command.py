"""The command `cache`: features of a user's tracker, written, gone on with and checked."""

from pathlib import Path
from typing import Any

import pytest
from caches import CONCAT
from training_data import attached, labels

from gmmt_fusion.cli import main
from gmmt_fusion.training import CachedFeatures


def arguments() -> dict[str, Any]:
    return {
        "attachment": attached(CONCAT),
        "loader": labels(),
        "forward": lambda network, _: CONCAT.train(network),
        "targets": lambda batch: {"label": batch["label"]},
    }


def nothing() -> None: ...


def run(folder: Path, *more: str) -> int:
    return main(["cache", str(folder), *more])


def test_a_cache_is_written_and_checked(tmp_path: Path, capsys: Any) -> None:
    folder, of = tmp_path / "cache", ("--of", "test_cache_command:arguments")
    assert run(folder, *of, "--passes", "2", "--dtype", "float16") == 0
    assert "ConcatTracker" in capsys.readouterr().out
    cache = CachedFeatures(folder)
    assert len(cache) == 2 * len(labels().dataset) and cache.manifest["dtype"] == "float16"
    assert run(folder) == 0
    assert f"is whole: {len(cache)} samples" in capsys.readouterr().out
    shard = folder / cache.manifest["shards"][0]["file"]
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert run(folder) == 2
    assert "sha256 differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "expected a folder written by cache_features"),
        (["--of", "test_cache_command:nothing"], "NoneType; expected (attachment, loader)"),
        (["--of", "test_cache_command"], "expected module:function"),
        (["--of", "test_cache_command:arguments", "--dtype", "int8"], "dtype='int8'"),
        (["--of", "test_cache_command:arguments", "--device", "tpu"], "'tpu'"),
    ],
)
def test_the_command_refuses(tmp_path: Path, capsys: Any, more: list[str], words: str) -> None:
    assert run(tmp_path / "cache", *more) == 2
    assert words in capsys.readouterr().err
