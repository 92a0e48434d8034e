"""Conversations over HTTP are written by the model's own chat template, and each message is read once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import Running
from titans_runtime import Model
from titans_runtime.arrays import Array
from titans_runtime.chat.template import ChatTemplate
from titans_runtime.stream.run import Run
from titans_runtime.stream.stream import Stream

TEMPLATE = """
{%- for m in messages %}
{%- if m.role == 'system' and not loop.first %}{{ raise_exception('the system speaks first') }}{% endif %}
{{- '<' ~ m.role ~ '>' ~ m.content ~ '</' ~ m.role ~ '>' }}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(autouse=True)
def template(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy talks."""
    monkeypatch.setitem(model.__dict__, "chat_template", ChatTemplate(TEMPLATE, {}))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams read in one piece: prompts, and every token of an answer by itself."""
    seen: list[str] = []
    begin = Stream.begin

    def begun(self: Stream, array: Array, *rest: Any) -> Run:
        if len(array) > 1:
            seen.append(bytes(map(int, array)).decode())
        return begin(self, array, *rest)

    monkeypatch.setattr(Stream, "begin", begun)
    return seen


def said(server: Running, messages: list[dict[str, str]], **more: object) -> str:
    status, body = server.ask(
        "POST", "/v1/chat/completions", {"model": "toy", "messages": messages, "max_tokens": 3, **more}
    )
    assert status == 200, body
    return str(json.loads(body)["choices"][0]["message"]["content"])


def test_what_is_sent_again_is_not_read_again(server: Running, read: list[str]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    answer = said(server, messages)
    assert read == ["<system>Be brief.</system><user>Who?</user><assistant>"]
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Again?"}]
    said(server, messages)
    assert read[1:] == ["</assistant><user>Again?</user><assistant>"]


def test_messages_that_the_template_does_not_take_are_the_clients_error(server: Running) -> None:
    messages = [{"role": "user", "content": "Who?"}, {"role": "system", "content": "Be brief."}]
    status, body = server.ask("POST", "/v1/chat/completions", {"model": "toy", "messages": messages})
    assert status == 400
    assert "the system speaks first" in json.loads(body)["error"]["message"]


def test_a_memory_takes_another_conversation_behind_its_last_answer(server: Running, read: list[str]) -> None:
    for system in ("Be brief.", "Be kind."):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "Who?"}]
        said(server, messages, memory="diary")
    assert read == [
        "<system>Be brief.</system><user>Who?</user><assistant>",
        "</assistant><system>Be kind.</system><user>Who?</user><assistant>",
    ]
