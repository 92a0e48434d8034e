"""`titans serve` as a process of its own, so that it can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOTS = [str(ROOT / part) for part in (".", "export", "runtime", "tools")]


class Process:
    """A server on a free port of loopback. `options` are those of the command."""

    def __init__(self, bundle: Path, *options: str, threads: int | None = 1) -> None:
        code = f"import sys; sys.path[:0] = {ROOTS!r}; from titans_cli.main import main; main()"
        command = [sys.executable, "-c", code, "serve", str(bundle), "--port", "0", "--json"]
        if threads is not None:
            command += ["--threads", str(threads)]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = ""
        while not line.rstrip().endswith("}"):
            part = self.process.stdout.readline()
            assert part, "the server has ended instead of listening"
            line += part
        self.url = str(json.loads(line)["url"])

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: object = None, raw: bytes | None = None, key: str = ""
    ) -> tuple[int, bytes]:
        """One request: the status, and the body of the answer."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"authorization": f"Bearer {key}"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def cpu_seconds(self) -> float:
        """Processor seconds that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory that it holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def feed(self, memory: str, text: str) -> tuple[int, dict[str, object]]:
        """Let a memory read a text."""
        status, body = self.ask("POST", f"/v1/memories/{memory}/feed", {"text": text})
        return status, json.loads(body)

    def kill(self) -> None:
        """As a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As an operator would; the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[Process]:
    """A server, ended afterwards."""
    server = Process(bundle, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
