"""Shapes worth having: `tiny` and `small` for one CPU, and the sizes the paper trains.

The paper names 170M, 340M, 400M and 760M parameters and does not say how they are shaped. Here depth and width
follow common transformers of that size (width 768 to 1536, heads of 64 channels), the vocabulary is 32,000 tokens,
embeddings are untied, and the feed-forward width is solved for, so that every variant lands on the name although
the mixers differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from titans_core.config import MemoryConfig, TitansConfig, Variant
from titans_core.errors import ConfigError

FFN_STEP = 32  # feed-forward widths are multiples of this, for the matmul kernels' sake


@dataclass(frozen=True)
class Preset:
    """A shape; `parameters` is the size to land on, None to take `ffn_hidden` as it is."""

    dim: int
    layers: int
    heads: int
    memory_heads: int
    chunk: int
    window: int
    persistent_tokens: int
    vocab_size: int
    ffn_hidden: int = 0
    parameters: int | None = None


PRESETS: dict[str, Preset] = {
    "tiny": Preset(128, 2, 4, 2, 32, 32, 4, 256, ffn_hidden=256),
    "small": Preset(384, 6, 6, 6, 64, 128, 8, 256, ffn_hidden=1024),
    "170m": Preset(768, 12, 12, 12, 64, 512, 16, 32_000, parameters=170_000_000),
    "340m": Preset(1024, 16, 16, 16, 64, 512, 16, 32_000, parameters=340_000_000),
    "400m": Preset(1024, 20, 16, 16, 64, 512, 16, 32_000, parameters=400_000_000),
    "760m": Preset(1536, 16, 24, 24, 64, 512, 16, 32_000, parameters=760_000_000),
}


def preset(name: str, *, variant: Variant = "mac", **changes: Any) -> TitansConfig:
    """The configuration of preset `name` for a variant.

    Args:
        name: one of `PRESETS`.
        variant: the block.
        changes: fields of `TitansConfig` to set instead, such as `vocab_size` or `memory`.

    Raises:
        ConfigError: an unknown preset, or changes that do not fit together.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}", f"choose one of {', '.join(PRESETS)}")
    shape = PRESETS[name]
    config = TitansConfig(
        variant=variant,
        dim=shape.dim,
        layers=shape.layers,
        heads=shape.heads,
        ffn_hidden=shape.ffn_hidden or FFN_STEP,
        chunk=shape.chunk,
        window=shape.window,
        persistent_tokens=0 if variant == "lmm" else shape.persistent_tokens,
        vocab_size=shape.vocab_size,
        memory=MemoryConfig(heads=shape.memory_heads),
    )
    if shape.parameters is not None:
        config = replace(config, ffn_hidden=_solved_ffn(config, shape.parameters))
    try:
        return replace(config, **changes)
    except TypeError as error:
        raise ConfigError(str(error), "the fields are those of TitansConfig") from error


def _solved_ffn(config: TitansConfig, parameters: int) -> int:
    """The feed-forward width, a multiple of `FFN_STEP`, that brings the model closest to `parameters`."""
    from titans_core.model import TitansModel  # a model needs no memory on the meta device

    with torch.device("meta"):
        narrow = TitansModel(config).num_parameters()
        wide = TitansModel(replace(config, ffn_hidden=config.ffn_hidden + FFN_STEP)).num_parameters()
    return config.ffn_hidden + FFN_STEP * max(0, round((parameters - narrow) / (wide - narrow)))
