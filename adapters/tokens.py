"""From the tokens that a transformer returns to the map that a head takes."""

from collections.abc import Sequence

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
    return unflatten(whole.scatter(1, index, search), height)


def unflatten(tokens: Tensor, height: int) -> Tensor:
    """The map (B, C, H, W) of tokens (B, H·W, C), of which y·W + x is the one at (y, x)."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=height)


def flatten(maps: Tensor) -> Tensor:
    """The tokens (B, H·W, C) of a map (B, C, H, W)."""
    return rearrange(maps, "b c h w -> b (h w) c")


def as_slice(tokens: slice | Sequence[int | None]) -> tuple[int | None, int | None]:
    """(start, stop) of a part of the token axis.

    Raises:
        ValueError: something else, or a slice with steps.
    """
    if isinstance(tokens, slice):
        tokens = (tokens.start, tokens.stop, *([] if tokens.step is None else [tokens.step]))
    whole = [isinstance(n, int | None) and not isinstance(n, bool) for n in tokens]
    if len(whole) != 2 or not all(whole):
        raise ValueError(f"tokens={tokens!r}; expected (start, stop), or a slice without steps")
    start, stop = tokens
    return start, stop


def guess_search(count: int) -> tuple[int, int]:
    """Of so many tokens of a modality, the first of its search region, and the side of its map.

    For the layouts of the OSTrack family: templates of half the side, none or a few, come first.
    """
    for templates in range(9):
        side = round((count / (1 + templates / 4)) ** 0.5)
        if side % 2 == 0 and count == side**2 + templates * (side // 2) ** 2:
            return count - side**2, side
    side = int(count**0.5)
    return count - side**2, side
