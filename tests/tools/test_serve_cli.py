"""`titans serve` as a process: it says where it listens, answers, and stops without losing anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.runtime.toy import Toy, write_toy
from tests.serve.raw import address


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("served") / "toy.titans", Toy())


def started(bundle: Path, folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server, and its address."""
    command = [sys.executable, "-m", "titans_cli.main", "serve", str(bundle), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--store", str(folder), *options, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    if url := address(process):
        return process, url
    raise AssertionError(process.communicate()[1])


def feed(url: str, text: str) -> int:
    request = urllib.request.Request(f"{url}/v1/memories/diary/feed", json.dumps({"text": text}).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.loads(answer.read())["position"])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_is_there_after_any_end(bundle: Path, tmp_path: Path, end: signal.Signals) -> None:
    position = 0
    for round_number in range(3):
        process, url = started(bundle, tmp_path / "store")
        position = feed(url, "abc" * (round_number + 1))
        process.send_signal(end)
        _, log = process.communicate(timeout=60)
        assert process.returncode == (0 if end == signal.SIGTERM else -signal.SIGKILL), log
        assert "abc" not in log  # requests are logged without their texts
        events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        (request,) = [event for event in events if event["event"] == "request"]
        assert request["route"] == "/v1/memories/{id}/feed"
    assert position == 3 + 6 + 9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "0.0.0.0"], "--keys"),
        (["--keys", "missing.txt"], "missing.txt"),
        (["--store", "redis://localhost"], "redis"),
        (["--host", "no.such.host.invalid", "--keys", "KEYS"], "no.such.host"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(bundle: Path, tmp_path: Path, options: list[str], word: str) -> None:
    from click.testing import CliRunner

    from titans_cli.main import cli

    keys = tmp_path / "keys.txt"
    keys.write_text("alice key-of-alice-0123456789\n", encoding="utf-8")
    keys.chmod(0o600)
    arguments = [str(keys) if option == "KEYS" else option for option in options]
    if "--store" not in arguments:
        arguments += ["--store", str(tmp_path / "store")]
    result = CliRunner().invoke(cli, ["serve", str(bundle), *arguments], prog_name="titans")
    assert result.exit_code == 2
    assert word in result.output


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    from titans_runtime import InputError
    from titans_serve.keys import read_keys

    keys = tmp_path / "keys.txt"
    keys.write_text(
        "alice key-of-alice-0123456789  # hers\n\n# bob follows\nbob key-of-bob-0123456789\n", encoding="utf-8"
    )
    keys.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_keys(keys)
    keys.chmod(0o600)
    known = read_keys(keys)
    assert known.namespace("Bearer key-of-alice-0123456789") == "alice"
    assert known.namespace("bearer  key-of-bob-0123456789") == "bob"
    assert known.namespace("Bearer key-of-bob") is None
    assert known.namespace("Basic key-of-bob-0123456789") is None
    assert known.namespace(None) is None
    for wrong in (
        "alice short\n",
        "a/b key-of-alice-0123456789\n",
        "alice\n",
        "",
        "a key-of-alice-0123456789\na x-0123456789abcdef\n",
    ):
        keys.write_text(wrong, encoding="utf-8")
        with pytest.raises(InputError, match=r"keys\.txt"):
            read_keys(keys)
