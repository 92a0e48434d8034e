"""A safetensors file mapped into memory once: names to arrays that are windows onto the file.

Knows the file's layout (8 bytes of header length, a JSON header, raw little-endian data) and distrusts it.
Does not know what the tensors are for. Nothing is copied: a page is read when something touches it, and every
user of the mapping shares that page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from titans_runtime.arrays import Array
from titans_runtime.errors import BundleError
from titans_runtime.jsonread import Node, parse

# safetensors dtype -> numpy storage. NumPy has no bfloat16; its bits travel as uint16.
_STORAGE = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# The safetensors library refuses larger headers; so do we, before allocating anything.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class MappedTensor:
    """One tensor: a read-only window onto the file, and its dtype as safetensors spells it."""

    array: Array
    dtype: str


def map_tensors(path: Path) -> dict[str, MappedTensor]:
    """Map every tensor of a safetensors file.

    Raises:
        BundleError: the file cannot be read, is truncated, or its header does not describe it.
    """
    try:
        data = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path.name} cannot be mapped ({error}); copy the bundle again") from None
    header, start = _header(data, path.name)
    return {
        name: _tensor(header.field(name), data, start, path.name) for name in header.fields() if name != "__metadata__"
    }


def _header(data: Array, name: str) -> tuple[Node, int]:
    """The parsed header and the offset at which the tensors' data begins."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise BundleError(f"{name} is not a complete safetensors file ({len(data)} bytes); copy the bundle again")
    try:
        text = data[8 : 8 + length].tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{name} has a header that is not UTF-8; copy the bundle again") from None
    return parse(text, name), 8 + length


def _tensor(node: Node, data: Array, start: int, name: str) -> MappedTensor:
    dtype = node.field("dtype").choice(tuple(_STORAGE))
    shape = tuple(item.integer(0) for item in node.field("shape").items())
    offsets = [item.integer(0) for item in node.field("data_offsets").items()]
    item = np.dtype(_STORAGE[dtype])
    size = math.prod(shape) * item.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size or start + offsets[1] > len(data):
        raise BundleError(f"{name}: {node.path} does not lie within the file; copy the bundle again")
    window = data[start + offsets[0] : start + offsets[1]]
    return MappedTensor(window.view(item).reshape(shape), dtype)
