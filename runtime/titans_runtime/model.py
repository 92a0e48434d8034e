"""A loaded bundle: the weights and graphs that all its sessions share.

Knows how the parts are put together. Does not drive streams (`session`, `driver`) or run graphs (`devices`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from titans_format.errors import BundleError
from titans_format.fields import TokenInputs
from titans_format.manifest import Manifest
from titans_runtime import native
from titans_runtime.arguments import checked_bytes, checked_path, flag, function, shown, whole
from titans_runtime.bundle import Bundle, check_memory, opening, without_writes
from titans_runtime.chat.template import ChatTemplate, Messages
from titans_runtime.chat.user_text import marks
from titans_runtime.describe import Description, describe
from titans_runtime.devices.cores import most_threads
from titans_runtime.devices.select import select
from titans_runtime.errors import InputError, TextError
from titans_runtime.hub import fetch, is_name
from titans_runtime.series import SeriesScaling
from titans_runtime.state.backend import Backend
from titans_runtime.state.calls import LoadOptions
from titans_runtime.stream import state_file
from titans_runtime.stream.driver import Driver
from titans_runtime.stream.feeder import DirectFeeder
from titans_runtime.stream.inputs import checked_ids
from titans_runtime.stream.lineage import Lineage
from titans_runtime.stream.observe import Observer
from titans_runtime.stream.session import Session, snapshot_of
from titans_runtime.stream.state_adopt import adopted
from titans_runtime.stream.stream import Shared
from titans_runtime.text.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from titans_runtime.serving.batch import Batch


def load(path: str | os.PathLike[str], provider: str = "auto", threads: int | None = None) -> Model:
    """Load a bundle, checking every file's hash.

    Args:
        path: the bundle's directory, or `ORG/NAME` or `ORG/NAME@REVISION` of a model hub where there is no such path.
        provider: where it runs, such as "cpu" or "webgpu" (`titans doctor` lists them); "auto" is the best one that
            works here, and `Model.passed_over` then says why better ones do not.
        threads: CPU threads per graph; None is one for each core that this process may use.

    Raises:
        BundleError: a file is missing, truncated, altered or of a newer format.
        ProviderError: an unknown provider, or one that does not work here.
        InputError: `threads` is not a positive number or far above what the machine has a use for, or `TITANS_KERNELS`
            something that it cannot mean.
    """
    folder = checked_path(path)
    if is_name(folder):
        folder = fetch(str(folder))
    options = LoadOptions(threads=None if threads is None else _threads(threads))
    native.switched_off()  # refuses what it cannot mean, before anything else is done
    try:
        with opening(folder) as bundle:
            check_memory(bundle.manifest)
            selected = select(bundle, provider, options)
    except MemoryError as error:
        raise BundleError(f"{folder} needs more memory than there is", "load a smaller model or precision") from error
    return Model(bundle, selected.backend, selected.passed_over, options)


class Model:
    """The weights and graphs of one bundle at one provider. Made by `load`; safe to share between threads."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        passed_over: Mapping[str, str] | None = None,
        options: LoadOptions | None = None,
    ) -> None:
        self._bundle = bundle
        self._options = options or LoadOptions()
        self._passed_over = dict(passed_over or {})
        self._backend = backend
        self._shared = Shared(
            DirectFeeder(bundle.manifest, backend),
            tokenizer=lambda: self.tokenizer,
            silent=self._silent,
            template=lambda: self.chat_template,
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    @property
    def provider(self) -> str:
        """Where it runs."""
        return self._backend.provider

    @property
    def passed_over(self) -> dict[str, str]:
        """Why `provider="auto"` did not take the providers that it would have liked better, by name."""
        return dict(self._passed_over)

    @property
    def vocab_size(self) -> int | None:
        """Token ids are 0..vocab_size-1; None for a continuous model."""
        inputs = self.manifest.inputs
        return inputs.vocab_size if isinstance(inputs, TokenInputs) else None

    @property
    def series(self) -> SeriesScaling:
        """How a forecaster's series was scaled: `inputs` of measured values, `forecasts` of outputs.

        Raises `InputError` for a model that was not trained on a series.
        """
        if self.manifest.series is None:
            raise InputError(
                "this bundle knows no series",
                "export a checkpoint of `titans train --task series` with this version of"
                " titans-deploy, or scale inputs and outputs as its training did",
            )
        return SeriesScaling.of(self.manifest.series)

    @property
    def state_bytes(self) -> int:
        """Bytes of state that one stream owns."""
        return self.manifest.stream_bytes

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The bundle's tokenizer, opened when first needed; None for a model without one."""
        opened = open_tokenizer(self._bundle.path, self.manifest)
        self._bundle.check_tokenizer()  # after it: what was opened is what was hashed
        return opened

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """How conversations are written for this model, rendered when first needed; None for a model without one."""
        info = self.manifest.chat_template
        if info is None:
            return None
        file = self._bundle.path / info.file
        try:
            source = self._bundle.contents[info.file].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{file} is not UTF-8 (byte {error.start})", "export the bundle again") from None
        return ChatTemplate(source, info.tokens, str(file))

    def encode_chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The token ids of a whole conversation, as its template has it; `Session.chat` reads them turn by turn.

        Args:
            messages: a user's message, or messages with `role` and `content`; what they say is text, always.
            add_generation_prompt: end with what an answer begins with.

        Raises:
            TextError: there is no chat template or no tokenizer, or the template does not take these messages.
            InputError: messages of another shape.
            BundleError: the template is not one.
        """
        if self.chat_template is None or self.tokenizer is None:
            raise TextError("this model has no chat template", "export it with --chat-template FILE, or use encode()")
        text = self.chat_template.render(messages, flag("add_generation_prompt", add_generation_prompt))
        return self.tokenizer.encode_marked(text, marks(text))

    def encode(self, text: str | bytes, special: bool = False) -> list[int]:
        """The token ids of a text, without special tokens around it.

        Args:
            text: a string, or bytes of UTF-8.
            special: read special tokens that are written out as tokens. Without it they are text, whoever wrote it.

        Raises:
            TextError: there is no tokenizer, the text is not UTF-8, or the tokenizer cannot express it.
        """
        if self.tokenizer is None:
            raise TextError("this model has no tokenizer to read text with", "pass token ids")
        if not isinstance(text, str | bytes):
            raise TextError(f"the text is {shown(text)}", "pass a string, or UTF-8 bytes")
        return self.tokenizer.encode(text, special)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids; special tokens are left out, or written out with `special`.

        Raises:
            TextError: there is no tokenizer.
            InputError: ids that are negative or not whole numbers.
        """
        if self.tokenizer is None:
            raise TextError("this model has no tokenizer to write text with", "use the ids")
        return self.tokenizer.decode(checked_ids(tokens), special)

    def _silent(self, token: int) -> bool:
        """Whether an id has no text, as far as that is known without opening the tokenizer for it."""
        tokenizer: Tokenizer | None = self.__dict__.get("tokenizer")
        return tokenizer is not None and tokenizer.silent(token)

    def session(self, name: str | None = None) -> Session:
        """A stream of its own, at its beginning; `name` is what logs and observers call it."""
        return Session(self._shared, name)

    def restore(self, path: str | os.PathLike[str], name: str | None = None) -> Session:
        """A session as `Session.save` wrote it; going on from there equals never having stopped.

        Raises:
            StateError: a file that is missing, damaged, of a newer format, or of another model.
        """
        file = checked_path(path)
        return self._restored(state_file.read_file(file, self.manifest), str(file), name, file)

    def restore_bytes(self, data: bytes, name: str | None = None) -> Session:
        """A session from what `Session.to_bytes` gave. Raises `StateError`."""
        return self._restored(checked_bytes("the state", data), "the state", name)

    def adopt_bytes(self, data: bytes, name: str | None = None) -> Session:
        """A session from a state of another model of the same shape, such as another precision of the checkpoint.

        The numbers of the memory stay as they are. How well this model goes on from them has to be measured
        (`titans state adopt`).

        Raises:
            StateError: damaged, or of a model with another state table, vocabulary or chunk.
        """
        source = "the state"
        return self._restored(adopted(self.manifest, checked_bytes(source, data), source), source, name)

    def _restored(
        self, data: bytes, source: str, name: str | None, path: str | os.PathLike[str] | None = None
    ) -> Session:
        snapshot = snapshot_of(self._shared.feeder, data, source)
        return Session(self._shared, name, snapshot, Lineage(data, path))

    def batch(
        self, lanes: int = 16, resident: int | None = None, folder: str | os.PathLike[str] | None = None
    ) -> Batch:
        """Many sessions that run together.

        Args:
            lanes: sessions that are stepped by one call at most.
            resident: sessions whose state is in memory at most; those used longest ago wait on disk. None: no limit.
            folder: where they wait; None for the system's temporary folder.

        Raises:
            InputError: `lanes` or `resident` is not a positive number.
        """
        from titans_runtime.serving.batch import Batch

        return Batch(self._shared, lanes, resident, folder)

    def observe(self, observer: Observer) -> None:
        """Call `observer` with a `FeedEvent` after every feed of every session, on the thread that feeds.

        It is called before the feed counts: if it raises, the session is as it was and the error reaches the caller.
        """
        self._shared.observers.append(function("the observer", observer))

    def driver(self, batch: int = 1) -> Driver:
        """`batch` streams in lockstep without a session's checks and comforts, as verification and benchmarks need."""
        return Driver(self.manifest, self._backend, whole("batch", batch, 1, "use a number of streams of 1 or above"))

    def without_writes(self) -> Model:
        """The same model whose memories are never written: the control that shows what writing is worth.

        The weights are shared. It runs on the CPU where this model runs as engines, which hold weights of their own.

        Raises:
            InputError: no memory of the model is written, or it was imported.
        """
        off = without_writes(self._bundle)
        provider = "cpu" if "tensorrt" in self.provider else self.provider
        return Model(off, select(off, provider, self._options).backend, options=self._options)

    def describe(self) -> Description:
        """What this bundle is, as data."""
        return describe(self.manifest)


def _threads(threads: int) -> int:
    most = most_threads()
    return whole("threads", threads, 1, f"use a whole number from 1 to {most} for this machine, or leave it out", most)
