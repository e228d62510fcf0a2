"""From the tokens that a transformer returns to the map that a head takes."""

import torch
from einops import rearrange
from torch import Tensor


def to_map(tokens: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Search tokens in their places, zero where a candidate was eliminated.

    Args:
        tokens: (B, N, C), of which the last L are those of the search region.
        places: (B, L), y·W + x of each of them.
        shape: of the map, of which the last are H and W.

    Returns:
        (B, C, H, W), in the dtype of the tokens.
    """
    search = tokens[:, -places.shape[1] :]
    height, width = shape[-2:]
    index = places.long()[..., None].expand_as(search)
    whole = search.new_zeros(search.shape[0], height * width, search.shape[-1])
    return rearrange(whole.scatter(1, index, search), "b (h w) c -> b c h w", h=height)
