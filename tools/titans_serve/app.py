"""The HTTP side: routes, keys, limits, errors, and answers as they come.

Knows Starlette and the shapes of OpenAI's answers. What is done is `service`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from titans_runtime import TitansError
from titans_runtime.stream.journal import unpacked, write_journal
from titans_serve import wire
from titans_serve.answers import Shape, chat_shape, completion_shape, response_shape
from titans_serve.connections import Events, OneLength, check_local, unless_gone
from titans_serve.dialogue import Said
from titans_serve.errors import RefusalError, bad_request, from_runtime, not_found
from titans_serve.keys import Keys
from titans_serve.memories import Memory
from titans_serve.openapi import document
from titans_serve.page import PAGE, PAGE_HEADERS
from titans_serve.service import Answer, Service, Wanted
from titans_serve.stores import Key
from titans_serve.turns import CancelledTurnError

log = logging.getLogger("titans_serve")
Handler = Callable[[Request], Awaitable[Response]]
_encode = msgspec.json.Encoder().encode


class Server:
    """The routes of one service."""

    def __init__(self, service: Service, keys: Keys) -> None:
        self.service, self.keys = service, keys

    def app(self) -> Starlette:
        """The ASGI application; it closes the service when it ends."""
        routes = (
            ("GET", "/", self.page, False),
            ("GET", "/health", self.health, False),
            ("GET", "/health/live", self.live, False),
            ("GET", "/health/ready", self.health, False),
            ("GET", "/metrics", self.metrics, False),
            ("GET", "/openapi.json", self.openapi, False),
            ("GET", "/v1/models", self.models, True),
            ("GET", "/v1/models/{id:path}", self.one_model, True),
            ("POST", "/v1/chat/completions", self.chat, True),
            ("POST", "/v1/completions", self.completions, True),
            ("POST", "/v1/responses", self.responses, True),
            ("DELETE", "/v1/responses/{id}", self.delete_response, True),
            ("GET", "/v1/memories", self.list_memories, True),
            ("POST", "/v1/memories", self.create_memory, True),
            ("DELETE", "/v1/memories", self.delete_memories, True),
            ("GET", "/v1/memories/{id}", self.show_memory, True),
            ("DELETE", "/v1/memories/{id}", self.delete_memory, True),
            ("GET", "/v1/memories/{id}/state", self.export_memory, True),
            ("PUT", "/v1/memories/{id}/state", self.import_memory, True),
            ("GET", "/v1/memories/{id}/journal", self.journal_of_memory, True),
            ("POST", "/v1/memories/{id}/feed", self.feed_memory, True),
            ("POST", "/v1/memories/{id}/fork", self.fork_memory, True),
            ("POST", "/v1/memories/{id}/marks", self.mark_memory, True),
            ("POST", "/v1/memories/{id}/rewind", self.rewind_memory, True),
        )
        return Starlette(
            routes=[
                Route(path, self._guarded(path, handler, private), methods=[method])
                for method, path, handler, private in routes
            ],
            middleware=[Middleware(OneLength)],
            exception_handlers={404: _no_route, 405: _no_route},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.get_running_loop().run_in_executor(None, self.service.close)

    async def _sweep(self) -> None:
        """Remove what has expired or is deleted, once a minute."""
        while True:
            await asyncio.sleep(60)
            try:
                await self.service.release()
            except TitansError as error:
                log.warning("what has expired could not be removed: %s", error)

    def _guarded(self, route: str, handler: Handler, private: bool) -> Handler:
        """A handler behind its key, whose errors are answers, counted and logged without a word of the request."""

        async def guarded(request: Request) -> Response:
            started = time.perf_counter()
            given = request.headers.getlist("authorization")
            request.state.namespace = self.keys.namespace(given[0] if len(given) == 1 else None)
            try:
                if not self.keys.required:
                    check_local(request)
                if private and request.state.namespace is None:
                    message = "the API key is missing or wrong; send 'Authorization: Bearer KEY'"
                    raise RefusalError(401, "authentication_error", message, code="invalid_api_key")
                response = await handler(request)
            except Exception as error:
                response = _refused(error, route)
            self.service.metrics.requests.labels(route, str(response.status_code)).inc()
            log.info(
                "request",
                extra={
                    "titans": {
                        "route": route, "method": request.method, "status": response.status_code,
                        "namespace": request.state.namespace, "seconds": round(time.perf_counter() - started, 4),
                    }
                },
            )  # fmt: skip
            return response

        return guarded

    async def _body(self, request: Request, most: int | None = None) -> bytes:
        """The request's body, within its limits of size and time."""
        most = most or self.service.settings.body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self.service.settings.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise RefusalError(
                            413, "invalid_request_error", f"the request is longer than {most} bytes; send less",
                            code="too_large",
                        )  # fmt: skip
        except TimeoutError as error:
            raise RefusalError(
                408, "invalid_request_error", "the request took too long to arrive; send it again"
            ) from error
        return bytes(body)

    # Answers

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        parsed = wire.decode(await self._body(request), wire.ChatRequest)
        wire.refuse_unknown_wishes(parsed)
        wanted = Wanted(
            parsed,
            messages=_messages(parsed.messages),
            limit=parsed.max_completion_tokens or parsed.max_tokens,
            stop=_stops(parsed.stop),
        )
        usage = parsed.stream_options is not None and parsed.stream_options.include_usage
        return await self._answer(request, wanted, chat_shape(self.service.name, usage, parsed.surprise))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        parsed = wire.decode(await self._body(request), wire.CompletionRequest)
        wire.refuse_unknown_wishes(parsed)
        wanted = Wanted(parsed, text=_prompt(parsed.prompt), limit=parsed.max_tokens, stop=_stops(parsed.stop))
        usage = parsed.stream_options is not None and parsed.stream_options.include_usage
        return await self._answer(request, wanted, completion_shape(self.service.name, usage))

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        parsed = wire.decode(await self._body(request), wire.ResponseRequest)
        wire.refuse_unknown_wishes(parsed)
        if parsed.memory is not None and parsed.previous_response_id is not None:
            raise bad_request("a response goes on from a memory or from a response; name one of both", "memory")
        said = [Said("user", parsed.input)] if isinstance(parsed.input, str) else _messages(parsed.input)
        if parsed.instructions:
            said = [Said("system", parsed.instructions), *said]
        previous = parsed.previous_response_id
        wanted = Wanted(
            parsed,
            messages=said,
            limit=parsed.max_output_tokens,
            previous=None if previous is None else previous.removeprefix("resp_"),
            store=parsed.store is not False,
        )
        return await self._answer(request, wanted, response_shape(self.service.name, previous))

    async def _answer(self, request: Request, wanted: Wanted, shape: Shape) -> Response:
        """An answer in one piece, or as events while it comes."""
        stack = AsyncExitStack()
        try:
            planned = stack.enter_async_context(self.service.answer(request.state.namespace, wanted))
            answer = await unless_gone(request, planned)
            if wanted.sampling.stream:
                events = self._events(answer, shape, stack)
                # An error before the first piece is an answer with a status of its own.
                first = await unless_gone(request, anext(events))
                return Events(first, events, self.service.settings.unread_seconds)
            text = await unless_gone(request, _text(answer))
        except BaseException:
            await stack.aclose()
            raise
        await stack.aclose()
        return _json(shape.whole(answer, text))

    async def _events(self, answer: Answer, shape: Shape, stack: AsyncExitStack) -> AsyncGenerator[bytes]:
        """The server-sent events of an answer. What it holds is let go of however this ends."""
        async with stack:
            text = ""
            try:
                begun = False
                async for piece in answer.pieces():
                    if not begun:
                        begun = True
                        for event in shape.begin(answer):
                            yield event
                    text += piece.text
                    for event in shape.piece(answer, piece):
                        yield event
                if not begun:
                    for event in shape.begin(answer):
                        yield event
                for event in shape.end(answer, text):
                    yield event
            except (TitansError, RefusalError) as error:
                if not text:
                    raise
                refusal = error if isinstance(error, RefusalError) else from_runtime(error)
                yield b"data: " + _encode(refusal.body()) + b"\n\n"

    # Models and health

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        if request.path_params["id"] != self.service.name:
            raise not_found("model", request.path_params["id"][:200])
        return _json(self._model())

    def _model(self) -> dict[str, object]:
        return {"id": self.service.name, "object": "model", "created": 0, "owned_by": "titans-deploy"}

    async def live(self, request: Request) -> Response:
        """GET /health/live: the process answers."""
        return _json({"status": "live"})

    async def health(self, request: Request) -> Response:
        """GET /health: whether turns are taken."""
        ready = self.service.ready
        return _json({"status": "ready" if ready else "stopping"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: for Prometheus."""
        page = self.service.metrics.page(lambda: self.service.memories.resident)
        return Response(page, media_type=self.service.metrics.content_type)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return _json(document())

    async def page(self, request: Request) -> Response:
        """GET /: a conversation with a memory."""
        return Response(PAGE, media_type="text/html", headers=PAGE_HEADERS)

    # Memories

    async def list_memories(self, request: Request) -> Response:
        """GET /v1/memories."""
        names = await self.service.memories.names(request.state.namespace)
        return _json({"object": "list", "data": [{"id": name, "object": "memory"} for name in names]})

    async def create_memory(self, request: Request) -> Response:
        """POST /v1/memories."""
        parsed = wire.decode(await self._body(request), wire.CreateMemory)
        await self.service.memories.create(Key(request.state.namespace, "memory", parsed.id))
        return _json({"id": parsed.id, "object": "memory", "position": 0}, 201)

    async def show_memory(self, request: Request) -> Response:
        """GET /v1/memories/{id}: how much it has read, how surprising it was, and how large its tensors are."""
        key = _memory(request)
        memory = await self.service.memories.get(key)
        stats = await asyncio.get_running_loop().run_in_executor(self.service.blocking, lambda: memory.session.stats)
        marks = await self.service.memories.names(key.namespace, "mark")
        return _json(
            {
                "id": key.name, "object": "memory", "position": stats.position, "commits": stats.commits,
                "bytes": stats.state_bytes, "version": memory.version,
                "surprise": {"mean": stats.surprise_mean, "highest": stats.surprise_highest},
                "norms": stats.state_norms,
                "marks": [name.removeprefix(_marks_of(key)) for name in marks if name.startswith(_marks_of(key))],
            }
        )  # fmt: skip

    async def delete_memory(self, request: Request) -> Response:
        """DELETE /v1/memories/{id}: with its marks."""
        key = _memory(request)
        existed = await self.service.memories.delete(key)
        for name in await self.service.memories.names(key.namespace, "mark"):
            if name.startswith(_marks_of(key)):
                await self.service.memories.delete(Key(key.namespace, "mark", name))
        if not existed:
            raise not_found("memory", key.name)
        return _json({"id": key.name, "object": "memory", "deleted": True})

    async def delete_memories(self, request: Request) -> Response:
        """DELETE /v1/memories: everything that this key has ever left here."""
        count, left = await self.service.delete_namespace(request.state.namespace)
        return _json({"object": "list", "deleted": count, "remaining": left})

    async def delete_response(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        name = request.path_params["id"].removeprefix("resp_")
        if not await self.service.memories.delete(_key(request, "response", name)):
            raise not_found("response", name[:200])
        return _json({"id": f"resp_{name}", "object": "response", "deleted": True})

    async def export_memory(self, request: Request) -> Response:
        """GET /v1/memories/{id}/state: its state file."""
        key = _memory(request)
        data = await self.service.memories.bytes_of(await self.service.memories.get(key))
        headers = {"content-disposition": f'attachment; filename="{key.name}.state"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def import_memory(self, request: Request) -> Response:
        """PUT /v1/memories/{id}/state: make a memory of a state file."""
        key = _memory(request)
        most = 4 * self.service.model.state_bytes + (1 << 20)
        data = await self._body(request, most)
        async with self.service.memories.turn(key, create=True) as change:
            loop = asyncio.get_running_loop()
            change.session = await loop.run_in_executor(
                self.service.blocking, self.service.memories.restored, data, key.name
            )
            change.ids = None  # what it has read is not known
            memory = await change.keep(())
        return _json({"id": key.name, "object": "memory", "position": memory.session.position})

    async def journal_of_memory(self, request: Request) -> Response:
        """GET /v1/memories/{id}/journal: the ids of all that it has read and written."""
        key = _memory(request)
        memory = await self.service.memories.get(key)
        if memory.ids is None:
            raise not_found("journal of the memory", key.name)
        data = write_journal(unpacked(memory.ids), self.service.model.manifest.model.name)
        headers = {"content-disposition": f'attachment; filename="{key.name}.journal.json"'}
        return Response(data, media_type="application/json", headers=headers)

    async def feed_memory(self, request: Request) -> Response:
        """POST /v1/memories/{id}/feed: read a text without answering."""
        key, parsed = _memory(request), wire.decode(await self._body(request), wire.TellMemory)
        ids = self.service.model.encode(parsed.text)
        if not ids:
            raise bad_request("the text has no tokens; send some", "text")
        async with self.service.memories.turn(key, create=True) as change:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.service.feeds, change.session.feed, ids)
            surprise = change.session.surprise.tolist()
            memory = await change.keep(change.memory.said, ids)
        body = {"id": key.name, "object": "memory", "position": memory.session.position, "tokens": len(ids)}
        return _json(body | {"surprise": surprise})

    async def fork_memory(self, request: Request) -> Response:
        """POST /v1/memories/{id}/fork: another memory that begins as this one is."""
        key, parsed = _memory(request), wire.decode(await self._body(request), wire.ForkMemory)
        memory = await self.service.memories.get(key)
        target = Key(key.namespace, "memory", parsed.id)
        if target == key:
            raise bad_request("a fork needs a name of its own; choose another one", "id")
        await self.service.memories.put(target, Memory(memory.session, memory.said, memory.ids))
        return _json({"id": parsed.id, "object": "memory", "position": memory.session.position}, 201)

    async def mark_memory(self, request: Request) -> Response:
        """POST /v1/memories/{id}/marks: remember this moment under a name."""
        key, parsed = _memory(request), wire.decode(await self._body(request), wire.MarkMemory)
        memory = await self.service.memories.get(key)
        await self.service.memories.put(_mark(key, parsed.mark), Memory(memory.session, memory.said, memory.ids))
        return _json({"id": key.name, "object": "mark", "mark": parsed.mark, "position": memory.session.position}, 201)

    async def rewind_memory(self, request: Request) -> Response:
        """POST /v1/memories/{id}/rewind: go back to a mark."""
        key, parsed = _memory(request), wire.decode(await self._body(request), wire.MarkMemory)
        mark = await self.service.memories.get(_mark(key, parsed.mark))
        async with self.service.memories.turn(key) as change:
            change.session, change.ids = mark.session.fork(), mark.ids
            memory = await change.keep(mark.said)
        return _json({"id": key.name, "object": "memory", "position": memory.session.position})


async def _text(answer: Answer) -> str:
    return "".join([piece.text async for piece in answer.pieces()])


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    message = (
        "there is no such route; see /openapi.json"
        if status == 404
        else "this route has other methods; see /openapi.json"
    )
    return _json(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}},
        status,
        getattr(error, "headers", None),
    )


def _refused(error: Exception, route: str) -> Response:
    """The answer to a request that was not carried out."""
    if isinstance(error, ClientDisconnect | CancelledTurnError):
        return Response(status_code=499)
    if isinstance(error, TitansError):
        error = from_runtime(error)
    if not isinstance(error, RefusalError):
        log.error("a bug: %s at %s", type(error).__name__, route, exc_info=error)
        error = RefusalError(500, "server_error", "the server made a mistake; its log says which", code="internal")
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(error.body(), error.status, headers)


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(content), status, headers, "application/json")


def _key(request: Request, kind: str, name: str) -> Key:
    return Key(request.state.namespace, kind, name)


def _memory(request: Request) -> Key:
    return _key(request, "memory", request.path_params["id"])


def _marks_of(key: Key) -> str:
    """What the names of a memory's marks begin with: a hash, so that no memory's marks look like another's."""
    return hashlib.sha256(key.name.encode()).hexdigest()[:32] + "."


def _mark(key: Key, mark: str) -> Key:
    return Key(key.namespace, "mark", _marks_of(key) + mark)


def _messages(messages: list[wire.Message]) -> list[Said]:
    return [Said(message.role, wire.text_of(message, place)) for place, message in enumerate(messages)]


def _prompt(prompt: str | list[int | str]) -> str | list[int]:
    """One text, or the ids of one. Raises `RefusalError` (400)."""
    texts = [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]
    ids = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, int)]
    if len(texts) > 1 or (texts and ids):
        raise bad_request("this server takes one prompt a request; send the others by themselves", "prompt")
    if not ids and not any(texts):
        raise bad_request("the prompt is empty; send some text", "prompt")
    return texts[0] if texts else ids


def _stops(stop: wire.Stop) -> tuple[str, ...]:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
