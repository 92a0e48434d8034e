"""Arguments as users pass them in, checked once: whatever they are, what is raised is an `InputError`.

Knows Python's plain values and paths. Does not know models; ids and vectors are `inputs`' business.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from titans_runtime.errors import InputError

Value = TypeVar("Value")
_SHOWN = 60  # characters of a value that a message shows


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is, and also where its own `repr` fails."""
    try:
        text = repr(value)
    except Exception:  # a whole number of 5,000 digits, or an object of the caller's
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def whole(name: str, value: object, low: int, advice: str, high: int | None = None) -> int:
    """A whole number from `low` to `high`. Raises `InputError`, which ends in `advice`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except Exception:  # also what an object of the caller's raises
        raise InputError(f"{name} is {shown(value)}, which is not a whole number", advice) from None
    if number < low or (high is not None and number > high):
        raise InputError(f"{name} is {shown(number)}", advice)
    return number


def flag(name: str, value: object) -> bool:
    """Whether a value is true. Raises `InputError` for what is neither, such as an array."""
    try:
        return bool(value)
    except Exception:
        raise InputError(f"{name} is {shown(value)}", "use True or False") from None


def label(name: object) -> str:
    """What something is called: any value, as text."""
    return name if isinstance(name, str) else shown(name)


def instance(name: str, value: object, kind: type[Value], advice: str) -> Value:
    """A value of this type. Raises `InputError`, which ends in `advice`."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is {shown(value)}", advice)
    return value


def function(name: str, value: Value) -> Value:
    """A value that can be called. Raises `InputError`."""
    if not callable(value):
        raise InputError(f"{name} is {shown(value)}", "pass a function")
    return value


def sequence(name: str, value: Sequence[Value], advice: str) -> list[Value]:
    """The elements of a list, an array or the like. Raises `InputError`, which ends in `advice`."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return list(value)
    except Exception:
        raise InputError(f"{name} is {shown(value)}", advice) from None


def checked_bytes(name: str, value: object) -> bytes:
    """Bytes, whichever type holds them. Raises `InputError`."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InputError(f"{name} is {shown(value)}", "pass bytes")
    return bytes(value)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a `Path`.

    Raises:
        InputError: it is neither a string nor a path, is empty, or has characters that no file name has.
    """
    try:
        name = os.fspath(path)
        if not isinstance(name, str) or not name or b"\0" in os.fsencode(name):
            raise ValueError
    except Exception:
        raise InputError(f"{shown(path)} cannot name a file", "pass a string or a pathlib.Path") from None
    return Path(name)


def is_unicode(path: Path) -> bool:
    """Whether a path can be said in UTF-8, as the libraries need it that open files by themselves."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
