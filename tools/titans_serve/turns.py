"""One turn: a session reads a prompt and answers, on a thread, while an event loop passes the pieces on.

A turn that is cancelled stops at its next token, so that its lane is free within one step. Knows sessions and asyncio.
Does not know HTTP, nor where memories are kept.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import anyio

from titans_runtime import SamplingOptions, Session
from titans_runtime.text.stopping import StopFilter, Transcript, check_stops
from titans_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What is to be read, and how to answer.

    ids: tokens to read; empty goes on from where the session is.
    limit: tokens to generate at most.
    options: how they are chosen.
    stop: strings that end the answer.
    answering: the ids are messages by the model's chat template.
    """

    ids: Sequence[int]
    limit: int
    options: SamplingOptions
    stop: Sequence[str] = ()
    answering: bool = False


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, and how surprising the token that completed it was to the memory."""

    text: str
    surprise: float


@dataclass(frozen=True)
class Outcome:
    """A finished turn.

    text: the answer.
    read, written: tokens of the prompt and of the answer.
    ids: the tokens of the answer, the one that ended it included.
    reason: "eos", "stop" or "length".
    first, seconds: seconds to the first token, and altogether.
    surprise: of each token of the prompt.
    """

    text: str
    read: int
    written: int
    ids: tuple[int, ...]
    reason: str
    first: float
    seconds: float
    surprise: tuple[float, ...] = ()


class CancelledTurnError(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Turn:
    """A turn under way. Iterate over `pieces()`, then read `outcome`; `cancel()` at any time.

    session: the stream that reads and answers; it is this turn's alone.
    """

    session: Session
    tokenizer: Tokenizer
    prompt: Prompt
    outcome: Outcome | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _surprise: list[float] = field(default_factory=list)

    def cancel(self) -> None:
        """Stop at the next token."""
        self._stopped.set()

    async def pieces(self, executor: Executor) -> AsyncGenerator[Piece]:
        """The answer, piece by piece. Raises what the session raises."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()

        def emit(piece: Piece | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, piece)

        def work() -> Outcome:
            try:
                return self._run(emit)
            finally:
                emit(None)

        running = loop.run_in_executor(executor, work)
        # Of a turn that nobody waits for any more, nobody asks how it ended; asyncio would log that as a mistake.
        running.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
            self.outcome = await running
        finally:
            self.cancel()
            if not running.done():  # the session is in use until then
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([running])

    def _run(self, emit: Callable[[Piece], None]) -> Outcome:
        started = time.perf_counter()
        stops = StopFilter(tuple(self.prompt.stop))
        check_stops(self.tokenizer, stops)
        ends = self.session.ends()
        tokens = self.session.generate_tokens(
            list(self.prompt.ids) or None,
            self.prompt.limit,
            self.prompt.options,
            on_progress=self._progress,
            answering=self.prompt.answering,
        )
        transcript: Transcript | None = None
        text, ids, first, reason = "", [], 0.0, ""
        for token in tokens:
            if transcript is None:
                first = time.perf_counter() - started
                transcript = Transcript(self.tokenizer, stops, ends, self.session.recent, token)
            ids.append(token)
            if piece := transcript.push(token):
                text += piece
                emit(Piece(piece, float(self.session.surprise[-1])))
            if transcript.stopped:
                reason = "stop"
                break
            if self._stopped.is_set():
                raise CancelledTurnError
        if transcript is not None and (piece := transcript.finish()):
            text += piece
            emit(Piece(piece, float(self.session.surprise[-1])))
        seconds = time.perf_counter() - started
        reason = reason or self.session.ended or "length"
        return Outcome(text, len(self.prompt.ids), len(ids), tuple(ids), reason, first, seconds, tuple(self._surprise))

    def _progress(self, _: int, __: int) -> None:
        if self._stopped.is_set():
            raise CancelledTurnError
        self._surprise += self.session.surprise.tolist()
