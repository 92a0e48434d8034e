"""What the loop trains: a module, the loss it is trained on, and how it is stored.

Knows models, objectives and checkpoints. Does not know data, steps or optimizers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from titans_core.config import TitansConfig
from titans_core.controls import writes_off, writes_something
from titans_core.errors import ConfigError
from titans_core.model import TitansModel
from titans_core.training.checkpoint import Checkpoint
from titans_core.training.objective import Objective, Trainable
from titans_core.training.speed import prepare


class Learner(Protocol):
    """A model in training.

    Attributes:
        model: its parameters that take gradients are trained, and all of its `state_dict` is stored.
        objective: the loss of it.
        num_parameters: numbers in the weights of the whole model.
        advice: more to try where the loss is no longer finite; begins with a comma, or is empty.
    """

    @property
    def model(self) -> nn.Module: ...
    @property
    def objective(self) -> Trainable: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def advice(self) -> str: ...

    def writes_off(self) -> nn.Module | None:
        """The objective of the model as it is now with its writes switched off; None if it never writes."""

    def checkpoint(self, weights: dict[str, Tensor], provenance: dict[str, str | int | float]) -> Checkpoint:
        """What is stored of the model whose `state_dict` is `weights`."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over stored weights. Raises `ConfigError` for another model's."""


class TitansLearner:
    """A Titans model of `config` on `device`, with fresh weights drawn from torch's random state or `tensors`.

    Fresh weights of the head are multiplied by `head_scale`: what a small one answers before training is nearly zero.
    """

    def __init__(
        self,
        config: TitansConfig,
        device: torch.device,
        *,
        tensors: dict[str, Tensor] | None = None,
        tokenizer_json: str | None = None,
        series_json: str | None = None,
        compiled: bool = False,
        recompute: bool = False,
        head_scale: float = 1.0,
    ) -> None:
        self.config, self._device = config, device
        self._tokenizer_json, self._series_json = tokenizer_json, series_json
        self.model = TitansModel(config).to(device)
        if tensors is not None:
            self.model.load_state_dict(tensors)
        elif head_scale != 1.0:
            with torch.no_grad():
                self.model.head.weight.mul_(head_scale)
        prepare(self.model, compiled=compiled, recompute=recompute)
        self.objective = Objective(self.model)
        self.num_parameters = self.model.num_parameters()
        self.advice = "" if config.memory.surprise_bound is not None else ", a surprise_bound of 1.0 for the memory"

    def writes_off(self) -> Objective | None:
        """A copy of the model without step sizes, or None if it never writes."""
        if not writes_something(self.config):
            return None
        config, tensors = writes_off(self.config, self.model.state_dict())
        with torch.random.fork_rng(devices=[]):  # what a fresh model draws is not this run's
            model = TitansModel(config).to(self._device)
        model.load_state_dict(tensors)
        return Objective(model)

    def checkpoint(self, weights: dict[str, Tensor], provenance: dict[str, str | int | float]) -> Checkpoint:
        """The model with its tokenizer and the scaling of its series."""
        return Checkpoint(self.config, weights, self._tokenizer_json, provenance, self._series_json)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the weights of a checkpoint of the same configuration."""
        if checkpoint.config != self.config:
            raise ConfigError(
                "the checkpoint holds a model of another configuration", "give the same one, or a new --out"
            )
        self.model.load_state_dict(checkpoint.tensors)
