"""A decoder read from a folder computes what transformers computes, and with sinks what the definition says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.titans_core.decoder.families import FAMILIES, banded, ids, make, with_sinks
from titans_core.decoder import Decoder
from titans_core.pretrained import decoder_of, open_pretrained

SAME = 2e-4  # fp32


def opened(folder: Path, window: int, sinks: int, chunk: int = 8, prefill: int = 32) -> Decoder:
    pretrained = open_pretrained(folder)
    return decoder_of(pretrained.streaming(window=window, sinks=sinks, chunk=chunk, prefill=prefill))


@torch.no_grad()
def read(decoder: Decoder, tokens: Tensor) -> Tensor:
    padding = -tokens.shape[1] % decoder.config.chunk
    return decoder(torch.nn.functional.pad(tokens, (0, padding)))[0][:, : tokens.shape[1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_inside_the_window_and_the_sinks_it_is_the_model(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    tokens = ids(24, batch=2)
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
    assert whole.std() > 0.5
    assert (read(opened(tmp_path, window=20, sinks=4), tokens) - whole).abs().max() <= SAME


@pytest.mark.parametrize("name", FAMILIES)
def test_without_sinks_it_is_the_model_under_a_band(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    tokens = ids(1500)
    want = banded(model, tokens, 24)
    assert (read(opened(tmp_path, window=24, sinks=0), tokens) - want).abs().max() <= SAME


def test_a_band_as_wide_as_the_trained_window_is_the_model_itself(tmp_path: Path) -> None:
    model = make("mistral", tmp_path)
    tokens = ids(300)
    with torch.no_grad():
        want = model(tokens, use_cache=False).logits
    assert (read(opened(tmp_path, window=24, sinks=0), tokens) - want).abs().max() <= SAME


@pytest.mark.parametrize("name", ["llama-llama3", "qwen3"])
def test_with_sinks_it_is_the_literal_writing(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    tokens = ids(1500 if name == "qwen3" else 200)
    want = with_sinks(model, tokens, window=13, sinks=3)
    assert (read(opened(tmp_path, window=13, sinks=3), tokens) - want).abs().max() <= SAME
    assert (banded(model, tokens, 13) - want).abs().max() > 0.1  # sinks matter here


@pytest.mark.parametrize(("window", "sinks", "chunk"), [(2, 1, 1), (8, 0, 8), (9, 8, 8), (16, 4, 4), (17, 1, 8)])
@torch.no_grad()
def test_any_split_gives_the_same_logits_and_state(window: int, sinks: int, chunk: int, tmp_path: Path) -> None:
    make("qwen3", tmp_path)
    decoder = opened(tmp_path, window, sinks, chunk, prefill=4 * chunk).double()
    tokens = ids(12 * chunk, batch=2)
    whole, end = decoder(tokens)
    pieces = torch.Generator().manual_seed(window)
    state, outputs, done = decoder.initial_state(2, rows=True), [], 0
    state = {name: value.clone() for name, value in state.items()}
    while done < tokens.shape[1]:
        left = chunk - done % chunk
        length = int(torch.randint(1, left + 1, (1,), generator=pieces))
        out, _, changed = decoder.extend(tokens[:, done : done + length], state["position"], None, state)
        for name, value in changed.items():
            place = done % chunk
            state[name][place : place + length] = value
        done += length
        state["position"] = state["position"] + length
        outputs.append(out)
        if done % chunk == 0:
            state |= decoder.commit(state)
    assert (torch.cat(outputs, dim=1) - whole).abs().max() <= 1e-9
    for name, value in end.items():
        assert (state[name] - value).abs().max() <= 1e-9, name


@torch.no_grad()
def test_padding_behind_real_tokens_changes_nothing(tmp_path: Path) -> None:
    make("llama", tmp_path)
    decoder = opened(tmp_path, window=12, sinks=2).double()
    tokens = ids(8)
    _, state = decoder(ids(16))
    state = {**decoder.initial_state(1, rows=True), **state}
    alone, _, rows = decoder.extend(tokens[:, :3], state["position"], None, state)
    padded, _, padded_rows = decoder.extend(tokens, state["position"], torch.tensor([3]), state)
    assert (alone - padded[:, :3]).abs().max() <= 1e-12
    assert all((rows[name] - padded_rows[name][:3]).abs().max() <= 1e-12 for name in rows)
