"""The former place of `titans_export.titans_pytorch.config_from_model`: the same module, with a warning."""

import sys
import warnings

from titans_export.titans_pytorch import config_from_model

warnings.warn(
    "titans_export.titans_pytorch.live is titans_export.titans_pytorch.config_from_model now; import it from there",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = config_from_model
