"""The price on writing: what it charges, and that it makes a model write less."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from titans_core.config import MemoryConfig, TitansConfig
from titans_core.errors import ConfigError
from titans_core.model import TitansModel
from titans_core.training.checkpoint import load_model
from titans_core.training.loop import TrainOptions, train
from titans_core.training.objective import Objective
from titans_core.training.write_cost import WriteMeter, write_cost
from titans_tasks.recall import RecallConfig, RecallTask

CONFIG = TitansConfig(
    variant="lmm", dim=16, layers=2, ffn_hidden=16, chunk=8, vocab_size=17, persistent_tokens=0,
    memory=MemoryConfig(heads=2, initial_step_size=0.05),
)  # fmt: skip


def test_the_price_is_zero_for_no_step_one_for_the_largest_and_logarithmic_between() -> None:
    steps = torch.tensor([0.0, 2e-2, 2e-1, 2.0], dtype=torch.float64)
    none, small, large, largest = write_cost(steps, 2.0).tolist()
    assert (none, largest) == (0.0, pytest.approx(1.0))
    assert largest - large == pytest.approx(large - small, rel=0.02)  # the same saving for each factor of ten


def _loss(objective: Objective) -> torch.Tensor:
    inputs = torch.arange(2 * 16).reshape(2, 16) % 17
    mask = torch.ones(2, 16, dtype=torch.bool)
    loss, _, _ = objective(inputs, inputs, mask, None, None)
    return loss  # type: ignore[no-any-return]


def test_training_is_charged_for_the_step_sizes_of_every_memory_and_evaluation_is_not() -> None:
    torch.manual_seed(0)
    model = TitansModel(CONFIG)
    free, priced = Objective(model), Objective(model)
    priced.write_cost = 0.5
    # Gates start independent of the token, so every step size is the initial one.
    share = math.log1p(0.05 / (CONFIG.memory.max_step_size * 1e-4)) / math.log1p(1e4)
    assert (_loss(priced) - _loss(free)).item() == pytest.approx(0.5 * share * 32, rel=1e-4)
    with torch.no_grad():
        assert torch.equal(_loss(priced), _loss(free))


def test_a_model_without_memories_is_charged_nothing() -> None:
    meter = WriteMeter(torch.nn.Linear(2, 2))
    with meter.watching():
        pass
    assert meter.mean == 0.0


def test_a_model_that_pays_for_writing_writes_less(tmp_path: Path) -> None:
    task = RecallTask(RecallConfig(keys=8, values=8, pairs=2, gap=8, held_out_gap=8), chunk=8, seed=0)
    written = {}
    for price in (0.0, 1.0):
        options = TrainOptions(steps=60, batch=4, learning_rate=3e-2, warmup=5, write_cost=price)
        train(CONFIG, task, options, tmp_path / str(price))
        model, _ = load_model(tmp_path / str(price))
        meter = WriteMeter(model)
        with torch.no_grad(), meter.watching():
            model(torch.from_numpy(np.arange(16)[None] % 17))
        written[price] = float(meter.mean)
    assert written[1.0] < 0.8 * written[0.0]


def test_the_price_rises_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charged = []
    forward = Objective.forward

    def watched(self: Objective, *arguments: Any) -> Any:
        if torch.is_grad_enabled():
            charged.append(self.write_cost)
        return forward(self, *arguments)

    monkeypatch.setattr(Objective, "forward", watched)
    task = RecallTask(RecallConfig(keys=8, values=8, pairs=2, gap=8, held_out_gap=8), chunk=8, seed=0)
    train(CONFIG, task, TrainOptions(steps=4, batch=2, write_cost=2.0), tmp_path / "out")
    assert charged == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("price", [-0.1, math.inf, math.nan])
def test_a_price_that_makes_no_sense_is_refused(price: float) -> None:
    with pytest.raises(ConfigError, match="write_cost"):
        TrainOptions(steps=1, write_cost=price)
