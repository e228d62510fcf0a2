"""`find_fusion`: what it proposes on trackers that it knows, and on such as it does not."""

import copy
import random

import numpy as np
import pytest
import stand_ins_siamban
import torch
import unknown_hosts as unknown
from cases import CASES, START, images, seeded
from tiny_hosts import ConcatTracker, SumAdapter

from gmmt_fusion import GenerativeFusion, attach, find_fusion
from gmmt_fusion.adapters import BATAdapter, trial
from gmmt_fusion.adapters.proposals import Proposal
from gmmt_fusion.adapters.trial import Refused, check
from gmmt_fusion.attaching.probing import Probe
from gmmt_fusion.attaching.searching import Search
from gmmt_fusion.cli import main

FOUND = {  # host: what the adapter is made with
    unknown.Correlating: 'ModuleAdapter(fusion="necks.merge", head="predictor", size=8)',
    unknown.Gated: 'ModuleAdapter(fusion="gate", head="predictor", output=1)',
    unknown.Concatenated: 'ConcatAdapter(head="predictor")',
    unknown.PrunedTogether: 'ConcatAdapter(head="predictor")',
    unknown.ThreeModalities: 'ModuleAdapter(fusion="three", head="predictor")',
    unknown.TokenFusion: 'ModuleAdapter(fusion="fuse", head="predictor", tokens=(16, 80), size=8)',
    unknown.Encoded: 'EncoderAdapter(encoder="encoder", head="predictor", tokens=(1, 65))',
    unknown.SearchFirst: 'ModuleAdapter(fusion="fuse", head="predictor", tokens=(0, 64), size=8)',
}
SEEN = {  # known host: what the search sees by itself
    "vipt": 'Tap("backbone.prompt_blocks.2", item=(0,), of="input", piece=(1, 1))',
    "vipt without elimination": 'Tap("backbone.prompt_blocks.2", item=(0,), of="input"',
    "tbsi": 'ModuleAdapter(fusion="tbsi_fuse_search", head="box_head")',
    "bat": 'taps=[ Tap("backbone.norm", call=-2), Tap("backbone.norm"), ]',
    "xtrack": 'taps=[ Tap("backbone.norm", call=-2), Tap("backbone.norm"), ]',
    "sdstrack": 'Tap("backbone.blocks.2", item=(0,), piece=(1, 1)), ], places=[ Tap("backbone',
    "siamban": 'ModuleAdapter(fusion="neck.fusion", head="head", size=31)',
    "siamban three levels": "",
}
SUMS = {  # host: (taps, places)
    unknown.Weighted: (["visible", "thermal"], []),
    unknown.SumBeforeNorm: (["layers.1", "layers.1"], []),
    unknown.SumAfterNorm: (["final", "final"], []),
    unknown.Projected: (["final", "final"], []),
    unknown.Pruned: (["final", "final"], ["prune", "prune"]),
    unknown.PrunedAtTheEdge: (["final", "final"], ["prune", "prune"]),
}


def example(modalities=2):
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randn(1, 3 * modalities, side, side, generator=generator)
        for side in (unknown.TEMPLATE, unknown.SEARCH)
    )


def sutrack(network, template, search):
    feature = network.forward_encoder([template], [search])
    return network.forward_decoder(feature)["pred_boxes"]


def seqtrack(network, template, search):
    xz = network(template_list=[template], search_list=[search], mode="encoder")
    return network.inference_decoder(xz, START[:1])["pred_boxes"]


STAGED = {"sutrack": sutrack, "seqtrack": seqtrack}


def find(case, network):
    if case.name in STAGED:
        return find_fusion(unknown.Staged(network, STAGED[case.name]))
    return find_fusion(network, inputs_of(case))


def inputs_of(case):
    """Of a row of cases.py, one forward's."""
    if case.name.startswith("siamban"):
        return (stand_ins_siamban.batch(case.build(), batch=1),)
    if case.name in ("concat", "maps", "siamese", "sum"):
        return images(1)
    template, search = example()
    if case.name == "sttrack":
        return template, [search]
    if case.name in ("tbsi", "caformer"):
        template, search = (list(x.split(3, dim=1)) for x in (template, search))
    if case.name == "caformer":
        return template, search
    infer = {"infer": True} if case.name == "sdstrack" else {}
    return {"template": template, "search": search, **infer}


def run_lines(found, tracker):
    names = {"tracker": tracker}
    exec(found.lines, names)
    return names["handle"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_known_hosts(case):
    network = case.build()
    found = find(case, network)
    handle = run_lines(found, network)
    expected = case.adapter()
    if expected == "auto":
        assert found.adapter == "auto" and "attach finds it by itself" in str(found)
        assert SEEN[case.name] in " ".join(found.also)
    elif not isinstance(expected, SumAdapter):
        assert {**vars(found.adapter), "size": None} == {**vars(expected), "size": None}
    assert handle.fusion.channels == case.fusion["channels"]
    assert handle.fusion.modalities == case.fusion.get("modalities", 2)
    assert torch.isfinite(case.run(network)).all()


@pytest.mark.parametrize("host", FOUND, ids=lambda host: host.__name__)
def test_hosts_with_a_fusion(host):
    network = seeded(host)()
    found = find_fusion(network, example(3 if host is unknown.ThreeModalities else 2))
    assert f"adapter = {FOUND[host]}\n" in found.lines and len(found.proposals) == 1
    assert found.sure in ("sure", "likely")
    handle = attach(network, found.fusion, found.adapter)
    width = unknown.WIDTH * (2 if "Concat" in FOUND[host] else 1)
    assert handle.fusion.out_channels == width and handle.fusion.size == (8, 8)


@pytest.mark.parametrize("host", SUMS, ids=lambda host: host.__name__)
def test_sums(host):
    found = find_fusion(seeded(host)(), example())
    taps, places = SUMS[host]
    assert [tap.module for tap in found.adapter.taps] == taps
    assert [tap.module for tap in found.adapter.places] == places
    assert found.sure == "sure" and "sum" in found.proposals[0].what
    if host is unknown.Weighted:
        assert "0.7 · f_1 + 0.4 · f_2" in str(found)
    if host is unknown.SumBeforeNorm:
        assert "before 'final'" in str(found)
    if host is unknown.Projected:
        assert "before 'last', 'project'" in str(found)


@pytest.mark.parametrize("host", SUMS, ids=lambda host: host.__name__)
def test_the_maps_of_a_sum_are_its_summands(host):
    network = seeded(host)()
    found = find_fusion(network, example())
    handle = run_lines(found, network)
    template, search = example()
    with handle.recorded() as recording:
        network(template, search)
    (features, fused), *_ = recording
    if host is unknown.SumBeforeNorm:
        fused_again = network.final((sum(features) / 2).movedim(1, -1)).movedim(-1, 1)
    elif host is unknown.Projected:
        fused_again = network.last(network.project(sum(features).movedim(1, -1))).movedim(-1, 1)
    else:
        weights = [0.7, 0.4] if host is unknown.Weighted else [1, 1]
        fused_again = sum(w * f for w, f in zip(weights, features, strict=True))
    assert torch.allclose(fused_again, fused, atol=1e-5)


def test_a_host_that_is_known_under_other_names():
    """BAT with its head renamed: `attach` does not recognise it, the sum is found."""
    network = next(case for case in CASES if case.name == "bat").build()
    network.add_module("tail", network._modules.pop("box_head"))
    type(network).box_head = property(lambda self: self.tail)
    try:
        with pytest.raises(ValueError, match="find"):
            attach(network, GenerativeFusion(8, size=8))
        template, search = example()
        found = find_fusion(network, {"template": template, "search": search})
    finally:
        del type(network).box_head
    assert found.adapter.head == "tail"
    assert {tap.module for tap in found.adapter.taps} == {"backbone.norm"}
    items = [tuple(tap.item) for tap in found.adapter.places]
    assert items == [(2,), (7,)] and BATAdapter.__name__ not in str(found)


def test_whatever_a_host_raises_is_a_refusal():
    found = find_fusion(seeded(unknown.OnlyEvaluated)(), example())
    assert not found.proposals
    assert "the module 'gate' fuses" in found.refused[0] and "AssertionError" in found.refused[0]


def test_a_module_that_is_called_more_than_once():
    text = [
        str(find_fusion(seeded(host)(), example())) for host in (unknown.FusedTwice, unknown.Gated)
    ]
    assert "called 2 times" in text[0] and "times a frame" not in text[1]


def test_one_stream_without_an_encoder_of_its_own():
    found = find_fusion(seeded(unknown.SingleStream)(), example())
    assert not found.proposals and "stem (Conv2d): (1, 6, 32, 32) → (1, 8, 8, 8)" in str(found)


def test_streams_that_are_only_apart_are_no_proposal():
    found = find_fusion(seeded(unknown.Multiplied)(), example())
    assert not found.proposals and found.sure == "nothing was found"
    assert 'taps=[ Tap("drop", call=-2), Tap("drop"), ]' in str(found)
    assert "was not shown" in str(found)


def test_nothing_to_find():
    found = find_fusion(seeded(unknown.OfOneModality)(), example())
    assert not found.proposals and found.lines == "" and found.adapter is None
    assert "one modality" in str(found) and "predictor" in str(found)


def test_a_wrapper_around_the_network():
    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.core = unknown.Gated()

        def forward(self, *images):
            return self.core(*images)

    found = find_fusion(seeded(Wrapper)(), example())
    assert 'fusion="core.gate", head="core.predictor"' in found.lines


def state(tracker):
    network = tracker.network
    return (
        copy.deepcopy({k: v for k, v in vars(tracker).items() if k != "network"}),
        {name: x.clone() for name, x in network.state_dict().items()},
        {name: (type(m), m.training, sorted(vars(m))) for name, m in network.named_modules()},
        {name: p.requires_grad for name, p in network.named_parameters()},
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    )


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("fails", [False, True])
def test_the_tracker_is_left_as_it_was(fails, monkeypatch):
    tracker = unknown.Driven(seeded(unknown.TokenFusion)())
    tracker.initialize(np.zeros((40, 40, 6), np.uint8), {"init_bbox": [1, 2, 3, 4]})
    before = state(tracker)
    if fails:

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(trial, "_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_fusion(tracker)
    else:
        assert 'fusion="fuse"' in find_fusion(tracker).lines
    assert equal(before, state(tracker))


@pytest.mark.parametrize(
    "adapter",
    [
        'ModuleAdapter(fusion="visible", head="predictor")',
        'ModuleAdapter(fusion="nowhere", head="predictor")',
        'ModuleAdapter(fusion="gate", head="predictor", output=0)',
        'ModuleAdapter(fusion="gate", head="predictor", output=1, size=4)',
        'TapAdapter(head="predictor", taps=[Tap("visible"), Tap("visible")])',
        'TapAdapter(head="predictor", taps=[Tap("thermal"), Tap("visible")])',
        'ConcatAdapter(head="predictor")',
    ],
)
def test_wrong_proposals_are_refused(adapter):
    network = seeded(unknown.Gated)()
    search = Search.of(Probe(network, example(), [0.0] * 4))
    head = search.find_head()
    right = Proposal("", 'ModuleAdapter(fusion="gate", head="predictor", output=1)', FUSION, "")
    assert check(right.lines, search, head)
    with pytest.raises(Refused):
        check(Proposal("", adapter, FUSION, "").lines, search, head)
    assert check(right.lines, search, head), "the refused one left traces"


FUSION = 'GenerativeFusion.preset("small-unet", 8, size=8)'


@pytest.mark.parametrize(
    ("tracker", "arguments", "message"),
    [
        (unknown.DrivenRGB(), (), "RGB"),
        (ConcatTracker(), (), "example inputs"),
        (ConcatTracker(), ((torch.zeros(1, 2),),), "images"),
        (object(), (), "Module"),
    ],
)
def test_errors(tracker, arguments, message):
    with pytest.raises(ValueError, match=message):
        find_fusion(tracker, *arguments)


def test_a_tracker_that_fails_says_why():
    tracker = unknown.Driven(seeded(unknown.Gated)())
    tracker.crop = None
    with pytest.raises(RuntimeError, match=r"failed on the frame: .*find_fusion\(net, inputs\)"):
        find_fusion(tracker)


def build():
    return unknown.Driven(seeded(unknown.Gated)())


def build_of_one_modality():
    return unknown.Driven(seeded(unknown.OfOneModality)())


def test_command(capsys):
    assert main(["find", "--tracker", "test_finding:build"]) == 0
    out = capsys.readouterr().out
    assert 'adapter = ModuleAdapter(fusion="gate", head="predictor", output=1)' in out
    assert main(["find", "--tracker", "test_finding:build_of_one_modality"]) == 1
    assert "one modality" in capsys.readouterr().out
    assert main(["find", "--tracker", "test_finding:build", "--box", "1,2,3,4"]) == 2
    assert "--visible" in capsys.readouterr().err
