"""A memory is its user's: it outlives servers, is changed by whole turns only, and is gone when it is deleted."""

from __future__ import annotations

import gc
import json
import socket
import threading
from pathlib import Path

import pytest

from tests.runtime.toy import Toy, write_toy
from tests.serve.conftest import BOB, Running, Start
from tests.serve.raw import connected, post
from titans_runtime import Model, load
from titans_serve.settings import Settings

SAY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def told(server: Running, text: str, memory: str = "diary") -> dict[str, object]:
    status, body = server.ask("POST", f"/v1/memories/{memory}/feed", {"text": text})
    assert status == 200, body
    return dict(json.loads(body))


def about(server: Running, memory: str = "diary") -> dict[str, object]:
    status, body = server.ask("GET", f"/v1/memories/{memory}")
    assert status == 200, body
    return dict(json.loads(body))


def test_a_memory_reads_every_turn_and_only_what_is_new_of_it(server: Running, model: Model) -> None:
    client, said = server.client(), [{"role": "user", "content": "one"}]
    first = client.chat.completions.create(
        model="toy", messages=said, max_tokens=4, temperature=0, extra_body={"memory": "diary"}
    )
    said += [{"role": "assistant", "content": first.choices[0].message.content or ""}]
    said += [{"role": "user", "content": "two"}]
    second = client.chat.completions.create(
        model="toy", messages=said, max_tokens=4, temperature=0, extra_body={"memory": "diary"}
    )
    session = model.session()
    assert first.choices[0].message.content == "".join(session.generate("user: one\nassistant:", 4, temperature=0))
    assert second.choices[0].message.content == "".join(session.generate("\nuser: two\nassistant:", 4, temperature=0))
    assert about(server)["position"] == session.position


def test_a_memory_goes_on_after_a_restart_and_on_another_server(start: Start, model: Model) -> None:
    server = start()
    told(server, "abc")
    beside = start()  # a second server on the same store
    told(beside, "def")
    server.stop()
    beside.stop()
    status, state = start().ask("GET", "/v1/memories/diary/state")
    assert status == 200
    session = model.session()
    session.feed(model.encode("abc"))
    session.feed(model.encode("def"))
    assert model.restore_bytes(state).position == 6
    assert model.restore_bytes(state).feed([7]).tolist() == session.feed([7]).tolist()


def test_two_servers_never_overwrite_each_other(start: Start) -> None:
    servers = [start(), start()]
    told(servers[0], "a")
    refused = []

    def tell(server: Running) -> None:
        for _ in range(10):
            while server.ask("POST", "/v1/memories/diary/feed", {"text": "bc"})[0] == 409:
                refused.append(server)

    threads = [threading.Thread(target=tell, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert about(servers[0])["position"] == about(servers[1])["position"] == 1 + 2 * 20


def test_forks_and_marks_stand_where_they_were_made(server: Running) -> None:
    told(server, "abc")
    assert server.ask("POST", "/v1/memories/diary/marks", {"mark": "before"})[0] == 201
    assert server.ask("POST", "/v1/memories/diary/fork", {"id": "other"})[0] == 201
    told(server, "def")
    assert about(server)["marks"] == ["before"]
    assert about(server, "other")["position"] == 3
    assert server.ask("POST", "/v1/memories/diary/rewind", {"mark": "before"})[0] == 200
    assert about(server)["position"] == 3
    assert server.ask("POST", "/v1/memories/diary/rewind", {"mark": "never"})[0] == 404
    assert server.ask("POST", "/v1/memories/diary/fork", {"id": "other"})[0] == 409
    assert server.ask("POST", "/v1/memories", {"id": "diary"})[0] == 409


def test_a_memory_is_exported_and_imported_bit_for_bit(server: Running) -> None:
    told(server, "a long text, longer than a chunk of the toy")
    _, state = server.ask("GET", "/v1/memories/diary/state")
    assert server.ask("PUT", "/v1/memories/copy/state", raw=state)[0] == 200
    assert server.ask("GET", "/v1/memories/copy/state")[1] == state
    status, body = server.ask("PUT", "/v1/memories/copy/state", raw=state[:-1])
    assert status == 422
    assert server.ask("GET", "/v1/memories/copy/state")[1] == state
    assert b"not_a_state" in body


def test_a_deleted_memory_is_in_no_file(server: Running, tmp_path: Path) -> None:
    told(server, "abc")
    server.ask("POST", "/v1/memories/diary/marks", {"mark": "m"})
    _, state = server.ask("GET", "/v1/memories/diary/state")
    tensor = state[-64:]
    assert any(tensor in file.read_bytes() for file in tmp_path.iterdir())
    assert server.ask("DELETE", "/v1/memories/diary")[0] == 200
    assert not any(tensor in file.read_bytes() for file in tmp_path.iterdir())
    assert server.ask("GET", "/v1/memories/diary")[0] == 404
    assert server.ask("DELETE", "/v1/memories/diary")[0] == 404


def test_a_key_deletes_everything_of_its_own_and_nothing_else(server: Running) -> None:
    for key in ("diary", "other"):
        told(server, "abc", key)
    server.ask("POST", "/v1/chat/completions", SAY)
    server.ask("POST", "/v1/memories/diary/feed", {"text": "bob's"}, key=BOB)
    status, body = server.ask("DELETE", "/v1/memories")
    assert status == 200
    assert json.loads(body)["deleted"] == 3  # two memories and a conversation that was kept for reuse
    assert json.loads(server.ask("GET", "/v1/memories")[1])["data"] == []
    assert json.loads(server.ask("GET", "/v1/memories", key=BOB)[1])["data"] == [{"id": "diary", "object": "memory"}]


@pytest.mark.parametrize("name", ["..", "a/b", "%2e%2e%2fetc", "-x", "a" * 200, "con", "a%00b"])
def test_a_name_that_is_a_path_is_refused(server: Running, name: str) -> None:
    status, _ = server.ask("POST", f"/v1/memories/{name}/feed", {"text": "abc"})
    assert status in (400, 404, 405)
    assert json.loads(server.ask("GET", "/v1/memories")[1])["data"] == []


def test_another_key_sees_nothing_of_a_memory(server: Running) -> None:
    told(server, "abc")
    for method, path, body in (
        ("GET", "/v1/memories/diary", None),
        ("GET", "/v1/memories/diary/state", None),
        ("DELETE", "/v1/memories/diary", None),
        ("POST", "/v1/memories/diary/fork", {"id": "mine"}),
        ("POST", "/v1/memories/diary/marks", {"mark": "mine"}),
    ):
        assert server.ask(method, path, body, key=BOB)[0] == 404
    assert about(server)["position"] == 3


def test_history_that_is_sent_again_is_not_read_again(start: Start, tmp_path: Path) -> None:
    """Forty turns, each with the whole history, also with a restart and with a branch from the middle."""
    server = start()
    forgetful = start(f"sqlite:{tmp_path / 'other.db'}", Settings(prefixes=0, prefix_seconds=0.0))
    said: list[dict[str, str]] = []
    read, read_without = 0, 0

    def answer(asked: Running) -> tuple[str, int]:
        status, body = asked.ask("POST", "/v1/chat/completions", SAY | {"messages": said, "max_tokens": 32})
        assert status == 200, body
        found = json.loads(body)
        cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"] - cached

    for turn in range(40):
        said.append({"role": "user", "content": f"message {turn}, which says a little more than nothing"})
        if turn == 20:
            server.stop()
            server = start()
        text, count = answer(server)
        expected, count_without = answer(forgetful)
        assert text == expected
        read, read_without = read + count, read_without + count_without
        said.append({"role": "assistant", "content": text})
    # each turn's own tokens once, against half the history on average
    assert read * 20 <= read_without, (read, read_without)
    said[20:] = [{"role": "user", "content": "something else"}]
    assert answer(server)[1] < 40


def test_a_client_that_leaves_frees_its_place_and_changes_nothing(start: Start) -> None:
    server = start(settings=Settings(turns=1, waiting=4))
    told(server, "abc")
    body = json.dumps(SAY | {"max_tokens": 30_000, "stream": True, "memory": "diary"}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-of-alice-0123456789\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        connection.recv(200)  # it has begun
    assert told(server, "def")["position"] == 6  # waits for the place, which is free soon


def test_an_answer_that_nobody_reads_keeps_nobody_from_feeding(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start(settings=Settings(turns=1))
    with connected(server.url) as connection:
        connection.sendall(post("/v1/chat/completions", SAY | {"stream": True, "max_tokens": 32_000}))
        connection.recv(200)  # it has begun, and holds the one place for answers
        assert told(server, "abc")["position"] == 3
        assert server.service.metrics.running._value.get() == 1
    server.stop()
    gc.collect()
    assert "never retrieved" not in caplog.text  # asyncio's complaint about an error that nobody has looked at


def test_bodies_are_bounded(start: Start) -> None:
    server = start(settings=Settings(body_bytes=1000))
    assert server.ask("POST", "/v1/memories/diary/feed", {"text": "x" * 2000})[0] == 413
    assert server.ask("POST", "/v1/chat/completions", raw=b"{")[0] == 400
    assert server.ask("POST", "/v1/chat/completions", raw=b"\xff")[0] == 400
    assert server.ask("POST", "/v1/chat/completions", raw=b"[" * 900)[0] == 400


def test_health_metrics_and_the_page_need_no_key(server: Running) -> None:
    server.ask("POST", "/v1/chat/completions", SAY)
    assert server.ask("GET", "/health", key="x")[0] == 200
    _, page = server.ask("GET", "/metrics", key="x")
    assert b'titans_tokens_total{kind="written"} 8.0' in page
    assert b"<title>A conversation with a memory</title>" in server.ask("GET", "/", key="x")[1]
    document = json.loads(server.ask("GET", "/openapi.json", key="x")[1])
    assert "/v1/chat/completions" in document["paths"]
    assert server.ask("GET", "/v1/nothing")[0] == 404
    assert server.ask("PATCH", "/v1/memories")[0] == 405


def test_a_streamed_chat_says_how_surprising_its_words_were(server: Running) -> None:
    _, body = server.ask("POST", "/v1/chat/completions", SAY | {"stream": True, "surprise": True})
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    read = next(event["prompt_surprise"] for event in events if "prompt_surprise" in event)
    assert "".join(text for text, _ in read) == "user: hello\nassistant:"
    assert all(surprise >= 0 for _, surprise in read)
    assert all(event["surprise"] >= 0 for event in events if event["choices"][0]["delta"].get("content"))


def test_a_memory_goes_on_with_another_model_only_where_that_is_wanted(
    start: Start, bundle: Path, tmp_path: Path
) -> None:
    """A successor with another head: refused, adopted, or read again from the journal, which every turn has grown."""
    old = start(settings=Settings(journal=True))
    said = [{"role": "user", "content": "hello"}]
    for _ in range(2):
        status, body = old.ask(
            "POST", "/v1/chat/completions", SAY | {"memory": "diary", "messages": said, "stop": list("aeiou")}
        )
        assert status == 200, body
        said += [json.loads(body)["choices"][0]["message"], {"role": "user", "content": "go on"}]
    told(old, "abc")
    assert old.ask("POST", "/v1/memories/diary/marks", {"mark": "m"})[0] == 201
    told(old, "def")
    assert old.ask("POST", "/v1/memories/diary/rewind", {"mark": "m"})[0] == 200
    ids = json.loads(old.ask("GET", "/v1/memories/diary/journal")[1])["ids"]
    _, state = old.ask("GET", "/v1/memories/diary/state")
    assert old.ask("PUT", "/v1/memories/copy/state", raw=state)[0] == 200
    assert old.ask("GET", "/v1/memories/copy/journal")[0] == 404
    old.stop()

    model = load(write_toy(tmp_path / "successor.titans", Toy()), threads=1)
    replayed = model.session()
    replayed.feed(ids)
    expected = {"adopt": model.adopt_bytes(state).to_bytes(), "replay": replayed.to_bytes()}
    for policy, data in expected.items():
        server = start(settings=Settings(other_model=policy), other=model)  # type: ignore[arg-type]
        found = server.ask("GET", "/v1/memories/diary/state")[1]
        restored, wanted = (model.restore_bytes(each) for each in (found, data))
        assert restored.feed([7]).tolist() == pytest.approx(wanted.feed([7]).tolist(), rel=1e-5)
    assert b"no journal" in server.ask("GET", "/v1/memories/copy")[1]
    status, body = start(other=model).ask("GET", "/v1/memories/diary")
    assert status == 503
    assert b"another model" in body
