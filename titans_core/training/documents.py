"""The former place of `titans_tasks.documents`: the same module, with a warning."""

import sys
import warnings

from titans_tasks import documents

warnings.warn(
    "titans_core.training.documents is titans_tasks.documents now; import it from there",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = documents
