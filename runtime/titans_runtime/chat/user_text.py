"""Text that knows which of its characters a user wrote, whatever a template does to it.

A template writes control tokens, and a user must not: `<|im_end|>` in a message is ten characters. Once both are in one
string nobody can tell them apart, so a user's string carries a mark for each of its characters, and so does every
string that is made of it. Strings without marks are the template's.

Knows strings and marks. Does not know templates or tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

_USER, _TEMPLATE = b"\1", b"\0"
Text = TypeVar("Text", bound=str)


class UserText(str):
    """A string with a mark for each character.

    Attributes:
        user: as many bytes as there are characters, 1 for each that a user wrote and 0 for the others.
    """

    user: bytes

    def __new__(cls, text: str, user: bytes | None = None) -> UserText:
        """The text, all of it a user's where no marks are given."""
        made = super().__new__(cls, text)
        made.user = _USER * len(text) if user is None else user
        return made

    def __str__(self) -> str:
        """Itself: `str(text)` keeps the marks."""
        return self


def marks(text: str) -> bytes:
    """The mark of each character; zeros for a string without marks."""
    return text.user if isinstance(text, UserText) else _TEMPLATE * len(text)


def plain(text: str) -> str:
    """The same characters without marks."""
    return str.__str__(text)


def with_marks(text: str, user: bytes) -> str:
    """The text with these marks; a string without marks where none is set."""
    return UserText(text, user) if 1 in user else text


def piece(text: str, begin: int, end: int) -> str:
    """`text[begin:end]`, marks included; `0 <= begin <= end <= len(text)`."""
    return with_marks(str.__getitem__(text, slice(begin, end)), marks(text)[begin:end])


def sliced(text: str, part: slice) -> str:
    """`text[part]`, marks included, for any slice."""
    return with_marks(str.__getitem__(text, part), marks(text)[part])


def joined(pieces: Iterable[str]) -> str:
    """All pieces, one behind the other, marks included."""
    pieces = list(pieces)
    text = "".join(pieces)
    if not any(isinstance(each, UserText) for each in pieces):
        return text
    return with_marks(text, b"".join(map(marks, pieces)))


def characters(text: str) -> list[str]:
    """Each character as a string of its own."""
    if not isinstance(text, UserText):
        return list(text)
    return [UserText(letter) if mark else letter for letter, mark in zip(str.__str__(text), text.user, strict=True)]


def marked(value: object) -> object:
    """A user's data with every string in it marked, keys included. Lists, tuples and mappings are copied."""
    if isinstance(value, str):
        return UserText(value)
    if isinstance(value, Mapping):
        return {marked(key): marked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [marked(each) for each in value]
    return value


def from_user(value: object) -> bool:
    """Whether a value has a user's text in it, however deep. It contains no cycles."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, UserText):
            return True
        if isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
    return False


def like(made: Text, *sources: object) -> str:
    """A string that was made from the sources in some way: a user's, all of it, if any of them has a user's text."""
    return UserText(made) if any(map(from_user, sources)) else made
