"""How much of a text comes back from its tokens.

Knows texts before and after. Does not know tokenizers.

A tokenizer may fold case, drop what it has no token for, or lack the decoder that joins its tokens. What is dropped
cannot be predicted, and a figure per byte must not count it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundTrip:
    """Bytes of text, and how many of them come back."""

    size: int = 0
    kept: int = 0

    def __add__(self, other: RoundTrip) -> RoundTrip:
        return RoundTrip(self.size + other.size, self.kept + other.kept)

    @property
    def lost(self) -> float:
        """The share of the bytes that do not come back, 0 to 1."""
        return 1 - self.kept / self.size if self.size else 0.0


def round_trip(before: bytes, after: bytes) -> RoundTrip:
    """Compare a text with what its tokens say.

    Texts that are equal lose nothing. Otherwise characters are counted: one that comes back fewer times than it was
    there is lost as often as it lacks. So a space that moved is no loss, and text that was added makes up for none.
    """
    if before == after:
        return RoundTrip(len(before), len(before))
    wanted, found = (Counter(data.decode("utf-8", "replace")) for data in (before, after))
    kept = sum(min(count, found[char]) * len(char.encode()) for char, count in wanted.items() if char in found)
    return RoundTrip(len(before), min(kept, len(before)))
