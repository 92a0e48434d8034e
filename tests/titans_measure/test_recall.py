"""The recall measure: right for streams whose memory is known, and the same however it is driven."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import titans_runtime
from titans_measure.quality.errors import EvalError
from titans_measure.quality.plots import draw_recall
from titans_measure.quality.recall import Point, Questions, RecallOptions, RecallReport, evaluate
from titans_measure.quality.report import Subject
from titans_runtime.arrays import Array, FloatArray
from titans_tasks.recall import FILLER, RecallConfig

CONFIG = RecallConfig(keys=8, values=8, pairs=4)


@dataclass(frozen=True)
class Told:
    outputs: FloatArray


class Dictionary:
    """Streams that remember pairs for `span` tokens of filler, exactly, and guess id 0 otherwise."""

    def __init__(self, span: int, books: list[dict[int, int]] | None = None) -> None:
        self.span, self.waited, self.last = span, 0, -1
        self.books = books

    def fork(self) -> Dictionary:
        branch = Dictionary(self.span, None if self.books is None else [dict(book) for book in self.books])
        branch.waited, branch.last = self.waited, self.last
        return branch

    def reset(self) -> None:
        self.__init__(self.span)  # type: ignore[misc]

    def feed(self, inputs: Array, all_outputs: bool = False) -> Told:
        if self.books is None:
            self.books = [{} for _ in inputs]
        outputs = np.zeros((*inputs.shape, CONFIG.vocab_size), np.float32)
        for place in range(inputs.shape[1]):
            column = inputs[:, place]
            self.waited += int((column == FILLER).all())
            for row, (book, token) in enumerate(zip(self.books, column.tolist(), strict=True)):
                if token > CONFIG.keys and self.waited == 0:
                    book[self.last_of(row)] = token
                known = book.get(token, FILLER) if self.waited <= self.span else FILLER
                outputs[row, place, known] = 1.0
            self.previous = column.copy()
        return Told(outputs if all_outputs else outputs[:, -1:])

    def last_of(self, row: int) -> int:
        return int(self.previous[row])


def test_a_dictionary_answers_everything_until_it_forgets() -> None:
    asked = Questions(CONFIG, streams=5)
    answers = asked.after_gaps(Dictionary(span=100), [0, 100, 5000, 101])
    accuracy = {gap: asked.point(gap, ids).accuracy for gap, ids in answers.items()}
    assert accuracy == {0: 1.0, 100: 1.0, 101: 0.0, 5000: 0.0}


def test_streams_that_never_read_the_pairs_know_nothing() -> None:
    asked = Questions(CONFIG, streams=5)
    assert asked.point(0, asked.ask(Dictionary(span=0))).right == 0


def test_asking_does_not_disturb_the_streams(recall_bundle: Path) -> None:
    model = titans_runtime.load(recall_bundle, provider="cpu")
    asked = Questions(RecallConfig(keys=4, values=4, pairs=2), streams=3)
    together = asked.after_gaps(model.driver(3), [0, 5, 37])
    for gap, answers in together.items():
        alone = asked.after_gaps(model.driver(3), [gap])
        assert np.array_equal(alone[gap], answers)


def report(accuracies: list[int]) -> RecallReport:
    points = tuple(Point(pairs=4, gap=10**i, questions=100, right=right) for i, right in enumerate(accuracies))
    return RecallReport(
        subject=Subject("m", "lmm", 1, "fp32", "cpu"),
        options=RecallOptions(keys=8, pairs=(4,), gaps=tuple(point.gap for point in points)),
        points=points,
        reset=(Point(pairs=4, gap=0, questions=100, right=12),),
        chance=0.125,
    )


@pytest.mark.parametrize(
    ("accuracies", "longest"), [([100, 96, 95, 94], 100), ([94, 100], None), ([99, 90, 100], 1), ([95], 1)]
)
def test_the_longest_gap_is_the_last_before_the_first_that_fails(accuracies: list[int], longest: int | None) -> None:
    assert report(accuracies).longest(4) == longest


def test_a_picture_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw_recall(report([100, 96, 40]), tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert len(drawn) < 100_000
    with pytest.raises(EvalError, match=r"\.svg or \.png"):
        draw_recall(report([100]), tmp_path / "a.doc")


def test_a_report_is_json_and_counts_every_question(recall_bundle: Path) -> None:
    model = titans_runtime.load(recall_bundle, provider="cpu")
    told: list[tuple[int, int]] = []
    options = RecallOptions(keys=4, pairs=(1, 2), gaps=(0, 40), streams=3)
    document = evaluate(model, options, lambda *now: told.append(now)).as_json()
    json.dumps(document, allow_nan=False)
    assert [(p["pairs"], p["gap"], p["questions"]) for p in document["points"]] == [
        (1, 0, 3), (1, 40, 3), (2, 0, 6), (2, 40, 6)
    ]  # fmt: skip
    assert [p["questions"] for p in document["reset"]] == [3, 6]
    assert document["chance"] == 0.25
    assert told[-1][0] == told[-1][1]


def test_a_model_of_other_sizes_is_refused(recall_bundle: Path) -> None:
    model = titans_runtime.load(recall_bundle, provider="cpu")
    with pytest.raises(EvalError, match="17 token ids and the model 9, as it was trained with 4 keys; use --keys 4"):
        evaluate(model, RecallOptions(keys=8, pairs=(2,)))
    with pytest.raises(EvalError, match="add what is missing"):
        RecallOptions(pairs=())
