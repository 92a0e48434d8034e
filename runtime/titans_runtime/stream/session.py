"""One stream of memory, as a user holds it: feed it, read its surprise, let it generate, save it, branch it.

The model owns the weights, the session owns the state. A call either completes or leaves the session as it was,
whatever stops it. A session that meets numbers that are not finite goes back to where it was before the call and is
poisoned: it refuses to go on, and says so, until it is reset or rewound. A session is used by one thread at a time,
which is enforced; several sessions of a model may run in several threads.

Knows nothing of graphs and buffers (`driver`), of how a token is drawn (`sampling`), or of files (`state_file`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from titans_format.errors import TitansError
from titans_format.fields import Ends, TokenInputs
from titans_format.manifest import Manifest
from titans_runtime.arguments import flag, function, instance, label, shown, whole
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.atomic import check_writable, regular_target, write_atomically
from titans_runtime.errors import InputError, NonFiniteError, SessionPoisonedError, StateError, TextError, out_of_memory
from titans_runtime.state.calls import StreamState, TopK
from titans_runtime.state.layout import State
from titans_runtime.stream import state_file
from titans_runtime.stream.driver import Feeder, FeedResult
from titans_runtime.stream.guard import Guard
from titans_runtime.stream.inputs import Inputs, checked_ends, checked_inputs, checked_tokens
from titans_runtime.stream.lineage import Lineage, locked
from titans_runtime.stream.memories import dead_memories, learned_names, memory_distances
from titans_runtime.stream.observe import FeedEvent, Observer, SessionStats, record
from titans_runtime.stream.snapshot import KEPT, Mark, Moment
from titans_runtime.text.sampling import Sampler, SamplingOptions
from titans_runtime.text.stopping import Reason, StopFilter, Transcript, check_stops
from titans_runtime.text.tokenizer import Tokenizer

_numbers = itertools.count(1)
# Tokens of a prompt that are one call: what an interrupt loses at most, and the overhead of a call is nothing to it.
PIECE = 1024

OnProgress = Callable[[int, int], None]  # (tokens of the prompt that were read, all of them)


@dataclass
class Shared:
    """What all sessions of one model, or of one batch, have in common.

    feeder: what runs their feeds.
    tokenizer: opened only for text: streams of ids need none.
    observers: called after every feed, before it counts.
    silent: whether an id is known to have no text; none is before the tokenizer is opened.
    """

    feeder: Feeder
    tokenizer: Callable[[], Tokenizer | None]
    observers: list[Observer] = field(default_factory=list)
    silent: Callable[[int], bool] = lambda token: False

    @property
    def manifest(self) -> Manifest:
        """The model."""
        return self.feeder.manifest


class Session:
    """One stream. Made by `Model.session()` and `Model.restore()`, or of another by `fork()`."""

    def __init__(
        self,
        shared: Shared,
        name: str | None = None,
        moment: Moment | None = None,
        lineage: Lineage | None = None,
    ) -> None:
        self.name = f"session-{next(_numbers)}" if name is None else label(name)
        self._shared = shared
        self._manifest = shared.manifest
        self._guard = Guard()
        self._now = moment or self._beginning()
        self._ended: Reason | None = None
        self._lineage = lineage or Lineage()
        self._fed_tokens, self._seconds = 0, 0.0

    @property
    def position(self) -> int:
        """Tokens consumed since the beginning or the last reset."""
        return self._now.position

    @property
    def surprise(self) -> FloatArray:
        """How surprising each token of the last feed was, float32 `[T]`: the mean over the memory layers.

        Zeros for a model without memory.
        """
        surprise = self._now.surprise
        if surprise.shape[1] == 0:
            return np.zeros(len(surprise), np.float32)
        mean: FloatArray = surprise.mean(axis=1, dtype=np.float32)
        return mean

    @property
    def surprise_by_layer(self) -> FloatArray:
        """Surprise of each token of the last feed in each memory layer, float32 `[T, M]`."""
        return self._now.surprise.copy()

    @property
    def stats(self) -> SessionStats:
        """Figures of this session. Reads the whole state, for its norms."""
        with self._guard:
            now, backend = self._now, self._shared.feeder.backend
            state = backend.read(self._home(now.state))
        beginning = backend.read(backend.initial(1))
        start = {name: beginning[name] for name in learned_names(self._manifest)}
        return SessionStats(
            session=self.name,
            position=now.position,
            commits=now.commits,
            fed_tokens=self._fed_tokens,
            seconds=self._seconds,
            state_bytes=self._manifest.stream_bytes,
            state_norms={name: float(np.linalg.norm(value)) for name, value in state.items()},
            memories=memory_distances(start, state),
            dead_memories=tuple(dead_memories(start, state)),
            surprise_mean=now.totals.mean,
            surprise_deviation=now.totals.deviation,
            surprise_highest=now.totals.highest,
        )

    def feed(self, inputs: Inputs, all_logits: bool = False) -> FloatArray:
        """Consume tokens, or vectors for a continuous model.

        Args:
            inputs: ids `[T]` (a list, or any integer array), or vectors `[T, F]`; T >= 1.
            all_logits: return what the model says after every token, not only after the last.

        Returns:
            Token models: logits `[V]`, or `[T, V]` with `all_logits`.
            Continuous models: predictions `[T, targets]` always.

        Raises:
            InputError: inputs the model cannot take.
            ExecutionError: a graph failed.
            NonFiniteError: what came out is not finite; the session is poisoned from now on.
            SessionPoisonedError: it was already; call `reset` or `rewind`.
            SessionBusyError: another thread is using this session.
            Whatever is raised, the session is where it was.
        """
        array = checked_inputs(self._manifest.inputs, inputs)
        every = flag("all_logits", all_logits) or not isinstance(self._manifest.inputs, TokenInputs)
        outputs = self._consume(array, every)
        return outputs if every else outputs.reshape(-1)

    def reset(self) -> None:
        """Forget everything and start afresh; also a way out of a poisoned session."""
        with self._guard:
            self._now = self._beginning()

    def mark(self) -> Mark:
        """This moment, to come back to with `rewind`. Costs no copy; the state lives as long as the mark."""
        with self._guard:
            moment = self._own_moment()
        self._stands()
        return Mark(self._manifest.state_identity, moment, moment.position, self._shared.feeder.backend)

    def rewind(self, mark: Mark) -> None:
        """Go back to a mark of this session, of a fork of it, or of any other session of the same model, exactly.

        A poisoned session is sound again afterwards.

        Raises:
            InputError: the mark is of another model, or of this one loaded another time.
        """
        if not isinstance(mark, Mark):
            raise InputError(f"the mark is {shown(mark)}", "pass what mark() gave")
        if mark.identity != self._manifest.state_identity:
            raise InputError("this mark was made with another model", "rewind to a mark of a session of this one")
        if mark.owner is not self._shared.feeder.backend:
            raise InputError(
                "this mark was made with the same bundle loaded another time",
                "rewind to a mark of a session of this"
                " model, or bring the session here with restore_bytes(session.to_bytes())",
            )
        with self._guard:
            self._now = mark.moment
        self._stands()

    def fork(self, name: str | None = None) -> Session:
        """Another session that stands where this one stands: two futures of one memory.

        Copies nothing: what both have in common stays shared for as long as neither changes it.
        """
        with self._guard:
            moment = self._own_moment()
        self._stands()
        branch = self._sibling(name, moment)
        branch._lineage = self._lineage.copy()
        return branch

    def save(self, path: str | os.PathLike[str], *, compress: bool = False, force: bool = False) -> None:
        """Write this session to a file that `Model.restore` reads: all of the old file or all of the new one.

        A file that is there is replaced if this session, or one that it was forked from, has read or written what is
        in it. Anything else is the memory of somebody else, who saved it in the meantime, and is kept.

        Args:
            path: the file.
            compress: about a tenth smaller and many times slower; see the documentation for figures.
            force: replace the file whatever is in it.

        Raises:
            StateError: the file cannot be written, or holds what this session has not read; it is as it was.
        """
        target, forced = regular_target(path), flag("force", force)
        data = self._packed(compress)
        with locked(target):
            if not forced:
                self._lineage.check(target, data)
            write_atomically(target, data)
            self._lineage.written(data, target)
        record(
            logging.INFO, "session.saved", session=self.name, path=str(path), bytes=len(data), position=self.position
        )

    def check_save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Raise `StateError` where `save` would be refused now, before work is done that is to end in it."""
        check_writable(path)
        if not flag("force", force):
            self._lineage.check(regular_target(path))

    def to_bytes(self, *, compress: bool = False) -> bytes:
        """This session as bytes, for a database or an object store; `Model.restore_bytes` reads them."""
        data = self._packed(compress)
        self._lineage.given(data)
        return data

    def _packed(self, compress: bool) -> bytes:
        compressed = flag("compress", compress)
        try:
            with self._guard:
                now = self._now
                tensors = self._shared.feeder.backend.read(self._home(now.state))
            return state_file.pack(self._manifest, tensors, now, compress=compressed)
        except MemoryError as error:
            raise StateError(f"there is not enough memory to save {self.name}", "close other sessions first") from error

    def generate(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int = 64,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        stop_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        special: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Iterator[str]:
        """Continue a prompt as text, piece by piece; no piece ends inside a character.

        It ends at an id that ends a text (`Manifest.ends`), at one of `stop_ids`, at a stop string, or after
        `max_new_tokens`; `ended` says which. The prompt is read in pieces of about a thousand tokens. Each piece is one
        call, and so is each new token: if one fails or is interrupted, or the iterator is closed, the session stands
        after the last that completed.

        The session has consumed the prompt and every token generated, those of a stop string included, when the
        iterator ends. Arguments are checked now; the prompt is fed when the first piece is asked for.

        Args:
            prompt: text, UTF-8 bytes, or ids; None goes on from where the session is.
            max_new_tokens: generate at most this many tokens.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: see `SamplingOptions`.
            stop: strings that end the text and are not part of it; None is none. Special tokens in them are met by
                the tokens.
            stop_ids: ids that end the text besides the model's own.
            ignore_eos: do not end at the model's own.
            special: read special tokens that are written out in the prompt as tokens, and not as text.
            on_progress: called after every piece of the prompt with the number of its tokens that were read, and of
                all. What it raises reaches the caller; the piece counts.

        Raises:
            TextError: the model has no tokenizer, or the prompt is not UTF-8.
            InputError: an empty prompt, ids outside the vocabulary, an option outside its range, or a stop string that
                can never be met.
            SessionPoisonedError: an earlier feed met numbers that are not finite; call `reset` or `rewind`.
        """
        tokenizer = self._shared.tokenizer()
        if tokenizer is None:
            raise TextError("this model has no tokenizer to write text with", "use generate_tokens with ids")
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        stops = StopFilter(stop)
        check_stops(tokenizer, stops)
        ends = self.ends(stop_ids, ignore_eos)
        tokens = self._begin(prompt, max_new_tokens, options, ends, special, on_progress)
        return self._as_text(tokens, tokenizer, stops, ends)

    def generate_tokens(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int = 64,
        options: SamplingOptions | None = None,
        stop_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        special: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Iterator[int]:
        """Continue a prompt as token ids, the one that ends them included.

        Arguments, order of events and errors as in `generate`.
        """
        ends = self.ends(stop_ids, ignore_eos)
        chosen = SamplingOptions() if options is None else options
        return self._begin(prompt, max_new_tokens, chosen, ends, special, on_progress)

    def _begin(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int,
        options: SamplingOptions,
        ends: Mapping[int, Reason],
        special: bool,
        on_progress: OnProgress | None,
    ) -> Iterator[int]:
        """Check everything, and generate when the first token is asked for."""
        kind = self._manifest.inputs
        if not isinstance(kind, TokenInputs):
            raise InputError("a continuous model has no tokens to generate", "feed its predictions back with feed()")
        self._check()
        limit = whole("max_new_tokens", max_new_tokens, 0, "use a whole number of 0 or above, such as 64")
        ids = (
            None if prompt is None else checked_tokens(self._encode(prompt, flag("special", special)), kind.vocab_size)
        )
        if ids is None and self._now.last is None:
            raise InputError("there is nothing to go on from", "pass a prompt, or feed the session first")
        sampler = Sampler(instance("options", options, SamplingOptions, "pass SamplingOptions"), kind.vocab_size)
        if on_progress is not None:
            function("on_progress", on_progress)
        return self._tokens(ids, limit, sampler, ends, on_progress)

    def ends(self, stop_ids: Iterable[int] = (), ignore_eos: bool = False) -> dict[int, Reason]:
        """The ids at which `generate` ends with these arguments, and what `ended` says of each.

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        known = Ends() if flag("ignore_eos", ignore_eos) else self._manifest.ends
        own = checked_ends(stop_ids, self._manifest.inputs.outputs)
        ends: dict[int, Reason] = dict.fromkeys((*known.stop, *own), "stop")
        return ends | dict.fromkeys(known.eos, "eos")

    @property
    def ended(self) -> Reason | None:
        """Why the last text ended; None before the first, while one is generated, and where one was broken off.

        "eos": at an id that ends a text of this model. "stop": at a stop string or a stop id. "length": after
        `max_new_tokens`.
        """
        return self._ended

    @property
    def recent(self) -> tuple[int, ...]:
        """The last ids consumed that have text, eight at most: text that follows is decoded after them.

        None of vectors.
        """
        return self._now.recent

    def _as_text(
        self, tokens: Iterator[int], tokenizer: Tokenizer, stops: StopFilter, ends: Iterable[int]
    ) -> Iterator[str]:
        """Text of the tokens, up to a stop string."""
        transcript: Transcript | None = None
        for token in tokens:
            transcript = transcript or Transcript(tokenizer, stops, ends, self.recent, token)
            if text := transcript.push(token):
                yield text
            if transcript.stopped:
                self._ended = "stop"
                return
        if transcript is not None and (text := transcript.finish()):
            yield text

    def _tokens(
        self,
        prompt: IdArray | None,
        limit: int,
        sampler: Sampler,
        ends: Mapping[int, Reason],
        on_progress: OnProgress | None,
    ) -> Iterator[int]:
        self._ended = None
        try:
            if prompt is not None:
                sampler.observe(prompt)
                self._read(prompt, sampler, on_progress)
            for left in range(limit, 0, -1):
                token = self._choose(sampler)
                # before the yield: a reader may stop there
                self._consume(np.array([token], np.int64), every=False, top_k=sampler.needs)
                ended = ends.get(token, "length" if left == 1 else None)
                self._ended = ended
                yield token
                if ended is not None:
                    return
            self._ended = "length"
        finally:
            self._settle()

    def _read(self, prompt: IdArray, sampler: Sampler, on_progress: OnProgress | None) -> None:
        """Consume a prompt in pieces that end where a chunk ends: the calls are those of the prompt as one piece."""
        chunk = self._manifest.chunk
        done = 0
        while done < len(prompt):
            piece = prompt[done : done + max(PIECE // chunk, 1) * chunk - self.position % chunk]
            self._consume(piece, every=False, top_k=sampler.needs)
            done += len(piece)
            if on_progress is not None:
                on_progress(done, len(prompt))

    def _settle(self) -> None:
        """Have the outputs after the last token here: a session at rest holds no more of a device than its state."""
        with contextlib.suppress(TitansError), self._guard:  # in use, or out of reach: they are fetched when needed
            self._now = replace(self._now, last=self._now.outputs)

    def _choose(self, sampler: Sampler) -> int:
        """The next token, from as little as the sampler needs and the provider brought."""
        now = self._now
        if isinstance(now.last, TopK) and sampler.needs is not None and now.last.ids.shape[1] >= sampler.needs:
            return sampler.choose_among(now.last.ids[0, : sampler.needs], now.last.scores[0, : sampler.needs])
        outputs = now.outputs
        if outputs is None:
            raise InputError("the session was reset while it generated", "start again with a prompt")
        return sampler.choose(outputs)

    def _consume(self, array: Array, every: bool, top_k: int | None = None) -> FloatArray:
        """Feed checked inputs; outputs `[T or 1, O]`, or none where only the `top_k` were brought."""
        with self._guard:
            self._check()
            start = time.perf_counter()
            try:
                fed, state = self._shared.feeder.feed(self._now.state, array[None], every, top_k=top_k)
            except NonFiniteError as error:
                self._fall_ill(error)
                raise
            except MemoryError as error:
                raise out_of_memory() from error
            return self._accept(array, fed, state, time.perf_counter() - start)

    def _accept(self, array: Array, fed: FeedResult, state: StreamState, seconds: float) -> FloatArray:
        """Make what a feed of `array` gave this session's own; its outputs."""
        now, surprise = self._now, fed.surprise[0]
        tokens = len(surprise)
        last = fed.top_k or fed.outputs[0, -1].copy()  # what is returned belongs to the caller
        chunk = self._manifest.chunk
        commits = (now.position + tokens) // chunk - now.position // chunk
        totals = now.totals.add(surprise)
        after = Moment(state, last, surprise, totals, now.commits + commits, self._recent_after(array))
        if self._shared.observers:
            mean = float(surprise.mean()) if surprise.size else 0.0
            event = FeedEvent(self.name, tokens, after.position, seconds, commits, mean)
            for observer in self._shared.observers:
                observer(event)
        self._fed_tokens += tokens
        self._seconds += seconds
        self._now = after  # the only change that counts: whatever stopped us before has changed nothing
        outputs: FloatArray = fed.outputs[0]
        return outputs

    def _recent_after(self, array: Array) -> tuple[int, ...]:
        """The last ids with text once `array` is consumed."""
        if array.ndim != 1:
            return ()
        silent = self._shared.silent
        new = list(itertools.islice((token for token in map(int, reversed(array)) if not silent(token)), KEPT))
        return (*self._now.recent, *reversed(new))[-KEPT:]

    def _fall_ill(self, error: NonFiniteError) -> None:
        self._now = replace(self._now, poison=error.finding)
        record(logging.ERROR, "session.poisoned", session=self.name, token=error.token, state=error.state)

    def _check(self) -> None:
        poison = self._now.poison
        if poison is not None:
            raise SessionPoisonedError(
                f"this session stopped at position {self.position} ({poison})",
                "call reset() to start it afresh, or rewind() to go on from a mark",
            )

    def _sibling(self, name: str | None, moment: Moment) -> Session:
        return Session(self._shared, name, moment)

    def _beginning(self) -> Moment:
        nothing = np.zeros((0, self._manifest.surprise_layers), np.float32)
        return Moment(self._shared.feeder.backend.initial(1), None, nothing)

    def _home(self, state: StreamState) -> State:
        return self._shared.feeder.home(state)

    def _own_moment(self) -> Moment:
        """Where this session stands, with its state at home; sound, even if the session is poisoned there."""
        self._now = replace(self._now, state=self._home(self._now.state))
        return replace(self._now, poison=None)

    def _stands(self) -> None:
        """Told after the state was replaced by one that is in memory, outside of a feed."""

    def _encode(self, prompt: str | bytes | Sequence[int] | IdArray, special: bool) -> Sequence[int] | IdArray:
        if not isinstance(prompt, str | bytes):
            return prompt
        tokenizer = self._shared.tokenizer()
        if tokenizer is None:
            raise TextError("this model has no tokenizer to read text with", "pass token ids")
        if not prompt:
            raise InputError("the prompt is empty", "give it at least one character")
        return tokenizer.encode(prompt, special)


def moment_of(feeder: Feeder, data: bytes, source: str) -> Moment:
    """The moment that a state file's bytes hold; the last feed's surprise is not stored. Raises `StateError`."""
    try:
        saved = state_file.unpack(feeder.manifest, data, source)
        state = feeder.backend.write(saved.tensors, 1, saved.header.position)
    except MemoryError as error:
        raise StateError(f"{source} needs more memory than there is", "close other sessions first") from error
    nothing = np.zeros((0, feeder.manifest.surprise_layers), np.float32)
    return Moment(state, saved.last, nothing, saved.header.totals, saved.header.commits, saved.header.recent)
