"""Two replicas of Ray Serve on one store: any serves any memory, and killing one loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.serve.conftest import Start
from tests.serve.raw import address
from titans_cli.main import cli
from titans_serve.keys import Keys

pytest.importorskip("ray", reason="needs titans-deploy[ray]")
GREEDY = {"max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def cluster(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of `titans serve --ray`, and the id of its process."""
    folder = tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "titans_cli.main", "serve", str(bundle), "--ray", "--port", "0", "--threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--store", f"sqlite:{folder / 'm.db'}", "--json"],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
    url = address(process)
    assert url is not None, (folder / "log").read_text()[-3000:]
    yield url, process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0


def ask(url: str, path: str, body: object = None) -> dict[str, object]:
    """An answer; a request that a dead replica took is sent again."""
    data = None if body is None else json.dumps(body).encode()
    for _ in range(200):
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, data), timeout=60) as answer:
                found = json.load(answer)
                assert isinstance(found, dict)
                return found
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{path} was never answered")


def replicas() -> list[int]:
    """The processes of replicas that this user runs."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and b"ServeReplica:titans" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_any_replica_serves_any_memory_and_a_killed_one_loses_nothing(
    cluster: tuple[str, int], start: Start, tmp_path: Path
) -> None:
    url, _process = cluster
    alone = start(f"sqlite:{tmp_path / 'alone.db'}", keys=Keys({}))
    names = ["ann", "ben", "cem"]
    texts = {name: [f"{name} says {turn}. " for turn in range(6)] for name in names}

    def live(name: str, at: str, turns: range) -> list[object]:
        return [
            ask(at, "/v1/completions", {"prompt": texts[name][turn], "memory": name} | GREEDY)["choices"]
            for turn in turns
        ]

    with ThreadPoolExecutor(len(names)) as pool:
        before = list(pool.map(lambda name: live(name, url, range(3)), names))
        running = replicas()
        assert len(running) == 2
        under_load = [pool.submit(live, name, url, range(3, 5)) for name in names]
        os.kill(running[0], signal.SIGKILL)
        during = [each.result() for each in under_load]
    expected = [live(name, alone.url, range(3)) for name in names]
    assert before == expected
    for name, found in zip(names, during, strict=True):
        expected_here = live(name, alone.url, range(3, 5))
        position = ask(url, f"/v1/memories/{name}")["position"]
        if position == ask(alone.url, f"/v1/memories/{name}")["position"]:
            assert found == expected_here
        else:  # a turn was kept, its answer died with the replica, and the client sent it again
            assert position > ask(alone.url, f"/v1/memories/{name}")["position"]  # type: ignore[operator]


def test_counts_of_replicas_are_checked(bundle: Path) -> None:
    for wrong in ("0", "3:2", "1:2:3", "two", "-1"):
        result = CliRunner().invoke(cli, ["serve", str(bundle), "--ray", f"--replicas={wrong}"])
        assert result.exit_code == 2
        assert "LEAST:MOST" in result.output
