"""A state goes on with another model of its shape exactly as its numbers say, and nowhere else; journals are sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.toy import Oracle, Toy, write_toy
from titans_runtime import Model, StateError, load
from titans_runtime.stream.journal import packed, read_journal, unpacked, write_journal


@pytest.fixture(scope="module")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The toy with another head."""
    return load(write_toy(tmp_path_factory.mktemp("successor") / "toy.titans", Toy(letters=True)), threads=1)


@pytest.mark.parametrize("length", [3, 8, 29])
@pytest.mark.parametrize("int8", [False, True])
def test_the_new_model_goes_on_from_the_old_numbers(
    toy_model: Model, successor: Model, length: int, int8: bool
) -> None:
    before, after = Oracle(Toy()), Oracle(Toy(letters=True))
    session = toy_model.session()
    ids = np.arange(length)
    session.feed(ids)
    before.feed(ids)
    after.memory, after.trace, after.keys = before.memory, before.trace, before.keys
    with pytest.raises(StateError, match="another model"):
        successor.restore_bytes(session.to_bytes())
    adopted = successor.adopt_bytes(session.to_bytes(int8=int8))
    assert adopted.position == length
    expected = after.feed(np.array([7, 9]))[0]
    tolerance = 0.05 if int8 else 1e-5
    np.testing.assert_allclose(adopted.feed([7, 9], all_logits=True), expected, atol=tolerance * np.abs(expected).max())


def test_a_state_of_the_model_itself_stays_as_it_is(toy_model: Model) -> None:
    session = toy_model.session()
    session.feed([1, 2, 3])
    assert toy_model.adopt_bytes(session.to_bytes()).to_bytes() == session.to_bytes()


def test_what_does_not_fit_is_refused(toy_model: Model, series_model: Model, tmp_path: Path) -> None:
    session = toy_model.session()
    session.feed([1, 2, 3])
    data = session.to_bytes()
    with pytest.raises(StateError, match="last_output"):
        series_model.adopt_bytes(data)
    wider = load(write_toy(tmp_path / "wider.titans", Toy(vocab_size=300)), threads=1)
    with pytest.raises(StateError, match="titans state replay"):
        wider.adopt_bytes(data)
    with pytest.raises(StateError, match="checksum"):
        wider.adopt_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@given(ids=st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_a_journal_comes_back(ids: list[int]) -> None:
    assert unpacked(packed(ids)) == ids
    assert read_journal(write_journal(ids, "toy"), "x") == ids


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"\xff", b'{"format": "x", "ids": []}', b'{"format": "titans-journal", "ids": [-1]}']
)
def test_what_is_no_journal_is_refused(document: bytes) -> None:
    with pytest.raises(StateError, match="not a journal"):
        read_journal(document, "x")
    with pytest.raises(StateError, match="damaged"):
        unpacked(b"abc")
