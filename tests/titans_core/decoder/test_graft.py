"""Grafts: silent at first, one stream however it is cut, adapters that fold away, configurations that round-trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.titans_core.decoder.grafts import GRAFTS, SMALL, decoder, grafted
from titans_core.decoder import Decoder, DecoderConfig, SideConfig
from titans_core.errors import ConfigError

SAME = 1e-9  # fp64


def tokens(count: int, batch: int = 2) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (batch, count), generator=torch.Generator().manual_seed(count))


def drive(model: Decoder, ids: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, surprise and the state after pieces that go through `extend` and `commit`."""
    chunk = model.config.chunk
    state = {name: value.clone() for name, value in model.initial_state(ids.shape[0], rows=True).items()}
    outputs, surprises, done = [], [], 0
    for length in lengths:
        out, surprise, changed = model.extend(ids[:, done : done + length], state["position"], None, state)
        rows = {spec.name for spec in model.state_specs() if spec.kind == "rows"}
        for name, value in changed.items():
            if name in rows:
                state[name][done % chunk : done % chunk + length] = value
            else:
                state[name] = value
        done += length
        state["position"] = state["position"] + length
        outputs.append(out)
        surprises.append(surprise)
        if done % chunk == 0:
            state |= model.commit(state)
    return torch.cat(outputs, dim=1), torch.cat(surprises, dim=1), state


@pytest.mark.parametrize("name", GRAFTS)
@torch.no_grad()
def test_a_fresh_graft_changes_nothing(name: str) -> None:
    plain, with_graft = decoder(), decoder()
    with_graft.attach(GRAFTS[name], lora=4)
    ids = tokens(48)
    assert (with_graft(ids)[0] - plain(ids)[0]).abs().max() <= 1e-6
    assert (with_graft.folded()(ids)[0] - plain(ids)[0]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", GRAFTS)
@torch.no_grad()
def test_what_a_graft_remembers_reaches_the_logits_past_the_window(name: str) -> None:
    model, ids = grafted(name).double(), tokens(72)
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % SMALL.vocab_size  # no sink, and in no window of the last token
    assert (model(ids)[0] - model(changed)[0])[:, -1].abs().max() > 1e-6
    assert torch.equal(model(ids)[0][:, :10], model(changed)[0][:, :10])


@pytest.mark.parametrize("name", GRAFTS)
@torch.no_grad()
def test_any_split_gives_the_same_logits_surprise_and_state(name: str) -> None:
    model, ids = grafted(name).double(), tokens(48)
    whole, end = model(ids)
    singles, surprise, state = drive(model, ids, [1] * 48)
    pieces, surprise_of_pieces, _ = drive(model, ids, [8, 3, 5, 1, 7, 2, 6, 8, 4, 4])
    assert (singles - whole).abs().max() <= SAME
    assert (pieces - whole).abs().max() <= SAME
    assert (surprise - surprise_of_pieces).abs().max() <= SAME
    for entry, value in end.items():
        assert (state[entry] - value).abs().max() <= SAME, entry


@torch.no_grad()
def test_adapters_fold_into_the_weights_and_leave_those_that_were_there() -> None:
    model, ids = grafted("side", lora=3), tokens(24)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = model.folded()
    assert (model(ids)[0] - folded(ids)[0]).abs().max() <= 1e-4
    assert folded.config.lora == 0
    assert not any(name.startswith("lora.") for name in folded.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert folded.embedding.data_ptr() == model.embedding.data_ptr()
    assert (folded.layers[0].mlp.up.weight - model.layers[0].mlp.up.weight).abs().max() > 1e-3


@pytest.mark.parametrize("name", GRAFTS)
def test_gradients_reach_all_that_is_new_and_trainable(name: str) -> None:
    model = grafted(name, lora=2)
    model.requires_grad_(False)
    new = {path: p for path, p in model.named_parameters() if path.startswith(("graft.", "lora."))}
    for parameter in new.values():
        parameter.requires_grad_(True)
    model(tokens(24))[0].square().mean().backward()
    silent = [path for path, parameter in new.items() if parameter.grad is None or not parameter.grad.any()]
    assert not [path for path in silent if not path.endswith(("gate_start", "initial.0", "initial.1", "tap_weight"))]


@pytest.mark.parametrize("name", GRAFTS)
def test_a_configuration_round_trips(name: str) -> None:
    model = grafted(name, lora=2)
    values = json.loads(model.config.to_json())["decoder"]
    assert DecoderConfig.from_dict(values) == model.config


def test_a_memory_that_is_older_than_sharp_keys_and_the_floor_stays_what_it_was() -> None:
    values = json.loads(grafted("side").config.to_json())["decoder"]
    del values["graft"]["power"], values["graft"]["memory"]["step_floor"]
    graft = DecoderConfig.from_dict(values).graft
    assert isinstance(graft, SideConfig)
    assert (graft.power, graft.memory.step_floor) == (1, 0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"graft": {"form": "above"}}, "form"),
        ({"graft": {"form": "side", "read": [0], "dim": 8}}, "memory"),
        ({"graft": {"form": "side", "read": [0, 3], "dim": 32, "memory": {"heads": 1}}}, "layer 3"),
        ({"graft": {"form": "stream", "layers": [0.5], "dim": 32, "place": "before", "memory": {}}}, "whole numbers"),
        ({"graft": {"form": "stream", "layers": [0], "dim": 33, "place": "before", "memory": {}}}, "dim 33"),
        ({"graft": {"form": "stream", "layers": [0], "dim": 32, "place": "under", "memory": {}}}, "place"),
        ({"lora": -1}, "lora"),
        ({"window": 1}, "window"),
        ({"chunk": 16}, "chunk 16"),
        ({"sinks": 9}, "sinks 9"),
        ({"prefill": 12}, "prefill 12"),
        ({"rotary_frequencies": [1.0]}, "head_width"),
        ({"depth": 3}, "depth"),
        ({"dim": True}, "dim"),
    ],
)
def test_a_configuration_that_cannot_be_says_why(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DecoderConfig.from_dict(SMALL.to_dict() | change)
