"""Requests as structs: OpenAI's fields that a Titans model can honour, and ours for memories.

Fields that nobody here knows are ignored, as OpenAI's own servers grow them; fields that would change the answer and
cannot be honoured are refused by name. Source: https://platform.openai.com/docs/api-reference. Knows shapes only.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from titans_serve.errors import bad_request

Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Role = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Stop = str | Annotated[list[str], msgspec.Meta(max_length=16)] | None


class Part(msgspec.Struct):
    """A piece of a message's content; only text can be taken."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: Role
    content: str | list[Part] | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """What all requests for an answer have in common.

    memory: the name of the memory that reads the request and keeps it; without one nothing is kept but for reuse.
    surprise: say how surprising every piece of a streamed chat was.
    """

    model: str = ""
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)] | None = None
    stream: bool = False
    surprise: bool = False
    memory: Name | None = None
    tools: list[Any] | None = None


class StreamOptions(msgspec.Struct):
    """Of a streamed answer."""

    include_usage: bool = False


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=2048)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stop = None
    n: int = 1
    logprobs: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str]
    max_tokens: Count | None = None
    stop: Stop = None
    n: int = 1
    best_of: int | None = None
    echo: bool = False
    suffix: str | None = None
    logprobs: int | None = None
    stream_options: StreamOptions | None = None


class ResponseRequest(Sampling, kw_only=True):
    """POST /v1/responses."""

    input: str | Annotated[list[Message], msgspec.Meta(min_length=1, max_length=2048)]
    instructions: str | None = None
    previous_response_id: Name | None = None
    max_output_tokens: Count | None = None
    store: bool | None = None


class CreateMemory(msgspec.Struct):
    """POST /v1/memories."""

    id: Name


class ForkMemory(msgspec.Struct):
    """POST /v1/memories/{id}/fork; the fork's name."""

    id: Name


class MarkMemory(msgspec.Struct):
    """POST /v1/memories/{id}/marks and /rewind."""

    mark: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class TellMemory(msgspec.Struct):
    """POST /v1/memories/{id}/feed: text that the memory reads without an answer."""

    text: Annotated[str, msgspec.Meta(min_length=1)]


T = TypeVar("T")


def decode(body: bytes, kind: type[T]) -> T:
    """Read a request. Raises `RefusalError` (400), which names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message, _, place = str(error).partition(" - at `")
        field = place.rstrip("`").removeprefix("$.") or None
        where = "" if field is None else f" at {field}"
        raise bad_request(f"the request cannot be read{where}: {message}; correct it", field) from error


def refuse_unknown_wishes(request: Sampling) -> None:
    """Refuse what would change the answer and cannot be done. Raises `RefusalError` (400)."""
    wishes = {
        "n": getattr(request, "n", 1) != 1,
        "best_of": getattr(request, "best_of", None) not in (None, 1),
        "tools": bool(request.tools),
        "logprobs": getattr(request, "logprobs", None) not in (None, False),
        "echo": getattr(request, "echo", False),
        "suffix": bool(getattr(request, "suffix", None)),
        "response_format": (getattr(request, "response_format", None) or {}).get("type", "text") != "text",
    }
    for name, wished in wishes.items():
        if wished:
            raise bad_request(f"this server does not support {name}; leave it out", name)


def text_of(message: Message, place: int) -> str:
    """The text of a message. Raises `RefusalError` (400) where it is something else."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type not in ("text", "input_text", "output_text"):
            raise bad_request(f"message {place} has a part of type {part.type!r}; send text", f"messages[{place}]")
    return "".join(part.text for part in message.content)
