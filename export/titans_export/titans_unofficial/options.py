"""What a titans-unofficial model is, read from its constructor's arguments and the names of what is around it.

Names and defaults are those of titans-unofficial 2.0.0. Knows no parameters and no computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from titans_export.titans_pytorch.arguments import Arguments, ConfigError

Variant = Literal["mac", "mag", "mal"]
CLASSES: dict[str, Variant] = {"TitansMAC": "mac", "TitansMAG": "mag", "TitansMAL": "mal"}
_FIELDS = {"class", "args", "prefix", "embedding", "head"}
_FORM = 'write {"class": "TitansMAC", "args": {…}, "prefix": "titans.", "embedding": "embedding", "head": "head"}'


@dataclass(frozen=True)
class Options:
    """A model. The names of the fields are the constructor's where they mean the same.

    window: tokens that attention sees; of mac None for all of a chunk.
    chunk: tokens of a chunk of mac; 1 for the others.
    prefix: what the checkpoint has before the model's own names.
    embedding, head: names of the user's modules in the checkpoint, or "".
    """

    variant: Variant
    dim: int
    layers: int
    heads: int
    memory_depth: int
    persistent: int
    window: int | None
    chunk: int
    prefix: str
    embedding: str
    head: str

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.dim // self.heads


def read_options(config: object) -> Options:
    """The options of a JSON value.

    Raises:
        ConfigError: naming what is wrong.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("class"), str) or set(config) - _FIELDS:
        raise ConfigError(f"the configuration is {config!r:.200}", _FORM)
    if config["class"] not in CLASSES:
        raise ConfigError(f"class {config['class']!r} is not carried over", f"choose one of {', '.join(CLASSES)}")
    for name in ("prefix", "embedding", "head"):
        if not isinstance(config.get(name, ""), str):
            raise ConfigError(f"{name} is {config[name]!r}, expected a name", _FORM)
    if config.get("embedding") and not config.get("head"):
        raise ConfigError(
            "the configuration names an embedding and no head", "name the linear layer that makes logits as head"
        )
    variant = CLASSES[config["class"]]
    arguments = Arguments(config["class"], config.get("args", {}), source="titans-unofficial 2.0.0")
    arguments.irrelevant("dropout", "persist_memory")
    if variant == "mac":
        arguments.irrelevant("max_parallel_chunks")
    options = Options(
        variant=variant,
        dim=arguments.integer("d_model"),
        layers=arguments.integer("n_layers", least=0),
        heads=arguments.integer("n_heads"),
        memory_depth=arguments.integer("memory_depth", 2),
        persistent=arguments.integer("persistent_tokens", 16, least=0),
        window=arguments.optional_integer("window_size") if variant == "mac" else arguments.integer("window_size", 128),
        chunk=arguments.integer("chunk_size", 128) if variant == "mac" else 1,
        prefix=config.get("prefix", ""),
        embedding=config.get("embedding", ""),
        head=config.get("head", ""),
    )
    arguments.finish()
    if options.dim % options.heads:
        raise ConfigError(f"n_heads {options.heads} does not divide d_model {options.dim}", "correct the configuration")
    return options
