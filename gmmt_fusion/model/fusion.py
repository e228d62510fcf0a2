"""`GenerativeFusion`: a network, a generative method and the normalisation of a host's features, as
one module.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from ..checks import (
    check_choice,
    check_finite,
    check_maps,
    check_share,
    check_size,
    check_whole_number,
)
from . import checkpoint
from .calibration import least_squares_convolution, moments
from .fast_path import Optimized
from .methods import (
    PREDICTION_TYPES,
    WEIGHTINGS,
    ConditionalGAN,
    Diffusion,
    Raw,
    build_scheduler,
    standard_normal,
)
from .networks import NETWORKS, Discriminator, UNet, UViT

METHODS = ("diffusion", "cgan", "raw")
RESIDUALS = ("conv1x1", "conv3x3", "first", None)

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


@dataclass
class FusionOutput:
    """What `GenerativeFusion.loss` returns.

    fused: the prediction (B, C, H, W) that the head is trained on, with gradient. loss: Loss_gen, a
    scalar.
    """

    fused: Tensor
    loss: Tensor


class GenerativeFusion(nn.Module, ModelHubMixin):
    """Generates the fused map of a multi-modal tracker from noise, conditioned on one feature map
    per modality.

    GMMT (Tang et al., AAAI 2024, arXiv 2309.01728). `fusion(f_1, …, f_m)` gives a map (B, C, H, W)
    from m maps (B, C, H, W) of any H and W, in their device and dtype.

    Args:
        channels: C of the host's maps.
        modalities: m, from 1 up.
        size: side, or (H, W), of the maps met most; UViT learns its positions and a CGAN its
            discriminator for it.
        method: "diffusion", "cgan" or "raw" (the network without noise).
        network: "uvit" or "unet"; `network_config`: its options, see `networks.UViT` and
            `networks.UNet`.
        residual: path from the modality maps to the output that the network adds to: "conv1x1" or
            "conv3x3" (best where the host's own fusion is one) start as the mean of the modalities
            and are set by `calibrate`; "first" is the first modality's map (the paper's released
            code); None is none.
        steps: s, sampling steps of diffusion, 1 as in the paper; `eta`: η of DDIM.
        prediction_type: of diffusion: "sample" (x_0), "epsilon" or "v_prediction". One step from
            pure noise needs one of "sample" and "v_prediction": x_0 from "epsilon" divides by √ᾱ_T
            = 5e-5.
        weighting: of the diffusion loss: "x_0", "noise" (the paper's) or "min_snr"; see
            `methods.Diffusion`.
        last_step_probability: share of the training samples with t = T, where sampling starts. The
            defaults of both are measured (benchmarks/one_step.py): 100 steps from a calibrated
            start with an error of 0.34 bring one-step samples to 0.17; without t = T it is 0.22,
            with the paper's weighting 0.33 to 0.46.
        fixed_noise: inference starts from the same noise every time, so that the same frame gives
            the same boxes; False draws new noise from `self.generator`.
        scheduler: a diffusers scheduler, or what differs from DDIM, the cosine schedule, T = 1000,
            nothing clipped.

    Raises:
        ValueError: an unknown name or an impossible number, naming it.
    """

    feature_mean: Tensor
    feature_std: Tensor
    fused_mean: Tensor
    fused_std: Tensor
    noise: Tensor
    network: UViT | UNet

    def __init__(
        self,
        channels: int,
        *,
        modalities: int = 2,
        size: int | Sequence[int] = 16,
        method: str = "diffusion",
        network: str = "uvit",
        network_config: Mapping[str, Any] | None = None,
        residual: str | None = "conv1x1",
        steps: int = 1,
        eta: float = 0.0,
        prediction_type: str = "sample",
        weighting: str = "x_0",
        last_step_probability: float = 0.5,
        fixed_noise: bool = True,
        scheduler: Any = None,
    ) -> None:
        super().__init__()
        size = check_size(size)
        for name, number in (("channels", channels), ("modalities", modalities)):
            check_whole_number(name, number)
        channels, modalities = int(channels), int(modalities)
        for name, value, known in (
            ("method", method, METHODS),
            ("network", network, tuple(NETWORKS)),
            ("residual", residual, RESIDUALS),
            ("weighting", weighting, WEIGHTINGS),
            ("prediction_type", prediction_type, PREDICTION_TYPES),
        ):
            check_choice(name, value, known)
        for name, share in (("last_step_probability", last_step_probability), ("eta", eta)):
            check_share(name, share)
        self.config: dict[str, Any] = {
            "channels": channels,
            "modalities": modalities,
            "size": size,
            "method": method,
            "network": network,
            "network_config": dict(network_config or {}),
            "residual": residual,
            "steps": steps,
            "eta": eta,
            "prediction_type": prediction_type,
            "weighting": weighting,
            "last_step_probability": last_step_probability,
            "fixed_noise": fixed_noise,
            "scheduler": scheduler,
        }
        self.channels, self.modalities, self.size = channels, modalities, size
        self.head: nn.Module | None = None  # the host's new head, once attached
        self.head_state: dict[str, Tensor] | None = None  # its loaded weights, until then
        self.optimized: Optimized | None = None

        self.method: Raw | Diffusion
        if method == "diffusion":
            built = build_scheduler(scheduler, prediction_type)
            self.config["scheduler"] = (
                None
                if scheduler is None
                else {
                    "_class_name": type(built).__name__,
                    **{
                        key: value for key, value in built.config.items() if not key.startswith("_")
                    },
                }
            )
            check_choice(
                "the scheduler's prediction_type", built.config.prediction_type, PREDICTION_TYPES
            )
            self.config["prediction_type"] = built.config.prediction_type
            self.method = Diffusion(built, weighting, last_step_probability, eta)
        elif method == "cgan":
            self.discriminator = Discriminator((modalities + 1) * channels, channels, size)
            self.method = ConditionalGAN(self.discriminator)
        else:
            self.method = Raw()
        self.steps = steps
        for pitfall in self.method.pitfalls(steps):
            warnings.warn(pitfall, stacklevel=2)

        inputs = (modalities + self.method.noise_maps) * channels
        try:
            self.network = NETWORKS[network](
                inputs, channels, size, **self.config["network_config"]
            )
        except TypeError as error:
            raise ValueError(
                f"network_config={network_config} does not fit network={network!r}: {error}"
            ) from error
        self.register_buffer("feature_mean", torch.zeros(modalities, channels))
        self.register_buffer("feature_std", torch.ones(modalities, channels))
        self.register_buffer("fused_mean", torch.zeros(channels))
        self.register_buffer("fused_std", torch.ones(channels))
        self.residual: nn.Conv2d | None = None
        if residual in ("conv1x1", "conv3x3"):
            kernel = int(residual[4])
            self.residual = nn.Conv2d(modalities * channels, channels, kernel, padding=kernel // 2)
            nn.init.zeros_(self.residual.weight)
            mean = torch.eye(channels).repeat(1, modalities) / modalities
            self.residual.weight.data[..., kernel // 2, kernel // 2] = mean
            # the network's last layer at zero: the plugin starts as its residual path
            for parameter in self.network.last_layer.parameters():
                nn.init.zeros_(parameter)
        self.register_buffer(
            "noise",
            standard_normal(
                (1, channels, *size), torch.Generator().manual_seed(0), self.feature_mean.device
            ),
            persistent=False,
        )
        self.generator = torch.Generator()
        self.manual_seed(0)

    @classmethod
    def preset(
        cls, name: str, channels: int, size: int | Sequence[int] = 16, **options: Any
    ) -> "GenerativeFusion":
        """A fusion of a named size; `options` are arguments of the constructor and take precedence.

        For C = 768 and 16×16 maps, two modalities, a pass of one sample (2 FLOP a multiply-add):

        ============  ==========  ==========  =====================================================================
        name          parameters  GFLOP       network
        ============  ==========  ==========  =====================================================================
        "small"       8.1 M       4.1         UViT, n = 1, width C/2; start with this one for a
        transformer "small-unet"  19.0 M      4.0         UNet, n = 3, widths C/6 · (1, 1.5, 2); and
        with this one for a CNN "paper-uvit"  64.1 M      32.7        UViT, n = 1, width 1200, 12
        heads "paper-unet"  979 M       117.8       UNet, n = 9, widths 768 · (1, 1.5, 2)
        ============  ==========  ==========
        =====================================================================

        Raises:
            ValueError: an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown; expected one of {tuple(PRESETS)}")
        return cls(channels, size=size, **{**PRESETS[name], **options})

    @property
    def steps(self) -> int:
        """Sampling steps of diffusion, 1 to T; may be set."""
        return self.config["steps"]

    @steps.setter
    def steps(self, steps: int) -> None:
        self.config["steps"] = int(self._check_steps(steps))

    @property
    def fixed_noise(self) -> bool:
        """Whether inference starts from the same noise every time; may be set."""
        return self.config["fixed_noise"]

    @fixed_noise.setter
    def fixed_noise(self, fixed: bool) -> None:
        self.config["fixed_noise"] = bool(fixed)

    def extra_repr(self) -> str:
        return ", ".join(
            f"{key}={value!r}" for key, value in self.config.items() if value is not None
        )

    def manual_seed(self, seed: int) -> "GenerativeFusion":
        """Seed the generator that training and `fixed_noise=False` draw from; the global one is
        never touched.
        """
        self.generator.manual_seed(seed)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # torch.Generator can be neither copied nor pickled, and a tensor may be gone before another
        # process gets it
        state["generator"] = bytes(self.generator.get_state().tolist())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator_state = torch.tensor(
            list(state.pop("generator")), dtype=torch.uint8, device="cpu"
        )
        super().__setstate__(state)
        self.generator = torch.Generator()
        self.generator.set_state(generator_state)

    def generator_parameters(self) -> list[nn.Parameter]:
        """The parameters that Loss_track + λ · Loss_gen trains: all but the discriminator's."""
        return [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]

    def forward(self, *features: Tensor) -> Tensor:
        """One sample of the fused map, (B, C, H, W), from m maps (B, C, H, W). Inference, without
        gradient.
        """
        return (
            self.sample(features)
            if self.optimized is None or self.training
            else self.optimized(self, features)
        )

    def optimize(
        self, enabled: bool = True, *, dtype: torch.dtype | None = None, compile: str | None = None
    ) -> None:
        """Make `forward` faster in eval mode, or as it was; see `Attachment.optimize`."""
        self.optimized = Optimized(self, dtype, compile) if enabled else None

    def train(self, mode: bool = True) -> "GenerativeFusion":
        if mode and self.optimized is not None:
            self.optimized.runs = {}
        return super().train(mode)

    @torch.no_grad()
    def sample(
        self,
        features: Sequence[Tensor],
        steps: int | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
        return_intermediates: bool = False,
    ) -> Any:
        """Samples of the fused map.

        Args:
            features: m maps (B, C, H, W).
            steps: s of diffusion, from 1 to T; default `self.steps`.
            generator: draws the noise; by default the starting noise is fixed, the same for every
                item of the batch, or comes from `self.generator` where `fixed_noise` is False.
            num_samples: samples for each item.
            return_intermediates: return the estimates of x_0 at every step too.

        Returns:
            (B, C, H, W), or (num_samples, B, C, H, W) where num_samples is above 1; with
            return_intermediates a pair of that and a list of maps of the same shape, one for each
            call of the network.

        Raises:
            TypeError, ValueError: features, steps or num_samples that do not fit, named.
        """
        dtype = check_maps(features, None, self.modalities, self.channels)
        steps = self.steps if steps is None else self._check_steps(steps)
        check_whole_number("num_samples", num_samples)
        batch = len(features[0])
        maps = [
            f if num_samples == 1 else f.repeat(num_samples, 1, 1, 1)
            for f in self._normalise(features)
        ]
        if generator is None and not self.fixed_noise:
            generator = self.generator
        noise = self._noise(num_samples, maps[0], generator) if self.method.noise_maps else None
        estimates = self.method.sample(
            self._network, maps, self._residual(maps), noise, steps, generator
        )
        results = [self._denormalise(x).to(dtype) for x in estimates]
        if num_samples > 1:
            results = [rearrange(x, "(n b) c h w -> n b c h w", b=batch) for x in results]
        return (results[-1], results) if return_intermediates else results[-1]

    def loss(
        self, features: Sequence[Tensor], fused: Tensor, generator: torch.Generator | None = None
    ) -> FusionOutput:
        """The generative loss against the host's fused map, and the prediction the head is trained
        on (Eq. 5, 6).

        Args:
            features: m maps (B, C, H, W); `fused`: the host's fused map (B, C, H, W).
            generator: draws noise and timesteps; default `self.generator`.

        Raises:
            TypeError, ValueError: maps that do not fit or are not finite, named.
        """
        maps, x_0, dtype = self._training_inputs(features, fused)
        prediction, loss = self.method.loss(
            self._network, maps, self._residual(maps), x_0, generator or self.generator
        )
        return FusionOutput(self._denormalise(prediction).to(dtype), loss)

    def discriminator_loss(
        self, features: Sequence[Tensor], fused: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss_D of the conditional GAN, with gradient for the discriminator only. Arguments as
        `loss`.

        Raises:
            ValueError: the method is not "cgan".
        """
        if not isinstance(self.method, ConditionalGAN):
            raise ValueError(
                f"method={self.config['method']!r} has no discriminator; build with method='cgan'"
            )
        maps, x_0, _ = self._training_inputs(features, fused)
        return self.method.discriminator_loss(
            self._network, maps, self._residual(maps), x_0, generator or self.generator
        )

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> float:
        """Set the normalisation, and a convolutional residual path by least squares, from the
        host's own maps.

        Per channel, features and fused map get mean 0 and variance 1 inside; the residual path
        becomes the linear map from the features that is nearest to the host's fused map, and the
        network's last layer stays or becomes zero, so that fine-tuning starts next to the host. A
        residual "first" or None gets the normalisation only.

        Args:
            batches: pairs (features, fused) as for `loss`; a few hundred maps are enough.

        Returns:
            The share of the variance of `fused` that the residual path leaves unexplained, 0 to 1;
            1 without one.

        Raises:
            ValueError: no batches, or maps that do not fit.
        """
        pairs = list(batches)
        if not pairs:
            raise ValueError("calibrate got no batches; expected pairs (features, fused)")
        for features, fused in pairs:
            self._training_inputs(features, fused)
        for index in range(self.modalities):
            self.feature_mean[index], self.feature_std[index] = moments(
                features[index] for features, _ in pairs
            )
        for buffer, moment in zip(
            (self.fused_mean, self.fused_std), moments(fused for _, fused in pairs), strict=True
        ):
            buffer.copy_(moment)
        if self.residual is None:
            return 1.0
        normalised = (self._training_inputs(features, fused) for features, fused in pairs)
        weight, bias, unexplained = least_squares_convolution(
            ((torch.cat(maps, dim=1), x_0) for maps, x_0, _ in normalised),
            self.residual.kernel_size[0],
        )
        self.residual.load_state_dict({"weight": weight, "bias": bias})
        for parameter in self.network.last_layer.parameters():
            nn.init.zeros_(parameter)
        return unexplained

    def save_pretrained(self, folder: Any, **hub_options: Any) -> None:  # type: ignore[override]
        """Write `config.json` and `model.safetensors` into `folder`, each atomically; pickle is not
        used.

        With `push_to_hub=True` and `repo_id`, also upload the folder, as huggingface_hub's mixin
        does.
        """
        state = dict(self.state_dict())
        state.update({f"head.{name}": tensor for name, tensor in (self.head_state or {}).items()})
        checkpoint.save(folder, self.config, state)
        if hub_options.pop("push_to_hub", False):
            self.push_to_hub(**hub_options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder_or_hub_id: Any, **hub_options: Any
    ) -> "GenerativeFusion":
        """Load from a folder that `save_pretrained` wrote, or from a Hugging Face hub id, on the
        CPU.

        Raises:
            OSError: a file is missing, cut off or of something else.
        """
        if checkpoint.is_folder(folder_or_hub_id):
            return cls._load(folder_or_hub_id)
        try:
            return super().from_pretrained(folder_or_hub_id, **hub_options)
        except (OSError, ValueError) as error:
            raise OSError(
                f"{folder_or_hub_id!r} is neither a folder here nor a fusion on the hub: {error}"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub_options: Any) -> "GenerativeFusion":
        return cls._load(checkpoint.download(model_id, **hub_options))

    @classmethod
    def _load(cls, folder: Any) -> "GenerativeFusion":
        config, state = checkpoint.load(folder, cls)
        try:
            fusion = cls(**config)
        except (TypeError, ValueError) as error:
            raise OSError(f"{folder}/config.json does not describe a fusion: {error}") from error
        heads = {name: tensor for name, tensor in state.items() if name.startswith("head.")}
        fusion.head_state = {
            name.removeprefix("head."): tensor for name, tensor in heads.items()
        } or None
        checkpoint.load_state(
            fusion, {name: tensor for name, tensor in state.items() if name not in heads}, folder
        )
        return fusion

    def _network(self, maps: list[Tensor], timesteps: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        return self.network(torch.cat([x.to(dtype) for x in maps], dim=1), timesteps)

    def _residual(self, maps: list[Tensor]) -> Tensor | int:
        if self.residual is not None:
            return self.residual(torch.cat(maps, dim=1).to(self.residual.weight.dtype)).float()
        return maps[0].float() if self.config["residual"] == "first" else 0

    def _normalise(self, features: Sequence[Tensor]) -> list[Tensor]:
        mean, std = (
            rearrange(x, "m c -> m 1 c 1 1") for x in (self.feature_mean, self.feature_std)
        )
        return [((f.to(mean.dtype) - mean[i]) / std[i]) for i, f in enumerate(features)]

    def _denormalise(self, x: Tensor) -> Tensor:
        mean, std = (
            rearrange(v, "c -> 1 c 1 1").float() for v in (self.fused_mean, self.fused_std)
        )
        return x * std + mean

    def _noise(self, num_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Starting noise (num_samples · B, C, H, W) in float32; without a generator one noise for
        the whole batch.
        """
        batch, shape = len(like) // num_samples, like.shape[1:]
        if generator is not None:
            return standard_normal(like.shape, generator, like.device)
        noise = self.noise.float()
        if num_samples > 1 or noise.shape[1:] != shape:
            noise = standard_normal(
                (num_samples, *shape), torch.Generator().manual_seed(0), like.device
            )
        return noise.repeat_interleave(batch, dim=0)

    def _training_inputs(
        self, features: Sequence[Tensor], fused: Tensor
    ) -> tuple[list[Tensor], Tensor, torch.dtype]:
        dtype = check_maps(features, fused, self.modalities, self.channels)
        check_finite(features, fused)
        mean, std = (
            rearrange(v, "c -> 1 c 1 1").float() for v in (self.fused_mean, self.fused_std)
        )
        return self._normalise(features), (fused.float() - mean) / std, dtype

    def _check_steps(self, steps: int) -> int:
        most = (
            self.method.scheduler.config.num_train_timesteps
            if isinstance(self.method, Diffusion)
            else 1
        )
        check_whole_number("steps", steps, 1, most)
        return steps
