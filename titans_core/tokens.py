"""Text to token ids and back, on the training side: bytes, or any `tokenizer.json`.

Knows the two kinds of tokenizer and how to check what the user handed over. Does not know what is done
with the ids; the runtime has its own reader, because the two packages never import each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from titans_core.errors import DataError

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.unsignedinteger]


class Tokenizer(Protocol):
    """What training needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def json(self) -> str | None:
        """The text of its `tokenizer.json`, or None if it needs no file."""

    def encode(self, data: bytes) -> Ids:
        """Ids [T] of `data`, in the smallest unsigned dtype that holds the vocabulary."""

    def decode(self, ids: Ids) -> bytes:
        """The text of `ids` [T], as bytes."""


class ByteTokenizer:
    """Every byte is its own id: 256 ids, no file, no text it cannot express."""

    vocab_size = 256
    json: str | None = None

    def encode(self, data: bytes) -> Ids:
        """Ids uint8 [T], one per byte; a view, not a copy."""
        return np.frombuffer(data, np.uint8)

    def decode(self, ids: Ids) -> bytes:
        """The bytes themselves."""
        return ids.astype(np.uint8).tobytes()


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library; text must be UTF-8. No special tokens are added."""

    def __init__(self, json: str, tokenizer: tokenizers.Tokenizer) -> None:
        self.json: str | None = json
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, data: bytes) -> Ids:
        """Ids [T].

        Raises:
            DataError: `data` is not UTF-8.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"the text is not UTF-8 (byte {error.start}), which this tokenizer needs;"
                " convert it, or leave the tokenizer out to train on bytes"
            ) from error
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, id_dtype(self.vocab_size))

    def decode(self, ids: Ids) -> bytes:
        """The text as UTF-8."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return text.encode("utf-8")


def load_tokenizer(path: Path | None) -> Tokenizer:
    """The tokenizer in file `path`, or the byte tokenizer for None.

    Raises:
        DataError: the file is missing, unreadable or not a tokenizer, or the library is not installed.
    """
    if path is None:
        return ByteTokenizer()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the tokenizer {path} ({error}); give the path of a tokenizer.json") from error
    return parse_tokenizer(text, str(path))


def parse_tokenizer(text: str, source: str) -> Tokenizer:
    """The tokenizer whose `tokenizer.json` is `text`; `source` names it in errors. Raises `DataError`."""
    try:
        import tokenizers
    except ImportError as error:
        raise DataError("a tokenizer.json needs the tokenizers library; pip install tokenizers") from error
    try:
        return FileTokenizer(text, tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception on a malformed file
        raise DataError(f"{source} is not a tokenizer.json ({error}); save one with the tokenizers library") from error


def id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest unsigned dtype that holds ids below `vocab_size`."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32
