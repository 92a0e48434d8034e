"""What can be wrong with data: each error says what was expected, what was found and what to do."""

from __future__ import annotations

from titans_format.errors import TitansError


class DataError(TitansError):
    """Data that are missing, unreadable or too short."""
