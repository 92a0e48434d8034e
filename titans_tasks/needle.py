"""A needle in a haystack: one fact somewhere in a long real text, and a question about it at the end.

The three forms of RULER (arXiv 2404.06654): a pass key, a number and a UUID, over bytes. Only the bytes of the answer
count, each predicted from all bytes before it; where all of them are the most likely, greedy decoding gives exactly the
answer.

Knows the layout of a stream. Does not know models or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.task import Batch, Scalar, Totals

Form = Literal["passkey", "number", "uuid"]
FORMS: tuple[Form, ...] = get_args(Form)
VOCAB_SIZE = 256
_TRAINING, _HELD_OUT, _LENGTHS = 4, 5, 6  # first number of every random seed, so that no two draws share a stream
_SUBJECTS = (
    *("anchor", "barrel", "candle", "desert", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle"),
    *("ladder", "marble", "needle", "orange", "pencil", "quartz", "rocket", "saddle", "temple", "valley", "window"),
)  # six letters each


@dataclass(frozen=True)
class Needle:
    """A fact and the question about it. `fact` holds `answer` once or more, `question` ends where the answer begins."""

    fact: bytes
    question: bytes
    answer: bytes


@dataclass(frozen=True)
class NeedleStream:
    """One stream. A model that finds the needle has `answers` as its most likely next byte at `queries`."""

    tokens: NDArray[np.int64]  # [T]
    queries: NDArray[np.int64]  # [A] positions before the bytes of the answer
    answers: NDArray[np.int64]  # [A]
    repeats: NDArray[np.int64]  # [R] positions before the bytes of the answer where the needle itself says it again
    question: int  # position of the first byte of the question: haystack and needle lie before it


def make_needle(form: Form, random: np.random.Generator) -> Needle:
    """A random fact of this form."""
    subject = _SUBJECTS[random.integers(len(_SUBJECTS))]
    if form == "passkey":
        key = _digits(5, random)
        fact = f"The pass key is {key}. Remember it. {key} is the pass key."
        return Needle(fact.encode(), b"What is the pass key? The pass key is ", key.encode())
    if form == "number":
        value, what = _digits(7, random), "number"
    else:
        text = random.bytes(16).hex()
        value, what = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])), "uuid"
    fact = f"One of the special magic {what}s for {subject} is: {value}."
    question = f"What is the special magic {what} for {subject}? The special magic {what} for {subject} is: "
    return Needle(fact.encode(), question.encode(), value.encode())


def _digits(count: int, random: np.random.Generator) -> str:
    return "".join(str(digit) for digit in random.integers(10, size=count))


class Haystack:
    """A text to hide needles in: documents one after the other, as if it had no end."""

    def __init__(self, documents: Sequence[Document]) -> None:
        text = b"\n".join(document.data for document in documents)
        if len(text) < 2:
            raise DataError("the haystack is empty", "give files with text in them, or use stdlib")
        self._text = np.frombuffer(text, np.uint8)

    def stream(self, form: Form, length: int, random: np.random.Generator) -> NeedleStream:
        """A stream of exactly `length` bytes, its needle anywhere before the question.

        Raises:
            DataError: needle and question alone are longer.
        """
        needle = make_needle(form, random)
        fact = b"\n" + needle.fact + b"\n"
        tail = b"\n" + needle.question + needle.answer
        room = length - len(fact) - len(tail)
        if room < 0:
            raise DataError(
                f"a {form} needle and its question take {length - room} bytes", f"use a length above {length}"
            )
        place = int(random.integers(room + 1))
        hay = self._piece(room, random)
        parts = (hay[:place], np.frombuffer(fact, np.uint8), hay[place:], np.frombuffer(tail, np.uint8))
        tokens = np.concatenate(parts).astype(np.int64)
        first = needle.fact.find(needle.answer)
        again = needle.fact.find(needle.answer, first + 1)
        size = len(needle.answer)
        start = place + 1 + again - 1  # the byte before the repetition, after the needle's line break
        return NeedleStream(
            tokens,
            np.arange(length - size - 1, length - 1),
            tokens[length - size :],
            np.arange(start, start + size) if again > 0 else np.arange(0),
            length - len(needle.question) - size,
        )

    def _piece(self, length: int, random: np.random.Generator) -> NDArray[np.uint8]:
        start = int(random.integers(len(self._text)))
        return np.take(self._text, np.arange(start, start + length), mode="wrap")


@dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """The size of the problem."""

    form: Form = "passkey"
    length: int = 256  # longest training stream, in bytes
    held_out_length: int = 1024
    held_out_streams: int = 16

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise DataError(f"there is no needle of the form {self.form!r}", f"use one of {', '.join(FORMS)}")
        if self.held_out_streams < 1:
            raise DataError(f"held_out_streams is {self.held_out_streams}", "use at least 1")
        shortest = shortest_stream(self.form)
        for name in ("length", "held_out_length"):
            if getattr(self, name) < shortest:
                raise DataError(
                    f"{name} is {getattr(self, name)}",
                    f"a {self.form} needle and its question take {shortest} bytes, use more",
                )


def shortest_stream(form: Form) -> int:
    """Bytes of needle and question alone."""
    needle = make_needle(form, np.random.default_rng(0))
    return len(needle.fact) + len(needle.question) + len(needle.answer) + 3


def held_out_stream(hay: Haystack, form: Form, length: int, seed: int) -> NeedleStream:
    """The held-out stream number `seed` in `hay`, which should be text that training never saw."""
    return hay.stream(form, length, np.random.default_rng([_HELD_OUT, seed]))


class NeedleTask:
    """Needles as a training task: fresh streams at every step, one length per step, padded to whole chunks.

    What counts besides the answer is the needle's own repetition of it (the pass key has one): the same lesson at a
    distance of a few bytes.
    """

    carries = False

    def __init__(self, config: NeedleConfig, corpus: Corpus, *, chunk: int, seed: int) -> None:
        self.config, self._corpus, self._chunk, self._seed = config, corpus, chunk, seed
        self._haystack = Haystack(corpus.train)

    @property
    def settings(self) -> dict[str, Scalar]:
        """The sizes, the chunk the padding follows, the seed and the size of the text."""
        size = sum(len(document.data) for document in self._corpus.train)
        return {"task": "needle", **asdict(self.config), "chunk": self._chunk, "seed": self._seed, "text_bytes": size}

    def batch(self, step: int, rows: range) -> Batch:
        """Whole streams; every row of every step is new."""
        config = self.config
        shortest = shortest_stream(config.form)
        # Long streams teach to keep the needle and to leave the rest alone. In every other step short ones, log-uniform
        # in what is added to the needle, teach to find it at all.
        spare = 1.0 if step % 2 else np.random.default_rng([_LENGTHS, self._seed, step]).random()
        length = min(config.length, shortest + int((config.length - shortest + 1) ** spare) - 1)
        randoms = (np.random.default_rng([_TRAINING, self._seed, step, row]) for row in rows)
        return self._pack([self._haystack.stream(config.form, length, random) for random in randoms], repeats=True)

    def held_out(self) -> Iterator[Batch]:
        """The first held-out streams, in slices so that memory use stays small."""
        config = self.config
        hay = Haystack(self._corpus.held_out)
        numbers = range(config.held_out_streams)
        whole = self._pack([held_out_stream(hay, config.form, config.held_out_length, number) for number in numbers])
        length = -(-512 // self._chunk) * self._chunk
        for start in range(0, whole.inputs.shape[1], length):
            part = slice(start, start + length)
            reset = np.full(config.held_out_streams, start == 0)
            yield Batch(whole.inputs[:, part], whole.targets[:, part], whole.mask[:, part], reset)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`accuracy`: the share of the answers' bytes that are right."""
        return {"accuracy": totals.correct / max(totals.count, 1), "loss": totals.mean_loss}

    def _pack(self, streams: list[NeedleStream], *, repeats: bool = False) -> Batch:
        tokens = len(streams[0].tokens)
        inputs = np.zeros((len(streams), -(-tokens // self._chunk) * self._chunk), np.int64)
        targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, np.bool_)
        for row, stream in enumerate(streams):
            inputs[row, :tokens] = stream.tokens
            targets[row, : tokens - 1] = stream.tokens[1:]
            mask[row, stream.queries] = True
            if repeats:
                mask[row, stream.repeats] = True
        return Batch(inputs, targets, mask, np.ones(len(streams), np.bool_))
