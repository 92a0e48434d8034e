"""Imported bundles, fed in random pieces, answer as titans-pytorch's full forward does, for every option it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import titans_runtime
from tests.export.titans_pytorch import cases
from tests.export.titans_pytorch.cases import MEMORY_ALONE, MEMORY_OPTIONS, TRANSFORMERS, agreement, imported
from titans_export.verification.pieces import random_stream


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_answers_as_the_full_forward_does(name: str, tmp_path: Path) -> None:
    error, allowed, _ = agreement(imported(cases.transformer(TRANSFORMERS[name]), tmp_path))
    assert 0 < error <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORY_OPTIONS)
def test_a_transformer_with_an_option_of_its_memories_answers_as_the_full_forward_does(
    name: str, tmp_path: Path
) -> None:
    config = cases.transformer({"num_residual_streams": 1, "neural_memory_segment_len": 4}, MEMORY_OPTIONS[name])
    error, allowed, _ = agreement(imported(config, tmp_path))
    assert 0 < error <= allowed


@pytest.mark.parametrize("name", MEMORY_ALONE)
def test_a_memory_alone_gives_the_same_vectors_and_ends_with_the_same_weights_and_momentum(
    name: str, tmp_path: Path
) -> None:
    case = imported(cases.memory(MEMORY_ALONE[name]), tmp_path)
    error, allowed, driver = agreement(case)
    assert 0 < error <= allowed
    inputs = torch.from_numpy(random_stream(driver.manifest.inputs, driver.position, 0))
    if MEMORY_ALONE[name].get("qkv_receives_diff_views"):
        inputs = torch.stack(inputs.chunk(3, dim=-1))
    _, theirs = case.theirs(inputs)
    update, momentum = theirs.states
    ours = {key: torch.from_numpy(value)[0] for key, value in driver.state().items()}
    for kind, wanted in (("update", update), ("momentum", momentum), ("weight", theirs.weights)):
        for index, want in enumerate(wanted.values()):
            if f"{kind}_{index}" in ours:
                assert cases.distance(ours[f"{kind}_{index}"], want) <= allowed


@pytest.mark.parametrize("config", [cases.TRAIN_MAC, {"neural_memory_segment_len": 5, "num_longterm_mem_tokens": 3}])
def test_each_row_of_a_batch_equals_its_solo_run(config: cases.Config, tmp_path: Path) -> None:
    case = imported(cases.transformer(config), tmp_path)
    model = titans_runtime.load(case.path, provider="cpu", threads=1)
    stream = torch.randint(0, 32, (3, 90), generator=torch.Generator().manual_seed(1)).numpy()
    together = model.driver(3).feed(stream, all_outputs=True).outputs
    for row in range(3):
        alone = model.driver(1).feed(stream[row : row + 1], all_outputs=True).outputs
        assert cases.distance(together[row], alone[0]) <= cases.CLOSE
