"""OpenAI's own client, unmodified, is answered as by OpenAI, and what it cannot have is refused in its own errors."""

from __future__ import annotations

import openai
import pytest

from tests.serve.conftest import ALICE, BOB, Running, Start
from titans_runtime import Model

HELLO = [{"role": "user", "content": "hello"}]


def test_a_chat_is_answered_as_a_session_would(server: Running, model: Model) -> None:
    answer = server.client().chat.completions.create(model="toy", messages=HELLO, max_tokens=12, temperature=0)
    alone = "".join(model.session().generate("user: hello\nassistant:", 12, temperature=0))
    assert answer.choices[0].message.content == alone
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len("user: hello\nassistant:"), 12)


def test_a_streamed_chat_is_the_same_text_in_pieces(server: Running) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="toy", messages=HELLO, max_tokens=12, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="toy", messages=HELLO, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_a_completion_goes_on_from_its_prompt(server: Running, model: Model) -> None:
    answer = server.client().completions.create(model="toy", prompt="def main():", max_tokens=8, temperature=0)
    assert answer.choices[0].text == "".join(model.session().generate("def main():", 8, temperature=0))


def test_a_seed_makes_an_answer_repeatable(server: Running) -> None:
    client = server.client()
    texts = {
        client.completions.create(model="toy", prompt="x", max_tokens=16, seed=5).choices[0].text for _ in range(3)
    }
    assert len(texts) == 1


def test_responses_go_on_from_each_other_and_branch(server: Running, model: Model) -> None:
    client = server.client()
    first = client.responses.create(model="toy", input="one", max_output_tokens=16, temperature=0)
    branches = [
        client.responses.create(
            model="toy", input=text, previous_response_id=first.id, max_output_tokens=16, temperature=0
        )
        for text in ("two", "three", "two")
    ]
    session = model.session()
    expected = "".join(session.generate("user: one\nassistant:", 16, temperature=0))
    assert first.output_text == expected
    expected = "".join(session.generate("\nuser: two\nassistant:", 16, temperature=0))
    assert [branch.output_text for branch in (branches[0], branches[2])] == [expected, expected]
    assert branches[1].previous_response_id == first.id


def test_a_streamed_response_ends_with_the_whole_document(server: Running) -> None:
    events = list(
        server.client().responses.create(model="toy", input="hi", max_output_tokens=16, temperature=0, stream=True)
    )
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"  # the toy knows no end
    assert events[-1].response.output_text == deltas


def test_models_are_listed(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"


@pytest.mark.parametrize(
    ("wish", "error", "word"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "image_url"),
        ({"extra_body": {"memory": "../etc"}}, openai.BadRequestError, "memory"),
        ({"stop": "\u2603" * 3000}, openai.BadRequestError, "stop"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    server: Running, wish: dict[str, object], error: type[Exception], word: str
) -> None:
    request: dict[str, object] = {"model": "toy", "messages": HELLO, "max_tokens": 4} | wish
    if word == "stop":  # longer than a request may be
        server.service.settings = type(server.service.settings)(body_bytes=1000)
        error = openai.APIStatusError
        word = "longer"
    with pytest.raises(error, match=word):
        server.client().chat.completions.create(**request)  # type: ignore[call-overload]


def test_a_wrong_key_is_refused_and_a_missing_response_not_found(server: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        server.client("key-of-mallory-0123456789").models.list()
    with pytest.raises(openai.NotFoundError):
        server.client().responses.create(model="toy", input="x", previous_response_id="resp_unknown")


def test_another_key_does_not_find_a_response(server: Running) -> None:
    first = server.client(ALICE).responses.create(model="toy", input="one", max_output_tokens=16)
    with pytest.raises(openai.NotFoundError):
        server.client(BOB).responses.create(model="toy", input="x", previous_response_id=first.id)


def test_more_turns_than_there_are_places_are_told_to_come_back(start: Start) -> None:
    from titans_serve.settings import Settings

    server = start(settings=Settings(turns=1, waiting=0))
    stream = server.client().completions.create(model="toy", prompt="x", max_tokens=20_000, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as refused:
        server.client().completions.create(model="toy", prompt="y", max_tokens=1)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    stream.close()
