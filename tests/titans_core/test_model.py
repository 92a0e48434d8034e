"""Whole models: one stream however it is cut, causality, windows, resets, configurations and presets."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from titans_core.attention import SegmentAttention, SlidingWindowAttention
from titans_core.config import VARIANTS, MemoryConfig, TitansConfig, Variant
from titans_core.errors import ConfigError
from titans_core.layers import merge_heads, rms_normalise, split_heads
from titans_core.model import TitansModel
from titans_core.presets import PRESETS, preset

SAME = 1e-9  # fp64


def small(variant: Variant, continuous: bool = False, **changes: object) -> TitansModel:
    torch.manual_seed(3)
    config = TitansConfig.from_dict(
        {
            "variant": variant,
            "dim": 16,
            "heads": 2,
            "chunk": 4,
            "window": 7,
            "ffn_hidden": 16,
            "persistent_tokens": 0 if variant == "lmm" else 2,
            "memory": {"heads": 2},
            "vocab_size": None if continuous else 20,
            "features": 3 if continuous else None,
        }
        | changes
    )
    return TitansModel(config).double()


def stream(model: TitansModel, batch: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if model.config.vocab_size is not None:
        return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator)
    return torch.randn(batch, tokens, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_slices_with_carried_state_equal_the_whole(variant: Variant, continuous: bool) -> None:
    model = small(variant, continuous)
    x = stream(model, 2, 32)
    whole, end = model(x)
    outputs, state = [], None
    for piece in x.split([4, 12, 8, 8], dim=1):
        out, state = model(piece, state)
        outputs.append(out)
    assert (torch.cat(outputs, dim=1) - whole).abs().max() <= SAME
    for name, value in end.items():
        assert (state[name] - value).abs().max() <= SAME, name


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_nothing_before_a_changed_token_moves_and_something_after_does(variant: Variant, continuous: bool) -> None:
    model = small(variant, continuous)
    x = stream(model, 1, 24)
    before, _ = model(x)
    for place in (0, 3, 4, 13, 23):
        changed = x.clone()
        changed[:, place] = (changed[:, place] + 1) % 20 if not continuous else changed[:, place] + 1
        after, _ = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place:] - before[:, place:]).abs().max() > 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_stream_does_not_depend_on_its_neighbours(variant: Variant) -> None:
    model = small(variant)
    x = stream(model, 3, 16)
    together, _ = model(x)
    for row in range(3):
        alone, _ = model(x[row : row + 1])
        assert (together[row] - alone[0]).abs().max() <= SAME


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_reset_stream_starts_afresh_and_the_others_go_on(variant: Variant) -> None:
    model = small(variant)
    first, second = stream(model, 2, 8), stream(model, 2, 8, seed=1)
    _, state = model(first)
    out, _ = model(second, model.reset(state, torch.tensor([True, False])))
    fresh, _ = model(second[:1])
    assert (out[0] - fresh[0]).abs().max() <= SAME
    continued, _ = model(second, state)
    assert (out[1] - continued[1]).abs().max() <= SAME
    assert (out[0] - continued[0]).abs().max() > 1e-4
    out.sum().backward()
    learned = [p for name, p in model.named_parameters() if ".initial." in name]
    assert learned
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in learned)


@pytest.mark.parametrize("variant", ["mal", "mag", "mac"])
@torch.no_grad()
def test_layers_without_memory_are_attention_alone(variant: Variant) -> None:
    model = small(variant, memory_layers=[])
    assert not any("memory" in spec.name for spec in model.state_specs())
    reach = 4 if variant == "mac" else 2 * (7 - 1) + 1  # one segment; two layers of windows
    x = stream(model, 1, 24)
    before, _ = model(x)
    changed = x.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 20
    after, _ = model(changed)
    assert (after[:, :reach] - before[:, :reach]).abs().max() > 1e-6
    assert torch.equal(after[:, reach:], before[:, reach:])


def literal_attention(q: Tensor, sources: list[tuple[Tensor, Tensor, Tensor]], base: float, places: Tensor) -> Tensor:
    """Token by token and head by head; `sources` are keys, values `[n, d]` and places (-1: not rotated)."""

    def turned(x: Tensor, place: float) -> Tensor:
        half = len(x) // 2
        out = x.clone()
        for i in range(half):
            angle = place * base ** (-2 * i / len(x))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    rows = []
    for t in range(len(q)):
        scores, values = [], []
        for keys, vectors, where in sources:
            for key, vector, place in zip(keys, vectors, where, strict=True):
                if place < 0:
                    scores.append(q[t] @ key)
                elif place <= places[t]:
                    scores.append(turned(q[t], float(places[t])) @ turned(key, float(place)))
                else:
                    continue
                values.append(vector)
        weights = torch.softmax(torch.stack(scores) / math.sqrt(q.shape[-1]), dim=0)
        rows.append(weights @ torch.stack(values))
    return torch.stack(rows)


@torch.no_grad()
def test_sliding_window_attention_is_softmax_over_the_last_tokens() -> None:
    model = small("mag")
    attention = next(m for m in model.modules() if isinstance(m, SlidingWindowAttention))
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    heads, _ = attention.chunks(
        x, {"key": torch.zeros(1, 2, 8, 8).double(), "value": torch.zeros(1, 2, 8, 8).double()}, torch.zeros(1).long()
    )
    q, k, v = (split_heads(part, 2) for part in (x @ attention.to_qkv.weight).chunk(3, dim=-1))
    persistent = rms_normalise(attention.persistent_key)
    for t in range(20):
        span = slice(max(0, t - 6), t + 1)
        places = torch.arange(20)[span]
        for h in range(2):
            want = literal_attention(
                rms_normalise(q[0, h, t : t + 1]),
                [
                    (persistent[h], attention.persistent_value[h], torch.full((2,), -1)),
                    (rms_normalise(k[0, h, span]), v[0, h, span], places),
                ],
                10_000.0,
                torch.tensor([t]),
            )
            assert (heads[0, t, 8 * h : 8 * h + 8] - want[0]).abs().max() <= 1e-6  # rotary tables are fp32


@torch.no_grad()
def test_segment_attention_sees_answers_only_up_to_its_own_token() -> None:
    model = small("mac")
    attention = next(m for m in model.modules() if isinstance(m, SegmentAttention))
    x, h = torch.randn(2, 1, 4, 16, dtype=torch.float64)
    got = attention.segment(x, h)
    q = rms_normalise(split_heads(x @ attention.to_query.weight, 2))
    pairs = []
    for inputs in (h, x):
        k, v = (split_heads(part, 2) for part in (inputs @ attention.to_key_value.weight).chunk(2, dim=-1))
        pairs.append((rms_normalise(k), v))
    out = torch.stack(
        [
            literal_attention(
                q[0, head],
                [
                    (rms_normalise(attention.persistent_key[head]), attention.persistent_value[head], -torch.ones(2)),
                    *((k[0, head], v[0, head], torch.arange(4)) for k, v in pairs),
                ],
                10_000.0,
                torch.arange(4),
            )
            for head in range(2)
        ]
    )
    assert (got - merge_heads(out[None])).abs().max() <= 1e-6


@pytest.mark.parametrize("variant", ["mal", "mag"])
@torch.no_grad()
def test_token_two_million_is_as_exact_as_token_sixteen(variant: Variant) -> None:
    model = small(variant)
    x = stream(model, 1, 8)
    _, state = model(stream(model, 1, 16, seed=5))
    near, _ = model(x, state)
    far, _ = model(x, state | {"position": torch.tensor([2_000_000])})
    assert torch.equal(near, far)


@pytest.mark.parametrize("variant", VARIANTS)
def test_configurations_round_trip_through_json(variant: Variant) -> None:
    config = preset("small", variant=variant, memory=MemoryConfig(heads=2, depth=3, surprise_bound=None))
    assert TitansConfig.from_json(config.to_json()) == config
    layered = preset("tiny", variant="mag", memory_layers=(1,))
    assert TitansConfig.from_json(layered.to_json()) == layered


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "xyz"}, "choose one of lmm, mal, mag, mac"),
        ({"dim": 30, "heads": 4}, "not a multiple"),
        ({"colour": 1}, "unknown configuration option 'colour'"),
        ({"dim": "wide"}, "must be int"),
        ({"variant": "lmm", "persistent_tokens": 4}, "set persistent_tokens to 0"),
        ({"vocab_size": None}, "exactly one of vocab_size"),
        ({"memory": {"depth": 0}}, "at least 1"),
        ({"memory": {"initial_forget": 1.5}}, "between 0 and 1"),
        ({"memory_layers": [7]}, "distinct layer numbers"),
        ({"memory_layers": 0}, "memory_layers is 0; give a list of layer numbers"),
        ({"memory_layers": "abc"}, "memory_layers is 'abc'; give a list"),
        ({"memory_layers": ["a"]}, "or null for all layers"),
        ({"memory_layers": [True]}, "give a list of layer numbers"),
        ({"memory": {"expansion": math.inf}}, "memory.expansion is inf; use a finite number"),
        ({"memory": {"surprise_bound": math.nan}}, "memory.surprise_bound is nan"),
        ({"rope_base": math.inf}, "rope_base is inf"),
        ({"rope_base": 0}, "use a base above 0"),
    ],
)
def test_an_impossible_configuration_says_what_to_change(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TitansConfig.from_json(json.dumps(values))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [name for name, shape in PRESETS.items() if shape.parameters])
def test_the_sizes_of_the_paper_are_within_five_percent_of_their_names(name: str, variant: Variant) -> None:
    with torch.device("meta"):
        count = TitansModel(preset(name, variant=variant)).num_parameters()
    assert abs(count / (int(name.removesuffix("m")) * 1e6) - 1) <= 0.05
