"""`recall`: of random key-value pairs, how many does the memory still know after a gap of filler?

Pairs are read, then filler, and at every gap of interest a fork of the streams is asked for all keys; so one pass over
the longest gap gives the whole curve. The same questions to streams that have not read the pairs are the control.

Knows the task's measure. Does not know how streams are made (`titans_tasks.recall`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from titans_format.progress import ReportProgress
from titans_measure.quality.errors import EvalError
from titans_measure.quality.fitness import require_task
from titans_measure.quality.report import Subject, unwatched
from titans_measure.quality.streams import PIECE, Stream, predictions, read
from titans_runtime import Model
from titans_tasks.recall import FILLER, RecallConfig, recall_stream

FIRST_STREAM = 1000  # training judges itself by the first few streams; these are others
HOLDS = 0.95  # accuracy from which a gap counts as bridged


@dataclass(frozen=True, kw_only=True)
class RecallOptions:
    """What to ask.

    keys: different keys, and different values.
    pairs: numbers of pairs to remember, each a curve of its own.
    gaps: tokens of filler between the pairs and the questions, each a point of the curves.
    streams: streams per point; each is asked for all its pairs.
    """

    keys: int = 32
    pairs: tuple[int, ...] = (16,)
    gaps: tuple[int, ...] = (4096,)
    streams: int = 16

    def __post_init__(self) -> None:
        if not self.pairs or not self.gaps or self.streams < 1 or min(self.gaps) < 0:
            raise EvalError("recall needs at least one number of pairs, one gap and one stream", "add what is missing")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Answers after one gap: `accuracy` is the share of the `questions` that were answered `right`."""

    pairs: int
    gap: int
    questions: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.questions


@dataclass(frozen=True, kw_only=True)
class RecallReport:
    """The curves.

    points: by number of pairs, then by gap.
    reset: the same questions to streams that start at the first of them, by number of pairs: what the model knows
        without its memory. The gap of these points is 0.
    chance: the accuracy of guessing.
    """

    subject: Subject
    options: RecallOptions
    points: tuple[Point, ...]
    reset: tuple[Point, ...]
    chance: float

    def longest(self, pairs: int) -> int | None:
        """The longest gap up to which every point has at least `HOLDS` accuracy; None if the first has not."""
        found = None
        for point in self.points:
            if point.pairs == pairs:
                if point.accuracy < HOLDS:
                    break
                found = point.gap
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": "recall",
            "model": self.subject.as_json(),
            "wish": asdict(self.options),
            "chance": self.chance,
            "points": [_plain(point) for point in self.points],
            "reset": [_plain(point) for point in self.reset],
            "longest_gap": {str(pairs): self.longest(pairs) for pairs in self.options.pairs},
        }

    def lines(self) -> Sequence[str]:
        """One line per point."""
        found = [f"recall: {self.subject}"]
        for control in self.reset:
            for point in (p for p in self.points if p.pairs == control.pairs):
                found.append(
                    f"  {point.pairs} pairs of {self.options.keys} keys, gap {point.gap:,}:"
                    f" {point.accuracy:.1%} of {point.questions}"
                )
            found.append(f"  {control.pairs} pairs, memory reset: {control.accuracy:.1%} (chance {self.chance:.1%})")
        return found


def evaluate(model: Model, options: RecallOptions, progress: ReportProgress = unwatched) -> RecallReport:
    """Ask a bundle.

    Raises:
        EvalError: the model learned other ids.
        DataError: more pairs than keys.
        ExecutionError: a graph failed.
    """
    configs = [RecallConfig(keys=options.keys, values=options.keys, pairs=pairs) for pairs in options.pairs]
    require_task(model, "recall", configs[0].vocab_size, keys=options.keys)
    done, total = 0, sum(max(options.gaps) + 2 * pairs * (2 + len(options.gaps)) for pairs in options.pairs)
    points: list[Point] = []
    reset: list[Point] = []

    def on_progress(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    for config in configs:
        questions = Questions(config, options.streams)
        for gap, ids in questions.after_gaps(model.driver(options.streams), options.gaps, on_progress).items():
            points.append(questions.point(gap, ids))
        reset.append(questions.point(0, questions.ask(model.driver(options.streams))))
        on_progress(2 * config.pairs)
    return RecallReport(
        subject=Subject.of(model),
        options=options,
        points=tuple(points),
        reset=tuple(reset),
        chance=1 / configs[0].values,
    )


class Questions:
    """Some streams of one size, and what was to be answered."""

    def __init__(self, config: RecallConfig, streams: int) -> None:
        made = [recall_stream(config, 0, FIRST_STREAM + number) for number in range(streams)]
        tokens = np.stack([stream.tokens for stream in made])
        self.config = config
        self.pair_ids, self.question_ids = tokens[:, : 2 * config.pairs], tokens[:, 2 * config.pairs :]
        self.answers: NDArray[np.int64] = np.stack([stream.answers for stream in made])

    def after_gaps(
        self, stream: Stream, gaps: Sequence[int], on_progress: Callable[[int], None] | None = None
    ) -> dict[int, NDArray[np.int64]]:
        """The answers `[streams, pairs]` of fresh streams after each gap, shortest first."""
        read(stream, self.pair_ids, on_progress)
        answers, at = {}, 0
        filler = np.full((len(self.pair_ids), PIECE), FILLER, np.int64)
        for gap in sorted(set(gaps)):
            while at < gap:
                length = min(PIECE, gap - at)
                read(stream, filler[:, :length], on_progress)
                at += length
            answers[gap] = self.ask(stream.fork())
            if on_progress is not None:
                on_progress(self.question_ids.shape[1])
        return answers

    def ask(self, stream: Stream) -> NDArray[np.int64]:
        """The answers `[streams, pairs]` from where the streams are."""
        places = np.broadcast_to(np.arange(0, self.question_ids.shape[1], 2), self.answers.shape)
        return predictions(stream, self.question_ids, places)

    def point(self, gap: int, ids: NDArray[np.int64]) -> Point:
        """How many of these answers are right."""
        right = int((ids == self.answers).sum())
        return Point(pairs=self.config.pairs, gap=gap, questions=ids.size, right=right)


def _plain(point: Point) -> dict[str, Any]:
    return {**asdict(point), "accuracy": point.accuracy}
