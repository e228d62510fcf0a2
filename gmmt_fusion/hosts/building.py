"""A new fusion, as the launcher's options describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..attaching.adapter import Adapter
    from ..model.fusion import GenerativeFusion


def new_fusion(
    network: nn.Module,
    adapter: Adapter,
    *,
    preset: str = "small",
    method: str = "diffusion",
    blocks: int | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> GenerativeFusion:
    """A fusion for the network that an adapter has recognised.

    Args:
        preset: one of `model.config.PRESETS`; it says which network.
        blocks: n of the paper: blocks down (and again up) of a UViT, residual blocks over all
            levels of a UNet; None as in the preset.
        size: side of the search map; None as the head says, else 16.

    Raises:
        ValueError: the structure does not tell the channels, or `blocks` cannot be had.
    """
    from ..model.config import PRESETS
    from ..model.fusion import GenerativeFusion

    channels = adapter.channels(network)
    if channels is None:
        raise ValueError(
            f"the channels of {type(network).__name__}'s maps cannot be told from its structure; "
            "use attach and train_in_host in the script itself"
        )
    if size is None:
        head = network.get_submodule(adapter.head)
        size = int(getattr(head, "feat_sz", 0) or getattr(adapter, "size", 0) or 16)
    options: dict[str, Any] = {
        "method": method,
        "steps": 1 if steps is None else steps,
        "modalities": adapter.modalities,
    }
    if adapter.modalities is None:
        del options["modalities"]
    if blocks is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} is unknown; expected one of {tuple(PRESETS)}")
        config = dict(PRESETS[preset].get("network_config", {}))
        levels = len(config.get("widths", (1, 2, 3))) if PRESETS[preset]["network"] == "unet" else 1
        if blocks % levels:
            raise ValueError(
                f"--blocks {blocks} cannot be spread over the {levels} levels of a UNet; expected "
                f"a multiple of {levels}"
            )
        options["network_config"] = {**config, "depth": blocks // levels}
    return GenerativeFusion.preset(preset, channels, size, **options)
