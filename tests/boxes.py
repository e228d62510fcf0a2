"""Boxes to be scored, and what short-term protocols make of them, one frame at a time."""

import math

import numpy as np

SHORT_TERM = {"gtot": ("PR", "SR"), "rgbt234": ("MPR", "MSR"), "lasher": ("PR", "NPR", "SR")}
BOX = [10, 10, 20, 20]
NAN = [math.nan] * 4


def shifted(by, box=BOX):
    return [box[0] + by, *box[1:]]


def write_boxes(path, boxes):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, boxes, delimiter=",", fmt="%g")
    return path.parent


def random_boxes(seed, length=40, spread=12.0):
    """(truth, infrared truth, results), a few of the results without a positive size."""
    generator = np.random.default_rng(seed)
    truth = np.column_stack(
        [generator.uniform(1, 200, (length, 2)), generator.uniform(8, 60, (length, 2))]
    ).round()
    infrared = truth + generator.integers(-3, 4, truth.shape)
    results = truth + generator.normal(0, spread, truth.shape)
    return truth, infrared, results


def naive_curves(protocol, boxes, truths):
    """One frame and one threshold at a time, from the definitions."""

    def error(box, true, unit=(1.0, 1.0)):
        gap = [(box[i] + box[i + 2] / 2 - true[i] - true[i + 2] / 2) / unit[i] for i in (0, 1)]
        return math.hypot(*gap)

    def overlap(a, b):
        sides = [max(0.0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
        both = sides[0] * sides[1]
        union = a[2] * a[3] + b[2] * b[3] - both
        return both / union if union else 0.0

    boxes = [list(box) for box in boxes]
    if protocol == "lasher":
        for i in range(1, len(boxes)):
            if boxes[i][2] <= 0 or boxes[i][3] <= 0:
                boxes[i] = boxes[i - 1]
        boxes[0] = list(truths[0][0])
    frames = []
    for box, *trues in zip(boxes, *truths, strict=True):
        near, over = (
            min(error(box, true) for true in trues),
            max(overlap(box, true) for true in trues),
        )
        if protocol == "lasher" and min(trues[0]) <= 0:
            frames.append((-1, -1, -1))
        elif protocol == "lasher":
            frames.append((near, error(box, trues[0], trues[0][2:]), over))
        else:
            frames.append((near, over))
    curves = []
    for number, key in enumerate(SHORT_TERM[protocol]):
        if key in ("SR", "MSR"):
            steps = 50 if protocol == "gtot" else 20
            counts = [sum(frame[number] > k / steps for frame in frames) for k in range(steps + 1)]
        elif protocol == "gtot":
            counts = [sum(frame[number] < k / 2 for frame in frames) for k in range(51)]
        else:
            scale = 100 if key == "NPR" else 1
            counts = [sum(frame[number] <= k / scale for frame in frames) for k in range(51)]
        curves.append(np.array(counts))
    return curves
