"""Whatever is passed to the public API: it works, or it is a `TitansError`, and the session is where it was."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import titans_runtime
from titans_runtime import (
    Driver,
    ExecutionError,
    InputError,
    Manifest,
    Model,
    SamplingOptions,
    SeriesScaling,
    Session,
    StateError,
    TitansError,
    load,
)
from titans_runtime.chat.template import ChatTemplate
from titans_runtime.serving.batch import Batch, BatchSession

Call = Callable[[Any], object]


class Evil:
    """Fails at everything, its own name included."""

    def _fail(self, *arguments: object) -> Any:
        raise RuntimeError("evil")

    __index__ = __len__ = __iter__ = __float__ = __array__ = __fspath__ = __bool__ = __repr__ = __str__ = _fail


def endless() -> list[object]:
    """A list that contains itself."""
    values: list[object] = []
    values.append(values)
    return values


# fmt: off
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**200, -(2**200), 10**5000),
    *(1.5, 1e308, float("nan"), float("inf"), 1j, np.float32(1), np.int64(3), np.int64(-1), np.datetime64("2020")),
    *("", "a", "caf\u00e9", "\ud800", "\0", "a\0b", "a" * 5000, b"", b"\xff", bytearray(b"a"), memoryview(b"ab")),
    *([], [None], [[1]], [1.5], ["a"], [2**200], [-1], ["\ud800"], (1, 2), range(3), {}, {"a": 1}, {1}, endless()),
    *(object(), Evil(), [Evil()], ..., Session, SamplingOptions(), Path("nothing"), Path("/")),
    *(Path("a\0b"), Path("\ud800"), Path("x" * 300), Path("nowhere/x"), Path("junk"), Path("folder")),
    *(np.array(1), np.array([1, 2]), np.array([2**63], np.uint64), np.array(["a"]), np.array([None]), np.array([1j])),
    *(np.array([], np.int64), np.zeros((2, 3)), np.full((2, 3), np.nan), np.zeros((0, 3)), np.zeros((1, 1, 1, 1))),
    *(np.ma.array([1, 2], mask=[0, 1]), np.zeros((2, 3), np.float16), [[1, 2, 3]], [[1, 2, "x"]], [[1], [1, 2]]),
)
# fmt: on


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where relative paths lead."""
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def template(toy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy talks."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ add_generation_prompt }}"
    monkeypatch.setitem(toy_model.__dict__, "chat_template", ChatTemplate(source, {}))


def assert_a_titans_error_or_nothing(call: Call) -> None:
    for value in VALUES:
        with contextlib.suppress(TitansError):
            made = call(value)
            if isinstance(made, Iterator):
                next(made, None)


SESSION: dict[str, Callable[[Session, Any], object]] = {
    "feed": lambda session, value: session.feed(value),
    "feed all_logits": lambda session, value: session.feed([1], all_logits=value),
    "rewind": lambda session, value: session.rewind(value),
    "fork": lambda session, value: session.fork(value).stats,
    "save": lambda session, value: session.save(value),
    "save compress": lambda session, value: session.save("saved", compress=value, force=True),
    "save force": lambda session, value: session.save("saved", force=value),
    "check_save": lambda session, value: session.check_save(value),
    "check_save force": lambda session, value: session.check_save("saved", force=value),
    "to_bytes compress": lambda session, value: session.to_bytes(compress=value),
    "to_bytes int8": lambda session, value: session.to_bytes(int8=value),
    "generate": lambda session, value: session.generate(value, 2),
    **{
        f"generate {name}": partial(lambda name, session, value: session.generate([1], **{name: value}), name)
        for name in inspect.signature(Session.generate).parameters
        if name not in ("self", "prompt", "on_progress")
    },
    "generate on_progress": lambda session, value: (
        session.generate([1], 1, on_progress=value) if not callable(value) else None
    ),
    "chat": lambda session, value: session.chat(value, 2),
    "chat content": lambda session, value: session.chat([{"role": "user", "content": value}], 2),
    "chat role": lambda session, value: session.chat([{"role": value, "content": "a"}], 2),
    **{
        f"chat {name}": partial(lambda name, session, value: session.chat("a", **{name: value}), name)
        for name in inspect.signature(Session.chat).parameters
        if name not in ("self", "messages", "on_progress")
    },
    "chat_prompt": lambda session, value: session.chat_prompt(value),
    "chat_prompt begin": lambda session, value: session.chat_prompt("a", value),
    "generate_tokens": lambda session, value: session.generate_tokens(value, 2),
    "generate_tokens answering": lambda session, value: session.generate_tokens([1], 1, answering=value),
    "generate_tokens options": lambda session, value: session.generate_tokens([1], 2, value),
    "generate_tokens max_new_tokens": lambda session, value: session.generate_tokens([1], value),
    "generate_tokens on_progress": lambda session, value: (
        session.generate_tokens([1], 1, None, on_progress=value) if not callable(value) else None
    ),
    "generate_tokens stop_ids": lambda session, value: session.generate_tokens([1], 1, stop_ids=value),
    "generate_tokens ignore_eos": lambda session, value: session.generate_tokens([1], 1, ignore_eos=value),
    "generate_tokens special": lambda session, value: session.generate_tokens([1], 1, special=value),
    "ends": lambda session, value: session.ends(value),
    "ends ignore_eos": lambda session, value: session.ends([1], value),
    "submit": lambda session, value: session.submit(value).result() if isinstance(session, BatchSession) else None,
    "submit all_logits": lambda session, value: (
        session.submit([1], value).result() if isinstance(session, BatchSession) else None
    ),
}
MODEL: dict[str, Callable[[Model, Any], object]] = {
    "encode": lambda model, value: model.encode(value),
    "encode_chat": lambda model, value: model.encode_chat(value),
    "encode_chat message": lambda model, value: model.encode_chat([value]),
    "encode_chat add_generation_prompt": lambda model, value: model.encode_chat("a", value),
    "decode": lambda model, value: model.decode(value),
    "session": lambda model, value: model.session(value).stats,
    "restore": lambda model, value: model.restore(value),
    "restore_bytes": lambda model, value: model.restore_bytes(value),
    "adopt_bytes": lambda model, value: model.adopt_bytes(value),
    "batch lanes": lambda model, value: model.batch(lanes=value).close(),
    "batch resident": lambda model, value: model.batch(resident=value).close(),
    "batch folder": lambda model, value: model.batch(resident=1, folder=value).close(),
    "driver": lambda model, value: (
        None if isinstance(value, int) and value == 2**31 else model.driver(value)  # a machine may have as much
    ),
    "driver feed": lambda model, value: model.driver().feed(value),
    "driver feed all_outputs": lambda model, value: model.driver().feed([[1]], value),
    "driver feed policy": lambda model, value: model.driver().feed([[1]], policy=value),
    "driver load": lambda model, value: model.driver().load(value),
    "driver load tensor": lambda model, value: model.driver().load({"0.trace": value}),
    "manifest graph": lambda model, value: model.manifest.graph(value),
    "manifest from_json": lambda model, value: Manifest.from_json(value),
}
BATCH: dict[str, Callable[[Batch, Any], object]] = {
    "session": lambda batch, value: batch.session(value).stats,
    "restore": lambda batch, value: batch.restore(value),
    "restore_bytes": lambda batch, value: batch.restore_bytes(value),
    "feed sessions": lambda batch, value: batch.feed(value, [[1]]),
    "feed one session": lambda batch, value: batch.feed([value], [[1]]),
    "feed inputs": lambda batch, value: batch.feed([batch.session()], value),
    "feed input": lambda batch, value: batch.feed([batch.session()], [value]),
    "feed twice": lambda batch, value: batch.feed([batch.session()] * 2, [[1], value]),
}


@pytest.mark.parametrize("name", SESSION)
@pytest.mark.parametrize("kind", ["alone", "batch"])
def test_a_session_takes_an_argument_or_says_why_not(toy_model: Model, kind: str, name: str) -> None:
    with toy_model.batch(lanes=2) as batch:

        def call(value: object) -> object:
            session = toy_model.session() if kind == "alone" else batch.session()
            session.feed([1, 2, 3])
            before = session.to_bytes()
            try:
                return SESSION[name](session, value)
            except TitansError:
                assert session.to_bytes() == before
                raise

        assert_a_titans_error_or_nothing(call)


@pytest.mark.parametrize("name", MODEL)
def test_a_model_takes_an_argument_or_says_why_not(toy_model: Model, name: str) -> None:
    assert_a_titans_error_or_nothing(partial(MODEL[name], toy_model))


@pytest.mark.parametrize("name", BATCH)
def test_a_batch_takes_an_argument_or_says_why_not(toy_model: Model, name: str) -> None:
    with toy_model.batch(lanes=2) as batch:
        assert_a_titans_error_or_nothing(partial(BATCH[name], batch))


def test_a_continuous_model_takes_vectors_or_says_why_not(series_model: Model) -> None:
    with series_model.batch() as batch:
        for call in (
            lambda value: series_model.session().feed(value),
            lambda value: batch.session().feed(value),
            lambda value: series_model.driver().feed(value),
            lambda value: series_model.session().generate(value),
            lambda value: series_model.session().generate_tokens(value),
            series_model.encode,
            series_model.decode,
        ):
            assert_a_titans_error_or_nothing(call)


@pytest.mark.parametrize("name", ["path", "provider", "threads"])
def test_loading_takes_an_argument_or_says_why_not(toy_bundle: Path, name: str) -> None:
    right: dict[str, Any] = {"path": toy_bundle, "provider": "cpu", "threads": 1}
    assert_a_titans_error_or_nothing(lambda value: load(**{**right, name: value}))


@pytest.mark.parametrize("name", inspect.signature(SamplingOptions).parameters)
def test_an_option_is_taken_or_says_why_not(toy_model: Model, name: str) -> None:
    def call(value: object) -> object:
        options = SamplingOptions(**{name: value})
        return list(toy_model.session().generate_tokens([1], 2, options))

    assert_a_titans_error_or_nothing(call)


@pytest.mark.parametrize("columns", [("a",), ("a", "b")])
def test_a_scaling_takes_a_series_or_says_why_not(columns: tuple[str, ...]) -> None:
    ones = (1.0,) * len(columns)
    scaling = SeriesScaling(
        name="s", columns=columns, horizon=2, mean=ones, deviation=ones, change=(ones, ones), value_scales=(1.0,),
        change_scales=(1.0,),
    )  # fmt: skip
    steps = np.zeros((3, len(columns)))
    assert_a_titans_error_or_nothing(scaling.inputs)
    assert_a_titans_error_or_nothing(lambda value: scaling.inputs(steps, value))
    assert_a_titans_error_or_nothing(lambda value: scaling.forecasts(value, steps))
    assert_a_titans_error_or_nothing(lambda value: scaling.forecasts(np.zeros((3, scaling.targets)), value))


def test_an_observer_has_to_be_a_function(toy_bundle: Path) -> None:
    for value in VALUES:
        if not callable(value):
            with pytest.raises(InputError, match="pass a function"):
                load(toy_bundle, threads=1).observe(value)


def test_a_closed_batch_says_that_it_is_closed(toy_model: Model, tmp_path: Path) -> None:
    batch = toy_model.batch()
    session = batch.session()
    session.feed([1])
    session.save(tmp_path / "a.state")
    batch.close()
    batch.close()
    for call in (
        lambda: session.feed([1]),
        lambda: session.submit([1]),
        lambda: next(session.generate([1])),
        lambda: next(session.generate_tokens([1])),
        lambda: batch.feed([session], [[1]]),
        lambda: batch.session().feed([1]),
        lambda: batch.restore(tmp_path / "a.state").feed([1]),
    ):
        with pytest.raises(TitansError, match="closed"):
            call()
    assert session.fork().to_bytes() == session.to_bytes()
    assert session.stats.position == 1


@pytest.mark.parametrize("compress", [2, "yes", [1]])
def test_whatever_is_true_compresses_and_can_be_restored(toy_model: Model, compress: Any) -> None:
    session = toy_model.session()
    session.feed([1, 2, 3])
    data = session.to_bytes(compress=compress)
    assert data == session.to_bytes(compress=True)
    assert toy_model.restore_bytes(data).position == 3


def out_of(*arguments: object, **options: object) -> Any:
    raise MemoryError


def test_no_memory_is_an_error_of_ours_and_the_session_stays(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = toy_model.session()
    session.feed([1])
    data = session.to_bytes()
    backend = type(session._shared.feeder.backend)
    for name, call, kind in (
        ("executor", lambda: session.feed([1]), ExecutionError),
        ("executor", lambda: next(session.generate_tokens([1])), ExecutionError),
        ("executor", lambda: toy_model.driver().feed([[1]]), ExecutionError),
        ("read", session.to_bytes, StateError),
        ("read", lambda: session.save(tmp_path / "a.state"), StateError),
        ("write", lambda: toy_model.restore_bytes(data), StateError),
        ("initial", toy_model.driver, ExecutionError),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(backend, name, out_of)
            with pytest.raises(kind, match="memory"):
                call()
        assert session.to_bytes() == data


def public(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_every_method_that_takes_something_is_tried() -> None:
    """What is new has to be added above; what takes nothing cannot be given anything wrong."""
    takes_nothing = {"reset", "mark", "close", "describe", "to_json", "without_writes"}
    for kind, tried in (
        (Session, set(SESSION)),
        (BatchSession, set(SESSION)),
        (Model, {*MODEL, "driver", "observe"}),
        (Batch, {*BATCH, "feed"}),
    ):
        assert public(kind) - takes_nothing <= {name.split()[0] for name in tried}, kind
    assert public(Driver) == {"fork", "reset", "state", "load", "feed"}
    exported = {value for name in titans_runtime.__all__ if inspect.isclass(value := getattr(titans_runtime, name))}
    behaving = {kind for kind in exported if not issubclass(kind, TitansError) and public(kind)}
    assert {kind.__name__ for kind in behaving} == {
        "Description",
        "Driver",
        "Manifest",
        "Model",
        "SeriesScaling",
        "Session",
        "SessionStats",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_what_may_not_be_read_is_an_error_of_ours(toy_model: Model, tmp_path: Path) -> None:
    file = tmp_path / "secret.state"
    file.write_bytes(b"x")
    file.chmod(0)
    for call in (toy_model.restore, toy_model.session().save, load):
        with pytest.raises(TitansError):
            call(file)
