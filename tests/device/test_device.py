"""All that the library does, on a device that is not the CPU, which it is not waited for."""

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from cases import CASES, Case, scores_in
from threads import run_in_threads
from tiny_fusions import COMBINATIONS, NETWORKS, build, maps
from torch import Tensor, nn
from training_data import Loss, labels

from gmmt_fusion import Attachment, GenerativeFusion, attach
from gmmt_fusion.model.fast_path import optimize
from gmmt_fusion.training import Degradation, cache_features, fine_tune

CONCAT = CASES[0]
SIAMESE = CASES[2]
TWO = [c for c in CASES if c.fusion.get("modalities", 2) == 2 and not c.staged]
SCHEDULERS = [name for name in sorted(dir(diffusers)) if name.endswith("Scheduler")]
QUIET: dict[str, Any] = {"progress": False}


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.detach().cpu(), other.detach().cpu(), rtol=1e-3, atol=1e-4)


def attached(case: Case, device: torch.device, **options: Any) -> Attachment:
    return attach(case.build().to(device), case.make_fusion(**options), case.adapter())


def expected(case: Case, **options: Any) -> Tensor:
    """What the CPU computes."""
    network = case.build()
    attach(network, case.make_fusion(**options), case.adapter())
    with torch.no_grad():
        return case.run(network)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attached(case: Case, device: torch.device) -> None:
    handle = attached(case, device)
    with torch.no_grad():
        out = case.run(handle.network)
        assert out.device.type == device.type and near(out, expected(case))
        with handle.disabled():
            assert near(case.run(handle.network), case.run(case.build()))
    handle.detach()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_moved_after_attach(case: Case, device: torch.device) -> None:
    network = case.build()
    attach(network, case.make_fusion(), case.adapter())
    with torch.no_grad():
        case.run(network)
        network.to(device)
        assert near(case.run(network), expected(case))
        assert near(case.run(copy.deepcopy(network)), expected(case))
        network.to("cpu")
        assert near(case.run(network), expected(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_frame_does_not_wait(case: Case, device: torch.device, waits: Counter[str]) -> None:
    host, handle = case.build().to(device), attached(case, device)
    with torch.no_grad():
        case.run(host)
        waits.clear()
        case.run(host)
        own = waits.copy()
        for fast in (False, True):
            handle.optimize(fast)
            case.run(handle.network)  # the first frame may look whether its numbers are finite
            waits.clear()
            case.run(handle.network)
            assert not waits - own, fast


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_step_does_not_wait(
    case: Case, device: torch.device, waits: Counter[str]
) -> None:
    host, handle = case.build().to(device).train(), attached(case, device)
    handle.network.train()
    optimizer = torch.optim.AdamW(handle.parameters(), 1e-3)
    case.train(host)
    own = waits.copy()
    for _ in range(2):
        waits.clear()
        loss = scores_in(case.train(handle.network)).mean()
        (loss + handle.generative_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum((waits - own).values()) <= 1  # some adapters compare what they saw


@pytest.mark.parametrize("method, network", COMBINATIONS)
def test_loss(method: str, network: str, device: torch.device, waits: Counter[str]) -> None:
    fusion = build(method=method, **NETWORKS[network]).to(device)
    *features, fused = (x.to(device) for x in maps(3))
    output = fusion.train().loss(features, fused)
    output.loss.backward()
    assert not waits
    there = build(method=method, **NETWORKS[network]).train().loss(maps(3)[:2], maps(3)[2])
    assert near(output.loss, there.loss) and near(output.fused, there.fused)
    if method == "cgan":
        fusion.discriminator_loss(features, fused).backward()


@pytest.mark.filterwarnings("ignore:.*scheduler")  # made for images, some of them
@pytest.mark.parametrize("name", SCHEDULERS)
def test_sample(name: str, device: torch.device, waits: Counter[str]) -> None:
    try:
        fusion = build(scheduler={"_class_name": name, "num_train_timesteps": 20}, steps=3)
        there = fusion.sample(maps())
    except Exception as error:  # each has one of its own
        pytest.skip(f"not for feature maps on the CPU either: {type(error).__name__}: {error}")
    if not there.isfinite().all():
        pytest.skip("not for feature maps on the CPU either: NaN")
    fusion.to(device)
    features = [x.to(device) for x in maps()]
    waits.clear()
    here = fusion.sample(features)
    assert not waits
    assert near(here, there)
    more = fusion.sample(features, num_samples=2, return_intermediates=True)[1]
    assert all(x.device.type == device.type for x in more)


def test_sample_in_one_step(device: torch.device, waits: Counter[str]) -> None:
    fusion = build()
    there, here = fusion.sample(maps()), fusion.to(device).sample([x.to(device) for x in maps()])
    assert not waits and near(here, there)


def test_new_noise_in_every_frame(device: torch.device, waits: Counter[str]) -> None:
    fusion = build(fixed_noise=False).to(device)
    features = [x.to(device) for x in maps()]
    waits.clear()
    one, other = fusion(*features), fusion(*features)
    assert not waits
    assert not near(one, other)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("method, network", COMBINATIONS)
def test_optimised(
    method: str, network: str, dtype: torch.dtype | None, device: torch.device
) -> None:
    fusion = build(method=method, **NETWORKS[network]).to(device)
    features = [x.to(device) for x in maps()]
    with torch.no_grad():
        plain = fusion(*features)
        optimize(fusion, dtype=dtype)
        error = (fusion(*features) - plain).norm() / plain.norm()
        assert float(error) < (1e-4 if dtype is None else 3e-2)
        for parameter in fusion.parameters():  # weights that change are followed
            parameter.mul_(1.1)
        fast = fusion(*features)
        optimize(fusion, False)
        changed = fusion(*features)
    assert float((fast - changed).norm() / changed.norm()) < (1e-4 if dtype is None else 3e-2)


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.name)
def test_degraded(case: Case, device: torch.device, waits: Counter[str]) -> None:
    host, handle = case.build().to(device).train(), attached(case, device)
    handle.network.train()
    case.train(host)
    own = waits + waits  # the host runs twice
    handle.degradation = Degradation(1.0)
    waits.clear()
    case.train(handle.network)
    handle.generative_loss.backward()
    assert sum((waits - own).values()) <= 1


@pytest.mark.parametrize("case", [CONCAT, SIAMESE], ids=lambda case: case.name)
def test_calibrated_saved_and_loaded(case: Case, device: torch.device, tmp_path: Path) -> None:
    handle = attached(case, device)
    unexplained = handle.calibrate([lambda: case.run(handle.network)])
    handle.save_pretrained(tmp_path)
    with torch.no_grad():
        out = case.run(handle.network)
    network = case.build()
    there = attach(network, case.make_fusion(), case.adapter())
    assert abs(there.calibrate([lambda: case.run(network)]) - unexplained) < 1e-3
    for loaded in (case.build().to(device), case.build()):
        attach(loaded, tmp_path, case.adapter())
        with torch.no_grad():
            assert near(case.run(loaded), out)
    fusion = GenerativeFusion.from_pretrained(tmp_path).to(device)
    assert fusion.noise.device.type == device.type


def test_copied(device: torch.device) -> None:
    fusion = build().to(device)
    features = [x.to(device) for x in maps()]
    assert near(copy.deepcopy(fusion)(*features), fusion(*features))
    if device.type != "mock":
        assert near(pickle.loads(pickle.dumps(fusion))(*features), fusion(*features))


class Tracked(Loss):
    """Loss_track, and what the device was waited for between two of its calls."""

    def __init__(self, case: Case, waits: Counter[str]) -> None:
        super().__init__(case)
        self.waits, self.between = waits, []

    def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.between.append(sum(self.waits.values()))
        loss = super().__call__(network, batch)
        self.waits.clear()
        return loss


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("method", ["diffusion", "raw", "cgan"])
def test_fine_tuned(
    method: str, cached: bool, device: torch.device, waits: Counter[str], tmp_path: Path
) -> None:
    handle, loader = attached(CONCAT, device, method=method), labels(8)
    if cached:
        features = cache_features(
            handle,
            loader,
            tmp_path / "cache",
            forward=lambda network, _: CONCAT.train(network),
            targets=lambda batch: {"label": batch["label"]},
            **QUIET,
        )
        loader = torch.utils.data.DataLoader(features, 2)
    before = {name: x.detach().cpu().clone() for name, x in handle.fusion.state_dict().items()}
    loss = Tracked(CONCAT, waits)
    fine_tune(handle, loader, loss, tmp_path / "run", epochs=2, ema_decay=0.9, **QUIET)
    # the first step asks whether the head learns, and an epoch ends with a checkpoint
    steps = [loss.between[i] for i in range(2, len(loss.between)) if i % 4]
    most = 2 if method == "cgan" else 1  # each of two optimisers wants to know before its step
    assert steps and max(steps) <= most, loss.between
    after = handle.fusion.state_dict()
    assert any(not near(before[name], x) for name, x in after.items())
    assert next(handle.network.parameters()).device.type == device.type
    again = attached(CONCAT, device, method=method)
    fine_tune(again, loader, loss, tmp_path / "run", epochs=3, ema_decay=0.9, **QUIET)


@pytest.fixture(params=[None, "reduce-overhead"])
def captured(
    request: pytest.FixtureRequest, device: torch.device
) -> tuple[GenerativeFusion, list[Tensor]]:
    """An optimised fusion, which replays a CUDA graph, and its maps."""
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    fusion = build().to(device)
    optimize(fusion, compile=request.param)
    return fusion, [x.to(device) for x in maps()]


@torch.no_grad()
def test_a_graph_is_of_one_shape(captured: tuple[GenerativeFusion, list[Tensor]]) -> None:
    fusion, features = captured
    kept = []
    for batch in (1, 3, 1, 2):
        more = [torch.randn(batch, *x.shape[1:], device=x.device) for x in features]
        kept.append((fusion(*more), fusion.sample(more)))
    assert all(near(fast, plain) for fast, plain in kept)  # not overwritten by later frames


@torch.no_grad()
def test_graphs_of_threads_and_streams(captured: tuple[GenerativeFusion, list[Tensor]]) -> None:
    fusion, features = captured
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream() if seed % 2 else None):
            for _ in range(20):
                own = [torch.randn(x.shape, device="cuda", generator=generator) for x in features]
                if not near(fusion(*own), fusion.sample(own)):
                    wrong.append(seed)

    run_in_threads(work, 4)
    assert not wrong


def test_a_graph_is_not_for_autocast_or_a_capture(
    captured: tuple[GenerativeFusion, list[Tensor]],
) -> None:
    fusion, features = captured
    plain = fusion.sample(features)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = fusion(*features)
        there = fusion.sample(features)
        assert (rounded - there).norm() < 3e-2 * there.norm() and not torch.equal(rounded, plain)
    for keep in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with keep:
            assert near(fusion(*features), plain)
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fusion(*features)
        graph.replay()
        assert near(out, plain)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@torch.no_grad()
def test_a_graph_of_each_prediction(kind: str, device: torch.device) -> None:
    fusion = build(prediction_type=kind).to(device)
    features = [x.to(device) for x in maps()]
    state, plain = torch.get_rng_state(), fusion(*features)
    optimize(fusion)
    for _ in range(2):
        assert near(fusion(*features), plain)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_mixed_precision_resumes(
    precision: str, device: torch.device, tmp_path: Path
) -> None:
    if device.type == "mock":
        pytest.skip("accelerate mixes precisions on real devices")

    class Interrupted(Loss):
        def __call__(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            if (tmp_path / "cut" / "checkpoints").is_dir() and batch["label"][0] == 0.4:
                raise KeyboardInterrupt
            return super().__call__(network, batch)

    options = {"epochs": 2, "mixed_precision": precision, **QUIET}
    whole, cut = attached(CONCAT, device), attached(CONCAT, device)
    fine_tune(whole, labels(8), Loss(CONCAT), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(cut, labels(8), Interrupted(CONCAT), tmp_path / "cut", **options, save_every=1)
    cut = attached(CONCAT, device)
    fine_tune(cut, labels(8), Loss(CONCAT), tmp_path / "cut", **options)
    end = cut.fusion.state_dict()
    assert all(near(x, end[name]) for name, x in whole.fusion.state_dict().items())
