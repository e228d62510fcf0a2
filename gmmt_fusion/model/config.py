"""What a fusion is, as numbers and names: `FusionConfig`, and the presets."""

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..checks import (
    check_choice,
    check_flag,
    check_fraction,
    check_mapping,
    check_size,
    check_whole_number,
)
from ..version import __version__
from .methods import METHODS, WEIGHTINGS
from .networks import NETWORKS
from .schedulers import PREDICTION_TYPES

RESIDUALS = ("conv1x1", "conv3x3", "first", None)
CLASS_NAME = "GenerativeFusion"  # as huggingface's configs name the class that they belong to
MOST_TOKENS = 16 * 16  # of the presets for a transformer: beyond, a token is a patch
MOST_CHANNELS, MOST_NUMBERS = 2**16, 2**27  # of a map

PRESETS: dict[str, dict[str, Any]] = {
    "paper-unet": {
        "network": "unet",
        "residual": "first",
        "network_config": {"widths": (768, 1152, 1536), "depth": 3},
    },
    "paper-uvit": {
        "network": "uvit",
        "residual": "first",
        "network_config": {"width": 1200, "heads": 12, "depth": 1, "final_conv": True},
    },
    "small": {"network": "uvit", "residual": "conv1x1"},
    "small-unet": {"network": "unet", "residual": "conv1x1"},
}


@dataclass(frozen=True)
class FusionConfig:
    """All that a `GenerativeFusion` is built from; it checks itself, and is stored as JSON.

    Args:
        channels: C of the host's maps.
        modalities: m, from 1 up.
        size: side, or (H, W), of the maps met most; UViT learns its positions and a CGAN its
            discriminator for it.
        method: "diffusion", "cgan" or "raw" (the network without noise).
        network: "uvit" or "unet"; `network_config`: its options, see `networks.UViT` and
            `networks.UNet`.
        residual: path from the modality maps to the output that the network adds to: "conv1x1" or
            "conv3x3" (best where the host's own fusion is one) start as the mean of the modalities,
            with m · C out_channels as their concatenation, with others at zero, and are set by
            `calibrate`; "first" is the first modality's map (the paper's released code); None is
            none.
        steps: s, sampling steps of diffusion, 1 as in the paper; `eta`: η of DDIM.
        prediction_type: of diffusion: "sample" (x_0), "epsilon" or "v_prediction". One step from
            pure noise needs one of "sample" and "v_prediction": x_0 from "epsilon" divides by
            √ᾱ_T = 5e-5.
        weighting: of the diffusion loss: "x_0", "noise" (the paper's) or "min_snr"; see
            `methods.Diffusion`.
        last_timestep_probability: fraction of the training samples with t = T, where sampling
            starts. The defaults of both are measured (benchmarks/one_step.py): 100 steps from a
            calibrated start with an error of 0.34 bring one-step samples to 0.17; without t = T it
            is 0.22, with the paper's weighting 0.33 to 0.46.
        fixed_noise: inference starts from the same noise every time, so that the same frame gives
            the same boxes; False draws new noise from the fusion's own random generator.
        scheduler: a diffusers scheduler, or a mapping of what differs from DDIM, the cosine
            schedule, T = 1000, nothing clipped. Kept as the scheduler's config.
        out_channels: of the fused map, where it has other ones than the modality maps, as m · C for
            a head that takes their concatenation. Default: C.

    Raises:
        ValueError: an unknown name or an impossible number, naming it.
        TypeError: an unknown option.
    """

    channels: int
    modalities: int = 2
    size: tuple[int, int] = (16, 16)
    method: str = "diffusion"
    network: str = "uvit"
    network_config: Mapping[str, Any] = field(default_factory=dict)  # a network's own options
    residual: str | None = "conv1x1"
    steps: int = 1
    eta: float = 0.0
    prediction_type: str = "sample"
    weighting: str = "x_0"
    last_timestep_probability: float = 0.5
    fixed_noise: bool = True
    scheduler: Mapping[str, Any] | None = None  # of diffusers, any of its classes
    out_channels: int | None = None

    def __post_init__(self) -> None:
        check_whole_number("channels", self.channels, most=MOST_CHANNELS)
        check_whole_number("modalities", self.modalities, most=64)
        fused = self.fused_channels
        check_whole_number("out_channels", fused, most=MOST_CHANNELS)
        for name, known in (
            ("method", tuple(METHODS)),
            ("network", tuple(NETWORKS)),
            ("residual", RESIDUALS),
            ("weighting", WEIGHTINGS),
            ("prediction_type", PREDICTION_TYPES),
        ):
            check_choice(name, getattr(self, name), known)
        check_fraction("last_timestep_probability", self.last_timestep_probability)
        check_fraction("eta", self.eta)
        check_flag("fixed_noise", self.fixed_noise)
        check_whole_number("steps", self.steps)
        if self.residual == "first" and fused != self.channels:
            raise ValueError(
                f"residual='first' adds a map of channels={self.channels} to one of out_channels="
                f"{fused}; expected as many, or residual='conv1x1'"
            )
        height, width = check_size(self.size)
        most = max(self.channels, fused)
        if most * height * width > MOST_NUMBERS:
            raise ValueError(
                f"channels={most}, size={self.size} make more than {MOST_NUMBERS} numbers a map; "
                "expected fewer"
            )
        network_config = {} if self.network_config is None else self.network_config
        check_mapping("network_config", network_config)
        scheduler: Any = self.scheduler
        if hasattr(scheduler, "config"):  # one of diffusers, as it was built
            config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
            scheduler = {"_class_name": type(scheduler).__name__, **config}
        if scheduler is not None:
            check_mapping("scheduler", scheduler)
        for name, value in (
            ("channels", int(self.channels)),
            ("modalities", int(self.modalities)),
            ("out_channels", None if self.out_channels is None else int(self.out_channels)),
            ("steps", int(self.steps)),
            ("eta", float(self.eta)),
            ("last_timestep_probability", float(self.last_timestep_probability)),
            ("size", (height, width)),
            ("network_config", {k: _as_plain(v) for k, v in network_config.items()}),
            ("scheduler", scheduler and {k: _as_plain(v) for k, v in scheduler.items()}),
        ):
            object.__setattr__(self, name, value)

    @property
    def fused_channels(self) -> int:
        """Of the fused map: `out_channels`, else `channels`."""
        return self.channels if self.out_channels is None else self.out_channels

    @classmethod
    def preset(
        cls, name: str, channels: int, size: int | Sequence[int] = 16, **options: Any
    ) -> "FusionConfig":
        """The config of a named size; `options` are other fields and take precedence.

        For C = 768 and 16×16 maps, two modalities, a pass of one sample (2 FLOP a multiply-add):

        ============  ==========  ======  =====================================================
        name          parameters  GFLOP   network
        ============  ==========  ======  =====================================================
        "small"       8.1 M       4.1     UViT, n = 1, width C/2; the one for a transformer
        "small-unet"  19.0 M      4.0     UNet, n = 3, widths C/6 · (1, 1.5, 2); for a CNN
        "paper-uvit"  64.1 M      32.7    UViT, n = 1, width 1200, 12 heads
        "paper-unet"  979 M       117.8   UNet, n = 9, widths 768 · (1, 1.5, 2)
        ============  ==========  ======  =====================================================

        On maps of more than 16×16 positions a token of "small" is a patch of 2×2.

        Raises:
            ValueError: an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown; expected one of {tuple(PRESETS)}")
        height, width = check_size(size)
        chosen = {"channels": channels, "size": size, **PRESETS[name]}
        if name == "small" and height * width > MOST_TOKENS:
            chosen["network_config"] = {"patch_size": 2, **chosen.get("network_config", {})}
        return cls(**{**chosen, **options})

    @classmethod
    def signature(cls) -> inspect.Signature:
        """Of what takes the fields as options: all but `channels` by keyword."""
        whole = inspect.signature(cls)
        first, *others = whole.parameters.values()
        options = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in others]
        return whole.replace(
            parameters=[first, *options], return_annotation=inspect.Signature.empty
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it: tuples are lists."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return config

    def to_json(self) -> str:
        """The text of a `config.json`, with the library's version."""
        config = {"_class_name": CLASS_NAME, "_version": __version__, **self.to_dict()}
        return json.dumps(config, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> tuple["FusionConfig", str]:
        """The config of such a text, and a warning where a newer version wrote more than is known.

        Raises:
            ValueError, TypeError: it is not JSON, of something else, or does not fit.
        """
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error}); save the fusion again") from error
        if not isinstance(config, dict) or config.pop("_class_name", None) != CLASS_NAME:
            raise ValueError(f"is not the config of a {CLASS_NAME}")
        config.pop("_sha256", None)
        version = str(config.pop("_version", "unknown"))
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(config) - known) if _release(version) > _release(__version__) else []
        warning = (
            f"was written by gmmt-fusion {version}, this is {__version__}; ignored unknown keys: "
            f"{', '.join(unknown)}"
        )
        config = cls(**{key: value for key, value in config.items() if key not in unknown})
        return config, warning if unknown else ""


def _release(version: str) -> tuple[int, ...]:
    numbers = version.split(".")
    return tuple(int(number) if number.isdecimal() else 0 for number in numbers)


def _as_plain(value: Any) -> Any:
    """A config's value as JSON can hold it; NumPy's and PyTorch's numbers become Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("a config holds NaN; expected a number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return tuple(_as_plain(entry) for entry in value)
    raise TypeError(f"a config holds a {type(value).__name__}; expected numbers, names and lists")
