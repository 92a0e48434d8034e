"""Rotary frequencies from what a checkpoint says about them: a base, and one of the ways to stretch it.

Computed in fp32 where transformers does, so that both turn by the same angles. Knows the published scalings that leave
every frequency fixed. Does not know those that depend on the length of the stream (`dynamic`, `longrope`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_core.errors import CheckpointError

MOST = 1e30  # of a base or a factor; no model in use comes near
KNOWN = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rotary:
    """Radians per token of every channel pair, and what queries and keys are multiplied by."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0


def rotary(base: float, width: int, scaling: Mapping[str, Any], where: str) -> Rotary:
    """The rotation of heads of `width` channels.

    Args:
        base: of the geometric row of wavelengths.
        width: of a head.
        scaling: `rope_type` and its parameters, as in a `config.json`; empty for none.
        where: names the file in errors.

    Raises:
        CheckpointError: a scaling that is not known, or a parameter that is missing or of no use.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KNOWN:
        raise CheckpointError(
            f"rotary scaling {kind!r} is not supported", f"choose a model with one of {', '.join(KNOWN)}", where=where
        )
    base = _positive(base, "the rotary base", where)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = (np.float32(1) / np.power(np.float32(base), exponents)).astype(np.float32)
    if kind == "linear":
        return Rotary(_numbers(plain / np.float32(_number(scaling, "factor", where))))
    if kind == "llama3":
        return Rotary(_numbers(_llama3(plain, scaling, where)))
    if kind == "yarn":
        return _yarn(base, width, scaling, where)
    return Rotary(_numbers(plain))


def divided(rotation: Rotary, factors: NDArray[np.float32]) -> Rotary:
    """The rotation with every frequency divided by its factor, as GGUF files keep llama3's scaling."""
    return Rotary(_numbers(np.array(rotation.frequencies) / factors.astype(np.float64)), rotation.magnitude)


def _llama3(plain: NDArray[np.float32], scaling: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    """Llama 3.1: short wavelengths stay, long ones are stretched, those between are blended."""
    factor = _number(scaling, "factor", where)
    low, high = (_number(scaling, name, where) for name in ("low_freq_factor", "high_freq_factor"))
    context = _number(scaling, "original_max_position_embeddings", where)
    if high <= low:
        raise CheckpointError(
            "high_freq_factor must be above low_freq_factor",
            "restore the file",
            where=where,
        )
    wavelengths = 2 * math.pi / plain.astype(np.float64)
    share = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = (1 - share) * plain / factor + share * plain
    return blended


def _yarn(base: float, width: int, scaling: Mapping[str, Any], where: str) -> Rotary:
    """YaRN (arXiv 2309.00071): frequencies blended by how often a channel turns in the original context."""
    factor = _number(scaling, "factor", where)
    context = _number(scaling, "original_max_position_embeddings", where)
    fast, slow = (_number(scaling, name, where, other) for name, other in (("beta_fast", 32.0), ("beta_slow", 1.0)))

    def channel(turns: float) -> float:
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(fast), channel(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    spread = high - low if high != low else 0.001
    stretched = np.clip((np.arange(width // 2) - low) / spread, 0.0, 1.0)
    plain = base ** -(np.arange(0, width, 2) / width)
    blended = plain / factor * stretched + plain * (1 - stretched)
    return Rotary(_numbers(blended), _yarn_magnitude(factor, scaling, where))


def _yarn_magnitude(factor: float, scaling: Mapping[str, Any], where: str) -> float:
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor", where)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(_number(scaling, "mscale", where)) / magnitude(_number(scaling, "mscale_all_dim", where))
    return magnitude(1.0)


def _number(scaling: Mapping[str, Any], name: str, where: str, other: float | None = None) -> float:
    value = scaling.get(name)
    return _positive(other if value is None else value, f"rotary scaling's {name}", where)


def _positive(value: object, what: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
        raise CheckpointError(
            f"{what} is {value!r}, not a number above 0",
            "restore the file",
            where=where,
        )
    return float(value)


def _numbers(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
