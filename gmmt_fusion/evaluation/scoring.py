"""Scoring folders of result files against a benchmark's ground truth, file names and all."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from .attributes import read_attributes
from .layouts import get_layout, read_image_sizes, read_truth
from .metrics import Scores, evaluate
from .result_files import name_trackers, read_results


def score_folders(
    folders: Sequence[Path],
    truth: Path,
    layout: str,
    *,
    sequences: Iterable[str] | None = None,
    attributes: Path | None = None,
    format: str = "auto",
) -> dict[str, Scores]:
    """The scores of several trackers by the benchmark's own protocol, by the trackers' names.

    Args:
        folders: of result files, one per tracker; their names are the trackers'.
        truth: the ground truth, as the benchmark ships it.
        layout: a name in `LAYOUTS`.
        sequences: the names to score, by default all that have ground truth.
        attributes: the attribute files, as the benchmark ships them; see `read_attributes`.
        format: of the result files, as for `read_boxes`.

    Raises:
        OSError: a file is missing. ValueError: a file cannot be scored; both name it.
    """
    known = get_layout(layout)
    boxes_of_truth = read_truth(truth, layout, sequences)
    members = read_attributes(attributes) if attributes else None
    sizes = read_image_sizes(truth, list(boxes_of_truth))
    scores = {}
    for tracker, folder in name_trackers(folders).items():
        boxes, confidences = read_results(folder, layout, list(boxes_of_truth), format)
        boxes = {
            name: known.pick_annotated(rows, len(boxes_of_truth[name][0]))
            for name, rows in boxes.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the scores' notes say the same
            try:
                scores[tracker] = evaluate(
                    boxes,
                    boxes_of_truth,
                    known.protocol,
                    attributes=members,
                    confidences=confidences,
                    image_sizes=sizes,
                )
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from None
    return scores
