"""Text to token ids, and the other way round.

Knows UTF-8 bytes, the tokenizers library, and which tokens control a stream. Does not know models or how tokens are
chosen; text that arrives token by token is `textstream`'s business, where text ends is `stopping`'s.

A user's text never becomes a control token: whoever types `<|im_end|>` gets its characters, unless `special=True` asks
for the token. Control tokens are the special tokens of a `tokenizer.json`, and added tokens that end a text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from titans_format.errors import BundleError
from titans_format.fields import TokenInputs
from titans_format.manifest import Manifest
from titans_runtime.errors import InputError, TextError
from titans_runtime.text.text_stream import ByteStream, LibraryStream, TextStream
from titans_runtime.text.tokenizer_file import check_token, guarded, open_file, open_text


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def control(self) -> Mapping[str, int]:
        """The control tokens as they are written, and their ids."""
        ...

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        """The ids of a text. Raises `TextError` for text that is not UTF-8, or that cannot be expressed.

        Args:
            text: a string, or bytes of UTF-8.
            special: read control tokens that are written out as what they are, and not as text.
        """
        ...

    def encode_marked(self, text: str, user: bytes) -> list[int]:
        """The ids of a text that a user wrote a part of. Raises `TextError`.

        Args:
            text: a string.
            user: a byte for each character, 1 for those that the user wrote. Control tokens are read as what they are
                where the user wrote none of their characters, and as text elsewhere.
        """
        ...

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of ids, all at once; with `special`, special tokens are written out. Raises `TextError`."""
        ...

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder for tokens that follow those of `after`, whose text it does not give again."""
        ...

    def silent(self, token: int) -> bool:
        """Whether decoding leaves an id out: a special token, or one that the tokenizer does not know."""
        ...

    def written(self, token: int) -> str:
        """How a silent token is written where special tokens are; "" for one that is unknown."""
        ...


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8. Any bytes can be encoded; ids above 255 have no text."""

    control: Mapping[str, int] = {}

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        """The bytes of a text; there are no special tokens."""
        return list(utf8(text) if isinstance(text, str) else text)

    def encode_marked(self, text: str, user: bytes) -> list[int]:
        """The bytes of a text, whoever wrote it."""
        return self.encode(text)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text, with U+FFFD for bytes that are none."""
        return bytes(token for token in checked_ids(tokens) if token < 256).decode("utf-8", errors="replace")

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A UTF-8 decoder; a character that `after` began is whole where it ends."""
        return ByteStream(after)

    def silent(self, token: int) -> bool:
        """Whether it is no byte."""
        return not 0 <= token < 256

    def written(self, token: int) -> str:
        """Nothing."""
        return ""


class LibraryTokenizer:
    """A `tokenizer.json` of the tokenizers library, which is imported only now (0.02 s).

    Args:
        path: the file.
        ends: ids that end a text.
        vocab_size: ids that the model has; None where that is not known.

    Raises:
        ProviderError: the library is not installed.
        BundleError: the file is not a tokenizer it can read, or asks for too much.
    """

    def __init__(self, path: Path, ends: Iterable[int] = (), vocab_size: int | None = None) -> None:
        self._tokenizer = open_file(path)
        self._source, self._vocab_size = path, vocab_size
        added = self._tokenizer.get_added_tokens_decoder()
        ends = set(ends)
        self._special = {token: found.content for token, found in added.items() if found.special}
        self.control: Mapping[str, int] = {
            found.content: token for token, found in added.items() if found.special or token in ends
        }
        self._control_ids = frozenset(self.control.values())
        self._unknown = getattr(self._tokenizer.model, "unk_token", None) or ""  # stands for what cannot be expressed
        self._never = self._control_ids - {self.control.get(self._unknown)}
        self._known: dict[int, bool] = {}
        self._tokenizer.encode_special_tokens = True  # as text

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        """The ids of a text, without special tokens around it. Raises `TextError`."""
        text = decoded(text)
        if special:
            tokenizer, originals = self._reading_special
            return self._within([originals.get(token, token) for token in self._ids(tokenizer, text)])
        ids = self._ids(self._tokenizer, text)
        if not self._never.isdisjoint(ids):
            # The library takes the flag for added tokens alone; a model of whole words finds them in its vocabulary.
            ids = self._ids(self._without_control, text)
        return self._within(ids)

    def encode_marked(self, text: str, user: bytes) -> list[int]:
        """See `Tokenizer`. All of the text is one call, so pieces are joined as the library joins them."""
        utf8(text)
        secret = "".join(self._secret(part, whose) for part, whose in _runs(text, user))
        tokenizer, originals = self._under_secret_names
        found = self._ids(tokenizer, secret)
        if (self._never - originals.keys()).isdisjoint(found):
            return self._within([originals.get(token, token) for token in found])
        if self._unknown in self._secrets:
            secret = secret.replace(self._secrets[self._unknown], self._unknown)
        return self._within(self._ids(self._reading_secret, secret))  # the user's text, as above

    def _secret(self, text: str, user: bool) -> str:
        """Text with its control tokens under their secret names, unless a user wrote it."""
        return text if user or not self.control else self._any_control.sub(lambda it: self._secrets[it.group()], text)

    @cached_property
    def _secrets(self) -> dict[str, str]:
        """Names for control tokens that nobody can type."""
        return {name: f"{secrets.token_hex(16)}-{number}" for number, name in enumerate(self.control)}

    @cached_property
    def _any_control(self) -> re.Pattern[str]:
        """Any control token; of two that begin alike, the longer."""
        return re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))))

    def _within(self, ids: list[int]) -> list[int]:
        """Ids, unless the model lacks one. Raises `TextError`."""
        if self._vocab_size is not None and ids and max(ids) >= self._vocab_size:
            strange = max(ids)
            raise TextError(
                f"the text has {self._tokenizer.id_to_token(strange)!r}, which is token {strange}, and the model has"
                f" {self._vocab_size} ids",
                "leave it out, or export with the tokenizer that the model was trained with",
            )
        return ids

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of ids as the library decodes them. Raises `TextError`."""
        ids = checked_ids(tokens)
        silent = {token for token in set(ids) if self.silent(token) and not (special and token in self._special)}
        ids = [token for token in ids if token not in silent]
        return guarded(self._failed, self._tokenizer.decode, ids, skip_special_tokens=not special)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A decoder that holds back unfinished characters."""
        return LibraryStream(self.decode, self.silent, after)

    def silent(self, token: int) -> bool:
        """Whether it is special or unknown."""
        known = self._known.get(token)
        if known is None:
            name = self._tokenizer.id_to_token(token) if 0 <= token < 1 << 32 else None
            guarded(self._failed, check_token, name or "")
            known = self._known[token] = name is not None and token not in self._special
        return not known

    def written(self, token: int) -> str:
        """A special token's name."""
        return self._special.get(token, "")

    @cached_property
    def _reading_special(self) -> tuple[Any, dict[int, int]]:
        """The same tokenizer, which reads control tokens; another one, because threads share this one."""
        return self._copied({})

    @cached_property
    def _under_secret_names(self) -> tuple[Any, dict[int, int]]:
        """The same tokenizer, which reads control tokens by their secret names alone."""
        return self._copied(self._secrets)

    def _copied(self, names: Mapping[str, str]) -> tuple[Any, dict[int, int]]:
        """A tokenizer that shares the model, with new names for added tokens, and their ids by those that they get.

        To read the file again takes a second where there are 150,000 tokens. A token with a secret name is met wherever
        it stands: that it has to be a word by itself is said of its own name.
        """
        import tokenizers

        def copied() -> tuple[Any, dict[int, int]]:
            tokenizer = tokenizers.Tokenizer(self._tokenizer.model)
            for part in ("normalizer", "pre_tokenizer"):
                if getattr(self._tokenizer, part) is not None:
                    setattr(tokenizer, part, getattr(self._tokenizer, part))
            originals: dict[int, int] = {}
            for token, found in sorted(self._tokenizer.get_added_tokens_decoder().items()):
                name = names.get(found.content, found.content)
                flags = {flag: getattr(found, flag) for flag in ("lstrip", "rstrip", "normalized", "special")}
                word = found.single_word and found.content not in names
                tokenizer.add_tokens([tokenizers.AddedToken(name, single_word=word, **flags)])
                if (new := tokenizer.token_to_id(name)) is not None:
                    originals[new] = token
            return tokenizer, originals

        return guarded(self._damaged, copied)

    @cached_property
    def _without_control(self) -> Any:
        """The same tokenizer with control tokens by their secret names, read as text: what spells one is split."""
        tokenizer = self._renamed()
        tokenizer.encode_special_tokens = True  # the unknown one is not to be met either
        return tokenizer

    @cached_property
    def _reading_secret(self) -> Any:
        """The same, which reads control tokens by their secret names."""
        return self._renamed()

    def _renamed(self) -> Any:
        """The tokenizer with control tokens by their secret names in its model as well.

        They are not removed, because the library numbers added tokens by their order. The unknown token keeps its name,
        because it stands for what cannot be expressed.
        """
        document = json.loads(self._tokenizer.to_str())
        model, added = document["model"], document["added_tokens"]
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else self._unknown
        renamed = {name: secret for name, secret in self._secrets.items() if name != unknown}
        for token in added:
            token["content"] = renamed.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
        else:
            model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
        return guarded(self._inexpressible, open_text, json.dumps(document))

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        return guarded(self._failed, lambda: list(tokenizer.encode(text, add_special_tokens=False).ids))

    def _failed(self, message: str) -> TextError:
        return TextError(f"the tokenizer {self._source} failed ({message})", "take other text, or another tokenizer")

    def _damaged(self, message: str) -> BundleError:
        return BundleError(f"{self._source} is not a tokenizer ({message})", "export the bundle again")

    def _inexpressible(self, message: str) -> TextError:
        return TextError(
            f"the text spells a control token, and the tokenizer cannot express it otherwise ({message})",
            "leave it out, or ask for the token with special=True",
        )


def open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of a bundle, or None for a model that has none."""
    info = manifest.tokenizer
    if info is None:
        return None
    if info.file is None:
        return ByteTokenizer()
    size = manifest.inputs.vocab_size if isinstance(manifest.inputs, TokenInputs) else None
    return LibraryTokenizer(folder / info.file, (*manifest.ends.eos, *manifest.ends.stop), size)


def fill_template(tokenizer: Tokenizer, template: str, message: bytes) -> bytes | list[int]:
    """A template with a user's message for `{message}`: as it is where it is all text, else as ids.

    The template's control tokens are tokens, and the message is text, whatever it says.
    """
    if not any(name in template for name in tokenizer.control):
        return utf8(template).replace(b"{message}", message)
    said, parts = decoded(message), template.split("{message}")
    marks = (b"\1" * len(said)).join(bytes(len(part)) for part in parts)
    return tokenizer.encode_marked(said.join(parts), marks)


def _runs(text: str, user: bytes) -> Iterator[tuple[str, bool]]:
    """The parts that a user wrote and those between them, in order."""
    at = 0
    for run in re.finditer(b"\1+|[^\1]+", user):
        yield text[at : run.end()], run.group()[0] == 1
        at = run.end()


def decoded(text: str | bytes) -> str:
    """Text as a string. Raises `TextError` where it is not UTF-8."""
    if isinstance(text, str):
        utf8(text)
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"the text is not UTF-8 (byte {error.start} is 0x{text[error.start]:02x})", "convert it to UTF-8 first"
        ) from None


def checked_ids(tokens: Sequence[int]) -> list[int]:
    """Ids as whole numbers. Raises `InputError` for anything else, and for negative ones."""
    try:
        ids = [int(token.__index__()) for token in tokens]
    except (TypeError, AttributeError):
        raise InputError("token ids are not whole numbers", "pass a list of ids") from None
    if ids and min(ids) < 0:
        raise InputError(f"token id {min(ids)} is negative", "pass ids from 0")
    return ids


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises `TextError` for half a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text has a character at {error.start} that UTF-8 cannot express (U+{ord(text[error.start]):04X})",
            "remove it",
        ) from None
