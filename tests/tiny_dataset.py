"""Sequences and videos of a few small images, in any layout."""

import cv2
import numpy as np

from gmmt_fusion.evaluation.layouts import LAYOUTS

BOX = [4.0, 6.0, 10.0, 8.0]
WIDTH, HEIGHT = 33, 25


def make_image(frame, depth=False):
    """Red grows with the frame; a depth is a ramp in millimetres."""
    if depth:
        return (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 20 + frame).astype(np.uint16)
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    blank[...] = 10, 20, 100 + frame  # OpenCV's order
    return blank


def write_images(folder, count=4, depth=False):
    folder.mkdir(parents=True)
    for frame in range(count):  # not padded: 10 must come after 9
        cv2.imwrite(str(folder / f"{frame + 8}.png"), make_image(frame, depth))
    return folder


def write_clip(path, count=4):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (48, 32))
    for frame in range(count):
        writer.write(np.full((32, 48, 3), 60 + 30 * frame, np.uint8))
    writer.release()
    return path


def write_dataset(folder, layout="lasher", names=("a", "b"), count=4):
    known = LAYOUTS[layout]
    row = BOX
    if known.truth_format == "xyxy":  # from the lower right corner to the upper left
        row = [BOX[0] + BOX[2], BOX[1] + BOX[3], BOX[0], BOX[1]]
    for name in names:
        for kind, depth in zip(known.images, (False, known.depth), strict=True):
            write_images(folder / name / kind, count, depth)
        for file, *_ in known.truth:
            (folder / name / file).write_text("\n".join([",".join(map(str, row))] * count))
    return folder
