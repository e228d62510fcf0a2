"""`gmmt-fusion run`: a host's own script, unedited, with a fusion."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

PRESETS = ("small", "small-unet", "paper-uvit", "paper-unet")
METHODS = ("diffusion", "cgan", "raw")
RECIPES = ("paper", "adamw")
OF_TRAINING = (
    "weights",
    "preset",
    "method",
    "blocks",
    "size",
    "generative_weight",
    "recipe",
    "calibrate",
)


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
        "--steps", type=_whole(1), metavar="S", help="of sampling; default: 1, or as it was saved"
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
    training.add_argument("--preset", choices=PRESETS, help="default: small")
    training.add_argument("--method", choices=METHODS, help="default: diffusion")
    training.add_argument(
        "--blocks", type=_whole(1), metavar="N", help="of the network, the paper's n"
    )
    training.add_argument(
        "--size", type=_whole(1), metavar="N", help="side of the tracker's fused map"
    )
    training.add_argument("--generative-weight", type=_weight, metavar="L", help="λ; default: 5")
    training.add_argument(
        "--recipe", choices=RECIPES, help="optimiser and schedule; default: paper"
    )
    training.add_argument(
        "--calibrate",
        type=_whole(0),
        metavar="N",
        help="batches of the training set to start next to the tracker's own fusion with",
    )
    command.add_argument(  # one with its arguments, so that a "--" among these is the script's
        "script", nargs=argparse.PARSER, metavar="SCRIPT.py", help="and its own arguments"
    )


def run(options: argparse.Namespace) -> int:
    """Run the script.

    Raises:
        OSError, ValueError: a file or folder that is not there, or options that do not go together.
    """
    from .job import Job
    from .launching import run_script

    script, *arguments = options.script[options.script[0] == "--" :]
    if not Path(script).is_file():
        raise FileNotFoundError(f"{script} is missing; expected a script of the tracker's")
    of_training = {name: getattr(options, name) for name in OF_TRAINING}
    given = [name for name, value in of_training.items() if value is not None]
    if given and options.train is None:
        raise ValueError(
            f"--{given[0].replace('_', '-')} goes with --train; a test script has its own"
        )
    if options.train is not None and (not options.train or Path(options.train).is_file()):
        raise NotADirectoryError(f"--train {options.train!r} is no folder; give one to save in")
    if options.weights and not Path(options.weights).is_file():
        raise FileNotFoundError(f"--weights {options.weights} is missing; expected a checkpoint")
    if options.fusion is not None:
        options.fusion = check_fusion(options.fusion)
    with tempfile.TemporaryDirectory(prefix="gmmt-fusion-") as folder:
        job = Job(
            root=find_root(script),
            log=str(Path(folder, "log")),
            fusion=options.fusion,
            train=options.train and os.path.abspath(options.train),
            weights=options.weights and os.path.abspath(options.weights),
            build={
                "preset": options.preset or "small",
                "method": options.method or "diffusion",
                **{name: getattr(options, name) for name in ("blocks", "steps", "size")},
            },
            generative_weight=5.0
            if options.generative_weight is None
            else options.generative_weight,
            recipe=options.recipe or "paper",
            calibrate=options.calibrate or 0,
            settings={  # a process that the script starts may have another current folder
                name: value if "." in name else os.path.abspath(value)
                for name, value in options.settings
            },
            paths={old: os.path.abspath(new) for old, new in options.paths},
        )
        return run_script(job, script, arguments)


def check_fusion(fusion: str) -> str:
    """A hub id, or the folder of a saved fusion as an absolute path: the script may go elsewhere.

    Raises:
        FileNotFoundError: it is neither.
    """
    path = Path(fusion)
    if (path / "config.json").is_file():
        return os.path.abspath(fusion)
    owner, slash, name = fusion.partition("/")
    is_hub_id = (
        slash and owner.strip(".~") and name and "/" not in name and not Path(owner).exists()
    )
    if path.exists() or not is_hub_id:
        raise FileNotFoundError(
            f"--fusion {fusion!r} holds no config.json; expected a folder that save_pretrained "
            "wrote, or a hub id, owner/name"
        )
    return fusion


def find_root(script: str) -> str:
    """The folder of the repository that a script belongs to.

    The nearest one above with a `.git` or, of an unpacked archive, a README.md; of those that hold
    only a README.md the current one first, as parts of a repository may have theirs. Without any
    the current one, as for the script of an installed command.
    """
    above = list(Path(os.path.realpath(script)).parents)
    here = Path(os.path.realpath(""))
    marked = [f for f in above if (f / ".git").exists() or (f / "README.md").exists()]
    for folder in marked:
        if (folder / ".git").exists() and here in (folder, *folder.parents):
            return str(folder)
    return str(here if here in marked else next(iter(marked), here))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=VALUE")
    return name, value


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {least}"
            )
        return int(text)

    return whole


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of at least 0")
    return value
