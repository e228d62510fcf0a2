"""`info`: tell what a saved fusion is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from .console import print_line


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "fusion", metavar="FOLDER", help="a folder that save_pretrained wrote, or a hub id"
    )
    command.add_argument("--json", action="store_true", help="everything, as JSON")


def run(options: argparse.Namespace) -> None:
    from ..model import checkpoint
    from ..model.card import count_parameters, describe_fusion, section

    folder = checkpoint.find(options.fusion)
    saved = checkpoint.SavedFusion(folder)
    if options.json:
        content = {
            "folder": str(folder),
            "bytes": saved.path.stat().st_size,
            "config": saved.config.to_dict(),
            "parameters": count_parameters(saved.shapes),
            **saved.about,
        }
        print(json.dumps(content, indent=1))
        return
    described = describe_fusion(saved.config, saved.about, saved.shapes)
    size = f"{saved.path.stat().st_size / 1e6:.1f} MB"
    _print_rows(str(folder), {**described, "weights": f"{saved.path.name}, {size}"})
    for name in ("training", "scores"):
        if rows := section(saved.about, name):
            _print_rows(f"\n{name}", rows)


def _print_rows(title: str, rows: Mapping[str, Any]) -> None:
    print_line(title)
    width = max(map(len, rows))
    for name, value in rows.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        print_line(f"  {name.replace('_', ' ').ljust(width)}  {text}")
