"""Objectives and retentions: the fast forms against the literal recurrence, and identities between the rules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.errors import ConfigError
from titans_core.memory import NeuralMemory
from titans_core.reference import reference_memory
from titans_core.rules import RULES, rule

sys.path.insert(0, str(Path(__file__).parent))

from memory_cases import layer, rule_configs, run_chunks, run_pieces
from test_memory_oracle import CHUNK, GRADIENT, RELATIVE, TOKENS, cuts, final_memory_error, relative

F64 = torch.float64


@settings(max_examples=20, deadline=None)
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


@settings(max_examples=10, deadline=None)
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


@settings(max_examples=10, deadline=None)
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


# ---------------------------------------------------------------- identities between the rules

FREE: dict[str, Any] = {"surprise_bound": None, "initial_step_size": 0.005}
NORM: dict[str, Any] = {"heads": 2, "residual_norm": True, "initial_step_size": 0.05}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "l_p with p = 2 is l2": ({"objective": "lp", "objective_p": 2.0}, {}),
    "l_p with p = 1 is l1": ({"objective": "lp", "objective_p": 1.0}, {"objective": "l1"}),
    "l_q with q = 2 is l2": (NORM | {"retention": "lq", "retention_q": 2.0}, NORM),
    "so it is for every token": ({"retention": "lq", "retention_q": 2.0, "link": "mirror", "link_at": "read"}, {}),
    "and by either map": (
        NORM | {"retention": "lq", "retention_q": 2.0, "link": "mirror", "link_at": "read"},
        NORM | {"retention": "lq", "retention_q": 2.0, "link": "printed"},
    ),
    "huber far below its threshold is l2": ({"objective": "huber", "initial_threshold": 80.0} | FREE, FREE),
    "huber-switch too": ({"objective": "huber-switch", "initial_threshold": 80.0}, {}),
}


@pytest.mark.parametrize(("options", "others"), SAME.values(), ids=SAME)
def test_a_rule_is_another_one_where_it_should_be(options: dict[str, Any], others: dict[str, Any]) -> None:
    memory = layer(MemoryConfig(**({"heads": 2} | options)), CHUNK, 7, F64)
    other = layer(MemoryConfig(**({"heads": 2} | others)), CHUNK, 8, F64)
    x = torch.randn(2, TOKENS, memory.dim, dtype=F64)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(_matching(memory, name, parameter))
        (ours, state), (theirs, state_of_other) = run_chunks(memory, x), run_chunks(other, x)
    assert relative(ours, theirs) <= 1e-12
    assert relative(state["memory_0"], state_of_other["memory_0"]) <= 1e-12
    assert float((state["memory_0"] - memory.initial[0].detach()).abs().max()) > 1e-3  # something was written


def _matching(memory: NeuralMemory, name: str, other: Tensor) -> Tensor:
    """A parameter of `memory` for a layer without a threshold: all but the columns that make one."""
    mine = memory.get_parameter(name)
    if mine.shape == other.shape:
        return mine
    first = 2 * memory.dim + memory.gate_names.index("threshold") * memory.heads
    return torch.cat([mine[:, :first], mine[:, first + memory.heads :]], dim=1)


def test_huber_keeps_the_direction_and_bounds_the_length_of_an_error() -> None:
    memory = layer(MemoryConfig(heads=1, objective="huber", surprise_bound=None), CHUNK, 0, F64)
    miss, threshold = 3 * torch.randn(50, memory.dim, dtype=F64), torch.rand(50, dtype=F64) * 8
    surprise, gradient = memory.objective.surprised(miss, threshold)
    length = miss.norm(dim=-1)
    torch.testing.assert_close(surprise, length**2)
    torch.testing.assert_close(gradient.norm(dim=-1), 2 * torch.minimum(length, threshold))
    torch.testing.assert_close(gradient / gradient.norm(dim=-1, keepdim=True), miss / length[:, None])


def test_kl_in_logarithms_is_the_papers_recursion_of_weights() -> None:
    """W_t = c softmax((1 - alpha_t) log W_(t-1) - theta_t gradient), and c is the root of the number of inputs."""
    options = MemoryConfig(heads=1, residual_norm=True, momentum=False, retention="kl", forget_to="zero")
    memory = layer(options, CHUNK, 3, F64)
    x = torch.randn(1, TOKENS, memory.dim, dtype=F64)
    with torch.no_grad():
        _, k, v, logits, _ = memory.project(x, torch.zeros(1, 3, 3 * memory.dim, dtype=F64))
        gates = memory.gates(logits)
        scales = [start.shape[-2] ** 0.5 for start in memory.initial]
        weights = [c * torch.softmax(start, -2)[None] for c, start in zip(scales, memory.initial, strict=True)]
        gain = memory.initial_gain[None]
        for t in range(TOKENS):
            if t % CHUNK == 0:
                base, base_gain = weights, gain
            now = slice(t, t + 1)
            rows = memory.network.write(base, base_gain, k[:, :, now], v[:, :, now])
            assert gates.forget is not None
            assert rows.gain_errors is not None
            keep, theta = 1 - torch.sigmoid(gates.forget[0, 0, t]), gates.step_size[0, 0, t]
            gradients = [a.transpose(-1, -2) @ delta for a, delta in zip(rows.inputs, rows.errors, strict=True)]
            each = zip(scales, weights, gradients, strict=True)
            weights = [c * torch.softmax(keep * w.log() - theta * g, -2) for c, w, g in each]
            gain = keep * gain - theta * rows.gain_errors[:, :, 0]
        _, state = run_chunks(memory, x)
    for index, weight in enumerate(weights):
        assert relative(memory.link.weights(state[f"memory_{index}"]), weight) <= 1e-12
    assert relative(state["memory_gain"], gain) <= 1e-12


@pytest.mark.parametrize("link_at", ["commit", "read"])
def test_weights_of_kl_are_shares_however_long_the_stream(link_at: str) -> None:
    options = MemoryConfig(heads=2, residual_norm=True, retention="kl", link_at=link_at, initial_step_size=0.5)
    memory = layer(options, CHUNK, 3, torch.float32)
    with torch.no_grad():
        _, state = run_chunks(memory, torch.randn(1, 200 * CHUNK, memory.dim))
    weights = memory.link.weights(state["memory_0"])
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-2), torch.full_like(weights[..., 0, :], memory.dim**0.5 / 2**0.5))


@pytest.mark.parametrize("link", [{"retention": "lq"}, {"retention": "lq", "link": "mirror"}])
def test_a_memory_of_zeros_has_finite_weights(link: dict[str, Any]) -> None:
    memory = layer(MemoryConfig(heads=1, residual_norm=True, **link), CHUNK, 0, torch.float32)
    zero = torch.zeros(1, 1, 8, 8, requires_grad=True)
    weights = memory.link.weights(zero)
    weights.sum().backward()
    assert bool(weights.isfinite().all())
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


# ---------------------------------------------------------------- what makes no sense is refused

REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"objective": "l3"}, "choose one of l2, l1, lp, huber, huber-switch"),
    ({"retention": "elastic"}, "choose one of l2, lq, kl"),
    ({"objective_p": 1.5}, 'objective_p is 1.5, and nothing looks at it.*memory.objective="lp"'),
    ({"objective": "lp", "objective_p": 0.5}, "an exponent from 1 to 8"),
    ({"objective": "l1", "initial_threshold": 0.5}, "initial_threshold.*huber"),
    ({"objective": "huber", "initial_threshold": 0.0}, "a norm above 0"),
    ({"objective": "huber", "initial_threshold": 0.5}, "less than half of the bound, or memory.surprise_bound=null"),
    ({"retention_q": 3.0}, 'retention_q.*memory.retention="lq"'),
    ({"link_at": "read"}, "of l2 the link is nothing"),
    ({"retention": "kl", "residual_norm": True, "link": "mirror"}, 'link.*memory.retention="lq"'),
    ({"retention": "lq", "retention_q": 1.5, "residual_norm": True}, "an exponent from 2 to 8"),
    ({"retention": "lq"}, 'residual_norm=true, or memory.link="mirror"'),
    ({"retention": "kl"}, "lack the values' size and sign"),
    ({"initial_gain": 0.5}, "memory.residual_norm=true"),
)


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_make_no_sense_are_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**options)


@pytest.mark.parametrize("name", RULES)
def test_every_named_rule_is_a_memory_and_only_titans_and_its_like_have_momentum(name: str) -> None:
    assert MemoryConfig(**rule(name)).momentum == (name == "titans")


def test_an_unknown_rule_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="choose one of titans, momentum-free, yaad, moneta, memora"):
        rule("muon")


def test_a_configuration_from_before_there_were_rules_is_of_l2() -> None:
    values = TitansConfig().to_dict()
    for name in ("objective", "objective_p", "initial_threshold", "retention", "retention_q", "link", "link_at"):
        del values["memory"][name]
    memory = TitansConfig.from_stored(values).memory
    assert (memory.objective, memory.retention) == ("l2", "l2")


def test_a_stored_default_that_nothing_looks_at_does_not_keep_a_checkpoint_from_opening() -> None:
    values = TitansConfig().to_dict()
    values["memory"] |= {"initial_threshold": 1.0, "objective_p": 2.5, "link_at": "read"}
    assert TitansConfig.from_stored(values) == TitansConfig()
    with pytest.raises(ConfigError, match="nothing looks at it"):
        TitansConfig.from_dict(values)
