"""The former place of `titans_tasks.series_data`: the same module, with a warning."""

import sys
import warnings

from titans_tasks import series_data

warnings.warn(
    "titans_core.training.series_data is titans_tasks.series_data now; import it from there",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = series_data
