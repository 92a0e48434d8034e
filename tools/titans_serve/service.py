"""What the server does, without HTTP: one model, one batch, one store, and the turns of many users.

A turn plans what has to be read, answers, and is kept: in a memory, under a response's id, and as a known beginning.
Knows the parts of this package and puts them together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from titans_runtime import Model, SamplingOptions, Session, StateError
from titans_runtime.stream import journal
from titans_runtime.stream.session import PIECE
from titans_runtime.stream.state_adopt import adopted
from titans_runtime.stream.state_file import read_header
from titans_runtime.stream.state_int8 import expanded
from titans_runtime.text.sampling import chosen_options
from titans_serve.dialogue import Dialogue, Said
from titans_serve.errors import RefusalError, bad_request, busy
from titans_serve.memories import Change, Memories, Memory, Saved
from titans_serve.metrics import Metrics
from titans_serve.prefixes import Prefixes, message_hash
from titans_serve.settings import Settings
from titans_serve.stores import KINDS, Key, Store
from titans_serve.turns import CancelledTurnError, Outcome, Piece, Prompt, Turn
from titans_serve.wire import Sampling

R = TypeVar("R")
_FEED_THREADS = 4  # for texts without answers, so that clients who read their answers slowly keep nobody from feeding
_IO_THREADS = 8  # the store's; a write waits for the disk and not for the processor


@dataclass(frozen=True)
class Wanted:
    """What a request for an answer comes to.

    messages: of the conversation, or the new ones of `previous`; none for a plain text.
    text: the plain text to go on from, as text or ids.
    sampling: the request's options.
    limit: tokens to generate at most; None is the server's default.
    stop: strings that end the answer.
    previous: the response to go on from.
    store: keep the result so that a later request may go on from it.
    """

    sampling: Sampling
    messages: Sequence[Said] = ()
    text: str | Sequence[int] | None = None
    limit: int | None = None
    stop: Sequence[str] = ()
    previous: str | None = None
    store: bool = False


@dataclass
class Answer:
    """An answer under way. Iterate over `pieces()`, then read the rest.

    id: a name that no other answer has.
    reused: tokens of the conversation that did not have to be read.
    """

    id: str
    turn: Turn
    reused: int
    created: int = field(default_factory=lambda: int(time.time()))
    service: Service | None = None
    change: Change | None = None
    wanted: Wanted | None = None
    namespace: str = ""
    said: tuple[bytes, ...] = ()
    deletions: int = 0
    _late: bool = False

    @property
    def outcome(self) -> Outcome:
        """How it ended; only after the last piece."""
        if self.turn.outcome is None:
            raise RuntimeError("an answer was read before it was finished")
        return self.turn.outcome

    def prompt_surprise(self) -> list[tuple[str, float]]:
        """The texts of the tokens that were read, and how surprising each was. Only after the last piece."""
        stream = self.turn.tokenizer.stream(())
        texts = [stream.push(token) for token in self.turn.prompt.ids]
        return list(zip(texts, self.outcome.surprise, strict=True))

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text as it comes. When the iterator ends, what is to be kept has been stored."""
        assert self.service is not None
        # A timer and no `asyncio.timeout`, which belongs to one task: a stream is begun in one and ended in another.
        timer = asyncio.get_running_loop().call_later(self.service.settings.turn_seconds, self._end)
        try:
            async with contextlib.aclosing(self.turn.pieces(self.service.turns)) as pieces:
                async for piece in pieces:
                    yield piece
            await self.service.keep(self)
        except CancelledTurnError as error:
            if not self._late:
                raise
            raise RefusalError(
                504, "server_error", "the answer took longer than this server allows; ask for fewer tokens",
                code="timeout",
            ) from error  # fmt: skip
        finally:
            timer.cancel()

    def _end(self) -> None:
        self._late = True
        self.turn.cancel()


class Service:
    """One model for many users. Used by one event loop; `close()` when nobody uses it any more."""

    def __init__(self, model: Model, store: Store, settings: Settings | None = None, name: str | None = None) -> None:
        self.model, self.store = model, store
        self.settings = settings or Settings()
        self.name = name or Path(model.manifest.model.name).name
        self.metrics = Metrics()
        self.dialogue = Dialogue(model)
        self.batch = model.batch(lanes=self.settings.lanes)
        self.turns = ThreadPoolExecutor(self.settings.turns, thread_name_prefix="titans-turn")
        self.feeds = ThreadPoolExecutor(_FEED_THREADS, thread_name_prefix="titans-feed")
        self.blocking = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="titans-store")
        int8 = self.settings.int8
        policy = self.settings.other_model
        self.memories = Memories(
            self.batch, store, self.blocking, self.settings.resident, int8=int8, journal=self.settings.journal,
            other_model=None if policy == "refuse" else partial(self._from_other_model, policy == "replay"),
        )  # fmt: skip
        self.prefixes = Prefixes(
            self.batch, store, self.blocking, self.settings.prefixes, self.settings.prefix_seconds, int8
        )
        self._deletions: Counter[str] = Counter()
        self._places = asyncio.Semaphore(self.settings.turns)
        self._waiting = 0
        self._closing = False

    @property
    def ready(self) -> bool:
        """Whether new turns are taken."""
        return not self._closing

    def stop(self) -> None:
        """Take no new turns."""
        self._closing = True

    def close(self) -> None:
        """End what runs and let go of everything."""
        self.stop()
        self.turns.shutdown(wait=True, cancel_futures=True)
        self.feeds.shutdown(wait=True, cancel_futures=True)
        self.blocking.shutdown(wait=True)
        self.batch.close()
        self.store.close()

    @asynccontextmanager
    async def answer(self, namespace: str, wanted: Wanted) -> AsyncIterator[Answer]:
        """Plan an answer and hold a place for it. Raises `RefusalError` and `TitansError`."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._place())
            change: Change | None = None
            if wanted.sampling.memory is not None:
                key = Key(namespace, "memory", wanted.sampling.memory)
                change = await stack.enter_async_context(self.memories.turn(key, create=True))
            deletions = self._deletions[namespace]
            planned = await self._plan(namespace, wanted, change)
            session, ids, said, reused = planned
            default = self.model.manifest.generation.max_new_tokens or self.settings.default_tokens
            limit = min(wanted.limit or default, self.settings.most_tokens)
            answering = bool(wanted.messages) and self.dialogue.has_template
            prompt = Prompt(ids, limit, self._options(wanted.sampling), tuple(wanted.stop), answering)
            tokenizer = self.model.tokenizer
            if tokenizer is None:
                raise bad_request("this model has no tokenizer, so it cannot take text; use the runtime's API with ids")
            turn = Turn(session, tokenizer, prompt)
            yield Answer(
                uuid.uuid4().hex, turn, reused, service=self, change=change, wanted=wanted, namespace=namespace,
                said=said, deletions=deletions,
            )  # fmt: skip

    async def keep(self, answer: Answer) -> None:
        """Store what an answer has left behind, before its end is said to the client."""
        outcome, wanted = answer.outcome, answer.wanted
        assert wanted is not None
        said = answer.said
        if wanted.messages:
            said = (*said, message_hash("assistant", outcome.text))
        if answer.change is not None:
            await answer.change.keep(said, (*answer.turn.prompt.ids, *outcome.ids))
        else:
            await self._keep_for_reuse(answer, wanted, said)
        for kind, count in (("read", outcome.read), ("reused", answer.reused), ("written", outcome.written)):
            self.metrics.tokens.labels(kind).inc(count)
        self.metrics.first_token.observe(outcome.first)
        self.metrics.turn.observe(outcome.seconds)

    async def delete_namespace(self, namespace: str) -> tuple[int, int]:
        """Forget everything of one API key: how many values that were, and how many a second look finds."""
        self._deletions[namespace] += 1
        self.prefixes.forget(namespace)
        count = await self.memories.delete_namespace(namespace)
        left = [await self.memories.names(namespace, kind) for kind in KINDS]
        return count, sum(len(names) for names in left)

    async def release(self) -> int:
        """Remove what has expired, and let go of what other servers have deleted; how much was open."""
        await self._run(self.store.expire)
        return await self.memories.release() + await self.prefixes.release()

    def _from_other_model(self, replay: bool, saved: Saved, name: str) -> Session:
        """A memory of any model of this shape, or with this tokenizer. Raises `StateError`."""
        if read_header(expanded(saved.state), name).identity == self.model.manifest.state_identity:
            return self.batch.restore_bytes(saved.state, name)
        if not replay:
            return self.batch.restore_bytes(adopted(self.model.manifest, saved.state, name), name)
        if saved.ids is None:
            raise StateError(
                f"{name!r} was saved by another model and has no journal to replay",
                "start the server with the model that saved it, or with --other-model adopt",
            )
        session = self.batch.session(name)
        ids = journal.unpacked(saved.ids)
        for start in range(0, len(ids), PIECE):
            session.feed(ids[start : start + PIECE])
        return session

    async def _keep_for_reuse(self, answer: Answer, wanted: Wanted, said: tuple[bytes, ...]) -> None:
        """Keep the stream of an answer without a memory, unless all of its key was deleted while it ran."""
        beginning = bool(wanted.messages) and wanted.previous is None
        key = Key(answer.namespace, "response", answer.id)
        if self._deletions[answer.namespace] == answer.deletions:
            if beginning:
                await self.prefixes.remember(answer.namespace, said, answer.turn.session)
            if wanted.store:  # what a memory has left behind goes when the memory goes
                await self.memories.put(key, Memory(answer.turn.session, said), self.settings.response_seconds)
        if self._deletions[answer.namespace] != answer.deletions:
            await self.prefixes.delete(answer.namespace, said)
            await self.memories.delete(key)
            raise RefusalError(
                409, "conflict_error", "everything of this key was deleted during the answer; send it again",
                code="deleted",
            )  # fmt: skip

    async def _plan(
        self, namespace: str, wanted: Wanted, change: Change | None
    ) -> tuple[Session, Sequence[int], tuple[bytes, ...], int]:
        """The stream to go on with, what it has to read, what it has been told then, and what was reused."""
        if wanted.text is not None:
            session = change.session if change else await self._run(self.batch.session)
            ids = list(wanted.text) if not isinstance(wanted.text, str) else self.model.encode(wanted.text)
            return session, ids, (), 0
        hashes = tuple(message_hash(message.role, message.content) for message in wanted.messages)
        if wanted.previous is not None:
            before = await self.memories.get(Key(namespace, "response", wanted.previous))
            session = await self._run(before.session.fork)
            said, known = before.said + hashes, 0
            ids = self.dialogue.continuing(wanted.messages, session)
            return session, ids, said, session.position
        if change is not None:
            said = change.memory.said
            if said and hashes[: len(said)] == said and len(hashes) > len(said):
                ids = self.dialogue.continuing(wanted.messages[len(said) :], change.session)
                return change.session, ids, hashes, change.session.position
            opening = self.dialogue.opening(wanted.messages, change.session)
            return change.session, opening, hashes, 0
        known, found = await self.prefixes.find(namespace, hashes[:-1])
        if found is not None:
            ids = self.dialogue.continuing(wanted.messages[known:], found)
            return found, ids, hashes, found.position
        session = await self._run(self.batch.session)
        return session, self.dialogue.opening(wanted.messages, session), hashes, 0

    def _options(self, sampling: Sampling) -> SamplingOptions:
        chosen = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
            if (value := getattr(sampling, name)) is not None
        }
        if chosen.get("top_p") == 0:
            chosen["top_p"] = 1e-9  # the most likely token alone, as OpenAI's servers read it
        if chosen.get("seed", 0) < 0:
            chosen["seed"] += 1 << 64
        return chosen_options(self.model.manifest.generation, **chosen)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places for turns; more may wait, and no more than that."""
        if self._closing:
            raise RefusalError(503, "server_error", "this server is stopping; send the request again", retry_after=2)
        if self._places.locked() and self._waiting >= self.settings.waiting:
            raise busy(f"{self._waiting} turns are waiting already; try again later", retry_after=2)
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)
        self.metrics.running.inc()
        try:
            yield
        finally:
            self.metrics.running.dec()
            self._places.release()

    async def _run(self, function: Callable[..., R], *arguments: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.blocking, function, *arguments)
