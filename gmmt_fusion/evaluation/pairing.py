"""Which frames of two streams show the same moment: by the number in a name, or by time.

Nothing is paired by its place in a folder alone: where a modality lacks an image in the middle, all
later pairs would be of different moments. By the numbers, that one is known to be missing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Key = tuple[int, ...]
Order = list[int]  # indices of a stream's frames, in time
Gappy = list[int | None]  # the same, None where the stream has no frame


def pair_names(visible: Sequence[Path], auxiliary: Sequence[Path]) -> tuple[Gappy, Gappy, int]:
    """Pair the images of two folders by a number in their names.

    It is all numbers that vary (hours, minutes and seconds, say) or the last one that tells the
    images of a folder apart and agrees between the folders: they have the same ones, or all of one
    are larger by one offset, as where one counts from 0 and the other from 1. One folder may end
    before the other. Where it does, an offset is believed only if no number is in both, for the
    lack of the first image would look the same. Images may be missing in between, where the first
    ones have the same number and both count in the same steps.

    Returns:
        The order of each folder's images, the first ones being a pair, and so on; and the offset.

    Raises:
        ValueError: an image has no partner, or two have the same number; both are named.
    """
    streams = (visible, auxiliary)
    if not all(re.search(r"\d", path.stem) for stream in streams for path in stream):
        return _pair_stems(visible, auxiliary)
    columns, whole = zip(*map(_list_keys, streams), strict=True)
    candidates = [whole, *zip(*columns)]  # noqa: B905 the rest of the longer one has no partner
    twins = [
        next(filter(None, map(_find_twins, keys, streams)), None)  # one text of the first stream
        for keys in candidates
    ]
    usable = [keys for keys, twin in zip(candidates, twins, strict=True) if twin is None]
    if not usable:
        raise ValueError(twins[0])
    for first, second in usable:
        if (offset := _find_offset(sorted(first), sorted(second))) is not None:
            return [*_order(first)], [*_order(second)], offset
    as_many = all(len({len(key) for key in keys}) == 1 for keys in whole)  # numbers in every name
    for first, second in usable if as_many else ():
        if numbers := _find_gaps(first, second):
            places = [{key: i for i, key in enumerate(keys)} for keys in (first, second)]
            one, other = ([place.get(number) for number in numbers] for place in places)
            return one, other, 0
    raise ValueError(_describe_lonely(usable[:2][-1], streams))


def order_without_gaps(paths: Sequence[Path]) -> Order:
    """The order of images to pair with a video's frames, which have no numbers.

    Raises:
        ValueError: their numbers have a gap, or there are none.
    """
    columns, whole = _list_keys(paths)
    for keys in columns:
        if max(keys)[0] - min(keys)[0] + 1 == len(set(keys)) == len(keys):
            return _order(keys)
    numbers = sorted(number for number, *_ in (columns or [whole])[0])
    gap = next((a for a, b in itertools.pairwise(numbers) if b != a + 1), None)
    where = "their names have no numbers" if gap is None else f"after number {gap} there is a gap"
    raise ValueError(
        f"{paths[0].parent}: images are paired with a video's frames by consecutive numbers, and "
        f"{where}"
    )


def pair_times(visible: np.ndarray, auxiliary: np.ndarray) -> Order | None:
    """For each visible frame, the auxiliary one nearest in time; None where they run in step.

    Args:
        visible, auxiliary: (N,) and (M,), seconds since the first frame, increasing.

    Returns:
        Indices of auxiliary frames, one for each visible frame until the auxiliary ones end.

    Raises:
        ValueError: a frame has no partner within 3/4 of the slower stream's interval.
    """
    common = min(len(visible), len(auxiliary))
    if common < 2:
        return None
    steps = [float(np.median(np.diff(times))) for times in (visible, auxiliary)]
    if (np.abs(visible[:common] - auxiliary[:common]) <= min(steps) / 2).all():
        return None
    tolerance = 0.75 * max(steps)
    visible = visible[visible <= auxiliary[-1] + tolerance]
    after = np.searchsorted(auxiliary, visible).clip(1, len(auxiliary) - 1)
    before_is_nearer = visible - auxiliary[after - 1] <= auxiliary[after] - visible
    nearest = after - before_is_nearer
    far = np.flatnonzero(np.abs(auxiliary[nearest] - visible) > tolerance)
    if len(far):
        i = int(far[0])
        raise ValueError(
            f"visible frame {i + 1}, at {visible[i]:.3f} s, has no partner: the nearest auxiliary "
            f"frame is at {auxiliary[nearest[i]]:.3f} s; cut both videos to the same frames"
        )
    return [int(index) for index in nearest]


def _list_keys(paths: Sequence[Path]) -> tuple[list[list[Key]], list[Key]]:
    """Each number of the names that varies, the last one first; and all of them together."""
    numbers = [tuple(int(n) for n in re.findall(r"\d+", path.stem)) for path in paths]
    if len({len(found) for found in numbers}) > 1:
        return [[found[-1:] for found in numbers]], numbers
    columns = [column for column in zip(*numbers, strict=True) if len({*column}) > 1]
    columns = columns if len(paths) > 1 else [*zip(*numbers, strict=True)]
    whole = [*zip(*columns, strict=True)] or numbers
    return [[(number,) for number in column] for column in reversed(columns)], whole


def _order(keys: Sequence[Key]) -> Order:
    return sorted(range(len(keys)), key=keys.__getitem__)


def _find_twins(keys: Sequence[Key], paths: Sequence[Path]) -> str | None:
    seen: dict[Key, Path] = {}
    for key, path in zip(keys, paths, strict=True):
        if key in seen:
            names = " and ".join(sorted((seen[key].name, path.name)))
            return (
                f"{path.parent}: {names} have the same number {_show(key)}; expected one image for "
                "each frame"
            )
        seen[key] = path
    return None


def _find_offset(visible: list[Key], auxiliary: list[Key]) -> int | None:
    common = min(len(visible), len(auxiliary))
    if visible[:common] == auxiliary[:common]:
        return 0
    if any(len(key) != 1 for key in (*visible, *auxiliary)):
        return None
    offsets = {b - a for (a,), (b,) in zip(visible, auxiliary, strict=False)}
    certain = len(visible) == len(auxiliary) or not {*visible} & {*auxiliary}
    return offsets.pop() if len(offsets) == 1 and certain else None


def _find_gaps(visible: list[Key], auxiliary: list[Key]) -> list[Key] | None:
    """All numbers, where both streams begin with the same one and lack some of the others.

    Streams that count in different steps are recordings of different rates, and none of them is
    missing an image.
    """
    streams = [sorted(visible), sorted(auxiliary)]
    if any(len(key) != 1 for keys in streams for key in keys) or streams[0][0] != streams[1][0]:
        return None
    union = sorted({*visible, *auxiliary})
    steps = {
        min((b - a for (a,), (b,) in itertools.pairwise(keys)), default=0)
        for keys in (*streams, union)
    }
    return union if len(steps) == 1 else None


def _describe_lonely(keys: tuple[list[Key], list[Key]], streams: tuple[Sequence[Path], ...]) -> str:
    """Which image is the first that has no partner of its number."""
    tables = [dict(zip(k, paths, strict=True)) for k, paths in zip(keys, streams, strict=True)]
    number = min(tables[0].keys() ^ tables[1].keys())
    lonely, other = tables if number in tables[0] else reversed(tables)
    return (
        f"{lonely[number]} has no partner: {next(iter(other.values())).parent} has no image of "
        f"number {_show(number)}; complete both modalities, or remove what only one has"
    )


def _pair_stems(visible: Sequence[Path], auxiliary: Sequence[Path]) -> tuple[Gappy, Gappy, int]:
    """By the whole names, where some have no number."""
    first, second = ([path.stem for path in stream] for stream in (visible, auxiliary))
    if sorted(first) != sorted(second) and max(len(first), len(second)) > 1:
        lonely = next(
            path
            for path in (*visible, *auxiliary)
            if not re.search(r"\d", path.stem)
            and (path.stem not in first or path.stem not in second)
        )
        raise ValueError(
            f"{lonely} cannot be paired: its name has no number, and the other modality has no "
            "image of that name"
        )
    one, other = (sorted(range(len(stems)), key=stems.__getitem__) for stems in (first, second))
    return [*one], [*other], 0


def _show(key: Key) -> str:
    return "-".join(map(str, key))
