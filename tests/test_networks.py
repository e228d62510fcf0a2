"""Options of the networks: patches, and activation checkpointing."""

from typing import Any

import diffusers
import pytest
import torch
from tiny_fusions import build, maps
from torch import Tensor, nn

from gmmt_fusion import GenerativeFusion
from gmmt_fusion.model.fast_path import optimize
from gmmt_fusion.model.networks import Block

SMALL: dict[str, dict[str, Any]] = {
    "uvit": {"width": 16, "heads": 2, "final_conv": True},
    "unet": {"widths": (8, 16)},
}
each_network = pytest.mark.parametrize("network", SMALL)


def make(network: str, size: Any = 8, **options: Any) -> GenerativeFusion:
    return build(size=size, network=network, network_config={**SMALL[network], **options})


@each_network
@pytest.mark.parametrize("patch_size", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
def test_patches_of_any_map(network: str, patch_size: int, size: tuple[int, int]) -> None:
    fusion = make(network, patch_size=patch_size)
    features = maps(shape=(2, 8, *size))
    plain = fusion(*features)
    assert plain.shape == features[0].shape and plain.isfinite().all()
    optimize(fusion)
    torch.testing.assert_close(fusion(*features), plain, rtol=1e-4, atol=1e-5)
    output = fusion.train().loss(features, maps(3, (2, 8, *size))[2])
    (output.loss + output.fused.square().mean()).backward()
    assert all(p.grad is not None for p in fusion.network.parameters())


@pytest.mark.parametrize("heads, padded", [(4, 64), (3, 48), (2, 48), (6, 48)])
def test_padded_heads_attend_as_before(heads: int, padded: int) -> None:
    block, tokens = Block(48, heads).double(), torch.randn(2, 7, 48).double()
    expected = block(tokens)
    block.pad_heads(8)
    assert block.proj.weight.shape == (48, padded)
    assert block.qkv.weight.shape == (3 * padded, 48)
    torch.testing.assert_close(block(tokens), expected)


@pytest.mark.parametrize("size, tokens", [(31, 256), ((31, 16), 128), (24, 144), (16, 64)])
def test_a_patch_is_one_token(size: Any, tokens: int) -> None:
    fusion, seen = make("uvit", size, patch_size=2), []
    fusion.network.down[0].register_forward_hook(lambda block, args, out: seen.append(out.shape[1]))
    height, width = size if isinstance(size, tuple) else (size, size)
    fusion(*maps(shape=(1, 8, height, width)))
    assert seen == [tokens + 1]  # and the time's


@pytest.mark.parametrize("patch_size", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_token_is_a_linear_layer_of_its_patch(patch_size: int, layout: Any) -> None:
    """In the order in which weights were saved: channels, then rows, then columns."""
    network, p = make("uvit", 6, patch_size=patch_size).network.double(), patch_size
    x = torch.randn(2, 24, 6, 12, dtype=torch.float64).contiguous(memory_format=layout)
    tokens, weight, bias = network.first(x), network.embed.weight, network.embed.bias
    for row in range(6 // p):
        for column in range(12 // p):
            patch = x[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            naive = patch.reshape(2, -1) @ weight.T + bias
            torch.testing.assert_close(tokens[:, :, row, column], naive)


def test_many_inputs_at_once() -> None:
    """`torch.func.vmap`, of maps of either layout; PyTorch's group norm has none, so no UNet."""
    u, times = make("uvit").network.eval(), torch.zeros(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        many = torch.randn(6, 24, 8, 8).contiguous(memory_format=layout).unflatten(0, (3, 2))
        expected = torch.stack([u(x, times) for x in many])
        torch.testing.assert_close(torch.func.vmap(lambda x: u(x, times))(many), expected)


def test_patches_keep_what_lies_in_them_apart() -> None:
    """A last layer that tells the positions of a patch apart, and a first one that does."""
    fusion = make("uvit", patch_size=2, final_conv=False)
    one = fusion(*maps())
    assert (one[..., ::2, :] - one[..., 1::2, :]).abs().max() > 1e-3
    changed = maps()
    changed[0][0, :, 3, 5] += 10
    difference = (fusion(*changed) - one)[0].abs().sum(0)
    assert difference[2:4, 4:6].min() > 0


def test_presets_have_patches_where_maps_are_large() -> None:
    for size, patch_size in ((16, 1), ((12, 16), 1), (24, 2), (31, 2), ((16, 18), 2)):
        config = GenerativeFusion.preset("small", 64, size).config
        assert config.network_config.get("patch_size", 1) == patch_size
    chosen = GenerativeFusion.preset("small", 64, 24, network_config={"patch_size": 1})
    assert chosen.config.network_config == {"patch_size": 1}


def test_a_config_without_patches_has_none() -> None:
    """As those that were saved before there were any."""
    fusion = GenerativeFusion(64, size=24)
    assert fusion.network.embed.weight.shape[1] == 3 * 64


@each_network
@pytest.mark.parametrize("patch_size", [0, 1.5, "2"])
def test_bad_patches_are_named(network: str, patch_size: Any) -> None:
    with pytest.raises(ValueError, match="patch_size="):
        make(network, patch_size=patch_size)


class Kept:
    """Counts the numbers that autograd keeps for a backward."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def __enter__(self) -> "Kept":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    def pack(self, x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x


def train(network: str, checkpointing: bool) -> tuple[Tensor, list[Tensor], int]:
    fusion = make(network, checkpointing=checkpointing).train()
    *features, fused = maps(3)
    with Kept() as kept:
        output = fusion.loss(features, fused)
    (output.loss + output.fused.square().mean()).backward()
    gradients = [p.grad for p in fusion.network.parameters() if p.grad is not None]
    return output.loss.detach(), gradients, sum(kept.storages.values())


@each_network
def test_checkpointing(network: str) -> None:
    if network == "unet" and not diffusers.UNet2DModel._supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="upgrade it"):
            make(network, checkpointing=True)
        pytest.skip("this diffusers recomputes nothing of a UNet2DModel")
    loss, gradients, kept = train(network, False)
    loss_again, gradients_again, kept_again = train(network, True)
    assert torch.equal(loss, loss_again) and len(gradients) == len(gradients_again)
    for one, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(one, other)
    assert kept_again < 0.6 * kept, (kept_again, kept)
