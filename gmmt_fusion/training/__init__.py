"""Fine-tuning the fusion and its new head, in the library's own loop or in a host's.

A loop touches the `Attachment`, and nothing behind it.
"""

from .degradation import Degradation
from .feature_cache import CachedFeatures, cache_features
from .fine_tuning import fine_tune
from .host_loop import train_in_host
from .recipes import Recipe, adamw_optimizer, network_alone, paper_optimizer
from .settings import FineTuningSettings

__all__ = [
    "CachedFeatures",
    "Degradation",
    "FineTuningSettings",
    "Recipe",
    "adamw_optimizer",
    "cache_features",
    "fine_tune",
    "network_alone",
    "paper_optimizer",
    "train_in_host",
]
