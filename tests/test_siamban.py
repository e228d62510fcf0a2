"""Two streams made of SiamBAN, and its adapter, on a tiny tracker of the same contract."""

import copy
import pickle
import re

import pytest
import stand_ins_siamban as stand_ins
import torch
from torch import nn

from gmmt_fusion import GenerativeFusion, attach
from gmmt_fusion.adapters import ModuleAdapter, siamban

each_variant = pytest.mark.parametrize("levels", [1, 3])


def plugin(levels: int = 1, **options: object) -> GenerativeFusion:
    fusion = GenerativeFusion(
        stand_ins.CHANNELS * levels, size=31, network_config={"width": 16, "heads": 2}, **options
    )
    nn.init.normal_(
        fusion.network.last_layer.weight, std=0.1, generator=torch.Generator().manual_seed(0)
    )
    return fusion


@each_variant
def test_same_image_twice_gives_what_one_stream_gives(levels: int) -> None:
    expected = stand_ins.run(stand_ins.single(levels), channels=3)
    model = siamban.two_stream(stand_ins.single(levels))
    template, search = (x.repeat(1, 2, 1, 1) for x in stand_ins.crops(channels=3))
    model.template(template)
    out = torch.cat(list(model.track(search).values()), dim=1)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)


@each_variant
def test_streams_are_those_of_the_two_models(levels: int) -> None:
    rgb, tir = stand_ins.single(levels), stand_ins.single(levels, seed=1)
    kept = {name: value.clone() for name, value in tir.state_dict().items()}
    model = siamban.two_stream(copy.deepcopy(rgb), tir)
    search = stand_ins.crops()[1]
    for index, single in enumerate((rgb, tir)):
        ours, theirs = (
            model.backbone(search)[index],
            single.backbone(search[:, 3 * index : 3 * index + 3]),
        )
        for a, b in [(ours, theirs)] if levels == 1 else zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    maps = model.neck.fusion(
        model.neck.rgb(model.backbone(search)[0]), model.neck.tir(model.backbone(search)[1])
    )
    mean = [
        (a + b) / 2
        for a, b in zip(
            *(
                single.neck(single.backbone(search[:, i : i + 3]))
                if levels == 3
                else [single.neck(single.backbone(search[:, i : i + 3]))]
                for i, single in ((0, rgb), (3, tir))
            ),
            strict=True,
        )
    ]
    for fused, expected in zip(maps if levels == 3 else [maps], mean, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, kept[name]) for name, value in tir.state_dict().items())


@each_variant
def test_fusion_starts_at_the_mean_in_training_mode_too(levels: int) -> None:
    model = siamban.two_stream(stand_ins.single(levels), stand_ins.single(levels, seed=1)).train()
    features = model.backbone(stand_ins.crops(8)[1])
    rgb, tir = model.neck.rgb(features[0]), model.neck.tir(features[1])
    fused = model.neck.fusion(rgb, tir)
    for a, b, out in [(rgb, tir, fused)] if levels == 1 else zip(rgb, tir, fused, strict=True):
        mean = (a + b) / 2
        # one scale a channel lies between the two: BatchNorm gives the map the modalities' own
        # scale
        torch.testing.assert_close(out.mean((0, 2, 3)), mean.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
        correlation = torch.corrcoef(torch.stack([out.flatten(), mean.flatten()]))[0, 1]
        assert correlation > 0.95


@each_variant
def test_state_dict_deepcopy_and_pickle(levels: int) -> None:
    model = stand_ins.build(levels)
    expected = stand_ins.run(model)
    fresh = siamban.two_stream(stand_ins.single(levels, seed=5))
    fresh.load_state_dict(model.state_dict(), strict=True)
    del model.zf  # with a graph
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(stand_ins.run(twin), expected)


def test_modes_flags_and_dtype_stay() -> None:
    single = stand_ins.single().double().train()
    single.backbone.eval().requires_grad_(False)
    model = siamban.two_stream(single)
    assert model.neck.fusion.training and not any(
        m.training for s in (model.backbone.rgb, model.backbone.tir) for m in s.modules()
    )
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.neck.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_layers_of_both_streams_answer_to_one_name() -> None:
    model = stand_ins.build()
    names = set(model.state_dict())
    layer = model.backbone.layer2
    assert {id(p) for p in layer.parameters()} == {
        id(p)
        for stream in (model.backbone.rgb, model.backbone.tir)
        for p in stream.layer2.parameters()
    }
    layer.train()
    assert model.backbone.rgb.layer2[1].training and model.backbone.tir.layer2[1].training
    assert set(model.state_dict()) == names
    with pytest.raises(AttributeError, match="layer9"):
        _ = model.backbone.layer9


def test_a_template_of_one_modality_is_forgotten() -> None:
    single = stand_ins.single()
    single.template(stand_ins.crops(channels=3)[0])
    assert not hasattr(siamban.two_stream(single), "zf")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_of_one_modality_are_refused(channels: int) -> None:
    message = re.escape(f"crops of shape (2, {channels}, 127, 127); expected (B, 6, H, W)")
    with pytest.raises(ValueError, match=message):
        stand_ins.run(stand_ins.build(), channels=channels)


def test_models_that_are_none_are_refused() -> None:
    single, three = stand_ins.single(), stand_ins.single(3)
    with pytest.raises(
        ValueError,
        match=r"model is a dict; expected the network, a ModelBuilder \(tracker\.model\)",
    ):
        siamban.two_stream({})
    with pytest.raises(
        ValueError, match=r"model \(Linear\) has no submodule 'backbone' .*; expected a SiamBAN"
    ):
        siamban.two_stream(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"tir_model \(Conv2d\) has no submodule 'backbone'"):
        siamban.two_stream(single, nn.Conv2d(1, 1, 1))
    with pytest.raises(
        ValueError, match=r"tir_model's neck gives \[8, 8, 8\] channels a level; expected \[8\]"
    ):
        siamban.two_stream(single, three)
    with pytest.raises(ValueError, match="has two streams already"):
        siamban.two_stream(stand_ins.build())
    single.neck = nn.Identity()
    with pytest.raises(ValueError, match="a neck of class Identity; expected"):
        siamban.two_stream(single)


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    single = stand_ins.single()
    before = [(name, type(module)) for name, module in single.named_modules()]
    with pytest.raises(ValueError, match="tir_model"):
        siamban.two_stream(single, stand_ins.single(3))
    assert [(name, type(module)) for name, module in single.named_modules()] == before


def test_heads_with_negative_distances_are_refused_and_fixed() -> None:
    model = stand_ins.ModelBuilder()
    with pytest.raises(
        ValueError, match=r"DepthwiseBAN gives distances that may be negative.*OneLevelHead"
    ):
        siamban.two_stream(model)
    raw = stand_ins.run(model.eval(), channels=3)
    keys = set(model.state_dict())
    model.head = siamban.OneLevelHead(model.head)
    assert set(model.state_dict()) - keys == {"head.loc_scale"} and not model.head.training
    out = stand_ins.run(model, channels=3)
    assert torch.equal(out[:, :2], raw[:, :2]) and torch.equal(out[:, 2:], raw[:, 2:].exp())
    siamban.two_stream(model)
    with pytest.raises(ValueError, match="Linear has no submodule 'cls'"):
        siamban.OneLevelHead(nn.Linear(1, 1))
    model = stand_ins.single()
    model.head = stand_ins.MultiBAN(1)
    with pytest.raises(
        ValueError,
        match=r"MultiBAN does not work with one level.*OneLevelHead\(model\.head\.box2\)",
    ):
        siamban.two_stream(model)


@each_variant
@pytest.mark.parametrize("side", [255, 287, 223])
def test_search_is_generated_and_template_is_not(levels: int, side: int) -> None:
    model = stand_ins.build(levels)
    template, search = stand_ins.crops(search=side)
    model.template(template)
    fused = model.zf if levels == 3 else [model.zf]
    handle = attach(model, plugin(levels))
    model.template(template)
    for a, b in zip(fused, model.zf if levels == 3 else [model.zf], strict=True):
        assert torch.equal(a, b)
    calls = []
    model.neck.fusion.levels[0].register_forward_hook(lambda *_: calls.append(1))
    model.track(search)
    assert not calls
    with handle.recorded() as recorded:
        model.template(template)
        model.track(search)
    assert [f.shape for f in [*recorded[0][0], recorded[0][1]]] == [
        (2, 8 * levels, (side - 7) // 8, (side - 7) // 8)
    ] * 3
    assert len(recorded) == 1


@each_variant
def test_training_adds_a_generative_loss_for_the_search_region(levels: int) -> None:
    model = stand_ins.build(levels)
    handle = attach(model, plugin(levels), calibrate=[(stand_ins.batch(model),)])
    sizes = []
    model.neck.fusion.levels[0].register_forward_hook(
        lambda module, args, out: sizes.append(out.shape[-1])
    )
    outputs = model.train()(stand_ins.batch(model))
    assert list(outputs) == ["total_loss", "cls_loss", "loc_loss", "generative_loss"]
    assert sizes == [7, 31]
    (outputs["total_loss"] + 3 * outputs["generative_loss"]).backward()
    assert all(p.grad is not None for p in handle.head.parameters())
    assert all(
        p.grad is None
        for name, p in model.named_parameters()
        if not name.startswith("gmmt_fusion.")
    )


@each_variant
def test_the_head_gets_contiguous_maps(levels: int) -> None:
    model = stand_ins.build(levels).to(memory_format=torch.channels_last)
    attach(model, plugin(levels).to(memory_format=torch.channels_last))
    assert torch.isfinite(
        stand_ins.run(model)
    ).all()  # the stand-in's head uses .view, as upstream's


def test_what_is_missing_is_said() -> None:
    with pytest.raises(
        ValueError,
        match=r"SiamBANAdapter on ModelBuilder: 'neck' \(AdjustLayer\) is of one modality; "
        r"call gmmt_fusion\.adapters\.siamban\.two_stream\(model\) first",
    ):
        attach(stand_ins.single(), plugin())
    with pytest.raises(ValueError, match="SiamBANAdapter on Linear: no submodule 'backbone'"):
        attach(nn.Linear(1, 1), plugin())
    with pytest.raises(
        ValueError, match="built with channels=8; this ModelBuilder fuses maps of 24 channels"
    ):
        attach(stand_ins.build(3), plugin(1))
    with pytest.raises(ValueError, match="modalities=1; ModelBuilder has 2"):
        attach(stand_ins.build(), GenerativeFusion(8, modalities=1, size=31))
    model = stand_ins.build()
    attach(model, plugin())
    with pytest.raises(ValueError, match="two streams already"):
        siamban.two_stream(model)


def test_levels_of_different_sizes_are_refused() -> None:
    model = stand_ins.build(3)
    attach(model, plugin(3))
    model.backbone.rgb.layer3[0].stride = model.backbone.tir.layer3[0].stride = (2, 2)
    with pytest.raises(
        ValueError, match=r"levels have sizes \[\(26, 26\), \(52, 52\)\]; expected one size"
    ):
        model.neck(model.backbone(stand_ins.crops(search=423)[1]))


def test_a_fusion_block_of_ones_own() -> None:
    class Sum(nn.Module):
        def forward(self, rgb: torch.Tensor, tir: torch.Tensor) -> torch.Tensor:
            return rgb + tir

    model = stand_ins.build()
    model.neck.fusion = Sum()
    expected = stand_ins.run(model)
    handle = attach(model, plugin())
    assert not torch.equal(stand_ins.run(model), expected)
    handle.detach()
    assert torch.equal(stand_ins.run(model), expected)


def test_module_adapter_reaches_the_fusion_too() -> None:
    model, other, fusion = stand_ins.build(), stand_ins.build(), plugin()
    attach(model, copy.deepcopy(fusion))
    attach(other, fusion, ModuleAdapter("neck.fusion", "head", size=31))
    assert torch.equal(stand_ins.run(model), stand_ins.run(other))


def test_compiled_tracking() -> None:
    model = stand_ins.build(3)
    handle = attach(model, plugin(3))
    template, search = stand_ins.crops()
    torch.compiler.reset()
    with torch.no_grad():
        model.template(template)
        compiled = torch.compile(model.track, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(search), model.track(search))
        with handle.disabled():
            torch.testing.assert_close(compiled(search), model.track(search))
        model.template(template.flip(0))
        torch.testing.assert_close(compiled(search), model.track(search))
        handle.detach()
        torch.testing.assert_close(compiled(search), model.track(search))
