"""One clear error for each bad input: the value, what was expected, and the fix."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r} is out of range; expected a whole number {bounds}")


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError unless `value` lies in 0 to 1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r} is out of range; expected 0 to 1")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is no flag; expected True or False")


def check_mapping(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a mapping whose keys are names."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={value!r:.80}; expected a dict of options by their names")


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    if not isinstance(value, str | None) or value not in known:
        raise ValueError(f"{name}={value!r} is unknown; expected one of {tuple(known)}")


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) from a side or a pair of sides; ValueError for anything else."""
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size={size!r} has {len(sides)} sides; expected one number or (H, W)")
    for side in sides:
        check_whole_number("size", side, most=4096)
    return int(sides[0]), int(sides[1])


def check_maps(
    features: Sequence[Tensor],
    fused: Tensor | None,
    modalities: int,
    channels: int,
    out_channels: int | None = None,
) -> torch.dtype:
    """Raise ValueError or TypeError unless the maps are m floating-point tensors of one shape (B,
    C, H, W), and the fused one that with `out_channels`, default C.

    Returns:
        The widest dtype among the features, which the fused map gets.
    """
    if isinstance(features, Tensor) or len(features) != modalities:
        raise ValueError(
            f"got {1 if isinstance(features, Tensor) else len(features)} feature maps; expected "
            f"{modalities}, one per modality (GenerativeFusion(modalities=…))"
        )
    named = [(f"features[{i}]", f, "channels", channels) for i, f in enumerate(features)]
    if fused is not None:
        if out_channels is None or out_channels == channels:
            named.append(("fused", fused, "channels", channels))
        else:
            named.append(("fused", fused, "out_channels", out_channels))
    for name, x, key, width in named:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor (B, C, H, W)")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; expected a floating-point dtype")
        if x.ndim != 4 or x.shape[1] != width or 0 in x.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected (B, {width}, H, W), as the fusion "
                f"was built with {key}={width}"
            )
        expected = (features[0].shape[0], width, *features[0].shape[2:])
        if x.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected {expected} as features[0]"
            )
    dtype = features[0].dtype
    for x in features[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def check_finite(features: Sequence[Tensor], fused: Tensor) -> None:
    """Raise ValueError where a training input holds NaN or infinity.

    Skipped while compiling, as it needs the values.
    """
    if torch.compiler.is_compiling():
        return
    for name, x in [*((f"features[{i}]", f) for i, f in enumerate(features)), ("fused", fused)]:
        # NaN goes on to both ends, and both are found in one pass, several times as fast
        if x.numel() and not torch.isfinite(torch.stack(x.detach().aminmax())).all():
            raise ValueError(f"{name} holds NaN or infinity; look at the host's inputs and weights")


RESERVED = {
    *("loss", "generative_loss", "discriminator_loss", "gradient_norm", "learning_rate"),
    *("step", "epoch", "validation", "best"),
}  # names in the log that are not the terms of Loss_track


def check_terms(tracking: Any) -> dict[str, Tensor]:
    """Loss_track as its terms by name; ValueError or TypeError unless they are tensors with one
    number each.
    """
    terms = dict(tracking) if isinstance(tracking, Mapping) else {"tracking_loss": tracking}
    if reserved := RESERVED & terms.keys():
        raise ValueError(
            f"tracking_loss returned {sorted(reserved)} among its terms {sorted(terms)}; return "
            "those of "
            "Loss_track only, each once: they are summed, and Loss_gen is added"
        )
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(
                f"tracking_loss returned {name}={value!r:.60}; expected a tensor with one number"
            )
    return terms
