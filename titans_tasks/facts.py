"""Facts in natural language: told, then other text, then asked for again.

A stream tells some facts ("The colour of Anna is teal."), goes on with other text, and asks for every fact. It counts
what the model predicts at every token of a value. Facts are told and asked in the same words, in other words, or as the
turns of a chat in the model's own template. Some are corrected on the way: the later value counts. Names, values,
attributes and sentences that judge a model are never seen in training (`fact_words`).

Knows the layout of a stream. Does not know models or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.fact_words import Fact, Form, Words
from titans_tasks.task import Batch, Scalar, Totals

# Renders the turns of a conversation as the model's template does; the flag opens the assistant's next turn.
Render = Callable[[Sequence[Mapping[str, str]], bool], str]
Encode = Callable[[bytes], NDArray[np.unsignedinteger]]  # UTF-8 to ids [T]; control tokens that are written out act

FORMS: tuple[Form, ...] = get_args(Form)
FEWEST_FACTS = 2  # of a training stream
_TRAINING, _HELD_OUT, _SIZES = 21, 22, 23  # first number of every random seed, so that no two draws share a stream
_VALUE = "\ue000"  # stands for a value until the text around it is made; of no alphabet


@dataclass(frozen=True)
class Question:
    """One question. A model that knows has `answers` as its most likely tokens at `queries`.

    queries: `[A]`, positions before the tokens of the value.
    answers: `[A]`, token ids of the value.
    """

    queries: NDArray[np.int64]
    answers: NDArray[np.int64]


@dataclass(frozen=True)
class FactStream:
    """One stream: `told`, then `filler`, then `asked`, as token ids; positions of `questions` are those in `asked`."""

    told: NDArray[np.int64]
    filler: NDArray[np.int64]
    asked: NDArray[np.int64]
    questions: tuple[Question, ...]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """All of it, `[T]`."""
        return np.concatenate([self.told, self.filler, self.asked])


@dataclass(frozen=True, kw_only=True)
class FactsConfig:
    """The size of the problem."""

    facts: int = 8  # the most in training, and those of the held-out streams
    gap: int = 128  # longest gap in training, in tokens
    repeat: int | None = None  # steps after which the same streams come again; None: every stream is new
    held_out_gap: int = 1024
    held_out_streams: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < (0 if "gap" in name else 1):
                raise DataError(f"facts {name} is {value}", "use a larger number")


class FactSource:
    """Makes streams for one tokenizer and one chat template, with text of one share of the documents in between."""

    def __init__(self, documents: Sequence[Document], encode: Encode, render: Render | None, *, held_out: bool) -> None:
        """Args: `render` is None for a model without a chat template: then no question has the form `chat`.

        Nor has one where the template leaves out what somebody said.
        """
        self._words, self._encoder = Words(held_out=held_out), encode
        self._render = render if render is not None and _says_everything(render) else None
        text = b"\n\n".join(document.data for document in documents)
        self._filler: NDArray[np.unsignedinteger] = encode(text)
        if len(self._filler) < 2:
            raise DataError("there is no text to put between facts and questions", "give files with text in them")
        self._seed = _HELD_OUT if held_out else _TRAINING

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that this model can be asked in."""
        return FORMS if self._render is not None else FORMS[:2]

    def stream(
        self,
        facts: int,
        gap: int,
        numbers: Sequence[int],
        *,
        form: Form | None = None,
        asked: Form | None = None,
        corrected: bool = False,
    ) -> FactStream:
        """A stream of `facts` facts with `gap` tokens of other text before the questions.

        Args:
            facts: how many; about so many times 12 tokens are told, and asked.
            gap: tokens of filler.
            numbers: which stream; the same numbers make the same stream.
            form: how facts are told, and asked for; None for any.
            asked: how they are asked for, where that is another form; what comes before the questions stays the same.
            corrected: every fact is told twice, with another value the first time.
        """
        random = np.random.default_rng([self._seed, *numbers])
        form = form or self.forms[int(random.integers(len(self.forms)))]
        known: list[Fact] = []
        while len(known) < facts:
            known.append(self._words.fact(random, known))
        sentences = [int(random.integers(len(self._words.same))) for _ in known]
        told = ""
        if corrected:
            was = [Fact(fact.subject, fact.attribute, self._words.value(random)) for fact in known]
            told += self._telling(was, sentences, form, random)
        told += self._telling(known, sentences, form, random)
        filler, order = self._piece(gap, random), random.permutation(facts)
        text = self._asking([known[i] for i in order], [sentences[i] for i in order], asked or form, random)
        tokens, questions = self._located(text, [known[i].value for i in order])
        return FactStream(self._encode(told), filler, tokens, questions)

    # -- text ------------------------------------------------------------------------------------------------------

    def _telling(self, facts: Sequence[Fact], sentences: Sequence[int], form: Form, random: np.random.Generator) -> str:
        words, lines = self._words, []
        for fact, sentence in zip(facts, sentences, strict=True):
            other = words.told[int(random.integers(len(words.told)))]
            before, after = fact.told(f"{words.same[sentence]} {{value}}." if form == "same" else other)
            lines.append(f"{before} {fact.value}{after}")
        if form != "chat" or self._render is None:
            return "".join(f"{line}{' ' if random.random() < 0.8 else chr(10) * 2}" for line in lines)
        turns: list[dict[str, str]] = []
        for line in lines:
            turns += [{"role": "user", "content": line}, {"role": "assistant", "content": words.reply(random)}]
        return self._render(turns, False)

    def _asking(self, facts: Sequence[Fact], sentences: Sequence[int], form: Form, random: np.random.Generator) -> str:
        """The questions, with `_VALUE` and the space before it where a value belongs."""
        words = self._words
        if form != "chat" or self._render is None:
            others = [words.other[int(random.integers(len(words.other)))] for _ in facts]
            chosen = [words.same[i] for i in sentences] if form == "same" else others
            asked = (fact.asked(sentence) for fact, sentence in zip(facts, chosen, strict=True))
            return "".join(f" {question}{_VALUE}." for question in asked)
        turns: list[dict[str, str]] = []
        for fact in facts:
            question, answer = words.chat[int(random.integers(len(words.chat)))]
            turns.append({"role": "user", "content": fact.asked(question)})
            turns.append({"role": "assistant", "content": f"{fact.answered(answer)}{_VALUE}."})
        return self._render(turns, False)

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _encode(self, text: str) -> NDArray[np.int64]:
        return self._encoder(text.encode()).astype(np.int64)

    def _located(self, text: str, values: Sequence[str]) -> tuple[NDArray[np.int64], tuple[Question, ...]]:
        """`text` with its values as ids, and where they are: tokens do not begin where a string does by themselves."""
        pieces = text.split(_VALUE)
        whole, spans = pieces[0], []
        for value, piece in zip(values, pieces[1:], strict=True):
            begin = len(self._encode(whole))
            whole += f" {value}"
            spans.append((begin, len(self._encode(whole))))
            whole += piece
        tokens = self._encode(whole)
        questions = [Question(np.arange(begin - 1, end - 1), tokens[begin:end]) for begin, end in spans]
        return tokens, tuple(questions)

    def other(self, length: int, numbers: Sequence[int]) -> NDArray[np.int64]:
        """`length` tokens of other text; the same numbers give the same text."""
        return self._piece(length, np.random.default_rng([self._seed, *numbers]))

    def _piece(self, length: int, random: np.random.Generator) -> NDArray[np.int64]:
        start = int(random.integers(len(self._filler)))
        return np.take(self._filler, np.arange(start, start + length), mode="wrap").astype(np.int64)


class FactsTask:
    """Facts as a training task: fresh streams at every step, padded to whole chunks."""

    carries = False

    def __init__(
        self, config: FactsConfig, corpus: Corpus, encode: Encode, render: Render | None, *, chunk: int, seed: int
    ) -> None:
        self.config, self._chunk, self._seed = config, chunk, seed
        self._train = FactSource(corpus.train, encode, render, held_out=False)
        self._judge = FactSource(corpus.held_out, encode, render, held_out=True)
        self._text_bytes = sum(len(document.data) for document in corpus.train)

    @property
    def settings(self) -> dict[str, Scalar]:
        """The sizes, the chunk the padding follows, the seed and the size of the text."""
        own: dict[str, Scalar] = {"chunk": self._chunk, "seed": self._seed, "text_bytes": self._text_bytes}
        return {"task": "facts", **asdict(self.config), **own}

    def batch(self, step: int, rows: range) -> Batch:
        """Whole streams."""
        config = self.config
        step = step % config.repeat if config.repeat else step
        # One number of facts and one gap per step, so that rows are about as long as each other. Short streams teach to
        # look a fact up at all, long gaps to leave other text alone, and every fourth stream tells all facts twice.
        long, many = np.random.default_rng([_SIZES, self._seed, step]).random(2)
        gap = config.gap if step % 4 == 1 else int((config.gap + 1) ** long) - 1
        fewest = min(FEWEST_FACTS, config.facts)
        facts = config.facts if step % 2 else int(fewest * ((config.facts + 1) / fewest) ** many)
        streams = [
            self._train.stream(facts, gap, [self._seed, step, row], corrected=(step + row) % 4 == 3) for row in rows
        ]
        packed = self._pack(streams)
        # What follows the last question is other text as well, and not to be remembered.
        for row, (number, stream) in enumerate(zip(rows, streams, strict=True)):
            tokens = len(stream.tokens)
            packed.inputs[row, tokens:] = self._train.other(packed.inputs.shape[1] - tokens, [self._seed, step, number])
        return packed

    def held_out(self) -> Iterator[Batch]:
        """Held-out streams of every form across the long gap, in slices so that memory use stays small."""
        config, forms = self.config, self._judge.forms
        streams = [
            self._judge.stream(config.facts, config.held_out_gap, [number], form=forms[number % len(forms)])
            for number in range(config.held_out_streams)
        ]
        whole = self._pack(streams)
        length = -(-512 // self._chunk) * self._chunk
        for start in range(0, whole.inputs.shape[1], length):
            part = slice(start, start + length)
            reset = np.full(len(streams), start == 0)
            yield Batch(whole.inputs[:, part], whole.targets[:, part], whole.mask[:, part], reset)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`accuracy`: the share of the values' tokens that are right."""
        return {"accuracy": totals.correct / max(totals.count, 1), "loss": totals.mean_loss}

    def _pack(self, streams: Sequence[FactStream]) -> Batch:
        length = max(len(stream.tokens) for stream in streams)
        length = -(-length // self._chunk) * self._chunk
        inputs = np.zeros((len(streams), length), np.int64)
        targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, np.bool_)
        for row, stream in enumerate(streams):
            tokens = stream.tokens
            inputs[row, : len(tokens)] = tokens
            first = len(stream.told) + len(stream.filler)
            for question in stream.questions:
                targets[row, first + question.queries] = question.answers
                mask[row, first + question.queries] = True
        return Batch(inputs, targets, mask, np.ones(len(streams), np.bool_))


def _says_everything(render: Render) -> bool:
    """Whether a template writes every turn of a conversation once, and as it is."""
    words = ("harbour", "lantern", "meadow", "pebble")
    turns = [{"role": ("user", "assistant")[i % 2], "content": word + _VALUE} for i, word in enumerate(words)]
    text = render(turns, False)
    return all(text.count(word + _VALUE) == 1 for word in words)
