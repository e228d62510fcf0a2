"""Any tracker whose fusion is one submodule."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmt_fusion.attaching.adapter import Adapter, split_maps
from gmmt_fusion.attaching.patching import Method
from gmmt_fusion.attaching.plugin import ForwardPass
from gmmt_fusion.checks import check_size

from .tokens import as_slice, flatten, guess_search, unflatten


class ModuleAdapter(Adapter):
    """For a tracker whose fusion is one submodule and whose head is another.

    The fusion is called with m maps (B, C, H, W), with a list of them, or with their concatenation
    (B, m·C, H, W), and returns the fused map (B, C, H, W). With `tokens` it is called with m
    tensors (B, N, C), with a list of them, or with their concatenation on channels (B, N, m·C) or
    on tokens (B, m·N, C), and returns fused tokens (B, N, C), of which those of the search region
    are generated and the rest, a template's, stay the host's; or these alone, (B, H·W, C).

    Arguments of other shapes may come beside them. The head may have any signature.

    Args:
        fusion, head: dotted names of the submodules.
        size: (H, W), or side, of the search region's maps. Where the fusion is called several times
            a frame, for the template too, only maps of this size are generated and the rest is
            fused by the host. Default: all, with a warning where there are several sizes.
        tokens: (start, stop), or a slice, of the search region's H·W tokens among the N of each
            modality, y·W + x of them at (y, x); needs `size`. The host's own fusion is computed too
            where there are others.
        batch_first: False where tokens are (N, B, C).
        output: index or key of the fused map where the fusion returns a tuple, list or dict; it is
            computed, for the rest.

    Raises:
        ValueError: tokens without size, or a slice with steps.
    """

    def __init__(
        self,
        fusion: str,
        head: str,
        size: int | Sequence[int] | None = None,
        tokens: slice | Sequence[int | None] | None = None,
        *,
        batch_first: bool = True,
        output: int | str | None = None,
    ) -> None:
        self.fusion, self.head = fusion, head
        self.size = None if size is None else check_size(size)
        self.tokens = None if tokens is None else as_slice(tokens)
        if self.tokens is not None and self.size is None:
            raise ValueError(
                f"tokens={tokens!r} without a size; expected size=(H, W) of the search region's "
                "map, which has H·W tokens"
            )
        self.batch_first, self.output = batch_first, output
        self._sizes: set[tuple[int, ...]] = set()  # of the maps so far

    def points(self, network: nn.Module) -> Mapping[str, Method]:
        return {self.fusion: self.fuse}

    def fuse(
        self, current: ForwardPass, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:  # a map, tokens, or what holds them
        def own() -> Any:  # as forward's
            return forward(*args, **kwargs)

        given = (*args, *kwargs.values())
        if self.tokens is not None:
            return self._fuse_tokens(current, own, given)
        maps = split_maps(given, current.modalities)
        if maps is None:
            raise self._misfit(current, given)
        if len(maps) < current.modalities:
            maps = list(maps[0].chunk(current.modalities, dim=1))
        if self.size is None:
            self._note_size(tuple(maps[0].shape[-2:]))
        elif tuple(maps[0].shape[-2:]) != self.size:
            return own()
        if self.output is None:
            return current.fuse(maps, lambda: self._fused_of(own()))
        out = own()
        return self._with_fused(out, current.fuse(maps, self._fused_of(out)))

    def _note_size(self, size: tuple[int, ...]) -> None:
        """Warn at the second one: a template's map should stay the host's."""
        if torch.compiler.is_compiling() or size in self._sizes:
            return
        self._sizes.add(size)
        if len(self._sizes) == 2:
            sizes = " and ".join("×".join(map(str, known)) for known in sorted(self._sizes))
            warnings.warn(
                f"the fusion {self.fusion!r} gets maps of {sizes}, and all are generated; where "
                "one is a template's, give ModuleAdapter(…, size=…) the search region's",
                stacklevel=2,
            )

    def _fuse_tokens(
        self, current: ForwardPass, own: Callable[[], Any], given: tuple[Any, ...]
    ) -> Any:
        assert self.size is not None and self.tokens is not None  # the constructor's
        streams = split_maps(given, current.modalities, ndim=3)
        if streams is None:
            raise self._misfit(current, given)
        streams = [self._turned(tokens) for tokens in streams]
        if len(streams) < current.modalities:
            width = streams[0].shape[-1]
            if width not in (current.channels, current.modalities * current.channels):
                raise self._misfit(current, given)
            axis = 1 if width == current.channels else 2
            streams = list(streams[0].chunk(current.modalities, dim=axis))
        (height, width), search = self.size, slice(*self.tokens)
        picked = [tokens[:, search] for tokens in streams]
        if picked[0].shape[1] != height * width:
            return own()
        maps = [unflatten(tokens, height) for tokens in picked]
        if self.output is None and picked[0].shape == streams[0].shape:
            fused = current.fuse(maps, lambda: self._map_of(own(), slice(None)))
            return self._turned(flatten(fused))
        out = own()
        host = self._turned(self._fused_of(out))
        # a fusion may have dropped the others
        part = slice(None) if host.shape[1] == height * width else search
        fused = current.fuse(maps, self._map_of(out, part))
        generated = flatten(fused).to(host.dtype)
        if part == search:
            start = search.start or 0
            start += host.shape[1] if start < 0 else 0
            after = host[:, start + height * width :]
            generated = torch.cat([host[:, :start], generated, after], dim=1)
        return self._with_fused(out, self._turned(generated))

    def _map_of(self, out: Any, part: slice) -> Tensor:
        """The search region's map among the tokens that the host's fusion returned."""
        assert self.size is not None
        (height, width), fused = self.size, self._fused_of(out)
        if fused.ndim != 3 or self._turned(fused)[:, part].shape[1] != height * width:
            raise ValueError(
                f"the fusion {self.fusion!r} returned {_named(fused)}; expected tokens (B, N, C), "
                f"of which tokens={self.tokens} are those of a map {height}×{width}"
            )
        return unflatten(self._turned(fused)[:, part], height)

    def _turned(self, tokens: Tensor) -> Tensor:
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _fused_of(self, out: Any) -> Tensor:
        fused = out if self.output is None else out[self.output]
        if not isinstance(fused, Tensor):
            raise ValueError(
                f"the fusion {self.fusion!r} returned {_named(out)}; give the adapter output=, the "
                "index or key of the fused one"
            )
        return fused

    def _with_fused(self, out: Any, fused: Tensor) -> Any:
        """What the host's fusion returned, with another fused map in it."""
        if self.output is None:
            return fused
        if isinstance(out, dict):
            changed = copy.copy(out)  # of the host's own class
            changed[self.output] = fused
            return changed
        parts = list(out)
        parts[int(self.output)] = fused
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)

    def _misfit(self, current: ForwardPass, given: tuple[Any, ...]) -> ValueError:
        tokens = split_maps(given, current.modalities, ndim=3)
        hint = ""
        if self.tokens is None and tokens is not None:
            counts = [x.shape[1 if self.batch_first else 0] for x in tokens]
            shared = len(tokens) < current.modalities and tokens[0].shape[-1] == current.channels
            count = counts[0] // current.modalities if shared else counts[0]
            start, side = guess_search(count)
            hint = (
                f". For these tokens try ModuleAdapter(…, tokens=({start}, {count}), size={side})"
            )
        kind = "maps (B, C, H, W)" if self.tokens is None else "tokens (B, N, C)"
        return ValueError(
            f"the fusion {self.fusion!r} was called with {len(given)} arguments "
            f"({', '.join(map(_named, given))}); expected {current.modalities} {kind} with "
            f"C={current.channels}, a list of them, or their concatenation{hint}"
        )


def _named(value: Any) -> str:
    """An argument of any host, for a message."""
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {', '.join(map(_named, value))}"
    shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"
