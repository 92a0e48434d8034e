"""The stream that is compared on, and the pieces it is fed in.

Knows random numbers, text and how a stream is cut. Does not know who is fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from titans_export.errors import ExportError
from titans_format.fields import ContinuousInputs, TokenInputs
from titans_runtime.arrays import Array
from titans_runtime.bundle import Bundle
from titans_runtime.stream.plan import FASTEST, Policy
from titans_runtime.text.tokenizer import open_tokenizer
from titans_tasks.documents import read_corpus


@dataclass(frozen=True)
class Piece:
    """Some consecutive tokens of a stream.

    inputs: ids `[1, T]` or vectors `[1, T, F]`.
    start: place of the first.
    policy: which calls the runtime may make for them.
    """

    inputs: Array
    start: int
    policy: Policy = FASTEST

    @property
    def stop(self) -> int:
        """Place behind the last."""
        return self.start + int(self.inputs.shape[1])


def random_stream(inputs: TokenInputs | ContinuousInputs, tokens: int, seed: int) -> Array:
    """Ids `[1, T]` or vectors `[1, T, F]`."""
    random = np.random.default_rng(seed)
    if isinstance(inputs, ContinuousInputs):
        return random.standard_normal((1, tokens, inputs.features), dtype=np.float32)
    return random.integers(0, inputs.vocab_size, (1, tokens), dtype=np.int64)


def text_stream(bundle: Bundle, tokens: int, data: Sequence[str]) -> Array:
    """Ids `[1, T]` of the documents that training holds out.

    Raises:
        ExportError: the model reads no text, or there is too little.
    """
    if isinstance(bundle.manifest.inputs, ContinuousInputs):
        raise ExportError("a continuous model reads no text", "leave the data out")
    tokenizer = open_tokenizer(bundle.path, bundle.manifest)
    if tokenizer is None:
        raise ExportError(f"{bundle.path} has no tokenizer to read text with", "leave the data out")
    ids: list[int] = []
    for document in read_corpus(tuple(data)).held_out:
        ids += tokenizer.encode(document.data, special=True)  # as it was trained on
        if len(ids) >= tokens:
            return np.array([ids[:tokens]])
    raise ExportError(
        f"the documents that are held out have {len(ids):,} tokens, {tokens:,} are wanted",
        "ask for fewer, or name more data",
    )


def random_pieces(
    stream: Array, longest: int, policies: Sequence[Policy], seed: int, *, at_most: int | None = None
) -> Iterator[Piece]:
    """Pieces of 1 to `longest` tokens under one of the policies, the same for a seed; none longer than `at_most`."""
    random, start, tokens = np.random.default_rng(seed), 0, stream.shape[1]
    while start < tokens:
        length = min(int(random.integers(1, longest + 1)), at_most or longest)
        policy = policies[int(random.integers(len(policies)))]
        piece = Piece(stream[:, start : start + length], start, policy)
        yield piece
        start = piece.stop


def even_pieces(stream: Array, length: int) -> Iterator[Piece]:
    """Pieces of `length` tokens; the last may be shorter."""
    for start in range(0, stream.shape[1], length):
        yield Piece(stream[:, start : start + length], start)
