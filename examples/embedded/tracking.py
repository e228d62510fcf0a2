"""The test-time loop of SiamFC's family, as SiamBAN has it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from .sequences import RGBTSequence
from .siamese import RESPONSE, SEARCH_SIZE, STRIDE, TEMPLATE_SIZE

CONTEXT = 0.5  # margin around the template's box, as a part of w + h


def context_side(width, height):
    """Side of the square that the template crop shows, in the pixels of width and height."""
    margin = CONTEXT * (width + height)
    return np.sqrt((width + margin) * (height + margin))


def crop(frame: np.ndarray, centre: tuple[float, float], side: float, size: int) -> np.ndarray:
    """A square of `side` frame pixels around centre (x, y), resampled to (size, size[, 3]).

    What lies outside of the frame has its mean.
    """
    scale = side / size
    # The centre of a pixel is at its index + 0.5; the middle pixel of the crop lies on the centre.
    x, y = (c - 0.5 - scale * (size - 1) / 2 for c in centre)
    matrix = np.array([[scale, 0, x], [0, scale, y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        frame,
        matrix,
        (size, size),
        flags=flags,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=cv2.mean(frame),
    )


class Tracker:
    """Follows one target: crop, respond, penalise change, window, smooth.

    Args:
        network: with `template(z)` and `track(x) -> {"cls", "loc"}`, as `SiameseTracker`; the crops
            go to the device of its parameters.
        penalty: strength of the penalty on changes of scale and ratio.
        window: weight of the cosine window.
        rate: how fast the size follows.
    """

    def __init__(
        self, network: nn.Module, *, penalty: float = 0.1, window: float = 0.25, rate: float = 0.35
    ):
        self.network, self.penalty, self.window_weight, self.rate = network, penalty, window, rate
        hann = np.hanning(RESPONSE + 2)[1:-1]
        self.window = np.outer(hann, hann)
        steps = (np.arange(RESPONSE) - (RESPONSE - 1) / 2) * STRIDE
        self.points = np.stack(
            np.meshgrid(steps, steps)
        )  # x, y from the middle of the search crop, crop pixels
        self.centre = self.size = None
        self.score = 0.0

    def init(self, visible: np.ndarray, infrared: np.ndarray, box) -> None:
        """Start on a frame, (H, W, 3) each, with the box (x, y, w, h) of the target."""
        self.place(box)
        with torch.no_grad():
            self.network.template(self.patch(visible, infrared, template=True))

    def place(self, box) -> None:
        """Be where the box (x, y, w, h) is."""
        x, y, w, h = (float(v) for v in box)
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            raise ValueError(f"box={tuple(box)}; expected finite (x, y, w, h) with a positive size")
        self.centre, self.size = np.array([x + w / 2, y + h / 2]), np.array([w, h])

    def patch(self, visible: np.ndarray, infrared: np.ndarray, template: bool = False) -> Tensor:
        """The crop (1, 6, S, S), 0..255, around the present place: search or template."""
        if self.size is None:
            raise RuntimeError("call init() with the target's box first")
        side, size = context_side(*self.size), TEMPLATE_SIZE
        if not template:
            side, size = side * SEARCH_SIZE / TEMPLATE_SIZE, SEARCH_SIZE
        parts = [crop(frame, tuple(self.centre), side, size) for frame in (visible, infrared)]
        crops = torch.from_numpy(np.concatenate(parts, 2))
        device = next(self.network.parameters()).device
        return rearrange(crops, "h w c -> 1 c h w").to(device, torch.float32)

    def track(self, visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
        """The target's box (x, y, w, h) in the next frame."""
        with torch.no_grad():
            output = self.network.track(self.patch(visible, infrared))
        return self.update(output["cls"][0], output["loc"][0], (visible.shape[1], visible.shape[0]))

    def update(self, cls: Tensor, loc: Tensor, frame_size: tuple[int, int]) -> np.ndarray:
        """The box (x, y, w, h) in a frame of (width, height).

        cls (2, R, R) and loc (4, R, R) are the head's maps.
        """
        score, loc = cls.float().softmax(0)[1].cpu().numpy(), loc.float().cpu().numpy()
        scale = TEMPLATE_SIZE / context_side(*self.size)
        corners = self.points - loc[:2], self.points + loc[2:]
        centres, sizes = (corners[0] + corners[1]) / 2, np.maximum(corners[1] - corners[0], 1)

        def change(ratio):
            return np.maximum(ratio, 1 / ratio)

        old = self.size * scale
        scale_change = change(context_side(*sizes) / context_side(*old))
        ratio_change = change((old[0] / old[1]) / (sizes[0] / sizes[1]))
        penalty = np.exp(-(scale_change * ratio_change - 1) * self.penalty)
        ranking = penalty * score * (1 - self.window_weight) + self.window * self.window_weight
        best = np.unravel_index(int(ranking.argmax()), ranking.shape)
        self.score = float(score[best])
        rate = float(penalty[best] * score[best]) * self.rate
        self.centre = np.clip(self.centre + centres[:, best[0], best[1]] / scale, 0, frame_size)
        self.size = np.clip(
            self.size * (1 - rate) + sizes[:, best[0], best[1]] / scale * rate, 6, frame_size
        )
        return np.concatenate([self.centre - self.size / 2, self.size])


def run(
    network: nn.Module, sequence: RGBTSequence, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Boxes (N, 4) of a whole sequence, the first one being given.

    progress(frame, frames) is called on every frame.
    """
    tracker = Tracker(network)
    boxes = np.zeros((len(sequence), 4))
    for t in range(len(sequence)):
        if t:
            boxes[t] = tracker.track(sequence.visible[t], sequence.infrared[t])
        else:
            boxes[t] = sequence.boxes_visible[0]
            tracker.init(sequence.visible[0], sequence.infrared[0], boxes[0])
        if progress is not None:
            progress(t + 1, len(sequence))
    return boxes


def run_together(
    network: nn.Module,
    sequences: list[RGBTSequence],
    shifts: np.ndarray | None = None,
    **options: float,
) -> dict[str, np.ndarray]:
    """Boxes (N, 4) by name, as `run` gives them up to rounding, a frame of all at a time.

    shifts: (sequences, 2) of the first boxes given, pixels, as in OTB's spatial robustness.
    options: of `Tracker`.
    """
    trackers = [Tracker(network, **options) for _ in sequences]
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1:
        raise ValueError(f"sequences of {sorted(lengths)} frames; expected one length")
    boxes = np.zeros((len(sequences), *lengths, 4))
    boxes[:, 0] = [sequence.boxes_visible[0] for sequence in sequences]
    boxes[:, 0, :2] += 0 if shifts is None else shifts
    for tracker, track in zip(trackers, boxes, strict=True):
        tracker.place(track[0])
    with torch.no_grad():
        for t in range(boxes.shape[1]):
            patches = torch.cat(
                [
                    tracker.patch(sequence.visible[t], sequence.infrared[t], template=t == 0)
                    for tracker, sequence in zip(trackers, sequences, strict=True)
                ]
            )
            if t == 0:
                network.template(patches)
                continue
            output = network.track(patches)
            for i, (tracker, sequence) in enumerate(zip(trackers, sequences, strict=True)):
                height, width = sequence.visible[t].shape[:2]
                boxes[i, t] = tracker.update(output["cls"][i], output["loc"][i], (width, height))
    return {sequence.name: track for sequence, track in zip(sequences, boxes, strict=True)}
