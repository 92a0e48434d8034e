"""DLinear, the baseline of forecasting tables: a moving average and the rest, each through one linear map.

Written from its description (Zeng et al., arXiv 2205.13504): a kernel of 25, one map for all channels and one model for
each horizon. It is trained with the optimizer, the schedule and the losses of `titans train`.

Knows one baseline. Does not know bundles.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from titans_core.training.optimizer import build_optimizer, set_learning_rate
from titans_core.training.schedule import default_warmup, learning_rate
from titans_measure.quality.scores import Errors

KERNEL = 25  # steps of the moving average
BATCH = 32  # windows, of all channels each
Loss = Literal["squared", "absolute"]


class DLinear(nn.Module):
    """`[..., lags]` to `[..., horizon]`."""

    def __init__(self, lags: int, horizon: int) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(lags, horizon), nn.Linear(lags, horizon)

    def forward(self, values: Tensor) -> Tensor:
        """The forecasts of windows."""
        side = KERNEL // 2
        first, last = (
            values[..., :1].expand(*values.shape[:-1], side),
            values[..., -1:].expand(*values.shape[:-1], side),
        )
        trend = torch.cat([first, values, last], -1).unfold(-1, KERNEL, 1).mean(-1)
        out: Tensor = self.trend(trend) + self.rest(values - trend)
        return out


def trained(
    values: NDArray[np.float64],
    *,
    lags: int,
    horizon: int,
    train_steps: int,
    steps: int,
    rate: float,
    loss: Loss,
    seed: int,
) -> DLinear:
    """A DLinear of the first `train_steps` of normalised `values` `[T, F]`, after `steps` of 32 windows."""
    torch.manual_seed(seed)
    model, random = DLinear(lags, horizon), np.random.default_rng([13, seed])
    optimizer = build_optimizer(model, weight_decay=0.01)
    series = torch.from_numpy(values[:train_steps].T.astype(np.float32))  # [F, T]
    inputs, targets = series.unfold(1, lags, 1), series[:, lags:].unfold(1, horizon, 1)
    for step in range(steps):
        places = torch.from_numpy(random.integers(targets.shape[1], size=BATCH))
        off = model(inputs[:, places]) - targets[:, places]
        value = off.abs().mean() if loss == "absolute" else off.square().mean()
        set_learning_rate(optimizer, learning_rate(step, peak=rate, warmup=default_warmup(steps), steps=steps))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def errors(
    model: DLinear, values: NDArray[np.float64], *, lags: int, horizon: int, first: int, last: int
) -> tuple[int, Errors]:
    """How many forecasts lie in steps `first` up to before `last` of normalised `values` `[T, F]`, and their errors."""
    series = torch.from_numpy(values[first - lags : last].T.astype(np.float32))
    inputs, truth = series.unfold(1, lags, 1), series[:, lags:].unfold(1, horizon, 1)
    forecasts = model(inputs[:, : truth.shape[1]])
    return truth.shape[1], Errors.of(forecasts.double().numpy(), truth.double().numpy())
