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

import numpy as np

from titans_format.errors import BundleError
from titans_format.install import upgrade
from titans_format.jsonread import Node, parse
from titans_format.manifest import DTYPES, LAST, MOST_AXES, Manifest, StateSpec
from titans_runtime import files, memory
from titans_runtime.arrays import Array, FloatArray
from titans_runtime.errors import StateError, os_remedy
from titans_runtime.stream.snapshot import KEPT, Moment, SurpriseTotals

FORMAT = "titans-state"
FORMAT_VERSION = 1
_NO_DIGEST = "0" * 64
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
    recent: the last ids of the stream, as in `Moment`.
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


@dataclass(frozen=True)
class Saved:
    """A state file's content: `tensors` shaped as in the state table, rows not yet written 0."""

    header: Header
    tensors: dict[str, Array]
    last: FloatArray | None


def pack(manifest: Manifest, tensors: Mapping[str, Array], moment: Moment, *, compress: bool = False) -> bytes:
    """The bytes of a state file.

    Args:
        manifest: the model.
        tensors: its state, as `Backend.read` gives it.
        moment: position, totals and last outputs.
        compress: bytes of equal significance are put together and deflated.
    """
    from safetensors.numpy import save  # only whoever saves or restores pays for the import

    stored = {spec.name: tensors[spec.name][: _counts(spec, moment.position)[0]] for spec in manifest.states}
    if (last := moment.outputs) is not None:
        stored[LAST] = last
    table = {name: [str(value.dtype), list(value.shape)] for name, value in stored.items()}
    if compress:
        stored = {name: _deflate(value) for name, value in stored.items()}
    text = json.dumps(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "sha256": _NO_DIGEST,
            "identity": manifest.state_identity,
            "model": manifest.model.name,
            "position": moment.position,
            "commits": moment.commits,
            "compressed": compress,
            "recent": moment.recent,
            "surprise": asdict(moment.totals),
            "tensors": table,
        }
    )
    contiguous = {name: np.ascontiguousarray(value) for name, value in stored.items()}
    data = save(contiguous, {"titans": text})
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(_NO_DIGEST.encode(), digest.encode(), 1)  # the header comes first


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
    expected = {spec.name: (str(np.dtype(spec.dtype)), _counts(spec, header.position)) for spec in manifest.states}
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


def read_header(data: bytes, source: str) -> Header:
    """What a state file says about itself, after checking every byte of it. Raises `StateError`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _HEADER_BYTES):
        raise StateError(f"{source} is not a whole state file ({len(data)} bytes)", _SAVE_AGAIN)
    head = data[8 : 8 + length]
    try:
        titans = parse(parse(head.decode("utf-8"), source).field("__metadata__").field("titans").text(), source)
        if titans.field("format").text() != FORMAT:
            raise StateError(f"{source} is not a saved session", "give a file that session.save() or --state-out wrote")
        version = titans.field("format_version").integer(1)
        if version > FORMAT_VERSION:
            raise StateError(f"{source} has format version {version}, newer than {FORMAT_VERSION}", upgrade())
        _check_digest(data, head, titans.field("sha256").text(), source)
        return _header(titans)
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
    found.update(_NO_DIGEST.encode())
    found.update(memoryview(data)[start + 64 :])
    if found.hexdigest() != digest:
        raise StateError(f"{source} is damaged: its checksum does not match", _SAVE_AGAIN)


def _header(titans: Node) -> Header:
    surprise = titans.field("surprise")
    return Header(
        identity=titans.field("identity").text(),
        model=titans.field("model").text(),
        position=titans.field("position").integer(0),
        commits=titans.field("commits").integer(0),
        compressed=titans.field("compressed").boolean(),
        tensors=_table(titans.field("tensors")),
        recent=_recent(titans.optional("recent")),
        totals=SurpriseTotals(
            surprise.field("tokens").integer(0),
            surprise.field("total").number(),
            surprise.field("squares").number(),
            surprise.field("highest").number(),
        ),
    )


def _counts(spec: StateSpec, position: int) -> tuple[int, ...]:
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


def _table(node: Node) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by tensor, such as could be in memory."""
    table: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in node.fields():
        dtype, shape = node.field(name).pair()
        if len(shape.items()) > MOST_AXES:
            shape.fail(f"a shape of at most {MOST_AXES} dimensions")
        table[name] = dtype.choice(DTYPES), tuple(size.integer(0) for size in shape.items())
        if math.prod(table[name][1]) > _LARGEST:
            shape.fail("a shape of a tensor that fits into memory")
    return table


def _recent(node: Node | None) -> tuple[int, ...]:
    """Ids; a file of before they were kept has none."""
    return () if node is None else tuple(each.integer(0) for each in node.items())[-KEPT:]


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
