"""Sessions: what they return and what they refuse."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.toy import FEATURES, TARGETS, C, Oracle, Toy, write_toy
from titans_runtime import (
    InputError,
    Model,
    SamplingOptions,
    Session,
    TextError,
    load,
)
from titans_runtime.arrays import FloatArray
from titans_runtime.devices import denormals


def test_feed_gives_the_last_tokens_logits_or_everyones(toy_model: Model) -> None:
    tokens = list(b"a little text to read")
    last = toy_model.session().feed(tokens)
    every = toy_model.session().feed(tokens, all_logits=True)
    assert (last.shape, every.shape) == ((256,), (len(tokens), 256))
    assert last.dtype == np.float32
    np.testing.assert_array_equal(last, every[-1])


def test_a_continuous_model_takes_and_returns_vectors(series_model: Model) -> None:
    series = np.random.default_rng(0).standard_normal((C + 3, FEATURES))
    predictions = series_model.session().feed(series)
    outputs, _ = Oracle(Toy(vocab_size=None)).feed(series.astype(np.float32))
    assert predictions.shape == (C + 3, TARGETS)
    np.testing.assert_allclose(predictions, outputs, rtol=2e-5, atol=2e-5)


def test_surprise_is_per_token_of_the_last_feed_and_the_mean_of_the_layers(toy_model: Model) -> None:
    session = toy_model.session()
    assert session.surprise.shape == (0,)
    tokens = np.arange(C + 3)
    session.feed([1, 2])
    session.feed(tokens)
    oracle = Oracle(Toy())
    oracle.feed(np.array([1, 2]))
    _, surprise = oracle.feed(tokens)
    np.testing.assert_allclose(session.surprise_by_layer, surprise, rtol=2e-5)
    np.testing.assert_allclose(session.surprise, surprise.mean(1), rtol=2e-5)


def test_a_model_without_surprise_is_never_surprised(series_model: Model) -> None:
    session = series_model.session()
    session.feed(np.ones((3, FEATURES)))
    np.testing.assert_array_equal(session.surprise, np.zeros(3))
    assert session.surprise_by_layer.shape == (3, 0)


def test_what_feed_returns_belongs_to_the_caller(toy_model: Model) -> None:
    spoiled, session = toy_model.session(), toy_model.session()
    spoiled.feed(list(b"abc"))[:] = np.nan
    session.feed(list(b"abc"))
    greedy = SamplingOptions(temperature=0)
    assert list(spoiled.generate_tokens(None, 5, greedy)) == list(session.generate_tokens(None, 5, greedy))


TOO_BIG = 256
WRONG_TOKENS: list[tuple[object, str]] = [
    ([], "at least one"),
    ([[1, 2]], "shape"),
    ([0.5], "integers"),
    ([True], "integers"),
    ([1, TOO_BIG], "token 256 at index 1 is outside the vocabulary"),
    ([-1], "outside the vocabulary"),
    ([2**64], "outside the vocabulary|integers"),
    ([[1], [2, 3]], "not an array"),
    ("text", "encode"),
    (b"text", "encode"),
    (None, "shape"),
]
WRONG_VECTORS: list[tuple[object, str]] = [
    (np.zeros((0, FEATURES)), "at least one"),
    (np.zeros(FEATURES), "shape"),
    (np.zeros((2, FEATURES + 1)), "shape"),
    ([["a"] * FEATURES], "float32"),
    ([[np.nan] * FEATURES], "index 0 is not finite"),
    ([[0.0] * FEATURES, [1e300] * FEATURES], "index 1 is not finite"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG_TOKENS)
def test_wrong_tokens_are_refused_and_nothing_changes(toy_model: Model, inputs: object, message: str) -> None:
    refuses(toy_model.session(), inputs, [1, 2, 3], message)


@pytest.mark.parametrize(("inputs", "message"), WRONG_VECTORS)
def test_wrong_vectors_are_refused_and_nothing_changes(series_model: Model, inputs: object, message: str) -> None:
    refuses(series_model.session(), inputs, np.ones((3, FEATURES)), message)


def refuses(session: Session, wrong: object, right: object, message: str) -> None:
    session.feed(right)  # type: ignore[arg-type]
    surprise = session.surprise
    with pytest.raises(InputError, match=message):
        session.feed(wrong)  # type: ignore[arg-type]
    assert session.position == 3
    np.testing.assert_array_equal(session.surprise, surprise)


WRONG_CALLS: list[Callable[[Session], object]] = [
    lambda s: s.generate(""),
    lambda s: s.generate([]),
    lambda s: s.generate([TOO_BIG]),
    lambda s: s.generate(None),
    lambda s: s.generate("a", max_new_tokens=-1),
    lambda s: s.generate("a", max_new_tokens=1.5),  # type: ignore[arg-type]
    lambda s: s.generate("a", max_new_tokens=True),
    lambda s: s.generate("a", stop=5),  # type: ignore[arg-type]
    lambda s: s.generate("a", temperature=-1.0),
    lambda s: s.generate("a", stop=[""]),
    lambda s: s.generate("\ud800"),
]


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_generate_checks_its_arguments_before_it_is_iterated(
    toy_model: Model, call: Callable[[Session], object]
) -> None:
    session = toy_model.session()
    with pytest.raises(InputError):
        call(session)
    assert session.position == 0


def test_a_continuous_model_generates_neither_text_nor_tokens(series_model: Model) -> None:
    with pytest.raises(TextError, match="no tokenizer"):
        series_model.session().generate("a")
    with pytest.raises(InputError, match="feed its predictions"):
        series_model.session().generate_tokens([1])
    with pytest.raises(TextError, match="no tokenizer"):
        series_model.encode("a")


def test_a_model_without_a_tokenizer_generates_ids(tmp_path: Path) -> None:
    model = load(write_toy(tmp_path / "toy.titans", Toy(vocab_size=20)), threads=1)
    with pytest.raises(TextError, match="generate_tokens"):
        model.session().generate([1])
    with pytest.raises(TextError, match="pass token ids"):
        model.session().generate_tokens("text")
    tokens = list(model.session().generate_tokens([1, 2], 7, SamplingOptions(seed=0)))
    assert len(tokens) == 7
    assert set(tokens) <= set(range(20))


def test_greedy_generation_is_feeding_the_most_likely_token_back(toy_model: Model) -> None:
    prompt = list(b"once upon")
    generated = list(toy_model.session().generate_tokens(prompt, 20, SamplingOptions(temperature=0)))
    session = toy_model.session()
    logits = session.feed(prompt)
    expected = []
    for _ in range(20):
        expected.append(int(np.argmax(logits)))
        logits = session.feed(expected[-1:])
    assert generated == expected


def test_a_seed_repeats_and_another_does_not(toy_model: Model) -> None:
    def run(seed: int) -> list[int]:
        return list(toy_model.session().generate_tokens([1], 30, SamplingOptions(temperature=2, seed=seed)))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_session_has_read_everything_that_was_generated_even_if_the_reader_stops(toy_model: Model) -> None:
    session = toy_model.session()
    for count, _ in enumerate(session.generate_tokens([1, 2, 3], 10, SamplingOptions(temperature=0)), start=1):
        assert session.position == 3 + count
        if count == 4:
            break
    rest = list(session.generate_tokens(None, 6, SamplingOptions(temperature=0)))
    whole = list(toy_model.session().generate_tokens([1, 2, 3], 10, SamplingOptions(temperature=0)))
    assert rest == whole[4:]


def test_no_new_tokens_means_that_only_the_prompt_is_read(toy_model: Model) -> None:
    session = toy_model.session()
    assert list(session.generate("abc", max_new_tokens=0)) == []
    assert session.position == 3


def test_generated_text_is_the_text_of_the_generated_tokens(toy_model: Model) -> None:
    options = {"temperature": 1.5, "seed": 3}
    tokens = list(toy_model.session().generate_tokens("héllo", 40, SamplingOptions(temperature=1.5, seed=3)))
    text = "".join(toy_model.session().generate("héllo", 40, **options))  # type: ignore[arg-type]
    assert text == bytes(tokens).decode("utf-8", errors="replace") == toy_model.decode(tokens)


def test_generation_ends_at_a_stop_string_and_leaves_it_out(toy_model: Model) -> None:
    whole = "".join(toy_model.session().generate("abc", 60, seed=5))
    stop = whole[10:12]
    assert "".join(toy_model.session().generate("abc", 60, seed=5, stop=stop)) == whole[: whole.index(stop)]


def test_a_reset_in_the_middle_of_generation_is_said(toy_model: Model) -> None:
    session = toy_model.session()
    tokens = session.generate_tokens([1], 5)
    next(tokens)
    session.reset()
    with pytest.raises(InputError, match="reset while it generated"):
        next(tokens)


def test_sessions_of_one_model_run_in_several_threads(toy_bundle: Path) -> None:
    model = load(toy_bundle, threads=1)
    tokens = np.random.default_rng(5).integers(0, 256, (4, 5 * C))
    results: dict[int, FloatArray] = {}

    def work(i: int) -> None:
        session = model.session()
        results[i] = np.stack([session.feed([token]) for token in tokens[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_allclose(results[i], Oracle(Toy()).feed(tokens[i])[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "two", 100_000, 2**70])
def test_a_number_of_threads_that_is_none_or_far_too_large_is_refused(toy_bundle: Path, threads: object) -> None:
    with pytest.raises(InputError, match="threads"):
        load(toy_bundle, threads=threads)  # type: ignore[arg-type]


def test_a_description_says_what_the_bundle_is(toy_model: Model, series_model: Model) -> None:
    description = toy_model.describe()
    assert description.state_bytes_per_stream == toy_model.state_bytes == 4 * (6 * 6 + 6 + C * 6)
    assert description.as_json()["graphs"] == ["step", "commit", "prefill", "extend"]
    assert (description.inputs, description.input_size, description.tokenizer) == ("tokens", 256, "byte")
    assert description.verified
    described = series_model.describe()
    assert (described.inputs, described.input_size, described.output_size) == ("continuous", FEATURES, TARGETS)
    assert (toy_model.vocab_size, series_model.vocab_size, toy_model.provider) == (256, None, "cpu")


def test_running_a_bundle_leaves_the_hosts_denormals_alone(toy_bundle: Path) -> None:
    small = np.full(4, 1e-39, np.float32)
    session = load(toy_bundle).session()
    session.feed(list(range(C + 3)))
    assert np.all(small * np.float32(1) > 0)


@pytest.mark.skipif(denormals._LIBM is None, reason="onnxruntime's own setting is used on this platform")
def test_denormals_count_as_zero_inside_the_call_on_any_thread() -> None:
    small = np.full(4, 1e-39, np.float32)
    found: list[float] = []

    def work() -> None:
        denormals.with_denormals_as_zero(lambda: found.append(float(np.sum(small * np.float32(1)))))
        found.append(float(np.sum(small * np.float32(1))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] == 0.0
    assert found[1] > 0.0
