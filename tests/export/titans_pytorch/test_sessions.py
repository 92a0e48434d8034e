"""Sessions of imported models: saved, forked, marked and rewound, alone and in batches, as those of our own models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

import titans_runtime
from tests.export.test_session_law import Lives
from tests.export.titans_pytorch import cases

# Vocabularies of 50 and vectors of 3, as the machine feeds them. Chunks cross segments in the second.
KINDS = {
    "train-mac": cases.transformer({**cases.TRAIN_MAC, "depth": 3, "neural_memory_layers": [2, 3], "num_tokens": 50}),
    "across-segments": cases.transformer(
        {
            "num_tokens": 50,
            "num_residual_streams": 1,
            "num_longterm_mem_tokens": 3,
            "neural_memory_segment_len": 5,
            "sliding_window_attn": True,
        }
    ),
    "memory": cases.memory({"dim": 3, "batch_size": 8}),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> cases.Imported:
    """One bundle per kind."""
    return cases.imported(KINDS[request.param], tmp_path_factory.mktemp("bundles"))


@pytest.mark.slow
def test_fork_mark_rewind_save_and_restore_in_any_order_equal_never_having_done_so(case: cases.Imported) -> None:
    Lives.model = titans_runtime.load(case.path, provider="cpu", threads=1)
    Lives.continuous = case.config["class"] == "NeuralMemory"
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sessions_in_a_batch_answer_as_they_would_alone(case: cases.Imported) -> None:
    model = titans_runtime.load(case.path, provider="cpu", threads=1)
    random = np.random.default_rng(0)
    continuous = case.config["class"] == "NeuralMemory"
    streams = [
        random.standard_normal((60, 3), dtype=np.float32) if continuous else random.integers(0, 50, 60)
        for _ in range(3)
    ]
    with model.batch() as batch:
        sessions = [batch.session() for _ in streams]
        together: list[list[np.ndarray]] = [[] for _ in streams]
        for place in range(60):
            for session, stream, told in zip(sessions, streams, together, strict=True):
                told.append(session.feed(stream[place : place + 1], all_logits=True))
    for stream, told in zip(streams, together, strict=True):
        alone = model.session()
        want = [alone.feed(stream[place : place + 1], all_logits=True) for place in range(60)]
        np.testing.assert_allclose(np.concatenate(told), np.concatenate(want), atol=cases.CLOSE)
