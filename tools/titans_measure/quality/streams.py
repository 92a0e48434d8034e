"""Feeding many streams in lockstep: long contexts in pieces, and what the model says at chosen places.

Knows what tasks need of the runtime, and no task. What it drives is a `Stream`: the runtime's `Driver`, or anything
that can stand in for it. Whether a model's ids are those of a task is for `fitness` to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from titans_runtime.arrays import Array, FloatArray

PIECE = 4096  # tokens per feed: outputs and surprise of a piece are held at once


class Answer(Protocol):
    """What a feed gave."""

    @property
    def outputs(self) -> FloatArray:
        """float32 `[B, T, O]`, or `[B, 1, O]` where only the last token's were asked for."""
        ...


class Stream(Protocol):
    """`B` streams in lockstep."""

    def feed(self, inputs: Array, all_outputs: bool = False) -> Answer:
        """Consume int64 ids `[B, T]` or float32 vectors `[B, T, F]`."""
        ...

    def fork(self) -> Self:
        """Other streams that go on from here."""
        ...

    def reset(self) -> None:
        """Start afresh."""
        ...


def read(stream: Stream, inputs: Array, on_progress: Callable[[int], None] | None = None) -> None:
    """Feed `inputs` `[B, T, ...]` piece by piece for what they leave in memory; `on_progress` gets the tokens done."""
    for start in range(0, inputs.shape[1], PIECE):
        piece = inputs[:, start : start + PIECE]
        stream.feed(piece)
        if on_progress is not None:
            on_progress(piece.shape[1])


def predictions(
    stream: Stream, tokens: NDArray[np.int64], places: NDArray[np.int64], piece: int = PIECE
) -> NDArray[np.int64]:
    """The most likely next token at some places.

    Args:
        stream: B streams.
        tokens: int64 `[B, T]`, fed from the first to the last.
        places: int64 `[B, Q]`, ascending positions in `tokens`.
        piece: tokens per feed; a large vocabulary asks for fewer.

    Returns:
        int64 `[B, Q]`.
    """
    found = np.empty(places.shape, np.int64)
    for start in range(0, tokens.shape[1], piece):
        here = (start <= places) & (places < start + piece)
        outputs = stream.feed(tokens[:, start : start + piece], all_outputs=bool(here.any())).outputs
        rows, columns = np.nonzero(here)
        found[rows, columns] = outputs[rows, places[rows, columns] - start].argmax(-1)
    return found
