"""A safetensors file in memory: names to arrays that are windows onto its bytes.

Knows the file's layout (8 bytes of header length, a JSON header, raw little-endian data) and distrusts it: what the
safetensors library refuses is refused here too, such as tensors that overlap, leave holes or appear twice. Does not
know what the tensors are for. Nothing is copied: of a file that is mapped, a page is read when something touches it,
and every user of the mapping shares that page.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from titans_format.document import Count, JsonObject, JsonValue, parse, read, refuse
from titans_format.dtypes import BY_SAFETENSORS
from titans_format.errors import BundleError
from titans_format.files import open_regular, shown
from titans_format.specs import METADATA, MOST_AXES
from titans_runtime.arrays import Array
from titans_runtime.errors import os_remedy

MAX_HEADER_BYTES = 16 * 2**20  # far above any model's; the largest that we export has 100 KB


@dataclass(frozen=True)
class MappedTensor:
    """One tensor: a read-only window onto the file, its dtype as safetensors spells it, and where its bytes begin."""

    array: Array
    dtype: str
    offset: int


def map_tensors(path: str | os.PathLike[str]) -> dict[str, MappedTensor]:
    """Every tensor of a safetensors file, mapped. Raises `BundleError`."""
    name = Path(path).name
    try:
        handle = open_regular(path)
    except OSError as error:
        raise BundleError(shown(Path(path), error), os_remedy(error)) from None
    try:
        return read_tensors(map_file(handle, name), name)
    finally:
        os.close(handle)


def map_file(handle: int, name: str) -> Array:
    """The bytes of an open file, mapped. Raises `BundleError`."""
    try:
        return np.frombuffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ), np.uint8)
    except ValueError:  # an empty file cannot be mapped
        return np.zeros(0, np.uint8)
    except OSError as error:
        raise BundleError(f"{name} cannot be mapped ({error.strerror})", os_remedy(error)) from None


def read_tensors(data: Array, name: str) -> dict[str, MappedTensor]:
    """Every tensor of a safetensors file.

    Args:
        data: its bytes.
        name: what to call it in errors.

    Raises:
        BundleError: the file is truncated, or its header does not describe it.
    """
    header, start = _header(data, name)
    found = {key: _tensor(key, entry, data, start, name) for key, entry in header.items() if key != METADATA}
    end = start
    for key, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].array.nbytes)):
        if tensor.offset != end:
            raise BundleError(
                f"{key} overlaps another tensor or leaves a hole before it", "copy the file again", where=name
            )
        end += tensor.array.nbytes
    if end != len(data):
        raise BundleError(f"{name} has {len(data) - end} bytes that belong to no tensor", "copy the file again")
    return found


def _header(data: Array, name: str) -> tuple[JsonObject, int]:
    """The parsed header and the offset at which the tensors' data begins."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise BundleError(f"{name} is not a complete safetensors file ({len(data)} bytes)", "copy the bundle again")
    try:
        text = data[8 : 8 + length].tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{name} has a header that is not UTF-8", "copy the bundle again") from None
    return read(parse(text, name), dict[str, Any], name), 8 + length


class _Entry(Struct):
    """One tensor in a header."""

    dtype: str
    shape: Annotated[tuple[Count, ...], Meta(max_length=MOST_AXES)]
    data_offsets: tuple[Count, Count]


def _tensor(key: str, value: JsonValue, data: Array, start: int, name: str) -> MappedTensor:
    entry = read(value, _Entry, name, key)
    kind = BY_SAFETENSORS.get(entry.dtype)
    if kind is None:
        refuse(name, f"{key}.dtype", f"one of {', '.join(BY_SAFETENSORS)}", entry.dtype)
    begin, end = entry.data_offsets
    if end - begin != math.prod(entry.shape) * kind.bytes or start + end > len(data):
        raise BundleError(f"{key} does not lie within the file", "copy the bundle again", where=name)
    window = data[start + begin : start + end]
    return MappedTensor(window.view(kind.storage).reshape(entry.shape), kind.safetensors, start + begin)
