"""A loaded bundle: the weights and graphs that all its sessions share.

Knows how the parts are put together. Does not drive streams (`session`, `driver`) or run graphs (`backends`).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from titans_runtime import statefile
from titans_runtime.backends import select
from titans_runtime.backends.base import Backend, LoadOptions
from titans_runtime.bundle import Bundle, open_bundle
from titans_runtime.describe import Description, describe
from titans_runtime.driver import DirectFeeder, Driver
from titans_runtime.errors import InputError, TextError
from titans_runtime.manifest import Manifest, TokenInputs
from titans_runtime.observe import Observer
from titans_runtime.session import Session, Shared, moment_of
from titans_runtime.text import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from titans_runtime.batching.batch import Batch

_MANY_THREADS = 64  # may be asked for on any machine


def load(path: str | os.PathLike[str], provider: str = "auto", threads: int | None = None) -> Model:
    """Load a bundle, checking every file's hash.

    Args:
        path: the bundle's directory.
        provider: where it runs, such as "cpu" or "webgpu" (`titans doctor` lists them); "auto" is the best one that
            works here, and `Model.passed_over` then says why better ones do not.
        threads: CPU threads per graph; None is one per core.

    Raises:
        BundleError: a file is missing, truncated, altered or of a newer format.
        ProviderError: an unknown provider, or one that does not work here.
        InputError: `threads` is not a positive number, or far above what any machine has a use for.
    """
    options = LoadOptions(threads=_threads(threads))
    bundle = open_bundle(path)
    selected = select(bundle, provider, options)
    return Model(bundle, selected.backend, selected.passed_over)


class Model:
    """The weights and graphs of one bundle at one provider. Made by `load`; safe to share between threads."""

    def __init__(self, bundle: Bundle, backend: Backend, passed_over: Mapping[str, str] | None = None) -> None:
        self._bundle = bundle
        self._passed_over = dict(passed_over or {})
        self._backend = backend
        self._shared = Shared(DirectFeeder(bundle.manifest, backend), lambda: self.tokenizer)

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
    def state_bytes(self) -> int:
        """Bytes of state that one stream owns."""
        return self.manifest.stream_bytes

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The bundle's tokenizer, opened when first needed; None for a model without one."""
        return open_tokenizer(self._bundle.path, self.manifest)

    def encode(self, text: str | bytes) -> list[int]:
        """The token ids of a text. Raises `TextError` without a tokenizer, or for text that is not UTF-8."""
        if self.tokenizer is None:
            raise TextError("this model has no tokenizer to read text with; pass token ids")
        return self.tokenizer.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids. Raises `TextError` without a tokenizer."""
        if self.tokenizer is None:
            raise TextError("this model has no tokenizer to write text with; use the ids")
        stream = self.tokenizer.stream()
        return "".join(stream.push(token) for token in tokens) + stream.finish()

    def session(self, name: str | None = None) -> Session:
        """A stream of its own, at its beginning; `name` is what logs and observers call it."""
        return Session(self._shared, name)

    def restore(self, path: str | os.PathLike[str], name: str | None = None) -> Session:
        """A session as `Session.save` wrote it; going on from there equals never having stopped.

        Raises:
            StateError: a file that is missing, damaged, of a newer format, or of another model.
        """
        return self._restored(statefile.read_file(path, self.manifest), str(path), name)

    def restore_bytes(self, data: bytes, name: str | None = None) -> Session:
        """A session from what `Session.to_bytes` gave. Raises `StateError`."""
        return self._restored(data, "the state", name)

    def _restored(self, data: bytes, source: str, name: str | None) -> Session:
        return Session(self._shared, name, moment_of(self._shared.feeder, data, source))

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
        from titans_runtime.batching.batch import Batch

        return Batch(self._shared, lanes, resident, folder)

    def observe(self, observer: Observer) -> None:
        """Call `observer` with a `FeedEvent` after every feed of every session, on the thread that feeds.

        It is called before the feed counts: if it raises, the session is as it was and the error reaches the caller.
        """
        self._shared.observers.append(observer)

    def driver(self, batch: int = 1) -> Driver:
        """`batch` streams in lockstep without a session's checks and comforts, as verification and benchmarks need."""
        return Driver(self._shared.feeder, batch)

    def describe(self) -> Description:
        """What this bundle is, as data."""
        return describe(self.manifest)


def _threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    try:
        count = operator.index(threads)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"threads is {threads!r}; use a whole number of 1 or above, or leave it out")
    cores = os.cpu_count() or 1
    most = max(_MANY_THREADS, 4 * cores)
    if count > most:
        raise InputError(
            f"threads is {count}, and this machine has {cores} cores; use at most {most} for a graph, or leave it out"
        )
    return count
