"""What every task hands back, and what it is told while it works.

Knows the shape of a report. Does not know any task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from titans_runtime import Model


def unwatched(done: int, total: int) -> None:
    """The progress of a caller that does not look."""


class Report(Protocol):
    """The outcome of one task on one bundle."""

    def as_json(self) -> dict[str, Any]:
        """All figures as plain data: numbers, strings, lists and dicts, none of them NaN or infinite."""
        ...

    def lines(self) -> Sequence[str]:
        """The same for a person, line by line."""
        ...


@dataclass(frozen=True)
class Subject:
    """Which model was judged, and where it ran."""

    name: str
    variant: str
    parameters: int
    dtype: str
    provider: str

    @classmethod
    def of(cls, model: Model) -> Subject:
        """The loaded bundle `model`."""
        about = model.manifest.model
        return cls(about.name, about.variant, about.parameters, model.manifest.dtype, model.provider)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}, {self.parameters:,} parameters, {self.dtype}, on {self.provider}"
