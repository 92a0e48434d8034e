"""The former place of `titans_tasks.tokens`: the same module, with a warning."""

import sys
import warnings

from titans_tasks import tokens

warnings.warn("titans_core.tokens is titans_tasks.tokens now; import it from there", DeprecationWarning, stacklevel=2)
sys.modules[__name__] = tokens
