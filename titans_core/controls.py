"""What a memory has to be compared with: the same model without writes, and attention alone at equal size.

    writes-off      the step size is 0 for every token (theta = 0); every other weight stays, trained or not. The memory
                    is then its learned start, which fades where forgetting goes towards zero
    attention-only  no layer has a memory; the feed-forward is widened until the model has at least as many parameters

Knows configurations and weights. Does not know how either is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.decoder import Decoder
from titans_core.decoder.side_memory import gate_taps
from titans_core.errors import ConfigError
from titans_core.model import TitansModel


def writes_off_config(config: TitansConfig) -> TitansConfig:
    """The configuration with no step size."""
    return replace(config, memory=replace(config.memory, step_size="off"))


def writes_something(config: TitansConfig) -> bool:
    """Whether any memory of the model is ever written."""
    return config.memory.step_size != "off" and any(config.has_memory(layer) for layer in range(config.layers))


def writes_off(config: TitansConfig, tensors: Mapping[str, Tensor]) -> tuple[TitansConfig, dict[str, Tensor]]:
    """A trained model with its writes switched off.

    Args:
        config: of the trained model.
        tensors: its state dict.

    Returns:
        The configuration and the state dict without the weights that made the step size.

    Raises:
        ConfigError: the model has no writes to switch off.
    """
    if not writes_something(config):
        raise ConfigError(
            "this model never writes to a memory, so there is nothing to switch off", "export it as it is"
        )
    return writes_off_config(config), _without_step_size(config.memory, tensors)


def decoder_writes_off(decoder: Decoder) -> Decoder:
    """A decoder whose graft is never written; shares whatever it does not change.

    Raises:
        ConfigError: it has no graft, or one that is never written anyway.
    """
    graft = decoder.config.graft
    if graft is None or graft.memory.step_size == "off":
        raise ConfigError(
            "this model never writes to a memory, so there is nothing to switch off", "export it as it is"
        )
    silent = replace(graft, memory=replace(graft.memory, step_size="off"))
    with torch.device("meta"):
        control = Decoder(replace(decoder.config, graft=silent))
    control.load_state_dict(_without_step_size(graft.memory, decoder.state_dict()), assign=True)
    return control.requires_grad_(False).train(decoder.training)


def _without_step_size(memory: MemoryConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the weights that made the step size."""
    kept = {name: value for name, value in tensors.items() if not name.endswith(".gate_bias.step_size")}
    if memory.step_size == "token":
        for name, value in kept.items():
            # The step size's columns are last; a memory beside a decoder has them for each of some tokens.
            if name.endswith(".memory.to_write.weight"):
                kept[name] = value[:, : -memory.heads].contiguous()
            elif name.endswith(("graft.to_gates.weight", "graft.tap_weight")):
                kept[name] = value[:, : -memory.heads * gate_taps(memory)].contiguous()
    return kept


def attention_only(config: TitansConfig) -> TitansConfig:
    """The configuration without memories, and with a feed-forward so wide that it has as many parameters or a few more.

    Raises:
        ConfigError: the variant has no attention.
    """
    if not config.has_attention:
        raise ConfigError(f"{config.variant} has no attention that could remain", "choose mal, mag or mac")
    narrow = replace(config, memory_layers=())
    wanted, least, more = (
        _parameters(config),
        _parameters(narrow),
        _parameters(replace(narrow, ffn_hidden=config.ffn_hidden + 1)),
    )
    return replace(narrow, ffn_hidden=config.ffn_hidden + max(0, -(-(wanted - least) // (more - least))))


def _parameters(config: TitansConfig) -> int:
    with torch.device("meta"):
        return TitansModel(config).num_parameters()
