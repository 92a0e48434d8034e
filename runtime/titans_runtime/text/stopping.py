"""Where streamed text ends: at stop strings, found even when they arrive in pieces or have special tokens in them.

Knows strings, and what a tokenizer writes for a token. Does not know how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from titans_runtime.arguments import shown
from titans_runtime.errors import InputError, TextError
from titans_runtime.text.tokenizer import Tokenizer, utf8

Reason = Literal["stop", "length", "eos"]  # why a text ended


class StopFilter:
    """Passes text through until a stop string appears; the stop string itself is not passed on.

    Text that may be the beginning of a stop string is held back until it is decided.

    Args:
        stops: strings that end the text; may be none, or None.

    Raises:
        InputError: a stop string is empty or not a string, or has a character that no text can have.
    """

    def __init__(self, stops: str | Sequence[str] | None = ()) -> None:
        try:
            self.stops = (stops,) if isinstance(stops, str) else () if stops is None else tuple(stops)
        except Exception:  # also what an object of the caller's raises
            raise InputError(f"stop is {shown(stops)}", "use a string, or a list of strings") from None
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop string {shown(stop)} is not a string with something in it", "leave it out")
            try:
                utf8(stop)
            except TextError as error:
                raise InputError(f"stop string {shown(stop)} can never be met: {error.finding}", error.remedy) from None
        self._held = ""
        self._hidden: list[tuple[int, int]] = []  # parts of what is held that are not text
        self.stopped = False

    def push(self, piece: str, hidden: bool = False) -> str:
        """The text that is now certain to come before any stop string.

        Args:
            piece: what comes next.
            hidden: it is a special token as it is written: it may be part of a stop string, and is not passed on.
        """
        if self.stopped:
            return ""
        text = self._held + piece
        if hidden and piece:
            self._hidden.append((len(self._held), len(text)))
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._pass(text, min(found), "")
        keep = self._undecided(text)
        return self._pass(text, len(text) - keep, text[len(text) - keep :])

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        return self._pass(self._held, len(self._held), "")

    def _pass(self, text: str, end: int, held: str) -> str:
        """What is text of `text[:end]`; `held` is kept."""
        shown, at = "", 0
        for begin, stop in self._hidden:
            shown += text[at : min(begin, end)]
            at = min(stop, end)
        self._hidden = [(max(begin - end, 0), stop - end) for begin, stop in self._hidden if stop > end]
        self._held = held
        return shown + text[at:end]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self.stops):
                return length
        return 0


class Transcript:
    """The text of generated tokens, up to where it ends.

    Tokens that end a text are not part of it. Special tokens are not either, and stop strings are looked for in the
    text with them written out: a stop string that is one special token ends it at that token.

    Args:
        tokenizer: how tokens are written.
        stops: strings that end the text.
        ends: ids that end it.
        recent: the last ids of the stream (`Session.recent`) once it has consumed `first`.
        first: the first of the tokens to come.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: StopFilter, ends: Iterable[int], recent: Sequence[int], first: int
    ) -> None:
        self._tokenizer, self._stops, self._ends = tokenizer, stops, frozenset(ends)
        self._stream = tokenizer.stream(recent if tokenizer.silent(first) else recent[:-1])

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that is certain with one more token."""
        if token in self._ends or self._tokenizer.silent(token):
            return self._stops.push(self._tokenizer.written(token), hidden=True)
        return self._stops.push(self._stream.push(token))

    def finish(self) -> str:
        """What was held back, once nothing more comes; "" after a stop string."""
        return self._stops.push(self._stream.finish()) + self._stops.finish()


def check_stops(tokenizer: Tokenizer, stops: StopFilter) -> None:
    """Refuse stop strings that the tokenizer cannot write, because they could never be met.

    Raises:
        InputError: naming the stop string, and what it lacks.
    """
    for stop in stops.stops:
        text = stop
        for name in tokenizer.control:
            text = text.replace(name, "")  # these are met by their tokens
        written = tokenizer.decode(tokenizer.encode(text))
        missing = set(text) - set(written) - {" "}  # a tokenizer may put or strip a space at the beginning
        if missing:
            raise InputError(
                f"stop string {stop!r} can never be met, because the tokenizer cannot write"
                f" {', '.join(map(repr, sorted(missing)))} and makes {written!r} of it",
                "use what it writes",
            )
