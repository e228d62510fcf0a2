"""The embedded sequences, their folders, and the small tracker with its committed weights."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch
from embedded import sequences as sq
from embedded.depth import DepthScene
from embedded.scene import Scene
from embedded.siamese import (
    MODALITIES,
    RESPONSE,
    SEARCH_SIZE,
    TEMPLATE_SIZE,
    WEIGHTS,
    SiameseTracker,
    load_tracker,
    make_labels,
)
from embedded.tracking import Tracker, crop, run, run_together
from embedded.training import PairDataset, train_stage


def overlap(boxes, truth):
    low = np.maximum(boxes[:, :2], truth[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    return inner / (boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - inner)


@pytest.fixture(scope="module")
def sequence():
    return sq.generate_sequence(sq.TEST_SEEDS[3], frames=12)


@pytest.fixture
def folder(sequence, tmp_path):
    return sq.write_sequence(sequence, tmp_path / "walk")


def test_generator_is_deterministic(sequence):
    again = sq.generate_sequence(sq.TEST_SEEDS[3], frames=12)
    other = sq.generate_sequence(sq.TEST_SEEDS[4], frames=12)
    for kind in MODALITIES:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(getattr(sequence, kind), getattr(again, kind), strict=True)
        )
    assert (
        np.array_equal(sequence.boxes_visible, again.boxes_visible)
        and sequence.attributes == again.attributes
    )
    assert not np.array_equal(sequence.visible[0], other.visible[0])


def test_seed_ranges_are_disjoint():
    ranges = sq.TRAIN_SEEDS, sq.VALIDATION_SEEDS, sq.TEST_SEEDS
    assert len(set().union(*map(set, ranges))) == sum(map(len, ranges))


@pytest.mark.parametrize("severity", [0.0, 1.0, 1.5, 3.0])
@pytest.mark.parametrize(
    ("frames", "size"), [(1, (320, 256)), (40, (320, 256)), (9, (160, 128)), (20, (400, 300))]
)
def test_boxes_lie_inside_the_frames(severity, frames, size):
    for seed in (1, sq.TEST_SEEDS[0]):
        made = sq.generate_sequence(seed, frames=frames, size=size, severity=severity)
        assert len(made) == len(made.infrared) == len(made.boxes_visible) == frames
        assert made.visible[0].shape == made.infrared[0].shape == (size[1], size[0], 3)
        assert made.visible[0].dtype == made.infrared[0].dtype == np.uint8
        boxes = made.boxes_visible
        assert (
            (boxes[:, :2] >= 0).all()
            and (boxes[:, :2] + boxes[:, 2:] <= size).all()
            and (boxes[:, 2:] > 2).all()
        )
        assert made.attributes and len(set(made.attributes)) == len(made.attributes)


def test_target_is_where_the_box_says():
    """Without troubles, the box differs from what surrounds it in one modality at least."""
    from embedded.scene import Scene

    for seed in range(6):
        scene = Scene(seed, 4, (320, 256), 0.0)
        rgb, heat = scene.draw(2)
        scene.target.sizes[:] = 1e-3
        empty_rgb, empty_heat = scene.draw(2)
        changed = (np.abs(rgb - empty_rgb).sum(2) + np.abs(heat - empty_heat)) > 4
        ys, xs = np.nonzero(changed)
        drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        x, y, w, h = scene.boxes[2]
        assert np.abs(drawn - [x, y, x + w, y + h]).max() < 2.5


def test_undegraded_is_the_same_scene():
    made, clean = (
        sq.generate_sequence(6, frames=12, severity=1.5, degraded=degraded)
        for degraded in (True, False)
    )
    assert np.array_equal(made.boxes_visible, clean.boxes_visible) and made.name != clean.name
    apart = [
        max(np.abs(a.astype(float) - b).mean() for a, b in zip(frames, undisturbed, strict=True))
        for frames, undisturbed in ((made.visible, clean.visible), (made.infrared, clean.infrared))
    ]
    assert max(apart) > 20  # a modality is in trouble in one of them


@pytest.mark.parametrize("arguments", [{"frames": 0}, {"size": (64, 64)}, {"severity": -1}])
def test_generator_refuses(arguments):
    with pytest.raises(ValueError, match="expected frames >= 1"):
        sq.generate_sequence(0, **arguments)


def test_lasher_round_trip(sequence, folder):
    back = sq.read_sequence(folder)
    assert (back.name, len(back), back.attributes) == (
        "walk",
        len(sequence),
        list(sequence.attributes),
    )
    np.testing.assert_allclose(back.boxes_visible, sequence.boxes_visible, atol=0.006)
    assert np.abs(back.visible[5].astype(int) - sequence.visible[5]).mean() < 6
    assert np.abs(back.infrared[-1].astype(int) - sequence.infrared[-1]).mean() < 6
    assert len(back.visible[2:5]) == 3 and len(list(back.infrared)) == len(back)
    with pytest.raises(IndexError):
        back.visible[len(back)]
    assert [s.name for s in sq.read_sequences(folder.parent)] == ["walk"]


def test_gtot_layout(sequence, tmp_path):
    folder = tmp_path / "BlackCar"
    for name, frames in (("v", sequence.visible), ("i", sequence.infrared)):
        (folder / name).mkdir(parents=True)
        for number, frame in enumerate(frames, 1):  # not padded: 10 must come after 9
            cv2.imwrite(str(folder / name / f"{number}{name}.png"), frame[..., ::-1])
    low, high = (
        sequence.boxes_visible[:, :2],
        sequence.boxes_visible[:, :2] + sequence.boxes_visible[:, 2:],
    )
    np.savetxt(
        folder / "groundTruth_v.txt", np.concatenate([low, high], 1), delimiter=" ", fmt="%.4f"
    )
    np.savetxt(
        folder / "groundTruth_i.txt", np.concatenate([high, low], 1), delimiter="\t", fmt="%.4f"
    )
    back = sq.read_sequence(folder)
    np.testing.assert_allclose(back.boxes_visible, sequence.boxes_visible, atol=1e-3)
    assert all(np.array_equal(a, b) for a, b in zip(back.visible, sequence.visible, strict=True))


def change_line(name, number, text):
    def change(folder):
        lines = (folder / name).read_text().splitlines()
        lines[number - 1] = text
        (folder / name).write_text("\n".join(lines))

    return change


def drop_images(kind, count):
    def change(folder):
        for path in sorted((folder / kind).iterdir())[-count:]:
            path.unlink()

    return change


DAMAGE = {
    "no visible folder": (
        lambda f: shutil.rmtree(f / "visible"),
        OSError,
        "has none of the folders .*visible",
    ),
    "empty folder": (drop_images("infrared", 12), OSError, "infrared has no images"),
    "frames missing": (
        drop_images("infrared", 3),
        ValueError,
        "12 visible and 9 infrared frames, 12 boxes",
    ),
    "columns": (
        change_line("visible.txt", 3, "1,2,3"),
        ValueError,
        r"visible\.txt, line 3: 3 columns",
    ),
    "attributes": (
        lambda f: (f / "attributes.json").write_text("[]"),
        ValueError,
        "attributes.json: expected",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(folder, damage):
    change, error, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(error, match=message):
        sq.read_sequence(folder)


def test_one_frame_less_is_told(folder):
    drop_images("infrared", 1)(folder)
    with pytest.warns(UserWarning, match="12 visible and 11 auxiliary frames"):
        back = sq.read_sequence(folder)
    assert len(back) == len(back.infrared) == len(back.boxes_visible) == 12
    assert np.array_equal(back.infrared[11], back.infrared[10])


def test_damaged_image_and_missing_roots(folder, tmp_path):
    (folder / "visible" / "000002.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"000002\.jpg cannot be read as an image"):
        sq.read_sequence(folder).visible[1]
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "no sequences"),
    ):
        with pytest.raises(OSError, match=message):
            sq.read_sequences(path)
    with pytest.raises(OSError, match="is not a folder"):
        sq.read_sequence(tmp_path / "none")


def test_crop_is_centred():
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[20:30, 40:50] = 255
    patch = crop(frame, (45, 25), 20.0, 61)[..., 0] > 127
    ys, xs = np.nonzero(patch)
    assert abs(xs.mean() - 30) < 0.6 and abs(ys.mean() - 30) < 0.6 and abs(len(xs) - 30.5**2) < 60


def test_labels():
    cls, loc = make_labels(torch.tensor([[-24.0, -16, 24, 16], [30.0, 30, 33, 33], [0.0, 0, 0, 0]]))
    middle = RESPONSE // 2
    assert cls[0, middle, middle] == 1 and loc[0, :, middle, middle].tolist() == [24, 16, 24, 16]
    assert cls[0, 0, 0] == 0 and (cls[0] == -1).any()
    assert (cls[2] == 0).all()


def pair_batch(size=4):
    dataset = PairDataset(sq.TRAIN_SEEDS, sequences=3, frames=3, length=20, seed=5)
    return dataset, torch.utils.data.default_collate([dataset[i] for i in range(size)])


def test_pairs_are_deterministic_and_labelled():
    dataset, batch = pair_batch()
    again, _ = pair_batch()
    assert all(torch.equal(dataset[7][name], again[7][name]) for name in dataset[7])
    assert batch["template"].shape == (4, 6, TEMPLATE_SIZE, TEMPLATE_SIZE)
    assert batch["search"].shape == (4, 6, SEARCH_SIZE, SEARCH_SIZE)
    assert (
        set(batch["label_cls"].unique().tolist()) <= {-1, 0, 1} and (batch["label_cls"] == 1).any()
    )
    with pytest.raises(IndexError):
        dataset[20]


@pytest.mark.parametrize("modalities", [MODALITIES, ("infrared",)])
def test_losses_and_gradients_are_finite(modalities):
    torch.manual_seed(0)
    network = SiameseTracker(modalities)
    losses = network(pair_batch()[1])
    assert set(losses) == {"total_loss", "cls_loss", "loc_loss"}
    losses["total_loss"].backward()
    assert torch.isfinite(losses["total_loss"])
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_stage_trains_only_its_parts_and_resumes(tmp_path):
    dataset, _ = pair_batch()
    network = load_tracker()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_stage(network, [network.fusion], dataset, tmp_path / "stage.pt", batch=5)
    moved = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved and all(name.startswith("fusion.") for name in moved)
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {
        "fusion"
    }
    fresh = load_tracker()
    train_stage(fresh, [fresh.fusion], dataset, tmp_path / "stage.pt", batch=5)  # already complete
    assert all(
        torch.equal(value, network.state_dict()[name]) for name, value in fresh.state_dict().items()
    )


def test_refuses_unknown_modalities_and_wrong_order():
    with pytest.raises(ValueError, match="expected one or both"):
        SiameseTracker(("depth",))
    network = SiameseTracker()
    with pytest.raises(RuntimeError, match="before template"):
        network.track(torch.zeros(1, 6, SEARCH_SIZE, SEARCH_SIZE))
    with pytest.raises(RuntimeError, match="call init"):
        Tracker(network).track(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="positive size"):
        Tracker(network).init(
            np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8), (1, 2, 0, 4)
        )


def test_committed_tracker_tracks():
    assert WEIGHTS.stat().st_size < 4e6
    network, calls = load_tracker(), []
    network.fusion.register_forward_hook(
        lambda module, inputs, output: calls.append((inputs[0].shape, output.shape))
    )
    scores = []
    for seed in sq.TEST_SEEDS[:3]:
        made = sq.generate_sequence(seed, frames=25, severity=0.5)
        ticks = []
        with torch.inference_mode():
            boxes = run(
                network, made, progress=lambda frame, frames, ticks=ticks: ticks.append(frame)
            )
        assert boxes.shape == (25, 4) and np.isfinite(boxes).all() and ticks == list(range(1, 26))
        scores.append(overlap(boxes, made.boxes_visible).mean())
    assert np.mean(scores) > 0.5
    # The fusion sees the template once and every search once, as one concatenation.
    assert calls[0] == ((1, 128, 6, 6), (1, 64, 6, 6)) and calls[1] == (
        (1, 128, 24, 24),
        (1, 64, 24, 24),
    )
    assert len(calls) == 3 * 25


@pytest.mark.parametrize("modality", MODALITIES)
def test_single_modality_ignores_the_other(modality, sequence):
    network = load_tracker((modality,))
    boxes = run(network, sequence)
    blank = [np.zeros_like(frame) for frame in sequence.visible]
    other = "infrared" if modality == "visible" else "visible"
    changed = sq.RGBTSequence(**{**vars(sequence), other: blank})
    assert np.array_equal(boxes, run(network, changed))


def test_tracking_together_is_tracking_one_by_one():
    network, made = (
        load_tracker(),
        [sq.generate_sequence(seed, frames=6, severity=0.5) for seed in range(3)],
    )
    together = run_together(network, made)
    for sequence in made:
        np.testing.assert_allclose(together[sequence.name], run(network, sequence), atol=0.05)
    shifts = np.array([[0, 0], [3, -2], [1, 1]])
    shifted = run_together(network, made, shifts)
    moved = [(shifted[sequence.name] - together[sequence.name])[0, :2] for sequence in made]
    np.testing.assert_allclose(moved, shifts)
    assert np.abs(shifted[made[1].name] - together[made[1].name])[1:].max() > 0.1
    with pytest.raises(ValueError, match=r"sequences of \[4, 6\] frames; expected one length"):
        run_together(network, [*made, sq.generate_sequence(9, frames=4)])


def test_depth_is_in_millimetres_with_holes() -> None:
    scene, clean = (
        DepthScene(sq.TEST_SEEDS[1], 60, (320, 256), 1.0, kind) for kind in (True, False)
    )
    for t in (0, 30, 59):
        depth = clean.depth(t, np.random.default_rng(t))
        assert depth.dtype == np.uint16 and depth.shape == (256, 320)
        measured = depth[depth > 0]
        assert measured.min() > 500 and measured.max() < 20_000
        assert 0.001 < (depth == 0).mean() < 0.3  # beside edges, and single pixels
        visible, shown = scene.render(t)
        assert visible.shape == shown.shape == (256, 320, 3) and shown.dtype == np.uint8
        assert np.array_equal(
            visible, Scene(sq.TEST_SEEDS[1], 60, (320, 256), 1.0, True).render(t)[0]
        )
        assert np.array_equal(shown, scene.render(t)[1])


def test_the_target_stands_out_in_depth() -> None:
    nearer = []
    for seed in sq.TEST_SEEDS[:8]:
        scene = DepthScene(seed, 12, (320, 256), 0.0, False)
        depth = scene.depth(0, np.random.default_rng(0)).astype(float)
        x, y, w, h = scene.boxes[0].astype(int)
        inside = depth[y : y + h, x : x + w]
        nearer.append(np.median(depth[depth > 0]) - np.median(inside[inside > 0]))
    assert np.mean(np.array(nearer) > 300) > 0.8


def test_pairs_of_visible_image_and_depth() -> None:
    pairs = PairDataset(sq.TRAIN_SEEDS, 2, frames=2, length=3, scene=DepthScene)
    assert pairs[0]["search"].shape == (6, 191, 191)
    red, blue = pairs[0]["search"][3], pairs[0]["search"][5]
    assert not torch.equal(red, blue)  # a colour map
    thermal = PairDataset(sq.TRAIN_SEEDS, 2, frames=2, length=3)
    assert torch.equal(thermal[0]["search"][:3], pairs[0]["search"][:3])
    assert torch.equal(thermal[0]["search"][3], thermal[0]["search"][5])
