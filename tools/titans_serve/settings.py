"""How a server is run, with the reason for every default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Limits and sizes.

    lanes: streams that one call of the step graph serves.
    turns: turns that generate at the same time; each has a thread.
    waiting: turns that may wait for a place; one more is answered with 429.
    resident: memories kept open; the others are read from the store when they are used.
    prefixes: conversations without a memory whose stream is kept open for reuse.
    prefix_seconds: how long such a stream is found in the store.
    response_seconds: how long `previous_response_id` finds a response.
    body_bytes: the longest request.
    body_seconds: how long a request may take to arrive.
    turn_seconds: how long a turn may take.
    unread_seconds: how long a client may leave a piece of an answer unread before it counts as gone.
    default_tokens, most_tokens: tokens of an answer, if the client does not say, and at most.
    int8: store memories with eight bits a number.
    journal: keep the ids of all that new memories read and write, for a model that is to read them again.
    other_model: what becomes of a memory that another model has saved.
    """

    lanes: int = 16
    turns: int = 64
    waiting: int = 256
    resident: int = 256
    prefixes: int = 256
    prefix_seconds: float = 3600.0
    response_seconds: float = 30 * 86400.0  # as long as OpenAI keeps responses
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    turn_seconds: float = 600.0
    unread_seconds: float = 30.0
    default_tokens: int = 256
    most_tokens: int = 32_768
    int8: bool = False
    journal: bool = False
    other_model: Literal["refuse", "adopt", "replay"] = "refuse"
