"""`GenerativeFusion`: network, generative method and normalisation of a host's maps, as one."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..checks import check_finite, check_maps, check_whole_number
from .building import build_discriminator, build_method, build_network, build_residual
from .calibration import least_squares_convolution, moments
from .config import FusionConfig
from .methods import BoundNetwork, ConditionalGAN, standard_normal
from .networks import UNet, UViT
from .pretrained import Pretrained

Features = Sequence[Tensor]
"""One map (B, C, H, W) per modality."""


@dataclass
class FusionOutput:
    """What `GenerativeFusion.loss` returns.

    fused: the prediction (B, C, H, W) that the head is trained on, with gradient. loss: Loss_gen, a
    scalar.
    """

    fused: Tensor
    loss: Tensor


class FastPath(Protocol):
    """What may compute `GenerativeFusion.forward` in its place; see `fast_path.optimize`."""

    def __call__(self, fusion: "GenerativeFusion", features: Features) -> Tensor: ...

    def forget(self) -> None:
        """Drop what was made of weights that may change now."""


class GenerativeFusion(Pretrained):
    """Generates the fused map of a multi-modal tracker from noise, given one map per modality.

    GMMT (Tang et al., AAAI 2024, arXiv 2309.01728). `fusion(f_1, …, f_m)` gives a map (B, C, H, W)
    from m maps (B, C, H, W) of any H and W, in their device and dtype; with `out_channels` the
    fused map has those, here and below.

    Args:
        channels: C of the host's maps.
        options: the other fields of `FusionConfig`, by name: modalities, size, method, network,
            network_config, residual, steps, eta, prediction_type, weighting,
            last_timestep_probability, fixed_noise, scheduler, out_channels.

    Raises:
        ValueError: an unknown name or an impossible number, naming it.
        TypeError: an unknown option.
    """

    feature_mean: Tensor
    feature_std: Tensor
    fused_mean: Tensor
    fused_std: Tensor
    noise: Tensor
    network: UViT | UNet
    noise_folded = False  # into the network's first layer, in the copies of the fast path

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.config = config = FusionConfig(channels, **options)
        self.head: nn.Module | None = None  # the host's new head, once attached
        self.head_state: dict[str, Tensor] | None = None  # its loaded weights, until then
        self.about: dict[str, Any] = {}
        self.fast_path: FastPath | None = None
        self.discriminator = build_discriminator(config)
        self.method, self.config = build_method(
            config, self.discriminator, options.get("scheduler")
        )
        self._check_steps(config.steps)
        for pitfall in self.method.pitfalls(config.steps):
            warnings.warn(pitfall, stacklevel=2)
        self.network = build_network(config, self.method)
        self.residual = build_residual(config, self.network)
        self.register_buffer("feature_mean", torch.zeros(config.modalities, channels))
        self.register_buffer("feature_std", torch.ones(config.modalities, channels))
        self.register_buffer("fused_mean", torch.zeros(config.fused_channels))
        self.register_buffer("fused_std", torch.ones(config.fused_channels))
        self.register_buffer("noise", self._starting_noise(config.size), persistent=False)
        self.generator = torch.Generator()
        self.manual_seed(0)

    @classmethod
    def preset(
        cls, name: str, channels: int, size: int | Sequence[int] = 16, **options: Any
    ) -> "GenerativeFusion":
        """A fusion of a named size; arguments and errors as `FusionConfig.preset`'s."""
        config = FusionConfig.preset(name, channels, size, **options)
        named = {key: getattr(config, key) for key in vars(config) if key != "channels"}
        return cls(config.channels, **{**named, **options})

    @property
    def channels(self) -> int:
        """C of the modality maps."""
        return self.config.channels

    @property
    def out_channels(self) -> int:
        """C of the fused map."""
        return self.config.fused_channels

    @property
    def modalities(self) -> int:
        """m, how many maps are fused."""
        return self.config.modalities

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the maps met most."""
        return self.config.size

    @property
    def steps(self) -> int:
        """Sampling steps of diffusion, 1 to T; may be set."""
        return self.config.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._check_steps(steps)
        self.config = replace(self.config, steps=steps)

    @property
    def fixed_noise(self) -> bool:
        """Whether inference starts from the same noise every time; may be set."""
        return self.config.fixed_noise

    @fixed_noise.setter
    def fixed_noise(self, fixed: bool) -> None:
        self.config = replace(self.config, fixed_noise=fixed)

    def extra_repr(self) -> str:
        shown = {key: value for key, value in vars(self.config).items() if value is not None}
        return ", ".join(f"{key}={value!r}" for key, value in shown.items())

    def manual_seed(self, seed: int) -> "GenerativeFusion":
        """Seed the generator that training and `fixed_noise=False` draw from, and no other."""
        self.generator.manual_seed(seed)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # torch.Generator can be neither copied nor pickled, and a tensor may be gone before another
        # process gets it
        state["generator"] = bytes(self.generator.get_state().tolist())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        numbers = list(state.pop("generator"))
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.generator = torch.Generator()
        self.generator.set_state(torch.tensor(numbers, dtype=torch.uint8, device="cpu"))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What Loss_track + λ · Loss_gen trains: all parameters but the discriminator's."""
        named = self.named_parameters()
        return [p for name, p in named if not name.startswith("discriminator.")]

    def forward(self, *features: Tensor) -> Tensor:
        """One sample of the fused map, (B, C, H, W), from m maps (B, C, H, W), without gradient."""
        if self.fast_path is None or self.training:
            fused: Tensor = self.sample(features)
            return fused
        return self.fast_path(self, features)

    def train(self, mode: bool = True) -> "GenerativeFusion":
        if mode and self.fast_path is not None:
            self.fast_path.forget()
        return super().train(mode)

    @torch.no_grad()
    def sample(
        self,
        features: Features,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
        return_intermediates: bool = False,
    ) -> Any:  # a tensor, or a pair: see Returns
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
        batch = features[0].shape[0]
        maps = self._normalise(features)
        if num_samples > 1:
            maps = [f.repeat(num_samples, 1, 1, 1) for f in maps]
        if generator is None and not self.fixed_noise:
            generator = self.generator
        noise = self._noise(num_samples, maps[0], generator) if self.method.noise_maps else None
        estimates = self.method.sample(self._bind(maps), noise, steps, generator)
        results = [self._denormalise(x).to(dtype) for x in estimates]
        if num_samples > 1:
            results = [rearrange(x, "(n b) c h w -> n b c h w", b=batch) for x in results]
        return (results[-1], results) if return_intermediates else results[-1]

    def loss(
        self, features: Features, fused: Tensor, generator: torch.Generator | None = None
    ) -> FusionOutput:
        """The generative loss against the host's fused map, and the prediction for the head.

        The paper's Eq. 5 and 6.

        Args:
            features: m maps (B, C, H, W); `fused`: the host's fused map (B, C, H, W).
            generator: draws noise and timesteps; default `self.generator`.

        Raises:
            TypeError, ValueError: maps that do not fit or, on a CPU, are not finite, named. (A GPU
                would have to be waited for; the loss is NaN there.)
        """
        maps, x_0, dtype = self._training_inputs(features, fused)
        prediction, loss = self.method.loss(self._bind(maps), x_0, generator or self.generator)
        return FusionOutput(self._denormalise(prediction).to(dtype), loss)

    def discriminator_loss(
        self, features: Features, fused: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Loss_D of the conditional GAN, with gradient for the discriminator only.

        Arguments as those of `loss`.

        Raises:
            ValueError: the method is not "cgan".
        """
        if not isinstance(self.method, ConditionalGAN):
            raise ValueError(
                f"method={self.config.method!r} has no discriminator; build with method='cgan'"
            )
        maps, x_0, _ = self._training_inputs(features, fused)
        return self.method.discriminator_loss(self._bind(maps), x_0, generator or self.generator)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Features, Tensor]]) -> float:
        """Set normalisation and residual path from the host's own maps, before fine-tuning.

        Per channel, features and fused map get mean 0 and variance 1 inside; a convolutional
        residual path becomes, by least squares, the linear map from the features that is nearest to
        the host's fused map, and the network's last layer stays or becomes zero: fine-tuning starts
        next to the host. A residual "first" or None gets the normalisation only.

        Args:
            batches: pairs (features, fused) as for `loss`; a few hundred maps are enough.

        Returns:
            The fraction of the variance of `fused` that the residual path leaves unexplained, 0 to
            1; 1 without one.

        Raises:
            ValueError: no batches, or maps that do not fit.
        """
        pairs = list(batches)
        if not pairs:
            raise ValueError("calibrate got no batches; expected pairs (features, fused)")
        for features, fused in pairs:
            self._training_inputs(features, fused)
            check_finite(features, fused)
        for index in range(self.modalities):
            mean_and_std = moments(features[index] for features, _ in pairs)
            self.feature_mean[index], self.feature_std[index] = mean_and_std
        mean, std = moments(fused for _, fused in pairs)
        self.fused_mean.copy_(mean)
        self.fused_std.copy_(std)
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

    def _bind(self, maps: list[Tensor]) -> BoundNetwork:
        features, residual = torch.cat(maps, dim=1), None
        if self.residual is not None:
            residual = self.residual(features.to(self.residual.weight.dtype)).float()
        elif self.config.residual == "first":
            residual = maps[0].float()
        return BoundNetwork(self.network, features, residual, self.noise_folded)

    def _normalise(self, features: Features) -> list[Tensor]:
        moments = self.feature_mean, self.feature_std
        mean, std = (rearrange(_for_graph(x), "m c -> m 1 c 1 1") for x in moments)
        return [((f.to(mean.dtype) - mean[i]) / std[i]) for i, f in enumerate(features)]

    def _denormalise(self, x: Tensor) -> Tensor:
        mean, std = self._fused_moments()
        return x * std + mean

    def _fused_moments(self) -> tuple[Tensor, Tensor]:
        mean, std = _for_graph(self.fused_mean), _for_graph(self.fused_std)
        return mean.float()[None, :, None, None], std.float()[None, :, None, None]

    def _starting_noise(self, size: Sequence[int], num_samples: int = 1) -> Tensor:
        """The noise that inference starts from, (num_samples, C, H, W), always the same."""
        shape = num_samples, self.out_channels, *size
        generator = torch.Generator().manual_seed(0)
        return standard_normal(shape, generator, self.feature_mean.device)

    def _noise(self, num_samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise (num_samples · B, C, H, W); without a generator one for the whole batch."""
        batch, size = like.shape[0] // num_samples, like.shape[2:]
        if generator is not None:
            return standard_normal((len(like), self.out_channels, *size), generator, like.device)
        noise = self.noise.float()
        if num_samples > 1 or noise.shape[2:] != size:
            noise = self._starting_noise(size, num_samples)
        return noise.repeat_interleave(batch, dim=0)

    def _training_inputs(
        self, features: Features, fused: Tensor
    ) -> tuple[list[Tensor], Tensor, torch.dtype]:
        dtype = check_maps(features, fused, self.modalities, self.channels, self.out_channels)
        if fused.device.type == "cpu":
            check_finite(features, fused)
        mean, std = self._fused_moments()
        return self._normalise(features), (fused.float() - mean) / std, dtype

    def _check_steps(self, steps: int) -> int:
        most = self.method.last_timestep + 1
        check_whole_number("steps", steps, 1, most)
        return steps


def _for_graph(buffer: Tensor) -> Tensor:
    """A copy where a graph keeps it: DDP writes the first process's buffers in place before each
    forward, and a host called in stages has several before its backward."""
    return buffer.clone() if torch.is_grad_enabled() else buffer


GenerativeFusion.__signature__ = FusionConfig.signature()  # type: ignore[attr-defined]
