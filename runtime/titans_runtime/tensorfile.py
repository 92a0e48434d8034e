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

import numpy as np

from titans_format.errors import BundleError
from titans_format.jsonread import Node, parse
from titans_format.manifest import METADATA, MOST_AXES
from titans_runtime.arrays import Array
from titans_runtime.errors import os_remedy
from titans_runtime.files import open_regular, shown

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
    found = {key: _tensor(header.field(key), data, start, name) for key in header.fields() if key != METADATA}
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


def _header(data: Array, name: str) -> tuple[Node, int]:
    """The parsed header and the offset at which the tensors' data begins."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise BundleError(f"{name} is not a complete safetensors file ({len(data)} bytes)", "copy the bundle again")
    try:
        text = data[8 : 8 + length].tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{name} has a header that is not UTF-8", "copy the bundle again") from None
    return parse(text, name), 8 + length


def _tensor(node: Node, data: Array, start: int, name: str) -> MappedTensor:
    dtype = node.field("dtype").choice(tuple(_STORAGE))
    shape = tuple(item.integer(0) for item in node.field("shape").items())
    offsets = [item.integer(0) for item in node.field("data_offsets").items()]
    item = np.dtype(_STORAGE[dtype])
    if len(shape) > MOST_AXES:
        node.field("shape").fail(f"a shape of at most {MOST_AXES} axes")
    size = math.prod(shape) * item.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size or start + offsets[1] > len(data):
        raise BundleError(f"{node.path} does not lie within the file", "copy the bundle again", where=name)
    window = data[start + offsets[0] : start + offsets[1]]
    return MappedTensor(window.view(item).reshape(shape), dtype, start + offsets[0])
