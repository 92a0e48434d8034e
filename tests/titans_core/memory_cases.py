"""Random memory layers, and the fast forms driven over a stream: shared by the tests of the memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from titans_core.blocks import extension
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.layers import merge_heads
from titans_core.memory import MemoryInputs, NeuralMemory
from titans_core.state import State

memory_configs = st.builds(
    MemoryConfig,
    heads=st.sampled_from([1, 2]),
    depth=st.integers(1, 4),
    expansion=st.sampled_from([0.5, 1.0, 2.0]),
    activation=st.sampled_from(["gelu", "silu"]),
    residual_norm=st.booleans(),
    momentum=st.booleans(),
    forget=st.booleans(),
    forget_to=st.sampled_from(["start", "zero"]),
    step_size=st.sampled_from(["token", "token", "constant", "off"]),
    gate_scope=st.sampled_from(["token", "chunk"]),
    max_step_size=st.sampled_from([0.1, 1.0]),
    step_floor=st.sampled_from([0.0, 0.0, 0.05]),
    initial_step_size=st.just(0.05),
    surprise_bound=st.sampled_from([1.0, 0.1, None]),
    conv_kernel=st.sampled_from([1, 2, 4]),
)

OBJECTIVES: tuple[dict[str, Any], ...] = (
    {"objective": "l1"},
    {"objective": "lp", "objective_p": 1.0},
    {"objective": "lp", "objective_p": 1.5},
    {"objective": "lp", "objective_p": 3.0},
    {"objective": "huber"},
    {"objective": "huber-switch"},
    {"objective": "l2"},
)
RETENTIONS: tuple[dict[str, Any], ...] = (
    *(
        {"retention": "lq", "retention_q": q, "link": link, "link_at": link_at}
        for q in (2.0, 3.0, 4.0)
        for link in ("printed", "mirror")
        for link_at in ("commit", "read")
    ),
    {"retention": "kl", "link_at": "commit"},
    {"retention": "kl", "link_at": "read"},
)


@st.composite
def rule_configs(draw: st.DrawFn) -> MemoryConfig:
    """Memories of every objective and retention; at least one of the two is not l2."""
    rule = draw(st.sampled_from(OBJECTIVES)) | draw(st.sampled_from(RETENTIONS))
    if rule["objective"] != "l2" and draw(st.booleans()):
        rule = {name: value for name, value in rule.items() if name.startswith(("objective", "initial"))}
    needs_norm = rule.get("retention") == "kl" or rule.get("link") == "printed"
    options = draw(memory_configs)
    if rule["objective"].startswith("huber"):
        rule = rule | {"initial_threshold": 0.3 * (options.surprise_bound or 1.0)}
    return replace(options, residual_norm=options.residual_norm or needs_norm, depth=min(options.depth, 3), **rule)


def layer(options: MemoryConfig, chunk: int, seed: int, dtype: torch.dtype) -> NeuralMemory:
    """A memory layer with every parameter moved away from its start, so that nothing hides at zero."""
    torch.manual_seed(seed)
    config = TitansConfig(variant="lmm", dim=8, chunk=chunk, persistent_tokens=0, memory=options)
    memory = NeuralMemory(config).to(dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return memory


def fresh(memory: NeuralMemory, batch: int) -> State:
    """The layer's state for fresh streams, rows included; differentiable."""
    dtype = memory.to_query.weight.dtype
    state = {}
    for spec in memory.state_specs():
        learned = isinstance(spec.initial, str)
        start = memory.get_parameter(spec.initial) if learned else torch.full(spec.shape, spec.initial, dtype=dtype)
        state[spec.name] = start.unsqueeze(1 if spec.kind == "rows" else 0).expand(spec.batched(batch))
    return state


def run_chunks(memory: NeuralMemory, x: Tensor) -> tuple[Tensor, State]:
    """Answers `[B, T, dim]` of the chunk form over fresh streams, T whole chunks."""
    state = fresh(memory, x.shape[0])
    q, k, v, logits, _ = memory.project(x, state.get("conv_state"))
    answers = []
    for chunk in memory.chunks(q, k, v, logits):
        answer, new, _ = memory.read_and_write_chunk(chunk, state)
        state = state | new
        answers.append(answer)
    return merge_heads(torch.cat(answers, dim=2)), state


def run_pieces(memory: NeuralMemory, x: Tensor, lengths: list[int], padded: bool) -> tuple[Tensor, State]:
    """Answers of extend and commit; `lengths` cuts the stream and never crosses a chunk boundary."""
    state, position, answers = fresh(memory, x.shape[0]), 0, []
    rows = {spec.name for spec in memory.state_specs() if spec.kind == "rows"}
    for length in lengths:
        piece, real = x[:, position : position + length], None
        if padded:  # right-pad with noise, which must not matter
            piece = torch.cat([piece, torch.randn_like(x[:, : memory.chunk - length])], dim=1)
            real = torch.full((x.shape[0],), length)
        call = extension(torch.full((x.shape[0],), position), piece.shape[1], memory.chunk, real, x.dtype)
        q, k, v, logits, past = memory.project(piece, state.get("conv_state"), real)
        held, changed = memory.held_inside_chunk(logits, state, call.one_hot)
        inputs = MemoryInputs(q, k, v, memory.gates(held))
        answer, new, _ = memory.extend(inputs, state, call.one_hot, real)
        place = position % memory.chunk
        for name, value in (changed | new).items():
            if name in rows:
                stored = [state[name][:place], value[:length], state[name][place + length :]]
                state = state | {name: torch.cat(stored)}
            else:
                state = state | {name: value}
        if past is not None:
            state = state | {"conv_state": past}
        answers.append(answer[:, :, :length])
        position += length
        if position % memory.chunk == 0:
            state = state | memory.commit(state)
    return merge_heads(torch.cat(answers, dim=2)), state
