"""The rows of the tables of benchmarks/ablation.py."""

from dataclasses import dataclass, field, replace
from typing import Any

from ablation_tables import UNDEGRADED

from gmmt_fusion.training.degradation import KINDS


@dataclass(frozen=True)
class Arm:
    """A row of a table.

    fusion: arguments of GenerativeFusion. weight: λ. control: "base" is the tracker as it comes,
    "head" trains the new head alone, on the host's fusion, "convolution" and "wide convolution"
    train a network of plain ones. degraded: False tests on the same scenes with two good
    modalities. window: weight of the tracker's cosine window. degradation: arguments of
    Degradation, by which training samples are degraded further than their scene is. twins: the
    generative loss has the fused map of the scene with two good modalities as its target; otherwise
    that of the sample before it is degraded further. calibrated: False starts as built, far from
    the host. unnormalised: the fusion sees the host's maps times this number, and not with mean 0
    and variance 1.
    training: "recipe" is one of gmmt_fusion.training.recipes, in place of AdamW with a lower rate
    for the head; "ema_decay"; "batch_statistics" lets the head's BatchNorm use those of its batches
    and not the host's.
    interpolation: how far the weights go from their start to where training ends (Wortsman et al.,
    CVPR 2022).
    sampling: attributes set on the trained fusion, and the dtype that it is optimised to.
    """

    label: str
    fusion: dict[str, Any] = field(default_factory=dict)
    weight: float = 5.0
    control: str | None = None
    degraded: bool = True
    window: float = 0.25
    degradation: dict[str, Any] = field(default_factory=lambda: {"probability": 0.3})
    twins: bool = True
    calibrated: bool = True
    unnormalised: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    interpolation: float = 1.0
    sampling: dict[str, Any] = field(default_factory=dict)


RAW, CGAN, DM = ({"method": method} for method in ("raw", "cgan", "diffusion"))
UVIT, UNET = ({"network": network} for network in ("uvit", "unet"))
BEST = DM | UNET
BASE = Arm("base", control="base")
HEAD = Arm("head retrained alone", RAW, 0.0, "head")
METHODS = {"RAW": RAW, "CGAN": CGAN, "DM": DM}
TABLES: dict[str, list[Arm]] = {
    "table2": [
        HEAD,
        Arm("plain convolutional fusion", RAW, 0.0, "convolution"),
        Arm("plain convolutions, the UNet's size", RAW, 0.0, "wide convolution"),
        Arm("UNet, no generative loss", RAW | UNET, 0.0),
        *(
            Arm(f"{name}, {network}", method | options)
            for network, options in (("UNet", UNET), ("UViT", UVIT))
            for name, method in METHODS.items()
        ),
        *(
            replace(arm, label=arm.label + UNDEGRADED, degraded=False)
            for arm in (BASE, Arm("DM, UNet", BEST))
        ),
    ],
    "window": [
        replace(arm, label=f"{arm.label}, window {window:g}", window=window)
        for arm in (BASE, HEAD, Arm("DM, UNet", BEST))
        for window in (0.1, 0.25, 0.4)
    ],
    "weight": [Arm(f"λ = {weight}", BEST, float(weight)) for weight in (0, 1, 2, 3, 5, 10, 100)],
    "steps": [
        Arm(f"s = {steps}", BEST, sampling={"steps": steps}) for steps in (1, 2, 5, 10, 20, 40)
    ],
    "blocks": [
        Arm("UNet, n = 3", BEST),
        *(
            Arm(f"UNet, n = {3 * depth}", BEST | {"network_config": {"depth": depth}})
            for depth in (2, 3)
        ),
        Arm("UViT, n = 1", DM | UVIT),
        *(
            Arm(f"UViT, n = {depth}", DM | UVIT | {"network_config": {"depth": depth}})
            for depth in (2, 4)
        ),
        Arm("UViT, n = 1, the UNet's size", DM | UVIT | {"network_config": {"width": 148}}),
    ],
    "patches": [
        Arm("UNet, n = 3", BEST),
        *(
            Arm(f"UViT, {name}", DM | UVIT | {"network_config": options})
            for name, options in (
                ("p = 1", {"patch_size": 1}),
                ("p = 2", {"patch_size": 2}),
                ("p = 2, width 128", {"patch_size": 2, "width": 128}),
            )
        ),
    ],
    "weighting": [
        Arm("x_0", BEST),
        *(Arm(name, BEST | {"weighting": name}) for name in ("noise", "min_snr")),
        *(
            Arm(f"x_0, share of t = T {fraction:g}", BEST | {"last_timestep_probability": fraction})
            for fraction in (0.0, 1.0)
        ),
    ],
    "prediction": [
        Arm("sample", BEST),
        Arm("v_prediction", BEST | {"prediction_type": "v_prediction"}),
        Arm("epsilon, s = 5", BEST | {"prediction_type": "epsilon", "steps": 5}),
    ],
    "training": [
        Arm("as in the other tables", BEST),
        Arm("residual path of 1×1", BEST | {"residual": "conv1x1"}),
        Arm("no residual path", BEST | {"residual": None}),
        Arm("not calibrated", BEST, calibrated=False),
        *(
            Arm(f"not normalised, maps × {scale:g}", BEST, unnormalised=scale)
            for scale in (0.1, 1.0, 10.0)
        ),
        Arm("one rate of 4e-4", BEST, training={"recipe": "adamw_optimizer"}),
        Arm("the paper's SGD", BEST, training={"recipe": "paper_optimizer"}),
        Arm("moving average, decay 0.99", BEST, training={"ema_decay": 0.99}),
        Arm("head's BatchNorm by batch", BEST, training={"batch_statistics": True}),
    ],
    "noise": [Arm("fixed", BEST), Arm("random", BEST, sampling={"fixed_noise": False})],
    "interpolation": [
        Arm(f"{part:g}", BEST, interpolation=part) for part in (0.25, 0.5, 0.75, 1.0)
    ],
    "precision": [
        Arm("float32", BEST),
        *(
            Arm(f"optimize(dtype=torch.{dtype})", BEST, sampling={"optimize": dtype})
            for dtype in ("float32", "bfloat16")
        ),
    ],
    "degradation": [
        Arm(
            f"{target}, share {fraction:g}{name}",
            BEST,
            degradation={"probability": fraction} | kinds,
            twins=target == "twins",
        )
        for target in ("twins", "own pictures")
        for fraction, name, kinds in (
            (0.0, "", {}),
            (0.3, "", {}),
            (0.6, "", {}),
            (0.3, ", missing alone", {"kinds": ["missing"]}),
            (0.3, ", none missing", {"kinds": KINDS[:-1]}),
        )
    ],
}
RECIPES: dict[str, dict[str, Any]] = {
    "table2": {"seeds": 5, "steps": 1200, "sequences": 64, "split": "test"},
    "window": {"steps": 1200, "sequences": 48},
    "precision": {"sequences": 32, "bfloat16": False},
    "degradation": {"pairs": 3200, "training_sequences": 200},
}
"""Where a table differs from the defaults of the command line."""
