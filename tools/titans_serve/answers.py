"""Answers in OpenAI's shapes: in one piece, and as server-sent events. Knows shapes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from titans_serve.service import Answer
from titans_serve.turns import Piece

_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class Shape:
    """How an answer is written.

    whole: the answer and its text as one document.
    begin, piece, end: the events of an answer as it comes.
    """

    whole: Callable[[Answer, str], dict[str, object]]
    begin: Callable[[Answer], Iterator[bytes]]
    piece: Callable[[Answer, Piece], Iterator[bytes]]
    end: Callable[[Answer, str], Iterator[bytes]]


def usage(answer: Answer) -> dict[str, object]:
    """Tokens of a chat or a completion; `cached_tokens` did not have to be read."""
    outcome = answer.outcome
    prompt = answer.reused + outcome.read
    return {
        "prompt_tokens": prompt,
        "completion_tokens": outcome.written,
        "total_tokens": prompt + outcome.written,
        "prompt_tokens_details": {"cached_tokens": answer.reused},
    }


def chat_shape(model: str, with_usage: bool, surprise: bool = False) -> Shape:
    """chat.completion and chat.completion.chunk."""

    def head(answer: Answer, kind: str) -> dict[str, object]:
        return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": answer.created, "model": model}

    def chunk(
        answer: Answer, delta: dict[str, object], finish: str | None = None, extra: dict[str, object] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event(head(answer, "chat.completion.chunk") | {"choices": [choice]} | (extra or {}))

    def whole(answer: Answer, text: str) -> dict[str, object]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[answer.outcome.reason],
        }  # fmt: skip
        return head(answer, "chat.completion") | {"choices": [choice], "usage": usage(answer)}

    def begin(answer: Answer) -> Iterator[bytes]:
        yield chunk(answer, {"role": "assistant", "content": ""})

    def piece(answer: Answer, piece: Piece) -> Iterator[bytes]:
        extra: dict[str, object] = {"surprise": piece.surprise} if surprise else {}
        yield chunk(answer, {"content": piece.text}, extra=extra)

    def end(answer: Answer, text: str) -> Iterator[bytes]:
        extra: dict[str, object] = {"prompt_surprise": answer.prompt_surprise()} if surprise else {}
        yield chunk(answer, {}, _FINISH[answer.outcome.reason], extra)
        if with_usage:
            yield _event(head(answer, "chat.completion.chunk") | {"choices": [], "usage": usage(answer)})
        yield _DONE

    return Shape(whole, begin, piece, end)


def completion_shape(model: str, with_usage: bool) -> Shape:
    """text_completion."""

    def document(answer: Answer, text: str, finish: str | None) -> dict[str, object]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {
            "id": f"cmpl-{answer.id}", "object": "text_completion", "created": answer.created, "model": model,
            "choices": [choice],
        }  # fmt: skip

    def whole(answer: Answer, text: str) -> dict[str, object]:
        return document(answer, text, _FINISH[answer.outcome.reason]) | {"usage": usage(answer)}

    def piece(answer: Answer, piece: Piece) -> Iterator[bytes]:
        yield _event(document(answer, piece.text, None))

    def end(answer: Answer, text: str) -> Iterator[bytes]:
        yield _event(document(answer, "", _FINISH[answer.outcome.reason]))
        if with_usage:
            yield _event(document(answer, "", None) | {"choices": [], "usage": usage(answer)})
        yield _DONE

    return Shape(whole, lambda answer: iter(()), piece, end)


def response_shape(model: str, previous: str | None) -> Shape:
    """response, and its events."""
    numbers: dict[str, int] = {}

    def document(answer: Answer, text: str | None) -> dict[str, object]:
        done = text is not None
        cut = done and answer.outcome.reason == "length"
        status = "in_progress" if not done else "incomplete" if cut else "completed"
        body: dict[str, object] = {
            "id": f"resp_{answer.id}", "object": "response", "created_at": answer.created, "status": status,
            "model": model, "previous_response_id": previous, "error": None, "instructions": None, "metadata": {},
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "parallel_tool_calls": False, "tool_choice": "none", "tools": [], "output": [], "usage": None,
        }  # fmt: skip
        if text is not None:
            outcome = answer.outcome
            read = answer.reused + outcome.read
            body["output"] = [item(answer, text, "incomplete" if cut else "completed")]
            body["usage"] = {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": answer.reused},
                "output_tokens": outcome.written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + outcome.written,
            }
        return body

    def item(answer: Answer, text: str | None, status: str) -> dict[str, object]:
        content = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {
            "id": f"msg_{answer.id}", "type": "message", "role": "assistant", "status": status, "content": content,
        }  # fmt: skip

    def event(answer: Answer, kind: str, **fields: object) -> bytes:
        number = numbers[answer.id] = numbers.get(answer.id, -1) + 1
        body = {"type": kind, "sequence_number": number, **fields}
        return f"event: {kind}\n".encode() + _event(body)

    def begin(answer: Answer) -> Iterator[bytes]:
        place = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield event(answer, "response.created", response=document(answer, None))
        yield event(answer, "response.in_progress", response=document(answer, None))
        yield event(answer, "response.output_item.added", output_index=0, item=item(answer, None, "in_progress"))
        yield event(answer, "response.content_part.added", **place, part=part)

    def piece(answer: Answer, piece: Piece) -> Iterator[bytes]:
        yield event(
            answer, "response.output_text.delta", item_id=f"msg_{answer.id}", output_index=0, content_index=0,
            delta=piece.text, logprobs=[],
        )  # fmt: skip

    def end(answer: Answer, text: str) -> Iterator[bytes]:
        place = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        cut = answer.outcome.reason == "length"
        yield event(answer, "response.output_text.done", **place, text=text, logprobs=[])
        yield event(answer, "response.content_part.done", **place, part=part)
        yield event(
            answer, "response.output_item.done", output_index=0,
            item=item(answer, text, "incomplete" if cut else "completed"),
        )  # fmt: skip
        kind = "response.incomplete" if cut else "response.completed"
        yield event(answer, kind, response=document(answer, text))

    return Shape(document, begin, piece, end)


def _event(body: object) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
