"""The state of a run: everything that a checkpoint holds, and the folder that it is written to."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from ..attaching.attachment import Attachment
from ..files import (
    differences,
    disk_errors,
    own_folder,
    remove_folder_atomically,
    write_atomically,
)
from ..model import checkpoint
from .checkpoints import Checkpoint, list_checkpoints, read_last, write_checkpoint
from .identity import Identity, summarise
from .learners import Learner
from .repeatable import get_random_state, set_random_state
from .states import pack

if TYPE_CHECKING:  # both take seconds to import
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel


class Stateful(Protocol):
    """What has a state_dict of its own."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


@dataclass
class RunState:
    """A run as its last checkpoint knows it.

    attachment: whose fusion and head are trained. folder: of the run. keep: checkpoints kept.
    identify: what the run is, were it of so many epochs; a checkpoint of another run is refused.
    learners: "fusion" and, of a CGAN, "discriminator". average: the moving average of the fusion's
    weights, or None. step: steps done. best: validation so far, and best_step where it was, -1 for
    none. record: the last values of
    everything that was logged.
    """

    accelerator: "Accelerator"
    attachment: Attachment
    folder: Path
    keep: int
    epochs: int
    identify: Callable[[int], Identity]
    learners: dict[str, Learner]
    average: "EMAModel | None"
    step: int = 0
    best: float = -math.inf
    best_step: int = -1
    record: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identity = self.identify(self.epochs)
        self._log_digest, self._log_bytes = hashlib.sha256(), 0
        self.check_states()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the fusion and its head."""
        return self.learners["fusion"].parameters

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, the oldest first."""
        return list_checkpoints(self.folder / "checkpoints")

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """The folder is this run's inside the `with`, of all its processes.

        Raises:
            OSError: it is another's.
        """
        with contextlib.ExitStack() as stack:
            parts = ("checkpoints", "best", "final")
            owner = own_folder(self.folder, "trains", *parts)
            self.on_main(lambda: stack.enter_context(owner))
            yield

    def on_main(self, act: Callable[[], object]) -> None:
        """Do something on the main process; where it fails, it fails on all, and none waits."""
        from accelerate.utils import broadcast_object_list

        failure: list[Exception | None] = [None]
        if self.accelerator.is_main_process:
            try:
                act()
            except Exception as error:  # raised below, everywhere
                failure = [error]
        if self.accelerator.num_processes > 1:
            failure = broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    def check_states(self) -> None:
        """Raise ValueError where a state could not be read back, while nothing is lost yet."""
        for name, part in self._parts().items():
            pack(part.state_dict(), name)

    def log(self, values: Mapping[str, float]) -> None:
        """Write values of this step to the log, and to accelerate's trackers."""
        self.record = {**self.record, "step": self.step, **values}
        self.accelerator.log(dict(values), step=self.step)
        if self.accelerator.is_main_process:
            text = json.dumps(_without_nan({"step": self.step, **values}), allow_nan=False)
            line, path = f"{text}\n".encode(), self.folder / "log.jsonl"
            with disk_errors(path), path.open("ab") as file:
                file.write(line)
            self._log_digest.update(line)
            self._log_bytes += len(line)

    def save(self) -> None:
        """Write a checkpoint of this step, and remove the oldest; called in every process.

        Raises:
            OSError: of the disk, with the path. ValueError: a state could not be read back.
        """
        from accelerate.utils import gather_object

        device, generator = self.accelerator.device, self.attachment.fusion.generator
        random_states = gather_object([get_random_state(device, generator)])
        about = {
            "step": self.step,
            "best": str(self.best),  # also infinities, for which JSON has no word
            "best_step": self.best_step,
            "record": _without_nan(self.record),
            "run": self.identity,
            "log": {"bytes": self._log_bytes, "sha256": self._log_digest.hexdigest()},
            "random_states": random_states,
        }

        def write() -> None:
            path = self.folder / "checkpoints" / f"step-{self.step:08d}"
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            write_checkpoint(path, self.save_fusion, about, parts)
            for old in self.checkpoints[: -self.keep]:
                remove_folder_atomically(old)

        self.on_main(write)

    def save_fusion(self, folder: Path, steps: int | None = None, **scores: float) -> None:
        """`save_pretrained`, with what is known of this run by now.

        steps: after which these weights were, default all that were done. scores: of these weights,
        where they are not logged yet.
        """
        losses = {key: value for key, value in self.record.items() if key.endswith("loss")}
        logged = {key: self.record[key] for key in ("validation", "best") if key in self.record}
        about: dict[str, Any] = {
            "training": {
                "steps": self.step if steps is None else steps,
                **summarise(self.identity),
                **losses,
            },
            "scores": {**logged, **scores},
        }
        self.attachment.fusion.about = {**self.attachment.fusion.about, **about}
        self.attachment.save_pretrained(folder)

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and drop what the log has after it.

        Raises:
            ValueError: it is of another run. OSError: it, or the log, is damaged.
        """
        self.on_main(lambda: (self.folder / "checkpoints").mkdir(exist_ok=True))
        self.accelerator.init_trackers("gmmt-fusion", summarise(self.identity))
        about: Mapping[str, Any] = {"log": {"bytes": 0}}
        if self.checkpoints:
            path, saved = read_last(self.folder / "checkpoints", self.accelerator.device)
            self.load(path, saved)
            about = saved.about
        self.on_main(lambda: self._cut_log(about["log"]))

    def load(self, path: Path, saved: Checkpoint) -> None:
        """Everything from a checkpoint.

        Raises:
            ValueError: it is of another fusion or run, named before anything is changed. OSError:
                it does not fit.
        """
        fusion, there = self.attachment.fusion, saved.about["run"]
        if found := differences(saved.config.to_dict(), fusion.config.to_dict()):
            raise ValueError(
                f"{path} is of another fusion: {found}; give another folder, or that fusion"
            )
        here, grown = self.identity, there["epochs"] < self.epochs
        if grown:
            here = self.identify(there["epochs"])
        if found := differences(there, here):
            raise ValueError(
                f"{path} is of another training: {found}; give another folder, or train as before"
            )
        parts = self._parts()
        if saved.parts.keys() != parts.keys():
            raise ValueError(
                f"{path} has the states of {', '.join(saved.parts)}; expected {', '.join(parts)}. "
                "Give another folder, or train on such a device as before"
            )
        checkpoint.load_state(fusion, saved.weights, path)
        changes = {}
        if grown:  # the schedule is that of the new number of epochs, at the same step
            for name, learner in self.learners.items():
                done = saved.parts[f"{name}_schedule"].get("last_epoch", saved.about["step"])
                changes[name] = learner.replay(done)
        for name, part in parts.items():
            if not (grown and name.endswith("_schedule")):
                part.load_state_dict(saved.parts[name])
        for name, groups in changes.items():
            for group, changed in zip(
                self.learners[name].optimizer.param_groups, groups, strict=True
            ):
                group.update(changed)
        self.step, self.best = saved.about["step"], float(saved.about["best"])
        self.best_step = saved.about["best_step"]
        record = saved.about["record"]
        self.record = {name: math.nan if x is None else x for name, x in record.items()}
        random_state = saved.about["random_states"][self.accelerator.process_index]
        set_random_state(random_state, self.accelerator.device, fusion.generator)

    def _cut_log(self, written: Mapping[str, Any]) -> None:
        """Drop what the log has after its first bytes, those of the last checkpoint."""
        path = self.folder / "log.jsonl"
        if not path.exists():
            return
        lines = path.read_bytes()
        kept = lines[: written["bytes"]]
        self._log_digest, self._log_bytes = hashlib.sha256(kept), len(kept)
        if self._log_digest.hexdigest() != written.get("sha256", self._log_digest.hexdigest()):
            raise OSError(
                f"{path} has changed since it was written (sha256 differs); move it away, and the "
                "run goes on with a new one"
            )
        if kept != lines:
            write_atomically(path, lambda temporary: temporary.write_bytes(kept))

    def _parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside the weights, by name."""
        parts: dict[str, Stateful | None] = {
            "ema": self.average,
            "scaler": self.accelerator.scaler,
        }
        for name, learner in self.learners.items():
            parts[f"{name}_optimizer"] = learner.optimizer
            parts[f"{name}_schedule"] = learner.schedule
        return {name: part for name, part in parts.items() if part is not None}


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """NaN and infinity as null, for which JSON has no other word."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
