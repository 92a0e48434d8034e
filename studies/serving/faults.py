"""What a server loses when something fails: real processes, each fault as often as asked for.

    python -m studies.serving.faults MODEL.titans --times 100

A fault is survived if every acknowledged turn is in the memory, the memory equals one that read the same text alone,
and every refusal was one of ours. Faults that need Redis or PostgreSQL are left out where these are not installed. The
last line is JSON.

Knows the faults. Does not know how stores and turns work.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import titans_runtime
from studies.serving.databases import Database, MissingProgramError, postgresql_server, redis_server
from studies.serving.process import Process
from titans_runtime import Model
from titans_serve.stores import Key
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore

TEXT = "a turn of some length. "
REFUSED = (409, 429, 503)  # what a client may be answered while something fails


@dataclass
class Tally:
    """What came of one fault, over all rounds."""

    rounds: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0
    wrong: int = 0
    unclear: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, nothing was wrong, and every error was a clear one."""
        return not (self.lost or self.wrong or self.unclear)

    def answer(self, status: int, body: object) -> bool:
        """Count an answer; whether the turn was acknowledged."""
        if status == 200:
            self.acknowledged += 1
        elif status in REFUSED and isinstance(body, dict) and "error" in body:
            self.refused += 1
        else:
            self.unclear.append(f"{status} {body!r}"[:200])
        return status == 200


class Round:
    """One memory that reads the same text again and again, and what it has to be."""

    def __init__(self, model: Model, tally: Tally) -> None:
        self.model, self.tally = model, tally
        self.ids = model.encode(TEXT)
        self.turns = 0  # acknowledged
        self.unanswered = 0  # since the last check; each of them may have been kept

    def feed(self, server: Process) -> bool:
        """One turn. A connection that breaks is no answer."""
        try:
            done = self.tally.answer(*server.feed("diary", TEXT))
        except OSError:
            self.unanswered += 1
            return False
        self.turns += done
        return done

    def check(self, server: Process, in_flight: int = 0) -> None:
        """Compare the memory with one that read alone; `in_flight` turns may have been kept without an answer."""
        self.tally.rounds += 1
        status, state = server.ask("GET", "/v1/memories/diary/state")
        if status == 404 and self.turns == 0:
            return
        if status != 200:
            self.tally.unclear.append(f"state: {status}")
            return
        found = self.model.restore_bytes(state)
        turns, rest = divmod(found.position, len(self.ids))
        self.tally.lost += max(0, self.turns - turns)
        alone = self.model.session()
        for _ in range(turns):
            alone.feed(self.ids)
        same = found.feed([1]).tobytes() == alone.feed([1]).tobytes()
        self.tally.wrong += bool(rest) or turns > self.turns + self.unanswered + in_flight or not same
        self.unanswered = 0
        self.turns = turns


def long_answer(server: Process, memory: str = "diary", tokens: int = 30_000, reads: bool = True) -> socket.socket:
    """A streamed turn of a memory that is under way; its client may read nothing at all."""
    body = {"memory": memory, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": True}
    data = json.dumps(body).encode()
    connection = socket.socket()
    if not reads:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    if reads:
        connection.recv(64)
    return connection


def killed(bundle: Path, model: Model, times: int, inside: bool) -> Tally:
    """kill -9 of the server, between two turns or inside of one."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        current, server = Round(model, tally), Process(bundle, "--store", f"sqlite:{folder}/memories.db")
        for _ in range(times):
            current.feed(server)
            if inside:
                with long_answer(server):
                    server.kill()
            else:
                server.kill()
            server = Process(bundle, "--store", f"sqlite:{folder}/memories.db")
            current.check(server)
        server.stop()
    return tally


def database_killed(bundle: Path, model: Model, times: int, make: Callable[[Path], Database]) -> Tally:
    """kill -9 of the database while turns are written."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        database = make(Path(folder) / "database")
        server = Process(bundle, "--store", database.url)
        current = Round(model, tally)
        for number in range(times):
            current.feed(server)
            timer = threading.Timer(0.001 * (number % 20), database.kill)
            timer.start()
            tries = 0
            while timer.is_alive() or database.alive:
                tries += 1
                current.feed(server)
            database.start()
            while not current.feed(server):  # until its connections are opened again
                tries += 1
            current.check(server, in_flight=tries)
        server.stop()
        database.close()
    return tally


def disk_full(bundle: Path, model: Model, times: int, store: str) -> Tally:
    """No file of the server may grow while it reads a turn."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        server = Process(bundle, "--store", store.format(folder))
        current = Round(model, tally)
        current.feed(server)
        process, limit = server.process.pid, resource.RLIMIT_FSIZE
        _, hard = resource.prlimit(process, limit)
        for _ in range(times):
            resource.prlimit(process, limit, (1, hard))
            if current.feed(server):
                tally.unclear.append("a turn was acknowledged without room for it")
            resource.prlimit(process, limit, (hard, hard))
            current.check(server)
            current.feed(server)
        server.stop()
    return tally


def vanished(bundle: Path, model: Model, times: int) -> Tally:
    """A client that goes away in its answer; then a turn of the same memory."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        server = Process(bundle, "--store", folder, "--turns", "1")
        current = Round(model, tally)
        for _ in range(times):
            current.feed(server)
            with long_answer(server):
                pass
            current.check(server)
        server.stop()
    return tally


def unread(bundle: Path, model: Model, times: int) -> Tally:
    """Clients that read nothing of their answers and stay, while another memory goes on."""
    tally = Tally()
    clients: list[socket.socket] = []
    with tempfile.TemporaryDirectory() as folder:
        server = Process(bundle, "--store", folder)
        current = Round(model, tally)
        for number in range(times):
            clients.append(long_answer(server, f"other-{number}", 2000, reads=False))
            current.feed(server)
            current.check(server)
        for client in clients:
            client.close()
        server.stop()
    return tally


def two_writers(bundle: Path, model: Model, times: int) -> Tally:
    """Two servers on one store that feed one memory at once; each tries again until it is acknowledged."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        servers = [Process(bundle, "--store", f"sqlite:{folder}/memories.db") for _ in range(2)]
        current = Round(model, tally)
        done = [0, 0]

        def write(number: int) -> None:
            while not tally.answer(*servers[number].feed("diary", TEXT)):
                pass
            done[number] += 1

        for _ in range(times):
            threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            current.turns = sum(done)
            current.check(servers[0])
        for server in servers:
            server.stop()
    return tally


def clock_jumps(times: int) -> Tally:
    """A clock that jumps by days in both directions, between a write and the next one."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        clock = [time.time()]
        stores = (SQLiteStore(f"{folder}/memories.db", lambda: clock[0]), FolderStore(f"{folder}/x", lambda: clock[0]))
        for store in stores:
            key, version = Key("default", "memory", "diary"), None
            for number in range(times):
                version = store.put(key, str(number).encode(), version)
                tally.acknowledged += 1
                clock[0] += (-1) ** number * (number + 1) * 86_400.0
                store.expire()
                found = store.get(key)
                tally.lost += found is None or found.data != str(number).encode()
                tally.rounds += 1
            store.close()
    return tally


def main() -> int:
    """Every fault; 1 if one was not survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=100, help="rounds of each fault (default 100)")
    parser.add_argument("--only", help="the faults whose names have this in them")
    chosen = parser.parse_args()
    bundle, times = chosen.bundle, chosen.times
    model = titans_runtime.load(bundle, threads=1)
    faults: dict[str, Callable[[], Tally]] = {
        "kill -9 between turns": lambda: killed(bundle, model, times, inside=False),
        "kill -9 inside a turn": lambda: killed(bundle, model, times, inside=True),
        "kill -9 of Redis in a write": lambda: database_killed(bundle, model, times, redis_server),
        "kill -9 of PostgreSQL in a write": lambda: database_killed(bundle, model, times, postgresql_server),
        "disk full, SQLite": lambda: disk_full(bundle, model, times, "sqlite:{}/memories.db"),
        "disk full, folder": lambda: disk_full(bundle, model, times, "{}/files"),
        "a client that vanishes": lambda: vanished(bundle, model, times),
        "a client that reads nothing": lambda: unread(bundle, model, times),
        "two writers of one memory": lambda: two_writers(bundle, model, times),
        "a clock that jumps": lambda: clock_jumps(times),
    }
    found: dict[str, dict[str, object]] = {}
    for name, run in faults.items():
        if chosen.only and chosen.only not in name:
            continue
        started = time.perf_counter()
        try:
            tally = run()
        except MissingProgramError as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        seconds = time.perf_counter() - started
        print(
            f"{name}: {'survived' if tally.ok else 'FAILED'}, {tally.rounds} rounds, {tally.acknowledged} turns"
            f" acknowledged, {tally.refused} refused, {tally.lost} lost, {tally.wrong} wrong ({seconds:.0f} s)",
            *tally.unclear[:3], sep="\n  ", file=sys.stderr, flush=True,
        )  # fmt: skip
        found[name] = {"ok": tally.ok, **vars(tally)}
    print(json.dumps(found))
    return 0 if all(each["ok"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
