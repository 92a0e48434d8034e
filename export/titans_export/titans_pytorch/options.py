"""What a titans-pytorch model is, read from its constructor's arguments; what cannot be carried over is refused.

Names and defaults are those of titans-pytorch 0.5.5. Knows no parameters and no computation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from titans_export.titans_pytorch.arguments import Arguments, ConfigError, constructor
from titans_export.titans_pytorch.networks import (
    FactorizedMlp,
    GatedResidualMlp,
    Mlp,
    Network,
    ResidualNorm,
    SwiGluMlp,
)

ACTIVATIONS = ("SiLU", "GELU", "ReLU", "Tanh", "Sigmoid")

_GATED_TRANSITION = (
    "with it the memory is blended once more at the last batch boundary a sequence reaches, so what titans-pytorch"
    " computes for a token depends on where its sequence ends, and no stream can agree with that",
    "train without it",
)
_CALLABLE = ("a Python function is not part of a checkpoint", "use the default")


@dataclass(frozen=True)
class MemoryOptions:
    """One `NeuralMemory`. The names are the constructor's where they mean the same.

    store_chunk, retrieve_chunk: both parts of `chunk_size`.
    momentum_order: 0 without momentum.
    combined_orders: momenta that a learned combination weighs, the surprise itself counted if included; 0 for none.
    """

    dim: int
    dim_head: int
    heads: int
    store_chunk: int
    retrieve_chunk: int
    batch_size: int | None
    network: Network
    activation: str | None
    max_lr: float
    per_parameter_lr_modulation: bool
    max_mem_layer_modulation: float
    per_head_learned_parameters: bool
    attn_pool_chunks: bool
    momentum_order: int
    combined_orders: int
    num_kv_per_token: int
    qkv_receives_diff_views: bool
    pre_rmsnorm: bool
    post_rmsnorm: bool
    qk_rmsnorm: bool
    max_grad_norm: float | None
    accept_weight_residual: bool
    spectral_norm_surprises: bool
    store_with_lookahead_value: bool

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.dim_head

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """One head's fast weights."""
        return self.network.shapes()


@dataclass(frozen=True)
class TransformerOptions:
    """A `MemoryAsContextTransformer`; `memories` has the options of every layer, None for one without memory."""

    num_tokens: int
    dim: int
    depth: int
    segment_len: int
    num_longterm_mem_tokens: int
    num_persist_mem_tokens: int
    dim_head: int
    heads: int
    ff_hidden: int
    num_residual_streams: int
    sliding_window_attn: bool
    gate_attn_output: bool
    memory_segment_len: int
    diff_views: bool
    weight_residual: bool
    memories: tuple[MemoryOptions | None, ...]

    @property
    def window(self) -> int:
        """Places of one attention segment, long-term memory tokens included."""
        return self.segment_len + self.num_longterm_mem_tokens

    def selects_views(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) chooses queries, keys and values among earlier layers."""
        return self.diff_views and layer > 0


Options = MemoryOptions | TransformerOptions


def read_options(config: object) -> Options:
    """The options of `{"class": "MemoryAsContextTransformer" or "NeuralMemory", "args": {…}}`.

    Raises:
        ConfigError: naming the argument that is wrong or not carried over.
    """
    name, values = constructor("the configuration", config)
    if name == "NeuralMemory":
        arguments = Arguments(name, values)
        chunk = _pair(arguments)
        options = _memory(
            arguments,
            dim=arguments.integer("dim"),
            chunk=chunk,
            batch_size=arguments.optional_integer("batch_size"),
            model=arguments.value("model"),
            diff_views=arguments.flag("qkv_receives_diff_views", False),
            weight_residual=False,
        )
        arguments.refuse(
            "accept_weight_residual",
            False,
            "it needs another memory's weights, which a model of one memory has not",
            "leave it out",
        )
        arguments.finish()
        return options
    if name == "MemoryAsContextTransformer":
        return _transformer(Arguments(name, values))
    raise ConfigError(f"class {name!r} is not carried over", "choose MemoryAsContextTransformer or NeuralMemory")


def _pair(arguments: Arguments) -> tuple[int, int]:
    """`chunk_size`: one number, or those of retrieving and storing."""
    value = arguments.value("chunk_size", 1)
    if not isinstance(value, (list, tuple)):
        size = arguments.integer("chunk_size", 1)
        return size, size
    if len(value) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in value):
        arguments.fail("chunk_size", "a whole number from 1, or two")
    retrieve, store = value
    if retrieve < store:
        raise ConfigError(
            f"chunk_size {list(value)} is not carried over: retrieving in smaller chunks than"
            " storing would read memory that is written from later tokens",
            "make the first number the larger one",
            where=arguments.owner,
        )
    return retrieve, store


def _memory(
    arguments: Arguments,
    *,
    dim: int,
    chunk: tuple[int, int],
    batch_size: int | None,
    model: object,
    diff_views: bool,
    weight_residual: bool,
) -> MemoryOptions:
    heads = arguments.integer("heads", 1)
    dim_head = arguments.optional_integer("dim_head") or dim
    if heads == 1 and dim_head != dim:
        raise ConfigError(
            f"dim_head is {dim_head}, expected dim, {dim}, with one head",
            "give it, or more heads",
            where=arguments.owner,
        )
    if batch_size is not None and batch_size % chunk[1]:
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of the chunk size {chunk[1]}",
            "change one of them",
            where=arguments.owner,
        )
    arguments.refuse("gated_transition", False, *_GATED_TRANSITION)
    arguments.refuse("store_memory_loss_fn", None, *_CALLABLE)
    arguments.refuse("adaptive_step_transform", None, *_CALLABLE)
    arguments.irrelevant("use_accelerated_scan", "init_adaptive_step_bias", "init_momentum_bias", "init_decay_bias")
    default_model = arguments.value("default_model_kwargs", {"depth": 2, "expansion_factor": 4.0})
    network = _network({"class": "MemoryMLP", "args": default_model} if model is None else model, dim_head)
    if arguments.flag("mem_model_norm_add_residual", True):
        network = ResidualNorm(dim_head, network)
    momentum, order = arguments.flag("momentum", True), arguments.integer("momentum_order", 1)
    learned = arguments.flag("learned_momentum_combine", False)
    zeroth = arguments.flag("learned_combine_include_zeroth", False)
    if learned and not (momentum and order > 1):
        raise ConfigError(
            f"learned_momentum_combine with momentum_order {order}",
            "use 2 or more, or leave it out",
            where=arguments.owner,
        )
    pooled = arguments.flag("attn_pool_chunks", False)
    if pooled and chunk[1] == 1:
        raise ConfigError(
            "attn_pool_chunks with chunks of 1 token", "use 2 tokens or more, or leave it out", where=arguments.owner
        )
    limit = None if arguments.value("max_grad_norm") is None else arguments.number("max_grad_norm", 0.0)
    return MemoryOptions(
        dim=dim,
        dim_head=dim_head,
        heads=heads,
        store_chunk=chunk[1],
        retrieve_chunk=chunk[0],
        batch_size=batch_size,
        network=network,
        activation=_activation(arguments),
        max_lr=arguments.number("default_step_transform_max_lr", 1.0),
        per_parameter_lr_modulation=arguments.flag("per_parameter_lr_modulation", False),
        max_mem_layer_modulation=arguments.number("max_mem_layer_modulation", 1.0),
        per_head_learned_parameters=arguments.flag("per_head_learned_parameters", True),
        attn_pool_chunks=pooled,
        momentum_order=order if momentum else 0,
        combined_orders=order + zeroth if learned else 0,
        num_kv_per_token=arguments.integer("num_kv_per_token", 1),
        qkv_receives_diff_views=diff_views,
        pre_rmsnorm=arguments.flag("pre_rmsnorm", True),
        post_rmsnorm=arguments.flag("post_rmsnorm", False),
        qk_rmsnorm=arguments.flag("qk_rmsnorm", False),
        max_grad_norm=limit,
        accept_weight_residual=weight_residual,
        spectral_norm_surprises=arguments.flag("spectral_norm_surprises", False),
        store_with_lookahead_value=arguments.flag("store_with_lookahead_value", False),
    )


def _activation(arguments: Arguments) -> str | None:
    value = arguments.value("activation")
    if value is None:
        return None
    name, values = constructor(f"{arguments.owner}: activation", value)
    if name not in ACTIVATIONS or values:
        raise ConfigError(
            f"activation {name} with arguments {values!r} is not carried over",
            f"choose one of {', '.join(ACTIVATIONS)} without arguments",
            where=arguments.owner,
        )
    return name


def _network(value: object, dim: int) -> Network:
    name, values = constructor("the memory network", value)
    arguments = Arguments(name, values)
    if arguments.integer("dim", dim) != dim:
        arguments.fail("dim", f"{dim}, the width of one head")
    network: Network
    match name:
        case "MemoryMLP":
            depth, hidden = arguments.integer("depth"), int(dim * arguments.number("expansion_factor", 2.0))
            network = Mlp(dim, depth, hidden if depth > 1 else dim)
        case "FactorizedMemoryMLP":
            network = FactorizedMlp(dim, arguments.integer("depth"), arguments.integer("k", 32))
        case "GatedResidualMemoryMLP":
            hidden = int(dim * arguments.number("expansion_factor", 4.0))
            network = GatedResidualMlp(dim, arguments.integer("depth"), hidden)
        case "MemorySwiGluMLP":
            hidden = int(dim * arguments.number("expansion_factor", 4.0) * 2 / 3)
            network = SwiGluMlp(dim, arguments.integer("depth", 1), hidden)
        case _:
            raise ConfigError(
                f"memory network {name} is not carried over",
                "choose MemoryMLP, FactorizedMemoryMLP, GatedResidualMemoryMLP or MemorySwiGluMLP",
            )
    arguments.finish()
    return network


def _transformer(arguments: Arguments) -> TransformerOptions:
    dim, depth, segment = arguments.integer("dim"), arguments.integer("depth"), arguments.integer("segment_len")
    longterm = arguments.integer("num_longterm_mem_tokens", 0, least=0)
    memory_segment = arguments.optional_integer("neural_memory_segment_len") or longterm + segment
    with_memory = arguments.integers("neural_memory_layers")
    layers = range(1, depth + 1)
    residual = arguments.flag("neural_mem_weight_residual", False)
    diff_views = arguments.flag("neural_memory_qkv_receives_diff_views", False)
    kwargs, batch_size = (
        arguments.value("neural_memory_kwargs", {}),
        arguments.optional_integer("neural_memory_batch_size"),
    )
    model = arguments.value("neural_memory_model")
    memories: list[MemoryOptions | None] = []
    for layer in layers:
        if with_memory is not None and layer not in with_memory:
            memories.append(None)
            continue
        inner = Arguments("neural_memory_kwargs", kwargs)
        memories.append(
            _memory(
                inner,
                dim=dim,
                chunk=(memory_segment, memory_segment),
                batch_size=batch_size,
                model=model,
                diff_views=diff_views and layer > 1,
                weight_residual=residual and any(memory is not None for memory in memories),
            )
        )
        inner.finish()
    arguments.refuse("token_emb", None, "a module of one's own is not part of the configuration", "use the default")
    arguments.irrelevant("use_flex_attn")
    options = TransformerOptions(
        num_tokens=arguments.integer("num_tokens"),
        dim=dim,
        depth=depth,
        segment_len=segment,
        num_longterm_mem_tokens=longterm,
        num_persist_mem_tokens=arguments.integer("num_persist_mem_tokens", 0, least=0),
        dim_head=arguments.integer("dim_head", 64),
        heads=arguments.integer("heads", 8),
        ff_hidden=math.floor(dim * arguments.number("ff_mult", 4) * 2 / 3),
        num_residual_streams=arguments.integer("num_residual_streams", 4),
        sliding_window_attn=arguments.flag("sliding_window_attn", False),
        gate_attn_output=arguments.flag("neural_mem_gate_attn_output", False),
        memory_segment_len=memory_segment,
        diff_views=diff_views,
        weight_residual=residual,
        memories=tuple(memories),
    )
    if arguments.value("neural_memory_add_value_residual", False) not in (True, False):
        arguments.fail("neural_memory_add_value_residual", "true or false")  # titans-pytorch itself ignores it
    arguments.finish()
    return options
