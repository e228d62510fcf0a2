"""The command `gmmt-fusion`, or `python -m gmmt_fusion`: a table of subcommands.

Each is a module with `add_arguments(parser)` and `run(options)`, which may return an exit code. It
is imported once it is called for, and imports what is heavy in `run`, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .commands.console import print_line
from .version import __version__

COMMANDS = {  # name: (module, what it does)
    "track": (".commands.track", "run a tracker over a benchmark, or over your own pair of videos"),
    "evaluate": (".commands.evaluate", "score result files by a benchmark's own protocol"),
    "find": (".commands.find", "find where a tracker fuses, and print the lines that attach there"),
    "figures": (".commands.figures", "draw what a fusion generates in a tracker"),
    "cache": (".commands.cache", "compute a frozen tracker's features once, or check a cache"),
    "info": (".commands.info", "tell what a saved fusion is"),
    "run": (".hosts.command", "run a tracker's own script, unedited, with a fusion attached"),
    "siamban-data": (".hosts.siamban_command", "lay a benchmark out for siamban's own scripts"),
}
EPILOG = """exit codes:
  0    done
  1    a fault in the program or in the tracker, with its traceback
  2    wrong arguments, or bad input: one sentence says what to do
  130  interrupted; what was finished is kept, and the same command goes on from there
  run ends with the code of the tracker's script

completion in bash (or zsh, tcsh): pip install shtab, then
  eval "$(shtab --shell=bash gmmt_fusion.cli.make_parser)"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code: see `EPILOG`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser(arguments).parse_args(arguments)
    try:
        return options.run(options) or 0
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print_line(f"error: {error or 'out of memory'}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def make_parser(words: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser; `run` of what it parses is the function that runs the subcommand.

    words: of a command line; only the commands among them get their arguments.
    """
    parser = argparse.ArgumentParser(
        prog="gmmt-fusion",
        description="Generative fusion for multi-modal trackers (GMMT).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if name in words:
            found = import_module(module, __package__)
            command.set_defaults(run=found.run)
            found.add_arguments(command)
    return parser
