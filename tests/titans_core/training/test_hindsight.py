"""Hindsight: the key that a later prediction needs, and the token that was worth writing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from titans_core.training.hindsight import LIKENESS, MISSED, SHARPNESS, hindsight

TOKENS = 7


def stream(target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids 10 to 16; the last prediction but one counts and wants `target`, and the last token is the answer."""
    inputs = torch.arange(10, 10 + TOKENS)[None]
    targets = torch.zeros_like(inputs)
    targets[0, -2] = target
    mask = torch.zeros(1, TOKENS, dtype=torch.bool)
    mask[0, -2] = True
    return inputs, targets, mask


def units() -> Tensor:
    """Keys at right angles to one another, `[1, 1, T, T]`."""
    return torch.eye(TOKENS)[None, None]


def test_finding_costs_nothing_where_the_query_is_the_key_of_the_wanted_token() -> None:
    keys, gates = units(), torch.zeros(1, 1, TOKENS)
    right = keys[:, :, [2] * TOKENS]
    wrong = keys[:, :, [4] * TOKENS]
    found = hindsight(right, keys, *stream(12), gates).finding
    missed = hindsight(wrong, keys, *stream(12), gates).finding
    among = TOKENS - 3  # what stood before the wanted token is no rival
    torch.testing.assert_close(float(found), math.log(1 + (among - 1) * math.exp(-SHARPNESS)), rtol=1e-3, atol=1e-4)
    assert missed > SHARPNESS - 1


def test_a_value_that_was_replaced_is_no_rival_of_the_later_one() -> None:
    keys = units().clone()
    keys[0, 0, 1] = keys[0, 0, 3]  # token 11 and token 13 were said of the same thing
    query = keys[:, :, [3] * TOKENS]
    later = hindsight(query, keys, *stream(13), torch.zeros(1, 1, TOKENS)).finding
    assert later < 1e-2


def test_the_step_size_is_to_be_open_for_the_wanted_token_alone() -> None:
    keys = units()
    queries = keys[:, :, [2] * TOKENS]
    gates = torch.zeros(1, 1, TOKENS, requires_grad=True)
    writing = hindsight(queries, keys, *stream(12), gates).writing
    (gradient,) = torch.autograd.grad(writing, gates)
    expected = torch.full((TOKENS,), 0.5)
    expected[2], expected[-1] = -0.5 * MISSED, 0.0  # the answer itself is not judged
    torch.testing.assert_close(gradient[0, 0], expected)
    torch.testing.assert_close(writing.item(), (TOKENS - 2 + MISSED) * math.log(2), rtol=1e-6, atol=0)


def test_a_value_that_was_replaced_is_not_to_be_left_alone() -> None:
    keys = units().clone()
    keys[0, 0, 1] = keys[0, 0, 3]  # token 11 and token 13 were said of the same thing
    gates = torch.zeros(1, 1, TOKENS, requires_grad=True)
    writing = hindsight(keys[:, :, [3] * TOKENS], keys, *stream(13), gates).writing
    (gradient,) = torch.autograd.grad(writing, gates)
    assert gradient[0, 0].tolist() == [0.5, 0.0, 0.5, -0.5 * MISSED, 0.5, 0.5, 0.0]


def test_keys_of_what_is_written_are_to_be_unlike_other_queries() -> None:
    inputs, targets, mask = stream(12)
    targets[0, -3], mask[0, -3] = 14, True  # two questions: for token 12 and for token 14
    keys = units()
    queries = keys[:, :, [2] * TOKENS].clone()
    queries[0, 0, -3] = 0.6 * keys[0, 0, 4] + 0.8 * keys[0, 0, 2]
    shut = torch.full((1, 1, TOKENS), -60.0)
    shut[0, 0, [2, 4]] = 60.0
    finding = float(hindsight(queries, keys, inputs, targets, mask, shut).finding)
    sharp = math.log(1 + math.exp(-SHARPNESS))  # token 12 stood before token 14 and is no rival of it, but is alike
    assert finding == pytest.approx(sharp + LIKENESS * (0.4**2 + 0.8**2), rel=1e-5)


def test_a_stream_without_questions_teaches_to_leave_all_of_it_alone() -> None:
    inputs, targets, mask = stream(12)
    gates = torch.zeros(1, 1, TOKENS, requires_grad=True)
    writing = hindsight(units(), units(), inputs, targets, mask & False, gates).writing
    (gradient,) = torch.autograd.grad(writing, gates)
    assert gradient.flatten().tolist() == [0.5] * TOKENS


def test_a_token_that_never_stood_before_teaches_nothing() -> None:
    keys = units()
    lessons = hindsight(keys, keys, *stream(99), torch.zeros(1, 1, TOKENS))
    assert float(lessons.finding) == float(lessons.writing) == int(lessons.found) == 0


def test_what_is_not_written_is_no_rival() -> None:
    keys = units().clone()
    keys[0, 0, 4] = keys[0, 0, 2]  # token 14 looks like token 12
    gates = torch.zeros(1, 1, TOKENS)
    confused = hindsight(keys[:, :, [2] * TOKENS], keys, *stream(12), gates)
    gates[0, 0, 4] = -20.0
    told_apart = hindsight(keys[:, :, [2] * TOKENS], keys, *stream(12), gates)
    assert confused.finding > math.log(2)
    assert told_apart.finding < 0.05
    assert int(told_apart.found) == 1
