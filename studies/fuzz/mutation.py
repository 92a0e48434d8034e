"""How files are damaged: operations on bytes and on JSON documents, as plain data that can be kept and replayed.

Knows bytes and JSON. Does not know what the files are for. Places are shares of the length, or numbers taken modulo
the number of places there are, so that every operation fits every file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

Op: TypeAlias = list[Any]

WEIRD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**62,
    2**63,
    10**30,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "../x",
    "batch",
    [],
    {},
    [1],
]
WEIRD_TEXT = [
    "float32",
    "float16",
    "int64",
    "step",
    "commit",
    "prefill",
    "carried",
    "rows",
    "zeros",
    "weights.safetensors",
]

_place = st.floats(0, 1, allow_nan=False, exclude_max=True, width=32)
_number = st.integers(0, 10**6)
_length = st.integers(1, 64)

byte_ops: st.SearchStrategy[Op] = st.one_of(
    st.tuples(st.just("flip"), _place, st.integers(0, 7)),
    st.tuples(st.just("cut"), _place),
    st.tuples(st.just("insert"), _place, st.binary(min_size=1, max_size=16).map(bytes.hex)),
    st.tuples(st.just("overwrite"), _place, st.binary(min_size=1, max_size=16).map(bytes.hex)),
    st.tuples(st.just("delete"), _place, _length),
    st.tuples(st.just("repeat"), _place, _length),
).map(list)

json_ops: st.SearchStrategy[Op] = st.one_of(
    st.tuples(st.just("drop"), _number),
    st.tuples(st.just("set"), _number, st.sampled_from(WEIRD + WEIRD_TEXT) | st.integers(-10, 1000)),
    st.tuples(st.just("copy"), _number, _number),
    st.tuples(st.just("rename"), _number, st.sampled_from(["x", "name", "shape", "dtype", "file", "kind", ""])),
).map(list)


def damage(data: bytes, ops: Sequence[Op]) -> bytes:
    """The bytes after every operation in turn."""
    for name, place, *rest in ops:
        at = int(place * len(data))
        if name == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << rest[0])]) + data[at + 1 :] if data else data
        elif name == "cut":
            data = data[:at]
        elif name == "insert":
            data = data[:at] + bytes.fromhex(rest[0]) + data[at:]
        elif name == "overwrite":
            patch = bytes.fromhex(rest[0])
            data = data[:at] + patch + data[at + len(patch) :]
        elif name == "delete":
            data = data[:at] + data[at + rest[0] :]
        elif name == "repeat":
            data = data[: at + rest[0]] + data[at:]
        else:
            raise ValueError(f"there is no byte operation {name!r}")
    return data


def distort(document: dict[str, Any], ops: Sequence[Op]) -> dict[str, Any]:
    """A copy of the JSON object after every operation in turn; places are counted in the order of the document."""
    document = copy.deepcopy(document)
    for name, number, *rest in ops:
        places = _places(document)
        if not places:
            return document
        holder, key = places[number % len(places)]
        if name == "drop":
            del holder[key]
        elif name == "set":
            holder[key] = copy.deepcopy(rest[0])
        elif name == "copy":
            other, other_key = places[rest[0] % len(places)]
            holder[key] = copy.deepcopy(other[other_key])
        elif name == "rename" and isinstance(holder, dict):
            holder[rest[0]] = holder.pop(key)
        elif name != "rename":
            raise ValueError(f"there is no JSON operation {name!r}")
    return document


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document, depth first."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found
