"""A prompt is read in pieces: an interrupt loses one piece at most, and pieces change no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.runtime.faults import Sabotage, interrupt
from tests.runtime.toy import C
from titans_runtime import Model, SamplingOptions, Session
from titans_runtime.stream.session import PIECE
from titans_runtime.stream.state_file import read_header, read_tensors

GREEDY = SamplingOptions(temperature=0)
LONG = np.random.default_rng(0).integers(0, 256, 3 * PIECE + 5).tolist()


def tensors(session: Session) -> dict[str, bytes]:
    """Every bit of a session but its totals of surprise, which are sums in another order."""
    data = session.to_bytes()
    return {name: array.tobytes() for name, array in read_tensors(data, read_header(data, ""), "").items()}


@pytest.fixture(params=["alone", "batch"])
def new_session(request: pytest.FixtureRequest, toy_model: Model) -> Iterator[Callable[[], Session]]:
    """Makes sessions of their own, or of a batch."""
    with toy_model.batch(lanes=2) as batch:
        yield toy_model.session if request.param == "alone" else batch.session


@pytest.mark.parametrize("before", [0, 3, C])
def test_a_prompt_in_pieces_is_the_prompt_in_one(new_session: Callable[[], Session], before: int) -> None:
    pieces, whole = new_session(), new_session()
    if before:
        pieces.feed(LONG[:before])
        whole.feed(LONG[:before])
    assert list(pieces.generate_tokens(LONG, 0)) == []
    whole.feed(LONG)
    assert tensors(pieces) == tensors(whole)
    assert pieces.stats.surprise_mean == pytest.approx(whole.stats.surprise_mean)


def test_progress_is_told_after_every_piece(toy_model: Model) -> None:
    session = toy_model.session()
    session.feed([1, 2, 3])
    told: list[tuple[int, int]] = []
    list(session.generate_tokens(LONG, 2, GREEDY, on_progress=lambda done, total: told.append((done, total))))
    first = PIECE - 3  # it ends where a chunk ends
    assert told == [(end, len(LONG)) for end in (first, first + PIECE, first + 2 * PIECE, len(LONG))]
    texts: list[int] = []
    "".join(session.generate("some text", 1, on_progress=lambda done, total: texts.append(total)))
    assert texts == [len("some text")]


def test_an_interrupted_prompt_leaves_the_session_after_the_pieces_that_were_read(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, twin = toy_model.session(), toy_model.session()
    with monkeypatch.context() as patched:
        Sabotage(patched, 2 * PIECE // C + 7, interrupt)  # in the third piece
        with pytest.raises(KeyboardInterrupt):
            next(session.generate_tokens(LONG, 1, GREEDY))
    twin.feed(LONG[: 2 * PIECE])
    assert (session.position, tensors(session)) == (2 * PIECE, tensors(twin))


def test_a_progress_report_that_raises_stops_the_reading(toy_model: Model) -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError("enough")

    session = toy_model.session()
    with pytest.raises(InterruptedError):
        next(session.generate_tokens(LONG, 1, GREEDY, on_progress=stop))
    assert session.position == PIECE


def test_the_repetition_penalty_counts_the_whole_prompt(toy_model: Model) -> None:
    """A token of the first piece is as seen as one of the last."""
    everything = [*range(256), *([7] * (2 * PIECE))]
    options = SamplingOptions(temperature=0, repetition_penalty=1e6)
    assert next(toy_model.session().generate_tokens(everything, 1, options)) in range(256)
    but_one = [token for token in everything if token != 99]
    logits = toy_model.session().feed(but_one)
    expected = int(
        np.argmax(
            [
                score if token == 99 else score / 1e6 if score > 0 else score * 1e6
                for token, score in enumerate(logits.tolist())
            ]
        )
    )
    assert next(toy_model.session().generate_tokens(but_one, 1, options)) == expected
