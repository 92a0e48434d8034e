"""The former place of `titans_runtime.devices.tensorrt.nvidia`: the same module, with a warning."""

import sys
import warnings

from titans_runtime.devices.tensorrt import nvidia

warnings.warn(
    "titans_runtime.backends.nvidia is titans_runtime.devices.tensorrt.nvidia now; import it from there",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = nvidia
