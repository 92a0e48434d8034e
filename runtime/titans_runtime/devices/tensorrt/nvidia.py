"""Whether there is an NVIDIA driver, before anything that needs one is imported. Knows no provider."""

from __future__ import annotations

import ctypes
import sys

from titans_runtime.errors import ProviderError


def has_driver() -> bool:
    """Whether the NVIDIA driver's library can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def require_driver() -> None:
    """Raise `ProviderError` where there is no NVIDIA driver."""
    if not has_driver():
        raise ProviderError("no NVIDIA driver found", "run on a machine with an NVIDIA GPU", "no device")
