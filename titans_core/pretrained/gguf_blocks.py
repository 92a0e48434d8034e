"""GGUF's number formats: bytes of whole blocks to float32, exactly as llama.cpp and its `gguf` package read them.

A block holds 32 or 256 consecutive numbers of a row: small integers, with a scale and sometimes a lowest value in
float16. Knows the formats that models in use are stored in. Does not know files (`gguf`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """One format: `numbers` of a row in `size` bytes; `read` turns blocks `[n, size]` into `[n, numbers]`."""

    name: str
    numbers: int
    size: int
    read: Callable[[Bytes], Floats]


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block, `[n, 1]`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """`[n, m]` bytes as `[n, 2 m]`: all low halves, then all high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """The 32 bits of 4 bytes as 16s: `[n, 32]`, lowest bit first."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).astype(np.int8) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    numbers = (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).astype(np.float32)
    return _half(blocks, 0) * numbers + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight lowest values of 6 bits each, out of 12 bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 0x0F) | ((first >> 6) << 4)], axis=1)
    lowest = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, lowest


def _k_quant(blocks: Bytes, numbers: Bytes) -> Floats:
    """Eight parts of 32 `numbers` `[n, 8, 32]`, each with a scale and a lowest value."""
    scales, lowest = _six_bits(blocks[:, 4:16])
    step = (_half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    low = (_half(blocks, 2) * lowest.astype(np.float32))[:, :, None]
    return (step * numbers.astype(np.float32) - low).reshape(len(blocks), 256)


def _by_halves(packed: Bytes) -> Bytes:
    """128 bytes as 8 parts of 32: of every 32 bytes the low halves, then the high ones."""
    four = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([four & 0x0F, four >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> Floats:
    return _k_quant(blocks, _by_halves(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    part = np.arange(8, dtype=np.uint8)[:, None]
    fifth = ((blocks[:, None, 16:48] >> part) & np.uint8(1)) << np.uint8(4)
    return _k_quant(blocks, _by_halves(blocks[:, 48:]) | fifth)


def _q6_k(blocks: Bytes) -> Floats:
    count = len(blocks)
    low = blocks[:, :128].reshape(count, 2, 1, 64)
    low = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(count, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(count, 2, 1, 32) >> shift) & 3
    numbers = (low | (high << 4)).astype(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    step = (_half(blocks, 208) * scales)[:, :, None]
    return (step * numbers.reshape(count, 16, 16).astype(np.float32)).reshape(count, 256)


BLOCK_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4, _f32),
    1: BlockType("F16", 1, 2, _f16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    30: BlockType("BF16", 1, 2, _bf16),
}
# Formats that exist and are refused by name.
OTHER_TYPES: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def dequantised(kind: BlockType, rows: Bytes) -> Floats:
    """Rows of whole blocks `[n, bytes]` as numbers `[n, m]`."""
    count = rows.shape[0]
    blocks = rows.reshape(-1, kind.size)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale that is not finite is found where weights are checked
        numbers: Any = kind.read(blocks)
    return np.ascontiguousarray(numbers, dtype=np.float32).reshape(count, -1)
