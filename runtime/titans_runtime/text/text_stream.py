"""Token ids to text as they come, never breaking a character.

Knows UTF-8 bytes, and how the text of a token depends on the tokens before it. Does not know how text becomes ids
(`text`) or where it ends (`stopping`).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, a character
_UNFINISHED = 3  # tokens that the beginning of a character can have: UTF-8 has at most four bytes, a token at least one
# Text that still ends in U+FFFD after this many tokens is damaged. Waiting longer would only delay it.
_PATIENCE = 16
_CONTEXT = 4  # tokens with text before a new one, by which it is decoded: one would do, were it not stripped itself
_TEXTLESS = 16  # tokens in a row whose text is empty that are kept of many; they matter where a text begins, if at all
_RECENT = 32  # tokens from before the stream that are looked at


class TextStream(Protocol):
    """Decodes one stream of tokens piece by piece."""

    def push(self, token: int) -> str:
        """The text that this token completes; often "" in the middle of a character."""
        ...

    def finish(self) -> str:
        """What is left at the end, with U+FFFD for a character that never got complete."""
        ...


class ByteStream:
    """Ids 0..255 are bytes of UTF-8; others have no text."""

    def __init__(self, after: Sequence[int] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in after:
            self.push(token)

    def push(self, token: int) -> str:
        """See `TextStream`."""
        return self._decoder.decode(bytes([token])) if 0 <= token < 256 else ""

    def finish(self) -> str:
        """See `TextStream`."""
        return self._decoder.decode(b"", final=True)


class LibraryStream:
    """Text of new tokens = decode(context + new) - decode(context), for a context of the tokens just before.

    Tokens cannot be decoded alone: some decoders strip a leading space, others join pieces. A context begins and ends
    at a character, or a decoder that reads runs of bytes (`<0xE8>`) would call all of it damaged. Tokens that decoding
    leaves out (special ones) do not come in at all, so any number of them costs nothing.

    The library has a `DecodeStream` of its own. It keeps tokens without text for ever, so that many of them take
    quadratic time. It never writes bytes that are no text. Begun after other tokens it loses the character that the cut
    went through, which is a third to a half of all cuts in texts of ten scripts. This one equals the library's `decode`
    in all of that, but for one thing: of a run of `<0x..>` tokens with damage in it, what was written stays.

    Args:
        decode: the library's, which leaves special tokens out.
        silent: whether decoding leaves a token out.
        after: what came before the stream.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], silent: Callable[[int], bool], after: Sequence[int] = ()
    ) -> None:
        self._decode, self._silent = decode, silent
        recent = [token for token in after if not silent(token)][-_RECENT:]
        begin, end = self._whole_characters(recent)
        self._context = [recent[begin:end]]  # pieces that each begin at a character
        self._before = decode(recent[begin:end])
        self._textless = 0  # pieces at the end of the context that added nothing
        self._new = recent[end:]  # the character that they begin belongs to this stream
        self._given = len(self._text(self._new).rstrip(REPLACEMENT))  # of their text; the rest of it does not

    def push(self, token: int) -> str:
        """See `TextStream`."""
        if self._silent(token):
            return ""
        self._new.append(token)
        text = self._text(self._new)
        if not text.endswith(REPLACEMENT):
            return self._accept(len(self._new), text)
        return "" if len(self._new) <= _PATIENCE else self._accept_damaged(text)

    def finish(self) -> str:
        """See `TextStream`."""
        return self._accept(len(self._new), self._text(self._new))

    def _text(self, new: list[int]) -> str:
        """The text of `new`, which follow the context."""
        whole = self._decode([*(token for piece in self._context for token in piece), *new])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        return self._decode(new)  # a run of bytes that is damaged now, and whose beginning was written already

    def _accept(self, count: int, text: str) -> str:
        """The first `count` of the new tokens have this text, which is final."""
        piece, self._new = self._new[:count], self._new[count:]
        if not piece:
            return text
        given, self._given = self._given, max(0, self._given - len(text))
        self._context.append(piece)
        self._textless = 0 if text else self._textless + 1
        if self._textless > _TEXTLESS:
            del self._context[-1 - _TEXTLESS // 2]
        while text and sum(map(len, self._context[1:])) >= _CONTEXT:
            del self._context[0]
        self._before = self._decode([token for piece in self._context for token in piece])
        return text[given:]

    def _accept_damaged(self, text: str) -> str:
        """As much of damaged text as no later token can change."""
        for count in range(len(self._new) - _UNFINISHED, 0, -1):
            settled = self._text(self._new[:count])
            if settled and text.startswith(settled):
                return self._accept(count, settled)
        return self._accept(len(self._new), text)

    def _whole_characters(self, tokens: list[int]) -> tuple[int, int]:
        """Begin and end of the longest part that is whole characters among those that end last; all, if none is."""
        for end in range(len(tokens), 0, -1):
            for begin in range(end):
                if REPLACEMENT not in self._decode(tokens[begin:end]):
                    return begin, end
        return (0, 0) if len(tokens) <= _UNFINISHED else (0, len(tokens))
