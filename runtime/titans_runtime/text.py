"""Text to token ids, and token ids to text as they come, never breaking a character.

Knows UTF-8 bytes and the tokenizers library. Does not know models or how tokens are chosen; where text ends
is `stopping`'s business.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from titans_runtime.errors import BundleError, ProviderError, TextError
from titans_runtime.manifest import Manifest

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, a character
# An unfinished character is completed within 3 tokens. Text that still ends in U+FFFD after many more is really
# damaged, and waiting longer would only delay it.
_UNFINISHED_TOKENS = 16


class TextStream(Protocol):
    """Decodes one stream of tokens piece by piece."""

    def push(self, token: int) -> str:
        """The text that this token completes; often "" in the middle of a character."""
        ...

    def finish(self) -> str:
        """What is left at the end, with U+FFFD for a character that never got complete."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text. Raises `TextError` for text that is not UTF-8."""
        ...

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder for tokens that follow those of `after`, whose text it does not give again."""
        ...


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8. Any bytes can be encoded; ids above 255 have no text."""

    def encode(self, text: str | bytes) -> list[int]:
        """The bytes of a text."""
        return list(_utf8(text) if isinstance(text, str) else text)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A UTF-8 decoder; a character that `after` began is whole where it ends."""
        return _ByteStream(after)


class _ByteStream:
    def __init__(self, after: Sequence[int]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in after:
            self.push(token)

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class LibraryTokenizer:
    """A `tokenizer.json` of the tokenizers library, which is imported only now (0.02 s).

    Raises:
        ProviderError: the library is not installed.
        BundleError: the file is not a tokenizer it can read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ProviderError(
                f"this bundle's text needs the tokenizers library ({error}); install it with `pip install tokenizers`"
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer ({error}); export the bundle again") from error

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text, without special tokens around it."""
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise TextError(
                    f"the text is not UTF-8 (byte {error.start} is 0x{text[error.start]:02x});"
                    " convert it to UTF-8 first"
                ) from None
        _utf8(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder that holds back unfinished characters."""
        return _LibraryStream(self._tokenizer, after)


class _LibraryStream:
    """Text of a token = decode(window + token) - decode(window), for a window of the tokens just before.

    Tokens cannot be decoded alone: some decoders strip a leading space, others join pieces. The window is what was
    last decoded to whole characters; at first, what came before the stream.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, after: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(after)
        self._begun = False
        self._fresh: list[int] = []

    def push(self, token: int) -> str:
        self._fresh.append(token)
        text = self._text_of_fresh()
        if text.endswith(_REPLACEMENT) and len(self._fresh) <= _UNFINISHED_TOKENS:
            return ""
        return self._accept(text)

    def finish(self) -> str:
        return self._accept(self._text_of_fresh())

    def _text_of_fresh(self) -> str:
        before = self._decode(self._window)
        if not self._begun:  # what came before may end inside a character, which then belongs to the new text
            before = before.rstrip(_REPLACEMENT)
        return self._decode(self._window + self._fresh)[len(before) :]

    def _accept(self, text: str) -> str:
        # Tokens without text (special ones) do not make a window: the next token would then seem to be the first.
        self._window, self._fresh = self._fresh if text else self._window + self._fresh, []
        self._begun = self._begun or bool(text)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of a bundle, or None for a model that has none."""
    info = manifest.tokenizer
    if info is None:
        return None
    return ByteTokenizer() if info.file is None else LibraryTokenizer(folder / info.file.file)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text has a character at {error.start} that UTF-8 cannot express (U+{ord(text[error.start]):04X});"
            " remove it"
        ) from None
