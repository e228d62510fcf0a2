"""Stepping into a host's own modules, by what they define, whatever the host is called.

The names are those of pytracking's heirs: OSTrack's family and its forks.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .job import Job
from .patches import Patches

DRAWS = 50
"""Samples that a sampler may draw in vain, one after another, before its error is shown."""

SEQUENCES = 1000
"""Sequences that it may look at in vain for one that has enough frames."""


def step_in(job: Job, patches: Patches, module: ModuleType) -> None:
    """Step into a module of the host that was just imported."""
    own = [value for value in vars(module).values() if _is_of(value, module)]
    for value in own:
        if isinstance(value, type):
            if hasattr(value, "sample_seq_from_dataset"):
                watch_sampler(value, patches)
            if hasattr(value, "run_sequence") and hasattr(value, "create_tracker"):
                note_errors(job, value, patches)
            if {"train", "train_epoch", "save_checkpoint"} <= vars(value).keys():
                from .trainers import watch_trainer

                watch_trainer(job, value, patches)
            if value.__name__ == "EnvironmentSettings":
                set_folders(job, value, patches)
        elif value.__name__ == "update_config_from_file" and hasattr(module, "cfg"):
            set_config(job, module, patches)
        elif value.__name__ == "local_env_settings":
            set_test_folders(job, module, patches)


def _is_of(value: Any, module: ModuleType) -> bool:
    kind = isinstance(value, type) or inspect.isfunction(value)
    return kind and value.__module__ == module.__name__


def watch_sampler(kind: type, patches: Patches) -> None:
    """Let a sampler that swallows every error, and draws again, stop with the error in the end.

    `sample_seq_from_dataset` is what it calls outside of its `try`.
    """
    own: Callable[..., Any] = kind.sample_seq_from_dataset  # type: ignore[attr-defined]

    @functools.wraps(own)
    def sample_seq_from_dataset(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        failures: list[BaseException] = vars(self).setdefault("_gmmt_failures", [])
        if not isinstance(self.processing, _Watched):
            self.processing = _Watched(self.processing, failures, clears=True)
        if not isinstance(dataset.get_frames, _Watched):
            dataset.get_frames = _Watched(dataset.get_frames, failures)
            dataset.get_sequence_info = _Bounded(dataset.get_sequence_info)
        dataset.get_sequence_info.calls = 0
        if len(failures) >= DRAWS:
            error = failures[-1]
            raise RuntimeError(
                f"the data loader drew {DRAWS} samples in vain, the last one for "
                f"{type(error).__name__}: {error}"
            ) from error
        return own(self, dataset, *args, **kwargs)

    patches.set(kind, "sample_seq_from_dataset", sample_seq_from_dataset)


class _Bounded:
    """A dataset's `get_sequence_info`, which ends a search that cannot end; it can be pickled."""

    def __init__(self, own: Any) -> None:
        self.own, self.calls = own, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls > SEQUENCES:
            raise RuntimeError(
                f"the data loader looked at {SEQUENCES} sequences, and in none of them the target "
                "is visible in enough frames; OSTrack's family wants 20 frames and more"
            )
        return self.own(*args, **kwargs)


class _Watched:
    """A callable that remembers its errors, one after another; it can be pickled."""

    def __init__(self, own: Any, failures: list[BaseException], clears: bool = False) -> None:
        self.own, self.failures, self.clears = own, failures, clears

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self.own(*args, **kwargs)
        except Exception as error:
            self.failures.append(error)
            del self.failures[:-DRAWS]
            raise
        if self.clears:
            self.failures.clear()
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.own, name)


def note_errors(job: Job, kind: type, patches: Patches) -> None:
    """Let an error in a sequence, which `run_dataset` prints and forgets, fail the run."""
    own: Callable[..., Any] = kind.run_sequence  # type: ignore[attr-defined]

    @functools.wraps(own)
    def run_sequence(self: Any, seq: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return own(self, seq, *args, **kwargs)
        except Exception as error:
            name = getattr(seq, "name", seq)
            job.note("error", f"{name}: {type(error).__name__}: {error}")
            raise

    patches.set(kind, "run_sequence", run_sequence)


def set_config(job: Job, module: ModuleType, patches: Patches) -> None:
    """Let `--set TRAIN.EPOCH=1` hold after the host has read its yaml file."""
    own = module.update_config_from_file

    @functools.wraps(own)
    def update_config_from_file(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        config = kwargs.get("base_cfg") or (args[1] if len(args) > 1 else None) or module.cfg
        for name, text in job.settings.items():
            if "." in name:
                set_entry(config, name, text)
                job.note("set", name)
        return result

    patches.set(module, "update_config_from_file", update_config_from_file)


def set_entry(config: Any, name: str, text: str) -> None:
    """config.A.B = the value that yaml reads from a text, for the name "A.B"; a text stays one.

    Raises:
        ValueError: there is no such entry.
    """
    import yaml

    *path, last = name.split(".")
    for part in path:
        config = config.get(part) if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or last not in config:
        raise ValueError(f"--set {name}: the host's configuration has no such entry")
    value = text if isinstance(config[last], str) else yaml.safe_load(text)
    config[last] = value  # type: ignore[index]  # a dict


def set_folders(job: Job, kind: type, patches: Patches) -> None:
    """Let the folders of a host's local.py, the authors', be those of this machine."""
    own: Callable[..., None] = kind.__init__  # type: ignore[misc]

    @functools.wraps(own)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        relocate(job, self, "workspace_dir")

    patches.set(kind, "__init__", __init__)


def set_test_folders(job: Job, module: ModuleType, patches: Patches) -> None:
    """The same for the one that is read when a tracker is tested."""
    own = module.local_env_settings

    @functools.wraps(own)
    def local_env_settings() -> Any:
        settings = own()
        relocate(job, settings, "prj_dir")
        return settings

    patches.set(module, "local_env_settings", local_env_settings)


def relocate(job: Job, settings: Any, base: str) -> None:
    """Move folders under the host's repository on the authors' machine to here, and apply `--set`.

    Args:
        settings: an object that has a folder in each attribute.
        base: the attribute that names the repository's own.
    """
    old = getattr(settings, base, None)
    for name, value in list(vars(settings).items()):
        if isinstance(value, str) and old and not os.path.isdir(old) and value.startswith(old):
            setattr(settings, name, job.root + value[len(old) :])
    for name, value in job.settings.items():
        if hasattr(settings, name):
            setattr(settings, name, value)
            job.note("set", name)


class Folders:
    """Folders of a host that has no local.py yet, instead of a file that is written into it.

    What `--set` names; the repository and folders in it for what the host itself writes.
    """

    def __init__(self, job: Job) -> None:
        root, output = job.root, os.path.join(job.root, "output")
        self.workspace_dir = self.prj_dir = root
        self.save_dir = self.check_dir = output
        self.tensorboard_dir = os.path.join(root, "tensorboard")
        self.pretrained_networks = os.path.join(root, "pretrained_networks")
        self.results_path = os.path.join(output, "test", "tracking_results")
        self.segmentation_path = os.path.join(output, "test", "segmentation_results")
        self.network_path = os.path.join(output, "test", "networks")
        self.result_plot_path = os.path.join(output, "test", "result_plots")
        for name, value in job.settings.items():
            if "." not in name:
                setattr(self, name, value)
                job.note("set", name)

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        if name.endswith(("_dir", "_path")):
            raise ValueError(f"the host asks for the folder {name}; add --set {name}=FOLDER")
        return ""


class _Local(importlib.abc.Loader):
    """Makes a host's missing local.py."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        job = self.job

        class EnvironmentSettings(Folders):  # under the name by which a trainer pickles it
            def __init__(self) -> None:
                super().__init__(job)

        EnvironmentSettings.__module__ = module.__name__
        EnvironmentSettings.__qualname__ = "EnvironmentSettings"
        vars(module).update(
            EnvironmentSettings=EnvironmentSettings, local_env_settings=EnvironmentSettings
        )


def make_missing(job: Job, fullname: str) -> importlib.abc.Loader | None:
    """What makes a module that a host imports, and that is not part of its repository."""
    if fullname.endswith((".train.admin.local", ".test.evaluation.local")):
        return _Local(job)
    return None
