"""`attach`: the two lines' second one, for every host that has an adapter here."""

from collections.abc import Iterable
from pathlib import Path

from gmmt_fusion.attaching.adapter import Adapter
from gmmt_fusion.attaching.attachment import Attachment, Inputs
from gmmt_fusion.attaching.insertion import insert
from gmmt_fusion.attaching.recognition import recognise
from gmmt_fusion.model.fusion import GenerativeFusion

from .bat import BATAdapter
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
        adapter: "auto" recognises the hosts of `gmmt_fusion.adapters`; else an Adapter, such as a
            ModuleAdapter.
        calibrate: batches of the host's inputs for `Attachment.calibrate`; omit for a fusion that
            was fine-tuned.

    Raises:
        ValueError, TypeError, OSError: no host was recognised, or the fusion does not fit; the
            tracker is as it was.
    """
    if isinstance(tracker, GenerativeFusion):
        raise TypeError("attach got the fusion first; expected attach(tracker, fusion)")
    if isinstance(adapter, Adapter):
        candidates = [adapter]
    elif adapter == "auto":
        candidates = [cls() for cls in ADAPTERS]
    else:
        raise TypeError(
            f"adapter={adapter!r}; expected 'auto' or an Adapter, such as "
            "ModuleAdapter(fusion=…, head=…)"
        )
    if not isinstance(fusion, GenerativeFusion | str | Path):
        raise TypeError(f"fusion={fusion!r:.80}; expected a GenerativeFusion, a folder or a hub id")
    network, found = recognise(tracker, candidates)
    if not isinstance(fusion, GenerativeFusion):
        fusion = GenerativeFusion.from_pretrained(fusion)
    return insert(network, fusion, found, calibrate)
