"""Text to token ids and back, on the training side: bytes, or any `tokenizer.json`.

Knows the two kinds of tokenizer, how to check what the user handed over, and which tokens end a text. Does not know
what is done with the ids; the runtime has its own reader, because the two packages never import each other.

Training text is read with special tokens: where a document says `<|end|>` and the tokenizer has it, that is one token.
(The runtime reads a user's text as text.) What a tokenizer's file says about batches never acts: truncation, padding,
random merges, and tokens put around a text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from titans_format.install import package
from titans_tasks.errors import DataError

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.unsignedinteger]

MAX_FILE_BYTES = 1 << 27  # 128 MiB; the largest in use have about 40
MAX_IDS = 1 << 24  # a model has a row for each; the largest vocabularies in use have 300,000
MAX_WORD_CHARACTERS = 1000  # of WordPiece, whose time grows with their third power; 100 is usual

# Special tokens by which models in use end a text or an answer.
END_NAMES = frozenset(
    [
        *("</s>", "<eos>", "<EOS>", "[EOS]", "<|eos|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|im_end|>"),
        *("<|eot_id|>", "<|eot|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|return|>"),
        "<｜end▁of▁sentence｜>",
    ]
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Tokenizer(Protocol):
    """What training needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """The largest id and one: how many rows a model needs."""

    @property
    def json(self) -> str | None:
        """The text of its `tokenizer.json`, or None if it needs no file."""

    @property
    def exact(self) -> bool:
        """Whether every text comes back from its ids as it was, whatever it is."""

    @property
    def has_decoder(self) -> bool:
        """Whether it says how tokens are joined to text."""

    def encode(self, data: bytes) -> Ids:
        """Ids [T] of `data`, in the smallest unsigned dtype that holds the vocabulary."""

    def decode(self, ids: Ids) -> bytes:
        """The text of `ids` [T], as bytes."""

    def token_id(self, name: str) -> int:
        """The id of the token that is written `name`. Raises `DataError` if there is none."""


class ByteTokenizer:
    """Every byte is its own id: 256 ids, no file, no text it cannot express."""

    vocab_size = 256
    json: str | None = None
    exact = True
    has_decoder = True

    def encode(self, data: bytes) -> Ids:
        """Ids uint8 [T], one per byte; a view, not a copy."""
        return np.frombuffer(data, np.uint8)

    def decode(self, ids: Ids) -> bytes:
        """The bytes themselves."""
        return ids.astype(np.uint8).tobytes()

    def token_id(self, name: str) -> int:
        """The byte, where `name` is one byte long."""
        data = name.encode("utf-8", "surrogateescape")
        if len(data) != 1:
            raise DataError(
                f"{name!r} is not a token: this model reads bytes, and it has {len(data)} of them",
                "name one character of ASCII, or train with a --tokenizer that has it as a special token",
            )
        return data[0]


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library; text must be UTF-8. No special tokens are added."""

    exact = False

    def __init__(self, json: str, tokenizer: tokenizers.Tokenizer, source: str = "the tokenizer") -> None:
        self.json: str | None = json
        self._tokenizer, self._source = tokenizer, source
        self.has_decoder = tokenizer.decoder is not None
        ids = tokenizer.get_vocab(with_added_tokens=True).values()  # with holes there are fewer of them than rows
        self.vocab_size: int = max(ids, default=0) + 1
        if self.vocab_size > MAX_IDS:
            raise DataError(
                f"{source} has {len(ids):,} tokens and an id {self.vocab_size - 1:,}, and a model needs a row for every"
                " id up to the largest",
                f"number them anew, below {MAX_IDS:,}",
            )

    def encode(self, data: bytes) -> Ids:
        """Ids [T].

        Raises:
            DataError: `data` is not UTF-8, or the tokenizer cannot express it.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"the text is not UTF-8 (byte {error.start}), which this tokenizer needs",
                "convert it, or leave the tokenizer out to train on bytes",
            ) from error
        return np.asarray(self._guarded(self._ids, text), id_dtype(self.vocab_size))

    def decode(self, ids: Ids) -> bytes:
        """The text as UTF-8, special tokens written out. Raises `DataError` where the tokenizer fails."""
        text: str = self._guarded(self._tokenizer.decode, ids.tolist(), skip_special_tokens=False)
        return text.encode("utf-8")

    def token_id(self, name: str) -> int:
        """The id of the token that is written `name`."""
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise DataError(f"{self._source} has no token {name!r}", "name one that it has")
        return int(found)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of special tokens that go by a name of `END_NAMES`."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(sorted(token for token, found in added.items() if found.special and found.content in END_NAMES))

    @property
    def special_names(self) -> tuple[str, ...]:
        """Special tokens as they are written."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(found.content for found in added.values() if found.special)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _guarded(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **options: _Arguments.kwargs
    ) -> _Result:
        return _guarded(
            lambda message: DataError(
                f"{self._source} failed ({message})", "mend it, or leave the tokenizer out to train on bytes"
            ),
            function,
            *args,
            **options,
        )


def load_tokenizer(path: Path | None) -> Tokenizer:
    """The tokenizer in file `path`, or the byte tokenizer for None.

    Raises:
        DataError: the file is missing, unreadable, too large or not a tokenizer, or the library is not installed.
    """
    if path is None:
        return ByteTokenizer()
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"the tokenizer {path} is not a file", "give the path of a tokenizer.json")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(
                f"the tokenizer {path} has {path.stat().st_size:,} bytes, and {MAX_FILE_BYTES:,} are the limit",
                "give the path of a tokenizer.json",
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the tokenizer {path} ({error})", "give the path of a tokenizer.json") from error
    return parse_tokenizer(text, str(path))


def parse_tokenizer(text: str, source: str) -> FileTokenizer:
    """The tokenizer whose `tokenizer.json` is `text`; `source` names it in errors. Raises `DataError`."""
    try:
        import tokenizers
    except ImportError as error:
        raise DataError("a tokenizer.json needs the tokenizers library", f"run: {package('tokenizers')}") from error

    def opened() -> FileTokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.post_processor = None
        for setting in ("dropout", "alpha", "nbest_size"):
            if getattr(tokenizer.model, setting, None) is not None:
                setattr(tokenizer.model, setting, None)
        words = getattr(tokenizer.model, "max_input_chars_per_word", 0)
        if words > MAX_WORD_CHARACTERS:
            raise ValueError(f"max_input_chars_per_word is {words:,}, and {MAX_WORD_CHARACTERS:,} is the limit")
        return FileTokenizer(text, tokenizer, source)

    def refused(message: str) -> DataError:
        return DataError(f"{source} is not a tokenizer.json ({message})", "save one with the tokenizers library")

    return _guarded(refused, opened)


def id_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest unsigned dtype that holds ids below `vocab_size`."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _guarded(
    error: Callable[[str], DataError],
    function: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **options: _Arguments.kwargs,
) -> _Result:
    """Call the library: it raises bare `Exception`, and panics with what is not even one."""
    try:
        return function(*args, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, DataError):
        raise
    except BaseException as found:
        raise error((" ".join(str(found).split()) or type(found).__name__)[:200]) from found
