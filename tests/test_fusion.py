"""The fusion module: calibration, every shape and dtype it promises, noise, GAN, presets."""

from typing import Any

import pytest
import torch
from tiny_fusions import COMBINATIONS, NETWORKS, TINY, build, maps
from torch import nn

from gmmt_fusion import GenerativeFusion


@pytest.mark.parametrize("kernel", ["conv1x1", "conv3x3"])
@pytest.mark.parametrize("method", ["diffusion", "cgan", "raw"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_calibration_starts_at_the_host(kernel: str, method: str, prediction_type: str) -> None:
    """A host whose fusion is linear is met exactly, at any scale; a dead channel does no harm."""
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
    seen = []
    fusion.network.register_forward_pre_hook(lambda network, args: seen.append(args[0]))
    fusion.loss(features, fused)
    rgb, tir = seen[0][:, -16:].chunk(2, dim=1)  # the network sees them normalised
    tir = tir[:, [c for c in range(8) if c != 3]]
    mean, std = fusion.fused_mean[:, None, None], fusion.fused_std[:, None, None]
    for normalised in (rgb, tir, (fused - mean) / std):
        assert abs(float(normalised.std()) - 1) < 0.2


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


@pytest.mark.parametrize(("method", "network"), COMBINATIONS)
def test_buffers_may_be_written_before_the_backward(method: str, network: str) -> None:
    # as DistributedDataParallel does before each forward
    fusion = build(method=method, residual="conv1x1", **NETWORKS[network]).train()
    features = [x.requires_grad_() for x in maps()]
    total = fusion.loss(features, features[0]).loss + fusion(*features).sum()
    for buffer in fusion.buffers():
        buffer.mul_(1)
    total.backward()


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
