"""A memory beside a decoder: every split of a stream gives one answer, and that of a literal token-by-token writing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from titans_core.blocks import extension
from titans_core.config import MemoryConfig
from titans_core.decoder.side_memory import SideConfig, SideMemory, whitening
from titans_core.errors import ConfigError
from titans_core.layers import rms_normalise
from titans_core.state import State

DIM, CHUNK, TOKENS = 12, 4, 16
MEMORY = MemoryConfig(
    heads=2, depth=1, momentum=False, forget=False, max_step_size=0.5, initial_step_size=0.3, surprise_bound=None,
    conv_kernel=4, step_floor=0.55,
)  # fmt: skip
CONFIG = SideConfig(read=(0, 2), dim=16, memory=MEMORY)


def test_a_retention_that_speaks_from_zeros_is_refused_and_an_objective_is_not() -> None:
    with pytest.raises(ConfigError, match=r'"kl".*use "l2", or memories in the stream'):
        SideConfig(read=(0,), dim=16, memory=replace(MEMORY, retention="kl", residual_norm=True))
    huber = replace(CONFIG, memory=replace(MEMORY, objective="huber", forget=True))
    assert SideMemory(huber, DIM, CHUNK).gate_names == ["forget", "threshold", "step_size"]


def memory() -> SideMemory:
    torch.manual_seed(0)
    side = SideMemory(CONFIG, DIM, CHUNK).double()
    with torch.no_grad():
        for name, parameter in side.named_parameters():
            if name != "tap_weight":
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return side


def fresh(side: SideMemory, batch: int) -> State:
    state = {}
    for spec in side.state_specs():
        if isinstance(spec.initial, str):
            start: Tensor = side.get_parameter(spec.initial)
        else:
            start = torch.full(spec.shape, float(spec.initial), dtype=torch.double)
        state[spec.name] = start.unsqueeze(1 if spec.kind == "rows" else 0).expand(spec.batched(batch))
    return state


def stream() -> tuple[Tensor, Tensor, Tensor]:
    """What is read, the tokens' embeddings, and what stands behind the last norm."""
    torch.manual_seed(1)
    own = torch.randn(3, TOKENS, DIM).double()
    return torch.randn(3, TOKENS, 2 * DIM).double(), torch.randn(3, TOKENS, DIM).double(), own


def literal(side: SideMemory, hidden: Tensor, tokens: Tensor, normed: Tensor) -> Tensor:
    """One stream, one token after the other, from the formulas in the module's docstring."""

    def unit(z: Tensor) -> Tensor:
        return z / torch.sqrt(z.square().sum() + 1e-6)

    heads, width, taps = 2, 8, 4
    written = [side.initial[0][h].clone() for h in range(heads)]
    past = [torch.zeros(32).double()] * (taps - 1)
    answers, last = [], []
    for t in range(len(hidden)):
        layers = [rms_normalise(part) @ side.whiten[i] for i, part in enumerate(torch.split(hidden[t], DIM))]
        x = torch.cat(layers)
        last.append(x @ side.to_gates.weight)
        gates = last[-1]
        sure = sum((last[-1 - tap][1 + tap] for tap in range(min(3, t + 1))), side.gate_start[1])
        each = [last[-1 - tap][4 + 2 * tap : 6 + 2 * tap] for tap in range(min(3, t + 1))]
        u = x @ side.to_key.weight * 2 * torch.sigmoid(gates[0] + side.gate_start[0])
        past = [*past, u]
        query, key = (
            torch.stack([conv.weight[i] * past[len(past) - taps + i] for i in range(taps)]).sum(0)
            for conv in (side.query_conv, side.key_conv)
        )
        query, key = (rms_normalise(z) for z in (query, key))
        query, key = (z[:16] * z[16:] for z in (query, key))
        v = unit(unit(tokens[t]) @ side.to_value)
        share = torch.sigmoid(torch.stack(each).sum(0) + side.gate_bias["step_size"])
        step = torch.where(share > 0.55, 0.5 * (share - 0.55) / 0.45, 0.0)
        if t % CHUNK == 0:
            base = [w.clone() for w in written]
        y = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            k, q = unit(key[part]), unit(query[part])
            k, q = (unit((z @ side.rotations[0]) * (z @ side.rotations[1])) for z in (k, q))
            written[h] = written[h] - step[h] * 2 * torch.outer(k, k @ base[h] - v[part])
            y.append(q @ written[h])
        whole = torch.cat(y)
        sure = torch.sigmoid(sure + side.sure * whole.square().sum())
        answers.append(side.scale * sure * (whole @ side.out.weight - normed[t] / 30))
    return torch.stack(answers)


def test_whole_chunks_equal_the_formulas_written_out_token_by_token() -> None:
    side, (hidden, tokens, normed) = memory(), stream()
    got, _, _ = side.run_chunks(side.features(hidden), tokens, normed, fresh(side, 3))
    for row in range(3):
        torch.testing.assert_close(got[row], literal(side, hidden[row], tokens[row], normed[row]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("lengths", [[1] * TOKENS, [3, 1, 2, 2, 4, 1, 3]])
def test_any_split_inside_chunks_gives_the_answers_of_whole_chunks(lengths: list[int]) -> None:
    side, (hidden, tokens, normed) = memory(), stream()
    whole, after, _ = side.run_chunks(side.features(hidden), tokens, normed, fresh(side, 3))
    state, position, answers = fresh(side, 3), 0, []
    rows = {spec.name for spec in side.state_specs() if spec.kind == "rows"}
    for length in lengths:
        part, place = slice(position, position + length), position % CHUNK
        call = extension(torch.full((3,), position), length, CHUNK, None, torch.double)
        answer, changed, _ = side.run_piece(
            side.features(hidden[:, part]), tokens[:, part], normed[:, part], state, call
        )
        for name, value in changed.items():
            if name in rows:
                value = torch.cat([state[name][:place], value, state[name][place + length :]])
            state = state | {name: value}
        answers.append(answer)
        position += length
        if position % CHUNK == 0:
            state = state | side.commit(state)
    torch.testing.assert_close(torch.cat(answers, 1), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["memory_0"], after["memory_0"], rtol=1e-9, atol=1e-9)


def test_below_the_floor_a_stream_leaves_the_memory_as_it_was_to_the_bit() -> None:
    side, (hidden, tokens, normed) = memory(), stream()
    _, told, _ = side.run_chunks(side.features(hidden), tokens, normed, fresh(side, 3))
    assert (told["memory_0"] != 0).any()
    with torch.no_grad():
        side.gate_bias["step_size"].fill_(-20.0)  # a sigmoid of 2e-9, which without a floor would be written
    state = fresh(side, 3) | told
    _, after, _ = side.run_chunks(side.features(hidden), tokens, normed, state)
    assert torch.equal(after["memory_0"], told["memory_0"])


def test_rotations_square_the_likeness_of_keys() -> None:
    torch.manual_seed(0)
    side = SideMemory(SideConfig(read=(0,), dim=512, memory=replace(MEMORY, heads=1)), 64, CHUNK)
    one, other = torch.linalg.qr(torch.randn(512, 2))[0].T
    for likeness in (0.3, 0.6, 0.9):
        mixed = likeness * one + math.sqrt(1 - likeness**2) * other
        first, second = side._sharpened(torch.stack([one, mixed]))
        assert abs(float(first @ second) - likeness**2) < 0.12  # two standard deviations of 512 products


def test_a_fresh_memory_finds_the_token_that_followed_the_same_words() -> None:
    torch.manual_seed(0)
    vocabulary = torch.randn(50, 64)
    side = SideMemory(SideConfig(read=(0,), dim=512, memory=replace(MEMORY, heads=1)), 64, CHUNK)
    side.start_from(vocabulary, vocabulary)
    ids = torch.tensor([[1, 2, 3, 40, 9, 10, 11, 12, 13, 14, 15, 16, 4, 5, 1, 2, 3, 17, 18, 19]])
    tokens = vocabulary[ids]
    state = {
        spec.name: torch.full(spec.shape, float(spec.initial) if not isinstance(spec.initial, str) else 0.0)[None]
        for spec in side.state_specs()
        if spec.kind == "carried"
    }
    answers, _, _ = side.run_chunks(side.features(tokens), tokens, torch.zeros_like(tokens), state)
    assert (answers[0, 16] @ vocabulary.T).argmax() == 40


def test_whitened_rows_have_second_moments_of_one() -> None:
    torch.manual_seed(0)
    rows = torch.randn(500, 6).double() @ torch.randn(6, 6).double()
    white = rows @ whitening(rows, ridge=1e-9)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"read": ()}, {"read": (4, 0)}, {"dim": 9, "memory": MEMORY}, {"power": 0}, {"power": 5}]
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SideConfig(**wrong)  # type: ignore[arg-type]
