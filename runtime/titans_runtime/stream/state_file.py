"""A session as a file: one safetensors file that is whole or refused, and belongs to one model.

Knows the format and its checks. Does not know sessions, where states live, or how a file is replaced (`atomic`).

The tensors are the state table's, rows only as far as they were written, and the outputs after the last token. The
header's metadata holds one entry, `titans`, a JSON object: format, version, the identity of the model, the position,
totals, and a SHA-256 over every byte of the file, taken with the digest's own 64 characters as zeros.
Nothing in it is unpickled or executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from titans_format import files
from titans_format.document import MAX_INTEGER, Count, Number, Positive, Text, parse, read, refuse
from titans_format.dtypes import DType
from titans_format.errors import BundleError
from titans_format.install import upgrade
from titans_format.manifest import Manifest
from titans_format.specs import LAST, METADATA, MOST_AXES, StateSpec
from titans_runtime import memory
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import StateError, os_remedy
from titans_runtime.stream.snapshot import KEPT, OPEN, Snapshot, SurpriseTotals

FORMAT = "titans-state"
FORMAT_VERSION = 1
NO_DIGEST = "0" * 64
_HEADER_BYTES = 16 * 2**20  # far above any state table's header; a longer one is not ours
_LARGEST = 2**34  # elements of a tensor; more is damage or an attack
_COPIES = 3  # of a state that are in memory while it is read: the file, its tensors, and one that is put in order
_ZLIB_LEVEL = 1  # measured on a trained memory: level 6 saves under 1 % more and takes three times as long
_SAVE_AGAIN = "restore another copy, or start a new session"


@dataclass(frozen=True)
class Header:
    """What a state file says about itself.

    identity: the model it belongs to, see `Manifest.state_identity`.
    model: that model's name, for people.
    position: tokens of the stream consumed.
    commits, totals: how often the memory was written, and surprise over the stream.
    compressed: whether the tensors are compressed.
    recent, turn: the last ids of the stream, and where its conversation stands, as in `Snapshot`.
    tensors: dtype and shape of each.
    """

    identity: str
    model: str
    position: int
    commits: int
    totals: SurpriseTotals
    compressed: bool
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    recent: tuple[int, ...] = ()
    turn: int | None = None


class _Metadata(Struct):
    titans: Text


class StateFileHead(Struct, rename={"metadata": METADATA}):
    """A safetensors header, as far as it is not about tensors."""

    metadata: _Metadata


class _Kind(Struct):
    """What tells a state file from others, and whether it is whole."""

    format: Text
    format_version: Positive
    sha256: Text


class _Surprise(Struct):
    tokens: Count
    total: Number
    squares: Number
    highest: Number


class _Stored(Struct):
    """The header as it is written; `recent` and `turn` came later than the rest."""

    identity: Text
    model: Text
    position: Count
    commits: Count
    compressed: bool
    tensors: dict[str, tuple[DType, Annotated[tuple[Count, ...], Meta(max_length=MOST_AXES)]]]
    surprise: _Surprise
    recent: tuple[Count, ...] = ()
    turn: Annotated[int, Meta(ge=OPEN, le=MAX_INTEGER)] | None = None


@dataclass(frozen=True)
class Saved:
    """A state file's content: `tensors` shaped as in the state table, rows not yet written 0."""

    header: Header
    tensors: dict[str, Array]
    last: FloatArray | None


def pack(manifest: Manifest, tensors: Mapping[str, Array], snapshot: Snapshot, *, compress: bool = False) -> bytes:
    """The bytes of a state file.

    Args:
        manifest: the model.
        tensors: its state, as `Backend.read` gives it.
        snapshot: position, totals and last outputs.
        compress: bytes of equal significance are put together and deflated.
    """
    stored = {spec.name: tensors[spec.name][: counts(spec, snapshot.position)[0]] for spec in manifest.states}
    if (last := snapshot.outputs) is not None:
        stored[LAST] = last
    table = {name: [str(value.dtype), list(value.shape)] for name, value in stored.items()}
    if compress:
        stored = {name: _deflate(value) for name, value in stored.items()}
    text = json.dumps(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "sha256": NO_DIGEST,
            "identity": manifest.state_identity,
            "model": manifest.model.name,
            "position": snapshot.position,
            "commits": snapshot.commits,
            "compressed": compress,
            "recent": snapshot.recent,
            "surprise": asdict(snapshot.totals),
            "tensors": table,
            **({} if snapshot.turn is None else {"turn": snapshot.turn}),
        }
    )
    return write(text, stored)


def write(text: str, stored: Mapping[str, Array]) -> bytes:
    """A file of these tensors whose metadata is `text`, once its checksum stands in the place of zeros."""
    from safetensors.numpy import save  # only whoever saves or restores pays for the import

    contiguous = {name: np.ascontiguousarray(value) for name, value in stored.items()}
    data = save(contiguous, {"titans": text})
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(NO_DIGEST.encode(), digest.encode(), 1)  # the header comes first


def unpack(manifest: Manifest, data: bytes, source: str) -> Saved:
    """Read what `pack` gave.

    Args:
        manifest: the model that is to take the state.
        data: the file's bytes.
        source: what to call it in errors.

    Raises:
        StateError: damaged, of a newer format, or of another model.
    """
    header = read_header(data, source)
    if header.identity != manifest.state_identity:
        raise StateError(
            f"{source} is a state of another model ({header.model!r}, identity {header.identity[:12]})",
            "this bundle is"
            f" {manifest.model.name!r}, identity {manifest.state_identity[:12]}: load the bundle it was saved with",
        )
    expected = {spec.name: (str(np.dtype(spec.dtype)), counts(spec, header.position)) for spec in manifest.states}
    expected[LAST] = ("float32", (manifest.inputs.outputs,))
    for name in sorted(set(expected) | set(header.tensors)):
        if expected.get(name) != header.tensors.get(name) and not (name == LAST and name not in header.tensors):
            found, wanted = _shown(header.tensors.get(name)), _shown(expected.get(name))
            raise StateError(f"{name!r} is {found}, not {wanted}", _SAVE_AGAIN, where=source)
    stored = read_tensors(data, header, source)
    for name, value in stored.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StateError(f"{name!r} has numbers that are not finite", _SAVE_AGAIN, where=source)
    tensors = {spec.name: _padded(spec, stored[spec.name]) for spec in manifest.states}
    return Saved(header, tensors, stored.get(LAST))


def read_tensors(data: bytes, header: Header, source: str) -> dict[str, Array]:
    """The tensors as they are stored, decompressed: rows as far as they were written, and the last outputs as `LAST`.

    Raises:
        StateError: they are not what the header says.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in header.tensors.values()]
    if lack := memory.shortage(_COPIES * max(sum(sizes), len(data))):
        raise StateError(f"{source} is too large for this machine: {lack}", "free some memory, or use another machine")
    try:
        stored: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"{source} is not a sound safetensors file ({error})", _SAVE_AGAIN) from None
    if set(stored) != set(header.tensors):
        raise StateError(f"{source} does not hold the tensors that its header lists", _SAVE_AGAIN)
    for name, (dtype, shape) in header.tensors.items():
        if header.compressed:
            stored[name] = _inflate(stored[name], np.dtype(dtype), shape, source)
        if (str(stored[name].dtype), stored[name].shape) != (dtype, shape):
            raise StateError(f"{name!r} is not the {dtype} {list(shape)} of the header", _SAVE_AGAIN, where=source)
    return {name: stored[name] for name in header.tensors}


def read_header(data: bytes, source: str, format: str = FORMAT) -> Header:
    """What a state file says about itself, after checking every byte of it. Raises `StateError`."""
    return read_text(data, source, format)[0]


def read_text(data: bytes, source: str, format: str = FORMAT) -> tuple[Header, str]:
    """The header, and the text that it was read from."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _HEADER_BYTES):
        raise StateError(f"{source} is not a whole state file ({len(data)} bytes)", _SAVE_AGAIN)
    head = data[8 : 8 + length]
    try:
        metadata = read(parse(head.decode("utf-8"), source), StateFileHead, source).metadata
        titans = parse(metadata.titans, source)
        kind = read(titans, _Kind, source)
        if kind.format != format:
            raise StateError(f"{source} is not a saved session", "give a file that session.save() or --state-out wrote")
        if kind.format_version > FORMAT_VERSION:
            raise StateError(
                f"{source} has format version {kind.format_version}, newer than {FORMAT_VERSION}", upgrade()
            )
        _check_digest(data, head, kind.sha256, source)
        return _header(read(titans, _Stored, source), source), metadata.titans
    except BundleError as error:
        raise StateError(f"{source} is not a saved session, or is damaged ({error.finding})", _SAVE_AGAIN) from None
    except UnicodeDecodeError:
        raise StateError(f"{source} is not a saved session: its header is not UTF-8", _SAVE_AGAIN) from None


def read_file(path: str | os.PathLike[str], manifest: Manifest | None = None) -> bytes:
    """A state file's bytes; with a manifest, refused unread if it is far larger than that model's states can be.

    Raises:
        StateError: missing, unreadable, no regular file, or too large for its model or for the memory there is.
    """
    file = Path(path)
    try:
        if manifest is not None:
            limit = 2 * manifest.stream_bytes + 4 * manifest.inputs.outputs + _HEADER_BYTES
            if file.stat().st_size > limit:
                raise StateError(f"{file} is larger than a state of this model can be", "give one that it saved")
        else:
            limit = memory.available() // _COPIES
        return files.read_regular(file, limit)
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"{file} is missing", "check the path, or start a new session") from None
    except OSError as error:
        raise StateError(files.shown(file, error), os_remedy(error)) from None


def _check_digest(data: bytes, head: bytes, digest: str, source: str) -> None:
    at = head.find(digest.encode())
    if len(digest) != 64 or at < 0:
        raise StateError(f"{source} has no checksum where it should be", _SAVE_AGAIN)
    start = 8 + at
    found = hashlib.sha256(data[:start])
    found.update(NO_DIGEST.encode())
    found.update(memoryview(data)[start + 64 :])
    if found.hexdigest() != digest:
        raise StateError(f"{source} is damaged: its checksum does not match", _SAVE_AGAIN)


def _header(stored: _Stored, source: str) -> Header:
    for name, (_, shape) in stored.tensors.items():
        if math.prod(shape) > _LARGEST:
            refuse(source, f"tensors.{name}[1]", "a shape of a tensor that fits into memory", list(shape))
    return Header(
        identity=stored.identity,
        model=stored.model,
        position=stored.position,
        commits=stored.commits,
        compressed=stored.compressed,
        tensors=dict(stored.tensors),
        recent=stored.recent[-KEPT:],
        turn=stored.turn,
        totals=SurpriseTotals(**structs.asdict(stored.surprise)),
    )


def counts(spec: StateSpec, position: int) -> tuple[int, ...]:
    """The shape of the part of a tensor that counts."""
    shape = spec.concrete(1)
    return (position % shape[0], *shape[1:]) if spec.kind == "rows" else shape


def _padded(spec: StateSpec, stored: Array) -> Array:
    """A tensor as the state table shapes it."""
    if spec.kind == "carried":
        return stored
    table = np.zeros(spec.concrete(1), stored.dtype)
    table[: len(stored)] = stored
    return table


def _shown(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def _deflate(array: Array) -> Array:
    """The array's bytes, those of equal significance together (signs and exponents repeat), compressed."""
    planes = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T
    return np.frombuffer(zlib.compress(planes.tobytes(), _ZLIB_LEVEL), np.uint8)


def _inflate(stored: Array, dtype: np.dtype[np.generic], shape: tuple[int, ...], source: str) -> Array:
    size = math.prod(shape) * dtype.itemsize
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored.tobytes(), size + 1)  # never more than is expected
    except zlib.error as error:
        raise StateError(f"{source} cannot be decompressed ({error})", _SAVE_AGAIN) from None
    if len(raw) != size or not stream.eof or stream.unused_data:
        raise StateError(f"{source} decompresses to another size than the model's state", _SAVE_AGAIN)
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)
