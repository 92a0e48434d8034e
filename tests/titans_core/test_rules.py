"""Objectives and retentions: the fast forms against the literal recurrence, and identities between the rules."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_core.config import MemoryConfig
from titans_core.errors import ConfigError
from titans_core.memory import NeuralMemory
from titans_core.reference import reference_memory

sys.path.insert(0, str(Path(__file__).parent))

from memory_cases import layer, rule_configs, run_chunks, run_pieces
from test_memory_oracle import CHUNK, GRADIENT, RELATIVE, TOKENS, cuts, final_memory_error, relative

F64 = torch.float64


@settings(max_examples=50, deadline=None)
@given(options=rule_configs(), seed=st.integers(0, 2**16), data=st.data())
def test_chunk_step_and_commit_of_every_rule_equal_the_literal_recurrence_in_fp64(
    options: MemoryConfig, seed: int, data: st.DataObject
) -> None:
    memory = layer(options, CHUNK, seed, F64)
    x = torch.randn(1, TOKENS, memory.dim, dtype=F64)
    with torch.no_grad():
        want = reference_memory(memory, x)
        whole, whole_state = run_chunks(memory, x)
        steps, step_state = run_pieces(memory, x, [1] * TOKENS, padded=False)
        mixed, mixed_state = run_pieces(memory, x, cuts(data), padded=True)
    for answers, state in ((whole, whole_state), (steps, step_state), (mixed, mixed_state)):
        assert relative(answers, want.answers) <= RELATIVE[F64]
        assert final_memory_error(memory, state, want) <= RELATIVE[F64]


@settings(max_examples=25, deadline=None)
@given(options=rule_configs(), seed=st.integers(0, 2**16), data=st.data())
def test_chunk_step_and_commit_of_every_rule_equal_the_literal_recurrence_in_fp32(
    options: MemoryConfig, seed: int, data: st.DataObject
) -> None:
    memory = layer(options, CHUNK, seed, torch.float32)
    x = torch.randn(1, TOKENS, memory.dim)
    with torch.no_grad():
        want = reference_memory(memory.double(), x.double())
        memory.float()
        whole, _ = run_chunks(memory, x)
        mixed, _ = run_pieces(memory, x, cuts(data), padded=True)
    for answers in (whole, mixed):
        assert relative(answers.double(), want.answers) <= RELATIVE[torch.float32]


@settings(max_examples=25, deadline=None)
@given(options=rule_configs(), seed=st.integers(0, 2**16))
def test_training_gradients_of_every_rule_equal_those_through_the_literal_recurrence(
    options: MemoryConfig, seed: int
) -> None:
    memory = layer(options, CHUNK, seed, F64)
    x, weight = torch.randn(2, 1, 2 * CHUNK, memory.dim, dtype=F64)
    parameters = dict(memory.named_parameters())

    def gradients(answers: Tensor) -> list[Tensor]:
        found = torch.autograd.grad((answers * weight).sum(), list(parameters.values()), materialize_grads=True)
        return list(found)

    want, got = gradients(reference_memory(memory, x).answers), gradients(run_chunks(memory, x)[0])
    scale = max(float(grad.abs().max()) for grad in want)
    assert scale > 0
    for name, ours, theirs in zip(parameters, got, want, strict=True):
        assert float((ours - theirs).abs().max()) <= GRADIENT * max(scale, 1.0), name
