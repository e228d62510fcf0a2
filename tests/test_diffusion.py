"""The diffusion against plain references in float64, and its schedulers."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fusions import build, maps
from torch import Tensor

from gmmt_fusion import GenerativeFusion


def cosine_alphas_cumprod(steps: int = 1000) -> np.ndarray:
    """ᾱ of the cosine schedule (Nichol & Dhariwal 2021) in float64, β cut at 0.999."""

    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]
    return np.cumprod(1 - np.array(betas))


def test_eq_2_against_float64() -> None:
    """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) z; the network is a spy that keeps what it is given."""
    fusion, (features, x_0) = (
        build(residual=None, last_timestep_probability=0.0),
        (maps(), maps(1)[0]),
    )
    seen = {}

    def spy(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.update(x_t=x[:, :8], t=timesteps)
        return torch.zeros_like(x[:, :8])

    fusion.network.forward = spy
    loss = fusion.loss(features, x_0, generator=torch.Generator().manual_seed(2)).loss
    generator = torch.Generator().manual_seed(2)
    t = torch.randint(1000, (2,), generator=generator)
    torch.rand(2, generator=generator)
    z = torch.randn(x_0.shape, generator=generator)
    alpha = torch.from_numpy(cosine_alphas_cumprod())[t][:, None, None, None]
    assert torch.equal(seen["t"], t)
    torch.testing.assert_close(
        seen["x_t"].double(),
        alpha.sqrt() * x_0.double() + (1 - alpha).sqrt() * z.double(),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(loss.double(), x_0.double().square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_against_float64(steps: int, prediction_type: str) -> None:
    """Song et al. 2021, Eq. 12 with η = 0, trailing timesteps, in float64, the same network."""
    if prediction_type == "epsilon" and steps == 1:
        pytest.skip("one step of epsilon divides by √ᾱ_T = 5e-5: no float32 result can agree")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fusion = build(residual=None, prediction_type=prediction_type)
    features = maps()
    result, estimates = fusion.sample(features, steps=steps, return_intermediates=True)
    assert len(estimates) == steps and torch.equal(estimates[-1], result)

    double = build(residual=None, prediction_type=prediction_type, steps=2).double()
    alphas = cosine_alphas_cumprod()
    x = (
        torch.randn((1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
        .expand(2, -1, -1, -1)
        .double()
    )
    timesteps = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        alpha, next_alpha = alphas[t], alphas[following] if following >= 0 else 1.0
        with torch.no_grad():
            out = double.network(
                torch.cat([x, *(f.double() for f in features)], 1), torch.full((2,), int(t))
            )
        a, s = math.sqrt(alpha), math.sqrt(1 - alpha)
        x_0 = {"sample": out, "v_prediction": a * x - s * out, "epsilon": (x - s * out) / a}[
            prediction_type
        ]
        x = math.sqrt(next_alpha) * x_0 + math.sqrt(1 - next_alpha) * (x - a * x_0) / s
    scale = x.abs().max()
    # from t = T, epsilon loses √ᾱ_T in float32; 1e-5 relative holds where the problem itself is
    # well conditioned
    tolerance = 1e-3 if prediction_type == "epsilon" else 1e-5
    assert (result.double() - x).abs().max() / scale < tolerance


def test_eq_3_is_ddim_with_eta_1() -> None:
    """The mean and variance of Eq. 3, in float64, from t to t − 1 with the true noise predicted."""
    fusion = build()
    scheduler = type(fusion.method.scheduler).from_config(
        fusion.method.scheduler.config, prediction_type="epsilon"
    )
    scheduler.set_timesteps(1000)
    alphas_cumprod = cosine_alphas_cumprod()
    x_t, noise = maps(2, (1, 4, 4, 4))
    for t in (3, 200, 700):
        bar, previous = alphas_cumprod[t], alphas_cumprod[t - 1]
        alpha, beta = bar / previous, 1 - bar / previous
        x_0 = (x_t.double() - math.sqrt(1 - bar) * noise.double()) / math.sqrt(bar)
        mean = (
            math.sqrt(alpha) * (1 - previous) * x_t.double() + math.sqrt(previous) * beta * x_0
        ) / (1 - bar)
        deviation = math.sqrt((1 - previous) / (1 - bar) * beta)
        zero = torch.zeros_like(x_t)
        step = scheduler.step(noise, t, x_t, eta=1.0, variance_noise=zero).prev_sample
        spread = scheduler.step(noise, t, x_t, eta=1.0, variance_noise=zero + 1).prev_sample - step
        torch.testing.assert_close(step.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            spread.double(), torch.full_like(mean, deviation), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("weighting", ["x_0", "noise", "min_snr"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "epsilon"])
def test_weighting_means_the_same_for_every_prediction_type(
    weighting: str, prediction_type: str
) -> None:
    """Whatever the network predicts, the loss is weight(t) · |x_0 − x̂_0|², here in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fusion = build(
            prediction_type=prediction_type, weighting=weighting, last_timestep_probability=0.0
        )
    method = fusion.method
    x_0, estimate = maps(2, (64, 1, 1, 1))
    t = torch.arange(0, 960, 15)
    alpha = torch.from_numpy(cosine_alphas_cumprod())[t][:, None, None, None]
    signal, noise = method.signal_and_noise(t)
    x_t = signal * x_0 + noise
    error = method.to_prediction(estimate, x_t, t) - method.to_prediction(x_0, x_t, t)
    snr = alpha / (1 - alpha)
    weight = {"x_0": torch.ones_like(snr), "noise": snr, "min_snr": snr.clamp(max=5)}[weighting]
    expected = weight * (x_0.double() - estimate.double()).square()
    torch.testing.assert_close(
        (method.loss_weight(t) * error.square()).double(), expected, rtol=2e-2, atol=1e-6
    )
    there_and_back = method.to_x_0(method.to_prediction(estimate, x_t, t), x_t, t)
    torch.testing.assert_close(there_and_back, estimate, rtol=1e-2, atol=1e-2)


def test_other_schedulers() -> None:
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    for cls in (DDPMScheduler, DPMSolverMultistepScheduler):
        scheduler = cls(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            timestep_spacing="trailing",
            **({"clip_sample": False} if cls is DDPMScheduler else {}),
        )
        fusion = build(scheduler=scheduler, steps=5)
        assert torch.isfinite(fusion(*maps())).all()
        copied = GenerativeFusion(**vars(fusion.config))
        assert type(copied.method.scheduler) is cls


def test_a_given_scheduler_keeps_its_settings_and_its_prediction_type() -> None:
    from diffusers import DDIMScheduler

    fusion = build(
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=True), residual=None
    )
    assert fusion.config.prediction_type == "v_prediction"
    assert fusion(*maps()).abs().max() <= 1  # clipped, in one step as in several
    with pytest.raises(ValueError, match="flow_prediction"):
        build(scheduler=DDIMScheduler(prediction_type="flow_prediction"))


def test_a_schedulers_config_may_say_only_what_differs() -> None:
    fusion = build(scheduler={"beta_schedule": "linear"})
    config = fusion.method.scheduler.config
    assert (
        config.beta_schedule == "linear"
        and not config.clip_sample
        and config.timestep_spacing == "trailing"
    )
    assert fusion.method.is_one_pass(1)


@pytest.mark.parametrize(
    ("settings", "steps", "message"),
    [
        ({}, 1, "starts from pure noise at t = 0 of 1000 with steps=1"),
        ({"timestep_spacing": "trailing"}, 1, "clips its estimates"),
        ({"clip_sample": False}, 20, None),
        ({"clip_sample": False, "timestep_spacing": "trailing"}, 1, None),
    ],
)
def test_a_scheduler_that_spoils_maps_is_told(
    settings: dict[str, Any], steps: int, message: str | None
) -> None:
    from diffusers import DDIMScheduler

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(scheduler=DDIMScheduler(prediction_type="sample", **settings), steps=steps)
    told = [str(warning.message) for warning in caught if "the scheduler" in str(warning.message)]
    assert any(message in text for text in told) if message else not told
