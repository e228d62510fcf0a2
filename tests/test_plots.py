"""The drawings, and the similarity that they show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gmmt_fusion.evaluation import plots
from gmmt_fusion.evaluation.metrics import evaluate
from gmmt_fusion.evaluation.similarity import structural_similarity


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figures that were to be saved."""
    figure, found = pytest.importorskip("matplotlib.figure"), []

    def keep(self, path, **options):
        Path(path).touch()
        found.append(self)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figure.Figure, "savefig", keep)
    return found


def maps(count: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, *size, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


@pytest.mark.parametrize("size", [(3, 3), (4, 9), (8, 8), (16, 16)])
def test_similarity_is_scikit_images(size):
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    fused = maps(size=size)[0]
    generated = fused + 0.3 * maps(size=size, seed=1)[0]
    least, most = fused.amin((1, 2), keepdim=True), fused.amax((1, 2), keepdim=True)
    x, y = (((v - least) / (most - least)).double().numpy() for v in (fused, generated))
    window = {3: 3, 4: 3}.get(min(size), 7)
    expected = reference(x, y, channel_axis=0, data_range=1, win_size=window)
    assert structural_similarity(fused, generated) == pytest.approx(expected, abs=1e-5)
    with_dead_channel = [torch.cat([v, torch.full((1, *size), 2.0)]) for v in (fused, generated)]
    assert structural_similarity(*with_dead_channel) == pytest.approx(expected, abs=1e-5)


def test_similarity_sees_what_energy_does_not():
    fused = maps()[0]
    assert structural_similarity(fused, fused.half().float()) > 0.999
    assert structural_similarity(fused, fused.roll(1, 0)) < 0.5


@pytest.mark.parametrize(
    ("fused", "generated", "message"),
    [
        (torch.zeros(6, 8, 8), torch.zeros(6, 8, 9), r"\(6, 8, 8\) and \(6, 8, 9\)"),
        (torch.zeros(6, 2, 8), torch.zeros(6, 2, 8), "at least 3×3"),
        (torch.zeros(1, 6, 8, 8), torch.zeros(1, 6, 8, 8), r"\(C, H, W\)"),
        (torch.ones(6, 8, 8), torch.ones(6, 8, 8), "channel that varies"),
    ],
    ids=["other shape", "too small", "a batch", "constant"],
)
def test_similarity_refuses(fused, generated, message):
    with pytest.raises(ValueError, match=message):
        structural_similarity(fused, generated)


def test_tsne_parts_what_differs_and_mixes_what_does_not(drawn):
    fused = maps(30)
    for generated, part in ((fused + 0.01 * maps(30, seed=1), False), (fused + 50, True)):
        plots.draw_tsne({"fused": fused, "fused*": generated}, "x.png", "title")
        one, other = (points.get_offsets() for points in drawn[-1].axes[0].collections)
        between = np.linalg.norm(one[:, None] - other, axis=-1)
        within = np.linalg.norm(one[:, None] - one, axis=-1) + 1e9 * np.eye(30)
        assert (between.min(1) > within.min(1)).mean() == part
        assert [text.get_text() for text in drawn[-1].legends[0].get_texts()] == [
            "fused: 30",
            "fused*: 30",
        ]


def test_tsne_of_few_maps_is_the_same_for_the_same_seed(tmp_path):
    files = [
        plots.draw_tsne(
            {"a": maps(5), "b": maps(5, seed=1)}, tmp_path / f"{i}.png", seed=seed
        ).read_bytes()
        for i, seed in enumerate((0, 0))
    ]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"fused": maps(4), "fused*": maps(5)}, "9 maps.*at least 10"),
        ({"fused": maps(9), "fused*": maps(9) * torch.nan}, "NaN or infinity"),
        (
            {"fused": maps(9), "fused*": maps(9, (4, 4))},
            r"'fused' \(6, 8, 8\), 'fused\*' \(6, 4, 4\)",
        ),
    ],
    ids=["few", "not finite", "other shape"],
)
def test_tsne_refuses(kinds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plots.draw_tsne(kinds, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("steps", "panels", "curves"), [(1, 1, 0), (3, 3, 1), (10, 10, 1), (40, 10, 1)]
)
def test_sampling_steps_show_ten_say_so_and_score_all(drawn, steps, panels, curves):
    fused = maps(2)
    estimates = [fused + noise * maps(2, seed=1) for noise in torch.linspace(2, 0, steps + 1)[1:]]
    timesteps = list(range(999, 999 - 10 * steps, -10))
    plots.draw_sampling_steps(fused, estimates, timesteps, "x.png")
    *shown, host, bar = drawn[0].subfigs[0].axes
    assert (
        bar.get_ylabel().startswith("energy") and len({a.images[0].get_clim() for a in shown}) == 1
    )
    assert (drawn[0].get_suptitle() == f"; 10 of {steps} steps are shown, the curve has all") == (
        steps > 10
    )
    assert len(shown) == panels and host.get_xlabel() == "fused\n(host)"
    assert shown[0].get_xlabel().startswith("t = 999\nSSIM 0.") or steps == 1
    assert (
        shown[-1].get_xlabel() == f"t = {timesteps[-1]}\nSSIM 1.0000"
    )  # the last one has no noise
    lines = [line for part in drawn[0].subfigs[1:] for axis in part.axes for line in axis.lines]
    assert len(lines) == curves
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), timesteps)
        assert (np.diff(line.get_ydata()) > 0).all()


def test_sampling_steps_refuse_other_timesteps():
    with pytest.raises(ValueError, match=r"2 estimates.*3 timesteps"):
        plots.draw_sampling_steps(maps(), [maps(), maps()], [3, 2, 1], "x.png")


def test_every_trackers_boxes_are_drawn_in_both_modalities(drawn):
    frames = [np.zeros((60, 60, 3), np.uint8)] * 9
    boxes = {name: np.tile([15 * i, 5, 12, 10], (9, 1)) for i, name in enumerate("abc")}
    plots.draw_tracked_frames(frames, frames, boxes, "x.png", frames=(0, 8), truth=boxes["a"])
    legend = drawn[0].legends[0]
    colours = dict(
        zip((text.get_text() for text in legend.get_texts()), legend.get_lines(), strict=True)
    )
    assert list(colours) == ["a", "b", "c", "truth"]
    assert [axis.get_ylabel() for axis in drawn[0].axes[::2]] == ["visible", "infrared"]
    for axis in drawn[0].axes:
        truth, found = axis.patches[:2], axis.patches[2:]
        assert all(rectangle.get_xy() == (0, 5) for rectangle in truth)
        for index, (rectangle, name) in enumerate(zip(found, "abc", strict=True)):
            assert rectangle.get_xy() == (15 * index, 5) and rectangle.get_linestyle() == "-"
            assert plots.COLOURS[index] == colours[name].get_color()


def test_lines_are_thin_where_the_target_is_small(drawn):
    frames = [np.zeros((60, 60, 3), np.uint8)] * 2
    for side in (3, 30):
        boxes = np.tile([10, 5, side, side], (2, 1))
        plots.draw_tracked_frames(frames, frames, {"a": boxes}, "x.png", frames=(0,), truth=boxes)
    small, large = (figure.axes[0].patches for figure in drawn)
    for one, other in zip(small, large, strict=True):
        assert one.get_linewidth() < other.get_linewidth()


@pytest.mark.parametrize(("apart", "dashed"), [(0, True), (0.3, True), (5, False)])
def test_boxes_that_coincide_share_their_line(drawn, apart, dashed):
    frames = [np.zeros((60, 60, 3), np.uint8)] * 2
    boxes = {name: np.tile([10 + apart * i, 5, 20, 20], (2, 1)) for i, name in enumerate("ab")}
    plots.draw_tracked_frames(frames, frames, boxes, "x.png", frames=(0,), rows=("a", "b"))
    one, other = drawn[0].axes[0].patches
    assert (one.get_linestyle() != "-") == (other.get_linestyle() != "-") == dashed


def test_maps_that_are_compared_have_one_scale_and_a_colour_bar(drawn):
    features = {"f_rgb": maps()[0], "f_tir": 3 * maps(seed=1)[0]}
    fused = {"fused": 9 * maps(seed=2)[0], "fused*": 8 * maps(seed=3)[0]}
    plots.draw_feature_maps({"visible": np.zeros((8, 8))}, [features, fused], "x.png")
    _, *panels = drawn[0].axes
    scales = {axis.get_title(): axis.images[0].get_clim() for axis in panels if axis.get_title()}
    assert scales["f_rgb"] == scales["f_tir"] != scales["fused"] == scales["fused*"]
    assert [axis.get_ylabel()[:6] for axis in panels[-2:]] == ["energy"] * 2


@pytest.mark.parametrize(("count", "told"), [(1, True), (3, True), (13, False)])
def test_tsne_tells_sequences_apart(drawn, count, told):
    names = [f"s{i % count}" for i in range(26)]
    plots.draw_tsne({"fused": maps(26), "fused*": maps(26, seed=1)}, "x.png", sequences=names)
    legend = {text.get_text() for text in drawn[0].legends[0].get_texts()}
    assert legend >= {"fused: 26", "fused*: 26"}
    assert (legend >= {f"{i + 1}  s{i}" for i in range(count)}) == told
    numbers = [text.get_text() for text in drawn[0].axes[0].texts]
    assert numbers == ([str(i + 1) for i in range(count)] if told else [])


def test_curves_name_the_measure_on_the_axis_and_its_number_in_the_legend(drawn):
    truth = {"a": np.tile([10.0, 20, 30, 40], (9, 1))}
    for protocol, axes in (
        ("lasher", {"PR": "precision", "NPR": "normalised precision", "SR": "success"}),
        ("rgbt234", {"MPR": "precision", "MSR": "success"}),
    ):
        scores = evaluate(
            truth, {"a": (truth["a"],) * 2} if protocol == "rgbt234" else truth, protocol
        )
        plots.draw_curves({"mine": scores}, "unused", "LI, low illumination")
        assert [axis.get_ylabel() for axis in drawn[-1].axes] == [f"{x} (%)" for x in axes.values()]
        shown = [axis.get_legend().get_texts()[0].get_text() for axis in drawn[-1].axes]
        assert shown == [f"mine {key} {scores.numbers[key]:.1f}" for key in axes]
        assert drawn[-1].get_suptitle() == "LI, low illumination"


def test_long_term_trackers_meet_in_one_plane(drawn):
    """Whatever the scale of their confidences."""
    boxes = {"a": np.tile([10.0, 20, 30, 40], (50, 1))}
    found = boxes["a"] + np.linspace(0, 20, 50)[:, None]
    scores = {
        name: evaluate(
            {"a": found},
            boxes,
            "vot-lt",
            image_sizes={"a": (99, 99)},
            confidences={"a": scale * np.linspace(1, 0.1, 50)},
        )
        for name, scale in (("large", 1000.0), ("small", 0.01))
    }
    plots.draw_curves(scores, "unused")
    (axis,) = drawn[0].axes
    one, dot, other, _ = (line.get_xydata() for line in axis.lines)
    assert axis.get_xlabel() == "recall (%)" and axis.get_ylabel() == "precision (%)"
    np.testing.assert_allclose(one, other)
    assert dot.tolist() == [[scores["large"].recall, scores["large"].precision]]
    assert axis.get_legend().get_texts()[0].get_text() == f"large F {scores['large'].F:.1f}"
