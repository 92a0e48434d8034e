"""A saved state for another model of the same shape: another precision of a checkpoint, or a fine-tuned successor.

Every tensor keeps its values and takes the element type of the new model. Nothing is computed, so a cast between
precisions is as good as the precision is. What a successor makes of the memory of its predecessor has to be measured.
Knows files and state tables. Does not know sessions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from titans_format.document import parse, read
from titans_format.manifest import Manifest
from titans_format.specs import LAST
from titans_runtime.arrays import Array
from titans_runtime.errors import StateError
from titans_runtime.stream.state_file import FORMAT, NO_DIGEST, counts, read_tensors, read_text, write
from titans_runtime.stream.state_int8 import expanded


def adopted(manifest: Manifest, data: bytes, source: str = "the state") -> bytes:
    """A state file of the model of `manifest`, made of a state file of a model with the same state table.

    A state of that model itself comes back as it is.

    Args:
        manifest: the model that is to go on from the state.
        data: a state file, also in its int8 form.
        source: what to call it in errors.

    Raises:
        StateError: damaged, or it does not fit: another state table, vocabulary or chunk, or numbers that the new
            element type cannot hold.
    """
    plain = expanded(data, source)
    header, text = read_text(plain, source)
    if header.identity == manifest.state_identity:
        return plain
    found = read_tensors(plain, header, source)
    wanted = {spec.name: (counts(spec, header.position), spec.dtype) for spec in manifest.states}
    if LAST in found:
        wanted[LAST] = ((manifest.inputs.outputs,), "float32")
    for name in sorted(set(found) ^ set(wanted)):
        raise StateError(
            f"{name!r} is {'not in' if name in found else 'only in'} the new model", _refusal(manifest), where=source
        )
    stored = {name: _cast(name, found[name], *wanted[name], manifest, source) for name in wanted}
    table = {name: [str(value.dtype), list(value.shape)] for name, value in stored.items()}
    facts = read(parse(text, source), dict[str, Any], source) | {
        "format": FORMAT, "sha256": NO_DIGEST, "identity": manifest.state_identity, "model": manifest.model.name,
        "compressed": False, "tensors": table,
    }  # fmt: skip
    return write(json.dumps(facts), stored)


def _cast(name: str, value: Array, shape: tuple[int, ...], dtype: str, manifest: Manifest, source: str) -> Array:
    if value.shape != shape:
        raise StateError(
            f"{name!r} is {list(value.shape)}, and {list(shape)} in the new model", _refusal(manifest), where=source
        )
    kind = np.dtype(dtype)
    if value.dtype == kind:
        return value
    if value.dtype.kind != "f" or kind.kind != "f":
        raise StateError(f"{name!r} is {value.dtype}, and {dtype} in the new model", _refusal(manifest), where=source)
    with np.errstate(over="ignore"):
        cast = value.astype(kind)
    if not np.isfinite(cast).all():
        raise StateError(
            f"{name!r} has numbers that {dtype} cannot hold", "use a bundle of another precision", where=source
        )
    return cast


def _refusal(manifest: Manifest) -> str:
    return (
        f"only a model of the same shape can adopt a state, and {manifest.model.name!r} has another one; let it read"
        " the journal again (titans state replay), or start afresh"
    )
