"""Heads that take the concatenation, trackers of one stream, and forwards in stages."""

import json
from typing import Any

import pytest
import torch
from cases import CASES, TINY, Case, frame, inferred, of_caformer, of_seqtrack, of_sutrack
from stand_ins_more import SUTRACK
from tiny_hosts import CHANNELS
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import ConcatAdapter, EncoderAdapter
from gmmt_fusion.model import fast_path

CAFORMER, SUTRACK_CASE, SEQTRACK = (
    (
        next(case for case in CASES if case.name == name)
        for name in ("caformer", "sutrack", "seqtrack")
    )
    if any(case.name == "caformer" for case in CASES)
    else (None, None, None)
)


def maps(channels: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, 5, 6, generator=torch.Generator().manual_seed(channels))


@pytest.mark.parametrize("out_channels", [2 * CHANNELS, 5, None])
@pytest.mark.parametrize("network", ["uvit", "unet"])
@pytest.mark.parametrize("method", ["diffusion", "cgan", "raw"])
def test_a_fused_map_of_other_channels(
    method: str, network: str, out_channels: int | None, tmp_path: Any
) -> None:
    sizes = {"uvit": {"width": 16, "heads": 2}, "unet": {"widths": (32, 32)}}
    fusion = GenerativeFusion(
        CHANNELS,
        size=(5, 6),
        method=method,
        network=network,
        network_config=sizes[network],
        out_channels=out_channels,
    ).eval()
    fused = maps(out_channels or CHANNELS)
    features = [maps(CHANNELS), maps(CHANNELS) + 1]
    assert fusion.out_channels == fused.shape[1] and fusion.channels == CHANNELS
    assert fusion(*features).shape == fused.shape
    if out_channels == 2 * CHANNELS:
        torch.testing.assert_close(fusion(*features), torch.cat(features, dim=1))
    output = fusion.loss(features, fused)
    output.loss.backward()
    assert output.fused.shape == fused.shape
    if method == "cgan":
        fusion.discriminator_loss(features, fused).backward()
    assert fusion.calibrate([(features, torch.cat(features, dim=1)[:, : fused.shape[1]])]) < 1e-3
    nn.init.normal_(fusion.network.last_layer.weight, std=0.1)
    expected = fusion(*features)
    drawn = fusion.sample(features, num_samples=3, generator=torch.Generator())
    assert drawn.shape == (3, *fused.shape)
    fusion.save_pretrained(tmp_path)
    again = GenerativeFusion.from_pretrained(tmp_path).eval()
    assert again.config == fusion.config and torch.equal(again(*features), expected)
    fast_path.optimize(fusion)
    torch.testing.assert_close(fusion(*features), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"fused has shape \(2, 9, 5, 6\); expected \(B, "):
        fusion.loss(features, maps(9))


def test_a_config_without_out_channels_is_read_as_before(tmp_path: Any) -> None:
    fusion = GenerativeFusion(**TINY)
    text = json.loads(fusion.config.to_json())
    del text["out_channels"]
    config, warning = type(fusion.config).from_json(json.dumps(text))
    assert config == fusion.config and not warning and config.fused_channels == CHANNELS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 0}, "out_channels=0 is out of range"),
        ({"out_channels": 2.5}, r"out_channels=2\.5 is out of range"),
        ({"out_channels": 16, "residual": "first"}, "expected as many, or residual='conv1x1'"),
    ],
)
def test_impossible_out_channels_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerativeFusion(**{**TINY, **options})


pytestmark = pytest.mark.skipif(CAFORMER is None, reason="REAL_HOST names another host")


def case_of(case: Case | None) -> Case:
    assert case is not None
    return case


def test_the_target_of_a_concatenation_is_the_heads_input() -> None:
    network = case_of(CAFORMER).build()
    handle = attach(network, case_of(CAFORMER).make_fusion(), ConcatAdapter())
    of_caformer(network.train())
    (features, fused), *more = handle.fused_maps
    assert not more and torch.equal(torch.cat(features, dim=1), fused)


def test_a_fusion_of_too_few_channels_says_what_to_build() -> None:
    network = case_of(CAFORMER).build()
    attach(network, case_of(CAFORMER).make_fusion(out_channels=None), ConcatAdapter())
    with pytest.raises(ValueError, match="build it with out_channels=16"):
        of_caformer(network)


def test_an_adapter_may_know_the_heads_channels() -> None:
    class Known(ConcatAdapter):
        def out_channels(self, network: nn.Module) -> int:
            return 16

    with pytest.raises(ValueError, match=r"gives maps of 8 channels; the head of this CAFormer"):
        attach(
            case_of(CAFORMER).build(),
            case_of(CAFORMER).make_fusion(out_channels=None),
            Known(),
        )


class Recorder(EncoderAdapter):
    """Counts the encoder's passes, and keeps what they see."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[Tensor] = []

    def encode(self, current: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(args[1][0])
            return forward(*args, **kwargs)

        return super().encode(current, counted, *args, **kwargs)


def test_the_encoder_runs_once_more_for_each_modality() -> None:
    host, network = case_of(SUTRACK_CASE).build(), case_of(SUTRACK_CASE).build()
    adapter = Recorder("encoder", "decoder", tokens=(1, 65))
    handle = attach(network, case_of(SUTRACK_CASE).make_fusion(), adapter)
    template, search = frame(network)
    of_sutrack(network)
    shown = [torch.cat([part, part], dim=1) for part in search.split(3, dim=1)]
    for seen, expected in zip(adapter.seen, [*shown, search], strict=True):
        assert torch.equal(seen, expected)
    of_sutrack(network.train())
    assert len(adapter.seen) == 6
    ((features, fused),) = handle.fused_maps
    twice = [torch.cat([part, part], dim=1) for part in template.split(3, dim=1)]
    for got, (z, x) in zip(
        [*features, fused], [*zip(twice, shown, strict=True), (template, search)], strict=True
    ):
        tokens = host.encoder([z], [x], None)[0][:, 1:65]
        assert torch.equal(got.flatten(2).mT, tokens)


def test_the_hosts_other_outputs_are_its_own() -> None:
    host, network = case_of(SUTRACK_CASE).build(), case_of(SUTRACK_CASE).build()
    attach(network, case_of(SUTRACK_CASE).make_fusion(), case_of(SUTRACK_CASE).adapter())
    out, expected = of_sutrack(network), of_sutrack(host)
    assert torch.equal(out["task_class"], expected["task_class"])
    assert not torch.equal(out["scores"], expected["scores"])


def test_stages_may_be_methods_of_the_network() -> None:
    """As SUTrack's tracker calls them."""
    network = case_of(SUTRACK_CASE).build()
    attach(network, case_of(SUTRACK_CASE).make_fusion(), case_of(SUTRACK_CASE).adapter())
    expected = of_sutrack(network)
    template, search = frame(network)
    feature = network.forward_encoder([template], [search])
    assert torch.equal(network.forward_decoder(feature)["score_map"], expected["score_map"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, r"not what tokens=None of the .* give the adapter tokens=\(1, 65\)"),
        ((0, 64), r"give the adapter tokens=\(1, 65\)"),
        ((1, 60), r"the head 'decoder' got a map .* 'encoder' returned \(2, 81, 8\)"),
    ],
)
def test_other_tokens_than_the_heads_are_told(tokens: Any, message: str) -> None:
    network = case_of(SUTRACK_CASE).build()
    adapter = EncoderAdapter("encoder", "decoder", tokens=tokens)
    attach(network, case_of(SUTRACK_CASE).make_fusion(), adapter)
    with pytest.raises(ValueError, match=message):
        of_sutrack(network.train())


def test_an_encoder_without_images_is_named() -> None:
    network = SUTRACK()
    attach(network, GenerativeFusion(**TINY), EncoderAdapter("encoder", "decoder"))
    with pytest.raises(ValueError, match=r"called without images \(B, 6, H, W\)"):
        network(template_list=[torch.rand(1, 3, 16, 16)], search_list=[torch.rand(1, 3, 32, 32)])


def test_a_later_stage_has_the_loss_of_an_earlier_one() -> None:
    """A fusion in the encoder's stage, the head in the decoder's: SeqTrackv2."""
    network = case_of(SEQTRACK).build()
    handle = attach(network, case_of(SEQTRACK).make_fusion(), case_of(SEQTRACK).adapter())
    losses = []
    for _ in range(2):
        of_seqtrack(network.train())
        assert len(handle.fused_maps) == 1
        losses.append(handle.generative_loss)
    assert losses[0] != losses[1]  # of another timestep
    sum(losses).backward()
    assert not inferred(network.eval()).requires_grad


def test_a_decoder_that_is_never_called_is_told() -> None:
    """An adapter at the head's forward, of a host that calls another method of the head."""
    network = case_of(SEQTRACK).build()
    attach(network, case_of(SEQTRACK).make_fusion(), ConcatAdapter("decoder"))
    with pytest.warns(UserWarning, match=r"'decoder' was asked for inference\(\), and no map"):
        inferred(network)
