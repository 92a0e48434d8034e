"""A journal: the ids of everything that a stream has read and written, so that another model can read it again.

Knows how ids become bytes and a document. Does not know streams.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Sequence

from msgspec import Struct

from titans_format.document import Count, Text, parse, read
from titans_format.errors import BundleError
from titans_runtime.errors import StateError

FORMAT = "titans-journal"
_WIDTH = 4  # bytes of an id, the lowest first


class _Journal(Struct):
    format: Text
    ids: tuple[Count, ...]
    model: Text = ""


def packed(ids: Sequence[int]) -> bytes:
    """Ids as bytes, four each."""
    values = array("I", ids)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpacked(data: bytes) -> list[int]:
    """The ids of `packed`. Raises `StateError`."""
    if len(data) % _WIDTH:
        raise StateError(f"a journal of {len(data)} bytes is damaged", "restore another copy")
    values = array("I", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def length(data: bytes) -> int:
    """How many ids there are in what `packed` gave."""
    return len(data) // _WIDTH


def write_journal(ids: Sequence[int], model: str) -> bytes:
    """A journal as a JSON document, for `titans state replay`."""
    return json.dumps({"format": FORMAT, "model": model, "ids": list(ids)}).encode()


def read_journal(document: bytes, source: str) -> list[int]:
    """The ids of a journal. Raises `StateError`."""
    try:
        journal = read(parse(document.decode("utf-8"), source), _Journal, source)
    except (BundleError, UnicodeDecodeError) as error:
        raise StateError(f"{source} is not a journal ({error})", "give what the server's journal route gave") from None
    if journal.format != FORMAT:
        raise StateError(f"{source} is not a journal", "give what the server's journal route gave")
    return list(journal.ids)
