"""libtitans as Python sees it through ctypes: thin, so that the tests speak to the C interface itself."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from titans_runtime.arrays import FloatArray

# In the order of `titans_code`.
CODES = (
    "ok",
    "input",
    "bundle",
    "provider",
    "execution",
    "non_finite",
    "poisoned",
    "busy",
    "state",
    "memory",
    "internal",
)
ENDED = (None, "eos", "stop", "length")


class Error(c.Structure):
    """`titans_error`."""

    _fields_ = (("code", c.c_int), ("message", c.c_char * 1020))


class Options(c.Structure):
    """`titans_options`."""

    _fields_ = (
        ("size", c.c_size_t),
        ("onnxruntime", c.c_char_p),
        ("kernels", c.c_char_p),
        ("provider", c.c_char_p),
        ("threads", c.c_int32),
    )


class Info(c.Structure):
    """`titans_model_info`."""

    _fields_ = (
        ("size", c.c_size_t),
        ("name", c.c_char_p),
        ("variant", c.c_char_p),
        ("dtype", c.c_char_p),
        ("vocab_size", c.c_int64),
        ("features", c.c_int64),
        ("outputs", c.c_int64),
        ("surprise_layers", c.c_int64),
        ("chunk", c.c_int64),
        ("state_bytes", c.c_int64),
        ("fused", c.c_int32),
    )


class Outputs(c.Structure):
    """`titans_outputs`."""

    _fields_ = (
        ("last", c.c_void_p),
        ("all", c.c_void_p),
        ("surprise", c.c_void_p),
        ("last_count", c.c_size_t),
        ("all_count", c.c_size_t),
        ("surprise_count", c.c_size_t),
    )


class Sampling(c.Structure):
    """`titans_sampling`."""

    _fields_ = (
        ("size", c.c_size_t),
        *((name, c.c_double) for name in ["temperature", "top_p", "min_p", "repetition_penalty"]),
        *((name, c.c_int64) for name in ["top_k", "seed", "max_new_tokens"]),
        ("stop_ids", c.POINTER(c.c_int64)),
        ("stop_count", c.c_size_t),
        ("ignore_eos", c.c_int32),
    )


class TitansCodeError(Exception):
    """A call that returned something else than TITANS_OK."""

    def __init__(self, error: Error) -> None:
        self.code = CODES[error.code]
        super().__init__(error.message.decode())


class Library:
    """The shared library; `call` raises what it reports."""

    def __init__(self, path: Path) -> None:
        self.dll = c.CDLL(str(path))
        self.dll.titans_session_position.restype = c.c_int64
        self.dll.titans_version.restype = c.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        error = Error()
        code = getattr(self.dll, f"titans_{name}")(*arguments, c.byref(error))
        assert code == error.code
        if code:
            raise TitansCodeError(error)


class CModel:
    """A model, closed with the object."""

    def __init__(
        self,
        library: Library,
        bundle: Path,
        onnxruntime: Path,
        kernels: Path | None = None,
        provider: str | None = None,
        threads: int = 1,
    ) -> None:
        self.library, self.handle = library, c.c_void_p()
        names = [None if each is None else str(each).encode() for each in (onnxruntime, kernels, provider)]
        options = Options(c.sizeof(Options), *names, threads)
        library.call("model_load", str(bundle).encode(), c.byref(options), c.byref(self.handle))

    def __del__(self) -> None:
        self.library.dll.titans_model_close(self.handle)

    @property
    def info(self) -> Info:
        """What it is."""
        info = Info(c.sizeof(Info))
        self.library.call("model_describe", self.handle, c.byref(info))
        return info

    def session(self) -> CSession:
        """A stream at its beginning."""
        handle = c.c_void_p()
        self.library.call("session_open", self.handle, c.byref(handle))
        return CSession(self, handle)

    def restore(self, path: Path) -> CSession:
        """A saved one."""
        handle = c.c_void_p()
        self.library.call("session_restore", self.handle, str(path).encode(), c.byref(handle))
        return CSession(self, handle)

    def restore_bytes(self, data: bytes) -> CSession:
        """The same."""
        handle = c.c_void_p()
        self.library.call("session_restore_bytes", self.handle, data, c.c_size_t(len(data)), c.byref(handle))
        return CSession(self, handle)

    def sampling(self, **options: Any) -> Sampling:
        """The model's defaults, and what the caller says."""
        sampling = Sampling()
        self.library.call("sampling_init", self.handle, c.byref(sampling))
        for name, value in options.items():
            setattr(sampling, name, value)
        return sampling


class CSession:
    """A session, closed with the object."""

    def __init__(self, model: CModel, handle: c.c_void_p) -> None:
        self.model, self.library, self.handle = model, model.library, handle
        info = model.info
        self.outputs, self.layers, self.features = info.outputs, info.surprise_layers, info.features

    def __del__(self) -> None:
        self.library.dll.titans_session_close(self.handle)

    @property
    def position(self) -> int:
        """Tokens consumed."""
        return int(self.library.dll.titans_session_position(self.handle))

    def feed(self, inputs: Sequence[int] | np.ndarray[Any, Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Everything that comes out: `[T, V]`, surprise `[T, M]`, `[V]`."""
        array = np.ascontiguousarray(inputs, np.float32 if self.features else np.int64)
        every = np.full((len(array), self.outputs), np.nan, np.float32)
        surprise = np.full((len(array), self.layers), np.nan, np.float32)
        last = np.full(self.outputs, np.nan, np.float32)
        wanted = Outputs(
            last.ctypes.data, every.ctypes.data, surprise.ctypes.data, last.size, every.size, surprise.size
        )
        name = "session_feed_vectors" if self.features else "session_feed"
        data = array.ctypes.data_as(c.c_void_p)
        self.library.call(name, self.handle, data, c.c_size_t(len(array)), c.byref(wanted))
        return every, surprise, last

    def last(self) -> FloatArray:
        """Outputs after the last token."""
        last = np.empty(self.outputs, np.float32)
        self.library.call("session_last", self.handle, last.ctypes.data_as(c.c_void_p), c.c_size_t(last.size))
        return last

    def reset(self) -> None:
        """Back to the beginning."""
        self.library.call("session_reset", self.handle)

    def fork(self) -> CSession:
        """Another one that stands here."""
        handle = c.c_void_p()
        self.library.call("session_fork", self.handle, c.byref(handle))
        return CSession(self.model, handle)

    def mark(self) -> CMark:
        """A place to come back to."""
        handle = c.c_void_p()
        self.library.call("session_mark", self.handle, c.byref(handle))
        return CMark(self.library, handle)

    def rewind(self, mark: CMark) -> None:
        """Back to it."""
        self.library.call("session_rewind", self.handle, mark.handle)

    def save(self, path: Path, force: bool = False) -> None:
        """To a file."""
        self.library.call("session_save", self.handle, str(path).encode(), int(force))

    def to_bytes(self) -> bytes:
        """The same as bytes."""
        data, size = c.c_void_p(), c.c_size_t()
        self.library.call("session_to_bytes", self.handle, c.byref(data), c.byref(size))
        found = c.string_at(data, size.value)
        self.library.dll.titans_bytes_free(data)
        return found

    def generate(
        self, prompt: Sequence[int] | None, sampling: Sampling, room: int = 4096
    ) -> tuple[list[int], str | None]:
        """Tokens, and why they ended."""
        ids = None if prompt is None else np.array(prompt, np.int64)
        tokens, made, ended = np.empty(room, np.int64), c.c_size_t(), c.c_int()
        self.library.call(
            "session_generate",
            self.handle,
            None if ids is None else ids.ctypes.data_as(c.c_void_p),
            c.c_size_t(0 if ids is None else len(ids)),
            c.byref(sampling),
            tokens.ctypes.data_as(c.c_void_p),
            c.c_size_t(room),
            c.byref(made),
            c.byref(ended),
        )
        return tokens[: made.value].tolist(), ENDED[ended.value]


class CMark:
    """A mark, freed with the object."""

    def __init__(self, library: Library, handle: c.c_void_p) -> None:
        self.library, self.handle = library, handle

    def __del__(self) -> None:
        self.library.dll.titans_mark_free(self.handle)
