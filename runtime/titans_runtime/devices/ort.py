"""A device that ONNX Runtime drives: state in its memory, graphs run over I/O bindings.

Knows bindings, transfers and sessions' life. Which provider it is, with which options, is said by an `OrtTarget`
(`ort_providers`). Tested with the CPU provider as the device too, where the same code runs without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np

from titans_format.specs import GraphSpec
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.bundle import Bundle
from titans_runtime.devices.onnx_writer import Node, Value, model
from titans_runtime.devices.ort_copies import Copies, OrtBuffer
from titans_runtime.devices.ort_cuda_graphs import Replay, Replays, Staged, with_replays
from titans_runtime.devices.ort_sessions import QUIET, create_session, first_line, wrap_weights
from titans_runtime.errors import ExecutionError, ProviderError
from titans_runtime.state.blocks import Block, Buffer, Shapes
from titans_runtime.state.device import Traffic

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True, kw_only=True)
class OrtTarget:
    """One execution provider, and how it is used.

    name: what users call it.
    execution_provider: ONNX Runtime's name; the first that a session must end up with.
    memory: device type, id and vendor of its tensors, as `OrtValue` takes them.
    configure: puts the provider into the options of a session, for a graph and a number of streams, or for a copy.
    sizes: how many streams a session made for this many can take; sessions are shared up to there.
    in_place: whether its scatter kernels may write into their own input.
    spread: what their indices are; see `ort_copies.Copies`.
    remedy: what to do where it does not start.
    copies_on: the provider that makes the copies, if it is another one.
    itself: puts the provider into the options of a session that is none of a bundle's, where `copies_on` is another.
    replays: puts the provider into the options of a session whose runs may be captured and launched as one; None where
        that cannot be. See `ort_cuda_graphs`.
    broken_fusions: by the dtype of a bundle, ONNX Runtime's fusions that make operators the provider lacks.
    software: whether the device is the processor in disguise.
    """

    name: str
    execution_provider: str
    memory: tuple[str, int, int]
    configure: Callable[[ort.SessionOptions, GraphSpec | None, int], None]
    sizes: Callable[[int], int]
    in_place: bool
    remedy: str
    spread: bool = False
    copies_on: str | None = None
    itself: Callable[[ort.SessionOptions], None] | None = None
    replays: Callable[[ort.SessionOptions], None] | None = None
    broken_fusions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    software: bool = False


class OrtMemory:
    """A device's memory, and copies in it; what `state.device.Device` asks for but programs.

    Raises:
        ProviderError: the provider cannot run anything here.
    """

    scans_steps = False  # a scan is a run of its own

    def __init__(self, module: ModuleType, target: OrtTarget) -> None:
        module.set_default_logger_severity(QUIET)  # CUDA's provider warns about every table that it writes
        self.lock = threading.RLock()
        self.traffic = Traffic()
        self._ort = module
        self._target = target
        self._copies = Copies(self._copy_session, self._empty, self._copy, target.in_place, target.spread)
        self._prove()

    def block(self, shapes: Shapes) -> Block:
        """Tensors of zeros."""
        return Block({name: self.allocate(shape, dtype) for name, shape, dtype in shapes})

    def allocate(self, shape: tuple[int, ...], dtype: str) -> OrtBuffer:
        """A tensor of zeros."""
        buffer = self._empty(shape, dtype)
        self._copy_in(np.zeros(shape, dtype), buffer)  # fresh memory may hold anything, and 0 times NaN is NaN
        self.traffic.cleared += 1
        return buffer

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Set a tensor from host memory."""
        self._copy_in(np.ascontiguousarray(array), cast(OrtBuffer, buffer))
        self.traffic.uploads += 1

    def download(self, buffer: Buffer) -> Array:
        """A copy in host memory."""
        array: Array = np.array(cast(OrtBuffer, buffer).value.numpy())
        self.traffic.downloads += 1
        return array

    def finite(self, blocks: Sequence[Block]) -> bool:
        """Whether what the blocks hold adds up to finite numbers."""
        buffers = [cast(OrtBuffer, buffer) for block in blocks for buffer in block.buffers]
        floats = [buffer for buffer in buffers if buffer.dtype.startswith("float")]
        return not floats or bool(np.isfinite(self.sums(floats)).all())

    def sums(self, buffers: Sequence[Buffer]) -> Array:
        """The sum of each tensor, float32 `[n]`, added up on the device."""
        return self._copies.sums(_ort(buffers))

    def rows(self, head: Buffer, first: int, count: int) -> FloatArray:
        """Some tokens' outputs, cut out on the device."""
        source = cast(OrtBuffer, head)
        everything = count == source.shape[1]  # as after a step
        rows: FloatArray = np.array(source.value.numpy()) if everything else self._copies.rows(source, first, count)
        self.traffic.outputs += rows.size
        return rows

    def top_k(self, head: Buffer, row: int, count: int) -> tuple[IdArray, FloatArray, FloatArray] | None:
        """The largest outputs of one token, chosen on the device."""
        ids, scores, total = self._copies.top_k(cast(OrtBuffer, head), row, count)
        self.traffic.outputs += ids.size + scores.size + total.size
        return ids, scores, total

    def append(
        self, source: Sequence[Buffer], target: Sequence[Buffer], rows: Sequence[Buffer], start: int, count: int
    ) -> None:
        """Put rows into their tables."""
        self._copies.append(_ort(source), _ort(target), _ort(rows), start, count)

    def seat(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy one stream's tensors into a lane."""
        self._copies.seat(_ort(wide), _ort(solo), lane, 0 if rows is None else 1)

    def pick(self, wide: Sequence[Buffer], solo: Sequence[Buffer], lane: int, rows: int | None = None) -> None:
        """Copy a lane's tensors out."""
        self._copies.pick(_ort(wide), _ort(solo), lane, 0 if rows is None else 1)

    def place(
        self, tables: Sequence[Buffer], rows: Sequence[Buffer], places: Sequence[int], lanes: Sequence[int]
    ) -> None:
        """Put a row of every lane into the tables."""
        self._copies.place(_ort(tables), _ort(rows), places)

    def keep(self, new: Sequence[Buffer], old: Sequence[Buffer], lanes: Sequence[int]) -> None:
        """Copy lanes from one set of tensors to another."""
        self._copies.keep(_ort(new), _ort(old), lanes)

    def _prove(self) -> None:
        """Append a row to a table and read it back: what does not work says so before a stream depends on it."""
        try:
            table, rows = self.allocate((3, 1, 2), "float32"), self.allocate((1, 1, 2), "float32")
            self.upload(rows, np.ones((1, 1, 2), np.float32))
            self.append([table], [table], [rows], 1, 1)
            works = self.download(table)[:, 0, 0].tolist() == [0, 1, 0]
            self._prove_itself()
        except ProviderError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ProviderError(
                f"{self._target.execution_provider} fails here ({first_line(error)})", "use provider='cpu'"
            ) from error
        if not works:
            raise ProviderError(
                f"{self._target.execution_provider} writes wrong numbers here", "use provider='cpu' and report it"
            )
        self.traffic = Traffic()

    def _prove_itself(self) -> None:
        """Start a session on the provider, where the copies run on another: ONNX Runtime would go on with that one."""
        if self._target.itself is None:
            return
        options = self._ort.SessionOptions()
        options.log_severity_level = QUIET
        x, y = Value("x", "float32", 1), Value("y", "float32", 1)
        try:
            self._target.itself(options)
            session = self._ort.InferenceSession(model([x], [y], [Node("Neg", ["x"], "y")]), options)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ProviderError(
                f"{self._target.execution_provider} does not start here ({first_line(error)})", self._target.remedy
            ) from error
        self._check(session, self._target.execution_provider)

    def _copy_session(self, graph: bytes, replayed: bool) -> tuple[ort.InferenceSession, Replays | None]:
        def create(replayed: bool) -> ort.InferenceSession:
            session = self._ort.InferenceSession(graph, self._options(None, 1, replayed))
            self._check(session, self._target.copies_on or self._target.execution_provider)
            return session

        return with_replays(self._ort, create, self._value if replayed and self._target.replays else None)

    def _options(self, graph: GraphSpec | None, size: int, replayed: bool) -> ort.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = QUIET
        if replayed and self._target.replays is not None:
            self._target.replays(options)
        else:
            self._target.configure(options, graph, size)
        return options

    def _check(self, session: ort.InferenceSession, wanted: str) -> None:
        """ONNX Runtime goes on with the CPU where a provider cannot start; then this is not what was asked for."""
        found = session.get_providers()[0]
        if found != wanted:
            raise ProviderError(
                f"{wanted} does not start here, onnxruntime fell back to {found}",
                self._target.remedy,
            )

    def _empty(self, shape: tuple[int, ...], dtype: str) -> OrtBuffer:
        return OrtBuffer(self._value(shape, dtype), shape, dtype)

    def _value(self, shape: tuple[int, ...], dtype: str) -> ort.OrtValue:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, *self._target.memory)

    def _copy_in(self, array: Array, buffer: OrtBuffer) -> None:
        buffer.value.update_inplace(array)

    def _copy(self, source: Sequence[OrtBuffer], target: Sequence[OrtBuffer]) -> None:
        for one, other in zip(source, target, strict=True):
            other.value.update_inplace(one.value)


class OrtDevice(OrtMemory):
    """A device that has one bundle loaded. See `state.device.Device` for the contract."""

    def __init__(self, module: ModuleType, target: OrtTarget, bundle: Bundle) -> None:
        super().__init__(module, target)
        self._bundle = bundle
        self._sessions: dict[tuple[str, int], tuple[ort.InferenceSession, Replays | None]] = {}
        for graph in bundle.manifest.graphs:  # all of them now: a stream must not meet a refusal half way
            bundle.graph(graph)
        self._weights = wrap_weights(module, bundle)  # must outlive the sessions, which may use the memory in place

    def program(self, graph: GraphSpec, batch: int) -> OrtProgram:
        """A graph, its session created when it is first needed."""
        size = self._target.sizes(batch)
        if (graph.name, size) not in self._sessions:
            self._sessions[graph.name, size] = self._load(graph, size)
        session, replays = self._sessions[graph.name, size]
        return OrtProgram(graph.name, self._target.name, session, replays, self._ort, self._empty, self.traffic)

    def _load(self, graph: GraphSpec, size: int) -> tuple[ort.InferenceSession, Replays | None]:
        fusions = self._target.broken_fusions.get(self._bundle.manifest.dtype, frozenset())

        def create(replayed: bool) -> ort.InferenceSession:
            options = self._options(graph, size, replayed)
            return create_session(
                self._ort, self._bundle, graph, "file", self._weights, options, disabled_optimizers=fusions
            )

        session, replays = with_replays(self._ort, create, self._value if self._target.replays else None)
        self._check(session, self._target.execution_provider)
        return session, replays


class OrtProgram:
    """A session, and its captures if it has any."""

    def __init__(
        self,
        graph: str,
        provider: str,
        session: ort.InferenceSession,
        replays: Replays | None,
        module: ModuleType,
        allocate: Callable[[tuple[int, ...], str], OrtBuffer],
        traffic: Traffic,
    ) -> None:
        self._traffic = traffic
        self._graph, self._provider = graph, provider
        self._session = session
        self._replays = replays
        self._ort = module
        self._allocate = allocate
        self._staged: dict[str, Staged] = {}

    def bind(
        self,
        data: Mapping[str, Array],
        results: Mapping[str, Array],
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> Callable[[], None]:
        """Give every input and output its place."""
        binding = self._session.io_binding()
        wrap = self._ort.OrtValue.ortvalue_from_numpy
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, cast(OrtBuffer, buffer).value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, cast(OrtBuffer, buffer).value)
        if self._replays is None:
            for name, array in results.items():
                binding.bind_ortvalue_output(name, wrap(array))
            values = [(name, wrap(array)) for name, array in data.items()]
            return partial(self._run, partial(_rebound, self._session, binding, values))
        uploads = [self._stage(name, array) for name, array in data.items()]
        downloads = [self._stage(name, array) for name, array in results.items()]
        for name, staged in zip(data, uploads, strict=True):
            binding.bind_ortvalue_input(name, staged.device)
        for name, staged in zip(results, downloads, strict=True):
            binding.bind_ortvalue_output(name, staged.device)
        return partial(self._run, partial(_replayed, Replay(self._replays, binding), uploads, downloads))

    def _run(self, once: Callable[[], None]) -> None:
        self._traffic.calls += 1
        try:
            once()
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ExecutionError(
                f"graph {self._graph!r} failed on {self._provider} ({first_line(error)})",
                "nothing has changed: try again, and if it fails again use provider='cpu'",
            ) from error

    def _stage(self, name: str, array: Array) -> Staged:
        if name not in self._staged:
            self._staged[name] = Staged(array, self._allocate(array.shape, str(array.dtype)).value)
        return self._staged[name]


def _rebound(session: ort.InferenceSession, binding: ort.IOBinding, data: Sequence[tuple[str, ort.OrtValue]]) -> None:
    """Run with data inputs bound anew: ONNX Runtime copies them to the device as it binds."""
    for name, value in data:
        binding.bind_ortvalue_input(name, value)
    session.run_with_iobinding(binding)


def _replayed(replay: Replay, uploads: Sequence[Staged], downloads: Sequence[Staged]) -> None:
    """Run with data and results in places on the device, which a captured run knows."""
    for staged in uploads:
        staged.send()
    replay.run()
    for staged in downloads:
        staged.bring()


def _ort(buffers: Sequence[Buffer]) -> list[OrtBuffer]:
    return cast(list[OrtBuffer], list(buffers))
