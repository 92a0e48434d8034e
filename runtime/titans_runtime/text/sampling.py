"""From logits to a token: greedy, or drawn from a distribution that is cut down in a fixed order.

The order is: repetition penalty, temperature, top-k, top-p, min-p, draw. Knows NumPy arrays of one stream's
logits. Does not know models, tokenizers or when to stop.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from titans_format.fields import GenerationDefaults
from titans_runtime.arguments import shown, whole
from titans_runtime.arrays import FloatArray, IdArray
from titans_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen.

    temperature: divides the logits; 0 takes the most likely token, ties to the lowest id.
    top_k: keep the k most likely tokens (ties to the lowest ids).
    top_p: keep the smallest set of most likely tokens whose probability, renormalised after top-k, reaches p.
    min_p: drop tokens less likely than this fraction of the most likely one.
    repetition_penalty: logits of tokens already seen are divided by it where positive and multiplied where
        negative (arXiv 1909.05858 §4.1); 1 changes nothing.
    seed: makes the draws repeatable; None draws differently every time.

    Raises:
        InputError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or above, such as 0.8")
        _number("repetition_penalty", self.repetition_penalty, 1e-3, math.inf, "1 for none, or above, such as 1.1")
        if self.top_p is not None:
            _number("top_p", self.top_p, 1e-9, 1.0, "above 0 and at most 1, such as 0.95")
        if self.min_p is not None:
            _number("min_p", self.min_p, 0.0, 1.0, "from 0 to 1, such as 0.05")
        if self.top_k is not None:
            whole("top_k", self.top_k, 1, "use a whole number of 1 or above")
        if self.seed is not None:
            whole("seed", self.seed, 0, "use a whole number of 0 or above")


def chosen_options(
    defaults: GenerationDefaults,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> SamplingOptions:
    """What the caller chose, and the model's own defaults for what is None.

    A `top_k` of 0, a `top_p` of 1, a `min_p` of 0 and a `repetition_penalty` of 1 switch a default off.

    Raises:
        InputError: a value outside its range.
    """
    k = defaults.top_k if top_k is None else None if type(top_k) is int and top_k == 0 else top_k
    always = {
        "temperature": defaults.temperature if temperature is None else temperature,
        "repetition_penalty": defaults.repetition_penalty if repetition_penalty is None else repetition_penalty,
    }
    return SamplingOptions(
        top_k=k,
        top_p=defaults.top_p if top_p is None else top_p,
        min_p=defaults.min_p if min_p is None else min_p,
        seed=seed,
        **{name: value for name, value in always.items() if value is not None},
    )


class Sampler:
    """Chooses the tokens of one stream; remembers which it has seen and where its random numbers are."""

    def __init__(self, options: SamplingOptions, vocab_size: int) -> None:
        self.options = options
        self._seed = None if options.seed is None else operator.index(options.seed)
        self._seen = np.zeros(vocab_size, np.bool_)
        self._random: np.random.Generator | None = (
            None  # greedy never needs one, and numpy.random takes 10 ms to import
        )

    def observe(self, tokens: Iterable[int]) -> None:
        """Count tokens as seen, for the repetition penalty."""
        self._seen[list(tokens)] = True

    @property
    def needs(self) -> int | None:
        """How many of the largest logits it chooses among; None where it has to see all of them.

        Also None where most are wanted anyway: an id and a logit are three times as large as a logit.
        """
        options, vocab_size = self.options, len(self._seen)
        count = 1 if options.temperature == 0 else options.top_k
        if options.repetition_penalty != 1.0 or count is None or 3 * count >= vocab_size:
            return None
        return count

    def choose(self, logits: FloatArray) -> int:
        """The next token for logits `[V]`, which are finite; it counts as seen from then on."""
        scores = penalised(logits.astype(np.float64), self._seen, self.options.repetition_penalty)
        token = int(np.argmax(scores)) if self.options.temperature == 0 else self._draw(scores)
        self._seen[token] = True
        return token

    def choose_among(self, ids: IdArray, logits: FloatArray) -> int:
        """The next token where only the `needs` likeliest are known, `[k]` in descending order: what `choose` gives."""
        scores = logits.astype(np.float64)
        token = int(ids[0 if self.options.temperature == 0 else self._draw(scores)])
        self._seen[token] = True
        return token

    def _draw(self, scores: NDArray[np.float64]) -> int:
        if self._random is None:
            self._random = np.random.default_rng(self._seed)
        tokens, probabilities = distribution(scores, self.options)
        edges = np.cumsum(probabilities)
        place = np.searchsorted(edges, self._random.random() * edges[-1], side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def penalised(scores: NDArray[np.float64], seen: NDArray[np.bool_], penalty: float) -> NDArray[np.float64]:
    """Scores `[V]` with seen tokens made less likely."""
    if penalty == 1.0:
        return scores
    with np.errstate(over="ignore"):  # as little likely as a number can say
        return np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)


def distribution(scores: NDArray[np.float64], options: SamplingOptions) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The tokens that are left after temperature, top-k, top-p and min-p, most likely first, with probabilities.

    Args:
        scores: penalised logits `[V]`.
        options: with a temperature above 0.

    Returns:
        ids and probabilities of the same length, at least one; the probabilities sum to 1.
    """
    tokens = np.argsort(-scores, kind="stable")[: options.top_k]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, which is what it means
        probabilities = np.exp((scores[tokens] - scores[tokens[0]]) / options.temperature)
    probabilities /= probabilities.sum()
    keep = len(tokens)
    if options.top_p is not None:
        keep = int(np.searchsorted(np.cumsum(probabilities), options.top_p, side="left")) + 1
    if options.min_p is not None:
        keep = min(keep, int(np.count_nonzero(probabilities >= options.min_p * probabilities[0])))
    kept = probabilities[:keep]
    return tokens[:keep], kept / kept.sum()


def _number(name: str, value: float, low: float, high: float, advice: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InputError(f"{name} is {shown(value)}, which is not a number", f"use {advice}")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    if not low <= number <= high or not math.isfinite(number):
        raise InputError(f"{name} is {shown(value)}", f"use a value {advice}")
