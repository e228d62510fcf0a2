"""`save_pretrained` and `from_pretrained`: to the bit, atomic, and clear about damage."""

import json
import os
from typing import Any

import pytest
import torch
from tiny_fusions import COMBINATIONS, NETWORKS, build, maps
from torch import nn

from gmmt_fusion import GenerativeFusion


@pytest.mark.parametrize(("method", "network"), COMBINATIONS)
def test_save_and_load_is_bit_identical(tmp_path: Any, method: str, network: str) -> None:
    fusion, features = (
        build(**NETWORKS[network], method=method, size=(8, 6), steps=1),
        maps(2, (1, 8, 8, 6)),
    )
    fusion.calibrate([(features, features[0])])
    nn.init.normal_(fusion.network.last_layer.weight)
    fusion.save_pretrained(tmp_path / "fusion")
    loaded = GenerativeFusion.from_pretrained(str(tmp_path / "fusion"))
    assert torch.equal(loaded.eval()(*features), fusion(*features)) and loaded.size == fusion.size
    assert sorted(p.name for p in (tmp_path / "fusion").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "fusion/config.json").read_text())["_version"]


def test_what_is_set_later_is_saved(tmp_path: Any) -> None:
    fusion = build()
    fusion.steps, fusion.fixed_noise = 5, False
    fusion.save_pretrained(tmp_path)
    loaded = GenerativeFusion.from_pretrained(tmp_path)
    assert (loaded.steps, loaded.fixed_noise) == (5, False)
    with pytest.raises(ValueError, match="steps=0"):
        fusion.steps = 0


def test_saving_is_atomic(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = build()
    fusion.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        build(seed=1).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def edit(folder: Any, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in {**config, **changes}.items() if v is not None})
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-50]
            ),
            "cut off",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"hello"), "cut off or not safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: edit(f, _class_name="UNet2DModel"), "not the config of a GenerativeFusion"),
        (lambda f: edit(f, channels=4), "channels is 4 there and 8 here"),
        (lambda f: edit(f, residual="first"), "residual is 'first' there"),
        (lambda f: edit(f, channels=None), "'channels'"),
        (lambda f: edit(f, network="mamba"), "network='mamba' is unknown"),
    ],
    ids=[
        "truncated",
        "foreign",
        "no weights",
        "no config",
        "broken json",
        "other class",
        "other channels",
        "other residual",
        "no channels",
        "other network",
    ],
)
def test_bad_checkpoints(tmp_path: Any, damage: Any, message: str) -> None:
    build().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(OSError, match=message):
        GenerativeFusion.from_pretrained(tmp_path)


def test_config_of_a_newer_version_warns(tmp_path: Any) -> None:
    build().save_pretrained(tmp_path)
    edit(tmp_path, _version="99.0", hyperdrive=True)
    with pytest.warns(UserWarning, match=r"99\.0.*hyperdrive"):
        GenerativeFusion.from_pretrained(tmp_path)


def test_missing_folder() -> None:
    for name in ("nobody/no-such-fusion", "./runs/none", "/nowhere/at/all"):
        with pytest.raises(OSError, match=r"neither a folder|missing"):
            GenerativeFusion.from_pretrained(name)
