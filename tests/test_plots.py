"""The pictures, and the command that draws them from a user's tracker."""

import argparse
import shutil

import numpy as np
import pytest
import torch
from cases import CASES

from gmmt_fusion import attach
from gmmt_fusion.evaluation import figures, plots, tracking
from gmmt_fusion.evaluation.metrics import evaluate

CONCAT = CASES[0]
BUILDER = """
import torch
from cases import CASES

class Host:
    adapter = CASES[0].adapter()

    def __init__(self):
        self.network = CASES[0].build()

    def search(self, image):
        search = torch.from_numpy(image.copy()).permute(2, 0, 1)[None, :, ::8, ::8] / 255
        self.network(search[..., ::2, ::2], search)

class OSTrack(Host):
    def initialize(self, image, info):
        self.box = info["init_bbox"]

    def track(self, image):
        self.search(image)
        return {"target_bbox": self.box}

class Pysot(Host):
    def init(self, image, box):
        self.box = box

    def track(self, image):
        self.search(image)
        return {"bbox": self.box}

class Lazy(OSTrack):
    def search(self, image):
        pass
"""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were to be saved."""
    found = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: found.append(figure) or path)
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
    assert plots.structural_similarity(fused, generated) == pytest.approx(expected, abs=1e-5)
    with_dead_channel = [torch.cat([v, torch.full((1, *size), 2.0)]) for v in (fused, generated)]
    assert plots.structural_similarity(*with_dead_channel) == pytest.approx(expected, abs=1e-5)


def test_similarity_sees_what_energy_does_not():
    fused = maps()[0]
    assert plots.structural_similarity(fused, fused.half().float()) > 0.999
    assert plots.structural_similarity(fused, fused.roll(1, 0)) < 0.5


@pytest.mark.parametrize(
    ("fused", "generated", "message"),
    [
        (torch.zeros(6, 8, 8), torch.zeros(6, 8, 9), r"\(6, 8, 8\) and \(6, 8, 9\)"),
        (torch.zeros(6, 2, 8), torch.zeros(6, 2, 8), "at least 3×3"),
        (torch.zeros(1, 6, 8, 8), torch.zeros(1, 6, 8, 8), r"expected one shape \(C, H, W\)"),
        (torch.ones(6, 8, 8), torch.ones(6, 8, 8), "without a channel that varies"),
    ],
)
def test_similarity_refuses(fused, generated, message):
    with pytest.raises(ValueError, match=message):
        plots.structural_similarity(fused, generated)


def test_tsne_parts_what_differs_and_mixes_what_does_not(drawn):
    fused = maps(30)
    for generated, part in ((fused + 0.01 * maps(30, seed=1), False), (fused + 50, True)):
        plots.tsne({"fused": fused, "fused*": generated}, "x.png", "title")
        one, other = (points.get_offsets() for points in drawn[-1].axes[0].collections)
        between = np.linalg.norm(one[:, None] - other, axis=-1)
        within = np.linalg.norm(one[:, None] - one, axis=-1) + 1e9 * np.eye(30)
        assert (between.min(1) > within.min(1)).mean() == part
        assert [text.get_text() for text in drawn[-1].legends[0].get_texts()] == [
            "fused: 30",
            "fused*: 30",
        ]


def test_tsne_of_few_maps_is_the_same_for_the_same_seed(tmp_path):
    pictures = [
        plots.tsne(
            {"a": maps(5), "b": maps(5, seed=1)}, tmp_path / f"{i}.png", seed=seed
        ).read_bytes()
        for i, seed in enumerate((0, 0))
    ]
    assert pictures[0] == pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"fused": maps(4), "fused*": maps(5)}, "t-SNE got 9 maps; expected at least 10"),
        ({"fused": maps(9), "fused*": maps(9) * torch.nan}, "NaN or infinity"),
        (
            {"fused": maps(9), "fused*": maps(9, (4, 4))},
            r"'fused' \(6, 8, 8\), 'fused\*' \(6, 4, 4\)",
        ),
    ],
)
def test_tsne_refuses(kinds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plots.tsne(kinds, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "panels", "curves"), [(1, 1, 0), (3, 3, 1), (40, 8, 1)])
def test_sampling_steps_show_a_few_and_score_all(drawn, steps, panels, curves):
    fused = maps(2)
    estimates = [fused + noise * maps(2, seed=1) for noise in torch.linspace(2, 0, steps + 1)[1:]]
    timesteps = list(range(999, 999 - 10 * steps, -10))
    plots.sampling_steps(fused, estimates, timesteps, "x.png")
    *shown, host = [axis for part in drawn[0].subfigs[:1] for axis in part.axes]
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
    with pytest.raises(ValueError, match="2 estimates and 3 timesteps"):
        plots.sampling_steps(maps(), [maps(), maps()], [3, 2, 1], "x.png")


def test_every_trackers_boxes_are_drawn_in_both_modalities(drawn):
    frames = [np.zeros((40, 60, 3), np.uint8)] * 9
    boxes = {name: np.tile([i, 5, 20, 10], (9, 1)) for i, name in enumerate("abc")}
    plots.tracked_frames(frames, frames, boxes, "x.png", frames=(0, 8), truth=boxes["a"])
    legend = drawn[0].legends[0]
    colours = dict(
        zip((text.get_text() for text in legend.get_texts()), legend.get_lines(), strict=True)
    )
    assert list(colours) == ["a", "b", "c", "truth"]
    for axis in drawn[0].axes:
        for index, (rectangle, name) in enumerate(zip(axis.patches, "abc", strict=False)):
            assert rectangle.get_xy() == (index, 5)
            assert plots.COLOURS[index] == colours[name].get_color()
        assert (
            len({rectangle.get_linewidth() for rectangle in axis.patches[:3]}) == 3
        )  # equal boxes stay visible


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sequences of LasHeR, with a bright target in each modality, results, and the builder of a
    tracker.
    """
    cv2 = pytest.importorskip("cv2")
    root = tmp_path_factory.mktemp("figures")
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        for kind, colour in (
            ("visible", (0, 0, 255)),
            ("infrared", (255, 255, 255)),
        ):  # BGR: a red target
            (root / "data" / name / kind).mkdir(parents=True)
            for number in range(1, 7):
                picture = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
                picture[20:44, 20:44] = colour
                cv2.imwrite(str(root / "data" / name / kind / f"{number:06d}.png"), picture)
        boxes = "20,20,24,24\n" * 6
        (root / "data" / name / "init.txt").write_text(boxes)
        for tracker in ("base", "gmmt"):
            (root / tracker).mkdir(exist_ok=True)
            (root / tracker / f"{name}.txt").write_text(boxes)
    (root / "short").mkdir()
    for name in ("one", "two"):
        (root / "short" / f"{name}.txt").write_text("1,2,3,4\n" * 4)
    (root / "builder.py").write_text(BUILDER)
    for method in ("diffusion", "raw"):
        attach(CONCAT.build(), CONCAT.make_fusion(method=method), CONCAT.adapter()).save_pretrained(
            root / method
        )
    return root


def command(root, out, fusion="diffusion", *extra, builder="OSTrack"):
    parser = argparse.ArgumentParser()
    figures.add_command(parser.add_subparsers())
    options = parser.parse_args(
        [
            "figures",
            "--tracker",
            f"{root / 'builder.py'}:{builder}",
            "--benchmark",
            "lasher",
            "--data",
            str(root / "data"),
            "--out",
            str(out),
            *(["--fusion", str(root / fusion)] if fusion else []),
            *extra,
        ]
    )
    options.run(options)


@pytest.mark.parametrize("fusion", ["diffusion", "raw"])
def test_the_command_draws_everything(folders, tmp_path, capsys, fusion):
    results = ["--results", str(folders / "base"), str(folders / "gmmt")]
    command(folders, tmp_path, fusion, "--steps", "3", *results)
    expected = {
        f"{kind}_{name}.png" for kind in ("features", "tracked_frames") for name in ("one", "two")
    }
    expected |= {"tsne.png", "sampling_steps.png"} if fusion == "diffusion" else {"tsne.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    printed = capsys.readouterr().out
    assert all(str(tmp_path / name) in printed for name in expected)
    assert ("'raw' takes no steps" in printed) == (fusion == "raw")


def test_a_modality_may_lack_its_last_picture(folders, tmp_path):
    shutil.copytree(folders / "data", tmp_path / "data")
    (tmp_path / "data" / "one" / "infrared" / "000006.png").unlink()
    shutil.copytree(folders / "base", tmp_path / "base")
    shutil.copytree(folders / "raw", tmp_path / "raw")
    shutil.copy(folders / "builder.py", tmp_path)
    command(tmp_path, tmp_path / "out", "raw", "--results", str(tmp_path / "base"))
    assert (tmp_path / "out" / "tracked_frames_one.png").is_file()


@pytest.mark.parametrize("builder", ["OSTrack", "Pysot"])  # the second one gets BGR
def test_maps_are_collected_with_their_search_patches_and_no_trace(folders, builder):
    tracker = tracking.load_tracker(f"{folders / 'builder.py'}:{builder}", folders / "raw")
    hooks = [len(module._forward_pre_hooks) for module in tracker.network.modules()]
    sequences = tracking.open_sequences(folders / "data", "lasher")
    fused, generated, examples = figures.collect(tracker, sequences, frames=6)
    assert fused.shape == generated.shape == (6, 8, 8, 8) and not torch.equal(fused, generated)
    assert list(examples) == ["one", "two"] and examples["one"].frame == 3
    for example in examples.values():
        visible, infrared = example.patches
        assert visible.shape == infrared.shape == (8, 8, 3)
        assert visible[4, 4].tolist() == [1, 0, 0] and infrared[4, 4].tolist() == [1, 1, 1]
        torch.testing.assert_close(
            tracker.network.gmmt_fusion.fusion(*(f[None] for f in example.features))[0],
            example.generated,
        )
    assert hooks == [len(module._forward_pre_hooks) for module in tracker.network.modules()]
    assert tracker.network.gmmt_fusion.recorded is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"extra": ["--frames", "4"]},
            "--frames=4 is out of range; expected a whole number of at least 5",
        ),
        (
            {"extra": ["--steps", "0"]},
            "--steps=0 is out of range; expected a whole number from 1 to 1000",
        ),
        ({"extra": ["--results", "short"]}, "short: 4 boxes of one, which has 6 frames"),
        ({"fusion": None}, "nothing is attached to this OSTrack; .* or give --fusion"),
        ({"builder": "Lazy"}, "ran 12 frames, and none of its maps"),
    ],
)
def test_the_command_refuses(folders, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(folders)
    extra = arguments.get("extra", [])
    with pytest.raises(ValueError, match=message):
        command(
            folders,
            tmp_path / "out",
            arguments.get("fusion", "diffusion"),
            *extra,
            builder=arguments.get("builder", "OSTrack"),
        )
    assert not (tmp_path / "out").exists()


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
    plots.curves(scores, "unused")
    (axis,) = drawn[0].axes
    one, dot, other, _ = (line.get_xydata() for line in axis.lines)
    assert axis.get_xlabel() == "recall (%)" and axis.get_ylabel() == "precision (%)"
    np.testing.assert_allclose(one, other)
    assert dot.tolist() == [[scores["large"].recall, scores["large"].precision]]
    assert axis.get_legend().get_texts()[0].get_text() == f"large F {scores['large'].F:.1f}"
