"""The state of a run: everything that a checkpoint holds, and the folder that it is written to."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from ..attaching.attachment import Attachment
from ..files import (
    differences,
    remove_folder_atomically,
    write_atomically,
    write_folder_atomically,
)
from ..model import checkpoint
from .repeatable import get_random_state, set_random_state

if TYPE_CHECKING:  # both take seconds to import
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from diffusers.training_utils import EMAModel


class Stateful(Protocol):
    """What has a state_dict of its own."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


@dataclass
class Learner:
    """Parameters with their optimiser and its schedule: of the fusion, or of its discriminator."""

    parameters: list[nn.Parameter]
    optimizer: "AcceleratedOptimizer"
    schedule: LRScheduler


@dataclass
class RunState:
    """A run as its last checkpoint knows it.

    attachment: whose fusion and head are trained. folder: of the run. keep: checkpoints kept.
    setting: what the place of a step in the loader depends on; a checkpoint of another setting is
    refused. learners: "fusion" and, of a CGAN, "discriminator". average: the moving average of the
    fusion's weights, or None. step: steps done. best: validation so far. record: the last values
    of everything that was logged.
    """

    accelerator: "Accelerator"
    attachment: Attachment
    folder: Path
    keep: int
    setting: dict[str, int]
    learners: dict[str, Learner]
    average: "EMAModel | None"
    step: int = 0
    best: float = -math.inf
    record: dict[str, float] = field(default_factory=dict)

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, the oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def log(self, values: Mapping[str, float]) -> None:
        """Write values of this step to the log, and to TensorBoard where it is asked for."""
        self.record = {**self.record, "step": self.step, **values}
        self.accelerator.log(dict(values), step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")

    def save(self) -> None:
        """Write a checkpoint of this step, and remove the oldest; called in every process."""
        from accelerate.utils import gather_object

        device, generator = self.accelerator.device, self.attachment.fusion.generator
        random_states = gather_object([get_random_state(device, generator)])
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "best": None if self.best == -math.inf else self.best,
                "record": self.record,
                **self.setting,
                "random_states": random_states,
            }

            def write(path: Path) -> None:
                self.attachment.save_pretrained(path)
                # a schedule of NumPy's numbers must not make a checkpoint that cannot be read back
                states = tree_map(
                    lambda x: x.item() if isinstance(x, np.generic) else x,
                    {name: part.state_dict() for name, part in self._parts().items()},
                )
                torch.save(states, path / "optimizer.pt")
                (path / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

            write_folder_atomically(self.folder / "checkpoints" / f"step-{self.step:08d}", write)
            for old in self.checkpoints[: -self.keep]:
                remove_folder_atomically(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Load the last checkpoint, if there is one, and drop what the log has after it.

        Raises:
            ValueError, OSError: as `load`.
        """
        main = self.accelerator.is_main_process
        if main:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            for unfinished in (self.folder / "checkpoints").glob(".step-*"):  # of a killed process
                shutil.rmtree(unfinished)
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard")
        if self.checkpoints:
            self.load(self.checkpoints[-1])
        if main and (path := self.folder / "log.jsonl").is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            text = "".join(f"{line}\n" for line in lines if _step_of(line) <= self.step)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def load(self, path: Path) -> None:
        """Everything from a checkpoint.

        Raises:
            ValueError, OSError: it is of another fusion or training, or damaged.
        """
        config, weights = checkpoint.load(path)
        fusion = self.attachment.fusion
        if found := differences(config.to_dict(), fusion.config.to_dict()):
            raise ValueError(
                f"{path} is of another fusion: {found}; give another folder, or that fusion"
            )
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if found := differences({key: state.get(key) for key in self.setting}, self.setting):
            raise ValueError(
                f"{path} is of another training: {found}; give another folder, or train as before"
            )
        parts, device = self._parts(), self.accelerator.device
        saved = torch.load(path / "optimizer.pt", weights_only=True, map_location=device)
        if saved.keys() != parts.keys():
            raise ValueError(
                f"{path} has the states of {', '.join(saved)}; expected {', '.join(parts)}. Give "
                "another folder, or ema_decay and mixed_precision as before"
            )
        checkpoint.load_state(fusion, weights, path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        self.step, self.record = state["step"], state["record"]
        self.best = -math.inf if state["best"] is None else state["best"]
        random_state = state["random_states"][self.accelerator.process_index]
        set_random_state(random_state, device, fusion.generator)

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


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity where it was cut off when the process was killed."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf
