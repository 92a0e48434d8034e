"""What a tokenizer loses is counted in the bytes of characters that do not come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titans_tasks.round_trip import RoundTrip, round_trip


@given(st.text(), st.data())
def test_dropping_characters_loses_exactly_their_bytes(text: str, data: st.DataObject) -> None:
    text = text.encode("utf-8", "replace").decode()
    kept = "".join(char for char in text if data.draw(st.booleans()))
    found = round_trip(text.encode(), kept.encode())
    assert (found.size, found.kept) == (len(text.encode()), len(kept.encode()))


@given(st.binary())
def test_what_comes_back_as_it_was_loses_nothing(data: bytes) -> None:
    assert round_trip(data, data) == RoundTrip(len(data), len(data))


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ("Hello", "hello", 1 / 5),
        ("a b", " a b", 0),
        ("don't", "don ' t", 0),
        ("記a", "a", 3 / 4),
        ("ab\nc", "a b c", 1 / 4),
        ("abc", "", 1),
        ("", "abc", 0),
    ],
)
def test_shares(before: str, after: str, lost: float) -> None:
    assert round_trip(before.encode(), after.encode()).lost == pytest.approx(lost)


def test_parts_add_up() -> None:
    assert RoundTrip(10, 5) + RoundTrip(30, 30) == RoundTrip(40, 35)
    assert (RoundTrip(10, 5) + RoundTrip(30, 30)).lost == pytest.approx(1 / 8)
