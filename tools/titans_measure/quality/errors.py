"""What can go wrong while a bundle is judged. Every message ends in a remedy."""

from __future__ import annotations

from titans_format.errors import TitansError


class EvalError(TitansError):
    """A task that does not fit the model, a report that cannot be drawn, or options that make no sense."""
