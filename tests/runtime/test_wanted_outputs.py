"""Of the outputs, a device brings to the host what the caller wants to see, and nothing is lost by that.

The device is ONNX Runtime's CPU provider in its role, as in `test_devices`; `tests/export/test_webgpu.py` has another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.runtime.devices import host_target, on_device, traffic
from tests.runtime.toy import C, Toy, write_toy
from titans_runtime import Model, NonFiniteError, SamplingOptions, Session, SessionPoisonedError, load
from titans_runtime.backends import ort_moves
from titans_runtime.backends.ort_device import OrtMemory
from titans_runtime.sampling import Sampler

GREEDY = SamplingOptions(temperature=0)
PROMPT = list(b"a prompt that is longer than three chunks of eight")
VOCABULARY = 256


@pytest.fixture
def device_model(toy_bundle: Path) -> Model:
    return on_device(toy_bundle)


def told(model: Model, session: Session, options: SamplingOptions, tokens: int = 20) -> float:
    """Numbers that came back for each token that was generated after a first one."""
    next(session.generate_tokens(PROMPT, 1, options))
    before = traffic(model).told
    assert len(list(session.generate_tokens(None, tokens, options))) == tokens
    return (traffic(model).told - before) / tokens


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
        before = traffic(device_model).told
        device_model.session().feed(PROMPT, all_logits=every)
        assert traffic(device_model).told - before == numbers
    with device_model.batch(lanes=2) as batch:
        before = traffic(device_model).told
        batch.session().feed(PROMPT)
        assert traffic(device_model).told - before == VOCABULARY


@pytest.mark.parametrize(
    "options", [GREEDY, SamplingOptions(temperature=0.8, top_k=7, min_p=0.01, seed=3), SamplingOptions(top_k=1)]
)
def test_tokens_are_those_that_all_logits_give(device_model: Model, toy_model: Model, options: SamplingOptions) -> None:
    ours = list(device_model.session().generate_tokens(PROMPT, 40, options))
    assert ours == list(toy_model.session().generate_tokens(PROMPT, 40, options))


def test_logits_that_stayed_there_are_fetched_when_somebody_wants_them(device_model: Model) -> None:
    session, twin = device_model.session(), device_model.session()
    tokens = list(session.generate_tokens(PROMPT, 6, GREEDY))
    twin.feed(PROMPT)
    for token in tokens:
        twin.feed([token])
    mark, fork, saved = session.mark(), session.fork(), session.to_bytes()
    assert saved == twin.to_bytes()  # with all logits after the last token
    for _ in range(3):  # others use the device meanwhile, and the session itself goes on
        device_model.session().feed(PROMPT[::-1])
        list(session.generate_tokens(None, C, GREEDY))
    assert fork.to_bytes() == saved
    session.rewind(mark)
    wider = SamplingOptions(temperature=1.0, top_k=9, seed=5)
    expected = list(twin.fork().generate_tokens(None, 12, wider))
    assert list(session.generate_tokens(None, 12, wider)) == expected
    assert list(fork.generate_tokens(None, 12, wider)) == expected
    assert list(device_model.restore_bytes(saved).generate_tokens(None, 12, wider)) == expected


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
    found = memory.best(buffer, 3, 6)
    assert found is not None
    ids, scores, total = found
    order = np.argsort(-head[:, 3], axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(head[:, 3], order, axis=1))
    np.testing.assert_allclose(total, head[:, 3].sum(axis=1), rtol=1e-5)
    for graph in (ort_moves._rows(), ort_moves._best()):
        onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)


def test_a_sampler_says_how_many_logits_it_chooses_among() -> None:
    def needs(**options: float) -> int | None:
        return Sampler(SamplingOptions(**options), VOCABULARY).needs  # type: ignore[arg-type]

    assert needs(temperature=0, top_k=9) == 1
    assert needs(top_k=9, top_p=0.5) == 9
    assert needs(top_p=0.5) is None
    assert needs(temperature=0, repetition_penalty=1.1) is None
    assert needs(top_k=86) is None
