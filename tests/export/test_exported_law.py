"""The law on exported bundles: one stream, however it is split, batched or perturbed later on."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import titans_runtime
from tests.export.conftest import Exported
from titans_core.config import MemoryConfig, TitansConfig
from titans_core.decoder import Decoder
from titans_core.model import TitansModel
from titans_export.export import export_model
from titans_export.verification import distance
from titans_export.verification.agreement import compare
from titans_export.verification.sides import TrainingSide
from titans_runtime import native
from titans_runtime.arrays import Array
from titans_runtime.stream.driver import Driver
from titans_runtime.stream.plan import FASTEST, STEPS_ONLY, Policy

TOKENS = 1_024
CLOSE = 1e-4  # fp32, outputs and states


@pytest.fixture(params=["fused", "portable"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The law holds for both forms of a bundle. Verification drives both whatever is set, so it runs once."""
    if request.param == "portable":
        if "verification" in request.node.name:
            pytest.skip("verification has driven both forms")
        monkeypatch.setenv(native.SWITCH, "off")
    elif native.kernels() is None:
        pytest.skip(native.described())
    return str(request.param)


def stream(exported: Exported, batch: int, tokens: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if exported.continuous:
        return random.standard_normal((batch, tokens, 3), dtype=np.float32)
    return random.integers(0, 50, (batch, tokens))


@cache
def _loaded(path: Path, _switch: str | None) -> titans_runtime.Model:
    return titans_runtime.load(path, provider="cpu", threads=1)


def model_of(exported: Exported) -> titans_runtime.Model:
    """The bundle in the form of this test, loaded once: ONNX Runtime takes longer over that than over the stream."""
    return _loaded(exported.path, os.environ.get(native.SWITCH))


def drive(exported: Exported, x: Array, lengths: list[int], policies: list[Policy]) -> tuple[Array, dict[str, Array]]:
    driver = model_of(exported).driver(x.shape[0])
    outputs, position = [], 0
    for index, length in enumerate(lengths):
        piece = x[:, position : position + length]
        outputs.append(driver.feed(piece, all_outputs=True, policy=policies[index % len(policies)]).outputs)
        position += length
    return np.concatenate(outputs, axis=1), valid(driver)


def valid(driver: Driver) -> dict[str, Array]:
    """The state without the rows beyond the chunk position, which are stale."""
    state = driver.state()
    for spec in driver.manifest.states:
        if spec.kind == "rows":
            state[spec.name] = state[spec.name][: driver.position % len(state[spec.name])]
    return state


def random_lengths(total: int, longest: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        lengths.append(min(int(random.integers(1, longest + 1)), total - sum(lengths)))
    return lengths


@pytest.mark.slow
def test_any_split_of_a_stream_gives_the_same_logits_and_the_same_state(exported: Exported) -> None:
    x = stream(exported, 1, TOKENS)
    whole, end = drive(exported, x, [TOKENS], [FASTEST])
    pieces = [
        ([1] * TOKENS, [STEPS_ONLY]),
        (random_lengths(TOKENS, 40, 1), [Policy(prefill=False, extend_from=2), STEPS_ONLY, FASTEST]),
        (random_lengths(TOKENS, 200, 2), [FASTEST]),
    ]
    with torch.no_grad():
        form, _ = exported.model(torch.from_numpy(x))
    assert np.abs(whole - form.numpy()).max() <= CLOSE
    for lengths, policies in pieces:
        outputs, state = drive(exported, x, lengths, policies)
        assert np.abs(outputs - whole).max() <= CLOSE
        for name, value in end.items():
            scale = max(1.0, float(np.abs(value).max(initial=0.0)))
            assert np.abs(state[name] - value).max(initial=0.0) / scale <= CLOSE, name


def test_each_row_of_a_batch_equals_its_solo_run(exported: Exported) -> None:
    x = stream(exported, 3, 75)
    lengths, policies = [20, 1, 7, 47], [FASTEST, STEPS_ONLY]
    together, _ = drive(exported, x, lengths, policies)
    for row in range(3):
        alone, _ = drive(exported, x[row : row + 1], lengths, policies)
        assert np.abs(together[row] - alone[0]).max() <= CLOSE


def test_a_changed_token_moves_nothing_before_it(exported: Exported) -> None:
    x = stream(exported, 1, 64)
    lengths = [5, 30, 29]
    before, _ = drive(exported, x, lengths, [FASTEST])
    for place in (0, 17, 40):
        changed = x.copy()
        changed[:, place] = (changed[:, place] + 1) % 50 if not exported.continuous else changed[:, place] + 1
        after, _ = drive(exported, changed, lengths, [FASTEST])
        assert np.array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max() > 1e-6


def test_verification_agrees_over_random_pieces(exported: Exported) -> None:
    report = compare(exported.path, exported.model, tokens=500, seed=4)
    assert report.ok, report.explain()
    assert report.pieces > 5
    assert set(report.states) == {spec.name for spec in exported.model.state_specs()}
    assert 0 < report.max_abs_error <= CLOSE


@pytest.mark.parametrize("parameter", ["head.weight", "blocks.0.mlp.down.weight"])
def test_verification_notices_a_model_that_is_not_the_exported_one(exported: Exported, parameter: str) -> None:
    if isinstance(exported.model, Decoder):
        parameter = parameter.replace("blocks.", "layers.")
    weight = exported.model.get_parameter(parameter)
    before = weight[0, 0].clone()  # adding and subtracting would leave a rounding error behind
    weight[0, 0] += 0.05
    try:
        report = compare(exported.path, exported.model, tokens=100)
    finally:
        weight[0, 0] = before
    assert not report.ok
    assert report.worst_at is not None
    assert "does not compute what the model computes" in report.explain()


@pytest.mark.parametrize("exported", ["mac-tokens"], indirect=True)
@pytest.mark.parametrize("name", ["0.memory_1", "1.momentum_0", "0.memory_errors_0", "1.chunk_key", "0.conv_state"])
def test_verification_notices_a_state_that_is_wrong_alone(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    state = Driver.state

    def spoiled(self: Driver) -> dict[str, Array]:
        found = state(self)
        found[name] = found[name].copy()
        found[name].flat[0] += 0.01 * max(1.0, float(np.abs(found[name]).max()))
        return found

    assert name in {spec.name for spec in exported.model.state_specs()}
    monkeypatch.setattr(Driver, "state", spoiled)
    report = compare(exported.path, exported.model, tokens=100)
    assert not report.ok
    assert max(report.states, key=lambda each: report.states[each]) == name
    assert report.max_abs_error <= CLOSE
    assert f"state {name} by" in report.explain()


@pytest.mark.parametrize("exported", ["mal-tokens", "mac-continuous"], indirect=True)
def test_verification_notices_a_training_form_that_says_something_else(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = TrainingSide.feed
    monkeypatch.setattr(TrainingSide, "feed", lambda side, piece: feed(side, piece) + 0.01)
    report = compare(exported.path, exported.model, tokens=100)
    assert not report.ok
    assert report.max_abs_error <= CLOSE
    assert "from the training form by 1.0e-02" in report.explain()


@pytest.fixture
def amplifying(tmp_path: Path) -> Exported:
    """A fresh model whose writes overshoot: rounding errors grow from token to token."""
    torch.manual_seed(0)
    memory = MemoryConfig(heads=1, initial_step_size=0.9)
    config = TitansConfig(
        variant="lmm", dim=32, layers=2, ffn_hidden=32, chunk=32, persistent_tokens=0, vocab_size=50, memory=memory
    )
    model = TitansModel(config)
    export_model(model, tmp_path / "fresh.titans", verify_tokens=0)
    return Exported(tmp_path / "fresh.titans", model, continuous=False)


def test_a_model_that_amplifies_rounding_is_verified_from_one_state(amplifying: Exported) -> None:
    report = compare(amplifying.path, amplifying.model, tokens=600)
    assert report.ok, report.explain()
    assert report.resynchronised > 0
    assert report.amplifies_from is not None
    assert "this model amplifies rounding errors" in report.explain()
    document = report.to_json_dict()
    assert (document["resynchronised"], document["amplifies_rounding_from"]) == (
        report.resynchronised,
        report.amplifies_from,
    )


@pytest.mark.parametrize("parameter", ["head.weight", "blocks.1.mlp.down.weight", "blocks.0.mixer.out.weight"])
def test_amplified_rounding_excuses_no_other_model(amplifying: Exported, parameter: str) -> None:
    with torch.no_grad():
        amplifying.model.get_parameter(parameter)[0, 0] += 0.05
    assert not compare(amplifying.path, amplifying.model, tokens=600).ok


@pytest.mark.parametrize("exported", ["lmm-tokens"], indirect=True)
def test_a_twin_that_is_not_finite_excuses_nothing_and_the_report_is_still_json(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance, "difference", lambda a, b: float("inf"))
    report = compare(exported.path, exported.model, tokens=40)
    assert not report.ok
    document = json.dumps(report.to_json_dict(), allow_nan=False)
    assert json.loads(document)["max_abs_error"] is None
