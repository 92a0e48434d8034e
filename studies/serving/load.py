"""Many users at once through the server, beside the batch engine alone, in one run.

    python -m studies.serving.load MODEL.titans --users 64 --minutes 10

Each user has a memory and sends one message after the other; every answer is streamed and as long as the model lets it
be. The batch engine alone does the same work with the same lanes and without HTTP, stores or text. Both take turns, so
that what else the machine does meets both. Every answer is compared with that of a session that read the same alone.
The last line is JSON.

Knows the clients and the figures. Does not know how the server works.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import titans_runtime
from studies.serving.process import Process
from titans_runtime import Model

LANES = 16  # of both


@dataclass
class Measured:
    """What came of one part of the run.

    first, following: seconds to the first piece of an answer, and between two pieces.
    tokens: generated.
    seconds: of the wall, while all users were busy.
    cpu: processor seconds of the process that ran the model.
    answers: by user, in order.
    """

    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    answers: dict[int, list[str]] = field(default_factory=dict)


def message(user: int, turn: int) -> str:
    """What a user says: different for each."""
    return f"message {turn} of user {user}, who has something to say"


async def one_user(port: int, user: int, turn: int, tokens: int, measured: Measured) -> None:
    """One streamed answer over a connection of its own."""
    body = {
        "memory": f"user-{user}", "messages": [{"role": "user", "content": message(user, turn)}], "max_tokens": tokens,
        "temperature": 0, "stream": True,
    }  # fmt: skip
    data = json.dumps(body).encode()
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    text, before, finish = "", started, None
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        choice = event["choices"][0]
        finish = choice["finish_reason"] or finish
        piece = choice["delta"].get("content")
        if piece:
            now = time.perf_counter()
            (measured.following if text else measured.first).append(now - before)
            before, text = now, text + piece
    writer.close()
    if finish is None:
        raise RuntimeError("an answer was cut off")
    measured.answers.setdefault(user, []).append(text)
    measured.tokens += tokens


async def users_at_once(port: int, users: int, turn: int, tokens: int, measured: Measured) -> None:
    """Every user, one turn."""
    await asyncio.gather(*(one_user(port, user, turn, tokens, measured) for user in range(users)))


def through_server(server: Process, users: int, turns: Sequence[int], tokens: int, measured: Measured) -> None:
    """Some turns of all users."""
    started, spent = time.perf_counter(), server.cpu_seconds()
    for turn in turns:
        asyncio.run(users_at_once(server.port, users, turn, tokens, measured))
    measured.seconds += time.perf_counter() - started
    measured.cpu += server.cpu_seconds() - spent


class Engine:
    """The batch engine alone: the same tokens, on as many threads as there are users."""

    def __init__(self, model: Model, users: int) -> None:
        self.model, self.batch = model, model.batch(lanes=LANES)
        self.sessions = [self.batch.session() for _ in range(users)]

    def run(self, turns: Sequence[int], tokens: int, measured: Measured) -> None:
        """Some turns of all users."""
        started, spent = time.perf_counter(), time.process_time()
        for turn in turns:
            threads = [
                threading.Thread(target=self._turn, args=(user, turn, tokens)) for user in range(len(self.sessions))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            measured.tokens += tokens * len(self.sessions)
        measured.seconds += time.perf_counter() - started
        measured.cpu += time.process_time() - spent

    def _turn(self, user: int, turn: int, tokens: int) -> None:
        prompt = self.model.encode(f"user: {message(user, turn)}\nassistant:")
        for _ in self.sessions[user].generate_tokens(prompt, tokens, titans_runtime.SamplingOptions(temperature=0)):
            pass


def differing(model: Model, answers: dict[int, list[str]], tokens: int, users: Sequence[int]) -> int:
    """How many answers are not those of a session alone."""
    wrong = 0
    for user in users:
        session = model.session()
        for turn, text in enumerate(answers[user]):
            alone = "".join(
                session.generate(f"user: {message(user, turn)}\nassistant:", tokens, temperature=0, ignore_eos=True)
            )
            wrong += alone != text
    return wrong


def main() -> int:
    """The run and its figures; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load through the server (default 10)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default 32)")
    parser.add_argument("--check", type=int, default=64, help="users whose answers are compared (default 64)")
    chosen = parser.parse_args()
    model = titans_runtime.load(chosen.bundle)
    engine, served, alone = Engine(model, chosen.users), Measured(), Measured()
    rss: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        server = Process(chosen.bundle, "--store", f"sqlite:{folder}/memories.db", "--lanes", str(LANES), threads=None)
        warm, turn = Measured(), 0
        through_server(server, chosen.users, [turn], chosen.tokens, warm)
        engine.run([turn], chosen.tokens, Measured())
        served.answers = warm.answers
        while served.seconds < 60 * chosen.minutes:
            turn += 1
            through_server(server, chosen.users, [turn], chosen.tokens, served)
            engine.run([turn], chosen.tokens, alone)
            rss.append(server.resident_bytes())
            if turn % 10 == 0:
                print(f"{served.seconds:.0f} s, {turn} turns, {rss[-1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
        server.stop()
    wrong = differing(model, served.answers, chosen.tokens, range(min(chosen.check, chosen.users)))
    settled = rss[len(rss) // 5 :]
    report = {
        "users": chosen.users, "turns": turn, "answers": sum(map(len, served.answers.values())), "wrong": wrong,
        "server_seconds": served.seconds, "server_tokens_per_second": served.tokens / served.seconds,
        "engine_tokens_per_second": alone.tokens / alone.seconds,
        "throughput_of_engine": (served.tokens / served.seconds) / (alone.tokens / alone.seconds),
        "server_cpu_per_token_ms": 1000 * served.cpu / served.tokens,
        "engine_cpu_per_token_ms": 1000 * alone.cpu / alone.tokens,
        "first_token_ms": percentiles(served.first), "next_token_ms": percentiles(served.following),
        "rss_mib": {"after_warm_up": settled[0] / 2**20, "at_the_end": settled[-1] / 2**20, "most": max(rss) / 2**20},
    }  # fmt: skip
    print(json.dumps(report))
    return int(wrong > 0)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": 1000 * cuts[49], "p95": 1000 * cuts[94], "p99": 1000 * cuts[98]}


if __name__ == "__main__":
    sys.exit(main())
