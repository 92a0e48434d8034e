"""Where streamed text ends: stop strings, found even when they arrive in pieces.

Knows strings only.
"""

from __future__ import annotations

from collections.abc import Sequence

from titans_runtime.arguments import shown
from titans_runtime.errors import InputError


class StopFilter:
    """Passes text through until a stop string appears; the stop string itself is not passed on.

    Text that may be the beginning of a stop string is held back until it is decided.

    Args:
        stops: strings that end the text; may be none, or None.

    Raises:
        InputError: a stop string is empty or not a string.
    """

    def __init__(self, stops: str | Sequence[str] | None = ()) -> None:
        try:
            self._stops = (stops,) if isinstance(stops, str) else () if stops is None else tuple(stops)
        except Exception:  # also what an object of the caller's raises
            raise InputError(f"stop is {shown(stops)}; use a string, or a list of strings") from None
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop string {shown(stop)} is not a string with something in it; leave it out")
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is now certain to come before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        text, self._held = self._held, ""
        return text

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0
