"""What a stream leaves behind, against the keys and values that attention alone must keep.

Computed from shapes, nothing is timed. A transformer of equal width and depth keeps two vectors of `dim` numbers per
token and layer, all of them read for every further token; a Titans state has one size from the first token on.
Both fp32; a cache in half precision is half of what is given.
Knows shapes. Does not know machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from studies.speed.report import Figure, Result, Row
from titans_core.config import VARIANTS, TitansConfig, Variant
from titans_core.model import TitansModel
from titans_core.presets import preset
from titans_format.progress import ReportProgress

FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which models, after how many tokens."""

    presets: tuple[str, ...] = ("small", "170m", "760m")
    variants: tuple[Variant, ...] = VARIANTS
    tokens: int = 2_097_152


def measure(sizes: Sizes, progress: ReportProgress) -> Result:
    """Bytes of both, and their ratios."""
    figures: list[Figure] = []
    rows: list[Row] = []
    total = len(sizes.presets) * len(sizes.variants)
    for size in sizes.presets:
        for variant in sizes.variants:
            config = preset(size, variant=variant)
            state, cache = state_bytes(config), cache_bytes(config, sizes.tokens)
            figures.append(Figure(name=f"`{size}` {variant}, cache over state", unit="x", value=cache / state))
            rows.append(
                {
                    "": f"`{size}` {variant}",
                    "state of a stream, MB": round(state / 1e6, 2),
                    "cache, MB": round(cache / 1e6),
                    "equal after, tokens": math.ceil(state / cache_bytes(config, 1)),
                }
            )
            progress(len(rows), total)
    return Result(
        title="State of a stream",
        stated=[
            f"the state, whatever the stream's length, and 2 x layers x dim x {FLOAT} bytes per token of keys and"
            f" values after {sizes.tokens:,} tokens"
        ],
        figures=figures,
        tables={"Bytes": rows},
    )


def state_bytes(config: TitansConfig) -> int:
    """Bytes of every tensor in the state table, for one stream in fp32."""
    with torch.device("meta"):
        model = TitansModel(config)
    return FLOAT * sum(math.prod(spec.shape) for spec in model.state_specs())


def cache_bytes(config: TitansConfig, tokens: int) -> int:
    """Bytes of all keys and values of a transformer of that width and depth."""
    return 2 * config.layers * config.dim * FLOAT * tokens
