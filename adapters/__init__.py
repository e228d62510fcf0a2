"""One adapter for each host tracker, and `attach`, which tries them. Installed as
`gmmt_fusion.adapters`; a new one goes into a file here, as tbsi.py, and into ADAPTERS in auto.py.
"""

from gmmt_fusion.attaching.adapter import Adapter

from . import siamban
from .auto import ADAPTERS, attach
from .bat import BATAdapter
from .concatenation import ConcatAdapter
from .encoder import EncoderAdapter
from .module import ModuleAdapter
from .sdstrack import SDSTrackAdapter
from .siamban import SiamBANAdapter
from .taps import Tap, TapAdapter
from .tbsi import TBSIAdapter
from .vipt import ViPTAdapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "BATAdapter",
    "ConcatAdapter",
    "EncoderAdapter",
    "ModuleAdapter",
    "SDSTrackAdapter",
    "SiamBANAdapter",
    "TBSIAdapter",
    "Tap",
    "TapAdapter",
    "ViPTAdapter",
    "attach",
    "siamban",
]
