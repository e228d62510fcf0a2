"""`gmmt-fusion run`: a host's own script, unedited, with a fusion."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

PRESETS = ("small", "small-unet", "paper-uvit", "paper-unet")
METHODS = ("diffusion", "cgan", "raw")
RECIPES = ("paper", "adamw")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s [--fusion DIR | --train DIR] [options] SCRIPT.py ARGS…"
    command.description = (
        "Runs a script of a tracker's repository, with what it needs of 2022's packages. With "
        "--fusion a saved fusion is attached as soon as the tracker's weights are loaded; with "
        "--train the training script fine-tunes a new one and saves it."
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--fusion", metavar="DIR", help="folder or hub id of the fusion to attach")
    what.add_argument("--train", metavar="DIR", help="folder to save a fine-tuned fusion in")
    command.add_argument(
        "--steps", type=int, metavar="S", help="of sampling; default: 1, or as it was saved"
    )
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=VALUE",
        help="an entry of the tracker's configuration (TRAIN.EPOCH=1), or a folder of its local.py "
        "(lasher_dir=/data/LasHeR)",
    )
    command.add_argument(
        "--path",
        dest="paths",
        action="append",
        default=[],
        type=_pair,
        metavar="OLD=NEW",
        help="a folder that the tracker's files name, and where it is here",
    )
    training = command.add_argument_group("with --train")
    training.add_argument(
        "--weights", metavar="FILE", help="the tracker's own checkpoint, loaded before attaching"
    )
    training.add_argument("--preset", default="small", choices=PRESETS, help="default: small")
    training.add_argument(
        "--method", default="diffusion", choices=METHODS, help="default: diffusion"
    )
    training.add_argument("--blocks", type=int, metavar="N", help="of the network, the paper's n")
    training.add_argument("--size", type=int, metavar="N", help="side of the tracker's fused map")
    training.add_argument(
        "--generative-weight",
        type=float,
        default=5.0,
        metavar="L",
        help="λ; default: %(default)s",
    )
    training.add_argument(
        "--recipe", default="paper", choices=RECIPES, help="optimiser and schedule; default: paper"
    )
    training.add_argument(
        "--calibrate",
        type=int,
        default=0,
        metavar="N",
        help="batches of the training set to start next to the tracker's own fusion with",
    )
    command.add_argument("script", metavar="SCRIPT.py")
    command.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS…")


def run(options: argparse.Namespace) -> int:
    """Run the script.

    Raises:
        OSError, ValueError: a file or folder that is not there, or options that do not go together.
    """
    from .job import Job
    from .launching import run_script

    if not Path(options.script).is_file():
        raise FileNotFoundError(f"{options.script} is missing; expected a script of the tracker's")
    build = {
        name: getattr(options, name) for name in ("preset", "method", "blocks", "steps", "size")
    }
    if options.weights and not options.train:
        raise ValueError("--weights goes with --train; a test script loads its own weights")
    if options.weights and not Path(options.weights).is_file():
        raise FileNotFoundError(f"--weights {options.weights} is missing; expected a checkpoint")
    if options.fusion and Path(options.fusion).is_dir():
        options.fusion = os.path.abspath(options.fusion)  # the script may change its folder
    with tempfile.TemporaryDirectory(prefix="gmmt-fusion-") as folder:
        job = Job(
            root=find_root(options.script),
            log=str(Path(folder, "log")),
            fusion=options.fusion,
            train=options.train and os.path.abspath(options.train),
            weights=options.weights and os.path.abspath(options.weights),
            build=build,
            generative_weight=options.generative_weight,
            recipe=options.recipe,
            calibrate=options.calibrate,
            settings={  # a process that the script starts may have another current folder
                name: value if "." in name else os.path.abspath(value)
                for name, value in options.settings
            },
            paths={old: os.path.abspath(new) for old, new in options.paths},
        )
        return run_script(job, options.script, options.arguments)


def find_root(script: str) -> str:
    """The folder of the repository that a script belongs to.

    The current one where the script lies in it, else the nearest one above with a `.git` or, of an
    unpacked archive, a README.md, else the current one, as for the script of an installed command.
    """
    path = Path(os.path.realpath(script))
    here = Path(os.path.realpath(""))
    if here not in path.parents:
        marks = (".git", "README.md")
        roots = (folder for folder in path.parents if any((folder / m).exists() for m in marks))
        here = next(roots, here)
    return str(here)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=VALUE")
    return name, value
