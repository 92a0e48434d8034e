"""`needle`: does the model still know one fact of a long real text when it is questioned at the end?

Streams of one length run in lockstep: haystack and needle first, then the question with its answer. A stream counts as
right when every byte of the answer is the most likely one, which is when greedy decoding gives exactly the answer. The
same questions to streams that start at them are the control.

Knows the task's measure. Does not know how streams are made (`titans_tasks.needle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_format.progress import ReportProgress
from titans_measure.quality.errors import EvalError
from titans_measure.quality.fitness import require_bytes
from titans_measure.quality.report import Subject, unwatched
from titans_measure.quality.streams import Stream, predictions, read
from titans_runtime import Model
from titans_tasks.documents import STDLIB, read_corpus
from titans_tasks.needle import Form, Haystack, NeedleStream, held_out_stream

FIRST_STREAM = 1000  # training judges itself by the first few streams; these are others
HOLDS = 0.95  # share of right answers from which a length counts as mastered
LENGTHS = tuple(256 * 2**power for power in range(7))  # 1 to 64 times the default training length


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """What to ask.

    form: passkey, number or uuid.
    lengths: bytes of a stream, question and answer included, each a point of the curve.
    streams: streams per point.
    data: files whose held-out part is the haystack, or the word `stdlib`.
    """

    form: Form = "passkey"
    lengths: tuple[int, ...] = LENGTHS
    streams: int = 64
    data: tuple[str, ...] = (STDLIB,)

    def __post_init__(self) -> None:
        if not self.lengths or self.streams < 1:
            raise EvalError("needle needs at least one length and one stream", "add what is missing")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Answers at one length.

    streams, right: how many questions, and how many gave every byte of the answer.
    bytes_right: the share of the answers' bytes that were right.
    """

    length: int
    streams: int
    right: int
    bytes_right: float

    @property
    def accuracy(self) -> float:
        """The share of streams with the whole answer right."""
        return self.right / self.streams


@dataclass(frozen=True, kw_only=True)
class NeedleReport:
    """The curve, shortest first; `reset` has the same questions without what was read before them."""

    subject: Subject
    options: NeedleOptions
    points: tuple[Point, ...]
    reset: Point

    @property
    def longest(self) -> int | None:
        """The longest length up to which every point has at least `HOLDS` accuracy; None if the first has not."""
        found = None
        for point in self.points:
            if point.accuracy < HOLDS:
                break
            found = point.length
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": "needle",
            "model": self.subject.as_json(),
            "wish": asdict(self.options),
            "points": [_plain(point) for point in self.points],
            "reset": _plain(self.reset),
            "longest_length": self.longest,
        }

    def lines(self) -> Sequence[str]:
        """One line per point."""
        found = [f"needle, {self.options.form}: {self.subject}"]
        for point in self.points:
            found.append(
                f"  {point.length:,} bytes: {point.accuracy:.1%} of {point.streams}, {point.bytes_right:.1%} of bytes"
            )
        reset = self.reset
        return [*found, f"  memory reset: {reset.accuracy:.1%} of {reset.streams}, {reset.bytes_right:.1%} of bytes"]


def evaluate(model: Model, options: NeedleOptions, progress: ReportProgress = unwatched) -> NeedleReport:
    """Ask a bundle.

    Raises:
        EvalError: the model does not take bytes.
        DataError: the haystack cannot be read, or a length is too short for needle and question.
        ExecutionError: a graph failed.
    """
    require_bytes(model, "needle")
    lengths = sorted(set(options.lengths))
    hay = Haystack(read_corpus(options.data).held_out)
    hidden = [Hidden.of(hay, options, length) for length in lengths]
    done, total = 0, sum(lengths) + hidden[0].question_ids.shape[1]

    def on_progress(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    points = tuple(each.point(each.ask(model.driver(options.streams), on_progress)) for each in hidden)
    reset = hidden[0].point(hidden[0].ask_unread(model.driver(options.streams)))
    on_progress(hidden[0].question_ids.shape[1])
    return NeedleReport(subject=Subject.of(model), options=options, points=points, reset=reset)


class Hidden:
    """Some streams of one length and one form. Questions of one form all have one length."""

    def __init__(self, streams: Sequence[NeedleStream]) -> None:
        tokens = np.stack([stream.tokens for stream in streams])
        self.question = streams[0].question
        self.read, self.question_ids = tokens[:, : self.question], tokens[:, self.question :]
        self.places = np.stack([stream.queries for stream in streams]) - self.question
        self.answers: NDArray[np.int64] = np.stack([stream.answers for stream in streams])
        self.length = tokens.shape[1]

    @classmethod
    def of(cls, hay: Haystack, options: NeedleOptions, length: int) -> Hidden:
        """The streams that `options` asks for, in `hay`. Raises `DataError`."""
        numbers = range(FIRST_STREAM, FIRST_STREAM + options.streams)
        return cls([held_out_stream(hay, options.form, length, number) for number in numbers])

    def ask(self, stream: Stream, on_progress: Callable[[int], None] | None = None) -> NDArray[np.int64]:
        """The bytes `[streams, A]` that fresh streams answer; `on_progress` hears of the tokens done."""
        read(stream, self.read, on_progress)
        answers = self.ask_unread(stream)
        if on_progress is not None:
            on_progress(self.question_ids.shape[1])
        return answers

    def ask_unread(self, stream: Stream) -> NDArray[np.int64]:
        """The same without haystack and needle."""
        return predictions(stream, self.question_ids, self.places)

    def point(self, ids: NDArray[np.int64]) -> Point:
        """How many of these answers are right."""
        same = ids == self.answers
        return Point(length=self.length, streams=len(ids), right=int(same.all(1).sum()), bytes_right=float(same.mean()))


def _plain(point: Point) -> dict[str, Any]:
    return {**asdict(point), "accuracy": point.accuracy}
