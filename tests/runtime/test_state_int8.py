"""A state in eight bits a number: a quarter of the room, a bounded error, and refused where it is damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_runtime import InputError, Model, StateError
from titans_runtime.stream.state_file import read_header, read_tensors
from titans_runtime.stream.state_int8 import FORMAT_INT8, expanded, rounded


def tensors(data: bytes) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return read_tensors(data, read_header(data, "x"), "x")


def test_each_number_is_off_by_half_a_step_of_its_row_at_most(toy_model: Model) -> None:
    session = toy_model.session()
    session.feed(list(range(29)))
    exact = tensors(session.to_bytes())
    restored = toy_model.restore_bytes(session.to_bytes(int8=True))
    assert restored.position == session.position
    assert restored.stats.surprise_mean == session.stats.surprise_mean
    for name, value in tensors(restored.to_bytes()).items():
        step = np.abs(exact[name]).max(axis=-1, keepdims=True) / 127
        assert np.all(np.abs(value - exact[name]) <= 0.5001 * step), name
    np.testing.assert_array_equal(tensors(restored.to_bytes())["last_output"], exact["last_output"])


def test_what_is_rounded_twice_is_rounded_once(toy_model: Model) -> None:
    session = toy_model.session()
    session.feed(list(range(29)))
    once = session.to_bytes(int8=True)
    twice = toy_model.restore_bytes(once).to_bytes(int8=True)
    for name, value in tensors(expanded(once)).items():
        np.testing.assert_allclose(tensors(expanded(twice))[name], value, rtol=3e-7)


@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_damaged_one_is_refused(toy_model: Model, at: int, bit: int) -> None:
    session = toy_model.session()
    session.feed([1, 2, 3])
    data = bytearray(session.to_bytes(int8=True))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(StateError):
        toy_model.restore_bytes(bytes(data))


def test_a_plain_state_is_left_alone_and_what_is_none_is_refused(toy_model: Model) -> None:
    data = toy_model.session().to_bytes()
    assert expanded(data) is data
    assert FORMAT_INT8.encode() in rounded(data)
    with pytest.raises(StateError, match="not a saved session"):
        rounded(rounded(data))
    with pytest.raises(InputError, match="compress"):
        toy_model.session().to_bytes(int8=True, compress=True)
