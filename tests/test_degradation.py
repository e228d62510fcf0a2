"""Degraded search images in training: the features are of them, the targets of the clean ones."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from tiny_hosts import SumTracker
from training_data import labels
from trees import leaves

from gmmt_fusion import Attachment, attach
from gmmt_fusion.training import CachedFeatures, Degradation, cache_features

WITH_TWO_MODALITIES = [
    case for case in CASES if case.fusion.get("modalities", 2) == 2 and not case.staged
]


def attached(case: Case) -> Attachment:
    handle = attach(
        case.build(), case.make_fusion(method="raw"), case.adapter()
    )  # whose loss has no noise in it
    handle.network.train()
    return handle


@pytest.mark.parametrize("case", WITH_TWO_MODALITIES, ids=lambda case: case.name)
def test_features_are_degraded_and_targets_clean(case: Case) -> None:
    handle = attached(case)
    torch.manual_seed(0)  # for hosts that draw masks
    with handle.recorded() as clean:
        case.train(handle.network)
    handle.degradation = Degradation(1.0)
    torch.manual_seed(0)
    with handle.recorded() as degraded:
        case.train(handle.network)
    assert len(degraded) == len(clean) > 0
    for (features, fused), (clean_features, clean_fused) in zip(degraded, clean, strict=True):
        assert torch.equal(fused, clean_fused)
        assert any(not torch.equal(f, g) for f, g in zip(features, clean_features, strict=True))

    losses = []
    for degradation in (Degradation(1.0), None, None):
        handle.degradation = degradation
        handle.fusion.manual_seed(0)
        torch.manual_seed(0)
        case.train(handle.network)
        assert handle.generative_loss is not None and handle.generative_loss.requires_grad
        losses.append(handle.generative_loss.item())
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize("case", WITH_TWO_MODALITIES, ids=lambda case: case.name)
def test_inference_and_random_numbers_are_untouched(case: Case) -> None:
    host = case.build()
    torch.manual_seed(0)
    case.train(host)  # there are hosts that draw masks
    expected = torch.get_rng_state()
    handle = attached(case)
    handle.network.eval()
    before = case.run(handle.network)
    handle.degradation = Degradation()
    torch.manual_seed(0)
    assert torch.equal(case.run(handle.network), before)
    handle.network.train()
    case.train(handle.network)
    assert torch.equal(torch.get_rng_state(), expected)
    for copied in (copy.deepcopy(handle.network), pickle.loads(pickle.dumps(handle.network))):
        assert (
            repr(Attachment.of(copied).degradation)
            == repr(Degradation())
            != repr(Degradation(0.5, ["dark"]))
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16], ids=str)
def test_one_modality_of_a_sample_is_degraded_within_its_range(dtype: torch.dtype) -> None:
    images = [
        (255 * torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(i))).to(dtype)
        for i in (0, 1)
    ]

    def corrupt(probability: float) -> list[torch.Tensor]:
        return Degradation(probability).corrupt(images, torch.Generator().manual_seed(3))

    assert all(torch.equal(x, y) for x, y in zip(corrupt(0.0), images, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(corrupt(1.0), corrupt(1.0), strict=True))
    degraded = corrupt(1.0)
    differ = torch.stack(
        [(x != y).flatten(1).any(1) for x, y in zip(degraded, images, strict=True)]
    )
    assert (differ.sum(0) == 1).all() and differ.any(1).all()
    for x, y in zip(degraded, images, strict=True):
        assert x.dtype == dtype and x.amin() >= y.amin() and x.amax() <= y.amax()
    assert (
        0
        < torch.stack(
            [(x != y).flatten(1).any(1) for x, y in zip(corrupt(0.5), images, strict=True)]
        ).sum()
        < 16
    )


@pytest.mark.parametrize(
    ("kinds", "contrast"),
    [(("missing",), (0.0, 0.1)), (["noisy", "blurred"], (0.1, 2.0))],
    ids=["missing", "noisy or blurred"],
)
def test_kinds(kinds: Sequence[str], contrast: tuple[float, float]) -> None:
    images = [torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    degraded = Degradation(1.0, kinds).corrupt(images, torch.Generator().manual_seed(3))
    differ = [(x != y).flatten(1).any(1) for x, y in zip(degraded, images, strict=True)]
    assert (differ[0] != differ[1]).all()
    for x, y, items in zip(degraded, images, differ, strict=True):
        ratio = x[items].flatten(1).std(1) / y[items].flatten(1).std(1)
        assert (ratio > contrast[0]).all() and (ratio < contrast[1]).all()


@pytest.mark.parametrize(
    ("inputs", "degraded"),
    [
        ((torch.rand(2, 6, 4, 4), torch.rand(2, 6, 8, 8)), [1]),
        (
            {"template": [torch.rand(2, 3, 4, 4)] * 2, "search": [torch.rand(2, 3, 8, 8)] * 2},
            [2, 3],
        ),
        (
            (
                {
                    "search": torch.rand(2, 6, 8, 8),
                    "template": torch.rand(2, 6, 4, 4),
                    "labels": torch.rand(2, 4, 9, 9),
                },
            ),
            [0],
        ),
    ],
    ids=["tensors", "lists", "a batch"],
)
def test_the_search_images_are_found(inputs: object, degraded: list[int]) -> None:
    after = Degradation(1.0)(inputs, 2, torch.Generator().manual_seed(0))
    pairs = zip(leaves(inputs), leaves(after), strict=True)
    changed = [i for i, (x, y) in enumerate(pairs) if not torch.equal(x, y)]
    assert set(changed) <= set(degraded) and changed


class NormAgain(SumTracker):
    """Uses a module that its adapter steps in for once more, after the head."""

    def forward(self, template: torch.Tensor, search: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().forward(template, search)
        self.norm(out["scores"].new_zeros(1, 1, self.norm.normalized_shape[0]))
        return out


def test_nothing_is_left_of_the_clean_pass() -> None:
    case = next(case for case in CASES if case.name == "sum")
    handle = attach(NormAgain(), case.make_fusion(), case.adapter())
    handle.degradation = Degradation(1.0)
    handle.network.train()
    for _ in range(2):
        case.train(handle.network)
    assert handle.generative_loss is not None

    def fail(inputs: Any, modalities: int, generator: torch.Generator) -> Any:
        raise RuntimeError("as a user's may")

    handle.degradation = fail
    with pytest.raises(RuntimeError, match="as a user's may"):
        case.train(handle.network)
    handle.degradation = None
    assert "generative_loss" in case.train(handle.network)
    handle.network.eval()
    with handle.disabled():
        expected = case.run(handle.network)
    handle.detach()
    assert torch.equal(case.run(handle.network), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.staged], ids=lambda case: case.name)
def test_a_forward_in_stages_is_refused(case: Case) -> None:
    handle = attached(case)
    handle.degradation = Degradation(1.0)
    with pytest.raises(ValueError, match=r"called in stages|inputs hold search images of"):
        case.train(handle.network)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="9 channels; expected 2 modalities of 3"):
        Degradation()([torch.rand(1, 3, 8, 8)] * 3, 2, torch.Generator())
    with pytest.raises(ValueError, match="0 channels"):
        Degradation()(torch.rand(1, 4, 8, 8), 2, torch.Generator())
    with pytest.raises(ValueError, match=r"probability=1\.5"):
        Degradation(1.5)
    for kinds in ("missing", (), ("foggy",), ("dark", "foggy")):
        with pytest.raises(ValueError, match=r"kinds=.*'dark', 'low contrast'"):
            Degradation(kinds=kinds)
    with pytest.raises(TypeError, match="degradation='dark'"):
        attached(WITH_TWO_MODALITIES[0]).degradation = "dark"


@pytest.mark.parametrize(
    "case",
    [c for c in WITH_TWO_MODALITIES if c.fusions == 1 and not c.apart],
    ids=lambda case: case.name,
)
def test_a_cache_holds_degraded_features_and_clean_targets(case: Case, tmp_path: Path) -> None:
    handle = attached(case)

    def cache(name: str, degradation: Degradation | None, **options: Any) -> CachedFeatures:
        handle.degradation = degradation
        return cache_features(
            handle,
            labels(),
            tmp_path / name,
            progress=False,
            shard_size=2,
            forward=lambda network, _: case.train(network),
            **options,
        )

    clean, degraded, again = (
        cache("clean", None),
        cache("degraded", Degradation(1.0)),
        cache("again", Degradation(1.0)),
    )
    for i in range(len(clean)):
        assert torch.equal(clean[i]["fused"], degraded[i]["fused"])
        assert not all(
            torch.equal(clean[i][name], degraded[i][name]) for name in ("feature_0", "feature_1")
        )
        assert all(torch.equal(degraded[i][name], again[i][name]) for name in degraded[i])
    with pytest.raises(
        ValueError, match=r"degradation is .*probability=1\.0.* there and None here"
    ):
        cache("degraded", None)
    handle.degradation = Degradation(0.5)
    with pytest.raises(ValueError, match=r"degradation None, and the attachment has Degradation"):
        clean.network(handle)
    handle.degradation = None
    clean.network(handle)
