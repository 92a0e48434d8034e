"""Matrices in blocks of 32 numbers of 4 or 8 bits that share a scale, and what arithmetic with them is.

A number is `(code - middle) * scale`, the middle 8 or 128; where a block has a least number of its own, as GGUF's Q4_1
has, it is `code * scale + least`. Codes lie as ONNX Runtime's MatMulNBits reads them, blocks along the axis that a
product sums over, two codes of 4 bits in a byte, the first one low. Scales are float16, so 4 bits are 4.5 a number
(5 with least numbers) and 8 bits are 8.5. GGUF's Q4_0, Q4_1 and Q8_0 are the same numbers in another order of codes,
so nothing of them is rounded a second time.

A scale is searched where there are only 16 codes: the block's largest number becomes code 0 or less, and the scale with
the least squared error is taken. On normally distributed numbers that leaves an error of 8.1 % of their norm, against
9.7 % for the plain largest number over 7; least numbers would leave 7.2 %, with half a bit more and products half as
fast again. Does not know ONNX or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32  # numbers per scale: GGUF's, and what the kernels of `native/blocks.cpp` know
MIDDLE = {4: 8, 8: 128}
STEPS = 127  # of 8 bits on each side of 0, for weights and for activations
# Shares of the scale that gives the largest number the last code; 8/7 is what gives it the last but one.
SEARCHED = (*(0.75 + 0.025 * step for step in range(15)), 8 / 7)
# GGUF's types by their numbers in its files: bits, and whether a block has a least number
GGUF_KINDS: dict[str, tuple[Literal[4, 8], bool]] = {"Q4_0": (4, False), "Q4_1": (4, True), "Q8_0": (8, False)}


@dataclass(frozen=True)
class Blocks:
    """A matrix `[n, k]` in blocks along k.

    Attributes:
        bits: 4 or 8.
        width: k; the last block is filled up with zeros.
        codes: uint8 `[n, blocks, 32 * bits / 8]`.
        scales: float16 `[n, blocks]`.
        least: float16 `[n, blocks]`, or None where the middle code means 0.
    """

    bits: Literal[4, 8]
    width: int
    codes: Tensor
    scales: Tensor
    least: Tensor | None = None

    def numbers(self) -> Tensor:
        """The matrix, float32 `[n, k]`."""
        scales = self.scales.float()[..., None]
        codes = unpacked(self.codes, self.bits).float()
        numbers = (
            (codes - MIDDLE[self.bits]) * scales
            if self.least is None
            else codes * scales + self.least.float()[..., None]
        )
        return numbers.flatten(1)[:, : self.width].contiguous()

    def centres(self) -> Tensor | None:
        """What the middle code means, float32 `[n, blocks]`, where that is not 0."""
        return None if self.least is None else self.least.float() + MIDDLE[self.bits] * self.scales.float()


def quantised(weight: Tensor, axis: int, bits: Literal[4, 8]) -> Blocks:
    """A matrix cut into blocks along `axis`, the other axis first."""
    rows = weight.detach().float()
    rows = rows if axis == 1 else rows.T
    count, width = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -width % BLOCK)).reshape(count, -1, BLOCK)
    scales = _searched(padded) if bits == 4 else _raised(padded.abs().amax(-1) / STEPS)
    codes = _codes(padded, scales, bits)
    return Blocks(bits, width, packed(codes, bits), scales)


def _raised(scales: Tensor) -> Tensor:
    """float16 numbers that are no smaller: a scale rounded down would cut off the block's largest number."""
    half = scales.half()
    return torch.where(half.float() < scales, torch.nextafter(half, half.new_tensor(torch.inf)), half)


def _codes(padded: Tensor, scales: Tensor, bits: int) -> Tensor:
    wide = scales.float()[..., None]
    middle = MIDDLE[bits]
    least = -middle if bits == 4 else -STEPS
    steps = torch.round(padded / torch.where(wide == 0, 1.0, wide)).clamp(least, middle - 1)
    return (steps + middle).to(torch.uint8)


def _searched(padded: Tensor) -> Tensor:
    """Per block the scale of 4 bits with the least squared error; of the sign that gives the largest number code 0."""
    largest = padded.gather(-1, padded.abs().argmax(-1, keepdim=True))[..., 0]
    best = torch.full_like(largest, torch.inf)
    found = torch.zeros_like(largest, dtype=torch.float16)
    for share in SEARCHED:
        scales = (largest * (-share / MIDDLE[4])).half()
        numbers = (_codes(padded, scales, 4).float() - MIDDLE[4]) * scales.float()[..., None]
        error = (numbers - padded).square().sum(-1)
        found = torch.where(error < best, scales, found)
        best = torch.minimum(best, error)
    return found


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes `[..., 32]`, one a byte, as they are stored."""
    return codes.contiguous() if bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)


def unpacked(codes: Tensor, bits: int) -> Tensor:
    """Stored codes, one a byte `[..., 32]`."""
    return codes if bits == 8 else torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)


def bits_of(codes: Sequence[int]) -> Literal[4, 8]:
    """The bits of codes with this shape."""
    return 8 if codes[-1] == BLOCK else 4


def from_gguf(kind: str, data: NDArray[np.uint8], count: int, width: int) -> Blocks:
    """A matrix `[count, width]` as GGUF stores it, with the same numbers.

    Args:
        kind: Q4_0, Q4_1 or Q8_0.
        data: the tensor's bytes.
        count: rows, of which each is whole blocks.
        width: numbers of a row.

    Raises:
        ValueError: another kind, or another number of bytes than such a matrix has.
    """
    if kind not in GGUF_KINDS:
        raise ValueError(f"{kind} is not a type that blocks can hold; they hold {', '.join(GGUF_KINDS)}")
    bits, has_least = GGUF_KINDS[kind]
    head = 2 + 2 * has_least
    size = head + BLOCK * bits // 8
    if width % BLOCK or data.size != count * (width // BLOCK) * size:
        raise ValueError(f"{data.size} bytes are not a {kind} matrix of {count} rows of {width} numbers")
    blocks = np.ascontiguousarray(data).reshape(count, width // BLOCK, size)
    halves = np.ascontiguousarray(blocks[..., :head]).view(np.float16)
    raw = torch.from_numpy(np.ascontiguousarray(blocks[..., head:]))
    # Of 8 bits, signed bytes move up, and the sum wraps around; of 4, numbers i and i + 16 share a byte there.
    codes = raw + MIDDLE[8] if bits == 8 else packed(torch.cat([raw & 15, raw >> 4], dim=-1), 4)
    scales = torch.from_numpy(halves[..., 0].copy())
    least = torch.from_numpy(halves[..., 1].copy()) if has_least else None
    return Blocks(bits, width, codes, scales, least)


def stacked(parts: Sequence[Blocks]) -> Blocks:
    """Matrices of one width on top of one another, such as the projections of queries, keys and values.

    Raises:
        ValueError: they have different bits or widths, or only some have least numbers.
    """
    first = parts[0]
    if any(
        (part.bits, part.width, part.least is None) != (first.bits, first.width, first.least is None) for part in parts
    ):
        raise ValueError("matrices of different kinds or widths cannot be stacked")
    least = None if first.least is None else torch.cat([part.least for part in parts if part.least is not None])
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    return Blocks(first.bits, first.width, codes, scales, least)


def rounded(weight: Tensor, axis: int, bits: Literal[4, 8]) -> Tensor:
    """What `quantised` stores, as numbers in the shape of `weight`."""
    rows = quantised(weight, axis, bits).numbers()
    return rows if axis == 1 else rows.T.contiguous()


def rounded_rows(x: Tensor) -> Tensor:
    """Activations `[..., k]` as the integer kernels take them: whole steps, 127 of them up to a block's largest."""
    blocks = in_blocks(x)
    steps = blocks.abs().amax(-1, keepdim=True) / STEPS
    rounded: Tensor = torch.round(blocks / torch.where(steps > 0, steps, 1.0)) * steps
    return rounded.flatten(-2)[..., : x.shape[-1]]


def in_blocks(x: Tensor) -> Tensor:
    """`[..., k]` as `[..., blocks, 32]`, filled up with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK))
    return padded.reshape(*x.shape[:-1], -1, BLOCK)


def product(x: Tensor, blocks: Blocks) -> Tensor:
    """`[..., k]` times the transposed matrix, `[..., n]`, as the kernels compute it.

    Activations are rounded where they meet codes, and not where they meet what the middle code means.
    """
    numbers = blocks.numbers()
    centres = blocks.centres()
    if centres is None:
        return rounded_rows(x) @ numbers.T
    each = centres.repeat_interleave(BLOCK, dim=1)[:, : blocks.width]
    result: Tensor = rounded_rows(x) @ (numbers - each).T + in_blocks(x).sum(-1) @ centres.T
    return result
