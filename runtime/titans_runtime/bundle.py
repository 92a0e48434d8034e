"""A bundle directory, opened: its manifest read, every file present and exactly the one that was exported.

Knows files, sizes and hashes. Each file is opened once, and the bytes that were hashed are the bytes that run: graphs
and the tokenizer are kept in memory, weights are mapped from the file that was hashed. So a bundle that is replaced
while it is loaded changes nothing for whoever loaded it. Does not know how a graph is run.
Nothing in a bundle is unpickled or executed here.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from titans_format import files
from titans_format.document import MANIFEST_FILE, parse
from titans_format.dtypes import BY_NAME
from titans_format.errors import BundleError
from titans_format.manifest import Manifest, read_manifest
from titans_format.seal import check_seal
from titans_format.specs import DataFile, GraphSpec, StateSpec
from titans_runtime import memory
from titans_runtime.arrays import Array
from titans_runtime.errors import InputError, os_remedy
from titans_runtime.graphs.check import CheckedGraph, Interface, check_graph
from titans_runtime.tensorfile import MAX_HEADER_BYTES, MappedTensor, map_file, read_tensors

Form: TypeAlias = Literal["file", "cpu", "fused"]  # which of the files of one graph

# More is damage or an attack. The largest that we export: 0.3 and 4 MiB; the largest tokenizers have 40.
MAX_MANIFEST_BYTES = 4 * files.MIB
MAX_GRAPH_BYTES = 32 * files.MIB
MAX_TOKENIZER_BYTES = 128 * files.MIB
MAX_TEMPLATE_BYTES = files.MIB // 4  # those in use have up to 30,000
# The weight that says how large a memory's steps are, by the end of its name, and what makes every one of them zero.
_STEP_SIZE = ".gate_bias.step_size"
_NO_STEP = -1e4  # the sigmoid of this is 0 in float32, whatever a token adds to it
_HASHED_AT_ONCE = 64 * files.MIB
_COPY_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class WeightFile:
    """The weight file as it was hashed.

    data: its bytes, mapped: the file lives as long as they do, even where another one has taken its name.
    identity: what the system calls the file; None where it was left out.
    """

    data: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    identity: os.stat_result | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    weights: the weight file's tensors by ONNX initializer name, mapped once for every graph; empty where engines hold
        them and the file was left out.
    initial: the first value of each state tensor, shaped without the batch axis; zeros are not stored.
    contents: the other files' bytes by name, as they were hashed.
    replaced: the weights that are not the file's.
    """

    path: Path
    manifest: Manifest
    weights: Mapping[str, MappedTensor]
    initial: Mapping[str, Array]
    contents: Mapping[str, bytes]
    weight_file: WeightFile
    replaced: frozenset[str] = frozenset()
    _checked: dict[str, CheckedGraph] = field(default_factory=dict, repr=False, compare=False)

    def graph(self, graph: GraphSpec, form: Form = "file") -> CheckedGraph:
        """One of a graph's files, held against the manifest and the weights when it is first asked for.

        Raises:
            BundleError: it was left out of this bundle, or is not what the manifest says.
        """
        name = file_of(graph, form)
        if name not in self._checked:
            if name not in self.contents:
                raise BundleError(
                    f"{self.path / name} was left out of this bundle by `titans slim`",
                    "use the bundle it was made from",
                )
            wanted = Interface(
                str(self.path / name),
                graph.inputs,
                graph.outputs,
                self.weights,
                self.manifest.weights.file,
                form == "cpu",
            )
            self._checked[name] = check_graph(self.contents[name], wanted)
        return self._checked[name]

    def check_tokenizer(self) -> None:
        """Raise `BundleError` unless the tokenizer's file, opened when first needed, is the one that was hashed."""
        info = self.manifest.tokenizer
        if info is not None and info.data_file is not None:
            _read(self.path, info.data_file, MAX_TOKENIZER_BYTES)

    def weights_in_place(self) -> bool:
        """Whether the weight file still has its name, so that others may open it by that.

        Raises:
            BundleError: its bytes were changed since they were hashed.
        """
        known = self.weight_file.identity
        if known is None:
            return False
        path = self.path / self.manifest.weights.file
        try:
            now = path.stat()
        except OSError:
            return False
        if (now.st_dev, now.st_ino) != (known.st_dev, known.st_ino):
            return False
        if (now.st_size, now.st_mtime_ns) != (known.st_size, known.st_mtime_ns):
            raise BundleError(f"{path} was changed while it was loaded", "load the bundle again")
        return True


def file_of(graph: GraphSpec, form: Form) -> str:
    """The name of one of a graph's files. Raises `ValueError` for a form that it does not have."""
    if form == "file":
        return graph.file
    twin = graph.cpu if form == "cpu" else graph.fused
    if twin is None:
        raise ValueError(f"graph {graph.name!r} has no {form} form")
    return twin.file


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle directory, checking every file's hash.

    Raises:
        BundleError: no bundle there, or a file missing, truncated, altered, malformed or of a newer format.
    """
    with opening(path) as bundle:
        return bundle


@contextmanager
def opening(path: str | os.PathLike[str]) -> Iterator[Bundle]:
    """A bundle whose weights are hashed while the block runs, which nothing may leave before its end.

    Raises:
        BundleError: as `open_bundle`; at the end of the block, if the weights are not the ones that were exported.
    """
    folder = Path(path)
    manifest = read_manifest_of(folder)
    limits = _limits(manifest)
    contents: dict[str, bytes] = {}
    weights, hashing = WeightFile(), None
    try:
        for file in manifest.files():
            if file.file in limits:
                contents[file.file] = _read(folder, file, limits[file.file])
            else:
                weights, hashing = _map(folder, file)
        tensors = {} if weights.identity is None else read_tensors(weights.data, manifest.weights.file)
        yield Bundle(folder, manifest, tensors, _initial_state(manifest, contents), contents, weights)
    finally:  # what the hash says of a damaged file is more to the point than what else is wrong with it
        if hashing is not None:
            hashing.check()


class _Hashing:
    """The hash of mapped bytes, taken by a thread beside whatever else there is to do.

    Hashed where they are mapped: copied by `read` they took 1.1 times as long, and the thread had to wait for the
    interpreter before every piece.
    """

    def __init__(self, data: Array, path: Path, file: DataFile) -> None:
        self._data, self._path, self._file = data, path, file
        self._digest = hashlib.sha256()
        self._thread: threading.Thread | None = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads
            self._thread = None
            self._run()

    def check(self) -> None:
        """Wait for the hash. Raises `BundleError` if it is not the file's."""
        if self._thread is not None:
            self._thread.join()
        _check_digest(self._path, self._file, self._digest.hexdigest())

    def _run(self) -> None:
        for start in range(0, len(self._data), _HASHED_AT_ONCE):
            self._digest.update(self._data[start : start + _HASHED_AT_ONCE].data)


def without_writes(bundle: Bundle) -> Bundle:
    """The bundle with every step size of its memories at zero: what they learned in training stays, nothing is added.

    Raises:
        InputError: the bundle has no such switch: no memory is written, each head has one step size for all tokens, the
            model was imported, or an older version folded the step sizes into the graphs.
    """
    biases = {name for name in bundle.weights if name.endswith(_STEP_SIZE)}
    graphs = [bundle.graph(graph) for graph in bundle.manifest.graphs if graph.kind != "commit"]
    if not biases or not all(biases <= set(graph.weights) for graph in graphs):
        raise InputError(
            f"{bundle.path} has no step sizes that could be switched off",
            "export its checkpoint with --control writes-off instead",
        )
    off = {}
    for name in biases:
        tensor = bundle.weights[name]
        off[name] = replace(tensor, array=np.full_like(tensor.array, _NO_STEP))
    return replace(bundle, weights={**bundle.weights, **off}, replaced=frozenset(biases))


def read_manifest_of(folder: Path) -> Manifest:
    """The manifest of a bundle directory, without looking at the other files. Raises `BundleError`."""
    file = folder / MANIFEST_FILE
    try:
        text = files.read_regular(file, MAX_MANIFEST_BYTES).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = f"{folder} has no {MANIFEST_FILE}" if folder.is_dir() else f"{folder} is not a bundle directory"
        raise BundleError(what, "give the directory that `titans export` wrote") from None
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 (byte {error.start})", _COPY_AGAIN) from None
    except OSError as error:
        raise BundleError(files.shown(file, error), os_remedy(error)) from None
    try:
        root = parse(text, MANIFEST_FILE)
        manifest = read_manifest(root)  # first, because what it says of a damaged file is more to the point
        check_seal(root, MANIFEST_FILE)
    except BundleError as error:
        raise BundleError(f"{folder}{os.sep}{error.finding}", error.remedy) from error  # it begins with the file's name
    return manifest


def check_memory(manifest: Manifest, streams: int = 1) -> None:
    """Whether the memory there is does for the state and the outputs of so many streams.

    Raises:
        BundleError: not even one stream fits.
        InputError: one does, and so many do not.
    """
    largest = max((graph_bytes(graph) for graph in manifest.graphs), default=0)
    if lack := memory.shortage(streams * (manifest.stream_bytes + largest)):
        of = "a stream" if streams == 1 else f"{streams:,} streams"
        what = f"{lack} for the state of {of} of {manifest.model.name!r}"
        if streams > 1:
            raise InputError(what, "use fewer streams, or free some memory")
        raise BundleError(what, "free some memory, or use a larger machine")


def graph_bytes(graph: GraphSpec) -> int:
    """Bytes of what one call of a graph takes and returns for one stream, besides its state."""
    state = graph.inputs + graph.outputs
    return sum(_tensor_bytes(tensor.shape, BY_NAME[tensor.dtype].bytes) for tensor in state if len(tensor.shape) > 1)


def _forms(graph: GraphSpec) -> Iterable[Form]:
    yield "file"
    if graph.cpu is not None:
        yield "cpu"
    if graph.fused is not None:
        yield "fused"


def _limits(manifest: Manifest) -> dict[str, int]:
    """How large each file but the weights may be."""
    limits = {file_of(graph, form): MAX_GRAPH_BYTES for graph in manifest.graphs for form in _forms(graph)}
    if manifest.initial_state is not None:
        limits[manifest.initial_state.file] = manifest.stream_bytes + MAX_HEADER_BYTES
    if manifest.tokenizer is not None and manifest.tokenizer.file is not None:
        limits[manifest.tokenizer.file] = MAX_TOKENIZER_BYTES
    if manifest.chat_template is not None:
        limits[manifest.chat_template.file] = MAX_TEMPLATE_BYTES
    return limits


def _tensor_bytes(shape: tuple[int | str, ...], item: int) -> int:
    count = item
    for size in shape:
        count *= size if isinstance(size, int) else 1
    return count


def _map(folder: Path, file: DataFile) -> tuple[WeightFile, _Hashing]:
    """The weights, mapped, and the hash of these very bytes."""
    path = folder / file.file
    handle = _open(path)
    try:
        identity = os.fstat(handle)
        _check_size(path, file, identity.st_size)
        weights = WeightFile(map_file(handle, str(path)), identity)
    finally:
        os.close(handle)
    return weights, _Hashing(weights.data, path, file)


def _read(folder: Path, file: DataFile, limit: int) -> bytes:
    """A file's bytes, checked."""
    path = folder / file.file
    handle = _open(path)
    try:
        _check_size(path, file, os.fstat(handle).st_size)
        data = files.read_all(handle, limit)
    except OSError as error:
        raise BundleError(files.shown(path, error), os_remedy(error)) from None
    finally:
        os.close(handle)
    _check_digest(path, file, hashlib.sha256(data).hexdigest())
    return data


def _open(path: Path) -> int:
    try:
        return files.open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is missing", _COPY_AGAIN) from None
    except OSError as error:
        raise BundleError(files.shown(path, error), os_remedy(error)) from None


def _check_size(path: Path, file: DataFile, size: int) -> None:
    if file.bytes is not None and size != file.bytes:
        raise BundleError(f"{path} has {size} bytes, the manifest says {file.bytes}", _COPY_AGAIN)


def _check_digest(path: Path, file: DataFile, digest: str) -> None:
    if digest != file.sha256:
        raise BundleError(
            f"{path} is not the file that was exported (sha256 {digest[:12]}..., expected {file.sha256[:12]}...)",
            _COPY_AGAIN,
        )


def _initial_state(manifest: Manifest, contents: Mapping[str, bytes]) -> dict[str, Array]:
    """The starting values that are not zero, `{state name: array without batch axis}`."""
    learned: Mapping[str, MappedTensor] = {}
    if manifest.initial_state is not None:
        if manifest.initial_state.file not in contents:
            raise BundleError(
                f"{manifest.initial_state.file} was left out, and every session starts from it", _COPY_AGAIN
            )
        data = np.frombuffer(contents[manifest.initial_state.file], np.uint8)
        learned = read_tensors(data, manifest.initial_state.file)
    return {state.name: _initial_value(state, learned) for state in manifest.states if state.initial.kind != "zeros"}


def _initial_value(state: StateSpec, learned: Mapping[str, MappedTensor]) -> Array:
    shape = tuple(size for size in state.shape if isinstance(size, int))
    if state.initial.tensor is None:
        with np.errstate(all="ignore"):
            start = np.asarray(state.initial.value).astype(state.dtype)
        if not np.isclose(float(start), state.initial.value, rtol=0.01):
            raise BundleError(
                f"state {state.name!r} starts from {state.initial.value}, which is no {state.dtype}", _COPY_AGAIN
            )
        return np.broadcast_to(start, shape)
    if state.initial.tensor not in learned:
        raise BundleError(
            f"the initial state file has no tensor {state.initial.tensor!r} for state {state.name!r}", _COPY_AGAIN
        )
    value = learned[state.initial.tensor].array
    if value.shape != shape or value.dtype != np.dtype(state.dtype):
        raise BundleError(
            f"initial tensor {state.initial.tensor!r} is {value.dtype} {list(value.shape)}, state {state.name!r} needs"
            f" {state.dtype} {list(shape)}",
            _COPY_AGAIN,
        )
    return value
