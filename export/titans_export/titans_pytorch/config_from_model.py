"""The configuration of a live titans-pytorch model: its constructor's arguments, found again in what it built.

Run this where the model was trained, beside `torch.save(model.state_dict(), …)`. Knows titans-pytorch's attributes.
What cannot be carried over is refused here already, by the name of the argument.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from titans_export.titans_pytorch.arguments import ConfigError
from titans_export.titans_pytorch.options import read_options


def write_config(model: nn.Module, path: Path | str) -> dict[str, Any]:
    """Write the configuration of a `MemoryAsContextTransformer` or a `NeuralMemory` as JSON, and return it.

    Raises:
        ConfigError: the model has something that cannot be carried over.
        OSError: the file cannot be written.
    """
    config = config_of(model)
    Path(path).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return config


def config_of(model: nn.Module) -> dict[str, Any]:
    """The configuration, `{"class": …, "args": {…}}`. Raises `ConfigError` as `write_config` does."""
    name = type(model).__name__
    if name == "NeuralMemory":
        inner, network = _memory(model)
        sizes = (model.retrieve_chunk_size, model.store_chunk_size)
        args = {
            "dim": _linear(model.to_queries).in_features,
            "chunk_size": sizes[1] if sizes[0] == sizes[1] else list(sizes),
            "batch_size": model.batch_size,
            "qkv_receives_diff_views": model.qkv_receives_diff_views,
            "accept_weight_residual": model.to_learned_weight_residual_mix is not None,
            "model": network,
            **inner,
        }
    elif name == "MemoryAsContextTransformer":
        args = _transformer(model)
    else:
        raise ConfigError(f"a {name} is not carried over", "pass a MemoryAsContextTransformer or a NeuralMemory")
    config = {"class": name, "args": args}
    read_options(config)
    return config


def _transformer(model: Any) -> dict[str, Any]:
    if type(model.token_emb) is not nn.Embedding:
        raise ConfigError(
            f"token_emb is a {type(model.token_emb).__name__}", "only the default embedding is carried over"
        )
    memories = [(number, layer[4]) for number, layer in enumerate(model.layers, 1) if layer[4] is not None]
    attention, feed_forward = model.layers[0][5], model.layers[0][6]
    dim = model.to_logits.in_features
    _, heads, persistent, dim_head = attention.persistent_memory.shape
    args: dict[str, Any] = {
        "num_tokens": model.to_logits.out_features,
        "dim": dim,
        "depth": len(model.layers),
        "segment_len": model.segment_len,
        "neural_memory_segment_len": model.neural_memory_segment_len,
        "neural_mem_gate_attn_output": model.gate_attn_output,
        "num_longterm_mem_tokens": model.num_longterm_mem_tokens,
        "num_persist_mem_tokens": persistent,
        "neural_memory_qkv_receives_diff_views": any(layer[3] is not None for layer in model.layers),
        "dim_head": dim_head,
        "heads": heads,
        "ff_mult": _factor(feed_forward[1].out_features // 2, dim, 2),
        "num_residual_streams": getattr(model.expand_streams, "num_streams", 1),
        "neural_memory_layers": [number for number, _ in memories],
        "sliding_window_attn": model.sliding_window_attn,
        "neural_mem_weight_residual": model.neural_mem_weight_residual,
    }
    if memories:
        args["neural_memory_batch_size"] = memories[0][1].batch_size
        args["neural_memory_kwargs"], args["neural_memory_model"] = _memory(memories[0][1])
    return args


def _memory(memory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `neural_memory_kwargs` can say about a memory, and its network."""
    network, wrapped = memory.memory_model, type(memory.memory_model).__name__ == "ResidualNorm"
    activation = memory.to_queries[1] if isinstance(memory.to_queries, nn.Sequential) else None
    args = {
        "dim_head": _linear(memory.to_queries).out_features // memory.heads,
        "heads": memory.heads,
        "default_step_transform_max_lr": _max_lr(memory),
        "per_parameter_lr_modulation": memory.to_layer_modulation is not None,
        "max_mem_layer_modulation": memory.max_mem_layer_modulation,
        "per_head_learned_parameters": memory.per_head_learned_parameters,
        "attn_pool_chunks": type(memory.reduce_to_chunk_rep).__name__ == "AttentionPool",
        "momentum": memory.to_momentum is not None,
        "momentum_order": memory.momentum_order,
        "learned_momentum_combine": memory.to_learned_momentum_combine is not None,
        "learned_combine_include_zeroth": bool(getattr(memory, "learned_combine_include_zeroth", False)),
        "num_kv_per_token": memory.num_kv_per_token,
        "pre_rmsnorm": isinstance(memory.retrieve_norm, nn.RMSNorm),
        "post_rmsnorm": not isinstance(memory.multihead_rmsnorm, nn.Identity),
        "qk_rmsnorm": not isinstance(memory.q_norm, nn.Identity),
        "max_grad_norm": memory.max_grad_norm,
        "spectral_norm_surprises": memory.spectral_norm_surprises,
        "gated_transition": memory.transition_gate is not None,
        "mem_model_norm_add_residual": wrapped,
        "store_with_lookahead_value": memory.store_with_lookahead_value,
    }
    if activation is not None:
        args["activation"] = {"class": type(activation).__name__}
    return args, _network(network.model if wrapped else network)


_NETWORKS = ("MemoryMLP", "FactorizedMemoryMLP", "GatedResidualMemoryMLP", "MemorySwiGluMLP")


def _max_lr(memory: Any) -> float:
    from titans_pytorch import neural_memory

    transform = memory.adaptive_step_transform
    if not (isinstance(transform, partial) and transform.func is neural_memory.default_adaptive_step_transform):
        raise ConfigError("adaptive_step_transform is not the default, and is not carried over", "use the default")
    if memory.store_memory_loss_fn is not neural_memory.default_loss_fn:
        raise ConfigError("store_memory_loss_fn is not the default, and is not carried over", "use the default")
    return float(transform.keywords["max_lr"])


def _network(network: Any) -> dict[str, Any]:
    name, weights = type(network).__name__, list(getattr(network, "weights", ()))
    match name:
        case "MemoryMLP":
            dim, depth = weights[0].shape[0], len(weights)
            hidden = weights[0].shape[1] if depth > 1 else dim
            args = {"dim": dim, "depth": depth, "expansion_factor": _factor(hidden, dim)}
        case "FactorizedMemoryMLP":
            dim, rank = weights[0][0].shape
            args = {"dim": dim, "depth": len(weights), "k": rank}
        case "GatedResidualMemoryMLP":
            dim, hidden = weights[0][0].shape
            args = {"dim": dim, "depth": len(weights), "expansion_factor": _factor(hidden, dim)}
        case "MemorySwiGluMLP":
            dim, twice = weights[0][0].shape
            args = {"dim": dim, "depth": len(weights), "expansion_factor": _factor(twice // 2, dim, 2)}
        case _:
            raise ConfigError(f"memory network {name} is not carried over", f"choose one of {', '.join(_NETWORKS)}")
    return {"class": name, "args": args}


def _linear(projection: Any) -> nn.Linear:
    linear = projection[0] if isinstance(projection, Sequence | nn.Sequential) else projection
    if not isinstance(linear, nn.Linear):
        raise ConfigError(f"a projection is a {type(linear).__name__}, expected torch's Linear", "use the default")
    return linear


def _factor(hidden: int, dim: int, thirds: int = 3) -> float:
    """A factor that gives back `hidden` as titans-pytorch rounds it, as round as possible."""
    exact = 3 * hidden / (thirds * dim)
    for factor in (float(round(exact)), exact, exact + 1 / dim):
        if int(dim * factor if thirds == 3 else dim * factor * thirds / 3) == hidden:
            return factor
    raise ConfigError(f"no expansion factor makes {hidden} channels of {dim}", "write the configuration by hand")
