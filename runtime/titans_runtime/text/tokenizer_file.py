"""A `tokenizer.json`, opened with care: it may come from a stranger, and it may hold somebody else's settings.

Knows the tokenizers library, what a file may ask of it, and which of a file's settings are none of ours. Does not know
streams of text (`textstream`) or models.

A tokenizer is used for what it says about text and ids alone. Whatever else is stored in its file never acts:
truncation, padding, random merges (dropout), random paths (nbest), and the post-processor, which puts special tokens
around a text. A stream is fed in pieces, and a beginning in the middle of it would be wrong.

What a file asks for is bounded. Its size is, the length of its words is, and how much longer a text can become while
it is normalised or written is. The library panics on some damaged files, with an exception that is not an `Exception`;
`guarded` turns that into an error of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from titans_format.errors import BundleError, TitansError
from titans_format.install import package
from titans_runtime.errors import ProviderError

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 1 << 27  # 128 MiB; the largest in use have about 40
MAX_TOKEN_CHARACTERS = 4096  # the longest in use are runs of a few hundred spaces
MAX_IDS = 1 << 24  # the largest vocabularies in use have 300,000
MAX_GROWTH = 1024  # times; ALBERT's steps multiply to 648, the most of those in use
MAX_PARTS = 64  # steps of a normaliser, pre-tokenizer or decoder
MAX_PATTERN = 10_000  # characters of a regular expression; those in use have a few hundred
# WordPiece takes time that grows with the third power of a word's length: 20,000 characters took 167 s. 100 is usual.
MAX_WORD_CHARACTERS = 1000
_UNICODE_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18}  # characters that one may become, U+FDFA for the last
_LONGEST_MESSAGE = 200

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def guarded(
    error: Callable[[str], TitansError],
    function: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **options: _Arguments.kwargs,
) -> _Result:
    """Call the library; whatever it raises becomes `error(message)`.

    Its panics derive from `BaseException`, so that is what is caught. An interrupt passes.
    """
    try:
        return function(*args, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as found:
        message = " ".join(str(found).split()) or type(found).__name__
        raise error(message[:_LONGEST_MESSAGE]) from found


def open_file(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a file, with what is stored for batches and for training switched off.

    Raises:
        ProviderError: the library is not installed.
        BundleError: the file is not a tokenizer that the library can read, or asks for too much.
    """
    library = _library()

    def refused(what: str) -> BundleError:
        return BundleError(f"{path} is not a tokenizer ({what})", "export the bundle again")

    size = guarded(refused, path.stat).st_size
    if not path.is_file() or size > MAX_FILE_BYTES:
        raise refused(f"it has {size:,} bytes, and {MAX_FILE_BYTES:,} are the limit")
    return guarded(refused, _opened, library, guarded(refused, path.read_text, "utf-8"))


def open_text(text: str) -> tokenizers.Tokenizer:
    """The same from the text of a file that was read. The library's own errors leave this."""
    return _opened(_library(), text)


def _library() -> Any:
    try:
        import tokenizers  # only now: it takes 0.02 s
    except ImportError as error:
        raise ProviderError(
            f"this bundle's text needs the tokenizers library ({error})", f"run: {package('tokenizers')}"
        ) from error
    return tokenizers


def _opened(library: Any, text: str) -> tokenizers.Tokenizer:
    tokenizer: tokenizers.Tokenizer = library.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    for setting in ("dropout", "alpha", "nbest_size"):
        if getattr(tokenizer.model, setting, None) is not None:
            setattr(tokenizer.model, setting, None)
    _check_words(tokenizer)
    growth = 1.0
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        growth *= _growth(part)
    for factor in (growth, _growth(tokenizer.decoder)):
        if factor > MAX_GROWTH:
            _refuse(f"it can make a text {factor:,.0f} times as long, and {MAX_GROWTH} times is the limit")
    return tokenizer


def check_token(token: str) -> None:
    """Raise `ValueError` for a token that is longer than any text needs."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        _refuse(f"it has a token of {len(token):,} characters, and {MAX_TOKEN_CHARACTERS} are the limit")


def _check_words(tokenizer: tokenizers.Tokenizer) -> None:
    # Of a Unigram model the time to read a text grows with its longest piece. Other ones are looked at when they are
    # decoded, because listing 128,000 tokens takes a third of a second.
    if type(tokenizer.model).__name__ == "Unigram":
        check_token(max(tokenizer.get_vocab(with_added_tokens=True), key=len, default=""))
    words = getattr(tokenizer.model, "max_input_chars_per_word", 0)
    if words > MAX_WORD_CHARACTERS:
        _refuse(f"max_input_chars_per_word is {words:,}, and {MAX_WORD_CHARACTERS} is the limit")


def _growth(part: Any) -> float:
    """How many times as long a text can become by a normaliser, a pre-tokenizer or a decoder."""
    if part is None:
        return 1.0
    steps = list(_steps(json.loads(part.__getstate__())))
    if len(steps) > MAX_PARTS:
        _refuse(f"it has {len(steps)} steps in a row, and {MAX_PARTS} are the limit")
    growth = 1.0
    for step in steps:
        growth *= _growth_of(step)
    return growth


def _steps(value: object) -> Iterator[dict[str, Any]]:
    """Every object with a type, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value
        for inner in value.values():
            yield from _steps(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _steps(inner)


def _growth_of(step: dict[str, Any]) -> float:
    kind, pattern = step["type"], step.get("pattern")
    if isinstance(pattern, dict) and len(next(iter(pattern.values()), "")) > MAX_PATTERN:
        _refuse(f"a {kind} has a pattern of more than {MAX_PATTERN:,} characters")
    if kind == "Replace":
        literal = len(pattern["String"]) if isinstance(pattern, dict) and "String" in pattern else 0
        content = len(step.get("content", ""))
        return max(1.0, content / literal if literal else content + 1)
    if kind == "Prepend":
        return len(step.get("prepend", "")) + 1  # a text of one character is the worst
    if kind in _UNICODE_GROWTH:
        return _UNICODE_GROWTH[kind]
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap") or "")
    return 2.0 if kind in ("ByteLevel", "Metaspace") else 1.0


def _longest_replacement(charsmap: str) -> int:
    """The longest text that a character becomes: a trie, and behind it the replacements with a zero after each."""
    blob = base64.b64decode(charsmap)
    replacements = blob[4 + int.from_bytes(blob[:4], "little") :]
    return max(1, *(len(text.decode("utf-8", "replace")) for text in replacements.split(b"\0")))


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
