"""What a client is answered when something is wrong, in the shape that OpenAI's clients read.

Knows which of our errors is which HTTP status. Does not know HTTP itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from titans_runtime import (
    ExecutionError,
    InputError,
    NonFiniteError,
    SessionPoisonedError,
    StateError,
    TitansError,
)
from titans_serve.stores import ConflictError


@dataclass
class RefusalError(Exception):
    """A request that is not carried out.

    status: the HTTP status.
    kind: `error.type` of the answer.
    message: what was expected, what was found, what to do.
    param: the field of the request, if it is one.
    code: a word for programs.
    retry_after: seconds after which it is worth another try.
    """

    status: int
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def body(self) -> dict[str, object]:
        """The answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None) -> RefusalError:
    """The request cannot be taken as it is."""
    return RefusalError(400, "invalid_request_error", message, param)


def not_found(what: str, name: str) -> RefusalError:
    """There is no such thing in this key's namespace."""
    return RefusalError(
        404, "invalid_request_error", f"there is no {what} {name!r}; list what exists, or create it", code="not_found"
    )


def busy(message: str, retry_after: int = 1) -> RefusalError:
    """The server has enough to do."""
    return RefusalError(429, "rate_limit_error", message, code="too_many_requests", retry_after=retry_after)


def from_runtime(error: TitansError) -> RefusalError:
    """What an error of the runtime or of a store means to a client."""
    message = str(error)
    if isinstance(error, ConflictError):
        return RefusalError(409, "conflict_error", message, code="conflict", retry_after=1)
    if isinstance(error, NonFiniteError | SessionPoisonedError):
        return RefusalError(
            422, "memory_error", f"{message}; the memory is as it was before this request", code="diverged"
        )
    if isinstance(error, InputError):
        return bad_request(message)
    if isinstance(error, StateError):
        return RefusalError(503, "server_error", message, code="store_failed", retry_after=5)
    if isinstance(error, ExecutionError):
        return RefusalError(500, "server_error", message, code="execution_failed")
    return RefusalError(500, "server_error", message)
