"""Requests that nobody should send: refused with a status below 500 and a message, and the server goes on."""

from __future__ import annotations

import json

import pytest

from tests.serve.conftest import Running

HUGE = 10**400  # a whole number in JSON that no float holds
ASKED = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
FIELDS = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "memory", "model", "tools", "response_format", "n")
VALUES = (HUGE, -1, "x\x1b[31m", "../x", "a\0b", [], {}, [[]], "\u202e")
BODIES = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "not UTF-8": b"\xff",
    "half a character": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "an infinite number": b'{"messages":[{"role":"user","content":"a"}],"temperature":1e400}',
    "no number": b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    "thousands of digits": b'{"messages":[{"role":"user","content":"a"}],"seed":' + b"9" * 5000 + b"}",
}
PATHS = ("%2e%2e%2fx", "%00", "a%ff", "a" * 5000, "%1b[31m")


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_refused(server: Running, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/memories"):
        status, said = server.ask("POST", path, raw=body)
        assert 400 <= status < 500
        assert json.loads(said)["error"]["message"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_any_value_never_breaks_the_server(server: Running, field: str) -> None:
    for value in VALUES:
        status, said = server.ask("POST", "/v1/chat/completions", {**ASKED, field: value})
        assert status < 500, (value, said)
    assert server.ask("POST", "/v1/chat/completions", ASKED)[0] == 200


@pytest.mark.parametrize("name", PATHS, ids=["up", "zero byte", "not UTF-8", "long", "escape"])
def test_a_name_that_is_not_plain_is_refused_everywhere(server: Running, name: str) -> None:
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("POST", "/marks"), ("PUT", "/state")):
        status, said = server.ask(method, f"/v1/memories/{name}{rest}", raw=b"{}")
        assert 400 <= status < 500, said
        assert b"\x1b" not in said
