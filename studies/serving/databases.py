"""Real Redis and PostgreSQL servers on loopback, each in a folder of its own, for as long as somebody needs them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_PATIENCE = 20.0  # seconds for a server to begin; they need less than one


class MissingProgramError(Exception):
    """There is no such server here."""


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Database:
    """A server that can be killed and started again on the same files."""

    def __init__(self, url: str, command: list[str], user: str | None, folder: Path) -> None:
        self.url, self._command, self._user, self._folder = url, command, user, folder
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=self._user, cwd=self._folder,
            start_new_session=True,
        )  # fmt: skip
        answers(self.url, self._process)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """As a crash would: no warning, no last write."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the server takes commands."""
    import psycopg
    import redis

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            if url.startswith("redis"):
                redis.Redis.from_url(url).ping()
            else:
                psycopg.connect(url, connect_timeout=2).close()
            return
        except (redis.RedisError, psycopg.OperationalError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.02)


def redis_server(folder: Path) -> Database:
    """A Redis that has written a change to its disk before it says so."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingProgramError("redis-server is not installed (Debian's package redis-server)")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes",
        "--appendfsync", "always",
    ]  # fmt: skip
    return Database(f"redis://127.0.0.1:{port}", command, None, folder)


def postgresql_server(_: Path) -> Database:
    """A PostgreSQL with its defaults, which write a change to the disk before it is acknowledged."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = shutil.which("postgres") or (str(programs[-1]) if programs else None)
    if found is None:
        raise MissingProgramError("postgres is not installed (Debian's package postgresql)")
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    owner = None
    if user is not None:
        try:
            owner = pwd.getpwnam(user)
        except KeyError as error:
            raise MissingProgramError("PostgreSQL does not run as root, and there is no user postgres") from error
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # a place of its own, which that user can reach
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    port = free_port()
    initdb = [
        str(Path(found).with_name("initdb")), "-D", str(data), "-U", "titans", "-A", "trust", "--no-sync", "-E", "UTF8",
        "--no-locale",
    ]  # fmt: skip
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
    command = [found, "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    return Database(f"postgresql://titans@127.0.0.1:{port}/postgres", command, user, folder)
