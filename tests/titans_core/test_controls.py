"""The controls are what they say: no token moves a memory that is never written, and attention alone has the size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from titans_core.config import VARIANTS, MemoryConfig, TitansConfig, Variant
from titans_core.controls import attention_only, writes_off, writes_off_config
from titans_core.errors import ConfigError
from titans_core.model import TitansModel

CHUNK = 8


def config(variant: Variant, **memory: object) -> TitansConfig:
    return TitansConfig.from_dict(
        {
            "variant": variant,
            "dim": 16,
            "heads": 2,
            "ffn_hidden": 24,
            "chunk": CHUNK,
            "window": CHUNK,
            "persistent_tokens": 0 if variant == "lmm" else 2,
            "vocab_size": 20,
            "memory": {"heads": 2, **memory},
        }
    )


def trained(shape: TitansConfig) -> TitansModel:
    """A model whose gates depend on the token and whose memory answers, as after training."""
    torch.manual_seed(1)
    model = TitansModel(shape).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(20, (rows, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("variant", "memory"),
    [
        *((variant, {"step_size": size}) for variant in VARIANTS for size in ("token", "constant")),
        ("lmm", {"objective": "huber"}),  # a gate more
    ],
)
def test_the_control_is_the_model_with_a_step_size_of_zero(variant: Variant, memory: dict[str, str]) -> None:
    model = trained(config(variant, **memory))
    shape, tensors = writes_off(model.config, model.state_dict())
    control = TitansModel(shape).double()
    control.load_state_dict(tensors)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate_bias.step_size"):
                parameter.fill_(-1e9)
    torch.testing.assert_close(control(ids(2, 4 * CHUNK))[0], model(ids(2, 4 * CHUNK))[0], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("forget_to", ["start", "zero"])
def test_without_writes_a_stream_keeps_the_learned_memory_or_shrinks_it(variant: Variant, forget_to: str) -> None:
    model = trained(config(variant, forget_to=forget_to))
    shape, tensors = writes_off(model.config, model.state_dict())
    control = TitansModel(shape).double()
    control.load_state_dict(tensors)

    def scaled(net: TitansModel) -> bool:
        start, end = net.initial_state(2), net(ids(2, 4 * CHUNK))[1]
        ratio = end["0.memory_0"] / start["0.memory_0"]  # [B, H, d, d]
        if forget_to == "start":
            return bool(((ratio - 1).abs() < 1e-12).all())
        return bool((ratio.std((-1, -2)) < 1e-9).all()) and bool((ratio > 0).all()) and bool((ratio < 1).all())

    assert scaled(control)
    assert not scaled(model)


@pytest.mark.parametrize("variant", ["mal", "mag", "mac"])
def test_attention_alone_has_at_least_as_many_parameters_and_no_memory(variant: Variant) -> None:
    shape = config(variant)
    control = TitansModel(attention_only(shape))
    narrower = TitansModel(replace(control.config, ffn_hidden=control.config.ffn_hidden - 1))
    assert narrower.num_parameters() < TitansModel(shape).num_parameters() <= control.num_parameters()
    assert not [spec.name for spec in control.state_specs() if "memory" in spec.name]


def test_what_has_no_control_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose mal, mag or mac"):
        attention_only(config("lmm"))
    for never in (writes_off_config(config("mac")), replace(config("mac"), memory_layers=())):
        with pytest.raises(ConfigError, match="export it as it is"):
            writes_off(never, TitansModel(never).state_dict())


def test_training_without_writes_is_the_configuration_without_a_step_size() -> None:
    assert writes_off_config(config("mal")).memory == MemoryConfig(heads=2, step_size="off")
