"""The needle measure: all for a reader that searches, nothing for one that forgets, the same as greedy decoding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import titans_runtime
from tests.titans_measure.test_recall import Told
from titans_measure.quality.errors import EvalError
from titans_measure.quality.needle import Hidden, NeedleOptions, NeedleReport, Point, evaluate
from titans_measure.quality.plots import draw_needle
from titans_measure.quality.report import Subject
from titans_runtime.arrays import Array
from titans_tasks.documents import Document
from titans_tasks.needle import Haystack

HAY = Haystack([Document("hay.py", b"def double(x):\n    return 2 * x\n\n\n" * 50)])
OPTIONS = NeedleOptions(lengths=(256, 512), streams=8)


class Searcher:
    """Streams that look for the pass key in the last `span` bytes they have read."""

    def __init__(self, span: int) -> None:
        self.span, self.text = span, [b""]

    def fork(self) -> Searcher:
        raise NotImplementedError

    def reset(self) -> None:
        self.text = [b""]

    def feed(self, inputs: Array, all_outputs: bool = False) -> Told:
        outputs = np.zeros((*inputs.shape, 256), np.float32)
        if len(self.text) != len(inputs):
            self.text = [b""] * len(inputs)
        for row, ids in enumerate(inputs.tolist()):
            for place, token in enumerate(ids):
                self.text[row] = (self.text[row] + bytes([token]))[-self.span :]
                outputs[row, place, self.next(self.text[row])] = 1.0
        return Told(outputs if all_outputs else outputs[:, -1:])

    @staticmethod
    def next(text: bytes) -> int:
        asked = re.search(rb"\? The pass key is (\d*)$", text)
        known = re.search(rb"\nThe pass key is (\d{5})\.", text)
        if asked is None or known is None:
            return 0
        return (known[1] + b"\0")[len(asked[1])]


def test_a_reader_that_searches_finds_everything_within_its_reach() -> None:
    hidden = Hidden.of(HAY, OPTIONS, 512)
    point = hidden.point(hidden.ask(Searcher(512)))
    assert (point.accuracy, point.bytes_right, point.length) == (1.0, 1.0, 512)
    short = hidden.point(hidden.ask(Searcher(150)))
    assert 0 < short.right < 8  # only needles near the question


def test_without_reading_there_is_nothing_to_find() -> None:
    hidden = Hidden.of(HAY, OPTIONS, 256)
    assert hidden.point(hidden.ask_unread(Searcher(512))).right == 0


def test_one_wrong_byte_makes_the_answer_wrong() -> None:
    hidden = Hidden.of(HAY, OPTIONS, 256)
    ids = hidden.answers.copy()
    ids[0, 2] += 1
    point = hidden.point(ids)
    assert (point.right, point.streams) == (7, 8)
    assert point.bytes_right == 1 - 1 / 40


def test_a_right_answer_is_what_greedy_decoding_gives(tiny_bundle: Path) -> None:
    model = titans_runtime.load(tiny_bundle, provider="cpu")
    hidden = Hidden.of(HAY, NeedleOptions(streams=2), 160)
    ids = hidden.ask(model.driver(2))
    for row in range(2):
        session = model.session()
        before = np.concatenate([hidden.read[row], hidden.question_ids[row, : hidden.places[row, 0] + 1]])
        assert session.feed(before).argmax() == ids[row, 0]


def report(rights: list[int]) -> NeedleReport:
    points = tuple(Point(length=256 << i, streams=20, right=r, bytes_right=r / 20) for i, r in enumerate(rights))
    reset = Point(length=256, streams=20, right=0, bytes_right=0.1)
    return NeedleReport(subject=Subject("m", "mac", 1, "fp32", "cpu"), options=OPTIONS, points=points, reset=reset)


@pytest.mark.parametrize(("rights", "longest"), [([20, 19, 18], 512), ([18, 20], None), ([20, 18, 20], 256)])
def test_the_longest_length_is_the_last_before_the_first_that_fails(rights: list[int], longest: int | None) -> None:
    assert report(rights).longest == longest


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_needle(report([20, 15, 3]), tmp_path / "needle.svg")
    assert (tmp_path / "needle.svg").stat().st_size < 100_000


def test_a_report_is_json_for_every_form(tiny_bundle: Path, tmp_path: Path) -> None:
    model = titans_runtime.load(tiny_bundle, provider="cpu")
    files = []
    for name in ("a.txt", "b.txt"):
        files.append(tmp_path / name)
        files[-1].write_text("sphinx of black quartz, judge my vow. " * 9)
    for form in ("passkey", "number", "uuid"):
        told: list[tuple[int, int]] = []
        options = NeedleOptions(form=form, lengths=(300, 256), streams=2, data=tuple(map(str, files)))  # type: ignore[arg-type]
        document = evaluate(model, options, lambda *now, told=told: told.append(now)).as_json()  # type: ignore[misc]
        json.dumps(document, allow_nan=False)
        assert [point["length"] for point in document["points"]] == [256, 300]
        assert told[-1][0] == told[-1][1]


def test_a_model_without_bytes_is_refused(recall_bundle: Path) -> None:
    with pytest.raises(EvalError, match="256 token ids"):
        evaluate(titans_runtime.load(recall_bundle, provider="cpu"), NeedleOptions())
    with pytest.raises(EvalError, match="add what is missing"):
        NeedleOptions(streams=0)
