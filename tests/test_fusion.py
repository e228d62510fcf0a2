"""The fusion module: its numbers against plain references, every shape it promises, and its
errors.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion

TINY: dict[str, Any] = {"network_config": {"width": 16, "heads": 2}}
NETWORKS = {
    "uvit": TINY,
    "unet": {"network": "unet", "network_config": {"widths": (8, 16, 24), "depth": 1}},
}
COMBINATIONS = [
    (method, network) for method in ("diffusion", "cgan", "raw") for network in NETWORKS
]


def build(channels: int = 8, seed: int = 0, **options: Any) -> GenerativeFusion:
    """A small fusion whose network's last layer is not at zero."""
    torch.manual_seed(seed)
    fusion = GenerativeFusion(channels, **{"size": 8, **TINY, **options}).eval()
    for parameter in fusion.network.last_layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return fusion


def maps(
    modalities: int = 2, shape: tuple[int, ...] = (2, 8, 8, 8), dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [(2 * torch.randn(shape, generator=generator) + 1).to(dtype) for _ in range(modalities)]


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
    """Song et al. 2021, Eq. 12 with η = 0, trailing timesteps, written out in float64 around the
    same network.
    """
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
    """The mean and variance of Eq. 3, in float64, for a step from t to t − 1 with the true noise as
    prediction.
    """
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
    """Whatever the network predicts, the loss is weight(t) · |x_0 − x̂_0|², computed here in
    float64.
    """
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


@pytest.mark.parametrize("kernel", ["conv1x1", "conv3x3"])
@pytest.mark.parametrize("method", ["diffusion", "cgan", "raw"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_calibration_starts_at_the_host(kernel: str, method: str, prediction_type: str) -> None:
    """A host whose fusion is linear is met exactly, whatever its channels' scales; a dead channel
    does no harm.
    """
    torch.manual_seed(1)
    size = int(kernel[4])
    host = nn.Conv2d(16, 8, size, padding=size // 2, padding_mode="zeros", bias=False)
    scale = torch.logspace(-2, 3, 8)[:, None, None]
    batches = []
    for _ in range(6):
        features = [torch.randn(4, 8, 8, 8) * scale, torch.randn(4, 8, 8, 8)]
        features[1][:, 3] = 0.0
        with torch.no_grad():
            batches.append((features, host(torch.cat(features, 1) / torch.cat([scale, scale]))))
    fusion = build(residual=kernel, method=method, prediction_type=prediction_type)
    unexplained = fusion.calibrate(iter(batches))
    features, fused = batches[0]
    assert unexplained < 1e-3
    for output in (fusion(*features), fusion.loss(features, fused).fused):
        assert (output - fused).square().mean() / fused.var() < 1e-3
    normalised, x_0, _ = fusion._training_inputs(features, fused)
    live = [c for c in range(8) if c != 3]
    assert (
        abs(float(torch.cat(normalised)[:, live].std()) - 1) < 0.2
        and abs(float(x_0.std()) - 1) < 0.2
    )


def test_paper_start_is_the_first_modality() -> None:
    fusion = build(residual="first")
    nn.init.zeros_(fusion.network.last_layer.weight)
    nn.init.zeros_(fusion.network.last_layer.bias)
    features = maps()
    torch.testing.assert_close(fusion(*features), features[0])


@pytest.mark.parametrize(("method", "network"), COMBINATIONS)
@pytest.mark.parametrize("size", [(31, 31), (25, 25), (16, 16), (8, 8), (5, 13), (1, 1)])
def test_any_map_size(method: str, network: str, size: tuple[int, int]) -> None:
    fusion = build(**NETWORKS[network], method=method, size=size)
    features = maps(2, (2, 8, *size))
    assert fusion(*features).shape == (2, 8, *size)
    output = fusion.loss(features, features[0])
    (output.loss + output.fused.mean()).backward()
    assert output.fused.shape == (2, 8, *size) and torch.isfinite(output.loss)
    other = maps(2, (1, 8, size[0] + 3, size[1] + 2))
    assert fusion(*other).shape == other[0].shape  # positions are interpolated


@pytest.mark.parametrize(("method", "network"), COMBINATIONS)
@pytest.mark.parametrize("modalities", [1, 3])
def test_any_number_of_modalities(method: str, network: str, modalities: int) -> None:
    fusion, features = (
        build(**NETWORKS[network], method=method, modalities=modalities),
        maps(modalities),
    )
    assert fusion(*features).shape == features[0].shape
    fusion.loss(features, features[0]).loss.backward()


@pytest.mark.parametrize(("method", "network"), COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(method: str, network: str, dtype: torch.dtype) -> None:
    fusion = build(**NETWORKS[network], method=method)
    expected = fusion(*maps())
    for module, features in ((fusion, maps(dtype=dtype)), (fusion.to(dtype), maps(dtype=dtype))):
        output = module(*features)
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected.double(), rtol=0.1, atol=0.2)
    assert fusion(maps()[0], maps(dtype=dtype)[1]).dtype == torch.promote_types(
        torch.float32, dtype
    )
    loss = fusion.loss(maps(dtype=dtype), maps(dtype=dtype)[0])
    assert loss.fused.dtype == dtype and torch.isfinite(loss.loss)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_is_sampled_as_its_items_are(steps: int, eta: float) -> None:
    fusion, features = build(steps=steps, eta=eta), maps()
    if eta == 0:
        one_by_one = torch.cat([fusion(*(f[i : i + 1] for f in features)) for i in range(2)])
        torch.testing.assert_close(fusion(*features), one_by_one, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        fusion(*features), fusion(*features)
    )  # fixed noise: the same frame, the same boxes


def test_noise_and_seeds() -> None:
    fusion, features = build(), maps()
    seeded = [
        fusion.sample(features, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    several = fusion.sample(features, num_samples=3, steps=2)
    assert several.shape == (3, 2, 8, 8, 8) and not torch.allclose(several[0], several[1])
    random = build(fixed_noise=False)
    assert not torch.equal(random(*features), random(*features))
    again = build(fixed_noise=False)
    random.manual_seed(4), again.manual_seed(4)
    assert torch.equal(random(*features), again(*features))
    losses = [fusion.manual_seed(s).loss(features, features[0]).loss for s in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


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


def test_another_default_device() -> None:
    with torch.device("meta"):
        fusion = build()
    assert {x.device.type for x in (*fusion.parameters(), *fusion.buffers())} == {"meta"}


def _answer(fusion: GenerativeFusion, queue: Any) -> None:
    queue.put(fusion(*maps()).sum().item())


def test_another_process_gets_a_fusion() -> None:
    fusion, context = build(), torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(fusion, queue))
    process.start()
    assert queue.get(timeout=120) == pytest.approx(fusion(*maps()).sum().item())
    process.join()


def test_discriminator_and_generator_learn_in_turn() -> None:
    fusion, features = build(method="cgan").train(), maps()
    before = {k: v.clone() for k, v in fusion.discriminator.state_dict().items()}
    fusion.loss(features, features[0]).loss.backward()
    assert all(p.grad is None for p in fusion.discriminator.parameters())
    assert all(torch.equal(before[k], v) for k, v in fusion.discriminator.state_dict().items())
    assert any(p.grad is not None for p in fusion.network.parameters())
    fusion.zero_grad()
    fusion.discriminator_loss(features, features[0]).backward()
    assert all(p.grad is not None for p in fusion.discriminator.parameters())
    assert all(p.grad is None for p in fusion.trainable_parameters())
    ids = {id(p) for p in fusion.trainable_parameters()}
    assert not ids & {id(p) for p in fusion.discriminator.parameters()}


@pytest.mark.parametrize("size", [2, 4, 8, 12, 16, 25, 31, (10, 7)])
def test_discriminator_sees_every_position(size: Any) -> None:
    fusion = build(method="cgan", size=size)
    x = torch.randn(8, 24, *fusion.size, requires_grad=True)
    fusion.discriminator.train()(x).square().sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()


def test_discriminator_is_the_papers_for_31() -> None:
    fusion = GenerativeFusion(256, size=31, method="cgan", **TINY)
    widths = [m.out_channels for m in fusion.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [256, 64, 16, 1]


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
            "steps=0 is out of range; expected a whole number from 1 to 1000",
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
    ids=str,
)
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(build())


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


def test_presets_are_as_documented() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name, parameters, flop in (
        ("small", 8.1e6, 4.1e9),
        ("small-unet", 19.0e6, 3.96e9),
        ("paper-uvit", 64.1e6, 32.7e9),
    ):
        fusion = GenerativeFusion.preset(name, 768)
        assert sum(p.numel() for p in fusion.parameters()) == pytest.approx(parameters, rel=0.01)
        with FlopCounterMode(display=False) as counter:
            fusion(*maps(2, (1, 768, 16, 16)))
        assert counter.get_total_flops() == pytest.approx(flop, rel=0.01)
    with torch.device("meta"):
        from gmmt_fusion.model.networks import UNet

        unet = UNet(3 * 768, 768, (16, 16), widths=(768, 1152, 1536), depth=3)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(979e6, rel=0.01)
