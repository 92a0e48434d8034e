"""The law on the toy: however a stream is cut into calls, it gives what the token-by-token oracle gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.runtime.toy import FEATURES, C, Oracle, Toy, write_toy
from titans_format.fields import TokenInputs
from titans_runtime import Driver, InputError, Model, load
from titans_runtime.arrays import Array
from titans_runtime.stream.inputs import Inputs, checked_streams
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY, Policy

TOLERANCE = 2e-5  # float32 graphs against the float64 oracle
POLICIES = [FASTEST, STEPS_ONLY, Policy(prefill=False), Policy(extend=False), Policy(extend_from=1)]


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def stream(model: Model, batch: int, tokens: int, seed: int) -> NDArray[np.int64] | NDArray[np.float32]:
    """Random inputs `[B, T]` or `[B, T, F]`."""
    random = np.random.default_rng(seed)
    if model.vocab_size is None:
        return random.standard_normal((batch, tokens, FEATURES)).astype(np.float32)
    return random.integers(0, model.vocab_size, (batch, tokens))


def assert_state_is_the_oracles(driver: Driver, oracles: list[Oracle]) -> None:
    """Every state tensor of every stream; rows not yet written in this chunk are anybody's."""
    state = driver.state()
    for b, oracle in enumerate(oracles):
        assert_close(state["0.memory_0"][b], oracle.memory)
        assert_close(state["0.trace"][b], oracle.trace)
        for row, key in enumerate(oracle.keys):
            assert_close(state["0.rows"][row, b], key)


pieces = st.lists(st.tuples(st.integers(1, 3 * C), st.sampled_from(POLICIES)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(cuts=pieces, batch=st.integers(1, 3), seed=st.integers(0, 999), continuous=st.booleans())
def test_any_split_of_a_stream_gives_the_same_outputs_surprise_and_state(
    toy_model: Model,
    series_model: Model,
    cuts: list[tuple[int, Policy]],
    batch: int,
    seed: int,
    continuous: bool,
) -> None:
    toy, model = (Toy(vocab_size=None), series_model) if continuous else (Toy(), toy_model)
    inputs = stream(model, batch, sum(tokens for tokens, _ in cuts), seed)
    driver, oracles = model.driver(batch), [Oracle(toy) for _ in range(batch)]
    at = 0
    for tokens, policy in cuts:
        piece = inputs[:, at : at + tokens]
        fed = driver.feed(piece, all_outputs=True, policy=policy)
        at += tokens
        for b, oracle in enumerate(oracles):
            outputs, surprise = oracle.feed(piece[b])
            assert_close(fed.outputs[b], outputs)
            if not continuous:
                assert_close(fed.surprise[b], surprise)
        assert_state_is_the_oracles(driver, oracles)
    assert driver.position == at


@pytest.mark.parametrize("toy", [Toy(extend=False), Toy(prefill=False), Toy(extend=False, prefill=False)])
def test_a_bundle_with_fewer_graphs_gives_the_same_stream(tmp_path: Path, toy: Toy) -> None:
    model = load(write_toy(tmp_path / "toy.titans", toy), threads=1)
    tokens = stream(model, 1, 3 * C + 5, seed=1)[0]
    outputs, _ = Oracle(toy).feed(tokens)
    assert_close(model.session().feed(tokens, all_logits=True), outputs)


def test_weights_in_bfloat16_are_used_as_they_are_stored(tmp_path: Path) -> None:
    toy = Toy(bfloat16_head=True)
    model = load(write_toy(tmp_path / "toy.titans", toy), threads=1)
    tokens = stream(model, 1, C + 3, seed=2)[0]
    outputs, _ = Oracle(toy).feed(tokens)
    assert_close(model.session().feed(tokens, all_logits=True), outputs)


def test_a_stream_does_not_depend_on_its_neighbours(toy_model: Model) -> None:
    inputs = stream(toy_model, 3, 2 * C + 3, seed=3)
    together = toy_model.driver(3).feed(inputs, all_outputs=True)
    for b in range(3):
        alone = toy_model.driver(1).feed(inputs[b : b + 1], all_outputs=True)
        np.testing.assert_allclose(together.outputs[b], alone.outputs[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([[0], [256]], "token 256 at index 0"),
        ([[-1], [0]], "token -1 at index 0"),
        ([[0, 1], [2, 256]], "token 256 at index 1"),  # of its own stream, not of both
        (np.zeros((2, 0), np.int64), "at least one"),
        (np.zeros((2, 1, 1), np.int64), "shape"),
        (np.zeros((2, 1)), "integers"),
        (np.zeros((3, 1), np.int64), "shape"),
    ],
)
def test_wrong_tokens_of_one_stream_are_refused_and_no_stream_moves(toy_model: Model, ids: Inputs, told: str) -> None:
    driver = toy_model.driver(2)
    with pytest.raises(InputError, match=told):
        driver.feed(np.asarray(ids))
    assert driver.position == 0
    np.testing.assert_array_equal(driver.feed(np.array([[1], [2]])).outputs[0, 0], toy_model.session().feed([1]))


def test_what_is_fed_is_the_callers_to_change(toy_model: Model) -> None:
    seen = checked_streams(TokenInputs(vocab_size=256), ids := np.array([[1], [2]]), 2)
    ids[:] = 3
    np.testing.assert_array_equal(seen, [[1], [2]])


def test_two_sessions_of_a_model_share_nothing_but_weights(toy_model: Model) -> None:
    first, second = toy_model.session(), toy_model.session()
    tokens = stream(toy_model, 2, 20, seed=4)
    interleaved = [(first.feed([a]), second.feed([b])) for a, b in tokens.T.tolist()]
    outputs, _ = Oracle(Toy()).feed(tokens[0])
    assert_close(np.stack([a for a, _ in interleaved]), outputs)


def test_reset_gives_a_fresh_stream_at_any_moment(toy_model: Model) -> None:
    driver = toy_model.driver(2)
    fresh = driver.state()
    for tokens in (1, C, C + 3):
        driver.feed(stream(toy_model, 2, tokens, seed=tokens))
        driver.reset()
        assert driver.position == 0
        after = driver.state()
        for name in fresh:
            np.testing.assert_array_equal(after[name], fresh[name])
