"""One stream of memory, as a user holds it: feed it, read its surprise, let it generate, save it, branch it.

The model owns the weights, the session owns the state. A call either completes or leaves the session as it was,
whatever stops it. A session that meets numbers that are not finite goes back to where it was before the call and is
poisoned: it refuses to go on, and says so, until it is reset or rewound. A session is used by one thread at a time,
which is enforced; several sessions of a model may run in several threads.

Knows what users pass in and get back. Where a session stands is its `stream`'s business, who makes its calls its
`feeder`'s. Does not know graphs and buffers, how a token is drawn (`sampling`), or files (`state_file`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from titans_format.errors import TitansError
from titans_format.fields import Ends, TokenInputs
from titans_runtime.arguments import flag, function, instance, shown, whole
from titans_runtime.arrays import Array, FloatArray, IdArray
from titans_runtime.atomic import check_writable, regular_target, write_atomically
from titans_runtime.chat.template import ChatTemplate, Messages
from titans_runtime.chat.turns import turn_ids
from titans_runtime.errors import InputError, StateError, TextError
from titans_runtime.logs import record
from titans_runtime.state.calls import TopK
from titans_runtime.stream import state_file, state_int8
from titans_runtime.stream.inputs import Inputs, checked_ends, checked_inputs, checked_tokens
from titans_runtime.stream.lineage import Lineage, locked
from titans_runtime.stream.memories import can_die, dead_memories, learned_names, memory_distances
from titans_runtime.stream.observe import SessionStats
from titans_runtime.stream.snapshot import OPEN, Mark, Snapshot
from titans_runtime.stream.stream import Feeder, Shared, Stream
from titans_runtime.text.sampling import Sampler, SamplingOptions, chosen_options
from titans_runtime.text.stopping import Reason, StopFilter, Transcript, check_stops
from titans_runtime.text.tokenizer import Tokenizer

# Tokens of a prompt that are one call: what an interrupt loses at most, and the overhead of a call is nothing to it.
PIECE = 1024
_NEW_TOKENS = 64  # where neither the caller nor the model says

OnProgress = Callable[[int, int], None]  # (tokens of the prompt that were read, all of them)


class Session:
    """One stream. Made by `Model.session()` and `Model.restore()`, or of another by `fork()`."""

    def __init__(
        self,
        shared: Shared,
        name: str | None = None,
        snapshot: Snapshot | None = None,
        lineage: Lineage | None = None,
    ) -> None:
        self._stream = Stream(shared, name, snapshot)
        self._shared = shared
        self._manifest = shared.manifest
        self._ended: Reason | None = None
        self._lineage = lineage or Lineage()
        if snapshot is not None:
            shared.feeder.placed(self._stream)

    @property
    def name(self) -> str:
        """What logs and observers call it."""
        return self._stream.name

    @property
    def position(self) -> int:
        """Tokens consumed since the beginning or the last reset."""
        return self._stream.now.position

    @property
    def surprise(self) -> FloatArray:
        """How surprising each token of the last feed was, float32 `[T]`: the mean over the memory layers.

        Zeros for a model without memory.
        """
        surprise = self._stream.now.surprise
        if surprise.shape[1] == 0:
            return np.zeros(len(surprise), np.float32)
        mean: FloatArray = surprise.mean(axis=1, dtype=np.float32)
        return mean

    @property
    def surprise_by_layer(self) -> FloatArray:
        """Surprise of each token of the last feed in each memory layer, float32 `[T, M]`."""
        return self._stream.now.surprise.copy()

    @property
    def stats(self) -> SessionStats:
        """Figures of this session. Reads the whole state, for its norms."""
        stream, feeder = self._stream, self._shared.feeder
        backend = feeder.backend
        with stream.guard:
            now = stream.now
            state = backend.read(feeder.home(now.state))
        beginning = backend.read(backend.initial(1))
        start = {name: beginning[name] for name in learned_names(self._manifest)}
        return SessionStats(
            session=self.name,
            position=now.position,
            commits=now.commits,
            fed_tokens=stream.fed_tokens,
            seconds=stream.seconds,
            state_bytes=self._manifest.stream_bytes,
            state_norms={name: float(np.linalg.norm(value)) for name, value in state.items()},
            memories=memory_distances(start, state),
            dead_memories=tuple(dead_memories(start, state)) if can_die(self._manifest) else (),
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
        array, every = self._checked(inputs, all_logits)
        return self._shared.feeder.feed(self._stream, array, every)

    def reset(self) -> None:
        """Forget everything and start afresh; also a way out of a poisoned session."""
        with self._stream.guard:
            self._stream.now = self._stream.beginning()

    def mark(self) -> Mark:
        """Where the session stands, for `rewind`. Costs no copy; the state lives as long as the mark."""
        here = self._here()
        return Mark(self._manifest.state_identity, here, here.position, self._shared.feeder.backend)

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
        with self._stream.guard:
            self._stream.now = mark.snapshot
        self._shared.feeder.placed(self._stream)

    def fork(self, name: str | None = None) -> Self:
        """Another session that stands where this one stands: two futures of one memory.

        Copies nothing: what both have in common stays shared for as long as neither changes it.
        """
        return type(self)(self._shared, name, self._here(), self._lineage.copy())

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

    def to_bytes(self, *, compress: bool = False, int8: bool = False) -> bytes:
        """This session as bytes, for a database or an object store; `Model.restore_bytes` reads them.

        Args:
            compress: as in `save`.
            int8: eight bits a number, about a quarter of the bytes; what is restored is rounded once. Not together with
                `compress`.

        Raises:
            InputError: both at once.
        """
        rounded = flag("int8", int8)
        if rounded and flag("compress", compress):
            raise InputError("a state in int8 is not compressed", "leave out one of compress and int8")
        data = self._packed(compress)
        if rounded:
            data = state_int8.rounded(data)
        self._lineage.given(data)
        return data

    def _packed(self, compress: bool) -> bytes:
        compressed = flag("compress", compress)
        try:
            feeder = self._shared.feeder
            with self._stream.guard:
                now = self._stream.now
                tensors = feeder.backend.read(feeder.home(now.state))
            return state_file.pack(self._manifest, tensors, now, compress=compressed)
        except MemoryError as error:
            raise StateError(f"there is not enough memory to save {self.name}", "close other sessions first") from error

    def generate(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
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
            max_new_tokens: generate at most this many tokens; None is the model's own default, or 64.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: see `SamplingOptions`. None is the model's own
                default (`Manifest.generation`); a `top_k` of 0 and a `top_p` of 1 are none.
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
        options = chosen_options(
            self._manifest.generation,
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

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        stop_ids: Iterable[int] = (),
        on_progress: OnProgress | None = None,
    ) -> Iterator[str]:
        """Answer new messages of a conversation, piece by piece, as the model's chat template has it.

        The session is the conversation: it remembers what was said, so `messages` are those since its last answer. A
        system prompt belongs to the first ones. What a user wrote is text, whatever it spells. An answer that was
        broken off is closed before the next message is read.

        Args:
            messages: a user's message, or messages with `role` and `content`.
            max_new_tokens and the others: as in `generate`.

        Raises:
            TextError: the model has no chat template, or the template does not take these messages.
            InputError: messages of another shape; others as in `generate`.
        """
        prompt = self.chat_prompt(messages)
        options = chosen_options(
            self._manifest.generation,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        _, tokenizer = self._conversation()
        stops = StopFilter(stop)
        check_stops(tokenizer, stops)
        ends = self.ends(stop_ids)
        tokens = self._begin(prompt, max_new_tokens, options, ends, False, on_progress)
        return self._as_text(self._one_turn(tokens, ends), tokenizer, stops, ends)

    def chat_prompt(self, messages: Messages, begin: bool = False) -> list[int]:
        """The ids that `chat` reads before its answer, for `generate_tokens(ids, answering=True)`. Reads nothing.

        Args:
            messages: as in `chat`.
            begin: they begin another conversation in the same stream.

        Raises:
            As `chat`.
        """
        template, tokenizer = self._conversation()
        turn = self._stream.now.turn
        return turn_ids(template, tokenizer, messages, turn, self.position, begin=flag("begin", begin))

    def _conversation(self) -> tuple[ChatTemplate, Tokenizer]:
        """How conversations are written and read. Raises `TextError` for a model that has none."""
        template, tokenizer = self._shared.template(), self._shared.tokenizer()
        if template is None or tokenizer is None:
            raise TextError(
                "this model has no chat template",
                "put the conversation into words for generate(), or export it with --chat-template FILE",
            )
        return template, tokenizer

    @property
    def conversing(self) -> bool:
        """Whether a conversation has begun in this stream, so that `chat` goes on with it."""
        return self._stream.now.turn is not None

    def _one_turn(self, tokens: Iterator[int], ends: Mapping[int, Reason]) -> Iterator[int]:
        """The tokens of an answer. An answer is open from its first message until one of them ends it."""
        before = self._stream.now
        self._set_turn(OPEN)
        try:
            for token in tokens:
                if token in ends:
                    self._set_turn(token)
                yield token
        finally:
            if self._stream.now.state is before.state:  # nothing was read
                self._set_turn(before.turn)

    def _set_turn(self, turn: int | None) -> None:
        with self._stream.guard:
            self._stream.take_turn(turn)

    def generate_tokens(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int | None = None,
        options: SamplingOptions | None = None,
        stop_ids: Iterable[int] = (),
        ignore_eos: bool = False,
        special: bool = False,
        on_progress: OnProgress | None = None,
        answering: bool = False,
    ) -> Iterator[int]:
        """Continue a prompt as token ids, the one that ends them included.

        Arguments, order of events and errors as in `generate`. `answering` says that the prompt is one of `chat_prompt`
        and the tokens are the answer, so that `chat` can go on after it.
        """
        ends = self.ends(stop_ids, ignore_eos)
        chosen = chosen_options(self._manifest.generation) if options is None else options
        tokens = self._begin(prompt, max_new_tokens, chosen, ends, special, on_progress)
        return self._one_turn(tokens, ends) if flag("answering", answering) else tokens

    def _begin(
        self,
        prompt: str | bytes | Sequence[int] | IdArray | None,
        max_new_tokens: int | None,
        options: SamplingOptions,
        ends: Mapping[int, Reason],
        special: bool,
        on_progress: OnProgress | None,
    ) -> Iterator[int]:
        """Check everything, and generate when the first token is asked for."""
        kind = self._manifest.inputs
        if not isinstance(kind, TokenInputs):
            raise InputError("a continuous model has no tokens to generate", "feed its predictions back with feed()")
        self._stream.check()
        if max_new_tokens is None:
            max_new_tokens = self._manifest.generation.max_new_tokens or _NEW_TOKENS
        limit = whole("max_new_tokens", max_new_tokens, 0, "use a whole number of 0 or above, such as 64")
        ids = (
            None if prompt is None else checked_tokens(self._encode(prompt, flag("special", special)), kind.vocab_size)
        )
        if ids is None and self._stream.now.last is None:
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
        return self._stream.now.recent

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
                self._shared.feeder.feed(self._stream, np.array([token], np.int64), False, sampler.needs)
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
            self._shared.feeder.feed(self._stream, piece, False, sampler.needs)
            done += len(piece)
            if on_progress is not None:
                on_progress(done, len(prompt))

    def _settle(self) -> None:
        """Leave nothing but the state on a device, if the session is not in use; else it is fetched when needed."""
        with contextlib.suppress(TitansError), self._stream.guard:
            self._stream.settle()

    def _choose(self, sampler: Sampler) -> int:
        """The next token, from as little as the sampler needs and the provider brought."""
        now = self._stream.now
        if isinstance(now.last, TopK) and sampler.needs is not None and now.last.ids.shape[1] >= sampler.needs:
            return sampler.choose_among(now.last.ids[0, : sampler.needs], now.last.scores[0, : sampler.needs])
        outputs = now.outputs
        if outputs is None:
            raise InputError("the session was reset while it generated", "start again with a prompt")
        return sampler.choose(outputs)

    def _here(self) -> Snapshot:
        """Where this session stands, for another to stand there too."""
        with self._stream.guard:
            here = self._stream.own_snapshot()
        self._shared.feeder.placed(self._stream)
        return here

    def _checked(self, inputs: Inputs, all_logits: bool = False) -> tuple[Array, bool]:
        """Inputs that the model can take, and whether every token's outputs are wanted. Raises `InputError`."""
        kind = self._manifest.inputs
        return checked_inputs(kind, inputs), flag("all_logits", all_logits) or not isinstance(kind, TokenInputs)

    def _encode(self, prompt: str | bytes | Sequence[int] | IdArray, special: bool) -> Sequence[int] | IdArray:
        if not isinstance(prompt, str | bytes):
            return prompt
        tokenizer = self._shared.tokenizer()
        if tokenizer is None:
            raise TextError("this model has no tokenizer to read text with", "pass token ids")
        if not prompt:
            raise InputError("the prompt is empty", "give it at least one character")
        return tokenizer.encode(prompt, special)


def snapshot_of(feeder: Feeder, data: bytes, source: str) -> Snapshot:
    """Where a state file's bytes stand; the last feed's surprise is not stored. Raises `StateError`."""
    manifest = feeder.planner.manifest
    try:
        saved = state_file.unpack(manifest, state_int8.expanded(data, source), source)
        state = feeder.backend.write(saved.tensors, 1, saved.header.position)
    except MemoryError as error:
        raise StateError(f"{source} needs more memory than there is", "close other sessions first") from error
    nothing = np.zeros((0, manifest.surprise_layers), np.float32)
    header = saved.header
    return Snapshot(state, saved.last, nothing, header.totals, header.commits, header.recent, turn=header.turn)
