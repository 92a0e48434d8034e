"""`facts`: of what a model was told in plain language, how much does it still know after other text?

Facts are told, then text that has nothing to do with them, and at every gap of interest a fork of the stream is asked
for all facts: in the same words, in other words, and as chat turns in the model's template. A question counts as right
when every token of the value is the most likely one, which is when greedy decoding gives exactly the value. Facts that
were corrected on the way count with their later value. The same questions to streams that were told nothing are the
control.

Knows the task's measure. Does not know how streams are made (`titans_tasks.facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from titans_format.progress import ReportProgress
from titans_measure.quality.errors import EvalError
from titans_measure.quality.fitness import require_tokens
from titans_measure.quality.report import Subject, unwatched
from titans_measure.quality.streams import Stream, predictions, read
from titans_runtime import Model
from titans_runtime.chat.user_text import plain
from titans_tasks.documents import Document
from titans_tasks.facts import FactSource, FactStream

Kind = Literal["same", "other", "chat", "corrected"]

KINDS: tuple[Kind, ...] = ("same", "other", "chat", "corrected")
FIRST_STREAM = 1000  # training judges itself by the first few streams; these are others
PIECE = 256  # tokens per feed where all outputs are needed: a vocabulary of 50,000 makes 50 MB of that
READ = 4096  # tokens of other text per report of progress


@dataclass(frozen=True, kw_only=True)
class FactsOptions:
    """What to ask.

    facts: numbers of facts, each a curve of its own.
    gaps: tokens of other text between facts and questions, each a point of the curves.
    streams: streams per point; each is asked for all its facts.
    """

    facts: tuple[int, ...] = (8,)
    gaps: tuple[int, ...] = (1024,)
    streams: int = 8

    def __post_init__(self) -> None:
        if not self.facts or not self.gaps or self.streams < 1 or min(self.gaps) < 0 or min(self.facts) < 1:
            raise EvalError("facts needs at least one number of facts, one gap and one stream", "add what is missing")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Answers in one form after one gap.

    right: questions with every token of the value right, of all `questions`.
    tokens_right: the same for single tokens, of all `tokens`.
    """

    kind: Kind
    facts: int
    gap: int
    questions: int
    right: int
    tokens: int
    tokens_right: int

    @property
    def accuracy(self) -> float:
        """The share of questions with the whole value right."""
        return self.right / self.questions


@dataclass(frozen=True, kw_only=True)
class FactsReport:
    """The curves; `reset` has the same questions to streams that were told nothing, with a gap of 0."""

    subject: Subject
    options: FactsOptions
    points: tuple[Point, ...]
    reset: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "task": "facts",
            "model": self.subject.as_json(),
            "wish": asdict(self.options),
            "points": [_plain(point) for point in self.points],
            "reset": [_plain(point) for point in self.reset],
        }

    def lines(self) -> Sequence[str]:
        """One line per point."""
        found = [f"facts: {self.subject}"]
        for point in self.points:
            found.append(
                f"  {point.facts} facts, gap {point.gap:,}, {_NAMES[point.kind]}: {point.accuracy:.1%} of"
                f" {point.questions}"
            )
        for point in self.reset:
            found.append(f"  {point.facts} facts, memory reset, {_NAMES[point.kind]}: {point.accuracy:.1%}")
        return found


_NAMES: dict[Kind, str] = {
    "same": "same words",
    "other": "other words",
    "chat": "chat turns",
    "corrected": "corrected",
}


def evaluate(
    model: Model, source: FactSource, options: FactsOptions, progress: ReportProgress = unwatched
) -> FactsReport:
    """Ask a bundle.

    Args:
        model: a bundle of tokens.
        source: makes held-out streams in the model's tokens.
        options: what to ask.
        progress: hears of the tokens of other text that were read.

    Raises:
        EvalError: the model takes no tokens.
        ExecutionError: a graph failed.
    """
    require_tokens(model, "facts")
    done, total = 0, 2 * options.streams * len(options.facts) * max(max(options.gaps), 1)

    def on_progress(tokens: int) -> None:
        nonlocal done
        done = min(done + tokens, total)
        progress(done, total)

    tally = Tally()
    for facts in options.facts:
        for number in range(FIRST_STREAM, FIRST_STREAM + options.streams):
            for asked in _sharing(source, facts, max(options.gaps), number):
                told = asked[0][1]
                stream = model.driver(1)
                read(stream, told.told[None])
                for gap in _reading(stream, told, options.gaps, on_progress):
                    for kind, questions in asked:
                        tally.add(kind, facts, gap, *_ask(stream.fork(), questions))
                for kind, questions in asked:
                    tally.add(kind, facts, None, *_ask(model.driver(1), questions))
    progress(total, total)
    return FactsReport(
        subject=Subject.of(model), options=options, points=tally.points(), reset=tally.points(reset=True)
    )


def source_of(model: Model, documents: Sequence[Document]) -> FactSource:
    """Held-out facts in the model's tokens and chat template, with `documents` in between. Raises `DataError`."""
    template = model.chat_template

    def encode(text: bytes) -> NDArray[np.uint32]:
        return np.array(model.encode(text, special=True), np.uint32)

    def render(turns: Sequence[Mapping[str, str]], open_next: bool) -> str:
        assert template is not None
        return plain(template.render(turns, open_next))

    return FactSource(documents, encode, None if template is None else render, held_out=True)


class Tally:
    """Counts of right answers, by form, number of facts and gap."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int | None, Kind], list[int]] = {}

    def add(self, kind: Kind, facts: int, gap: int | None, wholes: Sequence[bool], tokens: Sequence[bool]) -> None:
        """One stream's answers: which values are right, and which of their tokens; no gap means told nothing."""
        counts = self._counts.setdefault((facts, gap, kind), [0, 0, 0, 0])
        for place, number in enumerate((len(wholes), sum(wholes), len(tokens), sum(tokens))):
            counts[place] += number

    def points(self, *, reset: bool = False) -> tuple[Point, ...]:
        """By number of facts, then gap, then form."""
        found = [key for key in self._counts if (key[1] is None) == reset]
        ordered = sorted(found, key=lambda key: (key[0], key[1] or 0, KINDS.index(key[2])))
        return tuple(self._point(*key) for key in ordered)

    def _point(self, facts: int, gap: int | None, kind: Kind) -> Point:
        questions, right, tokens, tokens_right = self._counts[facts, gap, kind]
        return Point(
            kind=kind, facts=facts, gap=gap or 0, questions=questions, right=right, tokens=tokens,
            tokens_right=tokens_right,
        )  # fmt: skip


def _sharing(source: FactSource, facts: int, gap: int, number: int) -> Iterator[list[tuple[Kind, FactStream]]]:
    """Streams that begin alike and are asked differently, so that what comes before is read once."""
    forms = source.forms
    # Told in the words of the questions, and asked in all forms; every other stream is told in a form of its own.
    told = "same" if number % 2 == 0 else forms[1 + number // 2 % (len(forms) - 1)]
    asked: tuple[Kind, ...] = forms if told == "same" else forms[1:]
    yield [(kind, source.stream(facts, gap, [number], form=told, asked=kind)) for kind in asked if kind != "corrected"]
    yield [("corrected", source.stream(facts, gap, [number], form=told, corrected=True))]


def _reading(
    stream: Stream, told: FactStream, gaps: Sequence[int], on_progress: Callable[[int], None]
) -> Iterator[int]:
    """Read the other text, and stop at every gap."""
    at = 0
    for gap in sorted(set(gaps)):
        read(stream, told.filler[None, at:gap], on_progress)
        at = gap
        yield gap


def _ask(stream: Stream, asked: FactStream) -> tuple[list[bool], list[bool]]:
    """Which values are right, and which of their tokens."""
    places = np.concatenate([question.queries for question in asked.questions])
    answers = np.concatenate([question.answers for question in asked.questions])
    last = int(places[-1]) + 1
    right = predictions(stream, asked.asked[None, :last], places[None], PIECE)[0] == answers
    ends = np.cumsum([len(question.answers) for question in asked.questions])
    return [bool(part.all()) for part in np.split(right, ends[:-1])], right.tolist()


def _plain(point: Point) -> dict[str, Any]:
    return {**asdict(point), "accuracy": point.accuracy}
