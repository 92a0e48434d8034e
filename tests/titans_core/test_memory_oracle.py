"""The fast forms of the memory against the literal recurrence with autograd on the inner loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_core.config import MemoryConfig
from titans_core.memory import NeuralMemory
from titans_core.reference import ReferenceResult, reference_memory
from titans_core.state import State

sys.path.insert(0, str(Path(__file__).parent))

from memory_cases import layer, memory_configs, run_chunks, run_pieces

RELATIVE = {torch.float64: 1e-10, torch.float32: 2e-5}
GRADIENT = 1e-8  # fp64
CHUNK, TOKENS = 5, 15


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-3))


def final_memory_error(memory: NeuralMemory, state: State, want: ReferenceResult) -> float:
    worst = 0.0
    for b, heads in enumerate(want.memory):
        for h, fast in enumerate(heads):
            names = [f"{index}" for index in range(memory.options.depth)]
            names += ["gain"] if memory.options.residual_norm else []
            for name, expected, momentum in zip(names, fast, want.momentum[b][h], strict=True):
                worst = max(worst, relative(state[f"memory_{name}"][b, h], expected))
                if memory.options.momentum:
                    difference = (state[f"momentum_{name}"][b, h] - momentum).abs().max()
                    worst = max(worst, float(difference / momentum.abs().max().clamp(min=1e-3)))
    return worst


def cuts(draw_from: st.DataObject) -> list[int]:
    """Random piece lengths that respect chunk boundaries."""
    lengths: list[int] = []
    while sum(lengths) < TOKENS:
        room = CHUNK - sum(lengths) % CHUNK
        lengths.append(draw_from.draw(st.integers(1, room)))
    return lengths


@settings(max_examples=60, deadline=None)
@given(options=memory_configs, seed=st.integers(0, 2**16), data=st.data())
def test_chunk_step_and_commit_equal_the_literal_recurrence_in_fp64(
    options: MemoryConfig, seed: int, data: st.DataObject
) -> None:
    memory = layer(options, CHUNK, seed, torch.float64)
    x = torch.randn(2, TOKENS, memory.dim, dtype=torch.float64)
    with torch.no_grad():
        want = reference_memory(memory, x)
        whole, whole_state = run_chunks(memory, x)
        steps, step_state = run_pieces(memory, x, [1] * TOKENS, padded=False)
        mixed, mixed_state = run_pieces(memory, x, cuts(data), padded=True)
    for answers, state in ((whole, whole_state), (steps, step_state), (mixed, mixed_state)):
        assert relative(answers, want.answers) <= RELATIVE[torch.float64]
        assert final_memory_error(memory, state, want) <= RELATIVE[torch.float64]


@settings(max_examples=30, deadline=None)
@given(options=memory_configs, seed=st.integers(0, 2**16), data=st.data())
def test_chunk_step_and_commit_equal_the_literal_recurrence_in_fp32(
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
@given(options=memory_configs, seed=st.integers(0, 2**16))
def test_training_gradients_of_all_parameters_equal_those_through_the_literal_recurrence(
    options: MemoryConfig, seed: int
) -> None:
    memory = layer(options, CHUNK, seed, torch.float64)
    x = torch.randn(1, 2 * CHUNK, memory.dim, dtype=torch.float64)
    weight = torch.randn(1, 2 * CHUNK, memory.dim, dtype=torch.float64)
    names = dict(memory.named_parameters())

    def gradients(answers: Tensor) -> dict[str, Tensor]:
        loss = (answers * weight).sum()
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        return {
            name: torch.zeros_like(names[name]) if grad is None else grad
            for name, grad in zip(names, found, strict=True)
        }

    want = gradients(reference_memory(memory, x).answers)
    got = gradients(run_chunks(memory, x)[0])
    scale = max(float(grad.abs().max()) for grad in want.values())
    assert scale > 0
    for name, grad in want.items():
        assert float((got[name] - grad).abs().max()) <= GRADIENT * max(scale, 1.0), name


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("residual_norm", [False, True])
def test_finite_differences_confirm_the_inner_gradient(depth: int, activation: str, residual_norm: bool) -> None:
    options = MemoryConfig(
        heads=1, depth=depth, activation=activation, residual_norm=residual_norm, surprise_bound=None
    )
    memory = layer(options, CHUNK, depth, torch.float64)
    weights = [matrix[0].detach() for matrix in memory.initial]
    gain = memory.initial_gain[0].detach() if residual_norm else None
    keys, values = torch.randn(2, CHUNK, memory.dim, dtype=torch.float64)
    writes = memory.network.write(weights, gain, keys, values)

    def loss(matrices: list[Tensor], scale: Tensor | None) -> float:
        wide = None if scale is None else scale[None]
        answers = memory.network.read(keys, lambda index, x: x @ matrices[index], wide)
        return float((answers - values).pow(2).sum())

    step = 1e-5
    for index, matrix in enumerate(weights):
        closed = writes.inputs[index].T @ writes.errors[index]
        for row, column in [(0, 0), (matrix.shape[0] - 1, matrix.shape[1] - 1)]:
            values_at = []
            for sign in (1, -1):
                moved = [item.clone() for item in weights]
                moved[index][row, column] += sign * step
                values_at.append(loss(moved, gain))
            numeric = (values_at[0] - values_at[1]) / (2 * step)
            assert abs(float(closed[row, column]) - numeric) <= 1e-6 * max(1.0, abs(numeric))
    if gain is not None:
        assert writes.gain_errors is not None
        ends = [loss(weights, gain + sign * step * torch.eye(len(gain))[0]) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert abs(float(writes.gain_errors.sum(0)[0]) - numeric) <= 1e-6 * max(1.0, abs(numeric))


def test_the_oracle_notices_a_wrong_gate() -> None:
    memory = layer(MemoryConfig(heads=1), CHUNK, 0, torch.float64)
    x = torch.randn(1, TOKENS, memory.dim, dtype=torch.float64)
    with torch.no_grad():
        want = reference_memory(memory, x).answers
        memory.gate_bias["momentum"] += 0.01
        assert relative(run_chunks(memory, x)[0], want) > 1e-6


def test_bounded_surprise_never_lets_a_row_exceed_the_bound() -> None:
    memory = layer(MemoryConfig(heads=1, depth=3, surprise_bound=0.5), CHUNK, 1, torch.float64)
    weights = [matrix[0].detach() for matrix in memory.initial]
    keys, values = torch.randn(2, CHUNK, memory.dim, dtype=torch.float64) * 10
    errors = memory.network.write(weights, None, keys, values).errors
    assert max(float(rows.norm(dim=-1).max()) for rows in errors) <= 0.5 + 1e-12
    assert max(float(rows.norm(dim=-1).max()) for rows in errors) > 0.49
