"""Sampling against definitions written out the long way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from titans_runtime import InputError, SamplingOptions
from titans_runtime.text.sampling import Sampler, distribution, penalised

logits = st.lists(st.integers(-40, 40), min_size=1, max_size=12).map(lambda values: [value / 8 for value in values])
options = st.builds(
    SamplingOptions,
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)


def written_out(scores: list[float], chosen: SamplingOptions) -> dict[int, float]:
    """Token -> probability, step by step over Python lists."""
    best = max(scores)
    weights = {token: math.exp((score - best) / chosen.temperature) for token, score in enumerate(scores)}
    order = sorted(weights, key=lambda token: (-scores[token], token))
    if chosen.top_k is not None:
        order = order[: chosen.top_k]
    total = sum(weights[token] for token in order)
    probability = {token: weights[token] / total for token in order}
    kept: list[int] = []
    mass = 0.0
    for token in order:
        if chosen.top_p is not None and mass >= chosen.top_p:
            break
        mass += probability[token]
        kept.append(token)
    if chosen.min_p is not None:
        kept = [token for token in kept if probability[token] >= chosen.min_p * probability[order[0]]]
    total = sum(probability[token] for token in kept)
    return {token: probability[token] / total for token in kept}


@settings(deadline=None)
@given(scores=logits, chosen=options)
def test_the_distribution_is_the_definition(scores: list[float], chosen: SamplingOptions) -> None:
    expected = written_out(scores, chosen)
    if chosen.top_p is not None:  # a mass within rounding of top_p may fall either way
        full = sorted(written_out(scores, SamplingOptions(temperature=chosen.temperature, top_k=chosen.top_k)).values())
        assume(np.abs(np.cumsum(full[::-1]) - chosen.top_p).min() > 1e-9)
    if chosen.min_p is not None:
        assume(all(abs(p - chosen.min_p * max(expected.values())) > 1e-12 or p == 1 for p in expected.values()))
    tokens, probabilities = distribution(np.array(scores), chosen)
    assert set(tokens.tolist()) == set(expected)
    np.testing.assert_allclose(probabilities, [expected[token] for token in tokens.tolist()], rtol=1e-9)


@given(scores=logits)
def test_temperature_zero_takes_the_first_of_the_best(scores: list[float]) -> None:
    sampler = Sampler(SamplingOptions(temperature=0), len(scores))
    assert sampler.choose(np.array(scores, np.float32)) == scores.index(max(scores))


@given(scores=logits, temperature=st.sampled_from([1e-300, 1e-9]))
def test_a_vanishing_temperature_takes_one_of_the_best(scores: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=0), len(scores))
    assert scores[sampler.choose(np.array(scores, np.float32))] == max(scores)


def test_draws_follow_the_distribution() -> None:
    chosen = SamplingOptions(temperature=0.7, top_k=4, seed=1)
    scores = np.array([0.5, 2.0, 1.0, -1.0, 0.0, 1.5], np.float32)
    sampler = Sampler(chosen, 6)
    counts = np.bincount([sampler.choose(scores) for _ in range(20_000)], minlength=6)
    expected = written_out(scores.tolist(), chosen)
    for token in range(6):  # four standard deviations of a binomial
        p = expected.get(token, 0.0)
        assert abs(counts[token] / 20_000 - p) <= 4 * math.sqrt(p * (1 - p) / 20_000)


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    scores = np.array([2.0, -2.0, 2.0, -2.0, 0.0])
    seen = np.array([True, True, False, False, True])
    np.testing.assert_array_equal(penalised(scores, seen, 2.0), [1.0, -4.0, 2.0, -2.0, 0.0])


def test_what_was_observed_or_chosen_counts_as_seen() -> None:
    sampler = Sampler(SamplingOptions(temperature=0, repetition_penalty=4.0), 3)
    sampler.observe([0])
    scores = np.array([3.0, 2.0, 1.0], np.float32)
    assert [sampler.choose(scores) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"seed": -1},
        {"seed": "x"},
    ],
)
def test_options_outside_their_range_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is .*; use "):
        SamplingOptions(**wrong)  # type: ignore[arg-type]
