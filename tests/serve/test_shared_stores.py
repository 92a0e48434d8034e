"""Servers that share a store: any of them serves any user, and what one deletes the others forget."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import openai
import pytest

from studies.serving.databases import postgresql_server, redis_server
from studies.serving.process import Process, serving
from tests.serve.conftest import ALICE, BOB, Running, Start, database
from titans_runtime import Model
from titans_serve.settings import Settings
from titans_serve.stores import KINDS

SAY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def fed(server: Running, text: str, memory: str = "diary") -> None:
    status, body = server.ask("POST", f"/v1/memories/{memory}/feed", {"text": text})
    assert status == 200, body


@pytest.mark.parametrize("kind", [redis_server, postgresql_server])
def test_two_processes_serve_one_memory_in_turn_and_lose_no_update(
    kind: object, model: Model, bundle: Path, tmp_path: Path
) -> None:
    with (
        database(kind, tmp_path / "database") as shared,  # type: ignore[arg-type]
        serving(bundle, "--store", shared.url) as one,
        serving(bundle, "--store", shared.url) as two,
    ):
        session = model.session()
        for number, server in enumerate((one, two, two, one)):
            assert server.feed("diary", f"turn {number}, of some length")[0] == 200
            session.feed(model.encode(f"turn {number}, of some length"))
        assert one.ask("GET", "/v1/memories/diary/state")[1] == two.ask("GET", "/v1/memories/diary/state")[1]
        restored = model.restore_bytes(two.ask("GET", "/v1/memories/diary/state")[1])
        assert restored.feed([7]).tolist() == session.fork().feed([7]).tolist()

        def race(server: Process) -> None:
            for _ in range(5):
                while (status := server.feed("diary", "abc")[0]) != 200:
                    assert status == 409

        threads = [threading.Thread(target=race, args=(server,)) for server in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        position = json.loads(one.ask("GET", "/v1/memories/diary")[1])["position"]
        assert position == session.position + 2 * 5 * 3
        assert one.stop() == two.stop() == 0


def test_what_one_server_deletes_is_gone_from_all(start: Start) -> None:
    servers = [start(), start()]
    fed(servers[0], "abc")
    assert servers[0].ask("POST", "/v1/memories/diary/marks", {"mark": "m"})[0] == 201
    _, first = servers[0].ask("POST", "/v1/chat/completions", SAY)
    text = json.loads(first)["choices"][0]["message"]["content"]
    again = SAY | {"messages": [*SAY["messages"], {"role": "assistant", "content": text}, *SAY["messages"]]}  # type: ignore[misc]
    for server in servers:  # both have the memory and the conversation open now
        assert server.ask("GET", "/v1/memories/diary")[0] == 200
        _, body = server.ask("POST", "/v1/chat/completions", again)
        assert json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    status, body = servers[0].ask("DELETE", "/v1/memories")
    assert status == 200
    assert json.loads(body)["remaining"] == 0
    assert [servers[0].service.store.names("alice", kind) for kind in KINDS] == [[]] * len(KINDS)
    other = servers[1].service
    assert other.memories.resident > 0
    assert asyncio.run_coroutine_threadsafe(other.release(), servers[1].loop).result() > 0
    assert other.memories.resident == 0
    assert servers[1].ask("GET", "/v1/memories/diary")[0] == 404
    _, body = servers[1].ask("POST", "/v1/chat/completions", again)
    assert json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert servers[1].ask("GET", "/v1/memories", key=BOB)[0] == 200


def test_an_answer_under_way_leaves_nothing_behind_once_its_key_is_deleted(start: Start) -> None:
    server = start()
    stream = server.client(ALICE).responses.create(
        model="toy", input="x", max_output_tokens=600, temperature=0, stream=True
    )
    events = iter(stream)
    assert next(events).type == "response.created"
    assert server.ask("DELETE", "/v1/memories")[0] == 200
    with pytest.raises(openai.APIError, match="deleted during the answer"):
        list(events)
    assert [server.service.store.names("alice", kind) for kind in KINDS] == [[]] * len(KINDS)


def test_int8_at_rest_lets_all_servers_go_on_alike(start: Start, model: Model) -> None:
    servers = [start(settings=Settings(int8=True)), start(settings=Settings(int8=True))]
    for server in (servers[0], servers[1], servers[0]):
        fed(server, "a text that is longer than some chunks of the toy")
    states = [server.ask("GET", "/v1/memories/diary/state")[1] for server in servers]
    assert states[0] == states[1]
    rounded, exact = model.restore_bytes(states[0]), model.session()
    for _ in range(3):
        exact.feed(model.encode("a text that is longer than some chunks of the toy"))
    expected = exact.feed([7])
    assert 0 < abs(rounded.feed([7]) - expected).max() < 0.05 * abs(expected).max()
