"""Language modelling on documents longer than the training window.

Every row of a batch reads one document from its start, slice after slice, with its memory carried along, and starts
afresh with the next document. Where a row is at a step is a pure function of (seed, row, step): a row reads epochs, an
epoch is all documents in an order of the row's own, and every epoch has the same number of slices.

Knows tokens and the reading order. Does not know models or torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_tasks.documents import Corpus, Document
from titans_tasks.errors import DataError
from titans_tasks.round_trip import RoundTrip, round_trip
from titans_tasks.task import Batch, Scalar, Totals
from titans_tasks.tokens import Ids, Tokenizer

_LONGEST_STREAM = 65_536  # tokens; longer documents become several streams, so that the rows read different parts


@dataclass(frozen=True)
class _Epoch:
    number: int
    order: NDArray[np.int64]  # stream numbers in reading order
    starts: NDArray[np.int64]  # slice at which each of them starts, within the epoch


class StreamReader:
    """Token streams cut into slices of `window` tokens, read by any number of rows."""

    def __init__(self, documents: Sequence[Ids], *, window: int, seed: int) -> None:
        total = sum(len(document) for document in documents)
        longest = min(_LONGEST_STREAM, max(4 * window, total // 32))
        self._streams = [
            document[start : start + longest + 1]  # the last token is only a target
            for document in documents
            for start in range(0, len(document) - 1, longest)
        ]
        if not self._streams:
            raise DataError("every document is shorter than two tokens", "give more text")
        self._window, self._seed = window, seed
        self._slices = np.array([-(-(len(stream) - 1) // window) for stream in self._streams])
        self._epochs: dict[int, _Epoch] = {}  # per row, the epoch it is in

    @property
    def slices(self) -> int:
        """Slices in one epoch of one row."""
        return int(self._slices.sum())

    def batch(self, step: int, rows: range) -> Batch:
        """Slice `step` of every row in `rows`: inputs int64 [B, window], targets one token ahead, the tail masked."""
        shape = (len(rows), self._window)
        inputs, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        mask, reset = np.zeros(shape, np.bool_), np.zeros(len(rows), np.bool_)
        for i, row in enumerate(rows):
            stream, offset = self._locate(row, step)
            piece = stream[offset : offset + self._window + 1]
            length = len(piece) - 1
            inputs[i, :length], targets[i, :length] = piece[:-1], piece[1:]
            mask[i, :length] = True
            reset[i] = offset == 0
        return Batch(inputs, targets, mask, reset)

    def _locate(self, row: int, step: int) -> tuple[Ids, int]:
        number, slice_ = divmod(step, self.slices)
        epoch = self._epochs.get(row)
        if epoch is None or epoch.number != number:
            order = np.random.default_rng([self._seed, row, number]).permutation(len(self._streams))
            ends = np.cumsum(self._slices[order])
            epoch = self._epochs[row] = _Epoch(number, order, ends - self._slices[order])
        place = int(np.searchsorted(epoch.starts, slice_, side="right")) - 1
        return self._streams[epoch.order[place]], (slice_ - int(epoch.starts[place])) * self._window


class TextTask:
    """Next-token prediction on a corpus."""

    carries = True

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        window: int,
        seed: int,
        eos: int | None = None,
        held_out_rows: int = 8,
        held_out_tokens: int = 65_536,
    ) -> None:
        """Read a corpus.

        Args:
            corpus: the documents.
            tokenizer: what makes ids of them.
            window: tokens per slice.
            seed: of the order in which documents are read.
            eos: an id that is put at the end of every whole document, so that the model learns to end.
            held_out_rows: streams that the evaluation reads at a time.
            held_out_tokens: about as many tokens are read in an evaluation.

        Raises:
            DataError: there is too little text, or none of it comes back from its tokens.
        """
        (train, kept), (held_out, judged) = (
            _encode(documents, tokenizer, eos) for documents in (corpus.train, corpus.held_out)
        )
        self._lost = judged.lost
        self._notes = _notes(tokenizer, kept, judged)
        self._reader = StreamReader(train, window=window, seed=seed)
        self._judge = StreamReader(held_out, window=window, seed=0)  # one evaluation for all seeds
        self._rows = held_out_rows
        once = -(-self._judge.slices // held_out_rows)  # a short text need not be read again and again
        self._steps = min(once, max(1, held_out_tokens // (held_out_rows * window)))
        self._tokens_per_byte = sum(map(len, held_out)) / judged.kept
        self._settings: dict[str, Scalar] = {
            "task": "text",
            "window": window,
            "seed": seed,
            "held_out_rows": held_out_rows,
            "held_out_tokens": held_out_tokens,
            "corpus_sha256": _digest(train, held_out),
        }
        if eos is not None:
            self._settings["eos"] = eos

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever trains should know of the tokenizer and this text, as sentences."""
        return self._notes

    @property
    def settings(self) -> dict[str, Scalar]:
        """The window, the seed, and a hash of every token."""
        return dict(self._settings)

    def batch(self, step: int, rows: range) -> Batch:
        """One slice further in every row's document."""
        return self._reader.batch(step, rows)

    def held_out(self) -> Iterator[Batch]:
        """Held-out documents from their starts."""
        for step in range(self._steps):
            yield self._judge.batch(step, range(self._rows))

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`bits_per_byte`, at the held-out text's average of tokens per byte.

        Bytes that do not come back from the tokens are not counted; `text_lost` is their share, where there are any.
        """
        lost = {"text_lost": self._lost} if self._lost else {}
        return {
            "bits_per_byte": totals.mean_loss / math.log(2) * self._tokens_per_byte,
            "loss": totals.mean_loss,
            "accuracy": totals.correct / max(totals.count, 1),
            **lost,
        }


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, eos: int | None) -> tuple[list[Ids], RoundTrip]:
    """Ids of every document, and how much of the text comes back from them."""
    encoded, compared = [], RoundTrip()
    for document in documents:
        try:
            ids = tokenizer.encode(document.data)
            back = document.data if tokenizer.exact else tokenizer.decode(ids)
        except DataError as error:
            raise DataError(error.finding, error.remedy, where=document.name) from error
        compared += round_trip(document.data, back)
        ends = eos is not None and document.whole
        encoded.append(np.append(ids, np.asarray(eos, ids.dtype)) if ends else ids)
    if not compared.kept:
        raise DataError(
            f"none of the text of {documents[0].name} comes back from its tokens",
            "take a tokenizer that was made for such text, or leave it out to train on bytes",
        )
    return encoded, compared


def _notes(tokenizer: Tokenizer, train: RoundTrip, held_out: RoundTrip) -> tuple[str, ...]:
    notes = []
    if not tokenizer.has_decoder:
        notes.append(
            "the tokenizer has no decoder: text is written as its tokens with spaces between them, inner marks and all;"
            " save it with one, such as ByteLevel"
        )
    if train.lost or held_out.lost:
        notes.append(
            f"the tokenizer loses text: {train.lost:.2%} of what is trained on and {held_out.lost:.2%} of what is held"
            " out do not come back from the tokens; bits_per_byte counts the rest alone"
        )
    return tuple(notes)


def _digest(*parts: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for ids in part:
            digest.update(f"{len(ids)}:".encode())
            digest.update(ids.tobytes())
        digest.update(b"|")
    return digest.hexdigest()
