"""A modality without an image: what a tracker is given in its place, from files and from code."""

import cv2
import numpy as np
import pytest
import torch
from tiny_dataset import BOX, HEIGHT, WIDTH, write_dataset
from tracking_commands import command

from gmmt_fusion.evaluation.missing import fill_missing, is_blank, make_missing
from gmmt_fusion.evaluation.sequences import TrackingSequence, open_sequence
from gmmt_fusion.evaluation.tracking import run
from gmmt_fusion.training import Degradation


def noise(seed, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (HEIGHT, WIDTH, 3), dtype=np.uint8)


BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
CODED = BLACK + np.random.default_rng(0).integers(0, 4, BLACK.shape, dtype=np.uint8)


@pytest.mark.parametrize("absent", [None, BLACK, BLACK + 255, CODED], ids=str)
def test_what_stands_for_an_image(absent):
    first, second = noise(1), noise(2, 90, 120)
    frames = [first, absent, second, absent, absent, first]
    with pytest.warns(match="thermal is blank in frame 2") if absent is not None else no_warning():
        filled = list(fill_missing(frames, "thermal"))
    for index, last in ((1, first), (3, second), (4, second)):
        assert filled[index].dtype == np.uint8
        np.testing.assert_array_equal(filled[index], make_missing(last, index + 1))
    for index in (0, 2, 5):
        assert filled[index] is frames[index]


def no_warning():
    import contextlib

    return contextlib.nullcontext()


def test_it_is_what_training_calls_missing():
    """Grey, of the image's mean, with as much grain: of another draw, whole numbers apart."""
    image = noise(3, 20, 200)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    trained = (
        Degradation(1.0, ("missing",))
        .corrupt([batch], torch.Generator().manual_seed(0))[0][0]
        .permute(1, 2, 0)
    )
    fed = make_missing(image, 7).astype(float)
    for grey in (trained.numpy(), fed):
        np.testing.assert_allclose(grey.std(2), 0, atol=1e-4)  # one grain for all channels
    assert fed.mean() == pytest.approx(float(trained.mean()), abs=0.5)
    assert fed.std() == pytest.approx(float(trained.std()), rel=0.1)


@pytest.mark.parametrize(("image", "blank"), [(CODED, True), (noise(1), False), (BLACK, True)])
def test_blank(image, blank):
    assert is_blank(image) is blank
    assert is_blank(image[:, :1] * 0 + np.array([9, 99, 199], np.uint8))  # a colour map of nothing


def test_a_first_frame_must_be_there():
    with pytest.raises(ValueError, match="a: the auxiliary modality has no image in frame 1"):
        next(iter(TrackingSequence("a", [noise(1)], [None], np.array(BOX))))


class Watcher:
    """Keeps the images that it is given."""

    def __init__(self):
        self.seen = []

    def initialize(self, image, info):
        self.seen.append(image)

    def track(self, image):
        self.seen.append(image)
        return {"target_bbox": BOX, "best_score": 0.5}


def write_noise(folder, layout="lasher", count=5):
    """A sequence of real-looking images; of depths under a layout of depths."""
    from gmmt_fusion.evaluation.layouts import LAYOUTS

    known = LAYOUTS[layout]
    folder = write_dataset(folder, layout, names=("a",), count=count) / "a"
    for kind, depth in zip(known.images, (False, known.depth), strict=True):
        for frame in range(count):
            image = noise(frame)
            image = image[..., 0].astype(np.uint16) * 10 if depth else image
            cv2.imwrite(str(folder / kind / f"{frame + 8}.png"), image)
    return folder


@pytest.mark.parametrize("layout", ["lasher", "gtot", "depthtrack"])
def test_a_file_and_none_are_the_same(tmp_path, layout):
    from gmmt_fusion.evaluation.layouts import LAYOUTS

    folder = write_noise(tmp_path, layout)
    whole = open_sequence(folder, layout)
    pairs = [list(whole.visible), list(whole.auxiliary)]
    first, second = (folder / kind for kind in LAYOUTS[layout].images)
    (first / "10.png").unlink()
    (second / "9.png").unlink()
    with pytest.warns(match=r"lacks 1 of 5 images in .*, the first is that of frame [23]; they"):
        lost = open_sequence(folder, layout)
    pairs[0][2] = pairs[1][1] = None
    given = TrackingSequence("a", *pairs, np.array(BOX))
    seen = []
    for sequence in (lost, given):
        watcher = Watcher()
        run(watcher, sequence)
        seen.append(np.stack(watcher.seen))
    if layout != "depthtrack":  # whose auxiliary images say that they are depths, and come as BGR
        np.testing.assert_array_equal(*seen)
    np.testing.assert_array_equal(seen[0][2][..., :3].std(2), 0)
    np.testing.assert_array_equal(seen[0][1][..., 3:].std(2), 0)


def test_the_command(tmp_path, capsys):
    folder = write_noise(tmp_path / "data", count=4)
    (folder / "infrared" / "9.png").unlink()
    arguments = ("--benchmark", "lasher", "--data", tmp_path / "data", "--video")
    assert command(tmp_path / "out", *arguments) == 0
    assert "lacks 1 of 4 images in infrared" in capsys.readouterr().err
    assert len((tmp_path / "out" / "a.txt").read_text().splitlines()) == 4
