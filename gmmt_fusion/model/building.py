"""The parts of a fusion, from its config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .config import FusionConfig
from .methods import ConditionalGAN, Diffusion, Method, Raw
from .networks import NETWORKS, Discriminator, UNet, UViT
from .schedulers import build_scheduler


def build_discriminator(config: FusionConfig) -> Discriminator | None:
    """D of a CGAN, which sees a fused map with its features; None for the other methods."""
    if config.method != "cgan":
        return None
    inputs = config.modalities * config.channels + config.fused_channels
    return Discriminator(inputs, config.channels, config.size)


def build_method(
    config: FusionConfig, discriminator: Discriminator | None, scheduler: Any = None
) -> tuple[Method, FusionConfig]:
    """The method, and the config with all settings of its scheduler.

    scheduler: one of diffusers' that was built already, of any of its classes.
    """
    if discriminator is not None:
        return ConditionalGAN(discriminator), config
    if config.method == "raw":
        return Raw(), config
    given = config.scheduler
    if scheduler is not None and not isinstance(scheduler, Mapping):
        given = scheduler
    built = build_scheduler(given, config.prediction_type)
    config = replace(
        config,
        scheduler=None if given is None else built,
        prediction_type=built.config.prediction_type,
    )
    method = Diffusion(built, config.weighting, config.last_timestep_probability, config.eta)
    return method, config


def build_network(config: FusionConfig, method: Method) -> UViT | UNet:
    """U, on as many maps as the method has inputs.

    Raises:
        ValueError: `network_config` does not fit the network.
    """
    inputs = config.modalities * config.channels + method.noise_maps * config.fused_channels
    build = NETWORKS[config.network]
    try:
        return build(inputs, config.fused_channels, config.size, **config.network_config)
    except TypeError as error:
        raise ValueError(
            f"network_config={dict(config.network_config)} does not fit "
            f"network={config.network!r}: {error}"
        ) from error


def build_residual(config: FusionConfig, network: UViT | UNet) -> nn.Conv2d | None:
    """The convolution beside the network, which begins as the mean of the modalities.

    For a fused map of m · C channels it begins as their concatenation, for one of others at zero.
    The network's last layer is set to zero: the fusion starts as its residual path.
    """
    if config.residual not in ("conv1x1", "conv3x3"):
        return None
    channels, modalities, fused = config.channels, config.modalities, config.fused_channels
    kernel = int(config.residual[4])
    residual = nn.Conv2d(modalities * channels, fused, kernel, padding=kernel // 2)
    for parameter in residual.parameters():
        nn.init.zeros_(parameter)
    start = residual.weight.data[..., kernel // 2, kernel // 2]
    if fused == channels:
        start.copy_(torch.eye(channels).repeat(1, modalities) / modalities)
    elif fused == modalities * channels:
        start.copy_(torch.eye(fused))
    for parameter in network.last_layer.parameters():
        nn.init.zeros_(parameter)
    return residual
