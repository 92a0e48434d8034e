"""Errors of the export: each names the model, graph or file at fault and ends in a remedy."""

from __future__ import annotations

from titans_format.errors import TitansError


class ExportError(TitansError):
    """Base of every error that `titans_export` raises on purpose."""


class TraceError(ExportError):
    """A model whose computation cannot be written down as a graph."""


class VerificationError(ExportError):
    """A bundle that does not compute what its model computes."""
