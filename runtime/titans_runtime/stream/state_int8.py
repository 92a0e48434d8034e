"""A state file with eight bits a number, for keeping many: a quarter of the bytes, read back as a state file.

Each row along the last axis of a floating-point tensor is rounded to int8 by its largest magnitude, and keeps that
magnitude in float32. The outputs after the last token stay as they are. Rounding at rest is not rounding at every
token: a stream goes on in full precision from what it reads. Knows the file's form. Does not know sessions or stores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from titans_format.document import JsonObject, parse, read
from titans_format.specs import LAST
from titans_runtime.arrays import Array
from titans_runtime.errors import StateError
from titans_runtime.stream.state_file import FORMAT, NO_DIGEST, read_tensors, read_text, write

FORMAT_INT8 = "titans-state-int8"
_SCALE = ".scale"
_SHORTEST = 4  # numbers of a row; below that the scale takes more room than is saved
_LARGEST = 127
_SAVE_AGAIN = "restore another copy, or start a new session"


def rounded(data: bytes, source: str = "the state") -> bytes:
    """The int8 form of a state file. Raises `StateError` where it is none."""
    header, text = read_text(data, source)
    stored: dict[str, Array] = {}
    kept: dict[str, str] = {}
    for name, value in read_tensors(data, header, source).items():
        if name == LAST or value.dtype not in (np.float32, np.float16) or not _pays(value.shape):
            stored[name] = value
            continue
        stored[name], stored[name + _SCALE] = _round(value)
        kept[name] = str(value.dtype)
    facts = _described(_facts(text, source), FORMAT_INT8, stored) | {"rounded": kept}
    return write(json.dumps(facts), stored)


def expanded(data: bytes, source: str = "the state") -> bytes:
    """The state file of an int8 form; other bytes as they are. Raises `StateError` where it is damaged."""
    if FORMAT_INT8.encode() not in data[: 8 + int.from_bytes(data[:8], "little")][:4096]:
        return data
    header, text = read_text(data, source, FORMAT_INT8)
    stored = read_tensors(data, header, source)
    facts = _facts(text, source)
    kept = facts.pop("rounded", None)
    if not isinstance(kept, dict):
        raise StateError(f"{source} does not say which of its tensors are rounded", _SAVE_AGAIN)
    for name, dtype in kept.items():
        value, scale = stored.get(name), stored.pop(str(name) + _SCALE, None)
        if value is None or scale is None or value.dtype != np.int8 or dtype not in ("float32", "float16"):
            raise StateError(f"{source} has no sound tensor {name!r}", _SAVE_AGAIN)
        if scale.dtype != np.float32 or scale.shape != (*value.shape[:-1], 1):
            raise StateError(f"{source} has a scale that does not fit {name!r}", _SAVE_AGAIN)
        stored[name] = (value.astype(np.float32) * scale).astype(dtype)
    return write(json.dumps(_described(facts, FORMAT, stored)), stored)


def _pays(shape: tuple[int, ...]) -> bool:
    return bool(shape) and shape[-1] >= _SHORTEST and math.prod(shape) > 0


def _round(value: Array) -> tuple[Array, Array]:
    """int8 `[..., N]`, and the float32 scale `[..., 1]` that multiplies it."""
    wide = value.astype(np.float32)
    scale = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(_LARGEST)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):  # what is not finite stays so in the scale, and is refused when it is read
        return np.rint(wide * inverse).clip(-_LARGEST, _LARGEST).astype(np.int8), scale


def _facts(text: str, source: str) -> JsonObject:
    return read(parse(text, source), dict[str, Any], source)


def _described(facts: JsonObject, form: str, stored: Mapping[str, Array]) -> JsonObject:
    """The metadata of a file with these tensors, before it has a checksum."""
    table: JsonObject = {name: [str(value.dtype), list(value.shape)] for name, value in stored.items()}
    return facts | {"format": form, "sha256": NO_DIGEST, "compressed": False, "tensors": table}
