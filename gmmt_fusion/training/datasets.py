"""What is inside a loader: samplers and datasets in one another, and who has an epoch."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Subset

from ..files import json_digest

INSIDE = ("batch_sampler", "sampler", "dataset")  # as torch's wrappers name them, and "datasets"


def walk(*wrappers: object) -> Iterator[Any]:
    """Objects and what they wrap, however deep, each once: samplers, or datasets."""
    seen: dict[int, object] = {}
    left = list(wrappers)[::-1]
    while left:
        wrapper = left.pop()
        if id(wrapper) not in seen:
            seen[id(wrapper)] = wrapper
            yield wrapper
            left += _list_wrapped(wrapper)[::-1]


def is_leaf(wrapper: object) -> bool:
    """Whether it wraps nothing."""
    return not _list_wrapped(wrapper)


def _list_wrapped(wrapper: object) -> list[object]:
    several = getattr(wrapper, "datasets", ())
    several = several.values() if isinstance(several, dict) else several
    inside = [getattr(wrapper, name, None) for name in INSIDE]
    inside += several if isinstance(several, Collection) else ()
    # a user's attribute of that name may be a name
    return [
        x
        for x in inside
        if isinstance(x, Iterable) or hasattr(x, "__getitem__")
        if not isinstance(x, str | bytes)
    ]


def set_epoch(wrappers: Collection[object], epoch: int) -> None:
    """Tell everything that wants to know it which epoch begins."""
    for wrapper in walk(*wrappers):
        if callable(tell := getattr(wrapper, "set_epoch", None)):
            tell(epoch)


def describe_loader(loader: DataLoader[Any]) -> dict[str, Any]:
    """What tells a loader from others, as JSON; what its samples are cannot be told."""
    sampler: Any = loader.batch_sampler  # or a user's, with or without a size
    return {
        "samples": len(loader.dataset),  # type: ignore[arg-type]
        "batch_size": getattr(sampler, "batch_size", None),
        "drop_last": getattr(sampler, "drop_last", None),
        "sampler": type(getattr(sampler, "sampler", sampler)).__qualname__,
        "dataset": [_describe_dataset(dataset) for dataset in walk(loader.dataset)],
    }


def _describe_dataset(dataset: object) -> str:
    name = type(dataset).__qualname__
    if not isinstance(dataset, Subset):
        return name
    return f"{name} {json_digest([int(index) for index in dataset.indices])[:12]}"
