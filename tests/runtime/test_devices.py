"""State on a device: the same streams as on the CPU, the same rules for forks and failures, nothing over the bus.

The device here is ONNX Runtime's CPU provider behind the device machinery; `tests/export/test_webgpu.py` runs it on
WebGPU, and `-m gpu` on NVIDIA hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.runtime.devices import host_target, on_device, skip_without, traffic, uncaptured
from tests.runtime.toy import FEATURES, C, Toy, write_toy
from titans_runtime import (
    ExecutionError,
    InputError,
    Model,
    NonFiniteError,
    ProviderError,
    SamplingOptions,
    Session,
    SessionPoisonedError,
    load,
)
from titans_runtime.devices import ort_copies, ort_cuda_graphs, select
from titans_runtime.devices.host import HostMemory
from titans_runtime.devices.onnx_writer import Node, Value, model
from titans_runtime.devices.ort import OrtMemory, OrtProgram, OrtTarget
from titans_runtime.devices.ort_copies import Copies, OrtBuffer
from titans_runtime.devices.ort_cuda_graphs import Replay, Replays
from titans_runtime.errors import ProviderStatus
from titans_runtime.state.blocks import Buffer, Lease
from titans_runtime.state.executor import BoundGraph

CLOSE = 1e-5
TEXT = list(b"a text that is longer than three chunks of eight")


TARGETS = {
    "in place": host_target(),
    "not in place": host_target(in_place=False),
    "replayed": host_target(replayed=True),
}


@pytest.fixture(scope="module", params=TARGETS)
def device_model(request: pytest.FixtureRequest, toy_bundle: Path) -> Model:
    """The toy on a device, whose tables can or cannot be written in place, or whose runs are captured."""
    return on_device(toy_bundle, TARGETS[request.param])


def pieces(seed: int, total: int) -> list[int]:
    """Lengths that meet every graph and both sides of a chunk's end."""
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        length = int(random.choice([1, 1, 1, 2, C - 1, C, 3 * C + 2]))
        lengths.append(min(length, total - sum(lengths)))
    return lengths


def state(session: Session) -> dict[str, np.ndarray]:
    return session._shared.feeder.backend.read(session._stream.now.state)


def assert_close(session: Session, other: Session) -> None:
    ours, theirs = state(session), state(other)
    assert list(ours) == list(theirs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("target", ["in place", "replayed"])
@pytest.mark.parametrize("tokens", [True, False])
def test_streams_equal_the_cpus_and_no_state_crosses_the_bus(tmp_path: Path, tokens: bool, target: str) -> None:
    path = write_toy(tmp_path / "toy.titans", Toy() if tokens else Toy(vocab_size=None))
    there, here = on_device(path, TARGETS[target]), load(path, provider="cpu", threads=1)
    random = np.random.default_rng(0)
    stream = random.integers(0, 256, 300) if tokens else random.standard_normal((300, FEATURES), dtype=np.float32)
    ours, theirs = there.session(), here.session()
    begun = traffic(there)
    moved = begun.uploads, begun.downloads
    settled = 0
    for i, piece in enumerate(np.split(stream, np.cumsum(pieces(1, 300))[:-1])):
        np.testing.assert_allclose(
            ours.feed(piece, all_logits=True), theirs.feed(piece, all_logits=True), rtol=CLOSE, atol=CLOSE
        )
        if i == 20:  # by then every graph has run and the stream has the blocks that it alternates between
            settled = traffic(there).state_copies
    assert (traffic(there).uploads, traffic(there).downloads) == moved
    assert traffic(there).state_copies == settled
    assert traffic(there).calls > 40
    assert_close(ours, theirs)


def test_forks_marks_and_saved_sessions_go_their_own_ways(device_model: Model) -> None:
    def twin(*parts: list[int]) -> Session:
        session = device_model.session()
        for part in parts:
            session.feed(part)
        return session

    session = twin(TEXT[:3])
    fork = session.fork()
    mark = session.mark()
    session.feed(TEXT[3:5])  # these append to the rows that all three count ...
    fork.feed(TEXT[20:24])
    rewound = session.fork()
    rewound.rewind(mark)
    rewound.feed(TEXT[30:33])
    restored = device_model.restore_bytes(fork.to_bytes())
    for stream, parts in (
        (session, [TEXT[:3], TEXT[3:5]]),
        (fork, [TEXT[:3], TEXT[20:24]]),
        (rewound, [TEXT[:3], TEXT[30:33]]),
        (restored, [TEXT[:3], TEXT[20:24]]),
    ):
        alone = twin(*parts)
        assert stream.to_bytes() == alone.to_bytes()
        np.testing.assert_array_equal(stream.feed(TEXT, all_logits=True), alone.feed(TEXT, all_logits=True))


def test_a_session_moves_between_the_cpu_and_a_device(device_model: Model, toy_model: Model) -> None:
    session = toy_model.session()
    session.feed(TEXT[: C + 3])
    moved = device_model.restore_bytes(session.to_bytes())
    assert moved.to_bytes() == session.to_bytes()
    np.testing.assert_allclose(moved.feed(TEXT), session.feed(TEXT), rtol=CLOSE, atol=CLOSE)


def test_tensors_that_do_not_fit_the_table_are_refused(device_model: Model) -> None:
    driver = device_model.driver()
    with pytest.raises(InputError, match="no state tensor 'x'"):
        driver.load({"x": np.zeros(1, np.float32)})


def test_sessions_of_a_batch_equal_their_solo_runs(device_model: Model) -> None:
    def drive(session: Session, seed: int) -> list[np.ndarray]:
        stream = np.random.default_rng(seed).integers(0, 256, 60)
        return [session.feed(piece, all_logits=True) for piece in np.split(stream, np.cumsum(pieces(seed, 60))[:-1])]

    with device_model.batch(lanes=4) as batch:
        sessions = [batch.session() for _ in range(9)]
        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(drive, sessions, range(9)))
        for seed, session in enumerate(sessions):
            alone = device_model.session()
            for ours, theirs in zip(told[seed], drive(alone, seed), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)
            np.testing.assert_allclose(session.feed([1, 2]), alone.feed([1, 2]), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_call_that_fails_leaves_the_session_where_it_was(
    device_model: Model, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    session, twin = device_model.session(), device_model.session()
    for stream in (session, twin):
        stream.feed(TEXT[:3])
    left = [fail_at]
    run = OrtProgram._run

    def failing(program: OrtProgram, once: Callable[[], None]) -> None:
        run(program, once)
        left[0] -= 1
        if left[0] == 0:
            raise ExecutionError("the device was unplugged", "plug it in")

    with monkeypatch.context() as patched:
        patched.setattr(OrtProgram, "_run", failing)
        with pytest.raises(ExecutionError, match="unplugged"):
            session.feed(TEXT)
    assert session.to_bytes() == twin.to_bytes()
    np.testing.assert_array_equal(session.feed(TEXT, all_logits=True), twin.feed(TEXT, all_logits=True))


def test_outputs_that_are_not_finite_poison_the_session(device_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session, twin = device_model.session(), device_model.session()
    for stream in (session, twin):
        stream.feed(TEXT[:C])
    run = BoundGraph.run

    def spoiled(graph: BoundGraph, *arguments: object) -> None:
        run(graph, *arguments)  # type: ignore[arg-type]
        for array in graph._results.arrays.values():
            array.reshape(-1)[0] = np.nan

    with monkeypatch.context() as patched:
        patched.setattr(BoundGraph, "run", spoiled)
        with pytest.raises(NonFiniteError, match="token 8, in the outputs only"):
            session.feed(TEXT[:4])
    with pytest.raises(SessionPoisonedError):
        session.feed([1])
    assert session.to_bytes() == twin.to_bytes()


@pytest.mark.parametrize(("pieces_of", "graph"), [(1, "commit"), (C, "prefill")])
def test_a_memory_that_a_commit_spoils_is_found_before_it_counts(
    device_model: Model, monkeypatch: pytest.MonkeyPatch, pieces_of: int, graph: str
) -> None:
    session = device_model.session()
    run = BoundGraph.run

    def spoiled(bound: BoundGraph, leases: object, written: dict[int, Lease]) -> None:
        run(bound, leases, written)  # type: ignore[arg-type]
        for lease in written.values():
            memory = lease.block.tensors.get("0.memory_0")
            if bound.name == graph and memory is not None:
                bound._layout.device.upload(memory, np.full((1, 6, 6), np.inf, np.float32))

    monkeypatch.setattr(BoundGraph, "run", spoiled)
    for token in TEXT[: C - 1] if pieces_of == 1 else ():
        session.feed([token])
    before = session.position
    with pytest.raises(NonFiniteError, match=rf"graph '{graph}' .* token 7, first in state '0\.memory_0'"):
        session.feed(TEXT[C - 1 : C] if pieces_of == 1 else TEXT[:C])
    assert session.position == before


def test_large_numbers_whose_sum_overflows_are_not_taken_for_bad_ones(
    device_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum only says that it is worth looking; what is looked at then is every number."""
    session = device_model.session()
    asked = []

    def overflowed(memory: OrtMemory, buffers: list[OrtBuffer]) -> np.ndarray:
        asked.append(len(buffers))
        return np.array([np.inf], np.float32)

    monkeypatch.setattr(OrtMemory, "sums", overflowed)
    session.feed(TEXT[:C])
    assert asked
    assert session.position == C


def test_sums_are_made_on_the_device() -> None:
    memory = OrtMemory(onnxruntime, host_target())
    made, arrays = buffers(memory, [(3, 4), (2,)], "float16")
    np.testing.assert_allclose(memory.sums(made), [array.astype(np.float32).sum() for array in arrays], rtol=1e-5)
    memory.upload(made[1], np.array([np.nan, 1], np.float16))
    assert np.isfinite(memory.sums(made)).tolist() == [True, False]


def test_the_state_tensor_that_went_bad_is_named(toy_bundle: Path) -> None:
    there = on_device(toy_bundle)
    driver = there.driver()
    driver.load({"0.trace": np.full((1, 6), np.nan, np.float32)})
    with pytest.raises(NonFiniteError, match=r"token 0, first in state '0\.trace'"):
        driver.feed(np.zeros((1, 3), np.int64))


@pytest.mark.parametrize("place", ["the host", "a device"])
def test_a_lane_that_goes_bad_is_named_and_leaves_its_neighbours_alone(toy_bundle: Path, place: str) -> None:
    model = load(toy_bundle, provider="cpu", threads=1) if place == "the host" else on_device(toy_bundle)
    bad, good = model.driver(), model.session()
    bad.load({"0.trace": np.full((1, 6), np.nan, np.float32)})
    good.feed(TEXT[:3])
    lanes = model._backend.lanes(3)
    lanes.seat(0, bad._now)
    lanes.seat(2, good._stream.now.state)
    stepped = lanes.step([0, 2], np.array([7, 7]))
    assert {lane: error.state for lane, error in stepped.failed.items()} == {0: "0.trace"}
    np.testing.assert_allclose(stepped.outputs[2], good.feed([7]), rtol=CLOSE, atol=CLOSE)
    after = model._backend.read(lanes.copy(2))
    for name, value in state(good).items():
        np.testing.assert_allclose(after[name], value, rtol=CLOSE, atol=CLOSE)
    lanes.undo(2)
    assert lanes.copy(2).position == 3
    lanes.close()


def test_a_provider_that_fell_back_to_the_cpu_is_not_taken_for_itself(toy_bundle: Path) -> None:
    plain = host_target()
    gone = OrtTarget(**{**vars(plain), "execution_provider": "GoneExecutionProvider", "remedy": "look for it"})
    with pytest.raises(ProviderError, match=r"GoneExecutionProvider .* fell back to CPUExecutionProvider; look for it"):
        on_device(toy_bundle, gone)


def test_a_provider_that_computes_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Copies, "append", lambda *arguments: None)
    with pytest.raises(ProviderError, match="writes wrong numbers here; use provider='cpu'"):
        OrtMemory(onnxruntime, host_target())


def test_a_graph_that_fails_on_the_device_says_what_to_do(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = on_device(toy_bundle).session()

    def refuse(*arguments: object) -> None:
        raise RuntimeError("out of memory\nwith details")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", refuse)
    with pytest.raises(ExecutionError, match=r"graph 'step' failed on host \(out of memory\); .* provider='cpu'"):
        session.feed([1])


def test_blocks_that_are_gone_give_their_memory_back(toy_bundle: Path) -> None:
    there = on_device(toy_bundle)
    session = there.session()
    marks = []
    for _ in range(12):  # every mark keeps blocks of its own
        session.feed(TEXT[: C + 1])
        marks.append(session.mark())
    executor = there._backend._idle[1][0]
    bound = sum(len(graph._bindings) for graph in executor._graphs.values())
    marks.clear()
    session.reset()
    assert sum(len(graph._bindings) for graph in executor._graphs.values()) < bound


# The moves themselves, against NumPy.

Memory: TypeAlias = HostMemory | OrtMemory
RANDOM = np.random.default_rng(5)


def buffers(memory: Memory, shapes: list[tuple[int, ...]], dtype: str) -> tuple[list[Buffer], list[np.ndarray]]:
    arrays = [(RANDOM.standard_normal(shape) * 9).astype(dtype) for shape in shapes]
    made = memory.block([(str(i), shape, dtype) for i, shape in enumerate(shapes)]).buffers
    for buffer, array in zip(made, arrays, strict=True):
        memory.upload(buffer, array)
    return made, arrays


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int64"])
@pytest.mark.parametrize("place", ["the host", "a device", "a device that writes nothing in place"])
def test_moves_do_what_they_say(place: str, dtype: str) -> None:
    memory = HostMemory() if place == "the host" else OrtMemory(onnxruntime, host_target(place == "a device"))

    def look(made: list[Buffer], expected: list[np.ndarray], rows: int | None = None) -> None:
        for buffer, array in zip(made, expected, strict=True):
            np.testing.assert_array_equal(memory.download(buffer)[:rows], array[:rows])

    tables, were = buffers(memory, [(6, 3, 2), (6, 3, 2, 2)], dtype)
    others, _ = buffers(memory, [(6, 3, 2), (6, 3, 2, 2)], dtype)
    rows, news = buffers(memory, [(4, 3, 2), (4, 3, 2, 2)], dtype)
    memory.append(tables, others, rows, 2, 3)
    look(tables, were)
    for table, row in zip(were, news, strict=True):
        table[2:5] = row[:3]
    look(others, were, 5)  # rows beyond are not written yet
    memory.append(others, others, rows, 5, 1)
    for table, row in zip(were, news, strict=True):
        table[5:6] = row[:1]
    look(others, were)
    zeros = memory.block([("a", (1, 3, 2), dtype), ("b", (1, 3, 2, 2), dtype)]).buffers
    memory.place(others, zeros, [0, 5, 2], [0, 1, 2])
    for table in were:
        table[[0, 5, 2], [0, 1, 2]] = 0
    look(others, were)
    solo, one = buffers(memory, [(6, 1, 2), (6, 1, 2, 2)], dtype)
    memory.seat(others, solo, 1, rows=6)
    for table, part in zip(were, one, strict=True):
        table[:, 1] = part[:, 0]
    look(others, were)
    memory.pick(others, solo, 2, rows=6)
    look(solo, [table[:, 2:3] for table in were])

    wide, values = buffers(memory, [(3, 4), (3, 2, 2)], dtype)
    single, ones = buffers(memory, [(1, 4), (1, 2, 2)], dtype)
    before, olds = buffers(memory, [(3, 4), (3, 2, 2)], dtype)
    memory.seat(wide, single, 2)
    for value, part in zip(values, ones, strict=True):
        value[2] = part[0]
    look(wide, values)
    memory.keep(wide, before, [0, 2])
    for value, old in zip(values, olds, strict=True):
        value[[0, 2]] = old[[0, 2]]
    look(wide, values)
    memory.pick(wide, single, 1)
    look(single, [value[1:2] for value in values])


def test_written_graphs_pass_onnxs_own_checker() -> None:
    for name in ("append", "seat", "pick0", "pick1", "place", "keep"):
        kind = ort_copies._Kind(name, (("float32", 3), ("float16", 2), ("int64", 4)))
        graph = onnx.load_model_from_string(ort_copies._graph(kind))
        onnx.checker.check_model(graph, full_check=True)
    numbers = model([Value("x", "int64", 1)], [Value("y", "int64", 1)], [Node("Add", ["x", "k"], "y")], {"k": [-1]})
    session = onnxruntime.InferenceSession(numbers, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([300])})[0].tolist() == [299]


def test_greedy_generation_is_the_cpus(device_model: Model, toy_model: Model) -> None:
    greedy = SamplingOptions(temperature=0)
    ours = list(device_model.session().generate_tokens([1, 2, 3], 40, greedy))
    assert ours == list(toy_model.session().generate_tokens([1, 2, 3], 40, greedy))


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("not installed", pytest.skip.Exception), ("no device", pytest.skip.Exception), ("not working", ProviderError)],
)
def test_a_device_that_is_there_and_fails_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch, status: ProviderStatus, outcome: type[BaseException]
) -> None:
    def prove(name: str) -> str:
        raise ProviderError(f"{name} has a problem", "do something about it", status)

    monkeypatch.setattr(select, "prove", prove)
    with pytest.raises(outcome, match="webgpu has a problem; do something about it"):
        skip_without("webgpu")


class Numbered:
    """A session that notes under which capture each run was to be."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def run_with_iobinding(self, binding: object, options: onnxruntime.RunOptions) -> None:
        self.runs.append(options.get_run_config_entry("gpu_graph_id"))


def test_each_binding_is_captured_once_it_was_met_twice_and_by_each_thread_for_itself() -> None:
    session = Numbered()
    replays = Replays(onnxruntime, session)  # type: ignore[arg-type]
    first, second = Replay(replays, None), Replay(replays, None)  # type: ignore[arg-type]
    for replay in (first, second, first, second, first, second, first):
        replay.run()
    assert session.runs == ["-1", "-1", "-1", "-1", "1", "2", "1"]
    session.runs.clear()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            pool.submit(first.run).result()
    first.run()
    assert session.runs == ["-1", "-1", "3", "3", "1"]


def test_streams_that_find_no_capture_left_go_on_without(
    toy_bundle: Path, toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cuda_graphs, "_MOST", 1)
    model = on_device(toy_bundle, host_target(replayed=True))
    session, other = model.session(), toy_model.session()
    for token in TEXT:
        np.testing.assert_allclose(session.feed([token]), other.feed([token]), rtol=CLOSE, atol=CLOSE)
    assert_close(session, other)


def test_a_graph_that_cannot_be_captured_runs_as_it_is(toy_bundle: Path, toy_model: Model) -> None:
    def refuses(options: onnxruntime.SessionOptions) -> None:
        raise RuntimeError("not all operators are on the device")

    model = on_device(toy_bundle, OrtTarget(**{**vars(host_target()), "replays": refuses}))
    np.testing.assert_allclose(model.session().feed(TEXT), toy_model.session().feed(TEXT), rtol=CLOSE, atol=CLOSE)


def test_a_provider_whose_moves_run_on_another_must_start_itself() -> None:
    def elsewhere(options: onnxruntime.SessionOptions) -> None: ...

    plain = vars(host_target())
    OrtMemory(onnxruntime, OrtTarget(**plain | {"copies_on": "CPUExecutionProvider", "itself": elsewhere}))
    gone = plain | {"execution_provider": "GoneExecutionProvider", "copies_on": "CPUExecutionProvider"}
    OrtMemory(onnxruntime, OrtTarget(**gone))
    with pytest.raises(ProviderError, match=r"GoneExecutionProvider does not start here, .* fell back to CPU"):
        OrtMemory(onnxruntime, OrtTarget(**gone | {"itself": elsewhere}))

    def missing(options: onnxruntime.SessionOptions) -> None:
        raise RuntimeError("Failed to add provider")

    with pytest.raises(ProviderError, match=r"does not start here \(Failed to add provider\); look for it"):
        OrtMemory(onnxruntime, OrtTarget(**gone | {"itself": missing, "remedy": "look for it"}))


def test_a_graph_that_fails_when_it_is_captured_runs_without(
    toy_bundle: Path, toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(replays: Replays, allocate: object) -> None:
        raise RuntimeError("CUDA Concat supports at most 32 inputs during CUDA Graph capture")

    monkeypatch.setattr(ort_cuda_graphs, "_try", fails)
    model = on_device(toy_bundle, host_target(replayed=True))
    np.testing.assert_allclose(model.session().feed(TEXT), toy_model.session().feed(TEXT), rtol=CLOSE, atol=CLOSE)


def test_many_tensors_are_added_up_each_for_itself() -> None:
    memory = OrtMemory(onnxruntime, host_target(replayed=True))
    buffers = []
    for i in range(70):
        buffers.append(memory.allocate((2, 3), "float32"))
        memory.upload(buffers[-1], np.full((2, 3), i, np.float32))
    for _ in range(4):
        sums = memory.sums(buffers)
        assert sums is not None
        np.testing.assert_array_equal(sums, 6 * np.arange(70))


def test_every_graph_and_what_every_step_moves_is_captured(toy_bundle: Path) -> None:
    model = on_device(toy_bundle, host_target(replayed=True))
    session = model.session()
    session.feed(TEXT)
    for token in TEXT:
        session.feed([token])
    assert uncaptured(model) == set()


def test_tensors_of_every_rank_move() -> None:
    """Lanes side by side along the first axis, one number each and more."""
    for target in TARGETS.values():
        memory = OrtMemory(onnxruntime, target)
        shapes: list[tuple[int, ...]] = [(4,), (4, 3), (4, 2, 3)]
        wide = [memory.allocate(shape, "float32") for shape in shapes]
        solo = [memory.allocate((1, *shape[1:]), "float32") for shape in shapes]
        for i, (buffer, shape) in enumerate(zip(solo, shapes, strict=True)):
            memory.upload(buffer, np.full((1, *shape[1:]), i + 1, np.float32))
        memory.seat(wide, solo, 2)
        for i, buffer in enumerate(wide):
            found = memory.download(buffer)
            assert (found[2] == i + 1).all()
            assert not found[[0, 1, 3]].any()
