"""What users pass in, checked before any state changes: token ids or vectors, of the right type, shape and range.

Knows the two kinds of input. Does not know sessions or files.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from titans_format.fields import ContinuousInputs, TokenInputs
from titans_runtime.arguments import shown
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.errors import InputError

_LARGEST_ID = 2**31 - 1  # of any tokenizer

Tokens: TypeAlias = Sequence[int] | IdArray
Inputs: TypeAlias = Tokens | ArrayLike


def checked_inputs(kind: TokenInputs | ContinuousInputs, inputs: Inputs) -> Array:
    """One stream's inputs as int64 `[T]` or float32 `[T, F]`, T >= 1.

    Raises:
        InputError: empty, of the wrong shape or dtype, ids outside the vocabulary, vectors that are not finite.
    """
    if isinstance(kind, TokenInputs):
        return checked_tokens(inputs, kind.vocab_size)
    return checked_vectors(inputs, kind.features)


def checked_tokens(inputs: Inputs, vocab_size: int) -> IdArray:
    """Token ids `[T]`. Raises `InputError`."""
    if isinstance(inputs, list) and len(inputs) == 1 and type(inputs[0]) is int and 0 <= inputs[0] < vocab_size:
        return np.array(inputs, np.int64)  # a decoder's case, ten times faster
    array = as_array(inputs, "tokens", "a sequence of token ids")
    if array.ndim != 1:
        raise InputError(f"tokens have shape {list(array.shape)}", "pass one stream's ids, shape [T]")
    if array.size == 0:
        raise InputError("there are no tokens to feed", "pass at least one")
    if array.dtype.kind not in "iu":
        raise InputError(f"tokens are {array.dtype}", f"pass integers from 0 to {vocab_size - 1}")
    if array.min() < 0 or array.max() >= vocab_size:
        at = int(np.flatnonzero((array < 0) | (array >= vocab_size))[0])
        raise InputError(
            f"token {int(array[at])} at index {at} is outside the vocabulary", f"pass ids from 0 to {vocab_size - 1}"
        )
    return array.astype(np.int64)


def checked_ends(ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Ids that are to end a text. Raises `InputError`."""
    try:
        ends = tuple(operator.index(token) for token in ids)
    except Exception:  # also what an object of the caller's raises
        raise InputError(f"stop_ids is {shown(ids)}", "use a list of token ids") from None
    for token in ends:
        if not 0 <= token < vocab_size:
            raise InputError(f"stop id {shown(token)} is outside the vocabulary", f"use ids from 0 to {vocab_size - 1}")
    return ends


def checked_ids(tokens: Inputs) -> list[int]:
    """Ids that are to become text; there may be none. Raises `InputError`."""
    array = as_array(tokens, "tokens", "a sequence of token ids")
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any() or (array > _LARGEST_ID).any():
        raise InputError("tokens are not a sequence of ids", f"pass integers from 0 to {_LARGEST_ID}")
    ids: list[int] = array.tolist()
    return ids


def checked_streams(kind: TokenInputs | ContinuousInputs, inputs: Inputs, batch: int) -> Array:
    """Inputs of `batch` streams, int64 `[B, T]` or float32 `[B, T, F]`, T >= 1. Raises `InputError`."""
    tokens = isinstance(kind, TokenInputs)
    if tokens and isinstance(inputs, np.ndarray) and inputs.shape == (batch, 1) and inputs.dtype == np.int64:
        ids = inputs.ravel().tolist()
        if min(ids) >= 0 and max(ids) < kind.outputs:
            return inputs.copy()  # a decoder's case, five times faster
    array = as_array(inputs, "inputs", f"an array of {batch} streams")
    wanted = 2 if tokens else 3
    if array.ndim != wanted or array.shape[0] != batch:
        raise InputError(f"inputs have shape {list(array.shape)}", f"pass {batch} streams, shape [{batch}, T, ...]")
    try:
        return checked_inputs(kind, array.reshape(batch * array.shape[1], *array.shape[2:])).reshape(array.shape)
    except InputError:
        for stream in array:
            checked_inputs(kind, stream)  # the index that is told is one of the stream's own
        raise


def checked_vectors(inputs: Inputs, features: int) -> FloatArray:
    """Vectors `[T, features]`. Raises `InputError`."""
    array = as_array(inputs, "inputs", f"numbers of shape [T, {features}]")
    if array.ndim != 2 or array.shape[1] != features:
        raise InputError(f"inputs have shape {list(array.shape)}", f"pass one stream's vectors, shape [T, {features}]")
    if array.shape[0] == 0:
        raise InputError("there are no vectors to feed", "pass at least one")
    if array.dtype.kind not in "iuf":
        raise InputError(f"inputs are {array.dtype}", f"pass float32 vectors of shape [T, {features}]")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        vectors = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if wrong.size:
        raise InputError(
            f"the vector at index {int(wrong[0])} is not finite in float32", "clean or scale the series first"
        )
    return vectors


def as_array(inputs: Inputs, what: str, wanted: str) -> Array:
    """What NumPy makes of a value. Raises `InputError`."""
    if isinstance(inputs, str | bytes):
        raise InputError(f"{what} are text", "encode it first with model.encode(text), or use session.generate(text)")
    try:
        return np.asarray(inputs)
    except Exception as error:  # also what an object of the caller's raises
        raise InputError(f"{what} are not an array ({error})", f"pass {wanted}") from None
