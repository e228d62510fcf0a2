"""What a fusion refuses, by name: bad maps, bad calls, bad options."""

from typing import Any

import pytest
import torch
from tiny_fusions import build, maps

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.checks import check_finite


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (maps(1), ValueError, "got 1 feature maps; expected 2"),
        (maps(3), ValueError, "got 3 feature maps; expected 2"),
        (maps()[0], ValueError, "got 1 feature maps"),
        ([maps()[0], None], TypeError, r"features\[1\] is a NoneType"),
        ([maps()[0], maps()[0].numpy()], TypeError, r"features\[1\] is a ndarray"),
        ([maps()[0], maps()[0].int()], TypeError, r"features\[1\] has dtype torch.int32"),
        ([maps()[0], maps()[0][0]], ValueError, r"features\[1\] has shape \(8, 8, 8\)"),
        (
            [maps()[0], maps()[0][:1]],
            ValueError,
            r"features\[1\] has shape \(1, 8, 8, 8\); expected \(2, 8, 8, 8\)",
        ),
        (maps(2, (2, 4, 8, 8)), ValueError, r"expected \(B, 8, H, W\)"),
        (maps(2, (2, 8, 0, 8)), ValueError, r"has shape \(2, 8, 0, 8\)"),
    ],
    ids=[
        "one",
        "three",
        "a tensor",
        "none",
        "numpy",
        "integers",
        "rank",
        "batch",
        "channels",
        "empty",
    ],
)
def test_bad_features(features: Any, error: type[Exception], message: str) -> None:
    fusion = build()
    with pytest.raises(error, match=message):
        fusion.sample(features)
    with pytest.raises(error, match=message):
        fusion.loss(features, maps()[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f: f.sample(maps(), steps=0),
            "steps=0 .* from 1 to 1000",
        ),
        (lambda f: f.sample(maps(), steps=1001), "steps=1001"),
        (lambda f: f.sample(maps(), steps=1.5), "steps=1.5"),
        (lambda f: f.sample(maps(), num_samples=0), "num_samples=0"),
        (lambda f: f.loss(maps(), maps()[0][:1]), "fused has shape"),
        (lambda f: f.loss(maps(), maps()[0] / 0), "fused holds NaN or infinity"),
        (
            lambda f: f.loss([maps()[0], maps()[0] * torch.nan], maps()[0]),
            r"features\[1\] holds NaN",
        ),
        (lambda f: f.discriminator_loss(maps(), maps()[0]), "has no discriminator"),
        (lambda f: f.calibrate([]), "no batches"),
        (lambda f: f.calibrate([(maps(1), maps()[0])]), "got 1 feature maps"),
        (
            lambda f: build(method="cgan").loss(maps(2, (1, 8, 7, 7)), maps(1, (1, 8, 7, 7))[0]),
            "built for maps of size",
        ),
    ],
    ids=[
        "no steps",
        "too many steps",
        "steps and a half",
        "no samples",
        "batch of fused",
        "fused not finite",
        "features not finite",
        "no discriminator",
        "no batches",
        "one map to calibrate",
        "another size",
    ],
)
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(build())


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite(number: float, dtype: torch.dtype) -> None:
    x = torch.full((2, 3, 5, 7), torch.finfo(dtype).max, dtype=dtype)
    check_finite([x, -x, x[:0]], x)
    for place in range(0, x.numel(), 19):
        bad = x.clone()
        bad.view(-1)[place] = number
        with pytest.raises(ValueError, match=r"features\[1\] holds NaN or infinity"):
            check_finite([x, bad], x)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 1.5},
        {"modalities": 0},
        {"size": 0},
        {"size": (8,)},
        {"method": "gan"},
        {"network": "transformer"},
        {"residual": "second"},
        {"prediction_type": "x0"},
        {"weighting": "snr"},
        {"last_timestep_probability": 1.5},
        {"eta": -1.0},
        {"steps": 0},
        {"network_config": {"layers": 3}},
        {"network_config": {"width": 30, "heads": 4}},
        {"network_config": {"depth": 0}},
        {"method": "raw", "steps": 5},
        {"size": None},
        {"size": "16"},
        {"size": 16.0},
        {"scheduler": {"_class_name": "NoScheduler"}},
        {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}},
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any]) -> None:
    name = "size" if options.get("size") == (8,) else next(n for n in reversed(options))
    with pytest.raises(
        ValueError, match=name if name not in ("network_config",) else "network_config|width|depth"
    ):
        GenerativeFusion(**{"channels": 8, **options})


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="paper-uvit"):
        GenerativeFusion.preset("large", 768)
