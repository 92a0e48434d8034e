"""Multi-query associative recall: the simplest proof that a memory learns at test time.

A stream is `pairs` random key-value pairs, a gap of filler, then every key again in random order, each followed
by its value. Only the prediction made at a queried key counts. Values are drawn with replacement, so one answer says
nothing about the next, and a model without the pairs can do no better than one in `values`.

Knows the layout of a stream. Does not know models or torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from titans_tasks.errors import DataError
from titans_tasks.task import Batch, Scalar, Totals

FILLER = 0
FEWEST_PAIRS = 2  # of a training stream: with one there is nothing to tell apart
_TRAINING, _HELD_OUT, _GAPS = 1, 2, 3  # first number of every random seed, so that no two draws share a stream


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """The size of the problem. Ids: 0 filler, then `keys` keys, then `values` values."""

    keys: int = 32
    values: int = 32
    pairs: int = 16  # the most in training, and those of the held-out streams
    gap: int = 128  # longest gap in training, in tokens
    held_out_gap: int = 4096  # the gap of the held-out streams
    held_out_streams: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if "gap" in name else 1):
                raise DataError(f"recall {name} is {value}", "use a larger number")
        if self.pairs > self.keys:
            raise DataError(f"{self.pairs} pairs need as many distinct keys, there are {self.keys}", "use fewer pairs")

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 1 + self.keys + self.values


@dataclass(frozen=True)
class RecallStream:
    """One stream with its questions. A model that recalls has `answers` as its most likely token at `queries`."""

    tokens: NDArray[np.int64]  # [T]
    queries: NDArray[np.int64]  # [pairs] positions of the queried keys
    answers: NDArray[np.int64]  # [pairs] token ids of the values

    @property
    def questions(self) -> int:
        """Position of the first question: the pairs and the gap lie before it."""
        return int(self.queries[0])


def recall_stream(config: RecallConfig, gap: int, seed: int) -> RecallStream:
    """The held-out stream number `seed` with a gap of `gap` filler tokens: T = 4 * pairs + gap."""
    return _stream(config, gap, np.random.default_rng([_HELD_OUT, seed]))


def _stream(config: RecallConfig, gap: int, random: np.random.Generator) -> RecallStream:
    pairs = config.pairs
    keys = 1 + random.permutation(config.keys)[:pairs]
    values = 1 + config.keys + random.integers(config.values, size=pairs)
    order = random.permutation(pairs)
    questions = 2 * pairs + gap
    tokens = np.full(questions + 2 * pairs, FILLER, np.int64)
    tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
    tokens[questions::2], tokens[questions + 1 :: 2] = keys[order], values[order]
    return RecallStream(tokens, np.arange(questions, len(tokens), 2), values[order])


class RecallTask:
    """Recall as a training task: fresh streams at every step, of one gap and one number of pairs.

    They are padded with filler to whole chunks.
    """

    carries = False

    def __init__(self, config: RecallConfig, *, chunk: int, seed: int) -> None:
        self.config = config
        self._chunk, self._seed = chunk, seed

    @property
    def settings(self) -> dict[str, Scalar]:
        """The sizes, the chunk the padding follows, and the seed."""
        return {"task": "recall", **asdict(self.config), "chunk": self._chunk, "seed": self._seed}

    def batch(self, step: int, rows: range) -> Batch:
        """Whole streams; every row of every step is new."""
        config = self.config
        # Log-uniform: short gaps teach what belongs together, long ones teach not to forget it, and every fourth step
        # has the longest. In every other step, few pairs teach to look them up at all, which with all of them takes an
        # MLP memory several times as long.
        long, many = np.random.default_rng([_GAPS, self._seed, step]).random(2)
        gap = config.gap if step % 4 == 1 else int((config.gap + 1) ** long) - 1
        fewest = min(FEWEST_PAIRS, config.pairs)
        pairs = config.pairs if step % 2 else int(fewest * ((config.pairs + 1) / fewest) ** many)
        randoms = (np.random.default_rng([_TRAINING, self._seed, step, row]) for row in rows)
        return self._pack([_stream(replace(config, pairs=pairs), gap, random) for random in randoms])

    def held_out(self) -> Iterator[Batch]:
        """The first streams of `recall_stream` across the long gap, in slices so that memory use stays small."""
        config = self.config
        streams = [recall_stream(config, config.held_out_gap, seed) for seed in range(config.held_out_streams)]
        whole = self._pack(streams)
        length = -(-512 // self._chunk) * self._chunk
        for start in range(0, whole.inputs.shape[1], length):
            part = slice(start, start + length)
            reset = np.full(len(streams), start == 0)
            yield Batch(whole.inputs[:, part], whole.targets[:, part], whole.mask[:, part], reset)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """`accuracy`: the share of questions answered with the right value."""
        return {"accuracy": totals.correct / max(totals.count, 1), "loss": totals.mean_loss}

    def _pack(self, streams: list[RecallStream]) -> Batch:
        length = -(-len(streams[0].tokens) // self._chunk) * self._chunk
        inputs = np.full((len(streams), length), FILLER, np.int64)
        targets = np.full_like(inputs, FILLER)
        mask = np.zeros(inputs.shape, np.bool_)
        for row, stream in enumerate(streams):
            inputs[row, : len(stream.tokens)] = stream.tokens
            targets[row, stream.queries] = stream.answers
            mask[row, stream.queries] = True
        return Batch(inputs, targets, mask, np.ones(len(streams), np.bool_))
