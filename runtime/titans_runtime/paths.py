"""Paths as users pass them in, checked once: what the system could not even look up is an `InputError`.

Knows what a path may be made of. Does not know what is at it.
"""

from __future__ import annotations

import os
from pathlib import Path

from titans_runtime.errors import InputError


def checked_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a `Path`.

    Raises:
        InputError: it is neither a string nor a path, is empty, or has characters that no file name has.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"the path is {type(path).__name__}; pass a string or a pathlib.Path")
    try:
        name = os.fspath(path)
        encoded = os.fsencode(name)
    except (TypeError, UnicodeEncodeError) as error:
        raise InputError(f"{path!r} cannot name a file ({error}); choose another name") from None
    if not isinstance(name, str):
        raise InputError("the path is bytes; pass a string or a pathlib.Path")
    if not name or b"\0" in encoded:
        raise InputError(f"{name!r} cannot name a file; choose another name")
    return Path(name)


def is_unicode(path: Path) -> bool:
    """Whether a path can be said in UTF-8, as the libraries need it that open files by themselves."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
