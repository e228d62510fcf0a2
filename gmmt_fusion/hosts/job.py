"""What the launcher was asked to do, and what happened: shared by all processes of one run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "GMMT_FUSION_JOB"
"""The environment variable that hands the job on to the processes that a script starts."""


@dataclass(frozen=True)
class Job:
    """One run of a host's script.

    Attributes:
        root: folder of the host's repository.
        log: file in which the processes note what happened.
        fusion: folder or hub id of the fusion to attach.
        train: folder to save a fine-tuned fusion in.
        weights: the host's checkpoint to load before a new fusion is attached.
        build: how a new fusion is built, arguments of `building.new_fusion`.
        generative_weight, recipe: as for `train_in_host`, the recipe by name.
        calibrate: batches to calibrate a new fusion on.
        settings: of the host's configuration, and folders in its local.py, by name.
        paths: beginnings of path names in the host's files, and what they are here.
    """

    root: str
    log: str
    fusion: str | None = None
    train: str | None = None
    weights: str | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    generative_weight: float = 5.0
    recipe: str = "paper"
    calibrate: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def attaches(self) -> bool:
        return self.fusion is not None or self.train is not None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_environment(cls) -> Job:
        return cls(**json.loads(os.environ[VARIABLE]))

    def note(self, kind: str, text: str = "") -> None:
        """Write down what happened, for the process that judges the run in the end.

        Kinds: "attached", "trained", "unrecognised", "set" (a setting was applied), "error", and
        "cause", the error that ended a process, which its parent may have expected.
        """
        line = json.dumps({"kind": kind, "text": text}) + "\n"
        with open(self.log, "ab", buffering=0) as file:  # one write: lines do not mix
            file.write(line.encode())

    def notes(self, kind: str) -> Iterator[str]:
        """The texts of one kind, in the order in which they were written."""
        path = Path(self.log)
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            entry = json.loads(line)
            if entry["kind"] == kind:
                yield entry["text"]

    def say(self, text: str) -> None:
        """Print a line once in the whole run, however many processes say it."""
        try:
            os.close(os.open(f"{self.log}.{text.split()[0]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        print(f"gmmt_fusion: {text}", flush=True)

    def belongs(self, file: str | None) -> bool:
        """Whether a file is one of the host's own."""
        if not file:
            return False
        path = os.path.realpath(file)
        return path.startswith(self.root + os.sep) and "site-packages" not in path
