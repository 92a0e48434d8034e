"""The installed titans-pytorch, where there is one: models built from a configuration, to compare bundles with.

Nothing else here needs that package. Knows its constructors, and which sequences it can answer at all.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from titans_export.titans_pytorch.options import MemoryOptions, read_options

# What decides how fast titans-pytorch computes on a GPU, and may not exist on a CPU.
_FASTER = {"use_flex_attn": False}
_FASTER_MEMORY = {"use_accelerated_scan": False}


def version() -> str | None:
    """The installed version, or None."""
    try:
        importlib.import_module("titans_pytorch")
        return metadata.version("titans-pytorch")
    except ImportError:
        return None


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The model of a configuration with these parameters, in evaluation mode."""
    model = blank(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def fits(config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether the installed version has a checkpoint's parameters; other versions join their layers otherwise."""
    own = blank(config).state_dict()
    return {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in tensors.items()}


def blank(config: dict[str, Any]) -> nn.Module:
    """The model of a configuration as titans-pytorch initialises it."""
    package = importlib.import_module("titans_pytorch")
    arguments = dict(config.get("args", {}))
    if config["class"] == "NeuralMemory":
        arguments = _memory_arguments(arguments) | {"model": _network(arguments.get("model"))}
        if isinstance(arguments.get("chunk_size"), list):
            arguments["chunk_size"] = tuple(arguments["chunk_size"])
    else:
        arguments |= _FASTER | {"neural_memory_model": _network(arguments.get("neural_memory_model"))}
        arguments["neural_memory_kwargs"] = _memory_arguments(arguments.get("neural_memory_kwargs", {}))
        if arguments.get("neural_memory_layers") is not None:
            arguments["neural_memory_layers"] = tuple(arguments["neural_memory_layers"])
    model: nn.Module = getattr(package, config["class"])(**arguments)
    # A parameter that several heads start from is one row in memory, seen once per head: give it its own.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _memory_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    found = dict(arguments) | _FASTER_MEMORY
    if found.get("activation") is not None:
        found["activation"] = getattr(nn, found["activation"]["class"])()
    return found


def _network(value: dict[str, Any] | None) -> nn.Module | None:
    if value is None:
        return None
    models = importlib.import_module("titans_pytorch.memory_models")
    network: nn.Module = getattr(models, value["class"])(**value.get("args", {}))
    return network


@torch.no_grad()
def answers(model: nn.Module, inputs: Tensor, config: dict[str, Any]) -> Tensor:
    """The uncached forward over a whole sequence: ids `[B, T]` or vectors `[B, T, F]` to `[B, T, V]`."""
    if config["class"] != "NeuralMemory":
        logits: Tensor = model(inputs)
        return logits
    if config.get("args", {}).get("qkv_receives_diff_views"):
        inputs = torch.stack(inputs.chunk(3, dim=-1))
    retrieved: Tensor = model(inputs)[0]
    return retrieved


def longest_answered(config: dict[str, Any], tokens: int) -> int:
    """The longest sequence of at most `tokens` that titans-pytorch answers.

    With two chunk sizes it needs as many chunks of the one as of the other, which few lengths have.
    """
    options = read_options(config)
    if not isinstance(options, MemoryOptions):
        return tokens
    store, retrieve = options.store_chunk, options.retrieve_chunk
    return next(length for length in range(tokens, 0, -1) if length // store == length // retrieve)
