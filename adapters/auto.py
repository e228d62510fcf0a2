"""`attach`: the two lines' second one, for every host that has an adapter here."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.attachment import Attachment, Inputs
from gmmt_fusion.attaching.insertion import insert
from gmmt_fusion.attaching.recognition import recognise
from gmmt_fusion.model.card import list_adapters
from gmmt_fusion.model.fusion import GenerativeFusion

from .bat import BATAdapter
from .concatenation import ConcatAdapter
from .encoder import EncoderAdapter
from .module import ModuleAdapter
from .sdstrack import SDSTrackAdapter
from .siamban import SiamBANAdapter
from .tbsi import TBSIAdapter
from .vipt import ViPTAdapter

ADAPTERS: tuple[type[Adapter], ...] = (
    ViPTAdapter,
    TBSIAdapter,
    SiamBANAdapter,
    BATAdapter,
    SDSTrackAdapter,
)
"""Those that `attach(adapter="auto")` tries, in this order."""
NAMED: tuple[type[Adapter], ...] = (ModuleAdapter, ConcatAdapter, EncoderAdapter)
"""Those that are told names, and are tried as a saved fusion had them."""


def candidates(fusion: GenerativeFusion) -> list[Adapter]:
    """What "auto" tries: the adapter that a saved fusion was attached through, then `ADAPTERS`."""
    kinds, saved = {kind.__name__: kind for kind in NAMED}, []
    for name, options in list_adapters(fusion.about).items():
        if name in kinds:
            with contextlib.suppress(TypeError, ValueError):  # of another version
                saved.append(kinds[name](**options))
    return [*saved, *(kind() for kind in ADAPTERS)]


def attach(
    tracker: object,
    fusion: GenerativeFusion | str | Path,
    adapter: Adapter | str = "auto",
    calibrate: Iterable[Inputs] | None = None,
) -> Attachment:
    """Replace the fusion of a pretrained tracker by a generative one.

    The host's weights must be loaded already: the new head starts as a copy of the host's. The host
    is frozen while the fusion is attached.

    Args:
        tracker: the network (an nn.Module), or the object that holds it.
        fusion: a GenerativeFusion, a folder, or a hub id. One that was attached before, or loaded,
            brings its head along; attached to several trackers of one kind it shares its weights,
            head included, among them.
        adapter: "auto" recognises the hosts of `gmmt_fusion.adapters`, and attaches a saved fusion
            where it was attached; else an Adapter, such as a ModuleAdapter.
        calibrate: batches of the host's inputs for `Attachment.calibrate`; omit for a fusion that
            was fine-tuned.

    Raises:
        ValueError, TypeError, OSError: no host was recognised, or the fusion does not fit; the
            tracker is as it was.
    """
    if isinstance(tracker, GenerativeFusion):
        raise TypeError("attach got the fusion first; expected attach(tracker, fusion)")
    if not isinstance(adapter, Adapter) and adapter != "auto":
        raise TypeError(
            f"adapter={adapter!r}; expected 'auto' or an Adapter, such as "
            "ModuleAdapter(fusion=…, head=…)"
        )
    if not isinstance(fusion, GenerativeFusion | str | Path):
        raise TypeError(f"fusion={fusion!r:.80}; expected a GenerativeFusion, a folder or a hub id")
    if not isinstance(fusion, GenerativeFusion):
        fusion = GenerativeFusion.from_pretrained(fusion)
    tried = [adapter] if isinstance(adapter, Adapter) else candidates(fusion)
    network, found = recognise(tracker, tried)
    return insert(network, fusion, found, calibrate)
