"""How a network becomes a fusion: diffusion, conditional GAN, or plain regression (RAW).

All three work on normalised maps, and know the network as a `BoundNetwork` only.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schedulers import Scheduler, last_timestep, one_step_gives_x_0, pitfalls

WEIGHTINGS = ("x_0", "noise", "min_snr")


def standard_normal(
    shape: Sequence[int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Float32 noise drawn where the generator lives: a CPU one gives the same on every device."""
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return noise.to(device)


Timesteps = Tensor | int
"""t of each item of a batch, (B,), or of all of them."""


class BoundNetwork:
    """U with the features of one batch bound to it: `network(noisy, timesteps)`.

    Args:
        network: takes maps concatenated on channels (B, C_in, H, W), and timesteps (B,).
        features: normalised, of all modalities (B, m · C, H, W).
        residual: (B, C, H, W), what the residual path gives for the same features; None for none.
        noise_folded: the network knows the noise, and takes the features alone; the noise that it
            is called with still counts in the residual and in x_0.
    """

    def __init__(
        self,
        network: nn.Module,
        features: Tensor,
        residual: Tensor | None = None,
        noise_folded: bool = False,
    ) -> None:
        self.network, self.features, self.residual = network, features, residual
        self.noise_folded = noise_folded
        self.batch, self.device = features.shape[0], features.device

    def __call__(self, noisy: Tensor | None, timesteps: Timesteps) -> Tensor:
        """U(x_t, f_1 … f_m, t), or U(f_1 … f_m) without noise: (B, C, H, W) in float32."""
        if isinstance(timesteps, int):
            timesteps = torch.full((self.batch,), timesteps, device=self.device)
        dtype = next(self.network.parameters()).dtype
        maps = self.features.to(dtype)
        if noisy is not None and not self.noise_folded:
            maps = torch.cat([noisy.to(dtype), maps], dim=1)
        output: Tensor = self.network(maps, timesteps)
        return output.float()

    def generate(self, noise: Tensor | None) -> Tensor:
        """One pass at t = 0, with the residual path: fused* of RAW and of the CGAN."""
        output = self(noise, 0)
        return output if self.residual is None else self.residual + output


class Method(ABC):
    """What a fusion asks of its method."""

    noise_maps = 1
    """Maps of noise among the network's inputs, 0 or 1."""
    last_timestep = 0
    """t of the pass that starts from pure noise."""

    def is_one_pass(self, steps: int) -> bool:
        """Whether a sample is one pass of the network at `last_timestep`, from the noise."""
        return True

    def pitfalls(self, steps: int) -> list[str]:
        """What in the settings spoils feature maps that are sampled in so many steps."""
        return []

    @abstractmethod
    def sample(
        self,
        network: BoundNetwork,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        """Estimates of the normalised fused map, one a step; the last is the sample."""

    @abstractmethod
    def loss(
        self, network: BoundNetwork, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The prediction of x_0 (B, C, H, W), with gradient, and Loss_gen, a scalar."""


class Raw(Method):
    """The network alone: fused* = U(f_1 … f_m); Loss_gen = L2(fused, fused*) (Eq. 6, Loss_RAW)."""

    noise_maps = 0

    def sample(
        self,
        network: BoundNetwork,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        return [network.generate(None)]

    def loss(
        self, network: BoundNetwork, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        prediction = network.generate(None)
        return prediction, F.mse_loss(prediction, x_0)


class ConditionalGAN(Method):
    """fused* = G(z, f_1 … f_m), with G of the architecture of U (Mirza & Osindero 2014).

    Least-squares losses, label 1 for the host's fused map and 0 for fused* (the paper, section
    "Generative-Based Fusion Mechanism").
    """

    def __init__(self, discriminator: nn.Module) -> None:
        self.discriminator = discriminator

    def sample(
        self,
        network: BoundNetwork,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        return [network.generate(noise)]

    def loss(
        self, network: BoundNetwork, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        fake = network.generate(standard_normal(x_0.shape, generator, x_0.device))
        # D is frozen while G learns: parameters detached, running statistics updated on a copy
        frozen = {name: x.detach().clone() for name, x in self.discriminator.state_dict().items()}
        seen = self.pair(fake, network.features)
        score = torch.func.functional_call(self.discriminator, frozen, seen).float()
        return fake, F.mse_loss(score, torch.ones_like(score))

    def discriminator_loss(
        self, network: BoundNetwork, x_0: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss_D = Loss_D0 + Loss_D1; G is frozen while D learns."""
        with torch.no_grad():
            fused = network.generate(standard_normal(x_0.shape, generator, x_0.device))
        real = self.discriminator(self.pair(x_0, network.features)).float()
        fake = self.discriminator(self.pair(fused, network.features)).float()
        return F.mse_loss(fake, torch.zeros_like(fake)) + F.mse_loss(real, torch.ones_like(real))

    def pair(self, fused: Tensor, features: Tensor) -> Tensor:
        """What D sees: a fused map, real or fake, with its features, in their dtype."""
        return torch.cat([fused.to(features.dtype), features], dim=1)


class Diffusion(Method):
    """A conditional diffusion model over a diffusers scheduler (Ho et al. 2020; DDIM, Song et al.
    2021).

    The residual path is part of the prediction whatever its type: where the network gives zero,
    x_0 is the residual.

    Args:
        scheduler: a diffusers scheduler with `alphas_cumprod`.
        weighting: of the squared error, as a weight on x_0: "x_0" 1, "noise" the signal-to-noise
            ratio ᾱ / (1 − ᾱ) (the paper's Eq. 6 and its released code), "min_snr" the ratio cut at
            5 (Hang et al. 2023).
        last_timestep_probability: the fraction of training samples whose t is T, where sampling
            starts.
        eta: η of DDIM, 0 deterministic, 1 as DDPM.
    """

    def __init__(
        self, scheduler: Scheduler, weighting: str, last_timestep_probability: float, eta: float
    ) -> None:
        self.scheduler = scheduler
        self.weighting = weighting
        self.last_timestep_probability = last_timestep_probability
        self.eta = eta
        self.last_timestep = last_timestep(scheduler)
        alphas_cumprod = scheduler.alphas_cumprod.float()
        self.signals = alphas_cumprod.sqrt().tolist()
        self.noises = (1 - alphas_cumprod).sqrt().tolist()

    def is_one_pass(self, steps: int) -> bool:
        return steps == 1 and one_step_gives_x_0(self.scheduler)

    def pitfalls(self, steps: int) -> list[str]:
        return pitfalls(self.scheduler, steps)

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) of Eq. 2 in float32, as (B, 1, 1, 1)."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
        alphas_cumprod = alphas_cumprod[:, None, None, None]
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def _at(self, timesteps: Timesteps) -> tuple[Tensor | float, Tensor | float]:
        """The same; of one t numbers, which need not be copied to a GPU."""
        if isinstance(timesteps, int):
            return self.signals[timesteps], self.noises[timesteps]
        return self.signal_and_noise(timesteps)

    def to_prediction(self, x_0: Tensor, x_t: Tensor, timesteps: Timesteps) -> Tensor:
        """What the network should give where the clean map is x_0, in the prediction type."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return x_0
        signal, noise = self._at(timesteps)
        epsilon = (x_t - signal * x_0) / noise
        return epsilon if kind == "epsilon" else signal * epsilon - noise * x_0

    def to_x_0(self, prediction: Tensor, x_t: Tensor, timesteps: Timesteps) -> Tensor:
        """The inverse of `to_prediction`."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return prediction
        signal, noise = self._at(timesteps)
        if kind == "epsilon":
            return (x_t - noise * prediction) / signal
        return signal * x_t - noise * prediction

    def predict(self, network: BoundNetwork, x_t: Tensor, timesteps: Timesteps) -> Tensor:
        """U(x_t, f_1 … f_m, t) with the residual path, in the scheduler's prediction type."""
        output = network(x_t, timesteps)
        if network.residual is None:
            return output
        return output + self.to_prediction(network.residual, x_t, timesteps)

    def sample(
        self,
        network: BoundNetwork,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        """`steps` steps from t = T down, a batch in one pass; the estimate of x_0 at every step."""
        x_t = cast(Tensor, noise)
        scheduler = self.scheduler
        if self.is_one_pass(steps):
            last = self.last_timestep
            return [self.to_x_0(self.predict(network, x_t, last), x_t, last)]
        scheduler = copy.deepcopy(scheduler)  # its own state, so that samplings may interleave
        scheduler.set_timesteps(steps)  # its numbers stay on the CPU: reading them waits for no GPU
        generator = generator or torch.Generator().manual_seed(1)  # not the starting noise's seed
        accepted = inspect.signature(scheduler.step).parameters
        options = {"eta": self.eta, "generator": generator}
        options = {key: value for key, value in options.items() if key in accepted}
        x_t = x_t * scheduler.init_noise_sigma
        estimates = []
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, t)
            prediction = self.predict(network, scaled, int(t))
            estimates.append(self.to_x_0(prediction, scaled, int(t)))
            x_t = scheduler.step(prediction, t, x_t, **options).prev_sample
        return [*estimates[:-1], x_t]

    def loss(
        self, network: BoundNetwork, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Noise x_0 to a random t (Eq. 2) and predict it back (Eq. 6)."""
        batch, device = len(x_0), generator.device
        most = self.last_timestep + 1
        timesteps = torch.randint(most, (batch,), generator=generator, device=device)
        chance = torch.rand(batch, generator=generator, device=device)
        last = chance < self.last_timestep_probability
        timesteps = timesteps.masked_fill(last, self.last_timestep).to(x_0.device)
        signal, noise = self.signal_and_noise(timesteps)
        x_t = signal * x_0 + noise * standard_normal(x_0.shape, generator, x_0.device)
        prediction = self.predict(network, x_t, timesteps)
        error = (prediction - self.to_prediction(x_0, x_t, timesteps)).square()
        loss = (self.loss_weight(timesteps) * error).mean()
        return self.to_x_0(prediction, x_t, timesteps), loss

    def loss_weight(self, timesteps: Tensor) -> Tensor:
        """The weight of a squared prediction error that is `weighting` on x_0, (B, 1, 1, 1)."""
        signal, noise = self.signal_and_noise(timesteps)
        snr = (signal / noise).square()
        # a unit of squared prediction error is this much squared error of x_0
        in_x_0 = {
            "sample": torch.ones_like(snr),
            "epsilon": 1 / snr,
            "v_prediction": noise.square(),
        }
        weight = {"x_0": torch.ones_like(snr), "noise": snr, "min_snr": snr.clamp(max=5.0)}
        return weight[self.weighting] * in_x_0[self.scheduler.config.prediction_type]


METHODS: dict[str, type[Method]] = {"diffusion": Diffusion, "cgan": ConditionalGAN, "raw": Raw}
