"""What every Python that a host's script starts runs first: see `gmmt_fusion.hosts.launching`.

The launcher puts this folder into PYTHONPATH; nobody else does. A sitecustomize of the user's is
run afterwards.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _run_other() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        other = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = other
        spec.loader.exec_module(other)


if "GMMT_FUSION_JOB" in os.environ:
    try:
        from gmmt_fusion.hosts.launching import join_job

        join_job()
    except Exception as error:  # site would go on with a line that nobody reads
        # else it is another Python, of a tool that needs nothing of ours
        if getattr(error, "name", None) != "gmmt_fusion":
            print(f"error: gmmt_fusion cannot work in {sys.executable}: {error}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(2)
_run_other()
