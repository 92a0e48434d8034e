"""Protocol Buffers' wire format, read without trust: a message becomes a flat list of its fields.

Knows varints, lengths and the four wire types that are still in use. Does not know any message (`onnx_reader` does).
Nothing is recursive and nothing is copied: a field with a length is a pair of places in the same bytes, which whoever
asks may read in turn. So neither nesting nor lengths can be made to cost more than the bytes themselves.
"""

from __future__ import annotations

from typing import TypeAlias

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 2_000_000  # of one file; the largest bundle that we export has 60,000
_VARINT_BYTES = 10  # 64 bits, seven in a byte

# Number and wire type as they are written, `number << 3 | type`; then a varint's number and 0, or where content begins
# and ends.
Field: TypeAlias = "tuple[int, int, int]"


class WireError(ValueError):
    """Bytes that are not a message."""


class Reader:
    """The bytes of one file, and how many fields may still be read of them."""

    def __init__(self, data: bytes, most: int = MOST_FIELDS) -> None:
        self.data = data
        self.left = most

    def fields(self, start: int, end: int) -> list[Field]:
        """The fields of the message between two places, in order. Raises `WireError`."""
        data, at, most = self.data, start, self.left
        found: list[Field] = []
        try:
            while at < end:
                tag = data[at]
                at += 1
                if tag > 0x7F:
                    tag, at = varint(data, at - 1)
                kind = tag & 7
                if kind == LENGTH:
                    size = data[at]
                    at += 1
                    if size > 0x7F:
                        size, at = varint(data, at - 1)
                    begin = at
                    at += size
                    found.append((tag, begin, at))
                elif kind == VARINT:
                    number = data[at]
                    at += 1
                    if number > 0x7F:
                        number, at = varint(data, at - 1)
                    found.append((tag, number, 0))
                elif kind in (FIXED32, FIXED64):
                    begin = at
                    at += 4 if kind == FIXED32 else 8
                    found.append((tag, begin, at))
                else:
                    raise WireError(f"a field at byte {at} is of wire type {kind}, which is not in use")
                if len(found) > most:
                    raise WireError("it has too many parts")
        except IndexError:
            raise WireError("it ends in the middle of a field") from None
        if at != end:
            raise WireError(f"a field goes beyond its message, which ends at byte {end}")
        self.took(len(found))
        return found

    def took(self, count: int) -> None:
        """Count fields that were read. Raises `WireError` for more than there may be."""
        self.left -= count
        if self.left < 0:
            raise WireError("it has too many parts")

    def varints(self, start: int, end: int) -> list[int]:
        """The numbers of a packed field. Raises `WireError`."""
        found: list[int] = []
        at = start
        while at < end:
            number, at = varint(self.data, at)
            found.append(number)
            if len(found) > self.left:
                raise WireError("it has too many parts")
        if at != end:
            raise WireError(f"a number goes beyond its field, which ends at byte {end}")
        self.took(len(found))
        return found

    def text(self, start: int, end: int) -> str:
        """A field's content as text. Raises `WireError`."""
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise WireError(f"the text at byte {start} is not UTF-8") from None


def signed(number: int) -> int:
    """A varint as the 64-bit integer with a sign that it stands for."""
    return number - 2**64 if number >= 2**63 else number


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    number = 0
    try:
        for shift in range(0, 7 * _VARINT_BYTES, 7):
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if number >= 2**64:
                    break
                return number, at
    except IndexError:
        raise WireError("it ends in the middle of a number") from None
    raise WireError(f"the number before byte {at} has more than 64 bits")
