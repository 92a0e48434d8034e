"""The programs of the embedding guide, taken from the page and run as they stand."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import titans_runtime
from studies.speed.kit import random_bundle
from tests.conftest import SMALL, titans
from titans_core.presets import preset

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "embedding.md"
PROGRAMS = {
    re.match(r"# (\S+\.py)", code)[1]: code  # type: ignore[index]
    for code in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
}
Write = Callable[[str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Write:
    """Writes a program of the page to a file."""

    def write(name: str) -> Path:
        (tmp_path / name).write_text(PROGRAMS[name], encoding="utf-8")
        return tmp_path / name

    return write


def run(file: Path, *arguments: object, text: str = "") -> list[str]:
    """Lines that a program prints."""
    words = [sys.executable, str(file), *map(str, arguments)]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, cwd=file.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextmanager
def serving(file: Path, *arguments: object) -> Iterator[int]:
    """The port that a service listens on."""
    words = [sys.executable, str(file), *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=file.parent) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on port (\d+)\n", line)
            assert found, line
            yield int(found[1])
        finally:
            process.kill()


def test_the_page_has_the_programs_it_promises() -> None:
    assert set(PROGRAMS) == {"chat.py", "monitor.py", "web.py", "service.py", "metrics.py", "forecast.py"}


def test_the_chat_remembers_across_processes(program: Write, tiny_bundle: Path, tmp_path: Path) -> None:
    chat, memory = program("chat.py"), tmp_path / "me.state"
    assert run(chat, tiny_bundle, memory, text="hello\nthere\n")[0] == "[0 tokens remembered]"
    again = run(chat, tiny_bundle, memory, text="")[0]
    tokens = int(re.fullmatch(r"\[(\d+) tokens remembered\]", again)[1])  # type: ignore[index]
    assert len("hello\nthere\n") < tokens <= len("hello\nthere\n") + 2 * 64


@pytest.fixture(scope="module")
def preset_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the `tiny` preset that has learned nothing: the monitor rests on the memory alone."""
    path = tmp_path_factory.mktemp("preset") / "preset.titans"
    random_bundle(preset("tiny"), path)
    return path


def test_the_monitor_reports_the_odd_line_and_no_other(program: Write, preset_bundle: Path) -> None:
    usual = [f"GET /items/{i % 7} 200 {i % 3} ms" for i in range(120)]
    log = [*usual[:100], "kernel panic: 0xDEADBEEF @@ ???!!! %%% ^^^", *usual[100:]]
    found = run(program("monitor.py"), preset_bundle, text="\n".join(log) + "\n")
    assert [line.partition(",")[0] for line in found] == ["line 101"]


def post(port: int, user: str, message: bytes) -> tuple[int, bytes]:
    """Status and body of the web handler's answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/users/{user}", message, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_web_handler_keeps_a_memory_for_each_user(program: Write, tiny_bundle: Path, tmp_path: Path) -> None:
    web, folder = program("web.py"), tmp_path / "memories"
    folder.mkdir()
    with serving(web, tiny_bundle, folder, 0) as port:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda user: post(port, user, b"hello\n"), ["ann", "ben", "cem", "dan"]))
        assert [status for status, _ in answers] == [200] * 4
        assert {file.name for file in folder.iterdir()} == {f"{user}.state" for user in ("ann", "ben", "cem", "dan")}
        assert post(port, "ann", b"")[0] == 400
        assert post(port, "../ann", b"hello")[0] == 404
    first = (folder / "ann.state").read_bytes()
    with serving(web, tiny_bundle, folder, 0) as port:
        assert post(port, "ann", b"again\n")[0] == 200
    shown = subprocess.run(
        [sys.executable, "-m", "titans_cli.main", "state", "inspect", str(folder / "ann.state"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["position"] > len(b"hello\nagain\n")
    assert (folder / "ann.state").read_bytes() != first


def test_the_web_handler_forgets_no_user_and_keeps_few_sessions(
    program: Write, tiny_bundle: Path, tmp_path: Path
) -> None:
    web, folder = program("web.py"), tmp_path / "memories"
    folder.mkdir()
    code = web.read_text(encoding="utf-8").replace("KNOWN = 1000", "KNOWN = 2")
    web.write_text(code.replace("self.answer(200, text)", "self.answer(200, str(len(users)))"), encoding="utf-8")
    users = ["ann", "ben", "cem", "dan", "eve"]
    with serving(web, tiny_bundle, folder, 0) as port:
        for _ in range(2):
            known = [int(post(port, user, b"hello\n")[1]) for user in users]
            assert max(known) == 2
        model = titans_runtime.load(tiny_bundle, threads=1)
        sizes = {user: model.restore(folder / f"{user}.state").position for user in users}
        assert all(size > 2 * len(b"hello\n") for size in sizes.values())
        other = model.restore(folder / "eve.state")  # another process, with the same file
        other.feed(list(b"something else"))
        other.save(folder / "eve.state")
        status, said = post(port, "eve", b"hello\n")
        assert (status, b"has not read" in said) == (503, True)
        assert post(port, "eve", b"hello\n")[0] == 200
    assert model.restore(folder / "eve.state").position > other.position


def test_the_asyncio_service_answers_many_connections(program: Write, tiny_bundle: Path) -> None:
    def converse(port: int) -> list[str]:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            stream = connection.makefile("rw", encoding="utf-8", errors="replace", newline="\n")
            answers = []
            for line in ("first\n", "second\n"):
                stream.write(line)
                stream.flush()
                answers.append(stream.readline())
            return answers

    with serving(program("service.py"), tiny_bundle, 0) as port, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(converse, [port] * 6))
    assert all(answer == answers[0] for answer in answers)  # greedy, and each stream a memory of its own
    assert all(line.endswith("\n") for line in answers[0])


def test_metrics_and_logs_are_data(program: Write, tiny_bundle: Path) -> None:
    *records, figures = map(json.loads, run(program("metrics.py"), tiny_bundle))
    saved = next(record for record in records if record["event"] == "session.saved")
    assert saved["session"] == "alice"
    assert saved["bytes"] > 0
    assert figures["tokens_total"] == figures["position"] == len("an observer sees every feed")
    assert figures["tokens_per_second"] > 0


def test_the_forecaster_says_what_one_call_on_the_whole_recording_says(program: Write, tmp_path: Path) -> None:
    values = [[20 + 5 * math.sin(i / 9), 1000.0 - i % 37] for i in range(200)]
    lines = [",".join(map(str, step)) for step in values]
    (tmp_path / "plant.csv").write_text("\n".join(["temperature,pressure", *lines]))
    shape = [word for name, value in {**SMALL, "persistent_tokens": 0}.items() for word in ("--set", f"{name}={value}")]
    common = ("--variant", "lmm", "--horizon", "3", "--steps", "2", "--batch", "2", "--out", tmp_path / "model")
    titans("train", "--task", "series", "--data", tmp_path / "plant.csv", *shape, *common)
    titans("export", tmp_path / "model", "--out", tmp_path / "model.titans", "--verify-tokens", "0")
    forecast, memory = program("forecast.py"), tmp_path / "plant.state"
    first, *found = run(forecast, tmp_path / "model.titans", memory, text="\n".join(lines[:40]) + "\n")
    assert first == "forecasts 3 steps of temperature, pressure"
    model = titans_runtime.load(tmp_path / "model.titans", provider="cpu")
    part = np.array(values[:40])
    expected = model.series.forecasts(model.session().feed(model.series.inputs(part)), part)
    assert np.array([json.loads(line) for line in found]) == pytest.approx(expected, abs=2e-3)
    gaps = run(forecast, tmp_path / "model.titans", memory, text="21.5,\n,990\n")[1:]
    assert all(np.isfinite(json.loads(line)).all() for line in gaps)
    assert model.restore(memory).position == 42
