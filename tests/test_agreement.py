"""What says whether two files or two networks are the same: their hashes, and one comparison."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from gmmt_fusion.files import differences, file_digest
from gmmt_fusion.model.checkpoint import weights_digest

DIGEST = hashlib.sha256(b"").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        pytest.param({"a": 1}, {"a": 1}, "", id="equal"),
        pytest.param({"a": 1, "b": 2}, {"b": 2, "a": 1}, "", id="other order"),
        pytest.param({"a": 1}, {"a": "1"}, "a is 1 there and '1' here", id="value"),
        pytest.param({"a": 1}, {}, "a is 1 there and None here", id="lacking here"),
        pytest.param({}, {"a": 1}, "a is None there and 1 here", id="lacking there"),
        pytest.param(
            {"a": {"b": {"c": 1}}, "d": 2},
            {"a": {"b": {"c": 3}}, "d": 4},
            "a.b.c is 1 there and 3 here; d is 2 there and 4 here",
            id="nested",
        ),
        pytest.param(
            {"a": DIGEST},
            {"a": OTHER},
            f"a is {DIGEST[:12]} there and {OTHER[:12]} here",
            id="hash",
        ),
    ],
)
def test_differences_are_named(there, here, expected):
    assert differences(there, here) == expected


def test_digest_is_of_names_dtypes_shapes_and_bytes():
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(2), "none": torch.zeros(0)}
    expected = hashlib.sha256()
    for name in sorted(state):
        text = f"{name} {state[name].dtype} {tuple(state[name].shape)}"
        expected.update(text.encode() + state[name].numpy().tobytes())
    assert weights_digest(state) == expected.hexdigest()


def test_digest_is_of_what_the_state_holds_and_not_how():
    state = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).bfloat16()}
    digest = weights_digest(state)
    turned = {
        "b": state["b"].t().contiguous().t(),
        "a": nn.Parameter(state["a"]),
        "extra": {"x": 1},
    }
    assert weights_digest(turned) == digest


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: {"a": a + 1}, id="value"),
        pytest.param(lambda a: {"b": a}, id="name"),
        pytest.param(lambda a: {"a": a.reshape(3, 2)}, id="shape"),
        pytest.param(lambda a: {"a": a.half()}, id="dtype"),
        pytest.param(lambda a: {"a": a, "b": a}, id="more"),
    ],
)
def test_digest_tells_changes(change):
    state = torch.arange(6.0).reshape(2, 3)
    assert weights_digest(change(state)) != weights_digest({"a": state})


def test_digest_of_a_file(tmp_path: Path):
    content = bytes(range(256)) * (1 << 13)  # of more than one block
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
