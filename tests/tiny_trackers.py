"""Trackers that do next to nothing, in the ways in which real ones are driven."""

import torch
from cases import CASES
from torch import nn


class Follower(nn.Module):
    """Moves its box by a pixel a frame, as a tracker of OSTrack's family."""

    images: list = []  # noqa: RUF012 the test reads what the command's own instance saw
    fail_at, start = None, 0.0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), self.start))

    def initialize(self, image, info):
        Follower.images.append(image)
        self.box = info["init_bbox"]

    def track(self, image):
        assert not torch.is_grad_enabled()
        Follower.images.append(image)
        if len(Follower.images) == Follower.fail_at:
            raise KeyboardInterrupt
        self.box = [self.box[0] + 1, *self.box[1:]]
        return {"target_bbox": self.box, "best_score": 0.25}


class Pysot(Follower):
    """The same as a tracker of pysot's family, without a confidence."""

    initialize = None

    def init(self, image, box):
        Follower.images.append(image)
        self.box = box

    def track(self, image):
        return {"bbox": torch.tensor(super().track(image)["target_bbox"])}


class Lost(Follower):
    def track(self, image):
        return {"target_bbox": [1.0, 2.0, float("nan"), 4.0]}


class Mute(Follower):
    def track(self, image):
        return [1, 2, 3, 4]


class Unsure(Follower):
    """Gives a confidence in some frames only."""

    def track(self, image):
        out = super().track(image)
        return out if len(Follower.images) % 2 else {"target_bbox": out["target_bbox"]}


class Failing(Follower):
    def track(self, image):
        raise KeyError("score")


class Idle:
    """Is no tracker."""


class Holder:
    """Drives a network that it does not hold as an attribute of its own."""

    def __init__(self):
        self.parts = [Follower()]

    def initialize(self, image, info):
        self.parts[0].initialize(image, info)

    def track(self, image):
        return self.parts[0].track(image)


def needs_arguments(checkpoint):
    return Follower()


class _Host:
    """Runs a network with a fusion point on every frame, and leaves the box where it is."""

    adapter = CASES[0].adapter()

    def __init__(self):
        self.network = CASES[0].build()

    def search(self, image):
        search = torch.from_numpy(image.copy()).permute(2, 0, 1)[None, :, ::8, ::8] / 255
        self.network(search[..., ::2, ::2], search)


class HostOfOSTrack(_Host):
    def initialize(self, image, info):
        self.box = info["init_bbox"]

    def track(self, image):
        self.search(image)
        return {"target_bbox": self.box}


class HostOfPysot(_Host):
    def init(self, image, box):
        self.box = box

    def track(self, image):
        self.search(image)
        return {"bbox": self.box}


class LazyHost(HostOfOSTrack):
    """Never calls the network."""

    def search(self, image):
        pass
