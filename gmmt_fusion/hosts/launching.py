"""Running a host's own script, unedited, as if Python had been called with it.

Everything that steps in does so in the process of the script and in those that it starts (by
`os.system`, torchrun, or multiprocessing's spawn): they find the job in their environment.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from . import host_modules, shims, siamban, stand_ins
from .job import VARIABLE, Job
from .patches import Patches
from .watching import Watcher, compile_with_paths

STARTUP = Path(__file__).parent / "startup"


def run_script(job: Job, script: str, arguments: Sequence[str]) -> int:
    """Run a script of a host's as `__main__`, and return the exit code.

    It is not 0 where the script or a process of its fails, also where the host goes on after an
    error, and where the job was to attach a fusion and nothing was attached.
    """
    with (
        _environment(job),
        _modules(job),
        _main_module(script, arguments) as main,
        Patches() as patches,
    ):
        _step_in(job, patches)
        code = 1
        try:
            exec(compile_with_paths(script, job.paths), vars(main))
            code = 0
        except SystemExit as stop:
            code = _exit_code(stop)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BaseException as error:
            _print_traceback(error)
    return _judge(job, script, code)


def join_job() -> None:
    """What `startup/sitecustomize.py` calls in each process that a script starts."""
    job = Job.from_environment()
    patches = Patches()
    _step_in(job, patches)
    own = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> Any:
        if not issubclass(kind, KeyboardInterrupt):
            job.note("cause", describe(error))
        return own(kind, error, trace)

    sys.excepthook = excepthook


def describe(error: BaseException) -> str:
    """An error as one line of a report."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")


def _step_in(job: Job, patches: Patches) -> None:
    patches.set(sys, "meta_path", [*sys.meta_path])
    stand_ins.install_stand_ins()
    shims.restore_collections(collections, patches)
    shims.restore_local_rank(argparse.ArgumentParser, patches)
    after = {name: partial(_shim, name, job, patches) for name in shims.AFTER_IMPORT}
    watcher = Watcher(
        after,
        job.belongs,
        partial(_step_into_host, job, patches),
        partial(_make_missing, job),
        job.paths,
    )
    sys.meta_path.insert(0, watcher)
    patches.set(os, "system", _noting(job, os.system))
    patches.set(subprocess.Popen, "__init__", _handing_on(job, subprocess.Popen.__init__))
    if job.paths:
        patches.set(runpy, "run_path", partial(_run_path, job, runpy.run_path))
    for name, step in after.items():
        if name in sys.modules:
            step(sys.modules[name])


def _step_into_host(job: Job, patches: Patches, module: ModuleType) -> None:
    host_modules.step_in(job, patches, module)
    siamban.step_in(job, patches, module)


def _make_missing(job: Job, fullname: str) -> Any:
    return host_modules.make_missing(job, fullname) or siamban.make_region(fullname)


def _shim(name: str, job: Job, patches: Patches, module: ModuleType) -> None:
    shims.AFTER_IMPORT[name](module, patches)
    if name == "torch" and job.attaches:
        from .fusing import watch_networks

        watch_networks(job, patches)


def _noting(job: Job, own: Any) -> Any:
    def system(command: str) -> int:
        status: int = own(command)
        if status:
            job.note("error", f"the command that the script started has failed: {command:.80} …")
        return status

    return system


def _run_path(job: Job, own: Any, path_name: str, *args: Any, **kwargs: Any) -> Any:
    """What multiprocessing's spawn runs the main script with, once more, in each process."""
    if not job.belongs(path_name):
        return own(path_name, *args, **kwargs)
    names = {"__name__": kwargs.get("run_name", "<run_path>"), "__file__": path_name}
    exec(compile_with_paths(path_name, job.paths), names)
    return names


@contextlib.contextmanager
def _environment(job: Job) -> Iterator[None]:
    """This process's own environment, while the script runs."""
    before = dict(os.environ)
    os.environ.update(_hand_on(job, before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _hand_on(job: Job, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a process finds this Python, and the job."""
    changed = {**environment, VARIABLE: job.to_json()}
    for name, first in (
        ("PYTHONPATH", str(STARTUP)),
        ("PATH", os.path.dirname(os.path.abspath(sys.executable))),
    ):
        rest = changed[name].split(os.pathsep) if changed.get(name) else []
        changed[name] = os.pathsep.join([first, *(path for path in rest if path != first)])
    return changed


def _handing_on(job: Job, own: Any) -> Any:
    """`Popen`, for a script that makes an environment of its own, as VOT's toolkit does."""

    @functools.wraps(own)
    def __init__(self: Any, *args: Any, env: Any = None, **kwargs: Any) -> None:
        own(self, *args, env=env if env is None else _hand_on(job, env), **kwargs)

    return __init__


@contextlib.contextmanager
def _modules(job: Job) -> Iterator[None]:
    """Forget in the end what the script has imported of the host's, and stand-ins."""
    before = set(sys.modules)
    try:
        yield
    finally:
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        packages = {  # a host's may have no file of its own
            name.partition(".")[0]
            for name, module in new.items()
            if job.belongs(getattr(module, "__file__", None))
        }
        for name, module in new.items():
            if name.partition(".")[0] in packages or isinstance(module, stand_ins.StandInModule):
                del sys.modules[name]


@contextlib.contextmanager
def _main_module(script: str, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """`__main__`, `sys.argv` and `sys.path` as `python script arguments` has them."""
    main = ModuleType("__main__")
    vars(main).update(__file__=script, __builtins__=__builtins__, __cached__=None)
    before = sys.modules["__main__"], sys.argv, sys.path
    sys.modules["__main__"] = main
    sys.argv = [script, *arguments]
    others = sys.path[os.path.abspath(sys.path[0]) == os.path.abspath("") :]  # `python -m` adds it
    sys.path = [os.path.dirname(os.path.abspath(script)), *others]
    try:
        yield main
    finally:
        sys.modules["__main__"], sys.argv, sys.path = before


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException) -> None:
    trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this file's
    traceback.print_exception(type(error), error, trace)


def _judge(job: Job, script: str, code: int) -> int:
    """The exit code of the whole run, and in words what is wrong with it."""
    problems = list(dict.fromkeys(job.notes("error")))
    unused = sorted(set(job.settings) - set(job.notes("set")))
    if not problems and code == 0 and unused:
        problems.append(f"nothing in {script} asked for --set {', '.join(unused)}")
    if not problems and code == 0 and job.attaches:
        problems += _missing_fusion(job, script)
    if (
        problems or code
    ):  # a process may also end so that its parent has done with, as in VOT's toolkit
        problems = list(dict.fromkeys([*job.notes("cause"), *problems]))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return code or (2 if problems else 0)


def _missing_fusion(job: Job, script: str) -> list[str]:
    if job.train and list(job.notes("attached")) and not list(job.notes("trained")):
        return [f"{script} ended, and trained nothing: a fusion was attached"]
    if list(job.notes("attached")):
        return []
    seen = list(job.notes("unrecognised"))
    why = (
        f"it loaded weights into networks that are not recognised. {seen[-1]}"
        if seen
        else "it loaded no weights into a network of a tracker that is recognised"
    )
    if job.train and not seen:
        why = "it made no trainer that is recognised"
    return [f"{script} ended, and no fusion was attached: {why}"]
