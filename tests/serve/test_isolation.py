"""Two keys never meet, whatever is guessed, sent twice or smuggled. Other sites' pages do not reach a local server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import titans_serve.listen
from tests.serve.conftest import ALICE, BOB, Running, Start
from tests.serve.raw import connected, exchange, post, statuses
from titans_serve.keys import Keys
from titans_serve.settings import Settings

SAY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def cached(body: bytes) -> int:
    return int(json.loads(body)["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_known_beginning_is_its_keys_alone(server: Running) -> None:
    _, body = server.ask("POST", "/v1/chat/completions", SAY)
    text = json.loads(body)["choices"][0]["message"]["content"]
    said = [*SAY["messages"], {"role": "assistant", "content": text}, {"role": "user", "content": "and?"}]  # type: ignore[misc]
    again = SAY | {"messages": said}
    assert cached(server.ask("POST", "/v1/chat/completions", again, key=BOB)[1]) == 0
    assert cached(server.ask("POST", "/v1/chat/completions", again)[1]) > 0


def test_ids_that_are_guessed_lead_nowhere(server: Running) -> None:
    status, body = server.ask("POST", "/v1/responses", {"input": "x", "max_output_tokens": 16})
    assert status == 200
    response = json.loads(body)["id"]
    assert server.ask("POST", "/v1/memories/diary/feed", {"text": "abc"})[0] == 200
    assert server.ask("POST", "/v1/memories/diary/marks", {"mark": "m"})[0] == 201
    mark = server.service.store.names("alice", "mark")[0]
    for method, path, content in (
        ("POST", "/v1/responses", {"input": "y", "previous_response_id": response}),
        ("DELETE", f"/v1/responses/{response}", None),
        ("GET", "/v1/memories/diary/journal", None),
        ("POST", "/v1/memories/diary/rewind", {"mark": "m"}),
        ("GET", f"/v1/memories/{mark}", None),  # the name under which a mark is stored
        ("GET", f"/v1/memories/{response.removeprefix('resp_')}", None),
    ):
        assert server.ask(method, path, content, key=BOB)[0] == 404, path
    assert server.ask("GET", f"/v1/memories/{mark}")[0] == 404  # nor does its own key find it as a memory
    body = json.dumps(SAY | {"memory": "diary"}).encode()
    assert server.ask("POST", "/v1/chat/completions", raw=body, key=BOB)[0] == 200  # a memory of Bob's own
    assert json.loads(server.ask("GET", "/v1/memories/diary")[1])["position"] == 3


@pytest.mark.parametrize(
    "memory",
    ["../bob", "..%2fbob", "..", ".", "/etc/passwd", "a\\b", "\u2024\u2024/bob", "bob/memory/x", "x\n", "", "NUL"],
)
def test_a_name_never_leaves_its_namespace(start: Start, tmp_path: Path, memory: str) -> None:
    server = start(str(tmp_path / "folder"))
    status, body = server.ask("POST", "/v1/chat/completions", SAY | {"memory": memory})
    assert status == 400, body
    assert not list(tmp_path.rglob("*.value"))


@pytest.mark.parametrize(
    "head",
    [
        f"authorization: Bearer {BOB}\r\nauthorization: Bearer {ALICE}",
        f"authorization: Bearer {BOB},Bearer {ALICE}",
        f"authorization: Basic {ALICE}",
        f"authorization : Bearer {ALICE}",
        f"x: y\r\n authorization: Bearer {ALICE}",
        "authorization: Bearer",
        f"proxy-authorization: Bearer {ALICE}",
    ],
)
def test_a_key_is_given_once_and_plainly(server: Running, head: str) -> None:
    request = f"GET /v1/memories HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n".encode()
    assert statuses(exchange(server.url, [request]))[:1] in ([401], [400])


SMUGGLED = b"DELETE /v1/memories HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + ALICE.encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 0\r\ncontent-length: 4\r\n\r\n",
        b"content-length: +0\r\n\r\n",
        b"content-length: 0x0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n0;\n\r\n\r\n",
        b"content-length : 0\r\n\r\n",
    ],
)
def test_a_second_request_is_not_smuggled_in_a_first(server: Running, framing: bytes) -> None:
    """A proxy that reads the length otherwise would pass on what follows as if it were somebody else's."""
    assert server.ask("POST", "/v1/memories/diary/feed", {"text": "abc"})[0] == 200
    head = b"POST /v1/memories/x/feed HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + BOB.encode() + b"\r\n"
    answer = exchange(server.url, [head + framing + SMUGGLED])
    assert statuses(answer) in ([], [400]), answer
    assert server.ask("GET", "/v1/memories/diary")[0] == 200


def test_a_head_that_is_too_long_is_refused(server: Running) -> None:
    request = b"GET /v1/memories HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n"
    assert statuses(exchange(server.url, [request])) in ([400], [431], [])
    assert server.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mem", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT"])
def test_a_head_that_does_not_come_ends_the_connection(
    server: Running, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(titans_serve.listen, "_HEAD", 0.05)
    with connected(server.url) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass


def test_a_body_that_does_not_come_is_given_up(start: Start) -> None:
    server = start(settings=Settings(body_seconds=0.05))
    head = post("/v1/memories/diary/feed", {"text": "abc"})[:-4]
    with connected(server.url) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    assert server.ask("GET", "/v1/memories/diary")[0] == 404


def test_a_body_is_refused_as_soon_as_it_is_too_long(start: Start) -> None:
    """Also one whose length nobody has said."""
    server = start(settings=Settings(body_bytes=10_000))
    head = (
        f"POST /v1/memories/d/feed HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\ntransfer-encoding: chunked"
    )
    with connected(server.url) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        connection.sendall((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 3)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("host: localhost:8000", 200),
        ("host: 127.0.0.1", 200),
        ("host: [::1]:80", 200),
        ("host: localhost\r\norigin: http://localhost:8000", 200),
        ("host: memories.example.com", 403),  # a name that an attacker lets point to this machine
        ("host: localhost\r\norigin: https://example.com", 403),  # a form or a script of another site
        ("host: localhost\r\norigin: null", 403),
    ],
)
def test_a_server_without_keys_answers_to_this_machine_only(start: Start, headers: str, status: int) -> None:
    server = start(keys=Keys({}))
    request = f"GET /v1/memories HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n".encode()
    assert statuses(exchange(server.url, [request])) == [status]
