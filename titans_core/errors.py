"""Errors of the training definition: each says what was expected, what was found and what to do."""

from __future__ import annotations

from titans_format.errors import TitansError
from titans_tasks.errors import DataError

__all__ = ["CheckpointError", "ConfigError", "DataError", "TitansError"]


class ConfigError(TitansError, ValueError):
    """A model or training configuration that cannot be built."""


class CheckpointError(TitansError):
    """A checkpoint that is missing, damaged or not a checkpoint."""
