"""What every pretrained model offers, whatever files it came in: a configuration, weights by name, and its text side.

Weights go by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`); a reader of other files translates.
`decoder_of` builds the model. Knows which of those weights make up which parameter. Does not know any file format.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from titans_core.decoder import Decoder, DecoderConfig
from titans_core.errors import CheckpointError
from titans_core.pretrained.gguf_blocks import BlockType, Bytes
from titans_format.progress import ReportProgress


@dataclass(frozen=True)
class Texts:
    """The text side of a model, as far as its files say."""

    tokenizer_json: str | None = None
    chat_template: str | None = None  # Jinja
    bos: int | None = None  # the id that opens every stream, where the model was trained with one
    eos: tuple[int, ...] = ()
    generation: Mapping[str, float | int | bool] = field(default_factory=dict)  # temperature, top_p, top_k, ...
    special: Mapping[str, str] = field(default_factory=dict)  # what the template knows as bos_token, eos_token, ...


class WeightSource(Protocol):
    """Tensors by their Hugging Face names."""

    @property
    def where(self) -> str:
        """Names the files in errors."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape, or None if there is no such tensor."""

    def names(self) -> set[str]:
        """Every tensor that could be a weight of the model."""

    def tensor(self, name: str) -> Tensor:
        """A tensor in fp32. Raises `CheckpointError` where it cannot be read."""

    def blocks(self, name: str) -> tuple[BlockType, Bytes] | None:
        """A matrix `[out, in]` as it is stored, in blocks along its rows `[out, bytes]`; None if in no blocks."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, opened: nothing but headers has been read of its weights."""

    config: DecoderConfig
    weights: WeightSource
    texts: Texts
    files: tuple[Path, ...]  # all that it consists of

    def streaming(self, *, window: int, sinks: int, chunk: int, prefill: int) -> Pretrained:
        """The same with another window, sinks, chunk and prefill. Raises `ConfigError`."""
        config = dataclasses.replace(self.config, window=window, sinks=sinks, chunk=chunk, prefill=prefill)
        return dataclasses.replace(self, config=config)


@dataclass(frozen=True)
class Parameter:
    """How one parameter of a `Decoder` is made.

    Attributes:
        sources: tensors, one below the other along their first axis.
        shape: of every source.
        transposed: whether the parameter is that matrix transposed: `[in, out]` of `[out, in]`.
    """

    sources: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transposed: bool = False


def parameters_of(config: DecoderConfig) -> dict[str, Parameter]:
    """Every parameter of a `Decoder` of that configuration, by name."""
    made = {"embedding": Parameter(("model.embed_tokens.weight",), ((config.vocab_size, config.dim),))}
    for layer in range(config.layers):
        made |= _layer(config, f"layers.{layer}.", f"model.layers.{layer}.")
    made["norm.gain"] = Parameter(("model.norm.weight",), ((config.dim,),))
    if not config.tie_embeddings:
        made["head.weight"] = Parameter(("lm_head.weight",), ((config.vocab_size, config.dim),), transposed=True)
    return made


def _layer(config: DecoderConfig, ours: str, theirs: str) -> dict[str, Parameter]:
    dim, hidden = config.dim, config.ffn_hidden
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    made: dict[str, Parameter] = {}

    def matrix(name: str, sources: dict[str, int], inputs: int) -> None:
        shapes = tuple((outputs, inputs) for outputs in sources.values())
        names = tuple(f"{theirs}{source}.weight" for source in sources)
        made[f"{ours}{name}.weight"] = Parameter(names, shapes, transposed=True)

    def vector(name: str, sources: dict[str, int]) -> None:
        shapes = tuple((size,) for size in sources.values())
        made[f"{ours}{name}"] = Parameter(tuple(f"{theirs}{source}" for source in sources), shapes)

    projections = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    vector("attention_norm.gain", {"input_layernorm.weight": dim})
    matrix("attention.to_qkv", projections, dim)
    if config.qkv_bias:
        vector("attention.qkv_bias", {f"{name}.bias": size for name, size in projections.items()})
    if config.qk_norm:
        vector("attention.query_norm.gain", {"self_attn.q_norm.weight": config.head_width})
        vector("attention.key_norm.gain", {"self_attn.k_norm.weight": config.head_width})
    matrix("attention.out", {"self_attn.o_proj": dim}, queries)
    if config.out_bias:
        vector("attention.out_bias", {"self_attn.o_proj.bias": dim})
    vector("mlp_norm.gain", {"post_attention_layernorm.weight": dim})
    matrix("mlp.up", {"mlp.gate_proj": hidden, "mlp.up_proj": hidden}, dim)
    matrix("mlp.down", {"mlp.down_proj": dim}, hidden)
    return made


def check_weights(pretrained: Pretrained) -> None:
    """Whether all weights are there, in their shapes, and nothing else is, before anything is read.

    Raises:
        CheckpointError: naming the first weight that is not as the configuration has it; or that all of them are
            more than this machine's memory, which a file with holes in it can ask for.
    """
    weights, used = pretrained.weights, set()
    parameters = parameters_of(pretrained.config)
    for parameter in parameters.values():
        for name, shape in zip(parameter.sources, parameter.shapes, strict=True):
            found = weights.shape(name)
            if found != shape:
                what = "missing" if found is None else f"{list(found)}"
                raise CheckpointError(
                    f"{weights.where}: weight {name} is {what}, and the configuration asks for {list(shape)}",
                    "restore the files, or download them again",
                )
            used.add(name)
    spare = sorted(weights.names() - used - ({"lm_head.weight"} if pretrained.config.tie_embeddings else set()))
    if spare:
        raise CheckpointError(
            f"weight {spare[0]} has no place in a model of architecture {pretrained.config.architecture!r}",
            "it asks for something that is not supported",
            where=weights.where,
        )
    needed = 4 * sum(math.prod(shape) for parameter in parameters.values() for shape in parameter.shapes)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise CheckpointError(
            f"its weights take {needed / 2**30:,.1f} GiB in fp32, and there are {there / 2**30:,.1f} GiB of memory",
            "use a machine with more, or a smaller model",
            where=weights.where,
        )


def decoder_of(pretrained: Pretrained, progress: ReportProgress | None = None) -> Decoder:
    """The model, on the CPU in fp32, its parameters fixed.

    Args:
        pretrained: an opened model.
        progress: called with (parameters read, parameters in all).

    Raises:
        CheckpointError: a weight is missing, of another shape, not finite, or cannot be read.
    """
    check_weights(pretrained)
    with torch.device("meta"):
        decoder = Decoder(pretrained.config)
    wanted = parameters_of(pretrained.config)
    tensors: dict[str, Tensor] = {}
    for done, (name, parameter) in enumerate(wanted.items()):
        tensors[name] = read_parameter(pretrained.weights, parameter)
        if (blocks := parameter_blocks(pretrained.weights, parameter)) is not None:
            decoder.stored[name] = (blocks[0].name, blocks[1])
        if progress is not None:
            progress(done + 1, len(wanted))
    decoder.load_state_dict(tensors, assign=True)
    return decoder.requires_grad_(False).eval()


def read_parameter(weights: WeightSource, parameter: Parameter) -> Tensor:
    """One parameter in fp32. Raises `CheckpointError`."""
    parts = [weights.tensor(name) for name in parameter.sources]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    if not bool(torch.isfinite(whole).all()):
        raise CheckpointError(
            f"weight {parameter.sources[0]} holds numbers that are not finite", "download it again", where=weights.where
        )
    return (whole.T if parameter.transposed else whole).contiguous()


def parameter_blocks(weights: WeightSource, parameter: Parameter) -> tuple[BlockType, Bytes] | None:
    """A matrix `[out, in]` of several sources in the blocks that it is stored in, its rows one below the other.

    None where it is not in blocks, or where its sources are in different ones.
    """
    found = [weights.blocks(name) for name in parameter.sources]
    blocks = [each for each in found if each is not None]
    if len(blocks) != len(found) or len({kind.name for kind, _ in blocks}) != 1:
        return None
    return blocks[0][0], np.concatenate([rows for _, rows in blocks])
