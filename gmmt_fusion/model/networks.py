"""The networks U that generate a fused map, and the discriminator of the conditional GAN.

A network takes the maps of all inputs concatenated on channels, (B, C_in, H, W), and timesteps
(B,), and returns (B, C_out, H, W) for any H and W. It knows nothing of what the maps mean.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checks import check_whole_number


def default_width(channels: int) -> int:
    """Half the host's channels, in multiples of 64 so that heads and norm groups divide it; at
    least 64.
    """
    return max(64, round(channels / 128) * 64)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of timesteps (B,) as (B, width), in float32 (Vaswani et al. 2017; Ho et
    al. 2020).
    """
    frequencies = torch.arange(width // 2, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10000.0) * frequencies / (width // 2))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Maps (B, C, H, W) whose sides `multiple` divides: their edges go on below and right."""
    bottom, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def to_patches(x: Tensor, size: int) -> Tensor:
    """Maps (B, C, H, W) with p × p positions as the channels of one: (B, C p², H/p, W/p)."""
    if size == 1:
        return x
    return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=size, q=size)


class PatchEmbedding(nn.Linear):
    """A linear layer on the channels of maps, (B, C, H, W) to (B, out, H, W), not on the last axis.

    One matrix product for the whole batch, with every map's rows as they lie in memory: to copy
    them into tokens first takes longer than the product. Where the channels of a position lie
    together, they are a token.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if maps.stride(1) == 1:
            return super().forward(maps.movedim(1, -1)).movedim(-1, 1)
        columns = rearrange(maps, "b c h w -> c (b h w)")
        if self.bias is None:
            result = self.weight @ columns
        else:
            result = torch.addmm(self.bias[:, None], self.weight, columns)
        height, width = maps.shape[-2:]
        return rearrange(result, "c (b h w) -> b c h w", h=height, w=width)


class Block(nn.Module):
    """Pre-norm transformer block on tokens (B, N, width); with `skip`, first merges a long skip
    connection.
    """

    def __init__(self, width: int, heads: int, skip: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        q, k, v = rearrange(
            self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        scale = (self.qkv.in_features // self.heads) ** -0.5  # of heads that are not padded
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
        x = x + self.proj(rearrange(attended, "b h n d -> b n (h d)"))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result

    def pad_heads(self, multiple: int) -> None:
        """Make the channels of a head a multiple of this, by channels that stay zero.

        Where they are none of 8, a GPU's attention pads and cuts in every call. For a copy that
        neither trains nor loads: the weights are frozen and of other shapes.
        """
        qkv, proj = self.qkv.weight.detach(), self.proj.weight.detach()
        channels = proj.shape[1] // self.heads
        padding = -channels % multiple
        qkv = rearrange(qkv, "(three h d) w -> three h d w", three=3, h=self.heads)
        proj = rearrange(proj, "w (h d) -> w h d", h=self.heads)
        qkv, proj = F.pad(qkv, (0, 0, 0, padding)).flatten(0, 2), F.pad(proj, (0, padding))
        self.qkv.weight = nn.Parameter(qkv.contiguous(), False)
        self.proj.weight = nn.Parameter(proj.flatten(1), False)


class UViT(nn.Module):
    """U-shaped vision transformer (Bao et al., "All are Worth Words", CVPR 2023).

    The input maps enter as one token for p × p positions, the time as one token more; `depth`
    blocks down, one in the middle, `depth` up, with long skips by concatenation and a linear layer.
    Sides that p does not divide are padded with their edge, and cut afterwards.

    Args:
        in_channels, out_channels: of the maps.
        size: (H, W) of the maps that the positions are learned for; other sizes interpolate them.
        width: of a token; `depth`: blocks down, and again up; `heads`: of the attention, default
            `width // 64`.
        patch_size: p; 2 leaves a quarter of the tokens (31×31 positions are 256).
        final_conv: a 3×3 convolution on the output maps, as Bao et al. use.
        checkpointing: a training step keeps what enters a block, and computes the rest again.
    """

    first_layer = "embed"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        width: int | None = None,
        depth: int = 1,
        heads: int | None = None,
        patch_size: int = 1,
        final_conv: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width = default_width(out_channels) if width is None else width
        heads = max(1, self.width // 64) if heads is None else heads
        numbers = {"width": self.width, "depth": depth, "heads": heads, "patch_size": patch_size}
        for name, number in numbers.items():
            check_whole_number(name, number)
        if self.width % (2 * heads):
            raise ValueError(
                f"UViT has width={self.width}, heads={heads}; expected an even width for every head"
            )
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.frozen_time: Tensor | None = None
        self.size = -(-size[0] // patch_size), -(-size[1] // patch_size)  # in patches
        self.embed = PatchEmbedding(in_channels * patch_size**2, self.width)
        self.time_position = nn.Parameter(torch.zeros(1, 1, self.width))
        self.position = nn.Parameter(torch.zeros(1, self.width, *self.size))
        self.down = nn.ModuleList(Block(self.width, heads) for _ in range(depth))
        self.middle = Block(self.width, heads)
        self.up = nn.ModuleList(Block(self.width, heads, skip=True) for _ in range(depth))
        self.norm = nn.LayerNorm(self.width)
        self.out = nn.Linear(self.width, out_channels * patch_size**2)
        self.final_conv = (
            nn.Conv2d(out_channels, out_channels, 3, padding=1) if final_conv else None
        )
        for parameter in (self.time_position, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def last_layer(self) -> nn.Module:
        return self.final_conv or self.out

    def first(self, x: Tensor) -> Tensor:
        """The first layer, affine in x (B, C_in, H, W): maps (B, width, H/p, W/p)."""
        x = pad_to_multiple(x, self.patch_size)
        maps: Tensor = self.embed(to_patches(x, self.patch_size))
        return maps

    def time_token(self, timesteps: Tensor) -> Tensor:
        """The token (B, 1, width) that tells the time."""
        embedding = timestep_embedding(timesteps, self.width)
        return rearrange(embedding, "b c -> b 1 c") + self.time_position

    def freeze_time(self, timestep: int) -> None:
        """Keep the token of one timestep, whatever the forward is called with."""
        self.frozen_time = self.time_token(
            torch.tensor([timestep], device=self.time_position.device)
        )

    def run(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        """A block on its tokens (B, N, width)."""
        result: Tensor
        if self.checkpointing and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            result = checkpoint(block, *tokens, use_reentrant=False)
        else:
            result = block(*tokens)
        return result

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        p = self.patch_size
        size = -(-height // p), -(-width // p)
        position: Tensor = self.position
        if size != self.size:
            position = F.interpolate(position.float(), size, mode="bicubic").to(position.dtype)
        tokens = rearrange(self.first(x) + position, "b c h w -> b (h w) c")
        time = self.time_token(timesteps) if self.frozen_time is None else self.frozen_time
        tokens = torch.cat([time.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        skips = []
        for block in self.down:
            tokens = self.run(block, tokens)
            skips.append(tokens)
        tokens = self.run(self.middle, tokens)
        for block in self.up:
            tokens = self.run(block, tokens, skips.pop())
        maps: Tensor = self.out(self.norm(tokens[:, 1:]))
        maps = rearrange(maps, "b (h w) c -> b c h w", h=size[0])
        if p > 1:
            maps = F.pixel_shuffle(maps, p)
        maps = maps[..., :height, :width]
        if self.final_conv is not None:
            maps = self.final_conv(maps)
        return maps


class UNet(nn.Module):
    """The DDPM UNet (Ho et al. 2020) as diffusers' `UNet2DModel`, attention in the middle only, for
    any map size.

    Args:
        in_channels, out_channels: of the maps.
        size: accepted for symmetry with UViT; a convolutional network needs none.
        widths: channels of each level, default `w · (1, 1.5, 2)` as in the paper with w a sixth of
            the host's channels; `depth`: residual blocks a level (the paper's n is `depth ·
            len(widths)`).
        patch_size: p; p × p positions become one of more channels, on a smaller map.
        checkpointing: a training step keeps what enters a residual block, and computes the rest
            again.
    """

    first_layer = "unet.conv_in"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        widths: tuple[int, ...] | None = None,
        depth: int = 1,
        patch_size: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # seconds to import: only when a UNet is built

        if widths is None:
            width = max(32, round(out_channels / 192) * 32)
            widths = (width, 3 * width // 2, 2 * width)
        if not isinstance(widths, list | tuple) or not widths:
            raise ValueError(f"UNet has widths={widths!r}; expected one width a level, in a tuple")
        numbers = [("depth", depth), ("patch_size", patch_size)]
        for name, number in [*(("widths", width) for width in widths), *numbers]:
            check_whole_number(name, number)
        self.patch_size = patch_size
        self.multiple = patch_size * 2 ** (len(widths) - 1)
        build: Any = UNet2DModel  # untyped, as all of diffusers
        self.unet = build(
            in_channels=in_channels * patch_size**2,
            out_channels=out_channels * patch_size**2,
            layers_per_block=depth,
            block_out_channels=tuple(widths),
            norm_num_groups=math.gcd(32, *widths),
            attention_head_dim=None,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
        )
        if checkpointing:
            if not self.unet._supports_gradient_checkpointing:
                raise ValueError(
                    "checkpointing=True: this diffusers recomputes nothing of a UNet2DModel; "
                    "upgrade it (pip install -U diffusers)"
                )
            self.unet.enable_gradient_checkpointing()

    @property
    def last_layer(self) -> nn.Module:
        last: nn.Module = self.unet.conv_out
        return last

    def pad(self, x: Tensor) -> Tensor:
        """Every level halves the map: UNet2DModel fails on sides that do not divide.

        Its GroupNorm also refuses one map that has shrunk to a single position.
        """
        x = pad_to_multiple(x, self.multiple)
        if x.shape[-2:] == (self.multiple, self.multiple):
            x = F.pad(x, (0, self.multiple, 0, 0), mode="replicate")
        return x

    def first(self, x: Tensor) -> Tensor:
        """The first layer, affine in x (B, C_in, H, W)."""
        maps: Tensor = self.unet.conv_in(to_patches(self.pad(x), self.patch_size))
        return maps

    def freeze_time(self, timestep: int) -> None:
        """Put the time embedding of one timestep in place of its layers, a tenth of the weights."""
        like = next(self.parameters())
        embedding = self.unet.time_embedding(
            self.unet.time_proj(torch.tensor([timestep], device=like.device)).to(like)
        )
        self.unet.time_embedding = Constant(embedding)
        for module in self.unet.modules():
            if getattr(module, "time_emb_proj", None) is not None:
                module.time_emb_proj = Constant(
                    module.time_emb_proj(module.nonlinearity(embedding))
                )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        patches = to_patches(self.pad(x), self.patch_size)
        maps: Tensor = self.unet(patches, timesteps.expand(x.shape[0])).sample
        if self.patch_size > 1:
            maps = F.pixel_shuffle(maps, self.patch_size)
        return maps[..., :height, :width]


class Constant(nn.Module):
    """Gives the same tensor whatever it is called with."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        return self.value


class Discriminator(nn.Module):
    """D of the conditional GAN (the paper's supplement A): a ladder of strided convolutions down to
    one score.

    (B, C_in, H, W) → (B, 1, 1, 1) in [0, 1]; 3×3 convolutions of stride 2 without padding,
    BatchNorm and ReLU between them, a sigmoid at the end. The paper's ladder for 31×31 maps is 768
    → 256 → 64 → 16 → 1 channels. Even sides take a kernel of 4, so that every position counts.
    """

    def __init__(self, in_channels: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = tuple(size)
        layers: list[nn.Module] = []
        height, width = self.size
        while True:
            # 4 on an even side: 3 would leave its last row unseen
            kernel = (min(3 + (height % 2 == 0), height), min(3 + (width % 2 == 0), width))
            height, width = (height - kernel[0]) // 2 + 1, (width - kernel[1]) // 2 + 1
            if (height, width) == (1, 1):
                break
            layers += [
                nn.Conv2d(in_channels, channels, kernel, stride=2),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            in_channels, channels = channels, max(8, channels // 4)
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(in_channels, 1, kernel, stride=2), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"the discriminator was built for maps of size {self.size} and met "
                f"{tuple(x.shape[-2:])}; "
                "build GenerativeFusion with size= of the maps it is trained on"
            )
        score: Tensor = self.layers(x)
        return score


NETWORKS: dict[str, type[UViT] | type[UNet]] = {"uvit": UViT, "unet": UNet}
