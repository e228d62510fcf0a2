"""`cache`: compute a frozen tracker's features once, or check a cache of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .console import check_output, print_line

EXPECTED = "expected (attachment, loader), or a dict of cache_features' arguments"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Runs the frozen host over a loader and writes what fine-tuning needs of it, for "
        "gmmt_fusion.training.CachedFeatures; without --of, reads a cache and compares checksums."
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="of the cache")
    command.add_argument(
        "--of",
        metavar="SPEC",
        help="module:function or file.py:function, without arguments, that returns (attachment, "
        "loader), or a dict of cache_features' arguments",
    )
    command.add_argument(
        "--passes", type=int, metavar="N", help="over the loader, each with other augmentations"
    )
    command.add_argument(
        "--dtype", metavar="NAME", help="of the maps on disk: float16 for half the size"
    )
    command.add_argument("--seed", type=int, help="of the augmentations")
    command.add_argument(
        "--device", metavar="NAME", help="where the host computes (default: where it is)"
    )


def run(options: argparse.Namespace) -> None:
    from ..evaluation.trackers import call_named, check_device
    from ..training import CachedFeatures, cache_features

    if options.of is None:
        cache = CachedFeatures(options.folder)
        cache.verify()
        done = "is whole"
    else:
        check_output(options.folder)
        check_device(options.device)
        arguments = _name_arguments(call_named(options.of))
        given = {name: getattr(options, name) for name in ("passes", "dtype", "seed")}
        arguments |= {name: value for name, value in given.items() if value is not None}
        if options.device:
            arguments["attachment"].network.to(options.device)
        cache = cache_features(**arguments, folder=options.folder)
        done = "is written"
    size = len(cache) * cache.bytes_per_sample / 1e6
    print_line(
        f"{options.folder} {done}: {len(cache)} samples, {size:.1f} MB, of "
        f"{cache.manifest['source']['host']}"
    )


def _name_arguments(returned: object) -> dict[str, Any]:  # of a user
    """The arguments of `cache_features`, attachment and loader among them."""
    if isinstance(returned, tuple | list) and len(returned) == 2:
        returned = dict(zip(("attachment", "loader"), returned, strict=True))
    if not isinstance(returned, Mapping) or not {"attachment", "loader"} <= returned.keys():
        raise ValueError(f"--of returned a {type(returned).__name__}; {EXPECTED}")
    return dict(returned)
