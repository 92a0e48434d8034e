"""A bundle directory, opened: its manifest read, every file present and exactly the one that was exported.

Knows files, sizes and hashes; maps the weights and reads the initial state. Does not know how a graph is run.
Nothing in a bundle is unpickled or executed here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from titans_runtime.arrays import Array
from titans_runtime.errors import BundleError, InputError
from titans_runtime.jsonread import parse
from titans_runtime.manifest import MANIFEST_FILE, DataFile, Manifest, StateSpec
from titans_runtime.seal import check_seal
from titans_runtime.tensorfile import MappedTensor, map_tensors

_BLOCK_BYTES = 1 << 20  # hashing in pieces of 1 MiB keeps a large weight file out of this process's memory
# The weight that says how large a memory's steps are, by the end of its name, and what makes every one of them zero.
_STEP_SIZE = ".gate_bias.step_size"
_NO_STEP = -1e4  # the sigmoid of this is 0 in float32, whatever a token adds to it
_COPY_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    weights: the weight file's tensors by ONNX initializer name, mapped once for every graph; empty where engines hold
        them and the file was left out.
    initial: the first value of each state tensor, shaped without the batch axis; zeros are not stored.
    replaced: the weights that are not the file's.
    """

    path: Path
    manifest: Manifest
    weights: Mapping[str, MappedTensor]
    initial: Mapping[str, Array]
    replaced: tuple[str, ...] = ()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle directory, checking every file's hash.

    Raises:
        BundleError: no bundle there, or a file missing, truncated, altered, malformed or of a newer format.
    """
    folder = Path(path)
    manifest = read_manifest_of(folder)
    for file in manifest.files():
        _check_file(folder, file)
    weights = {} if manifest.weights.file in manifest.omitted else map_tensors(folder / manifest.weights.file)
    return Bundle(folder, manifest, weights, _initial_state(folder, manifest))


def without_writes(bundle: Bundle) -> Bundle:
    """The bundle with every step size of its memories at zero: what they learned in training stays, nothing is added.

    Raises:
        InputError: the bundle has no such switch: no memory is written, each head has one step size for all tokens, the
            model was imported, or an older version folded the step sizes into the graphs.
    """
    biases = [name for name in bundle.weights if name.endswith(_STEP_SIZE)]
    graphs = [bundle.path / graph.file for graph in bundle.manifest.graphs if graph.kind != "commit"]
    if not biases or not all(mentions(graph, name) for graph in graphs for name in biases):
        raise InputError(
            f"{bundle.path} has no step sizes that could be switched off; export its checkpoint with"
            " --control writes-off instead"
        )
    off = {}
    for name in biases:
        tensor = bundle.weights[name]
        off[name] = replace(tensor, array=np.full_like(tensor.array, _NO_STEP))
    return replace(bundle, weights={**bundle.weights, **off}, replaced=tuple(biases))


def mentions(graph: Path, name: str) -> bool:
    """Whether a graph uses the weight of that name. Raises `BundleError`."""
    try:
        return name.encode() in graph.read_bytes()
    except OSError as error:
        raise BundleError(f"{graph} cannot be read ({error.strerror}); {_COPY_AGAIN}") from error


def read_manifest_of(folder: Path) -> Manifest:
    """The manifest of a bundle directory, without looking at the other files. Raises `BundleError`."""
    file = folder / MANIFEST_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = f"{folder} has no {MANIFEST_FILE}" if folder.is_dir() else f"{folder} is not a bundle directory"
        raise BundleError(f"{what}; give the directory that `titans export` wrote") from None
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 (byte {error.start}); {_COPY_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}); check its permissions") from None
    try:
        manifest = Manifest.from_json(text)  # first, because what it says of a damaged file is more to the point
    except BundleError as error:
        raise BundleError(f"{folder}{os.sep}{error}") from error  # it begins with the file's name
    check_seal(parse(text, str(file)))
    return manifest


def _check_file(folder: Path, file: DataFile) -> None:
    path = folder / file.file
    try:
        size = path.stat().st_size
        if file.bytes is not None and size != file.bytes:
            raise BundleError(f"{path} has {size} bytes, the manifest says {file.bytes}; {_COPY_AGAIN}")
        digest = _sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path} is missing; {_COPY_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    if digest != file.sha256:
        raise BundleError(
            f"{path} is not the file that was exported (sha256 {digest[:12]}..., expected {file.sha256[:12]}...);"
            f" {_COPY_AGAIN}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _initial_state(folder: Path, manifest: Manifest) -> dict[str, Array]:
    """The starting values that are not zero, `{state name: array without batch axis}`."""
    learned = {} if manifest.initial_state is None else map_tensors(folder / manifest.initial_state.file)
    return {state.name: _initial_value(state, learned) for state in manifest.states if state.initial.kind != "zeros"}


def _initial_value(state: StateSpec, learned: Mapping[str, MappedTensor]) -> Array:
    shape = tuple(size for size in state.shape if isinstance(size, int))
    if state.initial.tensor is None:
        return np.full(shape, state.initial.value, dtype=state.dtype)
    if state.initial.tensor not in learned:
        raise BundleError(
            f"the initial state file has no tensor {state.initial.tensor!r} for state {state.name!r}; {_COPY_AGAIN}"
        )
    value = learned[state.initial.tensor].array
    if value.shape != shape or value.dtype != np.dtype(state.dtype):
        raise BundleError(
            f"initial tensor {state.initial.tensor!r} is {value.dtype} {list(value.shape)}, state {state.name!r} needs"
            f" {state.dtype} {list(shape)}; {_COPY_AGAIN}"
        )
    return value
