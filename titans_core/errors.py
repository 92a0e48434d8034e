"""Errors of the training definition: each says what was expected, what was found and what to do."""

from __future__ import annotations


class TitansCoreError(Exception):
    """Base of every error that `titans_core` raises on purpose."""


class ConfigError(TitansCoreError, ValueError):
    """A model or training configuration that cannot be built."""


class CheckpointError(TitansCoreError):
    """A checkpoint that is missing, damaged or not a checkpoint."""
