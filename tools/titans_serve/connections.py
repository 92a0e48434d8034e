"""What connections are guarded from: clients that leave or read nothing, two lengths, and pages of other sites.

Knows Starlette's requests and responses. Does not know what they are about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from titans_serve.errors import RefusalError, bad_request
from titans_serve.listen import is_loopback
from titans_serve.turns import CancelledTurnError

T = TypeVar("T")
_LOOK = 0.05  # seconds between two looks whether the client is still there
_NO_CACHE = {"cache-control": "no-store", "x-accel-buffering": "no"}


class OneLength:
    """Refuses requests with two lengths, which a proxy in front may have read as two requests (RFC 9112, 6.3)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = [name for name, _ in scope.get("headers", ())]
        if b"transfer-encoding" in names and b"content-length" in names:
            refusal = bad_request("the request has both a length and a transfer encoding; send one of them")
            body = msgspec.json.encode(refusal.body())
            closing = {"connection": "close"}
            await Response(body, refusal.status, closing, "application/json")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Events(StreamingResponse):
    """Server-sent events whose source is closed however the connection ends."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes], patience: float) -> None:
        super().__init__(_joined(first, rest), media_type="text/event-stream", headers=_NO_CACHE)
        self._source, self._patience = rest, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def impatient(message: Message) -> None:
            """A client that reads nothing is treated as one that has gone."""
            async with asyncio.timeout(self._patience):
                await send(message)

        try:
            await super().__call__(scope, receive, impatient)
        except* (ClientDisconnect, TimeoutError, CancelledTurnError):
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What some work gives, which ends when nobody waits for it any more. Raises `ClientDisconnect` then."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_LOOK)

    working, watching = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([working])


def check_local(request: Request) -> None:
    """Refuse what a page of another site asks of a server without keys, under whatever name it reaches it."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    origin = request.headers.get("origin")
    if not is_loopback(host) or (origin is not None and not is_loopback(urlsplit(origin).hostname or "")):
        raise RefusalError(
            403, "permission_error", "a server without API keys answers to localhost only; start it with --keys FILE",
            code="not_local",
        )  # fmt: skip
