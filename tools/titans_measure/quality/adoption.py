"""What a memory is worth to another model: the same text read on from the adopted state, from nothing, and by replay.

Knows sessions and probabilities. Does not know where states come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from titans_measure.quality.errors import EvalError
from titans_runtime import Session
from titans_runtime.arrays import Array

_PIECE = 64  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Reading:
    """How one stream read the text.

    nats: per token, the mean surprise of its probabilities; `e**nats` is the perplexity.
    kl: nats per token that its probabilities are away from those of the first stream; 0 for that one itself.
    top1: share of the tokens for which both find the same token the likeliest.
    """

    nats: float
    kl: float
    top1: float

    def as_json(self) -> dict[str, float]:
        """The same as plain data."""
        return asdict(self)


def compare_readings(streams: Mapping[str, Session], ids: Sequence[int]) -> dict[str, Reading]:
    """Let every stream read the same tokens, and compare their probabilities with the first stream's.

    Args:
        streams: by name; they have read `ids` afterwards. All have one vocabulary.
        ids: two tokens or more. The first one is only read.

    Raises:
        EvalError: too few tokens.
    """
    if len(ids) < 2:
        raise EvalError(f"{len(ids)} tokens are too few to compare", "give a longer text")
    nats, kl, same = (dict.fromkeys(streams, 0.0) for _ in range(3))
    for start in range(0, len(ids) - 1, _PIECE):
        piece, after = ids[start : min(start + _PIECE, len(ids) - 1)], ids[start + 1 : start + 1 + _PIECE]
        first: Array | None = None
        for name, session in streams.items():
            logs = _log_probabilities(session.feed(list(piece), all_logits=True))
            first = logs if first is None else first
            nats[name] -= float(logs[np.arange(len(after)), list(after)].sum())
            kl[name] += float((np.exp(first) * (first - logs)).sum())
            same[name] += float((logs.argmax(axis=1) == first.argmax(axis=1)).sum())
    count = len(ids) - 1
    return {name: Reading(nats[name] / count, kl[name] / count, same[name] / count) for name in streams}


def _log_probabilities(logits: Array) -> Array:
    """float64 `[T, V]` of logits `[T, V]`."""
    wide: Array = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    normalised: Array = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return normalised


def perplexity(nats: float) -> float:
    """Of a mean surprise."""
    return math.exp(min(nats, 700.0))
