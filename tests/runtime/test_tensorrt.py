"""Native TensorRT against stand-ins of TensorRT's and CUDA's calls that enforce their contract; see `tests/standin`.

`-m gpu` runs the same streams on real hardware, where there is some.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.devices import told, traffic
from tests.runtime.toy import C, Toy, write_toy
from tests.standin.cuda import FakeCuda, Violation, cudaMemcpyKind
from tests.standin.tensorrt import FakeOnnxParserRefitter, FakeRuntime, FakeTensorRT, write_engines
from titans_runtime import ExecutionError, Model, ProviderError, SamplingOptions, Session, load
from titans_runtime.devices import doctor
from titans_runtime.devices.tensorrt import engine_files, nvidia
from titans_runtime.devices.tensorrt.cuda import Cuda, CudaBuffer
from titans_runtime.devices.tensorrt.device import CudaMemory, EngineBound
from titans_runtime.devices.tensorrt.engine_key import FIELD, signed

TEXT = list(b"a text that is longer than three chunks of eight")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass
class Machine:
    """A machine with a GPU, as far as the runtime can tell."""

    cuda: FakeCuda
    tensorrt: FakeTensorRT


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    cuda = FakeCuda()
    tensorrt = FakeTensorRT(cuda)
    monkeypatch.setattr(nvidia, "has_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, tensorrt)  # type: ignore[arg-type]
    return Machine(cuda, tensorrt)


@pytest.fixture
def bundle(tmp_path: Path, toy_bundle: Path) -> Path:
    """The toy with engines, to be changed."""
    path = Path(shutil.copytree(toy_bundle, tmp_path / "toy.titans"))
    write_engines(path)
    return path


def pieces(seed: int, total: int) -> list[int]:
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        length = int(random.choice([1, 1, 1, 1, 1, 1, 2, C - 1, C, 3 * C + 2]))
        lengths.append(min(length, total - sum(lengths)))
    return lengths


def state(model: Model, session: Session) -> dict[str, np.ndarray]:
    return model._backend.read(session._stream.now.state)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("backend", list(MODULES))
def test_512_mixed_tokens_are_the_cpus_to_the_bit(machine: Machine, tmp_path: Path, backend: str, tokens: bool) -> None:
    path = write_toy(tmp_path / "toy.titans", Toy() if tokens else Toy(vocab_size=None))
    write_engines(path, backend=backend)
    there, here = load(path, provider=backend), load(path, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    random = np.random.default_rng(0)
    stream = random.integers(0, 256, 512) if tokens else random.standard_normal((512, 3), dtype=np.float32)
    moved = traffic(there).state_copies
    # a long run of single tokens first, so that steps are captured and launched over many chunks
    for piece in np.split(stream, np.cumsum([1] * 100 + pieces(3, 412))[:-1]):
        np.testing.assert_array_equal(ours.feed(piece, all_logits=True), theirs.feed(piece, all_logits=True))
    assert traffic(there).state_copies == moved
    assert machine.cuda.captures >= 2
    assert machine.cuda.launches > 60
    after = state(there, ours)
    for name, value in state(here, theirs).items():
        np.testing.assert_array_equal(after[name], value)


def test_forks_marks_and_batches_go_their_own_ways(machine: Machine, bundle: Path) -> None:
    there, here = load(bundle, provider="tensorrt-rtx"), load(bundle, provider="cpu", threads=1)
    told = []
    for model in (there, here):
        session = model.session()
        session.feed(TEXT[:3])
        mark, fork = session.mark(), session.fork()
        session.feed(TEXT[3:6])
        outputs = [fork.feed([9]), session.feed([8])]
        session.rewind(mark)
        outputs += [session.feed([7]), model.restore_bytes(fork.to_bytes()).feed([6])]
        with model.batch(lanes=4) as batch:
            streams = [batch.session() for _ in range(5)]
            for step in range(2 * C + 3):
                outputs += [stream.feed([17 * i + step]) for i, stream in enumerate(streams) if (i + step) % 3]
            outputs += [stream.feed(TEXT) for stream in streams]
        told.append(np.stack(outputs))
    np.testing.assert_allclose(told[0], told[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "numbers"), [({"temperature": 0}, 3), ({"top_k": 9, "seed": 1}, 19)])
def test_tokens_are_chosen_on_the_device(machine: Machine, bundle: Path, options: dict[str, int], numbers: int) -> None:
    there, here = load(bundle, provider="tensorrt-rtx"), load(bundle, provider="cpu", threads=1)
    sampling = SamplingOptions(**options)  # type: ignore[arg-type]
    ours, theirs = there.session(), here.session()
    assert list(ours.generate_tokens(TEXT, 30, sampling)) == list(theirs.generate_tokens(TEXT, 30, sampling))
    assert ours.to_bytes() == theirs.to_bytes()  # with all logits after the last token
    assert told(there, ours, sampling) == numbers


def test_several_streams_are_chosen_for_at_once_and_more_than_the_engine_finds_are_not(
    machine: Machine, bundle: Path
) -> None:
    device = load(bundle, provider="tensorrt-rtx")._backend.device  # type: ignore[attr-defined]
    head = np.random.default_rng(0).standard_normal((3, 4, 256), dtype=np.float32)
    buffer = device.allocate(head.shape, "float32")
    device.upload(buffer, head)
    for count in (1, 64):
        for row in (3, 1, 2, 1):  # the fourth run is a captured one
            ids, scores, total = device.top_k(buffer, row, count)
            order = np.argsort(-head[:, row], axis=1, kind="stable")[:, :count]
            np.testing.assert_array_equal(ids, order)
            np.testing.assert_array_equal(scores, np.take_along_axis(head[:, row], order, axis=1))
            np.testing.assert_allclose(total, head[:, row].sum(axis=1), rtol=1e-5)
    assert device.top_k(buffer, 0, 65) is None
    for first, count in ((0, 4), (1, 2), (3, 1)):
        np.testing.assert_array_equal(device.rows(buffer, first, count), head[:, first : first + count])


def test_engines_that_were_built_without_a_chooser_bring_all_logits(machine: Machine, bundle: Path) -> None:
    for path in (bundle / "engines").glob("*/choose.*"):
        path.unlink()
    there, here = load(bundle, provider="tensorrt-rtx"), load(bundle, provider="cpu", threads=1)
    greedy = SamplingOptions(temperature=0)
    ours, theirs = (model.session().generate_tokens(TEXT, 9, greedy) for model in (there, here))
    assert list(ours) == list(theirs)
    assert told(there, there.session(), greedy) == 256


def test_memory_of_sessions_that_are_gone_is_given_back(machine: Machine, bundle: Path) -> None:
    there = load(bundle, provider="tensorrt-rtx")
    marks = []
    session = there.session()
    for _ in range(12):  # every mark keeps blocks of its own
        session.feed(TEXT[: C + 1])
        marks.append(session.mark())
    taken = machine.cuda.left
    marks.clear()
    for _ in range(4):
        session.feed(TEXT[: C + 1])
    assert machine.cuda.left > taken
    assert machine.cuda.frees > 0


def test_a_module_that_refuses_captures_is_run_without(machine: Machine, bundle: Path) -> None:
    machine.tensorrt.capturable = False
    there, here = load(bundle, provider="tensorrt-rtx"), load(bundle, provider="cpu", threads=1)
    ours, theirs = there.session(), here.session()
    for token in TEXT[:20]:
        np.testing.assert_array_equal(ours.feed([token]), theirs.feed([token]))
    assert machine.cuda.captures == 0


def test_a_full_device_says_so_and_leaves_the_session_as_it_was(machine: Machine, bundle: Path) -> None:
    there = load(bundle, provider="tensorrt-rtx")
    session = there.session()
    session.feed(TEXT[:3])
    before = session.to_bytes()
    machine.cuda.left, left = 0, machine.cuda.left
    marks = []

    def fill() -> None:
        for _ in range(9):
            marks.append(session.mark())
            session.feed(TEXT)

    with pytest.raises(ExecutionError, match=r"cudaMalloc failed \(cudaErrorMemoryAllocation\).*nvidia-smi"):
        fill()
    machine.cuda.left = left
    session.rewind(marks[0])
    assert session.to_bytes() == before
    machine.tensorrt.out_of_memory = True
    with pytest.raises(ExecutionError, match=r"no execution context \(out of memory\).*provider='cpu'"):
        there.driver(2).feed(np.zeros((2, 1), np.int64))


# What is refused, each with its own words and the command that builds again.


def edit(path: Path, **changes: Any) -> None:
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(signed(json.loads(sidecar.read_text()) | changes)))


def remove(path: Path) -> None:
    shutil.rmtree(path.parents[1])


REFUSALS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "none": (remove, "has no engines for tensorrt-rtx", ""),
    "one missing": (lambda p: p.with_suffix(".json").unlink(), "no tensorrt-rtx engine for graph 'step'", ""),
    "file missing": (Path.unlink, "step.engine cannot be read", ""),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-7]), "step.engine is truncated or another file", ""),
    "altered": (lambda p: p.write_bytes(b"X" + p.read_bytes()[1:]), "step.engine is damaged", ""),
    "other graph": (lambda p: edit(p, onnx_sha256="0" * 64), "built from another step.onnx than the bundle's", ""),
    "other weights": (lambda p: edit(p, weights_sha256="0" * 64), "built with other weights than the bundle's", ""),
    "other version": (
        lambda p: edit(p, tensorrt="1.2.0"),
        "built by tensorrt-rtx 1.2.0, and 1.7.1 is installed here",
        "",
    ),
    "other device": (
        lambda p: edit(p, sm=[75, 120]),
        "built for compute capability 75, 120, and this device has 86",
        " --sm 86",
    ),
    "no sidecar": (lambda p: p.with_suffix(".json").write_text("{"), "step.json is not an engine's sidecar", ""),
    "newer sidecar": (lambda p: edit(p, format_version=2), "step.json is not an engine's sidecar", ""),
}


@pytest.mark.parametrize("what", list(REFUSALS))
def test_an_engine_that_does_not_fit_is_refused(machine: Machine, bundle: Path, what: str) -> None:
    spoil, message, options = REFUSALS[what]
    spoil(next((bundle / "engines").glob("*/step.engine")))
    with pytest.raises(ProviderError) as caught:
        load(bundle, provider="tensorrt-rtx")
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"; run: titans build {bundle} --backend tensorrt-rtx{options}")
    passed_over = load(bundle, threads=1).passed_over["tensorrt-rtx"]  # "auto" goes on, and says the same
    assert passed_over == str(caught.value)


def test_other_precision_than_the_manifests_is_refused(machine: Machine, bundle: Path) -> None:
    write_engines(bundle, retyped={"trace": "float16"})
    with pytest.raises(ProviderError, match="inputs and outputs are not the graph's: trace; run: titans build"):
        load(bundle, provider="tensorrt-rtx")


def test_what_tensorrt_itself_refuses_is_passed_on(machine: Machine, bundle: Path) -> None:
    for path in write_engines(bundle):
        data = b"another " + path.read_bytes()[8:]
        path.write_bytes(data)
        edit(path, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ProviderError, match=r"refused by tensorrt-rtx 1\.7\.1: magic tag is wrong; run: titans build"):
        load(bundle, provider="tensorrt-rtx")


def test_more_streams_than_an_engine_takes_are_refused(machine: Machine, bundle: Path) -> None:
    there = load(bundle, provider="tensorrt-rtx")
    there.driver(8).feed(np.zeros((8, 1), np.int64))
    with pytest.raises(ProviderError, match=r"built for 1 to 8 streams, and 9 are wanted; run: .* --batch 1 1 9"):
        there.driver(9).feed(np.zeros((9, 1), np.int64))


def test_an_engine_that_fits_is_found_beside_one_that_does_not(machine: Machine, bundle: Path) -> None:
    write_engines(bundle, sm=(75,))
    write_engines(bundle, sm=(120,), version="1.2.0")
    assert load(bundle, provider="tensorrt-rtx").provider == "tensorrt-rtx"
    assert load(bundle).provider == "tensorrt-rtx"  # and "auto" likes it best


@pytest.mark.parametrize(
    ("built", "runs"), [("1.6.9", True), ("1.7.1", True), ("1.8.0", False), ("0.9.0", False), ("2.0.0", False)]
)
def test_a_version_compatible_engine_runs_on_later_versions(
    machine: Machine, bundle: Path, built: str, runs: bool
) -> None:
    shutil.rmtree(bundle / "engines")
    write_engines(bundle, version=built, version_compatible=True)
    if not runs:
        with pytest.raises(ProviderError, match=r"later versions, and 1\.7\.1 is installed.* --version-compatible$"):
            load(bundle, provider="tensorrt-rtx")
        return
    assert np.isfinite(load(bundle, provider="tensorrt-rtx").session().feed([1, 2, 3])).all()


# Engines are programs: whose they are.


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The engines that TensorRT was asked to deserialise."""
    real = FakeRuntime.deserialize_cuda_engine
    given: list[bytes] = []

    def watched(self: FakeRuntime, data: bytes) -> Any:
        given.append(data)
        return real(self, data)

    monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", watched)
    return given


def strangers(bundle: Path, spoil: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the engines somebody else's, in one way or another; every hash in them is right."""
    if spoil == "another user":
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))  # whose key is another one
        signed({})
    for path in (bundle / "engines").glob("*/*.engine"):
        sidecar = path.with_suffix(".json")
        facts = json.loads(sidecar.read_text())
        if spoil == "unsigned":
            facts.pop(FIELD)
        elif spoil == "signed with nothing":
            facts[FIELD] = ""
        elif spoil == "no text":
            facts[FIELD] = 1
        elif spoil == "another plan under the same signature":
            path.write_bytes(b"a stranger's plan")
            facts |= {"sha256": hashlib.sha256(b"a stranger's plan").hexdigest(), "bytes": 17}
        elif spoil == "another use under the same signature":
            facts["batch"] = [1, 2, 3]
        sidecar.write_text(json.dumps(facts))


SPOILT = (
    "another user",
    "unsigned",
    "signed with nothing",
    "no text",
    "another plan under the same signature",
    "another use under the same signature",
)


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_strangers_engine_never_reaches_tensorrt_unless_it_is_trusted(
    machine: Machine, bundle: Path, given: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: str
) -> None:
    monkeypatch.delenv("TITANS_TRUST_ENGINE_CODE", raising=False)
    strangers(bundle, spoil, monkeypatch, tmp_path / "settings")
    with pytest.raises(ProviderError, match=r"built by somebody else.*set TITANS_TRUST_ENGINE_CODE=1.*titans build"):
        load(bundle, provider="tensorrt-rtx")
    there = load(bundle, threads=1)
    assert there.provider not in ("tensorrt", "tensorrt-rtx")
    assert "built by somebody else" in there.passed_over["tensorrt-rtx"]
    assert given == []
    monkeypatch.setenv("TITANS_TRUST_ENGINE_CODE", "1")
    if "plan" not in spoil:
        assert load(bundle).provider == "tensorrt-rtx"


def test_the_key_is_this_users_alone(
    machine: Machine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    write_engines(bundle)
    key = tmp_path / "mine" / "titans-deploy" / "engine.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) == 32
    assert load(bundle).provider == "tensorrt-rtx"
    key.chmod(0o644)
    with pytest.raises(ProviderError, match="can be read by others"):
        load(bundle, provider="tensorrt-rtx")
    assert "can be read by others" in load(bundle, threads=1).passed_over["tensorrt-rtx"]
    key.unlink()
    os.mkfifo(key)
    with pytest.raises(ProviderError, match="it is a pipe"):
        load(bundle, provider="tensorrt-rtx")


def test_engines_of_ten_run_with_eleven_and_no_other_major_version() -> None:
    assert engine_files._runs_later("10.3.0", "11.1.0")
    assert engine_files._runs_later("10.3.0.26", "10.13.0.1")
    assert not engine_files._runs_later("8.6.1", "11.1.0")
    assert not engine_files._runs_later("11.1.0", "10.3.0")


def test_a_hardware_compatible_engine_runs_from_ampere_on(machine: Machine, bundle: Path) -> None:
    shutil.rmtree(bundle / "engines")
    paths = write_engines(bundle, sm=(90,), hardware_compatible=True)
    assert load(bundle, provider="tensorrt-rtx").provider == "tensorrt-rtx"  # the device has 86
    for path in paths:
        edit(path, hardware_compatible=False)
    with pytest.raises(ProviderError, match="was built for compute capability 90, and this device has 86"):
        load(bundle, provider="tensorrt-rtx")


def test_an_engine_without_weights_gets_those_of_the_bundle(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [5, 6, 7, 8]
    with_weights = load(bundle, provider="tensorrt-rtx").session().feed(tokens)
    shutil.rmtree(bundle / "engines")
    write_engines(bundle, strip_weights=True)
    assert np.array_equal(load(bundle, provider="tensorrt-rtx").session().feed(tokens), with_weights)
    monkeypatch.setattr(FakeOnnxParserRefitter, "refit_from_bytes", lambda self, content, path: True)
    with pytest.raises(ProviderError, match=r"refused by tensorrt-rtx 1\.7\.1: missing weights; run: titans build"):
        load(bundle, provider="tensorrt-rtx")


def test_where_no_engine_runs_building_again_is_no_remedy(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.tensorrt, "supported", False)
    with pytest.raises(ProviderError, match=r"do not run on this device .* use another provider, such as cuda"):
        load(bundle, provider="tensorrt-rtx")


def test_the_report_says_what_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry() -> doctor.ProviderReport:
        return next(e for e in doctor.report() if e.name == "tensorrt-rtx")

    assert entry().status == "ready"
    assert "compute capability 86" in entry().detail
    monkeypatch.setattr(machine.tensorrt, "supported", False)
    assert entry().status == "not working"
    assert "does not support this compute capability" in entry().detail
    assert entry().remedy == "use another provider, such as cuda"
    monkeypatch.setattr(nvidia, "has_driver", lambda: False)
    assert entry().status == "no device"
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert entry().status == "not installed"
    assert "pip install 'cuda-bindings>=" in entry().remedy
    assert "'tensorrt-rtx>=" in entry().remedy


# The stand-in has teeth: what breaks the contract is found.


@pytest.fixture
def cuda() -> Cuda:
    return Cuda(FakeCuda())


def breaks(machine: Machine, bundle: Path, message: str) -> None:
    session = load(bundle, provider="tensorrt-rtx").session()
    with pytest.raises(Violation, match=message):
        session.feed(TEXT[:12])


def test_reading_results_without_waiting_is_found(
    machine: Machine, bundle: Path, toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load(bundle, provider="tensorrt-rtx").session()
    session.feed([1])
    monkeypatch.setattr(Cuda, "wait", lambda self: None)
    with pytest.raises(ExecutionError, match="not finite"):
        session.feed([1])


def test_memory_freed_too_early_is_found(machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a buffer would be that gives its memory back at once, instead of when the stream is idle."""
    session = load(bundle, provider="tensorrt-rtx").session()
    session.feed([1])
    enqueue = EngineBound._enqueue

    def eager(bound: EngineBound) -> None:
        enqueue(bound)
        machine.cuda.cudaFree(bound._places["trace"].address)

    monkeypatch.setattr(EngineBound, "_enqueue", eager)
    with pytest.raises(Violation, match="has yet to use"):
        session.feed([1])


def test_misaligned_missing_and_overlapping_places_are_found(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = EngineBound._enqueue

    def with_places(change: Callable[[dict[str, CudaBuffer]], None]) -> None:
        def changed(bound: EngineBound) -> None:
            change(bound._places)
            enqueue(bound)

        monkeypatch.setattr(EngineBound, "_enqueue", changed)

    def shift(places: dict[str, CudaBuffer]) -> None:
        places["trace"].address += 4

    with_places(shift)
    breaks(machine, bundle, "trace is not aligned to 256")
    with_places(lambda places: places.pop("logits", None) and None)
    breaks(machine, bundle, r"no address was set for \['logits'\]")
    with_places(lambda places: places.update(present_trace=places["trace"]))
    breaks(machine, bundle, "an output lies over an input")


def test_streams_in_each_others_way_are_found() -> None:
    fake = FakeCuda()
    one, other = Cuda(fake), Cuda(fake)
    buffer = one.zeros((4,), "float32")
    with pytest.raises(Violation, match="another stream"):
        other.move(buffer.address, other.zeros((4,), "float32").address, 16)
    one.wait()
    other.move(buffer.address, other.zeros((4,), "float32").address, 16)


def test_freeing_changing_and_capturing_what_is_in_flight_is_found() -> None:
    fake = FakeCuda()
    cuda = Cuda(fake)
    buffer = cuda.zeros((4,), "float32")
    with pytest.raises(Violation, match="has yet to use"):
        fake.cudaFree(buffer.address)
    cuda.wait()
    pinned = cuda.pinned(np.zeros(4, np.float32))
    cuda.to_device(buffer.address, pinned.address, 16)
    pinned.array[0] = 1
    with pytest.raises(Violation, match="host memory was changed"):
        cuda.wait()
    fresh = Cuda(FakeCuda())
    with pytest.raises(Violation, match="during a capture"):
        fresh.capture(lambda: fresh.wait())
    assert fresh.zeros((1,), "float32").shape == (1,)  # the stream left its capture
    with pytest.raises(Violation, match="past the end"):
        fresh.move(fresh.zeros((4,), "float32").address, fresh.zeros((2,), "float32").address, 16)


def test_moves_between_tensors_do_what_they_say() -> None:
    memory = CudaMemory(Cuda(FakeCuda()))
    random = np.random.default_rng(2)

    def made(*shape: int) -> tuple[CudaBuffer, np.ndarray]:
        array = random.standard_normal(shape).astype(np.float32)
        buffer = memory.allocate(shape, "float32")
        memory.upload(buffer, array)
        return buffer, array

    (table, was), (other, _), (rows, new) = made(6, 3, 2), made(6, 3, 2), made(4, 3, 2)
    memory.append([table], [other], [rows], 2, 3)
    np.testing.assert_array_equal(memory.download(other)[:5], np.concatenate([was[:2], new[:3]]))
    memory.place([table], [rows], [0, 5, 2], [0, 1, 2])
    was[[0, 5, 2], [0, 1, 2]] = new[0]
    (solo, one), (wide, many), (old, before) = made(6, 1, 2), made(3, 4), made(3, 4)
    memory.seat([table], [solo], 1, rows=6)
    was[:, 1] = one[:, 0]
    np.testing.assert_array_equal(memory.download(table), was)
    memory.pick([table], [solo], 2, rows=6)
    np.testing.assert_array_equal(memory.download(solo), was[:, 2:3])
    memory.keep([wide], [old], [0, 2])
    many[[0, 2]] = before[[0, 2]]
    np.testing.assert_array_equal(memory.download(wide), many)
    single, alone = made(1, 4)
    memory.seat([wide], [single], 2)
    many[2] = alone[0]
    np.testing.assert_array_equal(memory.download(wide), many)
    memory.pick([wide], [single], 1)
    np.testing.assert_array_equal(memory.download(single), many[1:2])
    assert cudaMemcpyKind.cudaMemcpyDeviceToDevice == 3
