"""How a network becomes a fusion: diffusion, conditional GAN, or plain regression (RAW).

All three work on normalised maps, and know the network only as `network(maps, timesteps)`, with
maps a list of (B, C, H, W) concatenated on channels, and `residual`, what the residual path gives
for the same features (a map or 0).
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = Callable[[list[Tensor], Tensor], Tensor]
WEIGHTINGS = ("x_0", "noise", "min_snr")
PREDICTION_TYPES = ("sample", "epsilon", "v_prediction")


def standard_normal(
    shape: Sequence[int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Float32 noise drawn where the generator lives, so that a CPU generator gives the same noise
    on every device.
    """
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)


class Raw:
    """The network alone, without noise: fused* = U(f_1 … f_m); Loss_gen = L2(fused, fused*) (Eq. 6,
    Loss_RAW).
    """

    noise_maps = 0
    first_timestep = 0

    def is_one_pass(self, steps: int) -> bool:
        """Whether a sample is one pass of the network at `first_timestep`, from the noise as it is
        drawn.
        """
        return True

    def pitfalls(self, steps: int) -> list[str]:
        """What in the settings spoils feature maps that are sampled in so many steps."""
        return []

    def sample(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        """Estimates of the normalised fused map, one a step; the last is the sample. Here there is
        only one.
        """
        maps = features if noise is None else [noise, *features]
        return [
            residual
            + network(maps, torch.zeros(len(features[0]), device=features[0].device)).float()
        ]

    def loss(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        x_0: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The network's prediction of x_0, with gradient, and Loss_gen."""
        prediction = self.sample(network, features, residual, None, 1, generator)[-1]
        return prediction, F.mse_loss(prediction, x_0)


class ConditionalGAN(Raw):
    """fused* = G(z, f_1 … f_m) with G of the architecture of U; least-squares GAN losses, label 1
    for the host's fused map and 0 for fused* (Mirza & Osindero 2014; the paper, section
    "Generative-Based Fusion Mechanism")."""

    noise_maps = 1

    def __init__(self, discriminator: nn.Module) -> None:
        self.discriminator = discriminator

    def pair(self, fused: Tensor, features: list[Tensor]) -> Tensor:
        """What D sees: a fused map, real or fake, with its features, in their dtype."""
        return torch.cat([fused.to(features[0].dtype), *features], dim=1)

    def loss(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        x_0: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        noise = standard_normal(x_0.shape, generator, x_0.device)
        fake = self.sample(network, features, residual, noise, 1, generator)[-1]
        # D is frozen while G learns: its parameters are detached, its running statistics updated on
        # a copy
        frozen = {
            name: tensor.detach().clone()
            for name, tensor in self.discriminator.state_dict().items()
        }
        score = torch.func.functional_call(
            self.discriminator, frozen, self.pair(fake, features)
        ).float()
        return fake, F.mse_loss(score, torch.ones_like(score))

    def discriminator_loss(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        x_0: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Loss_D = Loss_D0 + Loss_D1; G is frozen while D learns."""
        with torch.no_grad():
            noise = standard_normal(x_0.shape, generator, x_0.device)
            fake = self.sample(network, features, residual, noise, 1, generator)[-1]
        real = self.discriminator(self.pair(x_0, features)).float()
        fake = self.discriminator(self.pair(fake, features)).float()
        return F.mse_loss(fake, torch.zeros_like(fake)) + F.mse_loss(real, torch.ones_like(real))


class Diffusion:
    """A conditional diffusion model over a diffusers scheduler (Ho et al. 2020; Song et al. 2021,
    DDIM).

    The residual path is part of the prediction whatever its type: where the network gives zero, x_0
    is the residual.

    Args:
        scheduler: a diffusers scheduler with `alphas_cumprod`.
        weighting: of the squared error, as a weight on x_0: "x_0" 1, "noise" the signal-to-noise
            ratio ᾱ / (1 − ᾱ) (the paper's Eq. 6 and its released code), "min_snr" the ratio cut at
            5 (Hang et al. 2023).
        last_step_probability: the share of training samples whose t is T, the step where sampling
            starts.
        eta: η of DDIM, 0 deterministic, 1 as DDPM.
    """

    noise_maps = 1

    def __init__(
        self, scheduler: Any, weighting: str, last_step_probability: float, eta: float
    ) -> None:
        self.scheduler = scheduler
        self.weighting = weighting
        self.last_step_probability = last_step_probability
        self.eta = eta
        self.first_timestep = int(scheduler.config.num_train_timesteps) - 1

    def is_one_pass(self, steps: int) -> bool:
        return steps == 1 and _one_step_is_x_0(self.scheduler)

    def pitfalls(self, steps: int) -> list[str]:
        config, found = self.scheduler.config, []
        if config.prediction_type == "epsilon" and steps == 1:
            found.append(
                "prediction_type='epsilon' with steps=1: at t = T an error of the predicted noise "
                "is "
                "multiplied by 1/√ᾱ_T; use 'sample' or 'v_prediction', or more steps"
            )
        if config.get("clip_sample") or config.get("thresholding"):
            found.append(
                "the scheduler clips its estimates, as those of pictures; feature maps are larger "
                "(clip_sample=False)"
            )
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps)
        if (first := int(scheduler.timesteps[0])) < 0.9 * self.first_timestep:
            found.append(
                f"the scheduler starts from pure noise at t = {first} of "
                f"{config.num_train_timesteps} with "
                f"steps={steps} (timestep_spacing='trailing')"
            )
        return found

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) of Eq. 2 in float32, as (B, 1, 1, 1)."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()[
            :, None, None, None
        ]
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def to_prediction(self, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should give where the clean map is x_0, in the scheduler's prediction
        type.
        """
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return x_0
        signal, noise = self.signal_and_noise(timesteps)
        epsilon = (x_t - signal * x_0) / noise
        return epsilon if kind == "epsilon" else signal * epsilon - noise * x_0

    def to_x_0(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The inverse of `to_prediction`."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return prediction
        signal, noise = self.signal_and_noise(timesteps)
        if kind == "epsilon":
            return (x_t - noise * prediction) / signal
        return signal * x_t - noise * prediction

    def predict(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        x_t: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """U(x_t, f_1 … f_m, t), with the residual path, in the scheduler's prediction type and
        float32.
        """
        output = network([x_t, *features], timesteps).float()
        if isinstance(residual, int):
            return output
        return output + self.to_prediction(residual, x_t, timesteps)

    def sample(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        noise: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        """Sample with `steps` steps from t = T down, a batch in one pass; the estimates of x_0 at
        every step.
        """
        x_t = cast(Tensor, noise)
        scheduler, batch = self.scheduler, len(x_t)
        if self.is_one_pass(steps):
            last = x_t.new_full((batch,), self.first_timestep, dtype=torch.long)
            prediction = self.predict(network, features, residual, x_t, last)
            return [self.to_x_0(prediction, x_t, last)]
        scheduler = copy.deepcopy(scheduler)  # its own state, so that samplings may interleave
        scheduler.set_timesteps(steps, device=x_t.device)
        generator = generator or torch.Generator().manual_seed(
            1
        )  # another seed than the starting noise's
        accepted = inspect.signature(scheduler.step).parameters
        options = {
            key: value
            for key, value in (("eta", self.eta), ("generator", generator))
            if key in accepted
        }
        x_t = x_t * scheduler.init_noise_sigma
        estimates = []
        for t in scheduler.timesteps:
            scaled, timesteps = scheduler.scale_model_input(x_t, t), t.expand(batch).long()
            prediction = self.predict(network, features, residual, scaled, timesteps)
            estimates.append(self.to_x_0(prediction, scaled, timesteps))
            x_t = scheduler.step(prediction, t, x_t, **options).prev_sample
        return [*estimates[:-1], x_t]

    def loss(
        self,
        network: Network,
        features: list[Tensor],
        residual: Tensor | int,
        x_0: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Noise x_0 to a random t (Eq. 2), predict it back: the predicted x_0, with gradient, and
        Loss_gen (Eq. 6).
        """
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(x_0),), generator=generator, device=generator.device)
        last = (
            torch.rand(len(x_0), generator=generator, device=generator.device)
            < self.last_step_probability
        )
        timesteps = timesteps.masked_fill(last, steps - 1).to(x_0.device)
        signal, noise = self.signal_and_noise(timesteps)
        x_t = signal * x_0 + noise * standard_normal(x_0.shape, generator, x_0.device)
        prediction = self.predict(network, features, residual, x_t, timesteps)
        error = (prediction - self.to_prediction(x_0, x_t, timesteps)).square()
        loss = (self.loss_weight(timesteps) * error).mean()
        return self.to_x_0(prediction, x_t, timesteps), loss

    def loss_weight(self, timesteps: Tensor) -> Tensor:
        """The weight of a squared error in prediction space that is `weighting` in x_0 space, (B,
        1, 1, 1).
        """
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


def _one_step_is_x_0(scheduler: Any) -> bool:
    """Whether one step returns its estimate of x_0 as it is, whatever η is: then the scheduler need
    not be run.
    """
    config = scheduler.config
    return (
        type(scheduler).__name__ == "DDIMScheduler"
        and config.set_alpha_to_one
        and config.timestep_spacing == "trailing"
        and not config.clip_sample
        and not config.thresholding
    )


def build_scheduler(scheduler: Any, prediction_type: str) -> Any:
    """A diffusers scheduler: the given one, one from its config (a mapping), or the default
    DDIMScheduler.

    Without a "_class_name", what a mapping does not say is as in the default. That is DDIM on the
    cosine schedule with the settings that make one step mean one step from t = T: "trailing"
    spacing, no clipping (features are not images), and ᾱ = 1 at the end.

    Raises:
        ValueError: the scheduler's class is unknown, or it has no `alphas_cumprod`.
    """
    import diffusers  # seconds to import: only when a scheduler is built

    if scheduler is None or isinstance(scheduler, Mapping):
        config = dict(scheduler or {})
        if "_class_name" not in config:
            config = {
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": 1000,
                "beta_schedule": "squaredcos_cap_v2",
                "clip_sample": False,
                "timestep_spacing": "trailing",
                "set_alpha_to_one": True,
                **config,
            }
        name = config["_class_name"]
        if not isinstance(getattr(diffusers, name, None), type):
            raise ValueError(
                f"scheduler has _class_name={name!r}; expected the name of a diffusers scheduler"
            )
        scheduler = getattr(diffusers, name).from_config(
            {"prediction_type": prediction_type, **config}
        )
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}; expected a diffusers one with "
            "alphas_cumprod"
        )
    return scheduler
