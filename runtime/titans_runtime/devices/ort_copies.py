"""Copies between tensors of a device, as tiny graphs that ONNX Runtime runs there.

Knows which graph makes which copy. Does not know states. A provider has no call for "write this row into that table",
but a scatter kernel does just that, and writes only those rows where input and output are the same tensor. Where a
provider cannot have them the same (an engine compiler may read and write in any order), the result goes into a spare
tensor and is copied over, still on the device. What comes back to the host is cut out, chosen or added up there first.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from titans_format.dtypes import BY_NAME
from titans_runtime.arrays import Array
from titans_runtime.devices.onnx_writer import Node, Value, model
from titans_runtime.devices.ort_cuda_graphs import Replay, Replays, Staged

if TYPE_CHECKING:
    import onnxruntime as ort

_BINDINGS = 16  # kept per target; a target meets few sources
# Copies of every step, whose operators work on nothing of the host's, so that their runs can be captured.
_REPLAYED = ("put", "place", "sums")
_JOINED = 32  # tensors that CUDA's Concat joins within a captured run


@dataclass(frozen=True, eq=False)
class OrtBuffer:
    """A tensor in the device's memory. `serial` is never used again, unlike the `id` of an object that is gone."""

    value: ort.OrtValue
    shape: tuple[int, ...]
    dtype: str
    serial: int = field(default_factory=itertools.count().__next__)


@dataclass(frozen=True)
class _Kind:
    """One sort of copy for tensors of these types: the graph, and the names of what it takes besides `target`."""

    name: str
    tensors: tuple[tuple[str, int], ...]  # dtype and rank of each
    spread: bool = False


@dataclass(frozen=True)
class _Bound:
    """A copy with its places. `staged` are numbers with places on the device, `downloads` those that come back."""

    session: ort.InferenceSession
    binding: ort.IOBinding
    replay: Replay | None
    staged: Mapping[str, Staged]
    downloads: tuple[Staged, ...] = ()

    def run(self, numbers: Mapping[str, Array]) -> None:
        """Copy; `numbers` say where to."""
        if self.replay is None:
            for name, array in numbers.items():
                self.binding.bind_cpu_input(name, array)
            self.session.run_with_iobinding(self.binding)
            return
        for name, array in numbers.items():
            self.staged[name].host[...] = array
            self.staged[name].send()
        self.replay.run()
        for one in self.downloads:
            one.bring()


class Copies:
    """The copies of one device.

    Args:
        session: makes a session of a model's bytes, on the device, with captures if they are wanted and can be had.
        spare: makes a tensor on the device.
        copy: copies tensors on the device.
        in_place: whether a scatter may have its input as its output.
        spread: whether a scatter gets an index for every number, not for every row. CUDA has a thread for each index.
    """

    def __init__(
        self,
        session: Callable[[bytes, bool], tuple[ort.InferenceSession, Replays | None]],
        spare: Callable[[tuple[int, ...], str], OrtBuffer],
        copy: Callable[[Sequence[OrtBuffer], Sequence[OrtBuffer]], None],
        in_place: bool,
        spread: bool,
    ) -> None:
        self._session = session
        self._spare = spare
        self._copy = copy
        self._in_place = in_place
        self._spread = spread
        self._sessions: dict[_Kind, tuple[ort.InferenceSession, Replays | None]] = {}
        self._bindings: weakref.WeakKeyDictionary[OrtBuffer, dict[tuple[object, ...], _Bound]] = (
            weakref.WeakKeyDictionary()
        )
        self._spares: dict[tuple[int, tuple[int, ...], str], OrtBuffer] = {}

    def append(
        self,
        source: Sequence[OrtBuffer],
        target: Sequence[OrtBuffer],
        rows: Sequence[OrtBuffer],
        start: int,
        count: int,
    ) -> None:
        """target[start:start+count] = rows[:count], and elsewhere source."""
        places = np.arange(start, start + count)[:, None]
        if all(part.shape[0] == count for part in rows):
            self._run("put", {"source": source, "part": rows}, target, {"places": places})
        else:
            self._run(
                "append", {"source": source, "part": rows}, target, {"places": places, "count": np.array([count])}
            )

    def seat(self, wide: Sequence[OrtBuffer], solo: Sequence[OrtBuffer], lane: int, axis: int) -> None:
        """wide[lane] = solo[0]."""
        if axis == 0:
            self._run("put", {"source": wide, "part": solo}, wide, {"places": np.array([[lane]])})
            return
        places = np.array([[lane]])
        if not self._spread:
            length = wide[0].shape[0]
            places = np.stack([np.arange(length), np.full(length, lane)], axis=1)
        self._run("seat", {"source": wide, "part": solo}, wide, {"places": places})

    def pick(self, wide: Sequence[OrtBuffer], solo: Sequence[OrtBuffer], lane: int, axis: int) -> None:
        """solo[0] = wide[lane]."""
        self._run(f"pick{axis}", {"source": wide}, solo, {"places": np.array([lane])})

    def place(self, tables: Sequence[OrtBuffer], rows: Sequence[OrtBuffer], places: Sequence[int]) -> None:
        """tables[places[l], l] = rows[0, l]."""
        where = np.array([places])
        if not self._spread:
            where = np.stack([where[0], np.arange(len(places))], axis=1)
        self._run("place", {"source": tables, "part": rows}, tables, {"places": where})

    def keep(self, new: Sequence[OrtBuffer], old: Sequence[OrtBuffer], lanes: Sequence[int]) -> None:
        """new[l] = old[l]."""
        which = np.array(lanes)
        self._run("keep", {"source": new, "part": old}, new, {"lanes": which, "places": which[:, None]})

    def sums(self, buffers: Sequence[OrtBuffer]) -> Array:
        """The sum of each tensor, float32 `[n]`, on the host."""
        kind = _Kind("sums", tuple((buffer.dtype, len(buffer.shape)) for buffer in buffers))
        session, replays = self._get(kind, _sums)
        if replays is None:
            (sums,) = self._bring(kind, _sums, buffers, {}, ["sums"])
            return sums
        key = ("sums", *(buffer.serial for buffer in buffers))
        bound = self._known(buffers[0], key, lambda: self._bind_sums(session, replays, buffers))
        bound.run({})
        return bound.staged["sums"].host.copy()

    def rows(self, head: OrtBuffer, first: int, count: int) -> Array:
        """head[:, first:first+count] of `[B, T, O]`, on the host."""
        numbers = {"begin": np.array([first]), "end": np.array([first + count])}
        (rows,) = self._bring(_Kind("rows", ()), lambda kind: _rows(), [head], numbers, ["rows"])
        return rows

    def top_k(self, head: OrtBuffer, row: int, count: int) -> tuple[Array, Array, Array]:
        """Of head[:, row]: the places and values of the largest, `[B, count]`, and the sum `[B]`, on the host."""
        numbers = {"begin": np.array([row]), "end": np.array([row + 1]), "k": np.array([count])}
        names = ["places", "largest", "sum"]
        places, largest, total = self._bring(_Kind("top_k", ()), lambda kind: _top_k(), [head], numbers, names)
        return places[:, 0], largest[:, 0], total[:, 0]

    def _bring(
        self,
        kind: _Kind,
        graph: Callable[[_Kind], bytes],
        buffers: Sequence[OrtBuffer],
        numbers: Mapping[str, Array],
        names: Sequence[str],
    ) -> list[Array]:
        """Run a graph over tensors of the device, and bring its outputs to the host."""
        session, _ = self._get(kind, graph)
        binding = session.io_binding()
        for i, buffer in enumerate(buffers):
            binding.bind_ortvalue_input(f"source{i}", buffer.value)
        for number, array in numbers.items():
            binding.bind_cpu_input(number, array)
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return [np.asarray(array) for array in binding.copy_outputs_to_cpu()]

    def _run(
        self,
        name: str,
        tensors: Mapping[str, Sequence[OrtBuffer]],
        target: Sequence[OrtBuffer],
        numbers: Mapping[str, Array],
    ) -> None:
        if not target:
            return
        source = tensors["source"]
        into = target
        if not self._in_place and source[0] is target[0]:
            into = [self._spare_like(i, buffer) for i, buffer in enumerate(target)]
        types = tuple((buffer.dtype, len(buffer.shape)) for buffer in source)
        kind = _Kind(name, types, self._spread and all(rank >= 2 for _, rank in types))
        session, replays = self._get(kind, _graph)
        # The tensors of a block come and go together, so the first stands for all.
        key = (name, *(buffers[0].serial for buffers in tensors.values()))
        self._known(into[0], key, lambda: self._bind(session, replays, tensors, into, numbers)).run(numbers)
        if into is not target:
            self._copy(into, target)

    def _get(self, kind: _Kind, graph: Callable[[_Kind], bytes]) -> tuple[ort.InferenceSession, Replays | None]:
        """The session of a graph, and its captures where all it works on can be on the device."""
        found = self._sessions.get(kind)
        if found is None:
            found = self._sessions[kind] = self._session(graph(kind), kind.name in _REPLAYED)
        return found

    def _known(self, target: OrtBuffer, key: tuple[object, ...], bind: Callable[[], _Bound]) -> _Bound:
        known = self._bindings.setdefault(target, {})
        bound = known.get(key)
        if bound is None:
            if len(known) >= _BINDINGS:
                known.clear()
            bound = known[key] = bind()
        return bound

    def _bind(
        self,
        session: ort.InferenceSession,
        replays: Replays | None,
        tensors: Mapping[str, Sequence[OrtBuffer]],
        target: Sequence[OrtBuffer],
        numbers: Mapping[str, Array],
    ) -> _Bound:
        binding = session.io_binding()
        for name, buffers in tensors.items():
            for i, buffer in enumerate(buffers):
                binding.bind_ortvalue_input(f"{name}{i}", buffer.value)
        for i, buffer in enumerate(target):
            binding.bind_ortvalue_output(f"target{i}", buffer.value)
        staged = {} if replays is None else {name: self._stage(array) for name, array in numbers.items()}
        for name, one in staged.items():
            binding.bind_ortvalue_input(name, one.device)
        return _Bound(session, binding, None if replays is None else Replay(replays, binding), staged)

    def _bind_sums(self, session: ort.InferenceSession, replays: Replays, buffers: Sequence[OrtBuffer]) -> _Bound:
        binding = session.io_binding()
        for i, buffer in enumerate(buffers):
            binding.bind_ortvalue_input(f"source{i}", buffer.value)
        sums = self._stage(np.zeros(len(buffers), np.float32))
        binding.bind_ortvalue_output("sums", sums.device)
        return _Bound(session, binding, Replay(replays, binding), {"sums": sums}, downloads=(sums,))

    def _stage(self, like: Array) -> Staged:
        return Staged(np.zeros_like(like), self._spare(like.shape, str(like.dtype)).value)

    def _spare_like(self, index: int, buffer: OrtBuffer) -> OrtBuffer:
        key = (index, buffer.shape, buffer.dtype)
        if key not in self._spares:
            self._spares[key] = self._spare(buffer.shape, buffer.dtype)
        return self._spares[key]


@cache
def _graph(kind: _Kind) -> bytes:
    """The model of one sort of copy; each tensor of `source` and `part` becomes one of `target`."""
    nodes: list[Node] = []
    values: list[Value] = []
    outputs: list[Value] = []
    for i, (dtype, rank) in enumerate(kind.tensors):
        values.append(Value(f"source{i}", dtype, rank))
        if not kind.name.startswith("pick"):
            values.append(Value(f"part{i}", dtype, rank))
        nodes += _nodes(kind, i, rank)
        outputs.append(Value(f"target{i}", dtype, rank))
    numbers = {
        "append": [Value("places", "int64", 2), Value("count", "int64", 1)],
        "put": [Value("places", "int64", 2)],
        "seat": [Value("places", "int64", 2)],
        "place": [Value("places", "int64", 2)],
        "keep": [Value("places", "int64", 2), Value("lanes", "int64", 1)],
    }.get(kind.name, [Value("places", "int64", 1)])
    constants = {"first": [0], "second": [1]}
    if kind.spread:  # the axes that tensors of a rank have more than `places`
        constants |= {f"inner{rank}": list(range(2, rank)) for _, rank in kind.tensors}
    return model([*values, *numbers], outputs, nodes, constants)


@cache
def _sums(kind: _Kind) -> bytes:
    """The model that adds each tensor up."""
    nodes: list[Node] = []
    count = len(kind.tensors)
    for i in range(count):
        nodes.append(Node("Cast", [f"source{i}"], f"float{i}", {"to": BY_NAME["float32"].onnx}))
        nodes.append(Node("ReduceSum", [f"float{i}"], f"sum{i}", {"keepdims": 0}))
        nodes.append(Node("Unsqueeze", [f"sum{i}", "first"], f"one{i}"))
    joined = []
    for i in range(0, count, _JOINED):
        joined.append(f"joined{i}")
        nodes.append(Node("Concat", [f"one{j}" for j in range(i, min(i + _JOINED, count))], joined[-1], {"axis": 0}))
    nodes.append(Node("Concat", joined, "sums", {"axis": 0}))
    values = [Value(f"source{i}", dtype, rank) for i, (dtype, rank) in enumerate(kind.tensors)]
    return model(values, [Value("sums", "float32", 1)], nodes, {"first": [0]})


_CUT = Node("Slice", ["source0", "begin", "end", "second"], "rows")  # tokens are the second axis of outputs
_BOUNDS = [Value("source0", "float32", 3), Value("begin", "int64", 1), Value("end", "int64", 1)]


@cache
def _rows() -> bytes:
    """The model that cuts some tokens' outputs out of `[B, T, O]`."""
    return model(_BOUNDS, [Value("rows", "float32", 3)], [_CUT], {"second": [1]})


@cache
def _top_k() -> bytes:
    """The model that finds the largest outputs of one token, and adds all of them up."""
    outputs = [Value("places", "int64", 3), Value("largest", "float32", 3), Value("sum", "float32", 2)]
    nodes = [
        _CUT,
        Node("TopK", ["rows", "k"], ("largest", "places"), {"axis": 2}),
        Node("ReduceSum", ["rows", "last"], "sum", {"keepdims": 0}),
    ]
    return model([*_BOUNDS, Value("k", "int64", 1)], outputs, nodes, {"second": [1], "last": [2]})


def _nodes(kind: _Kind, i: int, rank: int) -> list[Node]:
    """The copy of one tensor: what is moved is cut out of `part`, and `places` says where to."""
    source, part, cut, target = f"source{i}", f"part{i}", f"cut{i}", f"target{i}"
    if kind.name.startswith("pick"):
        return [Node("Gather", [source, "places"], target, {"axis": int(kind.name[-1])})]
    before = {
        "append": [Node("Slice", [part, "first", "count", "first"], cut)],
        "keep": [Node("Gather", [part, "lanes"], cut, {"axis": 0})],
        "seat": [] if kind.spread else [Node("Squeeze", [part, "second"], cut)],
        "place": [] if kind.spread else [Node("Squeeze", [part, "first"], cut)],
        "put": [],
    }[kind.name]
    moved = cut if before else part
    if not kind.spread:
        return [*before, Node("ScatterND", [source, "places", moved], target)]
    return [  # `places` is stretched over every number that is moved
        *before,
        Node("Shape", [moved], f"size{i}"),
        Node("Unsqueeze", ["places", f"inner{rank}"], f"column{i}"),
        Node("Expand", [f"column{i}", f"size{i}"], f"where{i}"),
        Node("ScatterElements", [source, f"where{i}", moved], target, {"axis": int(kind.name == "seat")}),
    ]
