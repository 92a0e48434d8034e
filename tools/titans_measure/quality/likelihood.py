"""Bits per token along documents, with the memory kept, reset, frozen or never written.

kept: the document is read from its start to its end. reset: it is read in windows, each by a stream that starts afresh.
frozen: each window is read by a stream that stands where it stood after the first tokens of the document, so it has
what it had learned by then and nothing since. writes off: as kept, by a model whose step sizes are zero. All of them
predict the same tokens.

Knows token models. Does not know what the tokens mean, nor where documents come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from titans_measure.quality.streams import PIECE, Stream
from titans_runtime.arrays import FloatArray

Mode = Literal["kept", "reset", "frozen", "writes_off"]
MODES: tuple[Mode, ...] = get_args(Mode)
FIRST_BUCKET = 256  # tokens; every later bucket of positions ends twice as far out

Ids = NDArray[np.int64]
Bits = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The tokens at positions start..stop-1 of all documents, and their mean bits in each mode."""

    start: int
    stop: int
    tokens: int
    kept: float
    reset: float
    frozen: float
    writes_off: float | None = None  # None for a model whose writes cannot be switched off

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def surprisal(outputs: FloatArray, targets: Ids) -> Bits:
    """Bits `[T]` of `targets` `[T]` under logits `[T, V]`."""
    logits = outputs.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits).sum(-1))
    chosen = logits[np.arange(len(targets)), targets]
    bits: Bits = (total - chosen) / np.log(2)
    return bits


def document_bits(
    stream: Stream,
    tokens: Ids,
    mode: Mode,
    *,
    window: int,
    frozen_after: int,
    on_progress: Callable[[int], None] | None = None,
) -> Bits:
    """Bits of every token but the first, in the order of the document: float64 `[T - 1]`.

    Args:
        stream: one stream; it is reset first.
        tokens: int64 `[T]`, T >= 2.
        mode: see the module.
        window: tokens per window, where there are windows.
        frozen_after: tokens that the frozen memory has read. Earlier tokens are predicted as with the memory kept.
        on_progress: hears of the tokens done.
    """
    inputs, targets = tokens[:-1], tokens[1:]
    bits = np.empty(len(targets))
    stream.reset()
    fixed = stream  # replaced by a fork once the frozen memory is complete
    for start, stop, afresh in _pieces(len(inputs), mode, window, frozen_after):
        if afresh and mode == "reset":
            stream.reset()
        if afresh and mode == "frozen":
            fixed = stream.fork() if start == frozen_after else fixed
            stream = fixed.fork()
        outputs = stream.feed(inputs[None, start:stop], all_outputs=True).outputs[0]
        bits[start:stop] = surprisal(outputs, targets[start:stop])
        if on_progress is not None:
            on_progress(stop - start)
    return bits


def _pieces(length: int, mode: Mode, window: int, frozen_after: int) -> Iterator[tuple[int, int, bool]]:
    """Where feeds start and stop, and whether a window begins there."""
    first = {"kept": length, "reset": 0, "frozen": min(frozen_after, length), "writes_off": length}[mode]
    for start in range(0, first, PIECE):
        yield start, min(start + PIECE, first), False
    for start in range(first, length, window):
        yield start, min(start + window, length), True


def by_position(bits: dict[Mode, Sequence[Bits]]) -> tuple[Bucket, ...]:
    """Means over buckets of positions, of documents `[T - 1]` of any lengths; the first prediction has position 1."""
    longest = max(map(len, bits["kept"]))
    buckets, start = [], 1
    while start <= longest:
        stop = FIRST_BUCKET if start == 1 else 2 * start
        parts = {mode: np.concatenate([one[start - 1 : stop - 1] for one in found]) for mode, found in bits.items()}
        means = {mode: float(part.mean()) for mode, part in parts.items()}
        buckets.append(Bucket(start=start, stop=min(stop, longest + 1), tokens=len(parts["kept"]), **means))
        start = stop
    return tuple(buckets)


def marked_bits(
    stream: Stream, tokens: Ids, marked: NDArray[np.bool_], on_progress: Callable[[int], None] | None = None
) -> Bits:
    """Bits of the marked tokens of B streams from where they are.

    Args:
        stream: B streams.
        tokens: int64 `[B, T]`, fed from the first to the last.
        marked: bool `[B, T]`, False in the first column.
        on_progress: hears of the tokens done.

    Returns:
        float64 `[B, T]`, 0 where nothing is marked.
    """
    bits = np.zeros(tokens.shape)
    length = tokens.shape[1] - 1
    for start in range(0, length, PIECE):
        stop = min(start + PIECE, length)
        here = marked[:, start + 1 : stop + 1]
        outputs = stream.feed(tokens[:, start:stop], all_outputs=bool(here.any())).outputs
        rows, columns = np.nonzero(here)
        if len(rows):
            found = surprisal(outputs[rows, columns], tokens[rows, start + 1 + columns])
            bits[rows, start + 1 + columns] = found
        if on_progress is not None:
            on_progress(stop - start)
    return bits
