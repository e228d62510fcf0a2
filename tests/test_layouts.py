"""What benchmarks ship: the table of layouts, ground truth and attributes."""

from pathlib import Path

import numpy as np
import pytest
from boxes import write_boxes

from gmmt_fusion.evaluation.attributes import read_attributes
from gmmt_fusion.evaluation.layouts import (
    LAYOUTS,
    find_sequences,
    get_layout,
    guess_layout,
    read_truth,
)
from gmmt_fusion.evaluation.protocols import PROTOCOLS


def test_the_table_has_nine_layouts_and_their_protocols():
    assert list(LAYOUTS) == [
        *("gtot", "rgbt234", "lasher", "rgbd1k", "depthtrack", "vot-lt"),
        *("vot-rgbt", "vtuav", "visevent"),
    ]
    assert {layout.protocol for layout in LAYOUTS.values()} == set(PROTOCOLS)
    with pytest.raises(ValueError, match=r"otb.*gtot.*vot-lt"):
        get_layout("otb")


def test_depth_and_long_term_are_two_facts():
    assert [name for name, layout in LAYOUTS.items() if layout.depth] == [
        name for name, layout in LAYOUTS.items() if layout.images[1] == "depth"
    ]
    assert [name for name, layout in LAYOUTS.items() if layout.long_term] == [
        name for name, layout in LAYOUTS.items() if PROTOCOLS[layout.protocol].long_term
    ]


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("gtot", "gtot"),
        ("rgbt234", "lasher"),
        ("lasher", "lasher"),
        ("rgbd1k", "vot-lt"),
        ("depthtrack", "vot-lt"),
        ("vot-lt", "vot-lt"),
    ],
)
def test_folders_of_images_are_recognised(tmp_path, name, guess):
    for sequence in ("b", "a"):
        (tmp_path / sequence / LAYOUTS[name].images[0]).mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert guess_layout(tmp_path / "a") == guess
    assert find_sequences(tmp_path, name) == ["a", "b"]
    for search in (lambda: guess_layout(tmp_path), lambda: find_sequences(tmp_path / "a", name)):
        with pytest.raises(FileNotFoundError, match=LAYOUTS[name].images[0]):
            search()


@pytest.mark.parametrize(
    ("layout", "files", "modalities"),
    [
        (
            "gtot",
            {"a/groundTruth_v.txt": [10, 20, 13, 24], "a/groundTruth_i.txt": [11, 20, 13, 24]},
            2,
        ),
        (
            "rgbt234",
            {
                "a/visible.txt": [10, 20, 3, 4],
                "a/infrared.txt": [11, 20, 2, 4],
                "a/init.txt": [0] * 4,
            },
            2,
        ),
        ("lasher", {"a.txt": [10, 20, 3, 4]}, 1),
        ("lasher", {"a/init.txt": [10, 20, 3, 4], "a/visible.txt": [0] * 4}, 1),
        ("lasher", {"a/visible.txt": [10, 20, 3, 4], "notes/readme.md": [0]}, 1),
        ("rgbd1k", {"a/groundtruth_rect.txt": [10, 20, 3, 4]}, 1),
        ("depthtrack", {"a/groundtruth.txt": [10, 20, 3, 4]}, 1),
        ("vot-lt", {"a/groundtruth.txt": [10, 20, 3, 4]}, 1),
    ],
)
def test_ground_truth_layouts(tmp_path, layout, files, modalities):
    for name, row in files.items():
        write_boxes(tmp_path / name, [row, row])
    truth = read_truth(tmp_path, layout)
    assert list(truth) == ["a"] and len(truth["a"]) == modalities
    np.testing.assert_array_equal(truth["a"][0], [[10, 20, 3, 4]] * 2)
    with pytest.raises(FileNotFoundError, match="sequence 'b'; expected <sequence>/"):
        read_truth(tmp_path, layout, ["a", "b"])


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"flags/a.txt": "1,0", "flags/b.txt": "1,1", "Attributes_order.txt": "LI, TC"}, "flags"),
        (
            {
                "flags/LI.txt": "1\n1\n",
                "flags/TC.txt": "0\n1\n",
                "flags/SequencesName.txt": "a\nb\n",
            },
            "flags",
        ),
        ({"table.txt": "a\t\t0 0 0 1 0 0 0 0\n\nb 0 0 0 1 0 1 0 0\n"}, "table.txt"),
    ],
)
def test_attribute_layouts(tmp_path, files, path):
    (tmp_path / "flags").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    attributes = read_attributes(tmp_path / path)
    assert attributes["LI"] == {"a", "b"} and attributes["TC"] == {"b"}
    name = next(name for name in files if name.startswith(path))
    (tmp_path / name).write_text(files[name].replace("1", "1 1", 1))
    with pytest.raises(ValueError, match=rf"{Path(name).name}.* flags; expected"):
        read_attributes(tmp_path / path)
