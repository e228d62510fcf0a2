"""The folder in which a host's training script saves its fusion: of one run, with its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..attaching.attachment import Attachment
from ..files import write_atomically
from .job import Job

OPTIONS = "run.json"
"""Beside the fusion: the options of the run that trained it."""


class RunFolder:
    """What `job.train` names.

    Attributes:
        path: the folder.
        options: what a resumed run has in common with the one that it goes on from.
    """

    def __init__(self, job: Job) -> None:
        self.path = Path(job.train or "")
        named = {"generative-weight": job.generative_weight, "recipe": job.recipe}
        self.options: dict[str, Any] = {**job.build, **named, "calibrate": job.calibrate}

    def check_options(self) -> None:
        """Refuse a folder of a run with other options.

        Raises:
            ValueError: names them.
        """
        path = self.path / OPTIONS
        before = json.loads(path.read_text()) if path.exists() else self.options
        changed = [
            f"--{name} was {before.get(name)}, is {value}"
            for name, value in self.options.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a fusion of another run: {'; '.join(changed)}; give the same "
                "options to go on, or another folder"
            )

    def check_empty(self, instead: str) -> None:
        """Refuse to write over another fusion.

        Args:
            instead: what to give to go on with it, for the message.

        Raises:
            ValueError: there is one.
        """
        if (self.path / "config.json").exists():
            raise ValueError(
                f"{self.path} holds a fusion already, and the host's script found no checkpoint to "
                f"go on from; give another folder, or {instead}"
            )

    def save(self, attachment: Attachment) -> None:
        """Save the fusion, and the options."""
        attachment.save_pretrained(self.path)
        text = json.dumps(self.options, indent=2) + "\n"
        write_atomically(self.path / OPTIONS, lambda path: path.write_text(text))
