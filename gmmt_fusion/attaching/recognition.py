"""Which module of a tracker is its network, and which adapter fits it."""

from collections.abc import Iterator, Sequence

from torch import nn

from .adapter import Adapter
from .patching import NO_REPLICAS


def networks_of(tracker: object) -> Iterator[nn.Module]:
    """The modules that may be the host: the tracker itself, what wrappers hold, else what its
    attributes hold.

    Raises:
        ValueError: a wrapper that must come after attaching.
    """
    while isinstance(tracker, nn.Module) and hasattr(tracker, "_orig_mod"):  # torch.compile
        tracker = tracker._orig_mod
    if isinstance(tracker, nn.DataParallel):
        raise ValueError(f"the tracker is wrapped in DataParallel; {NO_REPLICAS}")
    if isinstance(tracker, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "the tracker is wrapped in DistributedDataParallel; attach to its network before "
            "wrapping"
        )
    if isinstance(tracker, nn.Module):
        yield tracker
        yield from tracker.children()
    else:
        for value in vars(tracker).values() if hasattr(tracker, "__dict__") else ():
            if isinstance(value, nn.Module):
                yield from networks_of(value)


def recognise(tracker: object, candidates: Sequence[Adapter]) -> tuple[nn.Module, Adapter]:
    """The network of a tracker, and the first of the adapters that fits it.

    Raises:
        ValueError: none does; says what each has missed.
    """
    networks = [] if isinstance(tracker, type) else list(networks_of(tracker))
    if not networks:
        kind = f"the class {tracker.__name__}" if isinstance(tracker, type) else None
        raise ValueError(
            f"{kind or type(tracker).__name__} is no nn.Module and holds none; attach to the "
            "tracker's network"
        )
    tried = []
    for network in networks:
        for candidate in candidates:
            reason = _reason_against(candidate, network)
            if reason is None:
                return network, candidate
            if network is networks[0]:
                tried.append(f"  {type(candidate).__name__} on {type(network).__name__}: {reason}")
    raise ValueError(
        "no fusion point was found; looked for\n"
        + "\n".join(tried)
        + "\n`python -m gmmt_fusion find --tracker my_tracker.py:build` looks for one, and prints "
        "the lines to attach there, with an adapter such as ModuleAdapter(fusion='…', head='…')"
    )


def _reason_against(adapter: Adapter, network: nn.Module) -> str | None:
    try:
        return adapter.missing(network)
    except Exception as error:  # a user's adapter that looks into another host than its own
        return f"{type(error).__name__}: {error}"
