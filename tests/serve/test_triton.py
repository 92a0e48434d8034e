"""Triton's sequences: alone, and in the real server where scripts/triton_packages.sh has put it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from titans_cli.main import cli
from titans_runtime import InputError, Model, SamplingOptions, StateError
from titans_serve.keys import OPEN_NAMESPACE
from titans_serve.stores import Key, open_store
from titans_serve.triton.repository import write_repository
from titans_serve.triton.sequences import Answer, Limits, Request, Sequences

TRITON = Path("build/triton/pytriton/tritonserver").resolve()
GREEDY = SamplingOptions(temperature=0.0)


def pieces(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, int(random.integers(1, 12))) for _ in range(5)]


@pytest.fixture
def sequences(model: Model, tmp_path: Path) -> Iterator[Sequences]:
    store = open_store(f"sqlite:{tmp_path / 'm.db'}")
    open_ones = Sequences(model, store, Limits(lanes=4, threads=8))
    yield open_ones
    open_ones.close()


def one(sequences: Sequences, request: Request) -> Answer:
    answer = sequences.run([request])[0]
    assert isinstance(answer, Answer), answer
    return answer


def test_interleaved_sequences_equal_solo_runs(sequences: Sequences, model: Model) -> None:
    streams = {str(n): pieces(n) for n in range(6)}
    solo = {name: model.session() for name in streams}
    for turn in range(5):
        requests = [Request(name, each[turn], begins=turn == 0, ends=turn == 4) for name, each in streams.items()]
        for name, answer in zip(streams, sequences.run(requests), strict=True):
            assert isinstance(answer, Answer)
            np.testing.assert_allclose(answer.outputs, solo[name].feed(streams[name][turn]), atol=1e-5)
            np.testing.assert_allclose(answer.surprise, solo[name].surprise, atol=1e-5)
            assert answer.position == solo[name].position
    assert sequences.open == 0


def test_generated_ids_are_those_of_a_session(sequences: Sequences, model: Model) -> None:
    answer = one(sequences, Request("1", np.array([5, 6, 7]), begins=True, generate=9, options=GREEDY))
    session = model.session()
    session.feed([5, 6, 7])
    assert list(answer.generated) == list(session.generate_tokens(None, 9, GREEDY))
    assert answer.position == session.position


def test_a_refused_request_changes_nothing(sequences: Sequences) -> None:
    first = one(sequences, Request("1", np.array([5, 6]), begins=True))
    refused = sequences.run([Request("1", np.array([256]))])[0]
    assert isinstance(refused, InputError)
    assert "outside the vocabulary" in str(refused)
    assert one(sequences, Request("1", np.array([7]))).position == first.position + 1


def test_a_memory_outlives_its_sequence_and_its_server(model: Model, tmp_path: Path) -> None:
    address = f"sqlite:{tmp_path / 'm.db'}"
    session = model.session()
    for turn, piece in enumerate(pieces(3)):
        server = Sequences(model, open_store(address))
        answer = one(server, Request(str(turn), piece, begins=True, ends=turn % 2 == 0, memory="alice"))
        np.testing.assert_allclose(answer.outputs, session.feed(piece), atol=1e-5)
        server.close()  # stores the memories of sequences that nobody has ended


def test_an_idle_sequence_is_stored_and_let_go(sequences: Sequences, model: Model) -> None:
    one(sequences, Request("1", np.array([5, 6, 7]), begins=True, memory="alice"))
    one(sequences, Request("2", np.array([5, 6, 7]), begins=True))
    assert sequences.put_away(60) == 0
    assert sequences.put_away(0) == 2
    gone = sequences.run([Request("1", np.array([8]))])[0]
    assert isinstance(gone, InputError)
    assert "begin it again" in str(gone)
    session = model.session()
    session.feed([5, 6, 7])
    answer = one(sequences, Request("9", np.array([8]), begins=True, memory="alice"))
    np.testing.assert_allclose(answer.outputs, session.feed([8]), atol=1e-5)


def test_two_writers_of_one_memory_never_overwrite_each_other(sequences: Sequences) -> None:
    one(sequences, Request("1", np.array([1]), begins=True, memory="alice"))
    one(sequences, Request("2", np.array([2, 3]), begins=True, memory="alice", ends=True))
    refused = sequences.run([Request("1", np.array([4]), ends=True)])[0]
    assert isinstance(refused, StateError)
    assert "begin the sequence again" in str(refused)
    again = one(sequences, Request("1", np.array([4]), begins=True, memory="alice", ends=True))
    assert again.position == 3


def test_kept_always_is_in_the_store_before_the_answer(model: Model, tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path / 'm.db'}")
    server = Sequences(model, store, Limits(keep="always"))
    key, versions = Key(OPEN_NAMESPACE, "memory", "alice"), set()
    for turn in range(3):
        one(server, Request("1", np.array([turn]), begins=turn == 0, memory="alice"))
        versions.add(store.version(key))
    assert len(versions - {None}) == 3
    server.close()


def test_a_name_without_a_store_and_a_name_that_is_none_are_refused(model: Model, sequences: Sequences) -> None:
    server = Sequences(model)
    refused = server.run([Request("1", np.array([1]), begins=True, memory="alice")])[0]
    assert isinstance(refused, InputError)
    assert "--store" in str(refused)
    server.close()
    refused = sequences.run([Request("1", np.array([1]), begins=True, memory="../alice")])[0]
    assert isinstance(refused, InputError)
    assert "plain name" in str(refused)


def test_a_repository_is_written_once_and_replaced_on_demand(bundle: Path, tmp_path: Path) -> None:
    target = write_repository(bundle, tmp_path / "repository")
    assert sorted(path.name for path in target.iterdir()) == ["1", "config.pbtxt"]
    compile((target / "1" / "model.py").read_text(), "model.py", "exec")
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        write_repository(bundle, tmp_path / "repository")
    with pytest.raises(InputError, match="not a plain name"):
        write_repository(bundle, tmp_path / "repository", name="a/b")
    arguments = ["triton", str(bundle), "--out", str(tmp_path / "repository"), "--overwrite", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "toy"
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == ["toy"]


# ---------------------------------------------------------------- the real server


@pytest.fixture(scope="module")
def triton(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Triton that serves the toy, whose sequences idle after two seconds."""
    stub = TRITON / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    libraries = Path(str(sysconfig.get_config_var("LIBDIR")))
    if not stub.is_file() or not any(libraries.glob("libpython3.*.so*")):
        pytest.skip("no Triton here, or no shared libpython: see scripts/triton_packages.sh")
    folder = tmp_path_factory.mktemp("triton")
    paths = tuple(path for path in sys.path if path and Path(path).is_dir() and "lib-dynload" not in path)
    write_repository(
        bundle, folder / "repository", store=f"sqlite:{folder / 'm.db'}", limits=Limits(lanes=4, idle_seconds=2.0),
        threads=1, provider="cpu", python_path=tuple(str(Path(path).resolve()) for path in paths),
    )  # fmt: skip
    backend = folder / "backends" / "python"
    shutil.copytree(TRITON / "backends" / "python", backend)
    shutil.copy2(stub, backend)
    (backend / stub.name).chmod(0o755)
    server = TRITON / "bin" / "tritonserver"
    server.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = [libraries, TRITON.parents[1] / "nvidia_pytriton.libs", TRITON / "external_libs"]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, found))}
    options = {
        "model-repository": folder / "repository", "backend-directory": folder / "backends",
        "http-address": "127.0.0.1", "http-port": port, "allow-grpc": "false", "allow-metrics": "false",
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        command = [str(server), *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}/v2"
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail((folder / "log").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"{address}/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(60)


Tensors = dict[str, np.ndarray]


def infer(
    address: str, ids: np.ndarray | list[int], sequence: int, *, start: bool = False, end: bool = False, **more: object
) -> tuple[int, Tensors | str]:
    """One request over KServe's HTTP: the status, and tensors or the error."""
    tensor = {"name": "ids", "shape": [1, len(ids)], "datatype": "INT64", "data": [int(each) for each in ids]}
    parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end} | more
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    message = urllib.request.Request(f"{address}/models/toy/infer", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(message, timeout=60) as answer:
            return 200, {each["name"]: np.array(each["data"]) for each in json.load(answer)["outputs"]}
    except urllib.error.HTTPError as error:
        return error.code, str(json.load(error)["error"])


def tensors(answer: tuple[int, Tensors | str]) -> Tensors:
    status, found = answer
    assert status == 200, found
    assert isinstance(found, dict)
    return found


def test_sequences_through_triton_equal_solo_runs(triton: str, model: Model) -> None:
    streams = {n + 1: pieces(n) for n in range(6)}

    def live(sequence: int) -> list[Tensors]:
        parts = enumerate(streams[sequence])
        return [tensors(infer(triton, piece, sequence, start=n == 0, end=n == 4)) for n, piece in parts]

    with ThreadPoolExecutor(6) as pool:
        found = dict(zip(streams, pool.map(live, streams), strict=True))
    for sequence, parts in streams.items():
        session = model.session()
        for piece, given in zip(parts, found[sequence], strict=True):
            np.testing.assert_allclose(given["logits"], session.feed(piece), atol=1e-4)
            assert given["position"] == [session.position]
            assert len(given["surprise"]) == len(piece)


def test_triton_says_what_is_wrong_and_keeps_an_idle_memory(triton: str, model: Model) -> None:
    first = tensors(infer(triton, [1, 2], 90, start=True, memory="bob", max_new_tokens=4, temperature=0.0))
    refused = [
        (infer(triton, [1], 91), "must specify the START flag"),
        (infer(triton, [256], 92, start=True), "outside the vocabulary"),
        (infer(triton, [1], 93, start=True, memory="../x"), "plain name"),
        (infer(triton, [1], 94, start=True, nonsense=1), "nobody knows the parameter 'nonsense'"),
        (infer(triton, [1], 95, start=True, max_new_tokens=-1), "not a count"),
    ]
    for (status, said), words in refused:
        assert status == 400
        assert words in str(said)
    session = model.session()
    session.feed([1, 2])
    assert list(first["generated"]) == list(session.generate_tokens(None, 4, GREEDY))
    for _ in range(100):  # nobody goes on: the sequence is stored and let go
        status, _said = infer(triton, [3], 90)
        if status != 200:
            break
        session.feed([3])
        time.sleep(3.5)
    assert status == 400
    later = tensors(infer(triton, [5], 96, start=True, end=True, memory="bob"))
    np.testing.assert_allclose(later["logits"], session.feed([5]), atol=1e-4)
