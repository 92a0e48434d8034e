"""The facts measure: right for a reader that copies what followed the same words, and nothing without its memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from titans_format.fields import TokenInputs
from titans_measure.quality.errors import EvalError
from titans_measure.quality.facts import FactsOptions, FactsReport, evaluate
from titans_measure.quality.plots import draw_facts
from titans_runtime import Model
from titans_runtime.arrays import Array, FloatArray
from titans_tasks.documents import Document
from titans_tasks.facts import FactSource
from titans_tasks.tokens import ByteTokenizer

LONGEST, SHORTEST = 48, 4  # bytes of context that are looked for


@dataclass(frozen=True)
class Told:
    outputs: FloatArray


class Copier:
    """A stream that predicts what followed, when it read them last, as many of the last bytes as it knows."""

    def __init__(self, read: bytes = b"", forgets: int = 10**9) -> None:
        self.read, self.forgets = read, forgets

    def fork(self) -> Copier:
        return Copier(self.read, self.forgets)

    def feed(self, inputs: Array, all_outputs: bool = False) -> Told:
        outputs = np.zeros((1, inputs.shape[1], 256), np.float32)
        for place, byte in enumerate(inputs[0].tolist()):
            self.read = (self.read + bytes([byte]))[-self.forgets :]
            outputs[0, place, self.next_byte()] = 1.0
        return Told(outputs if all_outputs else outputs[:, -1:])

    def next_byte(self) -> int:
        for length in range(LONGEST, SHORTEST, -1):
            found = self.read.rfind(self.read[-length:], 0, -1)
            if found >= 0:
                return self.read[found + length]
        return 0


class Reader:
    """What the measure needs of a model."""

    name, provider = "copier", "cpu"

    def __init__(self, forgets: int = 10**9, vocabulary: bool = True) -> None:
        about = SimpleNamespace(name="copier", variant="none", parameters=0)
        inputs = TokenInputs(vocab_size=256) if vocabulary else object()
        self.manifest = SimpleNamespace(inputs=inputs, model=about, dtype="fp32", provenance={})
        self.forgets = forgets

    def driver(self, streams: int) -> Copier:
        assert streams == 1
        return Copier(forgets=self.forgets)


def report(options: FactsOptions, reader: Reader | None = None) -> FactsReport:
    text = Document("text", b"Nobody came by, and the lake lay still under a low sky. " * 60)
    source = FactSource([text], ByteTokenizer().encode, None, held_out=True)
    return evaluate(cast("Model", reader or Reader()), source, options)


def test_what_was_told_is_known_in_the_same_words_and_the_later_value_wins() -> None:
    found = report(FactsOptions(facts=(3,), gaps=(0, 200), streams=4))
    accuracy = {(point.kind, point.gap): point.accuracy for point in found.points}
    assert accuracy["same", 0] > 0.7  # values of one letter's difference are beyond a copier
    assert accuracy["same", 200] == accuracy["same", 0]
    assert accuracy["corrected", 200] > 0.5
    assert all(point.accuracy == 0 for point in found.reset)
    assert {point.questions for point in found.points if point.kind == "corrected"} == {12}


def test_a_reader_that_forgets_loses_everything_with_the_gap() -> None:
    found = report(FactsOptions(facts=(2,), gaps=(0, 900), streams=2), Reader(forgets=600))
    accuracy = {(point.kind, point.gap): point.accuracy for point in found.points}
    assert accuracy["same", 0] > accuracy["same", 900] == 0


def test_the_report_is_plain_data_and_a_line_per_point(tmp_path: Path) -> None:
    found = report(FactsOptions(facts=(2,), gaps=(0,), streams=2))
    document = json.loads(json.dumps(found.as_json()))
    assert document["task"] == "facts"
    assert set(document["points"][0]) == {
        *("kind", "facts", "gap", "questions", "right", "tokens", "tokens_right", "accuracy")
    }
    assert len(found.lines()) == 1 + len(found.points) + len(found.reset)
    draw_facts(found, tmp_path / "facts.svg")
    assert (tmp_path / "facts.svg").read_text().startswith("<?xml")


def test_a_model_without_tokens_and_an_empty_wish_are_refused() -> None:
    with pytest.raises(EvalError, match="takes vectors"):
        report(FactsOptions(), Reader(vocabulary=False))
    with pytest.raises(EvalError, match="at least one"):
        FactsOptions(gaps=())
