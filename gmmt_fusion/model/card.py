"""The model card of a saved fusion: `README.md`, as the Hugging Face hub shows it."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..version import __version__
from .config import FusionConfig

CARD = "README.md"
LIBRARY = "gmmt-fusion"
MARK = f"<!-- {LIBRARY} writes this file anew at each save; remove this line to keep your text -->"
NAMING = ("ModuleAdapter", "ConcatAdapter", "EncoderAdapter")  # that are told names
METHODS = {
    "diffusion": "a diffusion model over DDIM steps",
    "cgan": "a conditional GAN",
    "raw": "regression, without noise",
}


def write_card(
    folder: Path,
    config: FusionConfig,
    about: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    name: str | None = None,
) -> None:
    """Write the card into the folder of a saved fusion; one that is not ours stays.

    Args:
        about: what `GenerativeFusion.about` holds.
        shapes: of the weights, by their names.
        name: by which to load it, a hub id say; default a placeholder.
    """
    path = folder / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    text = format_card(config, about, shapes, name or "path/to/this/folder")
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def format_card(
    config: FusionConfig,
    about: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    name: str,
) -> str:
    """The card's text: metadata in YAML, and what a reader wants to know."""
    from huggingface_hub import EvalResult, ModelCardData  # half a second

    host = section(about, "host").get("host", "a tracker")
    scores = section(about, "scores")
    data = ModelCardData(
        license=about.get("license") or "unknown",
        library_name=LIBRARY,
        tags=["object-tracking", "multi-modal", "generative-fusion", config.method, config.network],
        model_name=f"Generative fusion of {host}",
        eval_results=[
            EvalResult(
                task_type="object-tracking",
                dataset_type="validation",
                dataset_name="validation while fine-tuning",
                metric_type=key,
                metric_value=value,
            )
            for key, value in scores.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# Generative fusion of {host}",
        f"The fusion of {host}, replaced by {METHODS[config.method]} (GMMT, AAAI 2024), and the "
        "head that was fine-tuned with it. The tracker's own weights are not in here.",
        "## How to load it",
        _show_loading(about, name),
        "## What it is",
        _table(describe_fusion(config, about, shapes)),
    ]
    if training := section(about, "training"):
        parts += ["## Training", _table(training)]
    if scores:
        parts += ["## Scores", _table(scores)]
    parts.append(f"Written by {LIBRARY} {__version__}.")
    return "\n\n".join(parts) + "\n"


def describe_fusion(
    config: FusionConfig, about: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What a fusion is and belongs to, by the words that a reader knows."""
    options = ", ".join(f"{key} {value}" for key, value in config.network_config.items())
    counts = count_parameters(shapes)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    width = f"{config.channels} channels"
    if config.fused_channels != config.channels:
        width += f" (fused {config.fused_channels})"
    described = {
        "method": config.method + (f", s = {config.steps}" if config.method == "diffusion" else ""),
        "network": config.network + (f" ({options})" if options else ""),
        "residual path": config.residual or "none",
        "maps": f"{config.modalities} modalities, {width}, " + "×".join(map(str, config.size)),
        "parameters": f"{sum(counts.values()):,} ({parts})",
        "host": section(about, "host").get("host", ""),
        "adapter": ", ".join(_show_adapter(*item) for item in list_adapters(about).items()),
        "licence": about.get("license") or "",
    }
    return {key: value for key, value in described.items() if value}


def count_parameters(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The numbers of each part, largest first; a head's running statistics are among them."""
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        counts[name.split(".")[0] if "." in name else "normalisation"] += math.prod(shape)
    return dict(counts.most_common())


def list_adapters(about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{class: options} of the adapters through which a fusion is attached."""
    points = section(section(about, "host"), "adapter")
    return {
        str(point["adapter"]): section(point, "options")
        for name in points
        if (point := section(points, name)).get("adapter") not in (None, "NoneType")
    }


def _show_adapter(kind: str, options: Mapping[str, Any]) -> str:
    if kind not in NAMING:
        return kind
    given = {key: value for key, value in options.items() if value is not None}
    return f"{kind}({', '.join(f'{key}={_quote(value)}' for key, value in given.items())})"


def _show_loading(about: Mapping[str, Any], name: str) -> str:
    imports, adapter = ["from gmmt_fusion import attach"], ""
    for kind, options in list_adapters(about).items():
        if kind in NAMING:
            imports.append(f"from gmmt_fusion.adapters import {kind}")
            adapter = f", {_show_adapter(kind, options)}"
    call = f'handle = attach(tracker, "{name}"{adapter})'
    comment = "# with your tracker, its pretrained weights loaded"
    return "\n".join(["```python", *imports, "", comment, call, "```"])


def section(about: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of what somebody may have written; {} where it is none."""
    part = about.get(name)
    return part if isinstance(part, dict) else {}


def _quote(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
