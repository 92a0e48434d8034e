"""GGUF files: metadata and tensors, held against the size of the file before anything of them is read.

Knows the container. Does not know what the metadata means (`gguf_model`) or how blocks are laid out (`gguf_blocks`).
Files may come from strangers: counts, lengths and offsets are checked first, and nothing is mapped into memory, so that
a file that shrinks while it is read is an error and not a crash.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from titans_core.errors import CheckpointError
from titans_core.pretrained.gguf_blocks import BLOCK_TYPES, OTHER_TYPES, BlockType, Bytes, Floats, dequantised
from titans_format.files import check_regular

Value: TypeAlias = "bool | int | float | str | list[bool] | list[int] | list[float] | list[str]"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES, MOST_TENSORS = 2**16, 2**16
MOST_NAME = 2**16  # bytes of a key or a tensor's name
MOST_HEAD = 2**27  # bytes of all metadata together, which become Python objects
MOST_ITEMS = 2**22  # of one list
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Stored:
    """One tensor: `rows` rows of `width` numbers, `size` bytes from `offset` of the file on."""

    shape: tuple[int, ...]  # as PyTorch has it: the axis that lies together comes last
    kind: BlockType
    offset: int
    size: int


class GgufFile:
    """An opened file: `metadata` by key, `tensors` by name.

    Raises:
        CheckpointError: it is missing, not a GGUF file, damaged, or holds what is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            with path.open("rb") as file:
                reader = _Reader(path, file, path.stat().st_size)
                self.metadata, self.tensors = _parsed(reader)
        except OSError as error:
            raise CheckpointError(f"cannot read {path} ({error.strerror})", "check the path") from error

    def rows(self, name: str) -> tuple[BlockType, Bytes]:
        """A tensor as it is stored: its format and its rows `[n, bytes]`; a vector is one row."""
        stored = self.tensors[name]
        try:
            data = np.fromfile(self.path, np.uint8, stored.size, offset=stored.offset)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path} ({error.strerror})", "check the file") from error
        if data.size != stored.size:
            raise CheckpointError(f"{self.path} ends inside tensor {name!r}", "download it again")
        return stored.kind, data.reshape(-1, stored.size // max(1, _rows(stored.shape)))

    def numbers(self, name: str) -> Floats:
        """A tensor as float32, in its shape."""
        return dequantised(*self.rows(name)).reshape(self.tensors[name].shape)


def _rows(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape[:-1]:
        count *= size
    return count


class _Reader:
    """A file that gives no more than it has."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}", "download it again")

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.damaged(f"{what} needs {count:,} bytes, and {max(0, self.left):,} are left")
        if self.file.tell() + count > MOST_HEAD:
            raise self.damaged(f"{what} ends after {MOST_HEAD:,} bytes, which no metadata does")
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged(f"it ends inside {what}")
        return data

    def number(self, code: str, what: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]
        return value

    def string(self, what: str, most: int | None = None) -> str:
        length = self.number("Q", what)
        if most is not None and length > most:
            raise self.damaged(f"{what} has {length:,} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def value(self, kind: int, what: str) -> Value:
        if kind == _STRING:
            return self.string(what)
        if kind in _SCALARS:
            code = _SCALARS[kind]
            scalar: Value = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]
            return scalar
        if kind != _ARRAY:
            raise self.damaged(f"{what} is of type {kind}, which does not exist")
        inner, count = self.number("I", what), self.number("Q", what)
        if count > MOST_ITEMS:
            raise self.damaged(f"{what} is a list of {count:,}")
        if inner == _STRING:
            if count * 8 > self.left:
                raise self.damaged(f"{what} has {count:,} strings in {self.left:,} bytes")
            return [self.string(what) for _ in range(count)]
        if inner not in _SCALARS:
            raise self.damaged(f"{what} is a list of type {inner}, which is not read")
        width = struct.calcsize(f"<{_SCALARS[inner]}")
        data = self.take(count * width, what) if count * width <= self.left else self.take(self.left + 1, what)
        numbers: list[int] = list(struct.unpack(f"<{count}{_SCALARS[inner]}", data))
        return numbers


def _parsed(reader: _Reader) -> tuple[dict[str, Value], dict[str, Stored]]:
    if reader.size < 24 or reader.take(4, "the magic") != MAGIC:
        raise CheckpointError(f"{reader.path} is not a GGUF file", "give a .gguf file or a Hugging Face folder")
    version = reader.number("I", "the version")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{reader.path} has GGUF version {version}",
            "convert it again with a current llama.cpp, little-endian",
        )
    tensors, entries = reader.number("Q", "the tensor count"), reader.number("Q", "the entry count")
    if tensors > MOST_TENSORS or entries > MOST_ENTRIES:
        raise reader.damaged(f"it announces {tensors:,} tensors and {entries:,} entries")
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = reader.string("a key", MOST_NAME)
        if key in metadata:
            raise reader.damaged(f"entry {key!r} is there twice")
        metadata[key] = reader.value(reader.number("I", f"the type of {key!r}"), f"entry {key!r}")
    infos = [_info(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise reader.damaged(f"general.alignment is {alignment!r}")
    start = -(-reader.file.tell() // alignment) * alignment
    return metadata, _placed(reader, infos, start)


def _info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, format and offset of a tensor."""
    name = reader.string("a tensor's name", MOST_NAME)
    what = f"tensor {name!r}"
    axes = reader.number("I", what)
    if not 1 <= axes <= 4:
        raise reader.damaged(f"{what} has {axes} axes")
    shape = tuple(reader.number("Q", what) for _ in range(axes))[::-1]
    return name, shape, reader.number("I", what), reader.number("Q", what)


def _placed(reader: _Reader, infos: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, Stored]:
    placed: dict[str, Stored] = {}
    for name, shape, number, offset in infos:
        if name in placed:
            raise reader.damaged(f"tensor {name!r} is there twice")
        kind = BLOCK_TYPES.get(number)
        if kind is None:
            called = OTHER_TYPES.get(number, f"number {number}")
            known = ", ".join(each.name for each in BLOCK_TYPES.values())
            raise CheckpointError(
                f"tensor {name!r} has type {called}, which is not supported",
                f"convert the model to one of {known}",
                where=reader.path,
            )
        if shape[-1] % kind.numbers or not all(shape):
            raise reader.damaged(f"tensor {name!r} of shape {list(shape)} has no whole blocks of {kind.name}")
        size = _rows(shape) * (shape[-1] // kind.numbers) * kind.size
        if start + offset + size > reader.size:
            raise reader.damaged(f"tensor {name!r} lies outside the file")
        placed[name] = Stored(shape, kind, start + offset, size)
    _check_apart(reader, placed)
    return placed


def _check_apart(reader: _Reader, placed: dict[str, Stored]) -> None:
    """No two tensors share bytes, so that all of them together are no larger than the file."""
    end, before = 0, ""
    for name, stored in sorted(placed.items(), key=lambda item: item[1].offset):
        if stored.offset < end:
            raise reader.damaged(f"tensor {name!r} begins inside tensor {before!r}")
        end, before = stored.offset + stored.size, name


def text(metadata: Mapping[str, Value], key: str) -> str | None:
    """An entry that is a string, or None where there is none."""
    value = metadata.get(key)
    return value if isinstance(value, str) else None
