"""Whatever fails, nothing that was acknowledged is lost, every error is a clear one, and a lane is soon free again."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from studies.serving.process import serving
from tests.serve.conftest import Running, Start
from tests.serve.raw import connected, post
from titans_runtime import Model, SamplingOptions
from titans_serve.connections import Events
from titans_serve.settings import Settings
from titans_serve.stores.folder import FolderStore
from titans_serve.stores.sqlite import SQLiteStore
from titans_serve.turns import CancelledTurnError, Prompt, Turn

SAY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
LONG = SAY | {"max_tokens": 30_000, "stream": True}


def position(server: Running, memory: str = "diary") -> int:
    return int(json.loads(server.ask("GET", f"/v1/memories/{memory}")[1])["position"])


@pytest.mark.parametrize("store", ["sqlite:{}/memories.db", "{}/folder"])
def test_a_server_that_is_killed_inside_a_turn_has_all_turns_before(bundle: Path, tmp_path: Path, store: str) -> None:
    acknowledged = 0
    for _ in range(2):
        with serving(bundle, "--store", store.format(tmp_path)) as server:
            found = server.ask("GET", "/v1/memories/diary")
            assert found[0] == (200 if acknowledged else 404)
            assert acknowledged == (json.loads(found[1])["position"] if acknowledged else 0)
            status, body = server.feed("diary", "some text")
            assert status == 200
            acknowledged = int(str(body["position"]))
            with connected(server.url) as connection:
                connection.sendall(post("/v1/chat/completions", LONG | {"memory": "diary"}))
                assert connection.recv(100)  # it answers
                server.kill()
    assert acknowledged == 18


def test_a_cancelled_turn_takes_no_second_step(model: Model) -> None:
    session = model.session()
    tokenizer = model.tokenizer
    assert tokenizer is not None
    turn = Turn(session, tokenizer, Prompt(model.encode("hello"), 100_000, SamplingOptions(temperature=0)))
    steps_after: list[int] = []
    done = threading.Event()
    session_feed = model.observe

    def seen(event: object) -> None:
        if turn._stopped.is_set() and not done.is_set():
            steps_after.append(1)

    session_feed(seen)

    async def leave() -> None:
        with ThreadPoolExecutor(1) as executor:
            pieces = turn.pieces(executor)
            for _ in range(3):
                await anext(pieces)
            turn.cancel()
            with pytest.raises(CancelledTurnError):
                async for _ in pieces:
                    pass

    asyncio.run(leave())
    done.set()
    assert len(steps_after) <= 1  # the one that was under way


def test_clients_that_leave_free_their_places_wherever_their_turns_are(start: Start) -> None:
    """In an answer, in a long prompt, and in the queue."""
    server = start(settings=Settings(turns=1, waiting=4))
    long_prompt = LONG | {"messages": [{"role": "user", "content": "x" * 200_000}]}
    for body in (LONG, long_prompt, LONG | {"stream": False}):
        with connected(server.url) as connection:
            connection.sendall(post("/v1/chat/completions", body))
            while server.service.metrics.running._value.get() == 0:
                pass
            with connected(server.url) as waiting:
                waiting.sendall(post("/v1/chat/completions", body))
                while server.service._waiting == 0:
                    pass
        assert server.ask("POST", "/v1/chat/completions", SAY)[0] == 200
    while server.service._waiting or server.service.metrics.running._value.get():
        pass


def test_a_client_that_reads_nothing_is_let_go() -> None:
    ended = []

    async def source() -> object:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            ended.append(True)

    async def never(message: object) -> None:
        await asyncio.Event().wait()

    async def receive() -> object:
        await asyncio.Event().wait()

    events = Events(b"data: x\n\n", source(), 0.02)  # type: ignore[arg-type]
    asyncio.run(events({"type": "http"}, receive, never))  # type: ignore[arg-type]
    assert ended == []  # it was never begun, and is closed


def test_a_turn_that_takes_too_long_is_ended_streamed_or_not(start: Start) -> None:
    server = start(settings=Settings(turn_seconds=0.2))
    status, body = server.ask("POST", "/v1/chat/completions", LONG | {"stream": False, "memory": "diary"})
    assert (status, json.loads(body)["error"]["code"]) == (504, "timeout")
    status, body = server.ask("POST", "/v1/chat/completions", LONG | {"memory": "diary"})
    assert b'"code":"timeout"' in body
    assert server.ask("GET", "/v1/memories/diary")[0] == 404


def test_a_full_disk_refuses_a_turn_and_leaves_the_memory(start: Start, tmp_path: Path) -> None:
    for address in (f"sqlite:{tmp_path / 'full.db'}", str(tmp_path / "folder")):
        server = start(address)
        assert server.ask("POST", "/v1/memories/diary/feed", {"text": "abc"})[0] == 200
        before = server.ask("GET", "/v1/memories/diary/state")[1]
        full = files_may_not_grow(tmp_path)
        with full:
            status, body = server.ask("POST", "/v1/memories/diary/feed", {"text": "def"})
            assert status == 503, body
            assert json.loads(body)["error"]["code"] == "store_failed"
        assert server.ask("GET", "/v1/memories/diary/state")[1] == before
        status, body = server.ask("POST", "/v1/memories/diary/feed", {"text": "def"})
        assert (status, json.loads(body)["position"]) == (200, 6)


class files_may_not_grow:  # noqa: N801  (reads as what it does)
    """As on a full disk: no file of this process may be longer than a byte, which fails with an error of the system."""

    def __init__(self, folder: Path) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
@pytest.mark.parametrize("kind", [SQLiteStore, FolderStore])
def test_a_clock_that_jumps_loses_no_memory(start: Start, tmp_path: Path, jump: float, kind: type) -> None:
    server = start(f"sqlite:{tmp_path / 'x.db'}" if kind is SQLiteStore else str(tmp_path / "x"))
    store = server.service.store
    assert isinstance(store, SQLiteStore | FolderStore)
    assert server.ask("POST", "/v1/memories/diary/feed", {"text": "abc"})[0] == 200
    _, first = server.ask("POST", "/v1/chat/completions", SAY)
    now = store._now
    store._now = lambda: now() + jump
    asyncio.run_coroutine_threadsafe(server.service.release(), server.loop).result()
    assert position(server) == 3
    _, again = server.ask("POST", "/v1/chat/completions", SAY)
    assert json.loads(again)["choices"] == json.loads(first)["choices"]
    assert server.ask("POST", "/v1/memories/diary/feed", {"text": "def"})[0] == 200
    store._now = now
    assert position(server) == 6
