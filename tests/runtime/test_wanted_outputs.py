"""Of the outputs, a device brings to the host what the caller wants to see, and nothing is lost by that.

The device is ONNX Runtime's CPU provider in its role, as in `test_devices`; `tests/export/test_webgpu.py` has another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.runtime.devices import host_target, on_device, told, traffic
from tests.runtime.toy import C, Toy, write_toy
from titans_runtime import Model, NonFiniteError, SamplingOptions, SessionPoisonedError, load
from titans_runtime.devices import ort_copies
from titans_runtime.devices.ort import OrtMemory
from titans_runtime.state.calls import TopK
from titans_runtime.text.sampling import Sampler

GREEDY = SamplingOptions(temperature=0)
PROMPT = list(b"a prompt that is longer than three chunks of eight")
VOCABULARY = 256


@pytest.fixture
def device_model(toy_bundle: Path) -> Model:
    return on_device(toy_bundle)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (GREEDY, 3),  # an id, its logit, and the sum that shows whether all logits are finite
        (SamplingOptions(temperature=0.7, top_k=5, top_p=0.9, seed=1), 11),
        (SamplingOptions(seed=1), VOCABULARY),
        (SamplingOptions(temperature=0, repetition_penalty=1.3), VOCABULARY),
        (SamplingOptions(top_k=200, seed=1), VOCABULARY),  # ids and logits of most tokens would be more
    ],
)
def test_a_generated_token_brings_what_the_sampler_chooses_among(
    device_model: Model, options: SamplingOptions, numbers: int
) -> None:
    assert told(device_model, device_model.session(), options) == numbers


def test_a_prompt_brings_the_last_tokens_logits_alone_unless_all_are_wanted(device_model: Model) -> None:
    for every, numbers in ((False, VOCABULARY), (True, VOCABULARY * len(PROMPT))):
        before = traffic(device_model).outputs
        device_model.session().feed(PROMPT, all_logits=every)
        assert traffic(device_model).outputs - before == numbers
    with device_model.batch(lanes=2) as batch:
        before = traffic(device_model).outputs
        batch.session().feed(PROMPT)
        assert traffic(device_model).outputs - before == VOCABULARY


@pytest.mark.parametrize(
    "options", [GREEDY, SamplingOptions(temperature=0.8, top_k=7, min_p=0.01, seed=3), SamplingOptions(top_k=1)]
)
def test_tokens_are_those_that_all_logits_give(device_model: Model, toy_model: Model, options: SamplingOptions) -> None:
    ours = list(device_model.session().generate_tokens(PROMPT, 40, options))
    assert ours == list(toy_model.session().generate_tokens(PROMPT, 40, options))


def test_logits_that_stayed_there_are_fetched_when_somebody_wants_them(device_model: Model) -> None:
    session, twin = device_model.session(), device_model.session()
    pieces = session.generate_tokens(PROMPT, 99, GREEDY)
    tokens = [next(pieces) for _ in range(6)]
    assert isinstance(session._stream.now.last, TopK)
    twin.feed(PROMPT)
    for token in tokens:
        twin.feed([token])
    mark, fork, saved = session.mark(), session.fork(), session.to_bytes()
    assert saved == twin.to_bytes()  # with all logits after the last token
    for _ in range(3 * C):  # others use the device meanwhile, and the session itself goes on
        device_model.session().feed(PROMPT[::-1])
        next(pieces)
    assert fork.to_bytes() == saved
    session.rewind(mark)
    wider = SamplingOptions(temperature=1.0, top_k=9, seed=5)
    expected = list(twin.fork().generate_tokens(None, 12, wider))
    assert list(session.generate_tokens(None, 12, wider)) == expected
    assert list(fork.generate_tokens(None, 12, wider)) == expected
    assert list(device_model.restore_bytes(saved).generate_tokens(None, 12, wider)) == expected


def test_a_session_at_rest_holds_no_logits_on_the_device(device_model: Model) -> None:
    session = device_model.session()
    pieces = session.generate_tokens(PROMPT, 99, GREEDY)
    next(pieces)
    before = traffic(device_model).outputs
    pieces.close()
    assert isinstance(session._stream.now.last, np.ndarray)
    assert traffic(device_model).outputs - before == VOCABULARY


@pytest.mark.parametrize("resident", [None, 2])
def test_a_batch_brings_for_its_lanes_what_their_samplers_choose_among(
    device_model: Model, toy_model: Model, resident: int | None
) -> None:
    wishes = [GREEDY, SamplingOptions(top_k=5, seed=1), GREEDY, SamplingOptions(top_k=3, seed=2)]
    with device_model.batch(lanes=4, resident=resident) as batch, ThreadPoolExecutor(4) as pool:
        sessions = [batch.session() for _ in wishes]
        ours = list(
            pool.map(lambda one: list(one[0].generate_tokens([7], 30, one[1])), zip(sessions, wishes, strict=True))
        )
        if resident is None:  # a session that is put on disk takes its logits along
            assert traffic(device_model).outputs < 4 * 31 * VOCABULARY / 2
        saved = [session.to_bytes() for session in sessions]
    for tokens, data, options in zip(ours, saved, wishes, strict=True):
        alone = toy_model.session()
        assert tokens == list(alone.generate_tokens([7], 30, options))
        np.testing.assert_allclose(toy_model.restore_bytes(data).feed([1]), alone.feed([1]), rtol=1e-5, atol=1e-5)


def test_lanes_bring_the_best_of_all_and_find_the_one_that_is_not_finite(device_model: Model) -> None:
    good = device_model.session()
    good.feed(PROMPT[:3])
    bad = device_model.driver()
    bad.load({"0.trace": np.full((1, 6), np.nan, np.float32)})
    lanes = device_model._backend.lanes(3)
    lanes.seat(0, bad._now)
    lanes.seat(2, good._stream.now.state)
    stepped = lanes.step([0, 2], np.array([7, 7]), top_k=2)
    assert list(stepped.failed) == [0]
    assert stepped.top_k is not None
    expected = good.feed([7])
    mine = stepped.top_k.of(2)
    assert mine.ids.tolist() == [np.argsort(-expected, kind="stable")[:2].tolist()]
    lanes.step([2], np.array([8]))  # other outputs do not touch those that are held
    np.testing.assert_allclose(mine.rest()[0], expected, rtol=1e-5, atol=1e-5)
    lanes.close()


def test_logits_that_are_not_finite_poison_the_session_although_only_the_best_are_looked_at(tmp_path: Path) -> None:
    class Damaged(Toy):
        """The logit of token 99 is never a number."""

        def weights(self) -> dict[str, np.ndarray]:
            weights = super().weights()
            weights["head"][:, 99] = np.nan
            return weights

    session = on_device(write_toy(tmp_path / "toy", Damaged())).session()
    with pytest.raises(NonFiniteError, match="token 0, in the outputs only"):
        next(session.generate_tokens(PROMPT, 1, GREEDY))
    assert session.position == 0
    with pytest.raises(SessionPoisonedError):
        session.feed([1])
    short = on_device(tmp_path / "toy").session()
    with pytest.raises(NonFiniteError, match="token 0, in the outputs only"):
        next(short.generate_tokens([1], 1, GREEDY))


def test_a_continuous_model_brings_all_its_predictions(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy", Toy(vocab_size=None))
    there, here = on_device(path), load(path, provider="cpu", threads=1)
    inputs = np.random.default_rng(0).standard_normal((3 * C + 2, 3), dtype=np.float32)
    np.testing.assert_allclose(there.session().feed(inputs), here.session().feed(inputs), rtol=1e-5, atol=1e-5)


def test_rows_and_the_best_are_numpys() -> None:
    memory = OrtMemory(onnxruntime, host_target())
    head = np.random.default_rng(1).standard_normal((2, 5, 40), dtype=np.float32)
    head[1, 3, [8, 30, 4]] = 7.0  # equal ones, in the order of their places
    buffer = memory.allocate(head.shape, "float32")
    memory.upload(buffer, head)
    np.testing.assert_array_equal(memory.rows(buffer, 1, 3), head[:, 1:4])
    found = memory.top_k(buffer, 3, 6)
    assert found is not None
    ids, scores, total = found
    order = np.argsort(-head[:, 3], axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(head[:, 3], order, axis=1))
    np.testing.assert_allclose(total, head[:, 3].sum(axis=1), rtol=1e-5)
    for graph in (ort_copies._rows(), ort_copies._top_k()):
        onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)


def test_a_sampler_says_how_many_logits_it_chooses_among() -> None:
    def needs(**options: float) -> int | None:
        return Sampler(SamplingOptions(**options), VOCABULARY).needs  # type: ignore[arg-type]

    assert needs(temperature=0, top_k=9) == 1
    assert needs(top_k=9, top_p=0.5) == 9
    assert needs(top_p=0.5) is None
    assert needs(temperature=0, repetition_penalty=1.1) is None
    assert needs(top_k=86) is None
