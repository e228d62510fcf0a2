"""Whether the lines of a proposal hold: they are run, on the copy of a tracker."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gmmt_fusion.attaching.attachment import Attachment
from gmmt_fusion.attaching.probing import Probe
from gmmt_fusion.attaching.readings import best_order
from gmmt_fusion.attaching.recording import Call, copied, kept_difference
from gmmt_fusion.attaching.searching import WEAK, Head, Search


class Refused(Exception):
    """A proposal did not hold; says why."""


def check(lines: str, search: Search, head: Head, apart: bool = True) -> list[str]:
    """Attach by the lines, run the frame, train a step, detach.

    Args:
        apart: whether the maps must depend on a modality of their own each.

    Returns:
        What was seen.

    Raises:
        Refused: something did not hold.
    """
    probe = search.probe
    names: dict[str, Any] = {"tracker": probe.tracker}
    try:
        exec(lines, names)
    except Exception as error:  # of the host's, too: its head is copied
        raise Refused(f"attach refuses it: {_words(error)}") from error
    handle: Attachment = names["handle"]
    try:
        seen = _check_attached(handle, search, apart)
    except Refused:
        raise
    except Exception as error:  # whatever a host raises
        raise Refused(f"the attached tracker failed: {_words(error)}") from error
    finally:
        handle.detach()
        handle.network.eval()
    calls, result = probe.record(wanted={p.place for p in head.fused})
    by_key = {c.key: c for c in calls}
    same = all(torch.equal(x, result[p]) for p, x in search.result.items() if p in result)
    if not same or any(p.change(by_key) > 0 for p in head.fused):
        raise Refused("after detach() the tracker's output is not what it was")
    return [*seen, "detached, the tracker's output is the same to the bit"]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_attached(handle: Attachment, search: Search, apart: bool) -> list[str]:
    probe = search.probe
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe.run()
    if not handle.plugin.has_fused:
        raise Refused("no map was generated in the frame")
    features, fused = _recorded(handle, probe)
    if apart and len(features) == probe.modalities:
        noisy = [_recorded(handle, probe, [j])[0] for j in probe.everything]
        changes = [[kept_difference(run[k], x) for run in noisy] for k, x in enumerate(features)]
        order, margin = best_order(changes)
        if order != tuple(probe.everything) or margin < 1.02:
            raise Refused(f"the maps that the fusion gets are not one of each modality: {changes}")
    loss = _train(handle, search.calls, features, fused)
    return [f"attached, a map was generated; a training step ran (generative loss {loss:.2f})"]


def _recorded(
    handle: Attachment, probe: Probe, noise: Sequence[int] = ()
) -> tuple[list[Tensor], Tensor]:
    with handle.recorded() as recording:
        probe.run(noise, strength=WEAK)
    if not recording:
        raise Refused("the fusion is not called with maps that would be generated")
    features, fused = recording[-1]
    return features, fused


def _train(
    handle: Attachment, calls: Sequence[Call], features: list[Tensor], fused: Tensor
) -> float:
    """One step on the calls that the tracker makes of its network.

    Where these switch gradients off, of the fusion alone.
    """
    optimizer = torch.optim.SGD(handle.parameters(), 1e-4)
    handle.network.train()
    with torch.enable_grad():
        try:
            loss, whole = _replay(handle.network, calls), True
        except ValueError as error:
            if "gradients off" not in str(error):
                raise
            loss, whole = handle.fuse(features, fused).mean(), False
        generative = handle.generative_loss
        if generative is None:
            raise Refused("nothing was fused in a training step")
        (loss + generative).backward()  # type: ignore[no-untyped-call]
    if whole:
        handle.check_gradients()
    optimizer.step()
    return float(generative.detach())


def _replay(network: nn.Module, calls: Sequence[Call]) -> Tensor:
    """What the tracker asks of its network in the frame, with gradients, summed up."""
    loss = torch.zeros(())
    for call in calls:
        if call.parent is None and call.name == "":
            args, kwargs = call.arguments
            loss = loss + _mean(getattr(network, call.key[1])(*copied(args), **copied(kwargs)))
    return loss


def _mean(out: Any) -> Tensor:  # whatever a host returns
    if isinstance(out, Tensor):
        return out.mean() if out.requires_grad and out.is_floating_point() else torch.zeros(())
    if isinstance(out, dict):
        out = list(out.values())
    if isinstance(out, list | tuple):
        return sum((_mean(x) for x in out), torch.zeros(()))
    return torch.zeros(())
